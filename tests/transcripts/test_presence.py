"""Who is online: what friends are told live, what a connect begins with, and what nobody is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
import redis
import trio

from tests.house import WAIT_S, Device, Person, Server, serving, settings_for
from tests.transcripts.test_friends import befriend, problem

GRACE_S = 0.3
NOTHING = {"status": "offline", "availability": None, "last_seen": None}


@pytest.fixture
async def server(database_url: str, redis_url: str) -> AsyncIterator[Server]:
    async with serving(settings_for(database_url, redis_url, presence_grace_s=GRACE_S)) as started:
        await hearing(started)
        yield started


@asynccontextmanager
async def two_processes(database_url: str, redis_url: str) -> AsyncIterator[tuple[Server, Server]]:
    settings = settings_for(database_url, redis_url, presence_grace_s=GRACE_S)
    async with serving(settings) as here, serving(settings) as there:
        await hearing(here)
        await hearing(there)
        yield here, there


async def hearing(server: Server) -> None:
    """Once a process hears what others say of presence it tells everybody afresh, in place of updates that wait."""
    with trio.fail_after(WAIT_S):
        while not server.house.presence._updates.hears:
            await trio.sleep(0.01)


async def friends(server: Server) -> tuple[Person, Person]:
    alice, bob = await server.register("alice"), await server.register("bob")
    await befriend(alice, bob)
    return alice, bob


def online(person: Person, availability: str = "available", status_text: str | None = None) -> dict[str, Any]:
    return {
        "user_id": person.user_id,
        "status": "online",
        "availability": availability,
        "last_seen": None,
        "status_text": status_text,
    }


async def snapshot(device: Device) -> list[dict[str, Any]]:
    frame = await device.expect("PRESENCE_UPDATE", snapshot=True)
    users: list[dict[str, Any]] = frame["payload"]["users"]
    return users


async def arrive(person: Person, device: str, *, to: Server | None = None) -> Device:
    """A connection that has its snapshot: what happens next comes as an update."""
    arrived = await person.connect(device, to=to)
    await snapshot(arrived)
    return arrived


async def told_of(device: Device, person: Person) -> dict[str, Any]:
    """What the next update, which is no snapshot, says of that person."""

    def is_of(frame: dict[str, Any]) -> bool:
        payload = frame["payload"]
        return (
            frame["type"] == "PRESENCE_UPDATE"
            and "snapshot" not in payload
            and any(user["user_id"] == person.user_id for user in payload["users"])
        )

    frame = await device.expect(is_of)
    assert frame.get("request_id") is None
    (state,) = [user for user in frame["payload"]["users"] if user["user_id"] == person.user_id]
    return dict(state)


async def seen(viewer: Person, person: Person) -> dict[str, Any]:
    answer: dict[str, Any] = await viewer.get(f"/api/users/{person.user_id}/presence")
    return answer


async def seen_offline(viewer: Person, person: Person) -> dict[str, Any]:
    """The same, once `last_seen` is stored: devices are told of it first, for it is written behind."""
    with trio.fail_after(WAIT_S):
        while (shown := await seen(viewer, person))["last_seen"] is None:
            await trio.sleep(0.01)
    return shown


async def choose(device: Device, availability: str, **more: Any) -> dict[str, Any]:
    await device.send("PRESENCE_UPDATE", "choice", availability=availability, **more)
    answer = await device.expect(lambda frame: frame.get("request_id") == "choice")
    return {"type": answer["type"], **answer["payload"]}


async def nothing_more(device: Device) -> None:
    """Whatever has been said by now has arrived, and no update of presence is in it."""
    await device.roundtrip()
    assert [frame for frame in device.frames if frame["type"] == "PRESENCE_UPDATE" and "snapshot" not in frame["payload"]] == []


# -- online, offline ----------------------------------------------------------------------------------------------------------


async def test_a_connect_begins_with_the_friends_who_are_there_right_after_the_last_batch(server: Server) -> None:
    alice, bob = await friends(server)
    laptop = await alice.connect("laptop")
    assert await snapshot(laptop) == []
    phone = await bob.connect("phone")
    assert await snapshot(phone) == [online(alice)]
    kinds = [frame["type"] for frame in phone.frames]
    assert set(kinds) == {"SYNC_BATCH"}, "SESSION_READY, batches, then the snapshot"
    assert "presence" in phone.ready["features"]
    assert await told_of(laptop, bob) == online(bob)


async def test_bob_comes_and_goes_and_alices_devices_are_told_once_each(server: Server) -> None:
    alice, bob = await friends(server)
    laptop, tablet = await arrive(alice, "laptop"), await arrive(alice, "tablet")
    phone = await bob.connect("phone")
    for device in (laptop, tablet):
        assert await told_of(device, bob) == online(bob)
    assert await seen(alice, bob) == {"status": "online", "availability": "available", "last_seen": None}
    await phone.leave()
    for device in (laptop, tablet):
        state = await told_of(device, bob)
        assert (state["status"], state["availability"]) == ("offline", None)
        assert state["last_seen"] is not None
    assert await seen_offline(alice, bob) == {key: state[key] for key in ("status", "availability", "last_seen")}
    items = (await alice.get("/api/friends"))["items"]
    assert items[0]["presence"] == {key: state[key] for key in ("status", "availability", "last_seen")}
    for device in (laptop, tablet):
        await nothing_more(device)


async def test_with_one_device_gone_and_one_there_bob_stays_online(server: Server) -> None:
    alice, bob = await friends(server)
    laptop = await alice.connect("laptop")
    await snapshot(laptop)
    phone, tablet = await bob.connect("phone"), await bob.connect("tablet")
    assert await told_of(laptop, bob) == online(bob)
    await phone.leave()
    await trio.sleep(2 * GRACE_S)
    await nothing_more(laptop)
    assert (await seen(alice, bob))["status"] == "online"
    await tablet.leave()
    assert (await told_of(laptop, bob))["status"] == "offline"


async def test_a_reconnect_within_the_grace_is_no_flicker(server: Server) -> None:
    alice, bob = await friends(server)
    laptop, phone = await arrive(alice, "laptop"), await bob.connect("phone")
    assert await told_of(laptop, bob) == online(bob)
    for _ in range(3):
        await phone.leave()
        phone = await bob.connect("phone")
    replacing = await bob.connect("phone")
    await trio.sleep(2 * GRACE_S)
    await nothing_more(laptop)
    assert (await snapshot(replacing)) == [online(alice)]


async def test_a_friend_who_was_away_finds_the_present_state(server: Server) -> None:
    alice, bob = await friends(server)
    tablet = await alice.connect("tablet")
    await tablet.roundtrip()
    await tablet.leave()
    phone = await bob.connect("phone")
    await choose(phone, "busy", status_text="in a meeting")
    again = await alice.connect("tablet", last_sync_id=tablet.cursor)
    assert await snapshot(again) == [online(bob, "busy", "in a meeting")]


# -- chosen -------------------------------------------------------------------------------------------------------------------


async def test_availability_and_status_text_reach_friends_and_own_other_devices(server: Server) -> None:
    alice, bob = await friends(server)
    laptop, phone, tablet = await arrive(alice, "laptop"), await arrive(bob, "phone"), await arrive(bob, "tablet")
    assert await told_of(laptop, bob) == online(bob)
    expected = online(bob, "away", "lunch")
    answer = await choose(phone, "away", status_text="lunch")
    assert answer == {"type": "PRESENCE_UPDATE", "users": [expected]}
    assert await told_of(laptop, bob) == expected
    assert await told_of(tablet, bob) == expected
    assert (await bob.get("/api/users/me"))["availability"] == "away"
    # An absent status_text stays, null clears it.
    assert (await choose(phone, "busy"))["users"] == [online(bob, "busy", "lunch")]
    assert await told_of(tablet, bob) == await told_of(laptop, bob) == online(bob, "busy", "lunch")
    assert (await choose(phone, "busy", status_text=None))["users"] == [online(bob, "busy")]
    assert await told_of(tablet, bob) == await told_of(laptop, bob) == online(bob, "busy")
    await nothing_more(phone)


async def test_the_same_choice_over_http_reaches_the_same_devices(server: Server) -> None:
    alice, bob = await friends(server)
    laptop, phone = await arrive(alice, "laptop"), await bob.connect("phone")
    assert await told_of(laptop, bob) == online(bob)
    await bob.call("PUT", "/api/users/me", {"availability": "busy"}, expect=200)
    assert await told_of(laptop, bob) == await told_of(phone, bob) == online(bob, "busy")


async def test_invisible_looks_like_offline_to_friends_and_true_to_oneself(server: Server) -> None:
    alice, bob = await friends(server)
    laptop, phone, tablet = await arrive(alice, "laptop"), await arrive(bob, "phone"), await arrive(bob, "tablet")
    assert await told_of(laptop, bob) == online(bob)
    assert (await choose(phone, "invisible"))["users"] == [online(bob, "invisible")]
    assert await told_of(tablet, bob) == online(bob, "invisible")
    gone = await told_of(laptop, bob)
    assert (gone["status"], gone["availability"]) == ("offline", None)
    assert gone["last_seen"] is not None
    shown = {key: gone[key] for key in ("status", "availability", "last_seen")}
    assert await seen(alice, bob) == shown
    assert await seen(bob, bob) == {"status": "online", "availability": "invisible", "last_seen": None}
    # Neither another text nor leaving and coming back is a sign of life.
    other = await alice.connect("other")
    assert await snapshot(other) == []
    await phone.leave()
    await tablet.leave()
    await trio.sleep(2 * GRACE_S)
    phone = await bob.connect("phone")
    assert await snapshot(phone) == [online(alice)]
    assert await seen(alice, bob) == shown
    for device in (laptop, other):
        await nothing_more(device)
    assert (await choose(phone, "available"))["users"] == [online(bob)]
    assert await told_of(other, bob) == online(bob)


async def test_an_offline_persons_availability_is_told_to_nobody_and_is_no_sign_of_life(server: Server) -> None:
    alice, bob, cyd = *await friends(server), await server.register("cyd")
    await befriend(alice, cyd)
    laptop = await arrive(alice, "laptop")
    for availability in ("busy", "invisible", "available"):
        await bob.call("PUT", "/api/users/me", {"availability": availability}, expect=200)
        # A text shows; it is said behind, so whatever was to be told of bob comes before or with it.
        await cyd.call("PUT", "/api/users/me", {"status_text": availability}, expect=200)
        users = (await laptop.expect("PRESENCE_UPDATE"))["payload"]["users"]
        assert [(user["user_id"], user["status_text"]) for user in users] == [(cyd.user_id, availability)]
    assert await seen(alice, bob) == NOTHING
    assert (await seen(bob, bob))["last_seen"] is None


async def test_last_seen_is_shown_as_its_owner_wants(server: Server) -> None:
    alice, bob = await friends(server)
    laptop, phone = await arrive(alice, "laptop"), await bob.connect("phone")
    assert await told_of(laptop, bob) == online(bob)
    await bob.call("PUT", "/api/users/me", {"settings": {"show_last_seen": False}}, expect=200)
    assert await told_of(laptop, bob) == online(bob)
    await phone.leave()
    state = await told_of(laptop, bob)
    assert (state["status"], state["last_seen"]) == ("offline", None)
    assert await seen(alice, bob) == NOTHING
    assert (await seen_offline(bob, bob))["last_seen"] is not None
    await bob.call("PUT", "/api/users/me", {"settings": {"show_last_seen": True}}, expect=200)
    assert (await told_of(laptop, bob))["last_seen"] == (await seen(bob, bob))["last_seen"]


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({"availability": "asleep"}, "availability"),
        ({}, "availability"),
        ({"availability": "busy", "status_text": "x" * 141}, "status_text"),
        ({"availability": "busy", "status_text": "\0"}, "status_text"),
        ({"availability": "busy", "mood": "good"}, "mood"),
    ],
)
async def test_a_wrong_choice_is_refused_and_changes_nothing(server: Server, payload: dict[str, Any], field: str) -> None:
    bob = await server.register("bob")
    phone = await bob.connect("phone")
    await phone.send("PRESENCE_UPDATE", "wrong", **payload)
    answer = await phone.expect("ERROR")
    assert (answer["request_id"], answer["payload"]["code"]) == ("wrong", "validation_failed")
    assert answer["payload"]["field"] == field
    assert (await bob.get("/api/users/me"))["availability"] == "available"


# -- who is told nothing ------------------------------------------------------------------------------------------------------


async def test_strangers_and_the_blocked_see_nothing_and_unknown_users_are_not_found(server: Server) -> None:
    alice, bob = await friends(server)
    mallory = await server.register("mallory")
    desk, laptop = await mallory.connect("desk"), await arrive(alice, "laptop")
    phone = await bob.connect("phone")
    assert await told_of(laptop, bob) == online(bob)
    await bob.call("PUT", f"/api/blocks/{mallory.user_id}", expect=204)
    assert await snapshot(desk) == []
    assert await seen(mallory, bob) == await seen(bob, mallory) == NOTHING
    await choose(phone, "away")
    assert await told_of(laptop, bob) == online(bob, "away")
    await nothing_more(desk)
    problem(await alice.call("GET", f"/api/users/{UUID(int=1)}/presence"), 404, "not_found")
    problem(await alice.call("GET", "/api/users/nobody/presence"), 404, "not_found")


async def test_presence_begins_with_a_friendship_and_ends_with_it(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    assert await snapshot(laptop) == await snapshot(phone) == []
    await befriend(alice, bob)
    assert await told_of(laptop, bob) == online(bob)
    assert await told_of(phone, alice) == online(alice)
    await alice.call("DELETE", f"/api/friends/{bob.user_id}", expect=204)
    ended = {"status_text": None, **NOTHING}
    assert await told_of(laptop, bob) == {"user_id": bob.user_id, **ended}
    assert await told_of(phone, alice) == {"user_id": alice.user_id, **ended}
    assert await seen(alice, bob) == NOTHING


async def test_a_block_looks_like_the_end_of_a_friendship_to_both(server: Server) -> None:
    alice, bob = await friends(server)
    laptop, phone = await arrive(alice, "laptop"), await arrive(bob, "phone")
    assert await told_of(laptop, bob) == online(bob)
    await bob.call("PUT", f"/api/blocks/{alice.user_id}", expect=204)
    ended = {"status_text": None, **NOTHING}
    assert await told_of(laptop, bob) == {"user_id": bob.user_id, **ended}
    assert await told_of(phone, alice) == {"user_id": alice.user_id, **ended}
    await choose(phone, "busy")
    await laptop.roundtrip()
    await trio.sleep(0.2)
    assert all(
        user["user_id"] != bob.user_id or user["status"] == "offline"
        for frame in laptop.frames
        if frame["type"] == "PRESENCE_UPDATE"
        for user in frame["payload"]["users"]
    )


# -- processes, and Redis away ------------------------------------------------------------------------------------------------


async def test_friends_on_two_processes_see_each_other(database_url: str, redis_url: str) -> None:
    async with two_processes(database_url, redis_url) as (here, there):
        alice, bob = await friends(here)
        laptop, phone = await arrive(alice, "laptop"), await bob.connect("phone", to=there)
        assert await told_of(laptop, bob) == online(bob)
        assert await snapshot(phone) == [online(alice)]
        await choose(phone, "busy")
        assert await told_of(laptop, bob) == online(bob, "busy")
        assert (await seen(alice, bob))["status"] == "online"
        # The same device moves to the other process, and a second one keeps the user online.
        moved = await bob.connect("phone")
        await phone.closing(4409)
        await trio.sleep(2 * GRACE_S)
        await nothing_more(laptop)
        tablet = await bob.connect("tablet", to=there)
        await moved.leave()
        await trio.sleep(2 * GRACE_S)
        await nothing_more(laptop)
        await tablet.leave()
        assert (await told_of(laptop, bob))["status"] == "offline"


async def test_the_keys_are_those_of_the_specification(server: Server, redis_url: str) -> None:
    alice, bob = await friends(server)
    laptop, phone = await arrive(alice, "laptop"), await bob.connect("phone")
    assert await told_of(laptop, bob) == online(bob)
    with redis.Redis.from_url(redis_url) as client:
        key = f"presence:user:{bob.user_id}"
        assert b'"status":"online"' in client.get(key)
        assert 0 < client.ttl(key) <= 90
        await phone.leave()
        assert (await told_of(laptop, bob))["status"] == "offline"
        assert b'"status":"offline"' in client.get(key)


async def test_a_drain_tells_nobody_offline(database_url: str, redis_url: str) -> None:
    settings = settings_for(database_url, redis_url, presence_grace_s=0)
    async with serving(settings) as here:
        alice, bob = await friends(here)
        async with serving(settings) as there:
            laptop, phone = await arrive(alice, "laptop"), await bob.connect("phone", to=there)
            assert await told_of(laptop, bob) == online(bob)
            there.stop.set()
            await phone.closing(1012)
        await nothing_more(laptop)
        again = await bob.connect("phone")
        assert await snapshot(again) == [online(alice)]
        await nothing_more(laptop)


async def test_without_redis_the_connections_of_the_process_are_known(database_url: str) -> None:
    settings = settings_for(database_url, "redis://127.0.0.1:1/0", presence_grace_s=GRACE_S)
    async with serving(settings) as server:
        alice, bob = await friends(server)
        laptop, phone = await arrive(alice, "laptop"), await bob.connect("phone")
        assert await told_of(laptop, bob) == online(bob)
        assert await snapshot(phone) == [online(alice)]
        await choose(phone, "away")
        assert await told_of(laptop, bob) == online(bob, "away")
        await phone.leave()
        assert (await told_of(laptop, bob))["status"] == "offline"
        assert (await seen_offline(alice, bob))["last_seen"] is not None
