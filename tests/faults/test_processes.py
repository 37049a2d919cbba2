"""Real `uim serve` processes on one PostgreSQL and Redis: one is killed, one is added, and what their people see of it.

Nothing is shortened here: leases, graces and intervals are those of production. Rule: the long wait, until those who were at the
killed process are told to be offline, goes on beside everything else.
"""

from __future__ import annotations

from typing import Any

import pytest
import trio

from tests.faults.world import World, world
from tests.house import Device, Person
from tests.processes import at
from tests.transcripts.test_friends import befriend
from uim.errors import Cut

pytestmark = pytest.mark.timeout(150)

# A lease of 15 s, at which the others look every 5 s, and the telling.
OFFLINE_WITHIN_S = 30.0


def states_of(device: Device, person: Person) -> list[tuple[str, Any]]:
    """Everything that this device has been told of that person, in order: status and last_seen."""
    return [
        (user["status"], user["last_seen"])
        for frame in device.frames
        if frame["type"] == "PRESENCE_UPDATE"
        for user in frame["payload"]["users"]
        if user["user_id"] == person.user_id
    ]


def is_seen(device: Device, person: Person) -> bool:
    return states_of(device, person)[-1:] == [("online", None)]


async def becomes_offline(device: Device, person: Person, since: float) -> float:
    """How long it took until the device was told so."""
    with trio.fail_after(OFFLINE_WITHIN_S + 30):
        while not states_of(device, person) or states_of(device, person)[-1][0] != "offline":
            await device.roundtrip()
            await trio.sleep(0.2)
    return trio.current_time() - since


async def test_a_killed_process_loses_nothing_and_a_new_one_needs_no_configuration() -> None:
    async with (
        world(processes=3) as it,
        it.servers[0].as_house() as here,
        it.servers[1].as_house() as there,
        it.servers[2].as_house() as doomed,
    ):
        alice, bob, cyd, dan = [await here.register(name) for name in ("alice", "bob", "cyd", "dan")]
        for friend in (bob, cyd, dan):
            await befriend(alice, friend)
        group = await here.group(alice, bob, cyd, dan)
        laptop = await alice.connect("laptop")
        bobs, cyds = await bob.connect("phone", to=doomed), await cyd.connect("phone", to=doomed)
        with trio.fail_after(10):
            await laptop.until(lambda: is_seen(laptop, bob) and is_seen(laptop, cyd))
        sent = await bobs.say_many(group, [f"from the doomed {number}" for number in range(30)])
        it.servers[2].process.kill()
        killed_at = trio.current_time()
        took: list[float] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_note, took, laptop, bob, killed_at)
            # cyd comes back elsewhere, bob does not.
            for device in (bobs, cyds):
                await device.ended.wait()
            again = await cyd.connect("phone", to=there, last_sync_id=cyds.cursor)
            last = await laptop.say(group, "to all who are left")
            await again.reached(last["message_id"])
            await laptop.reached(last["message_id"])
            expected = [f"from the doomed {number}" for number in range(30)]
            assert laptop.contents() == expected, "every acknowledged text, once, in order"
            assert [entry["message_id"] for entry in laptop.entries if entry["message_type"] == "text"] == sent
            assert (cyds.contents() + again.contents()) == [*expected, "to all who are left"]
            await _receipt(laptop, "delivered", cyd, last["message_id"])
            await _add_one(it, dan, group, laptop, again, alice, cyd)
        assert took[0] <= OFFLINE_WITHIN_S, took
        assert states_of(laptop, bob)[-1][1] is not None, "with when he was last seen"
        assert [status for status, _ in states_of(laptop, cyd) if status == "offline"] == [], "she was never away"
        shown = await alice.get(f"/api/users/{cyd.user_id}/presence")
        assert shown["status"] == "online"
        print(f"offline after {took[0]:.1f} s")


async def _note(took: list[float], device: Device, person: Person, since: float) -> None:
    took.append(await becomes_offline(device, person, since))


async def _receipt(device: Device, status: str, reader: Person, message_id: int) -> None:
    await device.expect(
        lambda frame: any(
            (receipt["user_id"], receipt["message_id"]) == (reader.user_id, message_id)
            for receipt in frame["payload"].get("receipts", ())
            if frame["payload"]["status"] == status
        )
    )


async def _add_one(
    it: World, dan: Person, group: str, laptop: Device, cyds: Device, alice: Person, cyd: Person
) -> None:
    """A fourth process, started while the others run: everything works across at once."""
    added = await it.add_server()
    async with added.as_house() as fourth:
        tablet = await at(dan, fourth).connect("tablet", to=fourth, last_sync_id=0)
        assert tablet.contents()[-1] == "to all who are left"
        with trio.fail_after(10):
            await laptop.until(lambda: is_seen(laptop, dan))
        said = await tablet.say(group, "from the fourth")
        for device in (laptop, cyds):
            await device.reached(said["message_id"])
            assert device.contents()[-1] == "from the fourth"
        await _receipt(tablet, "delivered", cyd, said["message_id"])
        await cyds.send("MESSAGE_ACK", status="read", conversation_id=group, message_id=said["message_id"])
        await _receipt(tablet, "read", cyd, said["message_id"])
        await laptop.send("TYPING_INDICATOR", conversation_id=group, typing=True)
        await tablet.expect("TYPING_INDICATOR", user_id=alice.user_id, typing=True)
        await alice.call("PATCH", f"/api/conversations/{group}", {"name": "renamed"}, expect=200)
        await tablet.expect(
            lambda frame: (
                frame["type"] == "CONVERSATION_UPDATE" and frame["payload"].get("conversation", {}).get("name") == "renamed"
            )
        )
        # Replaced by a connection elsewhere; then its login ends.
        newer = await dan.connect("tablet")
        await tablet.closing(Cut.REPLACED)
        newest = await at(dan, fourth).connect("tablet", to=fourth)
        await newer.closing(Cut.REPLACED)
        await dan.call("DELETE", f"/api/auth/sessions/{dan.login_id}", expect=204)
        with trio.fail_after(5):
            await newest.closing(Cut.LOGIN_ENDED)
