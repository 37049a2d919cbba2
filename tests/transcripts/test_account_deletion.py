"""An account that is deleted: what goes with it, what stays for the others, and that nothing lets it in again."""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import UUID

import httpx
import pytest
import trio

from tests.house import PASSWORD, Person, Server, serving, settings_for
from uim.chat.farewell import Farewell
from uim.errors import Cut
from uim.model.person import Caller


def problem(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


def anonym(person: Person) -> str:
    return "deleted-" + person.user_id.replace("-", "")


async def goes(person: Person, password: str = PASSWORD) -> httpx.Response:
    return await person.call("DELETE", "/api/users/me", {"current_password": password})


async def rows(server: Server, query: str, *values: object) -> list[tuple[Any, ...]]:
    async with server.house.pool.connection() as tx:
        cursor = await tx.execute(query, values)
        return await cursor.fetchall() if cursor.description is not None else []


async def test_alice_goes_and_bob_keeps_what_she_said_under_no_name(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    await alice.call("PUT", "/api/users/me", {"display_name": "Alice", "status_text": "here"}, expect=200)
    pair = await server.pair(alice, bob)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    said = await laptop.say(pair, "goodbye")
    await phone.expect("MESSAGE_RECEIVE", content="goodbye")
    assert (await goes(alice)).status_code == 204
    told = await phone.expect(
        lambda frame: frame["type"] == "CONVERSATION_UPDATE"
        and anonym(alice) in {seat["username"] for seat in frame["payload"]["conversation"]["participants"]}
    )
    assert told["payload"]["conversation"]["conversation_id"] == pair
    tablet = await bob.connect("tablet", last_sync_id=0)
    assert tablet.contents() == ["goodbye"] and tablet.entries[0]["sender_id"] == alice.user_id
    page = await bob.get(f"/api/conversations/{pair}/messages")
    assert [(item["content"], item["sender_id"]) for item in page["items"]] == [("goodbye", alice.user_id)]
    view = await bob.get(f"/api/conversations/{pair}")
    seat = next(seat for seat in view["participants"] if seat["user_id"] == alice.user_id)
    assert (seat["username"], seat["display_name"], seat["avatar_url"]) == (anonym(alice), None, None)
    assert alice.username not in str(view)
    # Read, and answered by nobody any more.
    refused = await phone.say(pair, "are you there?")
    assert (refused["type"], refused["code"]) == ("ERROR", "forbidden")
    assert (await phone.say(pair, "still?"))["message"] == "you can't write to this user"
    problem(await bob.call("GET", f"/api/users/{alice.user_id}"), 404, "not_found")
    for name in (alice.username, anonym(alice)):
        assert (await bob.get(f"/api/users?query={name}"))["items"] == []
    problem(
        await bob.call("POST", "/api/conversations", {"type": "group", "name": "x", "participant_ids": [alice.user_id] * 2}),
        422,
        "validation_failed",
    )
    await bob.call("DELETE", f"/api/conversations/{pair}/messages/{said['message_id']}?for=me", expect=204)


async def test_all_her_sockets_and_tokens_end_within_a_second(server: Server) -> None:
    alice = await server.register("alice")
    other = await server.login(alice.username, "tablet")
    phone, tablet = await alice.connect("phone"), await other.connect("tablet")
    assert (await goes(alice)).status_code == 204
    with trio.fail_after(1):
        for device in (phone, tablet):
            assert await device.closing(Cut.LOGIN_ENDED) == "login ended"
    for person in (alice, other):
        problem(await person.call("GET", "/api/users/me"), 401, "session_ended")
        problem(await goes(person), 401, "session_ended")
        refreshing = await server.http.post("/api/auth/refresh", json={"refresh_token": person.tokens["refresh_token"]})
        problem(refreshing, 401, "invalid_refresh_token")
    for name in (alice.username, f"{alice.username}@example.com", anonym(alice)):
        entering = await server.http.post("/api/auth/login", json={"username": name, "password": PASSWORD})
        problem(entering, 401, "invalid_credentials")


async def test_sockets_at_another_process_end_within_a_second_redis_away(database_url: str) -> None:
    settings = settings_for(database_url, "redis://127.0.0.1:1")
    async with serving(settings) as here, serving(settings) as there:
        alice = await here.register("alice")
        phone = await alice.connect("phone", to=there)
        assert (await goes(alice)).status_code == 204
        with trio.fail_after(1):
            await phone.closing(Cut.LOGIN_ENDED)


async def test_the_name_is_not_given_again_and_the_email_is(server: Server) -> None:
    alice = await server.register("alice")
    assert (await goes(alice)).status_code == 204
    body = {"username": alice.username.upper(), "email": "other@example.com", "password": PASSWORD}
    problem(await server.http.post("/api/auth/register", json=body), 409, "username_taken")
    free = {"username": "someone_else", "email": f"{alice.username}@example.com", "password": PASSWORD}
    assert (await server.http.post("/api/auth/register", json=free)).status_code == 201


async def test_who_registers_the_name_while_it_is_being_freed_does_not_get_it(server: Server) -> None:
    alice = await server.register("alice")
    answers: list[httpx.Response] = []

    async def register() -> None:
        body = {"username": alice.username, "email": "other@example.com", "password": PASSWORD}
        answers.append(await server.http.post("/api/auth/register", json=body))

    waiting = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and query ~ 'insert into users'"
    async with trio.open_nursery() as nursery, server.house.pool.transaction() as tx:
        # As the verb does it, and then waits: the registration meets the old name, and waits for its end.
        await tx.execute("insert into retired_usernames (name_hash) values (username_hash(%s))", (alice.username,))
        await tx.execute("update users set username = 'deleted-x' where user_id = %s", (alice.user_id,))
        nursery.start_soon(register)
        while not await rows(server, waiting):
            await trio.sleep(0.005)
    problem(answers[0], 409, "username_taken")


async def test_her_groups_are_handed_over_and_left(server: Server) -> None:
    alice, bob, cyd = [await server.register(name) for name in ("alice", "bob", "cyd")]
    own, others = await server.group(alice, bob, cyd), await server.group(bob, alice, cyd)
    phone = await cyd.connect("phone")
    assert (await goes(alice)).status_code == 204
    left = await phone.expect("MESSAGE_RECEIVE", conversation_id=others, message_type="system")
    assert left["payload"]["metadata"] == {"event": "participant_left", "user_id": alice.user_id}
    tablet = await cyd.connect("tablet", last_sync_id=0)
    system = [entry["metadata"] for entry in tablet.entries if entry["conversation_id"] == own][3:]
    assert [(facts["event"], facts["user_id"], facts.get("role")) for facts in system] == [
        ("role_changed", min(bob.user_id, cyd.user_id), "owner"),
        ("participant_left", alice.user_id, None),
    ]
    for group, member in ((own, bob), (others, bob)):
        view = await member.get(f"/api/conversations/{group}")
        assert {seat["user_id"] for seat in view["participants"]} == {bob.user_id, cyd.user_id}
    last = await phone.say(own, "she is gone")
    assert last["status"] == "sent"


async def test_her_friends_devices_hear_it_and_what_was_only_hers_is_gone(server: Server) -> None:
    alice, bob, cyd = [await server.register(name) for name in ("alice", "bob", "cyd")]
    await rows(
        server,
        """insert into friendships (user_id, friend_id, status) values (%s, %s, 'accepted'), (%s, %s, 'pending')""",
        *(bob.user_id, alice.user_id, alice.user_id, cyd.user_id),
    )
    await rows(server, "insert into blocks (user_id, blocked_id) values (%s, %s)", alice.user_id, cyd.user_id)
    pair = await server.pair(alice, bob)
    said = await (await alice.connect("laptop")).say(pair, "hide me")
    await alice.call("DELETE", f"/api/conversations/{pair}/messages/{said['message_id']}?for=me", expect=204)
    phone = await bob.connect("phone")
    assert (await goes(alice)).status_code == 204
    told = (await phone.expect("MESSAGE_RECEIVE", message_type="account"))["payload"]
    assert (told["sender_id"], told["metadata"]) == (bob.user_id, {"event": "friend_removed", "user_id": alice.user_id})
    away = await cyd.connect("tablet", last_sync_id=0)
    assert [entry["metadata"] for entry in away.entries] == [{"event": "friend_removed", "user_id": alice.user_id}]
    for table, column in (
        ("friendships", "user_id"), ("friendships", "friend_id"), ("blocks", "user_id"), ("hidden_messages", "user_id"),
        ("device_cursors", "user_id"),
    ):  # fmt: skip
        assert await rows(server, f"select 1 from {table} where {column} = %s", alice.user_id) == [], table
    held = (await rows(server, "select users::text from users where user_id = %s", alice.user_id))[0][0]
    assert alice.username not in held and "example.com" not in held
    logins = await rows(server, "select device_id, device_name, ended_reason from logins where user_id = %s", alice.user_id)
    assert logins == [("-", None, "account deleted")]
    told = "select count(*) from messages where sender_id = %s and message_type = 'account' and metadata is not null"
    assert await rows(server, told, alice.user_id) == [(0,)]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"current_password": "Wrong-1234"}, 403, "invalid_credentials"),
        ({"current_password": None}, 422, "validation_failed"),
        ({}, 422, "validation_failed"),
        (None, 400, "bad_request"),
        ({"current_password": PASSWORD, "sure": True}, 422, "validation_failed"),
    ],
)
async def test_without_the_password_it_stays(server: Server, body: object, status: int, code: str) -> None:
    alice = await server.register("alice")
    problem(await alice.call("DELETE", "/api/users/me", body), status, code)
    assert (await alice.get("/api/users/me"))["username"] == alice.username


