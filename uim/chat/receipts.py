"""Receipts and cursors, written behind: what devices confirm, gathered for up to 50 ms, stored in one batch, then told.

Rule: a batch stores its receipts before its cursors, for a cursor that is past an entry says that nobody will redeliver it.
What a kill loses (at most what was gathered since the last batch) comes again by redelivery (storage.md §2).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final
from uuid import UUID

import trio

from uim.chat.bus import Bus, Kept
from uim.chat.outbox import Outbox
from uim.chat.switchboard import Switchboard
from uim.chat.words import Unread
from uim.errors import Cut, UIMError, not_found
from uim.log import get_logger
from uim.model.ids import rfc3339
from uim.store import conversations, cursors, receipts
from uim.store.postgres import Connection, Pool
from uim.store.receipts import Advance

GATHER_S: Final = 0.05
REST_S: Final = 0.5
FLUSH_WITHIN_S: Final = 5.0
# Devices are told in turns of so many: between them messages pass.
TOLD_AT_ONCE: Final = 8

log = get_logger(__name__)

# Of how many (conversation, user) it is known what their devices here were last told; of more, an older one may come last.
MAX_READS: Final = 10_000

Marks = dict[tuple[UUID, UUID], tuple[int, int]]
Moves = dict[tuple[UUID, str], cursors.Move]


class Receipts:
    """One a process. What is stored is told here and, by the bus, at the other processes."""

    def __init__(self, pool: Pool, switchboard: Switchboard, bus: Bus) -> None:
        self._pool = pool
        self._switchboard = switchboard
        self._bus = bus
        self._marks: Marks = {}
        self._moves: Moves = {}
        # Up to where a reader's own devices here were last told that it has read.
        self._own_reads: OrderedDict[tuple[UUID, UUID], int] = OrderedDict()
        self._wake = trio.Event()
        # Set when the batch that is being gathered is stored; those of batches that failed, while somebody waits for them.
        self._stored = trio.Event()
        self._failed: list[trio.Event] = []
        self._is_cut_off = False
        self._closing = False
        self.drained = trio.Event()

    # -- for connections; nothing here awaits -----------------------------------------------------------------------------

    def confirmed(self, outbox: Outbox, message_id: int) -> None:
        """The device has everything up to `message_id` (already checked to be within what it was sent)."""
        for conversation_id, reached in outbox.confirm(message_id).items():
            self._mark(conversation_id, outbox.user_id, delivered=reached)
        self.keep_cursor(outbox, message_id)

    def keep_cursor(self, outbox: Outbox, message_id: int) -> None:
        """Store that device's cursor with the next batch."""
        waiting = self._moves.get((outbox.user_id, outbox.device_id))
        if waiting is not None and waiting.connection_no == outbox.connection_no and waiting.message_id >= message_id:
            return
        self._moves[outbox.user_id, outbox.device_id] = cursors.Move(
            outbox.user_id, outbox.device_id, outbox.connection_no, message_id
        )
        self._wake.set()

    def read(self, user_id: UUID, conversation_id: UUID, up_to: int) -> None:
        """That user has read up to there; stored and told with the next batch."""
        self._mark(conversation_id, user_id, read=up_to)

    def _mark(self, conversation_id: UUID, user_id: UUID, *, delivered: int = 0, read: int = 0) -> None:
        was = self._marks.get((conversation_id, user_id), (0, 0))
        self._marks[conversation_id, user_id] = (max(was[0], delivered), max(was[1], read))
        self._wake.set()

    # -- the task ---------------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Store what is gathered until closed; the last batch is stored before it returns."""
        task_status.started()
        while not self._closing:
            await self._wake.wait()
            if not self._closing:
                await trio.sleep(GATHER_S)
            try:
                await self.flush()
                self._is_cut_off = False
            except UIMError as refused:
                if refused.code != "unavailable":
                    raise
                # Once: it may be tried for hours.
                if not self._is_cut_off:
                    log.warning("receipts wait for the database", receipts=len(self._marks), cursors=len(self._moves))
                self._is_cut_off = True
                if not self._closing:
                    await trio.sleep(REST_S)
        self.drained.set()

    def close(self) -> None:
        self._closing = True
        self._wake.set()

    async def flush(self) -> None:
        """One batch: receipts, then cursors. When the database is away all of it is kept for the next try."""
        marks, self._marks = self._marks, {}
        moves, self._moves = self._moves, {}
        stored, self._stored = self._stored, trio.Event()
        self._wake = trio.Event()
        try:
            await self._store(marks)
        except BaseException:
            self._keep(marks, moves)
            self._failed = [event for event in (*self._failed, stored) if event.statistics().tasks_waiting]
            raise
        stored.set()
        while self._failed:
            self._failed.pop().set()
        try:
            replaced = await self._move(moves)
        except BaseException:
            self._keep({}, moves)
            raise
        for device in replaced:
            self._cut_replaced(*device, moves[device].connection_no)

    async def _store(self, marks: Marks) -> None:
        """Store and tell. The others' word is kept in the same transaction, so that what is stored is told."""
        if not marks:
            return
        kept: Kept | None = None
        try:
            async with self._pool.transaction() as tx:
                advances = await receipts.advance(tx, marks)
                unread = await self._unread(tx, advances)
                kept = await self._bus.keep_receipts(tx, advances, unread)
        except BaseException:
            self._bus.doubt(kept)
            raise
        # The list first: who is here may change between the turns.
        for number, say in enumerate(list(self._said(advances, unread))):
            if number % TOLD_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
            say()
        self._bus.say(kept)

    async def _move(self, moves: Moves) -> set[tuple[UUID, str]]:
        # Not in the transaction before it: a connect holds the cursor's row while it waits for the participants'.
        if not moves:
            return set()
        async with self._pool.connection() as tx:
            return await cursors.move(tx, list(moves.values()))

    def _keep(self, marks: Marks, moves: Moves) -> None:
        for (conversation_id, user_id), (delivered, read) in marks.items():
            self._mark(conversation_id, user_id, delivered=delivered, read=read)
        self._moves = {**moves, **self._moves}
        self._wake.set()

    def _cut_replaced(self, user_id: UUID, device_id: str, connection_no: int) -> None:
        for outbox in self._switchboard.of_user(user_id):
            if outbox.device_id == device_id and outbox.connection_no == connection_no:
                outbox.cut(Cut.REPLACED)
                return

    async def _unread(self, tx: Connection, advances: list[Advance]) -> Unread:
        """The unread count of each (conversation, user) that was read in."""
        read: dict[UUID, list[UUID]] = {}
        for a in advances:
            if a.kind == "read":
                read.setdefault(a.user_id, []).append(a.conversation_id)
        found: dict[tuple[UUID, UUID], int] = {}
        for user_id, conversation_ids in read.items():
            for conversation_id, left in (
                await conversations.unread(tx, user_id=user_id, conversation_ids=conversation_ids)
            ).items():
                found[conversation_id, user_id] = left
        return found

    def tell(self, advances: list[Advance], unread: Unread) -> None:
        """To the senders here whose texts were reached, and of one's own reads to one's own devices here. Does not await."""
        for say in self._said(advances, unread):
            say()

    def _said(self, advances: list[Advance], unread: Unread) -> Iterator[Callable[[], None]]:
        """What is to be told, a device at a time."""
        to_senders: dict[tuple[UUID, UUID, str], list[dict[str, object]]] = {}
        for a in advances:
            receipt: dict[str, object] = {"user_id": a.user_id, "after": a.after, "message_id": a.up_to, "at": rfc3339(a.at)}
            for sender_id in a.senders:
                if self._switchboard.is_here(sender_id):
                    to_senders.setdefault((sender_id, a.conversation_id, a.kind), []).append(receipt)
            if a.kind == "read" and self._switchboard.is_here(a.user_id) and self._is_newest_read(a):
                for outbox in self._switchboard.of_user(a.user_id):
                    left = unread.get((a.conversation_id, a.user_id), 0)
                    yield partial(outbox.receipts, a.conversation_id, "read", [receipt], unread_count=left)
        for (sender_id, conversation_id, kind), gathered in to_senders.items():
            for outbox in self._switchboard.of_user(sender_id):
                yield partial(outbox.receipts, conversation_id, kind, gathered)

    def _is_newest_read(self, a: Advance) -> bool:
        """An older one, that has come late by the bus, would bring back an older count."""
        key = (a.conversation_id, a.user_id)
        if a.up_to < self._own_reads.get(key, 0):
            return False
        self._own_reads[key] = a.up_to
        self._own_reads.move_to_end(key)
        if len(self._own_reads) > MAX_READS:
            self._own_reads.popitem(last=False)
        return True

    # -- over HTTP --------------------------------------------------------------------------------------------------------

    async def settled(self) -> None:
        """Return once all that was gathered until now is stored, under the settings of now; else raises `unavailable`."""
        self._wake.set()
        await self._within_reach(self._stored)

    async def read_now(self, *, user_id: UUID, conversation_id: UUID, up_to: int) -> None:
        """Store a read mark and return after the commit. Raises not_found for a conversation that is not one's own."""
        async with self._pool.connection() as tx:
            if not await conversations.is_member(tx, user_id=user_id, conversation_id=conversation_id):
                raise not_found("no such conversation")
        self.read(user_id, conversation_id, up_to)
        await self._within_reach(self._stored)

    async def _within_reach(self, stored: trio.Event) -> None:
        with trio.move_on_after(FLUSH_WITHIN_S):
            await stored.wait()
            return
        raise UIMError("unavailable", "not stored yet; it will be as soon as the database is back", retry_after_s=2.0)
