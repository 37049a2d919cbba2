"""`uim verify`: clean after real use and beside busy servers; each kind of damage, made by hand, is found, named, and mended or not.

The database of a small world in real use is made once; every test damages a copy of its own.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import psycopg
import pytest
import trio
from psycopg import sql

from tests.conftest import url_of
from tests.house import Person, Server, serving, settings_for
from tests.test_cli import uim
from uim.chat import indexer, verification
from uim.cli.embedded import Servers
from uim.store import messages
from uim.store.postgres import connect

RealConnection = psycopg.Connection[tuple[object, ...]]


async def say(person: Person, conversation_id: str, number: int, *, first: int = 0) -> list[int]:
    path = f"/api/conversations/{conversation_id}/messages"
    ids = []
    for at in range(first, first + number):
        body = {"client_message_id": f"{conversation_id}-{at}", "content": f"Straße number {at} of a long talk"}
        ids.append((await person.post(path, body, expect=201))["message_id"])
    return ids


async def use(server: Server) -> None:
    """A little of everything that changes the database."""
    alice, bob, cyd, dan = [await server.register(name) for name in ("alice", "bob", "cyd", "dan")]
    pair = await server.pair(alice, bob)
    group = await server.group(alice, bob, cyd)
    members = f"/api/conversations/{group}/participants"
    phone = await bob.connect("phone")
    laptop = await alice.connect("laptop")
    said = await laptop.say_many(pair, [f"Straße number {at} of a long talk" for at in range(150)])
    await phone.reached(said[-1])
    await phone.send("MESSAGE_ACK", status="read", conversation_id=pair, message_id=said[20])
    await say(cyd, group, 3)
    await alice.post(members, {"user_ids": [dan.user_id]})
    await say(dan, group, 3)
    await dan.call("DELETE", f"{members}/{dan.user_id}", expect=204)
    await alice.post(members, {"user_ids": [dan.user_id]})
    await alice.call("DELETE", f"{members}/{dan.user_id}", expect=204)
    await alice.call("PUT", f"{members}/{cyd.user_id}", {"role": "owner"})
    await cyd.call("PUT", f"/api/conversations/{group}", {"name": "anew"})
    await alice.call("DELETE", f"/api/conversations/{pair}/messages/{said[5]}?for=everyone", expect=204)
    await bob.call("DELETE", f"/api/conversations/{pair}/messages/{said[6]}?for=me", expect=204)
    await bob.call("PUT", "/api/users/me", {"settings": {"read_receipts": False}}, expect=200)
    await bob.post(f"/api/conversations/{pair}/read", {"message_id": said[40]}, expect=204)
    await bob.call("DELETE", f"/api/conversations/{pair}", expect=204)
    for asker, asked in ((alice, cyd), (bob, cyd), (dan, alice)):
        await asker.post("/api/friends", {"user_id": asked.user_id}, expect=201)
    await cyd.call("PUT", f"/api/friends/{alice.user_id}", expect=200)
    await cyd.call("PUT", f"/api/blocks/{bob.user_id}", expect=204)
    await bob.post("/api/friends", {"user_id": cyd.user_id}, expect=201)
    other = await server.group(bob, alice, dan, name="other")
    await say(bob, other, 2)
    await bob.call("DELETE", f"/api/conversations/{other}", expect=204)
    await dan.call("DELETE", "/api/users/me", {"current_password": "Wonderland-1865"}, expect=204)
    await phone.roundtrip()


async def pack(database_url: str) -> None:
    async with await connect(database_url, name="test") as tx:
        while await indexer.step(tx):
            await trio.lowlevel.checkpoint()


@pytest.fixture(scope="module")
def used(servers: Servers, administration: RealConnection) -> Iterator[str]:
    """The name of a database in which there was real use."""
    name = f"used_{os.urandom(6).hex()}"
    administration.execute(sql.SQL("create database {} template uim_template").format(sql.Identifier(name)))

    async def live() -> None:
        with trio.fail_after(40):
            async with serving(settings_for(url_of(servers, name), servers.redis_url)) as server:
                await use(server)
            await pack(url_of(servers, name))

    trio.run(live)
    # Nobody may be in what is copied.
    administration.execute("select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = %s", (name,))
    yield name
    administration.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture
def copy_url(servers: Servers, administration: RealConnection, used: str) -> Iterator[str]:
    name = f"copy_{os.urandom(6).hex()}"
    given = sql.Identifier(name), sql.Identifier(used)
    administration.execute(sql.SQL("create database {} template {} strategy file_copy").format(*given))
    yield url_of(servers, name)
    administration.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def damage(database_url: str, statements: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        # Or foreign keys and triggers would stand in the way of much of it.
        connection.execute("set session_replication_role = replica")
        connection.execute(statements.encode())


async def broken(database_url: str) -> dict[str, list[str]]:
    """The broken rules, each with its examples."""
    report = await verification.verify(database_url)
    return {finding.invariant.name: finding.examples for finding in report.wrong}


# What nothing else in the database tells, so that no mending may touch it.
SOURCES = ("messages", "participations", "receipts", "conversations", "users", "log_epochs", "friendships", "blocks", "hidden_messages")


def sources_of(database_url: str) -> list[object]:
    with psycopg.connect(database_url) as connection:
        sums = [f"(select md5(string_agg(t::text, '|' order by t::text)) from {table} t)" for table in SOURCES]
        row = connection.execute(f"select {', '.join(sums)}".encode()).fetchone()
        assert row is not None
        return list(row)


async def test_real_use_leaves_nothing_wrong(copy_url: str) -> None:
    report = await verification.verify(copy_url)
    assert {finding.invariant.name: finding.examples for finding in report.wrong} == {}
    assert report.rows["messages"] > 170
    assert report.rows["texts of search blocks"] >= 2
    assert report.rows["hidden messages"] == 1
    assert len(report.findings) == len({finding.invariant.name for finding in report.findings}), "every rule has its own name"


TEXT = "(select max(message_id) from messages where message_type = 'text')"
SEAT = "(conversation_id, user_id) = (select conversation_id, user_id from receipts where kind = 'delivered' limit 1)"
LEFT = "left_message_id = (select min(left_message_id) from participations)"
GROUP = "(select conversation_id from conversations where type = 'group' and deleted_at is null)"
PAIR = "(select conversation_id from conversations where type = 'one_on_one' limit 1)"
SOMEBODY = "(select user_id from users where deleted_at is null limit 1)"

# By what rule: the damage. Only this is found wrong, or more that follows from it (a message that is gone was also a stay's end).
DAMAGE = {
    "ids without gaps, but for those where an epoch begins": "delete from messages where message_id = 20",
    "no entry in an epoch's gap": "insert into log_epochs values (7, 50, 20, 1, 1)",
    "epochs begin one above the other": "insert into log_epochs values (7, 5000, 6000, 1, 1), (8, 4000, 3000, 1, 1)",
    "what is said to be removed by age is below the head": "update log_identity set horizon = 1000000",
    "times never decrease along the log": "update messages set created_at = created_at + interval '1 day' where message_id = 20",
    "seq is 1, 2, 3 … in each conversation": f"update messages set seq = seq + 1000 where message_id = {TEXT}",
    "every message has its conversation": "update messages set conversation_id = gen_random_uuid() where message_id = 20",
    "every message has its sender": "update messages set sender_id = gen_random_uuid() where message_id = 20",
    "every message was sent in a stay of its sender": f"""update messages set sender_id = u.user_id from users u
        where message_id = {TEXT} and not exists (select from participations s
            where s.user_id = u.user_id and s.conversation_id = messages.conversation_id)""",
    "texts, and no other entries, have a client's id and a hash": "update messages set content_hash = null where message_id = 20",
    "what was taken back has no content": "update messages set content = 'again' where deleted_at is not null and message_type = 'text'",
    "every deletion has taken back a text of its conversation": "update messages set deleted_at = null where message_type = 'text'",
    "who was added to a group is in it from there, or was before": f"""delete from participations
        where conversation_id = {GROUP} and left_message_id is not null""",
    "who left a group, or was removed, was in it up to there": f"""update participations
        set left_message_id = left_message_id - 1 where {LEFT}""",
    "one message under one client id": """alter table messages drop constraint messages_sender_id_client_message_id_key;
        update messages set client_message_id = (select client_message_id from messages where message_id = 20)
            where message_id = 21""",
    "every user has the conversation of their account": f"""delete from conversations
        where type = 'self' and created_by = {SOMEBODY}""",
    "a conversation of two is of its pair": f"""insert into conversation_participants (conversation_id, user_id)
        select {PAIR}, user_id from users on conflict do nothing""",
    "an account's own conversation is its own": f"""insert into conversation_participants (conversation_id, user_id)
        select conversation_id, {SOMEBODY} from conversations where type = 'self' on conflict do nothing""",
    "a living group has one owner and 1 to 50 members": f"""update conversation_participants set role = 'owner'
        where conversation_id = {GROUP}""",
    "nobody is in a group that is deleted": """update conversation_participants set left_at = null
        where conversation_id in (select conversation_id from conversations where deleted_at is not null)""",
    "every participant has a user and a conversation": f"delete from conversations where conversation_id = {PAIR}",
    "every participant has a stay": "delete from participations where left_message_id is null and joined_message_id > 0",
    "who is in has one open stay, who is out has none": f"update participations set left_message_id = null where {LEFT}",
    "nothing is hidden above the head": "update conversation_participants set hidden_up_to = 100000 where hidden_up_to is not null",
    "every stay has its participant": f"""delete from conversation_participants
        where conversation_id = {GROUP} and left_at is not null""",
    "stays of one user in one conversation do not overlap": f"""update participations set left_message_id = {TEXT} where {LEFT}""",
    "a stay in a group begins with the entry that says so": f"""update participations set joined_message_id = joined_message_id + 1
        where conversation_id = {GROUP}""",
    "a stay in a group ends with the entry that says so": f"update participations set left_message_id = left_message_id - 1 where {LEFT}",
    "a stay of two, or in one's own account, is from 0 and open": f"""update participations set joined_message_id = 3
        where conversation_id = {PAIR}""",
    "receipts do not overlap": f"""insert into receipts select conversation_id, user_id, kind, after, up_to - 1, at
        from receipts where up_to - after > 1 and {SEAT}""",
    "every receipt reaches an entry of its conversation, within a stay": f"""insert into receipts
        select conversation_id, user_id, 'read', 0, 1000000, now() from receipts where {SEAT} limit 1""",
    "the log says who it is, in which epoch, and how far it is packed": "delete from log_identity",
    "what was not taken back says something": f"update messages set content = '' where message_id = {TEXT}",
    "who is gone can sign in no more, and is not told of": """update logins set ended_at = null
        where user_id in (select user_id from users where deleted_at is not null)""",
    "no block stands between friends, or one who asked and who was asked": """insert into blocks
        select user_id, friend_id from friendships where status = 'accepted'""",
    "what a user has hidden is a text that they may see": f"insert into hidden_messages select {SOMEBODY}, 1000000",
}

# Other ways to break the same rules.
ALSO_DAMAGE = [
    ("the log says who it is, in which epoch, and how far it is packed", "delete from log_epochs"),
    ("the log says who it is, in which epoch, and how far it is packed", "delete from search_position"),
    (
        "every deletion has taken back a text of its conversation",
        "update messages set metadata = '{}' where message_type = 'deletion'",
    ),
    ("every deletion has taken back a text of its conversation", "update messages set metadata = null where message_type = 'deletion'"),
    ("a conversation of two is of its pair", "update conversations set deleted_at = now() where type = 'one_on_one'"),
    ("an account's own conversation is its own", "update conversations set deleted_at = now() where type = 'self'"),
    ("who is gone can sign in no more, and is not told of", "update users set email = 'dan@example.com' where deleted_at is not null"),
]

# The same for what is derived: it is mended, and nothing is wrong then.
DERIVED = {
    "nobody has had delivered what is not there": f"""update conversation_participants set last_delivered_message_id = 1000000
        where {SEAT}""",
    "nobody has read what is not there": f"""update conversation_participants
        set last_read_message_id = 1000000, last_delivered_message_id = 1000000 where {SEAT}""",
    "what was read was delivered": f"""update conversation_participants
        set last_read_message_id = last_delivered_message_id, last_delivered_message_id = 0 where {SEAT}""",
    "watermarks are not below their receipts": f"""update conversation_participants
        set last_delivered_message_id = 0, last_read_message_id = 0 where {SEAT}""",
    "no device has what is not there": "update device_cursors set last_synced_message_id = 1000000",
    "the log is not packed further than it goes": "update search_position set message_id = 1000000",
    "what is to be packed for search is packed": "delete from search_blocks",
    "every search block is a run of its conversation": "update search_blocks set last_seq = last_seq + 1",
    "search blocks hold what their entries say": "update search_blocks set folded = replace(folded, 'number', 'member')",
}
ALSO_DERIVED = [
    ("every search block is a run of its conversation", "update search_blocks set message_ids = message_ids[2:]"),
    ("every search block is a run of its conversation", "update search_blocks set newest_at = newest_at - interval '60 days'"),
    ("search blocks hold what their entries say", "update search_blocks set signature = set_byte(signature, 0, 255)"),
]


async def test_every_rule_is_tried(copy_url: str) -> None:
    report = await verification.verify(copy_url)
    assert {finding.invariant.name for finding in report.findings} == set(DAMAGE) | set(DERIVED)
    assert {finding.invariant.name for finding in report.findings if finding.invariant.mend} == set(DERIVED)


@pytest.mark.parametrize(("rule", "statements"), [*DAMAGE.items(), *ALSO_DAMAGE])
async def test_damage_is_found_named_and_left_alone(copy_url: str, rule: str, statements: str) -> None:
    damage(copy_url, statements)
    report = await verification.verify(copy_url)
    found = {finding.invariant.name: finding for finding in report.wrong}
    assert rule in found, list(found)
    assert found[rule].number > 0
    assert any(character.isdigit() for character in "".join(found[rule].examples))
    assert "Straße" not in "".join(found[rule].examples)
    before = sources_of(copy_url)
    await verification.repair(copy_url, report, lambda what, number: None)
    # So it is as wrong as before.
    assert sources_of(copy_url) == before


@pytest.mark.parametrize(("rule", "statements"), [*DERIVED.items(), *ALSO_DERIVED])
async def test_derived_values_are_mended(copy_url: str, rule: str, statements: str) -> None:
    before = sources_of(copy_url)
    damage(copy_url, statements)
    report = await verification.verify(copy_url)
    assert rule in {finding.invariant.name for finding in report.wrong}
    assert all(finding.invariant.mend for finding in report.wrong)
    mended: dict[str, int] = {}
    await verification.repair(copy_url, report, mended.__setitem__)
    assert sum(mended.values()) > 0
    assert await broken(copy_url) == {}
    assert sources_of(copy_url) == before


async def test_what_was_taken_back_may_stand_in_a_block_until_that_is_packed(copy_url: str) -> None:
    taken_back = """select log_delete(conversation_id, message_id, sender_id, gen_random_uuid()) from messages
        where message_type = 'text' and deleted_at is null order by message_id limit 1"""
    damage(copy_url, taken_back)
    assert await broken(copy_url) == {}
    head = "(select max(message_id) from messages)"
    with psycopg.connect(copy_url, autocommit=True) as connection:
        before = connection.execute("select message_id from search_position").fetchone()
    damage(copy_url, f"update search_position set message_id = {head}")
    assert list(await broken(copy_url)) == ["search blocks hold what their entries say"]
    assert before is not None
    damage(copy_url, f"update search_position set message_id = {before[0]}")
    await pack(copy_url)
    assert await broken(copy_url) == {}


@pytest.mark.parametrize("rule", ["nobody has had delivered what is not there", "no device has what is not there"])
async def test_mending_waits_for_what_is_being_appended(copy_url: str, rule: str) -> None:
    """Or a watermark that has followed an entry which is committed just then would be taken back."""
    damage(copy_url, DERIVED[rule])
    report = await verification.verify(copy_url)
    mended = trio.Event()

    async def mend() -> None:
        await verification.repair(copy_url, report, lambda what, number: None)
        mended.set()

    async with await connect(copy_url, name="test") as appending, trio.open_nursery() as nursery:
        async with appending.transaction():
            await messages.lock_log(appending)
            nursery.start_soon(mend)
            with trio.fail_after(10):
                while not await _waits_for_a_lock(copy_url):
                    await trio.sleep(0.01)
            assert not mended.is_set()
        with trio.fail_after(10):
            await mended.wait()
    assert await broken(copy_url) == {}


async def _waits_for_a_lock(database_url: str) -> bool:
    async with await connect(database_url, name="test") as tx:
        cursor = await tx.execute(
            """select from pg_locks l join pg_stat_activity a on a.pid = l.pid
                where l.locktype = 'advisory' and not l.granted and a.datname = current_database()"""
        )
        return await cursor.fetchone() is not None


async def test_an_epoch_explains_the_gap_that_it_makes_and_no_other(copy_url: str) -> None:
    damage(copy_url, "update messages set message_id = message_id + 1000000000 where message_id > 100")
    (gap,) = (await broken(copy_url))["ids without gaps, but for those where an epoch begins"]
    assert gap == "1000000000 missing between 100 and 1000000101"
    # Two epochs, of which the first has no entry.
    damage(copy_url, "insert into log_epochs values (7, 501, 100, 1, 1), (8, 1000000101, 500, 1, 1)")
    assert "ids without gaps, but for those where an epoch begins" not in await broken(copy_url)
    damage(copy_url, "update log_epochs set base = base - 3 where epoch = 8")
    (gap,) = (await broken(copy_url))["ids without gaps, but for those where an epoch begins"]
    assert gap == "3 missing between 100 and 1000000101"


async def test_a_log_whose_beginning_was_removed_by_age_is_whole(copy_url: str) -> None:
    with psycopg.connect(copy_url, autocommit=True) as connection:
        row = connection.execute("select min(message_id) from messages where seq > 20 and message_type = 'text'").fetchone()
    assert row is not None
    damage(copy_url, f"delete from messages where message_id < {row[0]}; update log_identity set horizon = {row[0]} - 1")
    found = await broken(copy_url)
    assert not {"ids without gaps, but for those where an epoch begins", "seq is 1, 2, 3 … in each conversation"} & set(found)


async def test_ranges_meet_without_a_seam(copy_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With steps of a single row everything is judged as it is in one step."""
    walks = [walk.__class__(walk.what, walk.table, walk.key, 1, walk.step, walk.rules) for walk in verification.WALKS]
    monkeypatch.setattr(verification, "WALKS", walks)
    assert await broken(copy_url) == {}
    damage(copy_url, "delete from messages where message_id = 20")
    found = await broken(copy_url)
    assert found["ids without gaps, but for those where an epoch begins"] == ["1 missing between 19 and 21"]
    assert len(found["seq is 1, 2, 3 … in each conversation"]) == 1


