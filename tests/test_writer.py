"""The log's writer on a whole database: batches, who is refused in them, and verbs between the texts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from uuid import UUID, uuid4

import pytest
import structlog.testing
import trio
import trio.testing

from tests.faults.desk import Desk, desk_on, rename, submit, text
from uim.chat.appending import MAX_BATCH, Append
from uim.chat.writer import MAX_WAITING
from uim.errors import UIMError
from uim.model.message import Draft
from uim.store import messages
from uim.store.postgres import Connection, connect

pytestmark = pytest.mark.timeout(30)

HERE = "datname = current_database()"


@dataclass
class Scene:
    desk: Desk
    alice: UUID
    bob: UUID
    cyd: UUID
    pair: UUID
    group: UUID


@pytest.fixture
async def scene(database_url: str) -> AsyncIterator[Scene]:
    async with desk_on(database_url) as desk:
        alice, bob, cyd = await desk.people("alice", "bob", "cyd")
        pair = await desk.pair(alice, bob)
        group = await desk.group(alice, bob, cyd)
        desk.appended.clear()
        yield Scene(desk, alice, bob, cyd, pair, group)


# --- batches ---


async def test_what_waits_becomes_batches_in_the_order_of_the_line(scene: Scene) -> None:
    count = MAX_BATCH + 44
    drafts = [text((scene.pair, scene.group)[n % 2], (scene.alice, scene.bob)[n % 2], f"m{n}", f"text {n}") for n in range(count)]
    answers = submit(scene.desk.writer, *drafts)
    ids = await answers.all()
    assert ids == list(range(4, 4 + count))
    assert [client_id for client_id, _ in answers.came] == [f"m{n}" for n in range(count)]
    assert [row[3] for row in await scene.desk.texts_in_log()] == [f"text {n}" for n in range(count)]
    assert [entry.message_id for entry in scene.desk.appended] == ids
    entry = scene.desk.appended[7]
    assert (entry.seq, entry.content, entry.sender_id, entry.client_message_id) == (7, "text 7", scene.bob, "m7")


async def test_a_batch_is_told_of_while_the_database_works_at_the_next_whatever_becomes_of_that(scene: Scene, database_url: str) -> None:
    writer, lock = scene.desk.writer, "select log_lock()"
    async with await connect(database_url, name="first") as first, await connect(database_url, name="then") as then:
        async with trio.open_nursery() as nursery, then.transaction():
            async with first.transaction():
                await first.execute(lock)
                one = submit(writer, text(scene.pair, scene.alice, "a"))
                await until_waiting(first, 1)
                two = submit(writer, text(scene.pair, scene.alice, "b"))
                nursery.start_soon(then.execute, lock)
                await until_waiting(first, 2)
                connection = writer._tx
            assert await one.all() == [4]
            assert writer._tx is connection, "the second has not been given up meanwhile"
            await until_waiting(first, 1)
            assert [entry.message_id for entry in scene.desk.appended] == [4] and two.came == []
            await first.execute(f"select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'uim writer' and {HERE}")
            three = submit(writer, text(scene.pair, scene.alice, "c"))
        assert (await two.all(), await three.all()) == ([5], [6])
    assert [entry.message_id for entry in scene.desk.appended] == [4, 5, 6]


async def test_what_is_committed_is_told_though_the_log_has_gone_on_elsewhere_meanwhile(scene: Scene, database_url: str) -> None:
    writer = scene.desk.writer
    async with await connect(database_url, name="first") as first, first.transaction():
        await first.execute("select log_lock()")
        one = submit(writer, text(scene.pair, scene.alice, "a"))
        await until_waiting(first, 1)
        two = submit(writer, text(scene.pair, scene.alice, "b"))
        writer.begin_again()
        url, writer._url = writer._url, "postgresql://127.0.0.1:1/nowhere"
    assert await one.all() == [4] and two.came == []
    writer._url = url
    assert await two.all() == [5]
    assert [entry.message_id for entry in scene.desk.appended] == [4, 5]


async def test_what_fails_at_its_commit_is_refused_and_the_line_goes_on(scene: Scene) -> None:
    await scene.desk.run(
        """create function spit() returns trigger language plpgsql as
            $$ begin if new.content = 'poison' then raise exception 'no'; end if; return null; end $$"""
    )
    await scene.desk.run(
        """create constraint trigger spit after insert on messages deferrable initially deferred
            for each row execute function spit()"""
    )
    drafts = [text(scene.pair, scene.alice, content=content) for content in ("one", "poison", "two")]
    answers = await submit(scene.desk.writer, *drafts).all()
    assert sorted(str(answer) for answer in answers) == ["4", "5", "internal"]


async def until_waiting(tx: Connection, count: int) -> None:
    """Until so many wait for the log's lock."""
    with trio.fail_after(5):
        waiting = f"select count(*) from pg_locks l join pg_database d on d.oid = l.database where {HERE}"
        while await (await tx.execute(f"{waiting} and locktype = 'advisory' and not granted")).fetchone() != (count,):
            await trio.sleep(0.002)


