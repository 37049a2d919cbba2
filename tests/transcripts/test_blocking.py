"""Blocking, which is told to nobody: what it ends, what it hides, what goes on, and how soon it holds everywhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest
import trio

from tests.house import Device, Person, Server, serving, settings_for
from tests.transcripts.test_friends import account_events, again, away, befriend, problem, states, told, two

NOBODY_LISTENS = "redis://127.0.0.1:1/0"


async def block(one: Person, other: Person) -> None:
    await one.call("PUT", f"/api/blocks/{other.user_id}", expect=204)


async def unblock(one: Person, other: Person) -> None:
    await one.call("DELETE", f"/api/blocks/{other.user_id}", expect=204)


async def blocked(person: Person) -> list[str]:
    return [item["user"]["user_id"] for item in (await person.get("/api/blocks"))["items"]]


def indicators(device: Device) -> list[bool]:
    return [frame["payload"]["typing"] for frame in device.frames if frame["type"] == "TYPING_INDICATOR"]


async def test_only_the_blockers_own_devices_learn_of_it(server: Server) -> None:
    alice, bob = await two(server)
    phone, tablet = await bob.connect("phone"), await away(bob)
    hers, her_tablet = await alice.connect("phone"), await away(alice)
    for _ in range(2):
        await block(bob, alice)
    await told(phone, "blocked", user_id=alice.user_id)
    page = await bob.get("/api/blocks")
    assert [(item["user"]["user_id"], item["user"]["avatar_url"]) for item in page["items"]] == [(alice.user_id, None)]
    assert (page["next"], await blocked(alice)) == (None, [])
    await unblock(bob, alice)
    await told(phone, "unblocked", user_id=alice.user_id)
    assert [event["event"] for event in account_events(await again(tablet))] == ["blocked", "unblocked"]
    await hers.roundtrip()
    assert account_events(hers) == [] and account_events(await again(her_tablet)) == []


async def test_neither_can_write_to_the_other_and_only_the_blocker_is_told_why(server: Server) -> None:
    alice, bob = await two(server)
    pair = await server.pair(alice, bob)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    await laptop.say(pair, "before")
    await block(bob, alice)
    from_alice, from_bob = await laptop.say(pair, "let me in", "one"), await phone.say(pair, "no", "two")
    assert (from_alice["code"], from_alice["client_message_id"]) == ("forbidden", "one")
    assert (from_bob["code"], from_bob["client_message_id"]) == ("blocked", "two")
    path, body = f"/api/conversations/{pair}/messages", {"client_message_id": "three", "content": "hello?"}
    problem(await alice.call("POST", path, body), 403, "forbidden")
    problem(await bob.call("POST", path, body), 403, "blocked")
    # What was said stays readable for both, and after the unblock what was refused has not been kept.
    for one in (alice, bob):
        assert [item["content"] for item in (await one.get(path))["items"]] == ["before"]
        assert (await one.get(f"/api/conversations/{pair}"))["conversation_id"] == pair
    await unblock(bob, alice)
    after = await laptop.say(pair, "after")
    await phone.reached(after["message_id"])
    assert phone.contents() == ["before", "after"]


async def test_no_new_one_on_one_across_a_block(server: Server) -> None:
    alice, bob = await two(server)
    await block(bob, alice)
    for one, other, code in ((alice, bob, "forbidden"), (bob, alice, "blocked")):
        body = {"type": "one_on_one", "participant_ids": [other.user_id]}
        problem(await one.call("POST", "/api/conversations", body), 403, code)


async def test_neither_adds_the_other_to_a_group_and_groups_in_common_go_on(server: Server) -> None:
    alice, bob = await two(server)
    cyd, dan = await server.register("cyd"), await server.register("dan")
    common = await server.group(alice, bob, cyd)
    alices, bobs = await server.group(alice, cyd, dan), await server.group(bob, cyd, dan)
    await block(bob, alice)
    for one, other, group, code in ((alice, bob, alices, "forbidden"), (bob, alice, bobs, "blocked")):
        problem(await one.call("POST", f"/api/conversations/{group}/participants", {"user_ids": [other.user_id]}), 403, code)
        body = {"type": "group", "name": "new", "participant_ids": [other.user_id, cyd.user_id]}
        problem(await one.call("POST", "/api/conversations", body), 403, code)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    said = await laptop.say(common, "to all of us")
    await phone.reached(said["message_id"])
    answered = await phone.say(common, "and back")
    await laptop.reached(answered["message_id"])
    assert (phone.contents(), laptop.contents()) == (["to all of us"], ["and back"])


async def test_a_block_ends_a_friendship_and_looks_like_an_unfriend(server: Server) -> None:
    alice, bob = await two(server)
    await befriend(alice, bob)
    hers, his = await alice.connect("phone"), await bob.connect("phone")
    tablet = await away(alice)
    await block(bob, alice)
    await told(his, "friend_removed", user_id=alice.user_id)
    await told(his, "blocked", user_id=alice.user_id)
    await told(hers, "friend_removed", user_id=bob.user_id)
    assert [event["event"] for event in account_events(await again(tablet))] == ["friend_removed"]
    assert (await states(alice), await states(bob)) == ({}, {})
    await unblock(bob, alice)
    assert (await states(alice), await states(bob)) == ({}, {})


async def test_a_block_ends_open_requests_either_way(server: Server) -> None:
    for blocker_asked in (True, False):
        alice, bob = await two(server)
        asker, asked = (bob, alice) if blocker_asked else (alice, bob)
        await asker.post("/api/friends", {"user_id": asked.user_id}, expect=201)
        await block(bob, alice)
        assert (await states(alice), await states(bob)) == ({}, {})


async def test_a_request_to_a_blocker_looks_like_any_other_and_is_never_shown(server: Server) -> None:
    alice, bob = await two(server)
    await block(bob, alice)
    hers, his = await alice.connect("phone"), await bob.connect("phone")
    asked = await alice.post("/api/friends", {"user_id": bob.user_id}, expect=201)
    assert asked["state"] == "outgoing"
    await told(hers, "friend_request", user_id=bob.user_id, state="outgoing")
    assert await alice.post("/api/friends", {"user_id": bob.user_id}, expect=200) == asked
    assert (await states(alice), await states(bob)) == ({bob.user_id: "outgoing"}, {})
    for method in ("PUT", "DELETE"):
        problem(await bob.call(method, f"/api/friends/{alice.user_id}"), 404, "not_found")
    refused = await bob.call("POST", "/api/friends", {"user_id": alice.user_id})
    problem(refused, 403, "blocked")
    assert refused.json()["detail"] == "unblock first"
    await unblock(bob, alice)
    assert await states(bob) == {}
    await his.roundtrip()
    assert [event["event"] for event in account_events(his)] == ["blocked", "unblocked"]
    # Asking again after that is a new request, which bob sees; in alice's list nothing moves.
    assert await alice.post("/api/friends", {"user_id": bob.user_id}, expect=200) == asked
    await his.expect("MESSAGE_RECEIVE", metadata={"event": "friend_request", "user_id": alice.user_id, "state": "incoming"})
    assert await states(bob) == {alice.user_id: "incoming"}


async def test_a_request_kept_back_is_not_accepted_by_a_later_request_of_the_one_who_blocked(server: Server) -> None:
    alice, bob = await two(server)
    await block(bob, alice)
    await alice.post("/api/friends", {"user_id": bob.user_id}, expect=201)
    await unblock(bob, alice)
    hers, his = await alice.connect("phone"), await bob.connect("phone")
    assert (await bob.post("/api/friends", {"user_id": alice.user_id}, expect=201))["state"] == "outgoing"
    await told(his, "friend_request", user_id=alice.user_id, state="outgoing")
    await told(hers, "friend_request", user_id=bob.user_id, state="incoming")
    assert (await states(alice), await states(bob)) == ({bob.user_id: "incoming"}, {alice.user_id: "outgoing"})
    await alice.call("PUT", f"/api/friends/{bob.user_id}", expect=200)
    assert (await states(alice), await states(bob)) == ({bob.user_id: "friend"}, {alice.user_id: "friend"})


async def test_a_request_kept_back_is_withdrawn_without_a_word_to_the_blocker(server: Server) -> None:
    alice, bob = await two(server)
    await block(bob, alice)
    his = await bob.connect("phone")
    await alice.post("/api/friends", {"user_id": bob.user_id}, expect=201)
    await alice.call("DELETE", f"/api/friends/{bob.user_id}", expect=204)
    assert await states(alice) == {}
    await his.roundtrip()
    assert [event["event"] for event in account_events(his)] == ["blocked"]


async def test_both_block_and_each_unblocks_for_oneself(server: Server) -> None:
    alice, bob = await two(server)
    pair = await server.pair(alice, bob)
    laptop = await alice.connect("laptop")
    await block(alice, bob)
    await block(bob, alice)
    assert (await laptop.say(pair, "one"))["code"] == "blocked"
    await unblock(alice, bob)
    assert (await laptop.say(pair, "two"))["code"] == "forbidden"
    await unblock(bob, alice)
    assert (await laptop.say(pair, "three"))["status"] == "sent"


async def test_every_refusal_of_blocks(server: Server) -> None:
    alice, bob = await two(server)
    nobody = str(uuid4())
    problem(await alice.call("PUT", f"/api/blocks/{alice.user_id}"), 422, "validation_failed")
    problem(await alice.call("PUT", f"/api/blocks/{nobody}"), 404, "not_found")
    problem(await alice.call("DELETE", f"/api/blocks/{nobody}"), 404, "not_found")
    problem(await alice.call("DELETE", f"/api/blocks/{bob.user_id}"), 404, "not_found")
    problem(await alice.call("GET", "/api/blocks?cursor=nonsense"), 422, "validation_failed")
    await block(bob, alice)
    problem(await alice.call("DELETE", f"/api/blocks/{bob.user_id}"), 404, "not_found")
    assert await blocked(bob) == [alice.user_id]


async def test_the_list_of_blocks_comes_in_pages(server: Server) -> None:
    alice = await server.register("alice")
    others = [await server.register(f"other{number}") for number in range(3)]
    for other in others:
        await block(alice, other)
    first = await alice.get("/api/blocks?limit=2")
    second = await alice.get(f"/api/blocks?limit=2&cursor={first['next']}")
    found = [item["user"]["user_id"] for item in first["items"] + second["items"]]
    assert found == [other.user_id for other in reversed(others)] and second["next"] is None


# -- within a second, on sockets that are open already, wherever they are ---------------------------------------------------


@pytest.fixture
async def elsewhere(request: pytest.FixtureRequest, database_url: str, redis_url: str, server: Server) -> AsyncIterator[Server]:
    """A second process on the same database, on the same Redis or on none."""
    redis = redis_url if request.param == "by the bus" else NOBODY_LISTENS
    async with serving(settings_for(database_url, redis, jwt_keys=server.house.settings.jwt_keys)) as started:
        yield started


async def until_apart(place: Server, one: Person, other: Person, *, is_apart: bool) -> None:
    """Within a second that process knows of the block, or of its end."""
    with trio.fail_after(1):
        while place.house.blocks.apart(UUID(one.user_id), UUID(other.user_id)) is not is_apart:
            await trio.sleep(0.005)


@pytest.mark.parametrize("elsewhere", ["by the bus", "without redis"], indirect=True)
async def test_a_block_holds_within_a_second_in_every_process(server: Server, elsewhere: Server) -> None:
    alice, bob = await two(server)
    pair = await server.pair(alice, bob)
    laptop, phone = await alice.connect("laptop", to=elsewhere), await bob.connect("phone", to=elsewhere)
    for _ in range(2):
        await block(bob, alice)
        await until_apart(elsewhere, alice, bob, is_apart=True)
        assert (await laptop.say(pair, "no"))["code"] == "forbidden"
        await laptop.send("TYPING_INDICATOR", conversation_id=pair, typing=True)
        await laptop.roundtrip()
        await phone.roundtrip()
        assert indicators(phone) == []
        await unblock(bob, alice)
        await until_apart(elsewhere, alice, bob, is_apart=False)
    assert (await laptop.say(pair, "yes"))["status"] == "sent"


async def test_a_block_that_is_made_while_a_device_connects_is_not_missed(server: Server) -> None:
    alice, bob = await two(server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(block, bob, alice)
        phone = await bob.connect("phone")
    await phone.roundtrip()
    await until_apart(server, alice, bob, is_apart=True)
