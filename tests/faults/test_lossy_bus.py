"""A law over seeds: whatever the bus does to its words, every device ends with what it has with a perfect bus.

The same script, drawn from a seed, is played twice by people spread over all processes: once while the lines to Redis carry every
word, once while they drop, delay, repeat and reorder them. Compared is what each device has seen in the end.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio

from tests.faults.lossy_bus import BAD, DEAF, PERFECT, Fates, LossyBus, lossy_bus
from tests.house import Device, Person, Server
from tests.processes import acquainted, at, processes
from tests.transcripts.test_friends import befriend
from uim.errors import Cut

pytestmark = pytest.mark.timeout(90)

NAMES = ("alice", "bob", "cyd", "dan")
STEPS = 24
# A word that is lost is missed by the next one, at the latest a second later, which may be lost too.
SETTLED_WITHIN_S = 20.0


@dataclass
class Cast:
    """The people of one playing, their devices, and what they call each other's conversations."""

    servers: list[Server]
    people: dict[str, Person]
    devices: dict[str, Device] = field(default_factory=dict)
    conversations: dict[str, str] = field(default_factory=dict)
    newest: dict[str, int] = field(default_factory=dict)
    # Which texts each device has said itself.
    said: dict[str, set[int]] = field(default_factory=dict)

    def members(self, name: str) -> list[str]:
        return list(NAMES) if name == "group" else name.split("+")

    async def tell_all(self, name: str, sender: str, content: str) -> None:
        said = await self.devices[sender].say(self.conversations[name], content)
        self.newest[name] = said["message_id"]
        self.said.setdefault(sender, set()).add(said["message_id"])


@asynccontextmanager
async def town(count: int, seed: int, database_url: str, redis_url: str) -> AsyncIterator[tuple[list[Server], list[LossyBus]]]:
    async with AsyncExitStack() as stack:
        lines = [
            await stack.enter_async_context(lossy_bus(redis_url, seed=seed + number, fates=PERFECT)) for number in range(count)
        ]
        urls = [line.url for line in lines]
        servers = await stack.enter_async_context(processes(count, database_url, *urls, presence_grace_s=0.2))
        await acquainted(servers)
        yield servers, lines


async def cast(servers: list[Server]) -> Cast:
    """Everybody with a laptop and a phone at different processes, all friends of alice, live, and then in one group.

    A conversation is announced behind its making, to whoever is live by then: made earlier, it would be told to some devices of
    one playing that learn of it from the list in the other.
    """
    made = Cast(servers, {name: await servers[number % len(servers)].register(name) for number, name in enumerate(NAMES)})
    people = made.people
    for name in NAMES[1:]:
        await befriend(people["alice"], people[name])
    for number, name in enumerate(NAMES):
        for place, kind in enumerate(("laptop", "phone")):
            server = servers[(number + place) % len(servers)]
            made.devices[f"{name}'s {kind}"] = await people[name].connect(kind, last_sync_id=0, to=server)
    made.conversations["group"] = await servers[0].group(people["alice"], *(people[name] for name in NAMES[1:]))
    made.conversations["alice+bob"] = await servers[0].pair(people["alice"], people["bob"])
    for name in made.conversations:
        await made.tell_all(name, f"{made.members(name)[0]}'s laptop", "first")
    return made


# -- the script ---------------------------------------------------------------------------------------------------------------


async def play(it: Cast, seed: int) -> None:
    """The same steps for the same seed."""
    chance = random.Random(seed)
    kinds: list[Callable[[Cast, random.Random, int], Awaitable[None]]] = [say, say, say, read, read, rename, choose, name_oneself, pair]
    for number in range(STEPS):
        await chance.choice(kinds)(it, chance, number)


def somebody(it: Cast, chance: random.Random, conversation: str) -> str:
    return f"{chance.choice(it.members(conversation))}'s {chance.choice(('laptop', 'phone'))}"


async def say(it: Cast, chance: random.Random, number: int) -> None:
    name = chance.choice(sorted(it.conversations))
    await it.tell_all(name, somebody(it, chance, name), f"text {number}")


async def read(it: Cast, chance: random.Random, number: int) -> None:
    """Once the device has it, as a person reads what is there."""
    name = chance.choice(sorted(it.newest))
    device = it.devices[somebody(it, chance, name)]
    await device.reached(it.newest[name])
    await device.send("MESSAGE_ACK", status="read", conversation_id=it.conversations[name], message_id=it.newest[name])


