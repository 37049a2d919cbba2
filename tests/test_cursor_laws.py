"""The laws of cursors, on two whole servers over one database, under random lives of people and devices.

Whatever the interleaving of sends, comings and goings, disconnects, rewinds and late confirmations: a device that comes back and
confirms has exactly what lies in its user's stays; on each connection entries arrive in message_id order, no gap; the stored
cursor never passes an entry that was not confirmed. What is visible is computed at the end, from the database alone.
"""

from __future__ import annotations

import queue
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import hypothesis
import pytest
import trio
from hypothesis import strategies as st

from tests.house import Device, Person, Server, serving, settings_for
from tests.transcripts.test_sync import stored_cursor

EXAMPLES = 15
SETTLE_S = 10.0

Step = tuple[Any, ...]

# -- what may happen ------------------------------------------------------------------------------------------------------

WHERE = st.integers(0, 1)
DEVICE_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("connect"), WHERE, st.sampled_from(["own", "stored"])),
        st.tuples(st.just("disconnect")),
        st.tuples(st.just("rewind"), st.floats(0, 1)),
        st.tuples(st.just("say"), st.integers(1, 3)),
        st.tuples(st.just("mute")),
        st.tuples(st.just("doze")),
        st.tuples(st.just("sleep")),
        st.tuples(st.just("wake")),
        st.tuples(st.just("ping")),
        st.tuples(st.just("look")),
    ),
    max_size=8,
)
TALK_STEPS = st.lists(st.one_of(st.integers(1, 8), st.integers(90, 130)), min_size=1, max_size=4)
MEMBER_STEPS = st.lists(st.tuples(st.sampled_from(["bob", "cyd"]), WHERE), max_size=8)


@dataclass(frozen=True)
class Story:
    """What each of the actors does; all of them at the same time."""

    devices: list[list[Step]]
    talk: list[list[int]]
    members: list[tuple[str, int]]
    endings: list[str]


STORIES = st.builds(
    Story,
    devices=st.lists(DEVICE_STEPS, min_size=4, max_size=4),
    talk=st.lists(TALK_STEPS, min_size=2, max_size=2),
    members=MEMBER_STEPS,
    endings=st.lists(st.sampled_from(["own", "stored"]), min_size=4, max_size=4),
)


# -- a device over all of its connections ---------------------------------------------------------------------------------


@dataclass
class Handset:
    """A device with its own store. `confirmed`: ids that it has confirmed, or may have at any moment from now on."""

    person: Person
    name: str
    servers: tuple[Server, Server]
    group_id: str
    connections: list[Device] = field(default_factory=list)
    own: dict[int, set[int]] = field(default_factory=dict)
    rewinds: dict[int, dict[str, int]] = field(default_factory=dict)
    confirmed: set[int] = field(default_factory=set)
    looks: list[tuple[int, set[int]]] = field(default_factory=list)
    start: int = 0
    asleep: bool = False
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    @property
    def now(self) -> Device | None:
        return self.connections[-1] if self.connections and not self.connections[-1].ended.is_set() else None

    @property
    def store(self) -> set[int]:
        return {entry["message_id"] for device in self.connections for entry in device.entries}.union(*self.own.values())

    @property
    def cursor(self) -> int:
        return max([self.start, *(device.cursor for device in self.connections)])

    async def act(self, step: Step) -> None:
        await getattr(self, step[0])(*step[1:])

    async def connect(self, where: int, how: str) -> None:
        """Also while connected: the newer connection replaces the older, wherever that is."""
        before = self.now
        if before is not None:
            before.read_on()
        asked = None if how == "stored" else self.cursor
        if asked is not None:
            self.confirmed |= {at for at in self.store if at <= asked}
        device = await self.person.open(self.name, last_sync_id=asked, to=self.servers[where])
        if before is not None:
            with trio.fail_after(SETTLE_S):
                await before.ended.wait()
            self.note(before)
        if not self.connections:
            self.start = device.ready["last_sync_id"]
        self.connections.append(device)
        self.own[len(self.connections) - 1] = set()
        self.rewinds[len(self.connections) - 1] = {}
        self.asleep = False

    async def disconnect(self) -> None:
        if device := self.now:
            device.read_on()
            await device.leave()
            self.note(device)

    async def rewind(self, share: float) -> None:
        device = self.now
        if device is None or self.asleep:
            return
        to = self.start + int((self.cursor - self.start) * share)
        request_id = f"rewind-{next(self._numbers)}"
        self.rewinds[len(self.connections) - 1][request_id] = to
        await device.send("SYNC_REQUEST", request_id, last_sync_id=to)
        with trio.fail_after(SETTLE_S):
            await device.until(lambda: any(frame.get("request_id") == request_id for frame in device.frames))

    async def say(self, times: int) -> None:
        device = self.now
        if device is None or self.asleep:
            return
        for number in range(times):
            ack = await device.say(self.group_id, f"{self.name} {number}")
            if ack["type"] == "MESSAGE_ACK":
                self.own[len(self.connections) - 1].add(ack["message_id"])

    async def mute(self) -> None:
        """Confirm nothing more, until it wakes or connects again."""
        if device := self.now:
            self.note(device)
            device.confirms = False

    async def doze(self) -> None:
        """Mute, but pinging; and then a look at where that has moved the cursor."""
        await self.mute()
        await self.ping()
        for server in self.servers:
            await server.house.receipts.flush()
        await self.look()

    async def sleep(self) -> None:
        if device := self.now:
            device.stop_reading()
            self.asleep = True

    async def wake(self) -> None:
        device = self.now
        if device is None:
            return
        device.read_on()
        self.asleep = False
        if not device.confirms:
            device.confirms = True
            if (told := self.told(device)) is not None:
                await device.send("MESSAGE_ACK", status="delivered", message_id=told)
        await self.ping()

    async def ping(self) -> None:
        if (device := self.now) and not self.asleep:
            await device.roundtrip()

    async def look(self) -> None:
        """Where does the database have this device? What is confirmed is noted after that."""
        stored = await stored_cursor(self.servers[0], self.person, self.name)
        if stored is None:
            return
        if device := self.now:
            self.note(device)
        self.looks.append((stored, self.confirmed.union(*self.own.values())))

    def note(self, device: Device) -> None:
        if device.confirms:
            self.confirmed |= {entry["message_id"] for entry in device.entries}

    def told(self, device: Device) -> int | None:
        """The highest id that this connection may confirm: of what came since its last rewind."""
        highest: int | None = None
        rewinds = list(self.rewinds[len(self.connections) - 1])
        is_counted = not rewinds
        for frame in device.frames:
            is_counted = is_counted or frame.get("request_id") == rewinds[-1]
            if is_counted and frame["type"] in ("MESSAGE_RECEIVE", "SYNC_BATCH"):
                payload = frame["payload"]
                highest = max(highest or 0, payload.get("next_sync_id", 0), payload.get("message_id", 0))
        return highest


