"""One's own data as lines of JSON: all that one may read and nothing else, in little memory, and ended with its reader."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest
import trio

from tests.house import PASSWORD, Person, Server, serving, settings_for
from uim.chat.export import Exports
from uim.store.export import ROWS_AT_ONCE
from uim.store.postgres import connect

PATH = "/api/users/me/export"
LIVING = "select count(*) from pg_stat_activity where application_name = 'uim export'"


@pytest.fixture
async def server(database_url: str, redis_url: str) -> Any:
    async with serving(settings_for(database_url, redis_url)) as started:
        yield started


def problem(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


async def lines(person: Person) -> list[dict[str, Any]]:
    answer = await person.call("GET", PATH, expect=200)
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    assert "attachment" in answer.headers["Content-Disposition"]
    assert answer.content.endswith(b"\n")
    return [msgspec.json.decode(line) for line in answer.content.splitlines()]


def of_kind(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [line for line in found if line["kind"] == kind]


async def run(server: Server, query: str, *values: object) -> list[tuple[Any, ...]]:
    async with server.house.pool.connection() as tx:
        cursor = await tx.execute(query, values)
        return await cursor.fetchall() if cursor.description is not None else []


async def none_left(server: Server) -> None:
    """The connections of exports are gone, and so are their places."""
    with trio.fail_after(5):
        while (await run(server, LIVING))[0][0] or server.house.exports._running:
            await trio.sleep(0.01)


async def fill(server: Server, conversation_id: str, sender: Person, number: int, *, content: str = "x") -> None:
    """Texts in the log, put there as log_append does, but all at once."""
    await run(
        server,
        """insert into messages (message_id, conversation_id, seq, sender_id, client_message_id, content, created_at)
            select coalesce((select max(message_id) from messages), 0) + n, %s,
                coalesce((select max(seq) from messages where conversation_id = %s), 0) + n, %s, 'fill ' || n, %s, now()
            from generate_series(1, %s) n""",
        *(conversation_id, conversation_id, sender.user_id, content, number),
    )


async def test_everything_of_hers_stands_there_once_each_kind_in_its_turn(server: Server) -> None:
    alice, bob, cyd = [await server.register(name) for name in ("alice", "bob", "cyd")]
    tablet = await server.login(alice.username, "tablet")
    await alice.call("PUT", "/api/users/me", {"display_name": "Alice", "settings": {"read_receipts": False}}, expect=200)
    befriend = "insert into friendships (user_id, friend_id, status) values (%s, %s, 'accepted')"
    await run(server, befriend, bob.user_id, alice.user_id)
    await run(server, "insert into blocks (user_id, blocked_id) values (%s, %s)", alice.user_id, cyd.user_id)
    pair, elsewhere = await server.pair(alice, bob), await server.pair(bob, cyd)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    await laptop.say(pair, "mine", "one", metadata={"tone": "warm"})
    blank, hidden = await laptop.say(pair, "taken back"), await phone.say(pair, "not for me")
    await phone.say(elsewhere, "not hers")
    await alice.call("DELETE", f"/api/conversations/{pair}/messages/{blank['message_id']}?for=everyone", expect=204)
    await alice.call("DELETE", f"/api/conversations/{pair}/messages/{hidden['message_id']}?for=me", expect=204)

    found = await lines(alice)
    kinds = list(dict.fromkeys(line["kind"] for line in found))
    assert kinds == ["profile", "login", "friend", "block", "conversation", "message", "end"]
    own = await alice.get("/api/users/me")
    assert found[0] == {"kind": "profile", **own}
    logins = of_kind(found, "login")
    assert [line["login_id"] for line in logins] == [alice.login_id, tablet.login_id]
    assert logins[0].keys() == {
        *("kind", "login_id", "device_id", "device_name", "platform", "created_at", "last_used_at", "expires_at"),
        *("ended_at", "ended_reason"),
    }
    friend, blocked = of_kind(found, "friend")[0], of_kind(found, "block")[0]
    assert (friend["user_id"], friend["state"]) == (bob.user_id, "friend")
    assert (blocked["user_id"], blocked["username"]) == (cyd.user_id, cyd.username)
    conversations = {line["type"]: line for line in of_kind(found, "conversation")}
    assert conversations.keys() == {"one_on_one", "self"}
    assert conversations["one_on_one"]["conversation_id"] == pair and conversations["one_on_one"]["stays"] == [[0, None]]
    assert {seat["username"] for seat in conversations["one_on_one"]["participants"]} == {alice.username, bob.username}
    messages = of_kind(found, "message")
    said = {line["seq"]: line for line in messages if line["conversation_id"] == pair}
    assert (said[1]["content"], said[1]["client_message_id"], said[1]["metadata"]) == ("mine", "one", {"tone": "warm"})
    assert (said[2]["content"], said[2]["deleted"], said[2]["metadata"]) == ("", True, {})
    place = {"message_id": hidden["message_id"], "conversation_id": pair, "seq": 3, "hidden": True}
    assert said[3] == {"kind": "message", **place}
    assert said[4]["message_type"] == "deletion"
    account = [line["metadata"]["event"] for line in messages if line.get("message_type") == "account"]
    assert account == ["login_added", "profile", "settings", "hidden"]
    assert found[-1] == {"kind": "end", "messages": len(messages)}
    text = str(found)
    for secret in ("taken back", "not for me", "not hers", "refresh", "password"):
        assert secret not in text
    await none_left(server)


async def test_of_a_group_that_she_has_left_her_stays_alone(server: Server) -> None:
    ada, bob, cyd, dan = [await server.register(name) for name in ("ada", "bob", "cyd", "dan")]
    tea = await server.group(ada, bob, cyd, name="Tea")
    phone = await ada.connect()
    participants = f"/api/conversations/{tea}/participants"
    await phone.say(tea, "before")
    for content in ("first stay", "second stay"):
        await ada.post(participants, {"user_ids": [dan.user_id]})
        await phone.say(tea, content)
        await dan.call("DELETE", f"{participants}/{dan.user_id}", expect=204)
        await phone.say(tea, "between")
    await ada.call("PATCH", f"/api/conversations/{tea}", {"name": "Secret"}, expect=200)
    found = await lines(dan)
    texts = [line["content"] for line in of_kind(found, "message") if line["message_type"] == "text"]
    assert texts == ["first stay", "second stay"]
    group = next(line for line in of_kind(found, "conversation") if line["type"] == "group")
    assert (group["name"], group["participants"], len(group["stays"])) == (None, None, 2)
    assert group["left_at"] is not None and "Secret" not in str(found) and "between" not in str(found)
    assert "Secret" in str(await lines(bob))


async def test_pieces_are_few_rows_however_many_there_are(server: Server, database_url: str) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    pair = await server.pair(alice, bob)
    number = 20 * ROWS_AT_ONCE + 7
    await fill(server, pair, bob, number)
    sizes = []
    async with Exports(database_url).reading(UUID(alice.user_id)) as pieces:
        async for piece in pieces:
            sizes.append(piece.count(b"\n"))
    assert sum(sizes) == number + 5 and max(sizes) == ROWS_AT_ONCE
    assert len(of_kind(await lines(alice), "message")) == number


async def test_a_client_that_goes_away_leaves_nothing_behind(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    pair = await server.pair(alice, bob)
    # More than the buffers between the two hold.
    await fill(server, pair, bob, 4_000, content="x" * 5_000)
    async with server.http.stream("GET", PATH, headers=alice.bearer) as answer:
        reading = answer.aiter_raw()
        assert (await anext(reading)).startswith(b'{"kind":"profile"')
        assert (await run(server, LIVING))[0][0] == 1
        problem(await alice.call("GET", PATH), 429, "rate_limited")
        async with server.http.stream("GET", PATH, headers=bob.bearer) as other:
            reading_too = other.aiter_raw()
            await anext(reading_too)
            cyd = await server.register("cyd")
            refused = await cyd.call("GET", PATH)
            problem(refused, 503, "unavailable")
            assert refused.headers["Retry-After"] == "10"
    await none_left(server)
    assert len(of_kind(await lines(alice), "message")) == 4_000


async def test_an_answer_that_the_database_has_torn_has_no_end(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    pair = await server.pair(alice, bob)
    await fill(server, pair, bob, 4_000, content="x" * 5_000)
    read = b""
    with pytest.raises(httpx.RemoteProtocolError):
        async with server.http.stream("GET", PATH, headers=alice.bearer) as answer:
            async for piece in answer.aiter_raw():
                if not read:
                    await run(
                        server, "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'uim export'"
                    )
                read += piece
    assert b'"kind":"end"' not in read
    await none_left(server)
    assert of_kind(await lines(alice), "end") == [{"kind": "end", "messages": 4_000}]


async def test_one_that_takes_too_long_is_given_up(server: Server, database_url: str) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    await fill(server, await server.pair(alice, bob), bob, 10)
    exports = Exports(database_url, all_within_s=-1.0)
    with pytest.raises(trio.TooSlowError):
        async with exports.reading(UUID(alice.user_id)) as pieces:
            assert [piece async for piece in pieces] == []
    exports.check(UUID(alice.user_id))


async def test_cancelled_in_mid_query_it_ends_at_once(server: Server, database_url: str) -> None:
    alice = await server.register("alice")
    exports = Exports(database_url)
    async with server.house.pool.transaction() as tx:
        # Its first question waits for this lock.
        await tx.execute("lock table users in access exclusive mode")
        with trio.fail_after(3), trio.CancelScope() as reading:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_read_all, exports, UUID(alice.user_id))
                while not (await run_beside(database_url))[0]:
                    await trio.sleep(0.005)
                reading.cancel()
        assert reading.cancelled_caught
    await none_left(server)
    exports.check(UUID(alice.user_id))


async def _read_all(exports: Exports, user_id: UUID) -> None:
    async with exports.reading(user_id) as pieces:
        async for _ in pieces:
            pass


async def run_beside(database_url: str) -> tuple[int]:
    async with await connect(database_url, name="test") as tx:
        cursor = await tx.execute(LIVING + " and wait_event_type = 'Lock'")
        row = await cursor.fetchone()
        assert row is not None
        return (int(row[0]),)


async def test_who_is_nobody_gets_nothing(server: Server) -> None:
    problem(await server.http.get(PATH), 401, "unauthorized")
    alice = await server.register("alice")
    await alice.call("DELETE", "/api/users/me", {"current_password": PASSWORD}, expect=204)
    problem(await alice.call("GET", PATH), 401, "session_ended")