async def rename(it: Cast, chance: random.Random, number: int) -> None:
    owner = at(it.people["alice"], chance.choice(it.servers))
    await owner.call("PATCH", f"/api/conversations/{it.conversations['group']}", {"name": f"name {number}"}, expect=200)


async def choose(it: Cast, chance: random.Random, number: int) -> None:
    device = it.devices[somebody(it, chance, "group")]
    availability = chance.choice(("available", "away", "busy"))
    await device.send("PRESENCE_UPDATE", f"choose-{number}", availability=availability, status_text=f"status {number}")
    # Left where it is: it tells this device its user's state, as an update tells the other.
    await device.until(lambda: any(frame.get("request_id") == f"choose-{number}" for frame in device.frames))


async def name_oneself(it: Cast, chance: random.Random, number: int) -> None:
    person = at(it.people[chance.choice(NAMES)], chance.choice(it.servers))
    await person.call("PUT", "/api/users/me", {"display_name": f"display {number}"}, expect=200)


async def pair(it: Cast, chance: random.Random, number: int) -> None:
    """A one-on-one that begins empty: nothing of it is in the log."""
    one, other = sorted(chance.sample(NAMES, 2))
    body = {"type": "one_on_one", "participant_ids": [it.people[other].user_id]}
    made = await at(it.people[one], chance.choice(it.servers)).call("POST", "/api/conversations", body)
    it.conversations[f"{one}+{other}"] = made.json()["conversation_id"]


# -- what a device has seen ---------------------------------------------------------------------------------------------------


def seen(it: Cast) -> dict[str, dict[str, Any]]:
    names = {person.user_id: name for name, person in it.people.items()} | {id_: name for name, id_ in it.conversations.items()}
    # A text comes to everybody's devices but the one that sent it, which has the ack.
    texts = {
        entry["message_id"]: entry
        for device in it.devices.values()
        for entry in device.entries
        if entry["message_type"] == "text"
    }
    return {name: _seen_by(device, names, texts, it.said.get(name, set())) for name, device in it.devices.items()}


def _seen_by(device: Device, names: dict[str, str], texts: dict[int, dict[str, Any]], said: set[int]) -> dict[str, Any]:
    told: dict[str, Any] = {"conversations": {}, "people": {}, "presence": {}, "receipts": {}, "own reads": {}}
    for frame in device.frames:
        payload = frame["payload"]
        if frame["type"] == "CONVERSATION_UPDATE" and "conversation" in payload:
            _note_conversation(told["conversations"], payload["conversation"], names)
        elif frame["type"] == "SYNC_BATCH":
            for view in payload["conversations"]:
                _note_conversation(told["conversations"], view, names)
        elif frame["type"] == "USER_UPDATE":
            told["people"][names[payload["user"]["user_id"]]] = payload["user"]["display_name"]
        elif frame["type"] == "PRESENCE_UPDATE":
            _note_presence(told["presence"], payload, names, device.person.user_id)
        elif frame["type"] == "MESSAGE_ACK" and "unread_count" in payload:
            told["own reads"][names[payload["conversation_id"]]] = max(
                _place(texts[receipt["message_id"]], names) for receipt in payload["receipts"]
            )
        elif frame["type"] == "MESSAGE_ACK" and "receipts" in payload:
            _note_receipts(told["receipts"], payload, names, texts, device.person.user_id)
    # As a store keeps them: what a slow machine has not confirmed within a second comes again, one's own texts among it.
    store = {entry["message_id"]: entry for entry in device.entries if entry["message_id"] not in said}
    told["entries"] = [_entry(entry, names) for entry in store.values() if entry["message_type"] != "account"]
    told["receipts"] = {about: sorted(reached) for about, reached in told["receipts"].items()}
    return told


def _place(entry: dict[str, Any], names: dict[str, str]) -> str:
    return f"{names[entry['conversation_id']]} {entry['seq']}"


def _entry(entry: dict[str, Any], names: dict[str, str]) -> str:
    event = (entry.get("metadata") or {}).get("event", "")
    return f"{names[entry['conversation_id']]} {entry['seq']} {names[entry['sender_id']]}: {entry['content']}{event}"


def _note_conversation(known: dict[str, Any], view: dict[str, Any], names: dict[str, str]) -> None:
    members = sorted(f"{names[member['user_id']]} {member['role']}" for member in view["participants"])
    known[names[view["conversation_id"]]] = (view["type"], view["name"], members)


def _note_presence(known: dict[str, Any], payload: dict[str, Any], names: dict[str, str], own_id: str) -> None:
    if payload.get("snapshot"):
        # It has the friends who are there; one's own state is told by itself.
        for name in known.keys() - {names[own_id]}:
            del known[name]
    for state in payload["users"]:
        known[names[state["user_id"]]] = (state["status"], state["availability"], state["status_text"])