async def test_after_ten_wrong_passwords_not_even_the_right_one(server: Server) -> None:
    alice = await server.register("alice")
    for _ in range(10):
        problem(await goes(alice, "Wrong-1234"), 403, "invalid_credentials")
    problem(await goes(alice), 429, "too_many_attempts")


async def test_two_devices_at_once_delete_it_once(server: Server) -> None:
    alice, bob, cyd = [await server.register(name) for name in ("alice", "bob", "cyd")]
    tea = await server.group(bob, alice, cyd)
    other = await server.login(alice.username, "tablet")
    statuses: list[int] = []

    async def go(person: Person) -> None:
        statuses.append((await goes(person)).status_code)

    async with trio.open_nursery() as nursery:
        for person in (alice, other):
            nursery.start_soon(go, person)
    # The second was let in before the first had happened, or not any more.
    assert min(statuses) == 204 and set(statuses) <= {204, 401, 403}
    page = await bob.get(f"/api/conversations/{tea}/messages")
    assert [item["metadata"]["event"] for item in page["items"]].count("participant_left") == 1


GONE = "select 1 from users where user_id = %s and deleted_at is not null"
LEFT = """select 1 from friendships where friend_id = %(who)s union all select 1 from blocks where user_id = %(who)s
    union all select 1 from logins where user_id = %(who)s and device_id <> '-' union all select 1
    from conversation_participants p join conversations c using (conversation_id)
    where p.user_id = %(who)s and c.type = 'group' and p.left_at is null"""


