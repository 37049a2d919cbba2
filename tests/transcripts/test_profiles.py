"""Profiles and settings: changed on one device, learnt by one's others, and by those who know one, as far as they may."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.house import PASSWORD, Device, Person, Server, serving, settings_for

ME = "/api/users/me"
ALICE = {"display_name": "Alice L.", "avatar_url": "https://pictures.example/alice.png?v=1", "status_text": "down the hole"}


def problem(answer: httpx.Response, status: int, code: str, *fields: str) -> None:
    told = answer.json()
    assert (answer.status_code, told["code"]) == (status, code), answer.text
    assert set(told.get("errors", {})) == set(fields)


async def change(person: Person, **fields: Any) -> dict[str, Any]:
    changed: dict[str, Any] = (await person.call("PUT", ME, fields, expect=200)).json()
    return changed


async def befriend(server: Server, one: Person, other: Person) -> None:
    async with server.house.pool.connection() as tx:
        await tx.execute(
            "insert into friendships (user_id, friend_id, status) values (%s, %s, 'accepted')", (one.user_id, other.user_id)
        )


async def block(server: Server, one: Person, other: Person) -> None:
    async with server.house.pool.connection() as tx:
        await tx.execute("insert into blocks (user_id, blocked_id) values (%s, %s)", (one.user_id, other.user_id))


def updates(device: Device) -> list[dict[str, Any]]:
    return [frame["payload"]["user"] for frame in device.frames if frame["type"] == "USER_UPDATE"]


async def heard_before(device: Device, witness: Device) -> list[dict[str, Any]]:
    """What `device` was told, once `witness` has been told of it."""
    await witness.expect("USER_UPDATE")
    await device.roundtrip()
    return updates(device)


async def test_alice_changes_her_profile_and_her_other_devices_learn_it(server: Server) -> None:
    alice = await server.register("alice")
    phone = await alice.connect("phone")
    before = await alice.get(ME)
    after = await change(alice, **ALICE)
    assert {name: after[name] for name in ALICE} == ALICE
    assert after == await alice.get(ME) and after["updated_at"] > before["updated_at"]
    told = (await phone.expect("MESSAGE_RECEIVE", message_type="account"))["payload"]
    assert (told["sender_id"], told["metadata"]) == (alice.user_id, {"event": "profile"})
    tablet = await alice.connect("tablet", last_sync_id=0)
    assert [entry["metadata"] for entry in tablet.entries] == [{"event": "profile"}]


async def test_absent_is_unchanged_null_is_cleared_and_the_same_again_is_no_entry(server: Server) -> None:
    alice = await server.register("alice")
    phone = await alice.connect("phone")
    await change(alice, **ALICE, availability="busy", settings={"read_receipts": False})
    same = await change(alice, **ALICE)
    assert (same["availability"], same["settings"]) == ("busy", {"read_receipts": False, "show_last_seen": True})
    assert await change(alice) == same
    cleared = await change(
        alice, display_name=None, avatar_url=None, status_text=None, availability=None, settings=None
    )  # fmt: skip
    assert (cleared["display_name"], cleared["avatar_url"], cleared["status_text"]) == (None, None, None)
    assert (cleared["availability"], cleared["settings"]) == ("available", {"read_receipts": True, "show_last_seen": True})
    await change(alice, settings={"show_last_seen": None, "read_receipts": True})
    last = await phone.expect("MESSAGE_RECEIVE", metadata={"event": "settings", "read_receipts": "true"})
    await phone.reached(last["payload"]["message_id"])
    assert [entry["metadata"]["event"] for entry in phone.entries] == ["profile", "settings", "profile", "settings"]


async def test_friends_and_members_of_common_groups_hear_it_and_nobody_else(server: Server) -> None:
    alice, friend, member, stranger = [await server.register(name) for name in ("alice", "friend", "member", "stranger")]
    await befriend(server, friend, alice)
    await server.group(member, alice, friend)
    laptop, phone, other = await friend.connect("laptop"), await member.connect("phone"), await stranger.connect()
    profile = await change(alice, **ALICE)
    for device in (laptop, phone):
        told = (await device.expect("USER_UPDATE"))["payload"]["user"]
        names = ("user_id", "username", "display_name", "avatar_url", "status_text", "updated_at")
        assert told == {name: profile[name] for name in names}
    await change(alice, status_text="back")
    assert (await phone.expect("USER_UPDATE"))["payload"]["user"]["status_text"] == "back"
    assert await heard_before(other, laptop) == []
    # Who was away asks what has changed.
    changed = await member.get(f"/api/conversations?changed_since={profile['updated_at']}")
    shown = {seat["user_id"]: seat for seat in changed["items"][0]["participants"]}[alice.user_id]
    assert (shown["display_name"], shown["avatar_url"]) == (ALICE["display_name"], ALICE["avatar_url"])


async def test_what_others_do_not_see_is_not_told_them(server: Server) -> None:
    alice, friend = await server.register("alice"), await server.register("friend")
    await befriend(server, alice, friend)
    phone = await friend.connect()
    before = await friend.get(f"/api/users/{alice.user_id}")
    await change(alice, availability="invisible", settings={"show_last_seen": False})
    await change(alice, email=f"new-{alice.username}@example.com", current_password=PASSWORD)
    assert await friend.get(f"/api/users/{alice.user_id}") == before
    await change(alice, status_text="seen")
    assert (await phone.expect("USER_UPDATE"))["payload"]["user"]["status_text"] == "seen"
    assert updates(phone) == []


async def test_across_a_block_only_the_names_are_shown_either_way(server: Server) -> None:
    alice, bob, cyd = [await server.register(name) for name in ("alice", "bob", "cyd")]
    tea, pair = await server.group(alice, bob, cyd), await server.pair(alice, bob)
    await change(alice, **ALICE)
    await change(bob, **ALICE)
    await block(server, alice, bob)
    phones = [await person.connect() for person in (bob, cyd)]
    await change(alice, status_text="new")
    assert await heard_before(*phones) == []
    hidden = {"avatar_url": None, "status_text": None}
    for one, other in ((alice, bob), (bob, alice)):
        seen = await one.get(f"/api/users/{other.user_id}")
        assert {name: seen[name] for name in hidden} == hidden
        assert (seen["username"], seen["display_name"]) == (other.username, "Alice L.")
        found = (await one.get(f"/api/users?query={other.username}"))["items"][0]
        assert {name: found[name] for name in hidden} == hidden
        for conversation_id in (tea, pair):
            view = await one.get(f"/api/conversations/{conversation_id}")
            seats = {seat["user_id"]: seat for seat in view["participants"]}
            assert (seats[other.user_id]["display_name"], seats[other.user_id]["avatar_url"]) == ("Alice L.", None)
            assert seats[one.user_id]["avatar_url"] == ALICE["avatar_url"]
    seats = {seat["user_id"]: seat for seat in (await cyd.get(f"/api/conversations/{tea}"))["participants"]}
    assert seats[alice.user_id]["avatar_url"] == seats[bob.user_id]["avatar_url"] == ALICE["avatar_url"]


async def test_it_reaches_who_is_connected_to_another_process(database_url: str, redis_url: str) -> None:
    settings = settings_for(database_url, redis_url)
    async with serving(settings) as here, serving(settings) as there:
        alice, friend = await here.register("alice"), await here.register("friend")
        await befriend(here, alice, friend)
        phone = await friend.connect("phone", to=there)
        await change(alice, **ALICE)
        assert (await phone.expect("USER_UPDATE"))["payload"]["user"]["display_name"] == "Alice L."


async def test_the_email_changes_with_the_password_alone(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    new = f"{alice.username}.new@EXAMPLE.com"
    problem(await alice.call("PUT", ME, {"email": new}), 422, "validation_failed", "current_password")
    wrong = {"email": new, "current_password": "Wrong-1234"}
    problem(await alice.call("PUT", ME, wrong), 403, "invalid_credentials", "current_password")
    taken = {"email": f"{bob.username}@Example.com".upper(), "current_password": PASSWORD}
    problem(await alice.call("PUT", ME, {**taken, "display_name": "lost too"}), 409, "email_taken", "email")
    assert (await alice.get(ME))["display_name"] is None
    assert (await change(alice, email=new, current_password=PASSWORD))["email"] == f"{alice.username}.new@example.com"
    await server.login(new, "tablet")
    old = {"username": f"{alice.username}@example.com", "password": PASSWORD}
    assert (await server.http.post("/api/auth/login", json=old)).status_code == 401
    assert (await change(alice, email=None, current_password=PASSWORD))["email"] is None


async def test_the_eleventh_wrong_password_is_one_too_many(server: Server) -> None:
    alice = await server.register("alice")
    wrong = {"email": "x@example.com", "current_password": "Wrong-1234"}
    for _ in range(10):
        problem(await alice.call("PUT", ME, wrong), 403, "invalid_credentials", "current_password")
    problem(await alice.call("PUT", ME, wrong), 429, "too_many_attempts")
    assert (await change(alice, display_name="still me"))["display_name"] == "still me"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("display_name", ""),
        ("display_name", "x" * 101),
        ("avatar_url", "http://pictures.example/a.png"),
        ("avatar_url", "javascript:alert(1)"),
        ("avatar_url", "https://"),
        ("avatar_url", "https://user@pictures.example/"),
        ("avatar_url", "https://pictures.example/a b"),
        ("avatar_url", 'https://pictures.example/"onload="'),
        ("avatar_url", "https://pictures.example/" + "x" * 2_024),
        ("status_text", "x" * 141),
        ("status_text", "a\0b"),
        ("availability", "asleep"),
        ("email", "nobody"),
        ("email", ""),
        ("settings", {"read_receipts": "yes"}),
        ("settings", {"colour": True}),
        ("user_id", "x"),
    ],
)
async def test_a_field_at_fault_is_named(server: Server, field: str, value: Any) -> None:
    alice = await server.register("alice")
    answer = await alice.call("PUT", ME, {field: value, "current_password": PASSWORD})
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert [name.partition(".")[0] for name in answer.json()["errors"]] == [field]


async def test_all_fields_at_fault_are_named_at_once_and_the_longest_that_fit_are_taken(server: Server) -> None:
    alice = await server.register("alice")
    body = {"display_name": "", "avatar_url": "x", "status_text": "x" * 141, "email": "x"}
    problem(await alice.call("PUT", ME, body), 422, "validation_failed", *body)
    longest = {"display_name": "\U0001f642" * 100, "avatar_url": "https://a.example/" + "x" * 2_030, "status_text": "ü" * 140}
    after = await change(alice, **longest)
    assert {name: after[name] for name in longest} == longest
