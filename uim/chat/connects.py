"""Connections that begin at the same time begin together: one transaction raises the cursors of all of them.

After a restart everybody comes at once, and what a connect asks of the database (its cursor, its user's blocks, how far it is
behind) costs the same for sixty of them as for one. Rule: what a connect's cursor passes over counts as delivered, in the same
transaction, for nobody would deliver it again; and one that cannot begin keeps no other from it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import trio

from uim.chat.blocks import Blocks
from uim.chat.bus import Bus, Kept
from uim.chat.receipts import Receipts
from uim.errors import UIMError
from uim.store import cursors, messages, receipts
from uim.store.postgres import Connection, Pool
from uim.store.receipts import Advance

MOST_AT_ONCE: Final = 64
# After a batch of so many there are many more: a moment more of them share the next.
CROWD: Final = 4
GATHER_S: Final = 0.01
# A transaction that takes longer to begin has met a database that hung.
SOON_S: Final = 0.05
MAX_BEHIND: Final = 10_000


@dataclass(frozen=True, slots=True)
class Connect:
    """A connection of that device, which came at `came_at` (Trio's clock), or a rewind or skip (`asked`) of one that has
    opened before (`came_at` None). `replaced`: the sessions that it is known to have replaced."""

    user_id: UUID
    device_id: str
    asked: int | None
    session_id: UUID | None = None
    came_at: float | None = None
    replaced: tuple[UUID, ...] = ()

    def opening(self, now: float) -> cursors.Opening:
        waited_s = now - self.came_at if self.came_at is not None else None
        opener = cursors.Opener(self.session_id, waited_s, self.replaced) if self.session_id is not None else None
        return cursors.Opening(self.user_id, self.device_id, self.asked, opener)


@dataclass(frozen=True, slots=True)
class Begun:
    """The cursor as it is now, and how many entries are to come (counted to MAX_BEHIND)."""

    opened: cursors.Opened
    behind: int


class _Waiting:
    __slots__ = ("connect", "has_left", "outcome", "settled")

    def __init__(self, connect: Connect) -> None:
        self.connect = connect
        self.has_left = False
        self.outcome: Begun | Exception | None = None
        self.settled = trio.Event()

    def settle(self, outcome: Begun | Exception) -> None:
        self.outcome = outcome
        self.settled.set()


class Connects:
    """One a process; `run` is its task. As many wait here as have their turn to open (live/arrivals.py)."""

    def __init__(self, pool: Pool, bus: Bus, receipts: Receipts, blocks: Blocks) -> None:
        self._pool = pool
        self._bus = bus
        self._receipts = receipts
        self._blocks = blocks
        self._line: deque[_Waiting] = deque()
        self._wake = trio.Event()

    async def begin(self, connect: Connect) -> Begun:
        """Raise that device's connection_no, and know its user's blocks.

        Raises UIMError `unavailable` and `session_ended`, and cursors.Overtaken where the device has come again since.
        Cancelled before that it has not happened; meanwhile, it may have.
        """
        # One that was replaced before it began must not begin any more: the row would say that it came last.
        await trio.lowlevel.checkpoint_if_cancelled()
        waiting = _Waiting(connect)
        self._line.append(waiting)
        self._wake.set()
        try:
            await waiting.settled.wait()
        finally:
            waiting.has_left = True
        if isinstance(waiting.outcome, Begun):
            return waiting.outcome
        assert waiting.outcome is not None
        raise waiting.outcome

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Batch by batch, until cancelled."""
        task_status.started()
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            while batch := self._next():
                await self._settle(batch)
                if len(batch) >= CROWD:
                    await trio.sleep(GATHER_S)

    def _next(self) -> list[_Waiting]:
        """Who waits longest, each of another device: a statement changes no row twice."""
        taken: dict[tuple[UUID, str], _Waiting] = {}
        again: list[_Waiting] = []
        while self._line and len(taken) < MOST_AT_ONCE:
            waiting = self._line.popleft()
            device = (waiting.connect.user_id, waiting.connect.device_id)
            if device in taken:
                again.append(waiting)
            elif not waiting.has_left:
                taken[device] = waiting
        self._line.extendleft(reversed(again))
        return list(taken.values())

    async def _settle(self, batch: list[_Waiting]) -> None:
        try:
            outcomes = await self._begin([waiting.connect for waiting in batch])
        except UIMError as refused:
            for waiting in batch:
                waiting.settle(UIMError(refused.code, refused.message, retry_after_s=refused.retry_after_s))
        except Exception as bug:  # each connection's own error boundary meets it
            if len(batch) == 1:
                batch[0].settle(bug)
                return
            for waiting in batch:
                await self._settle([waiting])
        else:
            for waiting, outcome in zip(batch, outcomes, strict=True):
                waiting.settle(outcome)

    async def _begin(self, connects: Sequence[Connect]) -> list[Begun | Exception]:
        found = await self._open(connects)
        positions = [
            (connect.user_id, opened.at)
            for connect, opened in zip(connects, found, strict=True)
            if isinstance(opened, cursors.Opened)
        ]
        if not positions:
            return [opened for opened in found if not isinstance(opened, cursors.Opened)]
        async with self._pool.connection() as tx:
            await self._blocks.learn(tx, {user_id for user_id, _ in positions})
            behind = iter(await messages.count_after(tx, positions, limit=MAX_BEHIND))
        return [Begun(opened, next(behind)) if isinstance(opened, cursors.Opened) else opened for opened in found]

    async def _open(self, connects: Sequence[Connect]) -> list[cursors.Opened | cursors.Overtaken | UIMError]:
        advances: list[Advance] = []
        kept: Kept | None = None
        before = trio.current_time()
        try:
            async with self._pool.transaction() as tx:
                found = await cursors.open_cursors(tx, [connect.opening(_when_begun(before)) for connect in connects])
                advances = await self._deliver_passed(tx, connects, found)
                kept = await self._bus.keep_receipts(tx, advances, {})
        except BaseException:
            self._bus.doubt(kept)
            raise
        self._receipts.tell(advances, {})
        self._bus.say(kept)
        return found

    async def _deliver_passed(
        self, tx: Connection, connects: Sequence[Connect], found: Sequence[cursors.Opened | Exception]
    ) -> list[Advance]:
        spans = [
            (connect.user_id, opened.was, opened.at)
            for connect, opened in zip(connects, found, strict=True)
            if isinstance(opened, cursors.Opened) and opened.at > opened.was
        ]
        if not spans:
            return []
        reached = await receipts.newest_between(tx, spans)
        return await receipts.advance(tx, {key: (message_id, 0) for key, message_id in reached.items()})


def _when_begun(before: float) -> float:
    """When the database took its own time for a transaction that has begun since `before`.

    `before`, mostly: by the database's clock nobody came sooner than they did then, so whoever comes once an earlier connection of its
    device is open is never taken for the older one. Where it hung, now: nobody came later, and one that waited for it here does not
    replace a later one that was opened elsewhere meanwhile. At worst it is told to come again.
    """
    now = trio.current_time()
    return before if now - before < SOON_S else now