async def left(server: Server, who: Person) -> int:
    async with server.house.pool.connection() as tx:
        return len(await (await tx.execute(LEFT, {"who": who.user_id})).fetchall())


async def test_a_deletion_that_was_broken_off_is_carried_on_by_the_next_server(database_url: str, redis_url: str) -> None:
    settings = settings_for(database_url, redis_url)
    async with serving(settings) as server:
        alice, bob, cyd = [await server.register(name) for name in ("alice", "bob", "cyd")]
        tea = await server.group(alice, bob, cyd)
        await rows(server, "insert into friendships values (%s, %s, 'accepted')", bob.user_id, alice.user_id)
        await rows(server, "insert into blocks (user_id, blocked_id) values (%s, %s)", alice.user_id, cyd.user_id)
        house = server.house
        # Whose task does not run: as if the process had ended right after the first commit.
        broken_off = Farewell(
            pool=house.pool,
            writer=house.writer,
            accounts=house.accounts,
            logins=house.logins,
            on_pair_changed=lambda _: None,
            on_forgotten=lambda _: None,
        )
        caller = Caller(UUID(alice.user_id), UUID(alice.login_id), "phone", alice.username)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(broken_off.delete_account, caller, current_password=PASSWORD, address="here"))
            while not await rows(server, GONE, alice.user_id):
                await trio.sleep(0.005)
            nursery.cancel_scope.cancel()
        problem(await alice.call("GET", "/api/users/me"), 401, "session_ended")
        assert await left(server, alice) == 4
    async with serving(settings) as server:
        while await left(server, alice):
            await trio.sleep(0.005)
        bob.server = server
        phone = await bob.connect("phone", last_sync_id=0)
        told = [entry["metadata"]["event"] for entry in phone.entries if entry["message_type"] != "text"]
        assert told.count("friend_removed") == 1
        assert [told.count(event) for event in ("role_changed", "participant_left")] == [1, 1]
        view = await bob.get(f"/api/conversations/{tea}")
        assert {seat["user_id"] for seat in view["participants"]} == {bob.user_id, cyd.user_id}


async def test_others_talk_on_while_one_with_a_thousand_friends_goes(server: Server) -> None:
    alice, bob, cyd = [await server.register(name) for name in ("alice", "bob", "cyd")]
    await rows(
        server,
        """with person as (
            insert into users (username, password_hash) select 'friend_' || n, '!' from generate_series(1, 1000) n returning user_id
        ), own as (
            insert into conversations (conversation_id, type, created_by) select gen_random_uuid(), 'self', user_id from person
        ) insert into friendships (user_id, friend_id, status) select user_id, %s, 'accepted' from person""",
        alice.user_id,
    )
    pair = await server.pair(bob, cyd)
    phone = await bob.connect("phone")
    took_s: list[float] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(goes, alice)
        while await left(server, alice):
            began_at = trio.current_time()
            assert (await phone.say(pair, "still here"))["status"] == "sent"
            took_s.append(trio.current_time() - began_at)
    assert max(took_s) < 0.5 and len(took_s) > 3
    told = "select count(*), count(distinct sender_id) from messages where metadata->>'user_id' = %s"
    assert await rows(server, told + " and metadata->>'event' = 'friend_removed'", alice.user_id) == [(1000, 1000)]
