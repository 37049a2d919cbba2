"""The people of a town, what they talk in, when texts are due, and what must hold in the end.

Each connected person has a partner, and a group of ten with five more who are never there. Rule: a text counts from the moment when it
was due, whenever its person could say it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import psycopg

from loadtest import people
from loadtest.people import Member
from loadtest.progress import bar
from loadtest.target import Broken, Target
from loadtest.visitor import Talk, Visitor
from loadtest.visits import SECOND_NS, Visits

SETTLE_WITHIN_S: Final = 60.0
GROUP_HERE: Final = 10
GROUP_AWAY: Final = 5
# Of the texts, so many are said in groups.
IN_GROUPS: Final = 0.25
_STORED: Final = """select conversation_id::text, array_agg(message_id order by seq) from messages
    where conversation_id = any(%s::uuid[]) and message_type = 'text' group by 1"""


class Tune:
    """When texts are due: at `rate` a second, and at `burst_rate` for the last `burst_s` of each `burst_every_s`."""

    def __init__(self, rate: float, burst_rate: float, burst_s: float, burst_every_s: float) -> None:
        self._rate = rate
        self._burst_rate = burst_rate
        self._quiet_ns = int(max(0.0, burst_every_s - burst_s) * SECOND_NS)
        self._every_ns = int(burst_every_s * SECOND_NS)
        self._began_ns = 0
        self.next_ns = 0
        # By whether it was a burst: what was acknowledged meanwhile, and how long that was.
        self._acknowledged = {False: 0, True: 0}
        self._took_ns = {False: 0, True: 0}
        self._noted = 0, 0

    def begin(self, now_ns: int, acknowledged: int = 0) -> None:
        self._began_ns = self.next_ns = now_ns
        self._noted = now_ns, acknowledged

    def is_burst(self, at_ns: int) -> bool:
        return (at_ns - self._began_ns) % self._every_ns >= self._quiet_ns

    def turns_in_s(self, at_ns: int) -> float:
        """Until a burst begins or ends."""
        into_ns = (at_ns - self._began_ns) % self._every_ns
        return ((self._quiet_ns if into_ns < self._quiet_ns else self._every_ns) - into_ns) / SECOND_NS

    def due(self, now_ns: int) -> Iterator[int]:
        while self.next_ns <= now_ns:
            due_ns = self.next_ns
            self.next_ns += int(SECOND_NS / (self._burst_rate if self.is_burst(due_ns) else self._rate))
            yield due_ns

    def note(self, now_ns: int, acknowledged: int) -> None:
        """So many were acknowledged until now; no burst began or ended since the last time."""
        from_ns, before = self._noted
        self._noted = now_ns, acknowledged
        is_burst = self.is_burst(from_ns)
        self._acknowledged[is_burst] += acknowledged - before
        self._took_ns[is_burst] += now_ns - from_ns

    def figures(self) -> dict[str, float]:
        names = {False: "acknowledged_per_s", True: "burst_acknowledged_per_s"}
        return {name: self._acknowledged[kind] / took_ns * SECOND_NS for kind, name in names.items() if (took_ns := self._took_ns[kind])}


class Town:
    """`people`: those who are connected, from time to time; `members`: all who are registered, those first."""

    def __init__(self, target: Target, people: list[Visitor], members: list[Member], visits: Visits, text_bytes: int) -> None:
        self.people = people
        self.said = 0
        self._target = target
        self._visits = visits
        self._text_bytes = text_bytes
        self._chance = random.Random(1815)
        self.pair_of: dict[Visitor, Talk] = {}
        self.group_of: dict[Visitor, Talk] = {}
        self._make_pairs(members)
        self._make_groups(members)
        self.talks = {talk.conversation_id: talk for talk in (*self.pair_of.values(), *self.group_of.values())}

    def _make_pairs(self, members: list[Member]) -> None:
        for at, talk in enumerate(self._made("pairs", [members[at : at + 2] for at in range(0, len(self.people) - 1, 2)])):
            self.pair_of |= dict.fromkeys(self.people[2 * at : 2 * at + 2], talk)

    def _make_groups(self, members: list[Member]) -> None:
        here, absent = len(self.people), members[len(self.people) :]
        starts = range(0, here - 1, GROUP_HERE)
        parties = [
            members[at : min(at + GROUP_HERE, here)] + absent[number * GROUP_AWAY : (number + 1) * GROUP_AWAY]
            for number, at in enumerate(starts)
        ]
        for at, talk in zip(starts, self._made("groups", parties), strict=True):
            self.group_of |= dict.fromkeys(self.people[at : at + GROUP_HERE], talk)

    def _made(self, what: str, parties: list[list[Member]]) -> list[Talk]:
        def make(party: list[Member]) -> Talk:
            make_one = people.make_group if what == "groups" else lambda url, party: people.make_pair(url, *party)
            return Talk(make_one(self._target.url, party))

        made = []
        with ThreadPoolExecutor(people.AT_ONCE) as threads, bar(what, len(parties), what) as shown:
            for talk in threads.map(make, parties):
                made.append(talk)
                shown.update(1)
        return made

    def say(self, due_ns: int) -> None:
        """One text, by somebody who is live; by nobody if chance finds nobody."""
        for speaker in self._chance.choices(self.people, k=10):
            if speaker.is_live:
                is_group = speaker not in self.pair_of or self._chance.random() < IN_GROUPS
                talk = (self.group_of if is_group else self.pair_of)[speaker]
                self._visits.say(speaker, speaker.say(talk, due_ns, self._text_bytes))
                self.said += 1
                return

    def acknowledged(self) -> int:
        return sum(len(talk.acknowledged) for talk in self.talks.values())

    # -- the end ----------------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """All are there, and have every text. Raises Broken if that is not so in time."""

        def is_said() -> bool:
            return self._visits.live == len(self.people) and not any(person.opens for person in self.people)

        if not self._visits.run(SETTLE_WITHIN_S, is_said):
            raise Broken(f"devices or acks were missing {SETTLE_WITHIN_S:g} s after the last text")
        wanted = [(person, ids[-1]) for person in self.people if (ids := self._wanted(person))]
        if not self._visits.run(SETTLE_WITHIN_S, lambda: all(person.position >= newest for person, newest in wanted)):
            raise Broken(f"texts were missing {SETTLE_WITHIN_S:g} s after the last one")

    def check(self) -> dict[str, float]:
        """Counts, and shares of what was acknowledged; where the database cannot be asked, without what is stored."""
        arrived = wanted = 0
        for person in self.people:
            own, ids = set(person.acknowledged), self._wanted(person)
            if [message_id for message_id in person.arrived if message_id not in own] != ids:
                raise Broken(f"{person.user_id} got {len(person.arrived)} texts where {len(ids)} were said by others, or not in order")
            arrived, wanted = arrived + len(ids), wanted + len(ids)
        acknowledged = self.acknowledged()
        figures = {
            "acknowledged": float(acknowledged),
            "repeated": float(sum(person.repeats for person in self.people)),
            "delivered_share": arrived / max(wanted, 1),
        }
        if self._target.database_url is not None:
            figures["stored_share"] = self._stored(self._target.database_url) / max(acknowledged, 1)
        return figures

    def _wanted(self, person: Visitor) -> list[int]:
        """What others said where this one is a member, in order."""
        talks = {talk.conversation_id: talk for talk in (self.pair_of.get(person), self.group_of[person]) if talk is not None}
        return sorted({message_id for talk in talks.values() for message_id in talk.acknowledged} - set(person.acknowledged))

    def _stored(self, database_url: str) -> int:
        rows = self._rows(database_url)
        for conversation_id, talk in self.talks.items():
            stored = rows.get(conversation_id, [])
            if stored != sorted(talk.acknowledged):
                raise Broken(f"{len(talk.acknowledged)} texts of a conversation were acknowledged, {len(stored)} are stored")
        return sum(map(len, rows.values()))

    def _rows(self, database_url: str) -> dict[str, list[int]]:
        with psycopg.connect(database_url) as connection:
            return dict(connection.execute(_STORED, (list(self.talks),)).fetchall())
