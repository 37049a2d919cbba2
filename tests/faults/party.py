"""Four people with six devices, who talk in a pair, in another pair and in a group of all, at a bounded rate, into one ledger.

alice and bob have two devices each; dan's phone and bob's laptop take "queued" for the end and repeat nothing that was queued.
Rule: a check is made of a party that has fallen silent: whatever was said is answered, and every device has read up to the newest.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import trio

from tests.faults.accounts import Door, SignedIn, login, register
from tests.faults.devices import Device
from tests.faults.ledger import Entry, Ledger

PASSWORD = "Wonderland-1865"
MOST_WAITING = 16
LIVE_WITHIN_S = 40.0
WORDS = ("tea", "time", "hat", "rabbit", "queen", "croquet", "flamingo", "smoke", "grin", "cat", "late", "jam", "tomorrow")


@dataclass(eq=False)
class Party:
    """`run` is everybody's life; `talks` lets them speak. `rate`: texts a second of each device."""

    people: Sequence[SignedIn]
    devices: Sequence[Device]
    ledger: Ledger
    rng: random.Random
    rate: float
    acknowledged: int = 0
    talks: bool = False
    _conversations: dict[str, list[str]] = field(default_factory=dict)
    _histories: dict[tuple[str, str], list[Entry]] = field(default_factory=dict)
    _news: trio.Event = field(default_factory=trio.Event)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. Started once every device is live."""
        async with trio.open_nursery() as nursery:
            for device in self.devices:
                nursery.start_soon(device.run)
            with trio.fail_after(LIVE_WITHIN_S):
                while not all(device.is_live for device in self.devices):
                    await trio.sleep(0.02)
            task_status.started()
            for device in self.devices:
                nursery.start_soon(self._write, device, random.Random(self.rng.random()))

    async def _write(self, device: Device, rng: random.Random) -> None:
        while True:
            await trio.sleep(rng.expovariate(self.rate))
            if self.talks:
                self._say(device, rng)

    def burst(self, texts: int) -> None:
        """Everybody says that many at once, so that some are under way whatever happens next."""
        for device in self.devices:
            for _ in range(texts):
                self._say(device, self.rng)

    def _say(self, device: Device, rng: random.Random) -> None:
        if len(device.outbox) < MOST_WAITING:
            words = " ".join(rng.choices(WORDS, k=rng.randint(1, 30)))
            device.write(rng.choice(self._conversations[device.person.user_id]), words)

    def on_sent(self) -> None:
        self.acknowledged += 1
        self._news.set()

    async def acknowledge(self, more: int, within_s: float) -> bool:
        """Wait for that many more texts to be acknowledged as sent; False if they were not within that time."""
        wanted = self.acknowledged + more
        with trio.move_on_after(within_s):
            while self.acknowledged < wanted:
                self._news = trio.Event()
                await self._news.wait()
            return True
        return False

    async def queue(self, more: int, within_s: float) -> bool:
        """Wait for that many more texts to be answered "queued"; False if they were not, as without Redis they are not."""
        wanted = self.ledger.counts["queued"] + more
        with trio.move_on_after(within_s):
            while self.ledger.counts["queued"] < wanted:
                await trio.sleep(0.001)
            return True
        return False

    async def settle(self, within_s: float) -> list[str]:
        """Fall silent, and wait until nothing is under way. What still was after that time, in words."""
        self.talks = False
        with trio.move_on_after(within_s):
            while self.under_way():
                for device in self.devices:
                    device.ping()
                await trio.sleep(0.05)
        return self.under_way()

    def under_way(self) -> list[str]:
        """What is not answered or has not arrived, in words."""
        newest = self.ledger.newest_sent
        found = [f"{device.name} is not live" for device in self.devices if not device.is_live]
        found += [
            f"{device.name} waits for {len(device.outbox)} answers, the first for {next(iter(device.outbox))}"
            for device in self.devices
            if device.outbox
        ]
        found += [f"{device.name} has read up to {device.cursor} of {newest}" for device in self.devices if device.cursor < newest]
        return found + [f"{text.client_id} was queued and has come to nobody" for text in self.ledger.unseen()]

    async def check(self, *, from_the_start: bool) -> list[str]:
        """The ledger's judgement, for a party that is silent. Reads the histories on, or all of them anew."""
        if from_the_start:
            self._histories.clear()

        async def read(person: SignedIn, conversation_id: str) -> None:
            known = self._histories.setdefault((person.user_id, conversation_id), [])
            known += await person.history(conversation_id, known[-1].message_id if known else 0)

        async with trio.open_nursery() as nursery:
            for person in self.people:
                for conversation_id in self._conversations[person.user_id]:
                    nursery.start_soon(read, person, conversation_id)
        return self.ledger.judge(self._histories)

    async def undelivered(self, within_s: float) -> list[str]:
        """After a check: whose delivered watermark does not come to reach the newest text of somebody else, in words."""
        found = ["nobody was asked"]
        with trio.move_on_after(within_s):
            while found:
                found = [fault for conversation_id in self.ledger.members async for fault in self._behind(conversation_id)]
                await trio.sleep(0.05)
        return found

    async def _behind(self, conversation_id: str) -> AsyncIterator[str]:
        asker = next(person for person in self.people if person.user_id in self.ledger.members[conversation_id])
        history = self._histories[asker.user_id, conversation_id]
        view = await asker.call("GET", f"/api/conversations/{conversation_id}")
        for participant in view["participants"]:
            newest = max((entry.message_id for entry in history if entry.sender_id != participant["user_id"]), default=0)
            reached = participant["last_delivered_message_id"] or 0
            if reached < newest:
                yield f"{participant['username']} has message {newest} of {conversation_id}, and is said to have got up to {reached}"


async def gather(door: Door, *, seed: int, rate: float) -> Party:
    """The party, made over HTTP; nobody is connected yet."""
    rng = random.Random(seed)
    run = secrets.token_hex(3)
    alice, bob, cyd, dan = people = [await register(door, f"{name}_{run}", "phone", PASSWORD) for name in ("alice", "bob", "cyd", "dan")]
    others = [await login(door, person.username, "laptop", PASSWORD) for person in (alice, bob)]
    members: dict[str, list[str]] = {}
    for one, other in ((alice, bob), (cyd, dan)):
        made = await one.call("POST", "/api/conversations", {"type": "one_on_one", "participant_ids": [other.user_id]})
        members[made["conversation_id"]] = [one.user_id, other.user_id]
    tea = {"type": "group", "name": "tea", "participant_ids": [person.user_id for person in people[1:]]}
    made = await alice.call("POST", "/api/conversations", tea)
    members[made["conversation_id"]] = [person.user_id for person in people]

    signed_in = [*people, *others]
    ledger = Ledger(members, {f"{person.username}/{person.device_id}": person.user_id for person in signed_in})
    devices: list[Device] = []
    party = Party(people, devices, ledger, rng, rate)
    ports = [urlsplit(url).port or 0 for url in door.urls]
    for person in signed_in:
        own = random.Random(rng.random())
        devices.append(Device(person, ledger, ports, own, on_sent=party.on_sent, forgets_queued=person in (dan, others[1])))
    for conversation_id, user_ids in members.items():
        for user_id in user_ids:
            party._conversations.setdefault(user_id, []).append(conversation_id)
    return party