# --- beside servers that write ---


@asynccontextmanager
async def busy(server: Server) -> AsyncIterator[list[int]]:
    """People who talk, confirm, read, take back, come into groups and go again; how often each has done so."""
    people = [await server.register("one") for _ in range(6)]
    rounds = [0] * 3

    async def talk(at: int) -> None:
        one, other, third = people[at * 2], people[at * 2 + 1], people[(at * 2 + 2) % 6]
        device = await other.connect("phone")
        pair = await server.pair(one, other)
        group = await server.group(one, other, third)
        members = f"/api/conversations/{group}/participants"
        while True:
            said = await say(one, pair, 4, first=rounds[at] * 4)
            await device.send("MESSAGE_ACK", status="read", conversation_id=pair, message_id=said[-1])
            await one.call("DELETE", f"/api/conversations/{pair}/messages/{said[0]}?for=everyone", expect=204)
            await say(other, group, 1, first=rounds[at])
            await one.call("DELETE", f"{members}/{third.user_id}", expect=204)
            await one.post(members, {"user_ids": [third.user_id]})
            rounds[at] += 1

    async with trio.open_nursery() as nursery:
        for at in range(3):
            nursery.start_soon(talk, at)
        yield rounds
        nursery.cancel_scope.cancel()


async def test_beside_busy_servers_nothing_false_is_told(database_url: str, redis_url: str) -> None:
    settings = settings_for(database_url, redis_url)
    async with serving(settings) as server, busy(server) as rounds:
        with trio.fail_after(40):
            while min(rounds) < 2:
                await trio.sleep(0.01)
            for looks in range(4):
                done = sum(rounds)
                assert await broken(database_url) == {}, f"at look {looks}"
                while sum(rounds) < done + 3:
                    await trio.sleep(0.01)


