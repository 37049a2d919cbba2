"""Who goes and comes back while the others talk, and who reads: history, and their conversations.

Half of them are torn, half say goodbye; each is away for up to ten seconds. Rule: whoever comes has a token that lives: before it is old
it is renewed, beside the loop, for that may take the server a password hash.
"""

from __future__ import annotations

import random
import time
from array import array
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from types import TracebackType
from typing import Final, Self

from loadtest.crowd import Crowd
from loadtest.latencies import Latencies, count_us
from loadtest.people import Api, Member
from loadtest.target import Target
from loadtest.townsfolk import Town
from loadtest.visitor import Visitor
from loadtest.visits import SECOND_NS, Visits

AWAY_S: Final = (0.2, 10.0)
# An access token lives 15 minutes.
RENEW_AFTER_S: Final = 600.0
READERS: Final = 2
NEVER_NS: Final = 2**63


class Comings:
    """`beat(now)` does what is due and says when something is due again."""

    def __init__(
        self, target: Target, crowd: Crowd, town: Town, visits: Visits, *, goes_per_s: float, reads_per_s: float
    ) -> None:
        self._target = target
        self._crowd = crowd
        self._town = town
        self._visits = visits
        self._every_ns = [int(SECOND_NS / rate) if rate else 0 for rate in (goes_per_s, reads_per_s)]
        self._next_ns = [time.monotonic_ns() if every_ns else NEVER_NS for every_ns in self._every_ns]
        self._chance = random.Random(1837)
        self._threads = ThreadPoolExecutor(READERS)
        self._renewed_at = dict.fromkeys(town.people, time.monotonic())
        self._renewing: list[tuple[Visitor, Future[None]]] = []
        self._reading: list[Future[int]] = []
        self._reads_ns: array[int] = array("q")
        self._gone = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, why: BaseException | None, trace: TracebackType | None) -> None:
        self._threads.shutdown(cancel_futures=True)

    def beat(self, now_ns: int) -> int:
        if self._next_ns[0] <= now_ns:
            self._next_ns[0] += self._every_ns[0]
            self._go_one()
        if self._next_ns[1] <= now_ns:
            self._next_ns[1] += self._every_ns[1]
            self._read_one()
        self._gather()
        return min(self._next_ns)

    def stop(self) -> None:
        """Nobody goes any more; who is away comes back."""
        self._next_ns = [NEVER_NS, NEVER_NS]
        for _, renewing in self._renewing:
            renewing.result()
        self._gather()

    def told(self) -> str:
        return f"{self._gone:,} came back, {len(self._reads_ns):,} read"

    def figures(self) -> dict[str, float]:
        if not self._gone and not self._reads_ns:
            return {}
        return {"went": float(self._gone), "reads": float(len(self._reads_ns)), **Latencies(count_us(self._reads_ns)).figures("read_")}

    def _go_one(self) -> None:
        person = self._chance.choice(self._town.people)
        if not person.is_live:
            return
        self._gone += 1
        if self._chance.random() < 0.5:
            self._visits.cut(person)
        else:
            self._visits.leave(person)
        if self._is_old(person):
            self._renewing.append((person, self._threads.submit(self._renew, person)))
        else:
            self._visits.come_later(person, self._chance.uniform(*AWAY_S))

    def _read_one(self) -> None:
        if len(self._reading) >= 2 * READERS:
            return  # it reads as fast as it is answered
        person = self._chance.choice(self._town.people)
        talk = self._town.group_of[person].conversation_id
        path = self._chance.choice(("/api/conversations", f"/api/conversations/{talk}/messages?limit=50"))
        self._reading.append(self._threads.submit(self._read, person, path))

    def _gather(self) -> None:
        for person, renewing in [each for each in self._renewing if each[1].done()]:
            renewing.result()
            self._renewing.remove((person, renewing))
            self._visits.come([person])
        for reading in [each for each in self._reading if each.done()]:
            self._reads_ns.append(reading.result())
            self._reading.remove(reading)

    # -- in threads -------------------------------------------------------------------------------------------------------

    def _is_old(self, person: Visitor) -> bool:
        return time.monotonic() - self._renewed_at[person] > RENEW_AFTER_S

    def _renew(self, person: Visitor) -> None:
        person.token = self._crowd.renew(Member(person.user_id, person.token))
        self._renewed_at[person] = time.monotonic()

    def _read(self, person: Visitor, path: str) -> int:
        """Nanoseconds that it took, connect and all."""
        if self._is_old(person):
            self._renew(person)
        began_ns = time.monotonic_ns()
        with closing(Api(self._target.url, person.token)) as api:
            api.call("GET", path)
        return time.monotonic_ns() - began_ns
