"""How much the server does for one user, at once and in a time, on however many connections.

Rule: who asks for more waits behind their own, never before others; what is taken is given back exactly once; and nobody is
remembered who asks for nothing.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from uuid import UUID

import trio


class Turns:
    """At most `at_once` of each user; those who wait come in order."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._busy: dict[UUID, int] = {}
        self._waiting: dict[UUID, deque[trio.Event]] = {}

    async def take(self, user_id: UUID) -> None:
        """Wait for a turn. Cancelled, none is taken. With one at hand there is no checkpoint."""
        busy = self._busy.get(user_id, 0)
        if busy < self._at_once:
            self._busy[user_id] = busy + 1
            return
        line = self._waiting.setdefault(user_id, deque())
        called = trio.Event()
        line.append(called)
        try:
            await called.wait()
        except trio.Cancelled:
            # Cancelled, it stays in line until it runs: it may be called before that.
            if called.is_set():
                self.give_back(user_id)
            else:
                self._leave(user_id, called)
            raise

    def give_back(self, user_id: UUID) -> None:
        """A turn has ended; the next in line has it. Does not await."""
        line = self._waiting.get(user_id)
        if line:
            called = line[0]
            self._leave(user_id, called)
            called.set()
            return
        self._busy[user_id] -= 1
        if not self._busy[user_id]:
            del self._busy[user_id]

    def _leave(self, user_id: UUID, called: trio.Event) -> None:
        line = self._waiting[user_id]
        line.remove(called)
        if not line:
            del self._waiting[user_id]

    @asynccontextmanager
    async def turn(self, user_id: UUID) -> AsyncIterator[None]:
        await self.take(user_id)
        try:
            yield
        finally:
            self.give_back(user_id)


class Allowance:
    """So many at once of each user (`most`), then `per_s`. `clock` gives seconds. Nothing here awaits."""

    def __init__(self, *, most: float, per_s: float, clock: Callable[[], float]) -> None:
        self._most = most
        self._per_s = per_s
        self._clock = clock
        # What each had left, and when; whoever asked longest ago comes first.
        self._left: OrderedDict[UUID, tuple[float, float]] = OrderedDict()

    def spend(self, user_id: UUID) -> float:
        """Take one: 0.0. Or none, and how many seconds it is until there is one."""
        now = self._clock()
        while self._left and now - next(iter(self._left.values()))[1] > self._most / self._per_s:
            self._left.popitem(last=False)
        left, at = self._left.get(user_id, (self._most, now))
        left = min(self._most, left + (now - at) * self._per_s)
        if left < 1:
            return (1 - left) / self._per_s
        self._left[user_id] = (left - 1, now)
        self._left.move_to_end(user_id)
        return 0.0