# -- the laws -------------------------------------------------------------------------------------------------------------


def check_connection(device: Device, visible: list[int], own: set[int], rewinds: dict[str, int]) -> None:
    """First arrivals in order, and nothing visible left out before one, or before the end of a batch."""
    position, seen, answering = device.ready["last_sync_id"], set[int](), None
    for frame in device.frames:
        if frame["type"] not in ("MESSAGE_RECEIVE", "SYNC_BATCH"):
            continue
        payload = frame["payload"]
        if frame.get("request_id") not in (None, answering):
            answering = frame["request_id"]
            position, seen = rewinds[answering], set()
        for entry in payload["messages"] if frame["type"] == "SYNC_BATCH" else [payload]:
            at = entry["message_id"]
            assert at in visible, f"LEAK: {entry}"
            if at in seen or at in own:
                continue
            assert at > position, f"ORDER: {at} after {position}"
            check_complete(visible, position, at - 1, own)
            seen.add(at)
            position = at
        if frame["type"] == "SYNC_BATCH" and payload["next_sync_id"] > position:
            check_complete(visible, position, payload["next_sync_id"], own)
            position = payload["next_sync_id"]


def check_complete(visible: list[int], after: int, up_to: int, own: set[int]) -> None:
    missing = [at for at in visible if after < at <= up_to and at not in own]
    assert not missing, f"GAP: {missing} between {after} and {up_to}"


def check_handset(handset: Handset, visible: list[int]) -> None:
    owed = {at for at in visible if at > handset.start}
    assert owed <= handset.store, f"LOSS: {handset.name} has not {sorted(owed - handset.store)}"
    for number, device in enumerate(handset.connections):
        check_connection(device, visible, handset.own[number], handset.rewinds[number])
    for stored, confirmed in handset.looks:
        passed = {at for at in owed if at <= stored} - confirmed
        assert not passed, f"LOSS: the stored cursor {stored} of {handset.name} has passed {sorted(passed)}, not confirmed"


# -- one life -------------------------------------------------------------------------------------------------------------