def _note_receipts(
    known: dict[str, set[str]], payload: dict[str, Any], names: dict[str, str], texts: dict[int, dict[str, Any]], own_id: str
) -> None:
    """Which of one's own texts have been reached; how the intervals fall depends on what was gathered together."""
    for receipt in payload["receipts"]:
        reached = known.setdefault(f"{payload['status']} {names[receipt['user_id']]}", set())
        span = range(receipt["after"] + 1, receipt["message_id"] + 1)
        reached |= {
            _place(text, names)
            for at_id, text in texts.items()
            if at_id in span and (text["conversation_id"], text["sender_id"]) == (payload["conversation_id"], own_id)
        }


def told_twice(device: Device) -> list[tuple[Any, ...]]:
    told = [
        (frame["payload"]["conversation_id"], frame["payload"]["status"], receipt["user_id"], receipt["after"], receipt["message_id"])
        for frame in device.frames
        if frame["type"] == "MESSAGE_ACK"
        for receipt in frame["payload"].get("receipts", ())
    ]
    return [one for one in set(told) if told.count(one) > 1]


async def played(servers: list[Server], lines: list[LossyBus], fates: Fates, seed: int) -> Cast:
    it = await cast(servers)
    for line in lines:
        line.fates = fates
    await play(it, seed)
    await it.tell_all("group", "dan's phone", "last")
    for device in it.devices.values():
        await device.reached(it.newest["group"])
    return it


async def differences(lossy: Cast, perfect: Cast) -> list[str]:
    """What devices still see otherwise after a while than those of the perfect bus, device by device."""
    with trio.move_on_after(SETTLED_WITHIN_S):
        while seen(lossy) != seen(perfect):
            await trio.sleep(0.1)
    expected = seen(perfect)
    return [
        f"{name}, {about}: {told[about]}, not {expected[name][about]}"
        for name, told in seen(lossy).items()
        for about in told
        if told[about] != expected[name][about]
    ]


async def settled(it: Cast) -> None:
    """Returns once nothing has changed for a while: with a perfect bus that is the end of it."""
    last, since = seen(it), trio.current_time()
    with trio.fail_after(SETTLED_WITHIN_S):
        while trio.current_time() - since < 1.0:
            await trio.sleep(0.1)
            if (now := seen(it)) != last:
                last, since = now, trio.current_time()


@pytest.mark.parametrize(("count", "seed", "fates"), [(2, 1, BAD), (2, 2, DEAF), (4, 3, BAD)], ids=["two", "two, deaf", "four"])
async def test_whatever_the_bus_loses_every_device_sees_the_same(
    count: int, seed: int, fates: Fates, database_url: str, redis_url: str
) -> None:
    async with town(count, seed, database_url, redis_url) as (servers, lines):
        perfect = await played(servers, lines, PERFECT, seed)
        await settled(perfect)
        lossy = await played(servers, lines, fates, seed)
        differs = await differences(lossy, perfect)
        devices = [*perfect.devices.values(), *lossy.devices.values()]
        ended = [device.closed for device in devices if device.ended.is_set()]
    # Outside, for a failure inside would be told by a group within a group for each server.
    assert differs == []
    assert [told_twice(device) for device in devices if told_twice(device)] == []
    assert ended == []
    assert sum(line.lost for line in lines) > 20, "or this has shown nothing"


@pytest.mark.parametrize("fates", [BAD, DEAF], ids=["bad", "deaf"])
async def test_revocations_hold_within_a_second_and_devices_are_replaced(
    fates: Fates, database_url: str, redis_url: str
) -> None:
    async with town(2, 7, database_url, redis_url) as ((here, there), lines):
        for line in lines:
            line.fates = fates
        alice = await here.register("alice")
        took: list[float] = []
        for number in range(3):
            login = await here.login(alice.username, f"laptop {number}")
            laptop = await login.connect(f"laptop {number}", to=there)
            began_at = trio.current_time()
            await alice.call("DELETE", f"/api/auth/sessions/{login.login_id}", expect=204)
            await laptop.closing(Cut.LOGIN_ENDED)
            took.append(trio.current_time() - began_at)
            older = await alice.connect("phone", to=there)
            newer = await alice.connect("phone", to=here)
            await older.closing(Cut.REPLACED)
            await newer.roundtrip()
            await newer.leave()
        assert min(took) < 1.0, took
