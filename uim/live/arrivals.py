"""The way in: how many sessions open at once, how fast, who waits in line, and when whoever is sent away comes back.

Opening a session is work for the database (who it is, its cursor, its blocks, what it is behind), and after a restart everybody
comes at once. Rule: first come, first served, one after the other and not all a little: half of a crowd is in after half the time.
Nobody waits in line longer than a client has patience; whoever would is told so at once, with a time to come back at which there
is room.
"""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from typing import Final
from uuid import UUID

import trio

# As many as one transaction takes (chat/connects.py).
AT_ONCE: Final = 64
# A ceiling: a quicker machine, too, keeps its database for those who talk.
OPENINGS_PER_S: Final = 1_500.0
# Who is sent away costs something too, and comes again. Seen on a machine four times too busy, with 6 s: 1,000 at once were live
# after 11 s when all had their turn in time, after 30 s when half were sent away. Longer than this a client has no patience.
WAIT_S: Final = 15.0
# More than this could not be let in within WAIT_S anyway.
MAX_WAITING: Final = 3_000
# Below what is opened in a second even on a busy machine: there are those, too, who come without having been told when.
RETURNS_PER_S: Final = 250.0
LEAST_RETURN_S: Final = 1.0
RETURN_WITHIN_S: Final = 5.0
MOST_RETURN_S: Final = 60.0


class OverCapacity(Exception):
    """There is no turn within the time that one may wait for it."""


class Turn:
    """Leave to open a session, until the end of a `with`, or `end`."""

    def __init__(self, places: trio.Semaphore) -> None:
        self._places: trio.Semaphore | None = places

    def end(self) -> None:
        """Let the next one begin. A second call does nothing."""
        places, self._places = self._places, None
        if places is not None:
            places.release()

    def __enter__(self) -> Turn:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


class Arrivals:
    """One a process. `at_once`: sessions that may be opening at the same time; `per_user`: of one user's that may wait."""

    def __init__(
        self,
        *,
        at_once: int = AT_ONCE,
        per_user: int,
        randomness: random.Random,
        per_s: float = OPENINGS_PER_S,
        wait_s: float = WAIT_S,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self._places = trio.Semaphore(at_once)
        self._per_user = per_user
        self._randomness = randomness
        self._between_s = 1.0 / per_s
        self._wait_s = wait_s
        self._max_waiting = max_waiting
        self._line: set[trio.CancelScope] = set()
        self._of_user: Counter[UUID] = Counter()
        self._next_at = 0.0
        self._next_return_at = 0.0
        self._is_closed = False
        self._leaving = trio.Lock()
        # For metrics: a plain number, read at a scrape.
        self.sent_away = 0

    @property
    def waiting(self) -> int:
        return len(self._line)

    async def turn(self, user_id: UUID) -> Turn:
        """This user's next turn. Raises OverCapacity if there is none in time. Cancelled, none is taken."""
        if self._is_closed or self.waiting >= self._max_waiting or self._of_user[user_id] >= self._per_user:
            raise OverCapacity
        turn = await self._stand_in_line(user_id)
        now = trio.current_time()
        begin_at = max(now, self._next_at)
        self._next_at = begin_at + self._between_s
        if begin_at > now:
            try:
                await trio.sleep_until(begin_at)
            except trio.Cancelled:
                turn.end()
                raise
        return turn

    async def _stand_in_line(self, user_id: UUID) -> Turn:
        if not self._line:
            with suppress(trio.WouldBlock):
                self._places.acquire_nowait()
                return Turn(self._places)
        with trio.move_on_after(self._wait_s) as patience:
            self._line.add(patience)
            self._of_user[user_id] += 1
            try:
                await self._places.acquire()  # its line is first in, first out
            finally:
                self._line.discard(patience)
                self._of_user[user_id] -= 1
                if not self._of_user[user_id]:
                    del self._of_user[user_id]
            return Turn(self._places)
        raise OverCapacity

    async def departure(self) -> None:
        """Of many whose peers have gone at once one returns in each turn of the loop: to end takes 0.4 ms, and others talk."""
        async with self._leaving:
            pass  # handed on in this turn, and its next owner runs in the next

    def close(self) -> None:
        """No more turns, and the line is dissolved: the server stops."""
        self._is_closed = True
        for patience in self._line:
            patience.cancel()

    # -- those who are sent away ------------------------------------------------------------------------------------------

    def words(self) -> str:
        """The reason of a closing frame that sends somebody away for now."""
        return f"retry_after_ms={round(self.comes_back_in_s() * 1000)}"

    def comes_back_in_s(self) -> float:
        """Seconds after which one who is sent away shall come back; each call is another one's.

        Over RETURN_WITHIN_S at random, as long as those told lately find room in that; then later and later, in turn.
        """
        self.sent_away += 1
        now = trio.current_time()
        behind_s = max(0.0, self._next_return_at - now)
        self._next_return_at = now + behind_s + 1.0 / RETURNS_PER_S
        if LEAST_RETURN_S + behind_s < RETURN_WITHIN_S:
            return self._randomness.uniform(LEAST_RETURN_S, RETURN_WITHIN_S)
        return min(LEAST_RETURN_S + behind_s, MOST_RETURN_S) * self._randomness.uniform(0.9, 1.1)