async def test_poison_is_halved_until_it_stands_alone_and_the_others_are_stored_in_order(scene: Scene) -> None:
    await scene.desk.run("alter table messages add check (content <> 'poison')")
    drafts = [text(scene.pair, scene.alice, f"m{n}", "poison" if n in (3, 11) else f"text {n}") for n in range(16)]
    with structlog.testing.capture_logs() as logged:
        answers = await submit(scene.desk.writer, *drafts).all()
    assert [n for n, answer in enumerate(answers) if answer == "internal"] == [3, 11]
    good = [n for n in range(16) if n not in (3, 11)]
    assert [(row[1], row[3]) for row in await scene.desk.texts_in_log()] == [(k, f"text {n}") for k, n in enumerate(good, 1)]
    letters = [line for line in logged if line["event"] == "dead letter"]
    assert [line["client_message_id"] for line in letters] == ["m3", "m11"]
    assert all(line["log_level"] == "error" and line["user_id"] == str(scene.alice) for line in letters)
    assert (await scene.desk.writer.post(text(scene.pair, scene.alice))).seq == len(good) + 1


@pytest.mark.parametrize("sqlstate", ["54000", "22000", "XX000", "P0001", "55000"])
async def test_whatever_the_error_is_called_poison_does_not_stop_the_line(scene: Scene, sqlstate: str) -> None:
    await scene.desk.run(
        f"""create function spit() returns trigger language plpgsql as
            $$ begin
                if new.content = 'poison' then raise exception 'no' using errcode = '{sqlstate}'; end if;
                return new;
            end $$"""
    )
    await scene.desk.run("create trigger spit before insert on messages for each row execute function spit()")
    drafts = [text(scene.pair, scene.alice, content=content) for content in ("one", "poison", "two")]
    answers = await submit(scene.desk.writer, *drafts).all()
    assert sorted(str(answer) for answer in answers) == ["4", "5", "internal"]
    assert [row[3] for row in await scene.desk.texts_in_log()] == ["one", "two"]


# --- repeats ---


async def test_repeats_within_a_batch_first_wins(scene: Scene) -> None:
    drafts = [
        text(scene.pair, scene.alice, "a", "one"),
        text(scene.pair, scene.alice, "a", "one"),
        text(scene.pair, scene.alice, "a", "other"),
        text(scene.group, scene.alice, "a", "one"),
        text(scene.group, scene.bob, "a", "another's own id"),
        Draft(scene.pair, scene.alice, "a", "one", '{"k":"v"}'),
        text(scene.pair, scene.alice, "b", "two"),
    ]
    assert await submit(scene.desk.writer, *drafts).all() == [4, -4, "conflict", "conflict", 5, "conflict", 6]
    assert [(row[0], row[3]) for row in await scene.desk.texts_in_log()] == [(4, "one"), (5, "another's own id"), (6, "two")]
    assert [entry.message_id for entry in scene.desk.appended] == [4, 5, 6], "copies are not handed on"


async def test_known_repeats_are_told_before_any_refusal(scene: Scene) -> None:
    said, private = text(scene.group, scene.cyd, "said", "hello"), text(scene.pair, scene.bob, "private", "hello")
    assert await submit(scene.desk.writer, said, private).all() == [4, 5]
    await scene.desk.conversations.remove(user_id=scene.alice, conversation_id=scene.group, target_id=scene.cyd)
    await scene.desk.block(scene.alice, scene.bob)
    await scene.desk.run("update users set deleted_at = now() where user_id = %s", scene.cyd)
    again = [said, text(scene.group, scene.cyd, "said", "other"), text(scene.group, scene.cyd, "new"), private]
    assert await submit(scene.desk.writer, *again).all() == [-4, "conflict", "not_found", -5]


async def test_a_refused_entry_is_refused_alone_and_its_repeat_is_judged_anew(scene: Scene) -> None:
    await scene.desk.block(scene.bob, scene.alice)
    drafts = [text(scene.group, scene.alice, "a"), text(scene.pair, scene.alice, "b"), text(scene.group, scene.alice, "c")]
    assert await submit(scene.desk.writer, *drafts, drafts[1]).all() == [4, "forbidden", 5, "forbidden"]
    await scene.desk.run("delete from blocks")
    assert (await scene.desk.writer.post(drafts[1])).message_id == 6