async def live(story: Story, one: Server, two: Server) -> None:
    alice, bob, cyd = [await one.register(name) for name in ("alice", "bob", "cyd")]
    people = {"alice": alice, "bob": bob, "cyd": cyd}
    group_id = await one.group(alice, bob, cyd)
    owners = [bob, bob, cyd, alice]
    handsets = [Handset(person, f"device-{number}", (one, two), group_id) for number, person in enumerate(owners, start=1)]
    mouths = [await alice.connect("mouth", to=one), await bob.connect("mouth", to=two)]
    with trio.fail_after(40):
        async with trio.open_nursery() as nursery:
            for handset, steps in zip(handsets, story.devices, strict=True):
                nursery.start_soon(play, handset, steps)
            for mouth, talk in zip(mouths, story.talk, strict=True):
                nursery.start_soon(speak, mouth, group_id, talk)
            nursery.start_soon(come_and_go, (replace(alice, server=one), replace(alice, server=two)), group_id, people, story)
        for handset, ending in zip(handsets, story.endings, strict=True):
            await handset.wake()
            await handset.disconnect()
            await handset.connect(0, ending)
        last = (await mouths[0].say(group_id, "the end"))["message_id"]
        for handset in handsets:
            assert handset.now is not None
            await handset.now.live()
            await handset.now.reached(last)
            await handset.look()
    seen = {person.user_id: await visible_to(one, person) for person in people.values()}
    for handset in handsets:
        check_handset(handset, [at for at, _ in seen[handset.person.user_id]])
    for person in people.values():
        check_seqs(seen[person.user_id], group_id)
    for device in [*mouths, *(handset.now for handset in handsets)]:
        if device is not None:
            await device.leave()


async def play(handset: Handset, steps: list[Step]) -> None:
    await handset.connect(0, "own")
    for step in steps:
        await handset.act(step)


async def speak(mouth: Device, group_id: str, talk: list[int]) -> None:
    """Bursts from one connection; bob's are refused while he is out, which is as it should be."""
    for burst in talk:
        for number in range(burst):
            await mouth.send("MESSAGE_SEND", "burst", conversation_id=group_id, content=str(number), client_message_id=new_id())
        for _ in range(burst):
            await mouth.expect(lambda frame: frame.get("request_id") == "burst")


async def come_and_go(admins: tuple[Person, Person], group_id: str, people: dict[str, Person], story: Story) -> None:
    inside = {"bob": True, "cyd": True}
    for name, where in story.members:
        user_id = people[name].user_id
        if inside[name]:
            await admins[where].call("DELETE", f"/api/conversations/{group_id}/participants/{user_id}", expect=204)
        else:
            await admins[where].post(f"/api/conversations/{group_id}/participants", {"user_ids": [user_id]})
        inside[name] = not inside[name]


_ids = count(1)


def new_id() -> str:
    return f"law-{next(_ids)}"


async def visible_to(server: Server, person: Person) -> list[tuple[int, tuple[str, int, int]]]:
    """(message_id, (conversation, stay, seq)) of all that lies in this user's stays: the definition, in SQL."""
    async with server.house.pool.connection() as tx:
        cursor = await tx.execute(
            """select m.message_id, m.conversation_id::text, s.joined_message_id, m.seq from messages m
                join participations s on s.conversation_id = m.conversation_id and s.user_id = %s
                    and m.message_id between s.joined_message_id and coalesce(s.left_message_id, 9007199254740991)
                order by m.message_id""",
            (person.user_id,),
        )
        return [(row[0], (row[1], row[2], row[3])) for row in await cursor.fetchall()]


def check_seqs(seen: list[tuple[int, tuple[str, int, int]]], group_id: str) -> None:
    """Within a stay seq has no gap."""
    by_stay: dict[int, list[int]] = {}
    for _, (conversation_id, stay, seq) in seen:
        if conversation_id == group_id:
            by_stay.setdefault(stay, []).append(seq)
    for seqs in by_stay.values():
        assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))


# -- the servers, once for all examples -----------------------------------------------------------------------------------

Example = Callable[[Server, Server], Awaitable[None]]


@contextmanager
def two_servers(database_url: str, redis_url: str) -> Iterator[Callable[[Example], None]]:
    """Two servers in a Trio run of their own thread; gives what runs an async function there, and raises what it raises."""
    ready: queue.Queue[tuple[trio.lowlevel.TrioToken, Server, Server, trio.Event]] = queue.Queue()

    async def main() -> None:
        settings = settings_for(database_url, redis_url)
        stop = trio.Event()
        async with serving(settings) as one, serving(settings) as two:
            ready.put((trio.lowlevel.current_trio_token(), one, two, stop))
            await stop.wait()

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(trio.run, main)
        token, one, two, stop = ready.get(timeout=20)
        try:
            yield lambda example: trio.from_thread.run(example, one, two, trio_token=token)
        finally:
            trio.from_thread.run_sync(stop.set, trio_token=token)
            running.result(timeout=20)


@pytest.mark.timeout(150)
def test_every_device_gets_exactly_its_users_stays_in_order_whatever_happens(
    database_url: str, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with two_servers(database_url, redis_url) as run:

        @hypothesis.settings(
            max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, phases=[hypothesis.Phase.generate]
        )
        @hypothesis.given(story=STORIES)
        def all_lives(story: Story) -> None:
            async def example(one: Server, two: Server) -> None:
                await live(story, one, two)

            run(example)

        all_lives()
    # Who leaves in the middle of anything is no failure of the server's.
    assert "a connection failed" not in capsys.readouterr().out