BESIDE = """update conversation_participants set last_delivered_message_id = 2000000000;
    update search_position set message_id = 2000000000; delete from search_blocks"""


async def test_mending_beside_busy_servers_breaks_nothing(database_url: str, redis_url: str) -> None:
    settings = settings_for(database_url, redis_url)
    async with serving(settings) as server, busy(server) as rounds:
        with trio.fail_after(40):
            for _ in range(2):
                done = min(rounds)
                while min(rounds) < done + 1:
                    await trio.sleep(0.01)
                # In a thread: it waits for locks of the server's, which runs here.
                await trio.to_thread.run_sync(damage, database_url, BESIDE)
                report = await verification.verify(database_url)
                assert {finding.invariant.mend for finding in report.wrong} == {"watermarks", "search"}
                await verification.repair(database_url, report, lambda what, number: None)
                assert await broken(database_url) == {}
                said = sum(rounds)
                while sum(rounds) < said + 3:
                    await trio.sleep(0.01)


# --- the command ---


def test_the_command_tells_mends_and_ends_with_its_code(copy_url: str) -> None:
    settings = {"UIM_DATABASE_URL": copy_url}
    clean = uim("verify", settings=settings)
    assert (clean.returncode, clean.stderr) == (0, "")
    assert "ok     ids without gaps" in clean.stdout
    assert "WRONG" not in clean.stdout
    damage(copy_url, DERIVED["no device has what is not there"])
    damage(copy_url, DAMAGE["times never decrease along the log"])
    half = uim("verify", "--repair", settings=settings)
    assert half.returncode == 1, "there is something left"
    wrong, again = half.stdout.split("looking again:")
    assert "WRONG  times never decrease along the log: once not\n         message 21 is older than 20\n" in wrong
    assert "WRONG  no device has what is not there: 2 times not (derived: --repair mends it)\n" in wrong
    assert "mended 2 cursors\n" in wrong
    assert again.count("WRONG") == 1
    damage(copy_url, "update messages set created_at = created_at - interval '1 day' where message_id = 20")
    damage(copy_url, DERIVED["no device has what is not there"])
    assert uim("verify", "--repair", settings=settings).returncode == 0


def test_wrong_settings_and_a_database_that_is_not_there() -> None:
    missing = uim("verify")
    assert missing.returncode == 2
    assert "UIM_DATABASE_URL is missing" in missing.stderr
    away = uim("verify", settings={"UIM_DATABASE_URL": "postgresql://uim@127.0.0.1:1/uim"})
    assert away.returncode == 1
    assert away.stderr.startswith("Error: the database cannot be reached")


def test_a_schema_that_is_behind_is_one_sentence(empty_database_url: str) -> None:
    done = uim("verify", settings={"UIM_DATABASE_URL": empty_database_url})
    assert done.returncode == 1
    assert "run `uim migrate` first" in done.stderr
