"""Friends: asking, accepting, ending, and what each device of both hears of it, live or when it comes back."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import httpx
import trio

from tests.house import Device, Person, Server


def problem(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


def account_events(device: Device) -> list[dict[str, str]]:
    """What came of friends and blocks, in order."""
    entries = [entry["metadata"] for entry in device.entries if entry["message_type"] == "account"]
    return [metadata for metadata in entries if metadata["event"].startswith(("friend", "block", "unblock"))]


async def told(device: Device, event: str, **facts: str) -> None:
    """The next account entry comes live, and is this one."""
    frame = await device.expect("MESSAGE_RECEIVE", message_type="account")
    assert frame["payload"]["metadata"] == {"event": event, **facts}
    assert frame["payload"]["content"] == ""


async def befriend(one: Person, other: Person) -> None:
    await one.post("/api/friends", {"user_id": other.user_id}, expect=201)
    await other.call("PUT", f"/api/friends/{one.user_id}", expect=200)


async def states(person: Person) -> dict[str, str]:
    page = await person.get("/api/friends")
    assert page["next"] is None
    return {item["user"]["user_id"]: item["state"] for item in page["items"]}


async def two(server: Server) -> tuple[Person, Person]:
    return await server.register("alice"), await server.register("bob")


async def away(person: Person) -> Device:
    """A second device that was there once, and comes back by `again`."""
    tablet = await person.connect("tablet")
    await tablet.roundtrip()
    await tablet.leave()
    return tablet


async def again(tablet: Device) -> Device:
    return await tablet.person.connect("tablet", last_sync_id=tablet.cursor)


async def test_bob_is_asked_accepts_and_all_devices_of_both_know(server: Server) -> None:
    alice, bob = await two(server)
    phones = await alice.connect("phone"), await bob.connect("phone")
    tablets = await away(alice), await away(bob)

    asked = await alice.post("/api/friends", {"user_id": bob.user_id}, expect=201)
    assert (asked["state"], asked["user"]["username"]) == ("outgoing", bob.username)
    assert asked["presence"] == {"status": "offline", "availability": None, "last_seen": None}
    await told(phones[0], "friend_request", user_id=bob.user_id, state="outgoing")
    await told(phones[1], "friend_request", user_id=alice.user_id, state="incoming")
    assert (await states(alice), await states(bob)) == ({bob.user_id: "outgoing"}, {alice.user_id: "incoming"})

    accepted = (await bob.call("PUT", f"/api/friends/{alice.user_id}", expect=200)).json()
    assert accepted["state"] == "friend" and accepted["since"] > asked["since"]
    await told(phones[0], "friend_added", user_id=bob.user_id)
    await told(phones[1], "friend_added", user_id=alice.user_id)
    assert (await states(alice), await states(bob)) == ({bob.user_id: "friend"}, {alice.user_id: "friend"})

    mine, his = await again(tablets[0]), await again(tablets[1])
    assert account_events(mine) == [
        {"event": "friend_request", "user_id": bob.user_id, "state": "outgoing"},
        {"event": "friend_added", "user_id": bob.user_id},
    ]
    assert account_events(his) == [
        {"event": "friend_request", "user_id": alice.user_id, "state": "incoming"},
        {"event": "friend_added", "user_id": alice.user_id},
    ]


async def test_asking_again_changes_nothing_and_asking_the_asker_accepts(server: Server) -> None:
    alice, bob = await two(server)
    phone = await bob.connect("phone")
    first = await alice.post("/api/friends", {"user_id": bob.user_id}, expect=201)
    assert await alice.post("/api/friends", {"user_id": bob.user_id}, expect=200) == first
    accepted = await bob.post("/api/friends", {"user_id": alice.user_id}, expect=200)
    assert accepted["state"] == "friend"
    for one, other in ((alice, bob), (bob, alice)):
        assert (await one.post("/api/friends", {"user_id": other.user_id}, expect=200))["state"] == "friend"
        assert (await one.call("PUT", f"/api/friends/{other.user_id}", expect=200)).json()["state"] == "friend"
    await phone.roundtrip()
    assert [event["event"] for event in account_events(phone)] == ["friend_request", "friend_added"]


async def test_both_ask_at_once_and_are_friends(server: Server) -> None:
    alice, bob = await two(server)
    statuses: list[int] = []

    async def ask(one: Person, other: Person) -> None:
        statuses.append((await one.call("POST", "/api/friends", {"user_id": other.user_id})).status_code)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, alice, bob)
        nursery.start_soon(ask, bob, alice)
    assert sorted(statuses) == [200, 201]
    assert (await states(alice), await states(bob)) == ({bob.user_id: "friend"}, {alice.user_id: "friend"})


async def test_a_request_is_withdrawn_rejected_and_may_be_made_again(server: Server) -> None:
    alice, bob = await two(server)
    phones = await alice.connect("phone"), await bob.connect("phone")
    for who, other in ((alice, bob), (bob, alice)):
        await alice.post("/api/friends", {"user_id": bob.user_id}, expect=201)
        await told(phones[0], "friend_request", user_id=bob.user_id, state="outgoing")
        await told(phones[1], "friend_request", user_id=alice.user_id, state="incoming")
        await who.call("DELETE", f"/api/friends/{other.user_id}", expect=204)
        await told(phones[0], "friend_removed", user_id=bob.user_id)
        await told(phones[1], "friend_removed", user_id=alice.user_id)
        assert (await states(alice), await states(bob)) == ({}, {})


async def test_an_unfriend_is_known_to_both_and_to_the_tablet_that_was_away(server: Server) -> None:
    alice, bob = await two(server)
    await befriend(alice, bob)
    tablet, phone = await away(alice), await alice.connect("phone")
    await bob.call("DELETE", f"/api/friends/{alice.user_id}", expect=204)
    await told(phone, "friend_removed", user_id=bob.user_id)
    assert account_events(await again(tablet))[-1] == {"event": "friend_removed", "user_id": bob.user_id}
    assert (await states(alice), await states(bob)) == ({}, {})
    problem(await bob.call("DELETE", f"/api/friends/{alice.user_id}"), 404, "not_found")


async def test_every_refusal_of_friends(server: Server) -> None:
    alice, bob = await two(server)
    nobody = str(uuid4())
    gone = await server.register("gone")
    async with server.house.pool.connection() as tx:
        await tx.execute("update users set deleted_at = now() where user_id = %s", (gone.user_id,))
    problem(await alice.call("POST", "/api/friends", {"user_id": alice.user_id}), 422, "validation_failed")
    for unknown in (nobody, gone.user_id):
        problem(await alice.call("POST", "/api/friends", {"user_id": unknown}), 404, "not_found")
        problem(await alice.call("PUT", f"/api/friends/{unknown}"), 404, "not_found")
        problem(await alice.call("DELETE", f"/api/friends/{unknown}"), 404, "not_found")
    problem(await alice.call("PUT", f"/api/friends/{bob.user_id}"), 404, "not_found")
    problem(await alice.call("DELETE", f"/api/friends/{bob.user_id}"), 404, "not_found")
    await alice.post("/api/friends", {"user_id": bob.user_id}, expect=201)
    # One's own request is not for oneself to accept.
    problem(await alice.call("PUT", f"/api/friends/{bob.user_id}"), 404, "not_found")
    problem(await alice.call("GET", "/api/friends?cursor=nonsense"), 422, "validation_failed")
    assert await states(bob) == {alice.user_id: "incoming"}


async def test_the_list_comes_in_pages_newest_first(server: Server) -> None:
    alice = await server.register("alice")
    others = [await server.register(f"other{number}") for number in range(5)]
    for other in others:
        await other.post("/api/friends", {"user_id": alice.user_id}, expect=201)
    # Accepted last, so the newest.
    await alice.call("PUT", f"/api/friends/{others[0].user_id}", expect=200)
    found: list[dict[str, Any]] = []
    path = "/api/friends?limit=2"
    while True:
        page = await alice.get(path)
        assert len(page["items"]) <= 2
        found += page["items"]
        if page["next"] is None:
            break
        path = f"/api/friends?limit=2&cursor={page['next']}"
    expected = [others[0], *reversed(others[1:])]
    assert [item["user"]["user_id"] for item in found] == [other.user_id for other in expected]
    assert [item["state"] for item in found] == ["friend"] + ["incoming"] * 4