# --- who may ---


async def test_what_the_sender_may_not_see_is_not_found(scene: Scene) -> None:
    dan = await scene.desk.person("dan")
    own = UUID(int=0)
    async with scene.desk.pool.connection() as tx:
        cursor = await tx.execute("select conversation_id from conversations where created_by = %s and type = 'self'", (dan,))
        row = await cursor.fetchone()
        assert row is not None
        own = row[0]
    drafts = [text(place, dan) for place in (scene.pair, scene.group, own, uuid4())]
    assert await submit(scene.desk.writer, *drafts).all() == ["not_found"] * 4
    ended = await scene.desk.group(scene.alice, scene.bob, dan)
    await scene.desk.run("update conversations set deleted_at = now() where conversation_id = %s", ended)
    assert await submit(scene.desk.writer, text(ended, dan)).all() == ["not_found"]


async def test_a_block_is_told_to_the_blocker_only_and_means_nothing_in_groups(scene: Scene) -> None:
    await scene.desk.block(scene.alice, scene.bob)
    drafts = [
        text(scene.pair, scene.alice),
        text(scene.pair, scene.bob),
        text(scene.group, scene.alice),
        text(scene.group, scene.bob),
    ]
    assert await submit(scene.desk.writer, *drafts).all() == ["blocked", "forbidden", 4, 5]


async def test_deleted_accounts_neither_send_nor_are_sent_to(scene: Scene) -> None:
    await scene.desk.run("update users set deleted_at = now() where user_id = %s", scene.bob)
    drafts = [
        text(scene.pair, scene.alice),
        text(scene.pair, scene.bob),
        text(scene.group, scene.bob),
        text(scene.group, scene.alice),
    ]
    assert await submit(scene.desk.writer, *drafts).all() == ["forbidden", "forbidden", "forbidden", 4]


# --- verbs between texts ---


async def test_a_removal_before_a_text_shuts_it_out_and_one_after_it_does_not(scene: Scene) -> None:
    async def remove(tx: Connection, append: Append) -> None:
        entry = await append(
            conversation_id=scene.group,
            sender_id=scene.alice,
            message_type="system",
            event={"event": "participant_removed", "user_id": str(scene.cyd)},
        )
        await tx.execute("update conversation_participants set left_at = now() where user_id = %s", (scene.cyd,))
        await tx.execute("update participations set left_message_id = %s where user_id = %s", (entry.message_id, scene.cyd))

    async with trio.open_nursery() as nursery, scene.desk.pool.transaction() as tx:
        await messages.lock_log(tx)  # the writer waits, the line grows
        before = submit(scene.desk.writer, text(scene.group, scene.cyd, "before"))
        nursery.start_soon(partial(scene.desk.writer.do, remove, key=uuid4()))
        await trio.testing.wait_all_tasks_blocked()
        after = submit(scene.desk.writer, text(scene.group, scene.cyd, "after"), text(scene.group, scene.alice, "theirs"))
    assert (await before.all(), await after.all()) == ([4], ["not_found", 6])
    assert [entry.message_id for entry in scene.desk.appended] == [4, 5, 6]


async def test_a_verb_that_fails_leaves_nothing_and_the_line_goes_on(scene: Scene) -> None:
    class Odd(Exception):
        pass

    async def fail(tx: Connection, append: Append) -> None:
        await rename(scene.group, scene.alice, "never")(tx, append)
        raise Odd

    async def refuse(tx: Connection, append: Append) -> None:
        await rename(scene.group, scene.alice, "never")(tx, append)
        raise UIMError("forbidden")

    with pytest.raises(Odd):
        await scene.desk.writer.do(fail, key=uuid4())
    with pytest.raises(UIMError, match="forbidden"):
        await scene.desk.writer.do(refuse, key=uuid4())
    assert (await scene.desk.writer.post(text(scene.group, scene.alice))).message_id == 4
    assert "renamed" not in await scene.desk.events_in_log(scene.group)
    assert (await scene.desk.view(scene.alice, scene.group)).name == "Tea"


async def test_a_full_line_refuses_at_once(database_url: str) -> None:
    async with desk_on(database_url, running=False) as desk:
        for _ in range(MAX_WAITING):
            desk.writer.submit(text(uuid4(), uuid4()), lambda what: None)
        with pytest.raises(UIMError, match="too many messages at once") as refused:
            desk.writer.submit(text(uuid4(), uuid4()), lambda what: None)
        assert (refused.value.code, refused.value.retry_after_s) == ("unavailable", 1.0)
        assert desk.writer.waiting == MAX_WAITING
