"""The writer when its line to PostgreSQL breaks: before a commit, after it, for good; and when the database hangs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import UUID, uuid4

import pytest
import trio
import trio.testing

from tests.faults.desk import GIVE_UP_AFTER_S, QUICK, Desk, desk_on, rename, submit, text
from tests.faults.proxy import Proxy, postgres_proxy
from uim.chat.epochs import Epochs
from uim.chat.memberships import Memberships
from uim.chat.switchboard import Switchboard
from uim.chat.tailer import Tailer
from uim.errors import UIMError
from uim.store import messages
from uim.store.redis import RedisLink

pytestmark = pytest.mark.timeout(30)


def is_append(request: bytes) -> bool:
    """The values themselves: the statement was prepared by a request of its own."""
    return b"hello" in request


def is_commit(request: bytes) -> bool:
    return b"COMMIT" in request


@dataclass
class Scene:
    """alice and bob, their conversation and a group of three, and the writer behind the proxy."""

    desk: Desk
    proxy: Proxy
    alice: UUID
    bob: UUID
    pair: UUID
    group: UUID

    @property
    def handed_on(self) -> list[int]:
        return [entry.message_id for entry in self.desk.appended]


@pytest.fixture
async def scene(database_url: str) -> AsyncIterator[Scene]:
    async with postgres_proxy(database_url) as proxy, desk_on(database_url, through=proxy.url) as desk:
        alice, bob, cyd = await desk.people("alice", "bob", "cyd")
        pair = await desk.pair(alice, bob)
        group = await desk.group(alice, bob, cyd)
        desk.appended.clear()
        yield Scene(desk, proxy, alice, bob, pair, group)


async def test_a_commit_whose_answer_is_lost_is_found_by_its_key_and_answered_sent(scene: Scene) -> None:
    loss = scene.proxy.lose(is_append, carried_out=True)
    posted = await scene.desk.writer.post(text(scene.pair, scene.alice, "once"))
    assert loss.happened.is_set()
    assert posted.duplicate
    rows = await scene.desk.texts_in_log()
    assert rows == [(posted.message_id, 1, "once", "hello")]


async def test_what_was_committed_unheard_is_not_handed_on_from_memory_and_reaches_the_tailer(
    scene: Scene, database_url: str
) -> None:
    tailer: Tailer
    link = RedisLink("unix:///nowhere")
    tailer = Tailer(
        database_url,
        epochs=Epochs(link, log_id=uuid4(), position=lambda: tailer.position, on_begun=lambda epoch: None),
        switchboard=Switchboard(devices_per_user=20),
        memberships=Memberships(),
        origin_of=scene.desk.writer.origins.of,
        on_changed=lambda conversation_id: None,
        on_logins_ended=lambda login_ids: None,
        bus_is_up=lambda: True,
    )
    origin = uuid4()
    async with trio.open_nursery() as nursery:
        await nursery.start(tailer.run)
        scene.proxy.lose(is_append, carried_out=True)
        draft = text(scene.pair, scene.alice, "once")
        posted = await scene.desk.writer.post(type(draft)(draft.conversation_id, draft.sender_id, "once", "hello", None, origin))
        assert scene.handed_on == []
        with trio.fail_after(5):
            while tailer.position < posted.message_id:
                await trio.sleep(0.005)
        nursery.cancel_scope.cancel()
    assert [(entry.message_id, entry.content) for entry in tailer.ring][-1] == (posted.message_id, "hello")
    assert scene.desk.writer.origins.of(tailer.ring[-1]) == origin, "the sender's own connection has the ack instead"


async def test_a_whole_batch_whose_answer_is_lost_stands_once_in_its_order(scene: Scene) -> None:
    scene.proxy.lose(is_append, carried_out=True)
    answers = await submit(scene.desk.writer, *(text(scene.pair, scene.alice, f"m{n}") for n in range(20))).all()
    rows = await scene.desk.texts_in_log()
    assert [row[2] for row in rows] == [f"m{n}" for n in range(20)]
    assert answers == [-row[0] for row in rows]


async def test_a_line_cut_before_the_commit_is_repeated_and_done_once(scene: Scene) -> None:
    loss = scene.proxy.lose(is_append, carried_out=False)
    posted = await scene.desk.writer.post(text(scene.pair, scene.alice, "once"))
    assert loss.happened.is_set()
    assert not posted.duplicate
    assert await scene.desk.texts_in_log() == [(posted.message_id, 1, "once", "hello")]
    assert scene.handed_on == [posted.message_id]


async def test_a_verb_whose_commits_answer_is_lost_gives_its_first_result_and_stands_once(scene: Scene) -> None:
    before = await scene.desk.events_in_log(scene.group)
    loss = scene.proxy.lose(is_commit, carried_out=True)
    result = await scene.desk.writer.do(rename(scene.group, scene.alice, "Tea"), key=uuid4())
    assert loss.happened.is_set()
    assert await scene.desk.events_in_log(scene.group) == [*before, "renamed", "renamed"]
    assert int(result.split()[1]) == len(before) + 1, "the result of the try that was committed"
    assert scene.handed_on == [], "the tailer reads these from the log"


async def test_a_verb_cut_before_its_commit_is_done_once_by_the_repeat(scene: Scene) -> None:
    before = await scene.desk.events_in_log(scene.group)
    loss = scene.proxy.lose(is_commit, carried_out=False)
    await scene.desk.writer.do(rename(scene.group, scene.alice, "Tea"), key=uuid4())
    assert loss.happened.is_set()
    assert await scene.desk.events_in_log(scene.group) == [*before, "renamed", "renamed"]
    assert len(scene.handed_on) == 2


async def test_a_verb_whose_answer_is_lost_twice_over_stands_once(scene: Scene) -> None:
    before = await scene.desk.events_in_log(scene.group)
    losses = [scene.proxy.lose(is_commit, carried_out=carried_out) for carried_out in (False, True)]
    await scene.desk.writer.do(rename(scene.group, scene.alice, "Tea"), key=uuid4())
    assert all(loss.happened.is_set() for loss in losses)
    assert await scene.desk.events_in_log(scene.group) == [*before, "renamed", "renamed"]


async def test_order_is_kept_over_every_kind_of_break(scene: Scene) -> None:
    answers = []
    for number in range(30):
        if number % 10 in (2, 5):
            scene.proxy.lose(is_append, carried_out=number % 10 == 2)
        if number % 10 == 8:
            scene.proxy.cut()
        answers.append(submit(scene.desk.writer, text(scene.pair, scene.alice, f"m{number}")))
        await trio.lowlevel.checkpoint()
    for series in answers:
        assert isinstance((await series.all())[0], int)
    rows = await scene.desk.texts_in_log()
    assert [row[2] for row in rows] == [f"m{number}" for number in range(30)]
    assert [row[1] for row in rows] == list(range(1, 31))
    assert scene.handed_on == sorted(scene.handed_on)


async def test_with_the_database_away_senders_are_told_and_nothing_is_doubled_afterwards(scene: Scene) -> None:
    scene.proxy.refuse()
    started = trio.current_time()
    drafts = [text(scene.pair, scene.alice, f"m{number}") for number in range(3)]
    assert await submit(scene.desk.writer, *drafts).all() == ["unavailable"] * 3
    assert trio.current_time() - started < GIVE_UP_AFTER_S + 2
    with pytest.raises(UIMError, match="away"):
        await scene.desk.writer.do(rename(scene.group, scene.alice, "Tea"), key=uuid4())
    scene.proxy.accept()
    assert await submit(scene.desk.writer, *drafts).all() == [row[0] for row in await scene.desk.texts_in_log()]
    assert await scene.desk.events_in_log(scene.group) == ["created", "participant_added", "participant_added"]


async def test_a_database_that_takes_no_writes_for_a_while_buries_no_text(scene: Scene) -> None:
    """A standby, or one whose disk is nearly full, lets us in."""
    async with scene.desk.pool.connection() as tx:
        name = tx.info.dbname
    await scene.desk.run(f'alter database "{name}" set default_transaction_read_only = on')
    scene.proxy.cut()
    draft = text(scene.pair, scene.alice, "m0")
    assert await submit(scene.desk.writer, draft).all() == ["unavailable"]
    assert scene.desk.writer.dead_letters == 0
    async with scene.desk.pool.transaction() as tx:
        await tx.execute("set transaction read write")
        await tx.execute(f'alter database "{name}" reset default_transaction_read_only')
    with trio.fail_after(5):
        while await submit(scene.desk.writer, draft).all() == ["unavailable"]:
            pass
    assert [row[2] for row in await scene.desk.texts_in_log()] == ["m0"]


async def test_a_long_line_before_a_hung_database_is_told_together_not_one_by_one(scene: Scene) -> None:
    scene.proxy.hang()
    refused: list[str] = []

    async def wish(name: str) -> None:
        try:
            await scene.desk.writer.do(rename(scene.group, scene.alice, name), key=uuid4())
        except UIMError as refusal:
            refused.append(refusal.code)

    with trio.fail_after(GIVE_UP_AFTER_S + 3 * QUICK.answer_s + 0.5):
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(wish, f"name {number}")
    assert refused == ["unavailable"] * 20


async def test_a_hung_database_is_noticed_and_what_it_held_back_is_not_doubled(scene: Scene) -> None:
    """A hung line delivers its request later, after the repeat: the request is a repeat then, whoever comes first."""
    scene.proxy.hang()
    drafts = [text(scene.pair, scene.alice, f"m{number}") for number in range(3)]
    started = trio.current_time()
    assert await submit(scene.desk.writer, *drafts).all() == ["unavailable"] * 3
    assert trio.current_time() - started < GIVE_UP_AFTER_S + 2 * QUICK.answer_s + 1
    scene.proxy.flow()
    again = await submit(scene.desk.writer, *drafts).all()
    rows = await scene.desk.texts_in_log()
    assert [row[2] for row in rows] == ["m0", "m1", "m2"]
    assert [abs(int(answer)) for answer in again] == [row[0] for row in rows]


async def test_a_statement_that_waits_for_the_log_lock_too_long_is_repeated(scene: Scene) -> None:
    """Another process may hold the lock through a pause of its own; whoever waits is not lost."""
    async with scene.desk.pool.transaction() as tx:
        await tx.execute("select log_lock()")
        waiting = submit(scene.desk.writer, text(scene.pair, scene.alice, "late"))
        with trio.fail_after(5):
            while scene.proxy.accepted < 2:  # it has lost its patience once and come again
                await trio.sleep(0.005)
    assert isinstance((await waiting.all())[0], int)
    assert [row[2] for row in await scene.desk.texts_in_log()] == ["late"]


async def test_a_cancelled_post_is_appended_once(scene: Scene) -> None:
    with trio.CancelScope() as scope:
        scene.proxy.hang()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.desk.writer.post, text(scene.pair, scene.alice, "left"))
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    scene.proxy.flow()
    last = await scene.desk.writer.post(text(scene.pair, scene.alice, "last"))
    assert [(row[0], row[2]) for row in await scene.desk.texts_in_log()] == [
        (last.message_id - 1, "left"),
        (last.message_id, "last"),
    ]


async def test_a_cancelled_writer_finishes_the_append_that_it_has_begun(database_url: str) -> None:
    """Half a call would leave its senders, and whoever reads the log, not knowing."""
    async with desk_on(database_url, running=False) as desk:
        async with trio.open_nursery() as nursery:
            await nursery.start(desk.writer.run)
            alice, bob = await desk.people("alice", "bob")
            pair = await desk.pair(alice, bob)
            with trio.CancelScope(shield=True):
                async with desk.pool.transaction() as tx:
                    await messages.lock_log(tx)
                    waiting = submit(desk.writer, text(pair, alice, "begun"))
                    await trio.testing.wait_all_tasks_blocked()
                    nursery.cancel_scope.cancel()
                    await trio.testing.wait_all_tasks_blocked()
                    assert not waiting.complete.is_set()
        assert await waiting.all() == [1]
        assert desk.appended[0].message_id == 1
        assert [row[2] for row in await desk.texts_in_log()] == ["begun"]


async def test_closing_finishes_what_is_in_line_and_takes_no_more(scene: Scene) -> None:
    drafts = [text(scene.pair, scene.alice, f"m{number}") for number in range(3)]
    waiting = submit(scene.desk.writer, *drafts)
    scene.desk.writer.close(within_s=10)
    with pytest.raises(UIMError, match="going down"):
        scene.desk.writer.submit(drafts[0], lambda what: None)
    with trio.fail_after(5):
        await scene.desk.writer.drained.wait()
    assert all(isinstance(answer, int) for answer in await waiting.all())


async def test_closing_with_the_database_away_ends_all_the_same(scene: Scene) -> None:
    scene.proxy.hang()
    waiting = submit(scene.desk.writer, text(scene.pair, scene.alice, "m"))
    scene.desk.writer.close(within_s=10)
    with trio.fail_after(5):
        await scene.desk.writer.drained.wait()
    assert await waiting.all() == ["unavailable"]
