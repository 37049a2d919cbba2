"""What one connection is owed: the frames that wait for it, its place in the log, and what it has not yet confirmed.

A connection is a cursor over the log. Live, it takes each entry above what it was sent; catching up, it takes pages. Rule:
an outbox is bounded, and "full" means back to catching up from its cursor, never a lost entry and never a waiting producer
(storage.md §2). Nothing here awaits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, TypeVar
from uuid import UUID

import trio

from uim.chat.late import Late, Receipt
from uim.errors import Cut
from uim.model.message import Entry
from uim.wire.frames import frame, message_receive

# A live reader that is this far behind is served in pages from its cursor instead.
MAX_BYTES: Final = 256 * 1024
MAX_UNCONFIRMED: Final = 1_000
# Pages stop here until the device confirms: 4 pages of 100.
MAX_UNCONFIRMED_PAGES: Final = 4
MAX_UNCONFIRMED_IN_PAGES: Final = 400
# Receipts and updates that found no room, merged by what they are about; beyond this the reader is no reader.
MAX_LATE: Final = 5_000
# Of each connection the times of its last writes and confirmations: some 7 KB for a busy one.
KEPT_TIMES: Final = 32

# (id, conversation or None for a page's own end, somebody else's entry)
Owed = tuple[int, UUID | None, bool]
Time = TypeVar("Time")


class Outbox:
    """The server's half of one connection that is not the socket. Owned by its session.

    `sent`: every visible entry up to here is queued or written. `told`: the highest id that the device may confirm.
    `confirmed`: the highest that it has. `is_ready`: SESSION_READY is queued. `fall_back()` and `cut(reason)` are the session's.
    """

    __slots__ = (
        "_earlier",
        "_late",
        "_leaving",
        "_left",
        "_owed",
        "_progressed",
        "_room",
        "_taking",
        "_written",
        "began",
        "came_at",
        "catch_up",
        "closed",
        "confirmations",
        "confirmed",
        "connection_no",
        "cut",
        "device_id",
        "frames",
        "full_at",
        "gone",
        "has_been_live",
        "heard_at",
        "is_ready",
        "live",
        "login_id",
        "older",
        "pages",
        "progress_at",
        "replaced",
        "resends",
        "sent",
        "session_id",
        "size",
        "told",
        "told_ever",
        "unconfirmed",
        "user_id",
        "wake",
        "writes",
    )

    def __init__(
        self,
        *,
        user_id: UUID,
        device_id: str,
        login_id: UUID,
        session_id: UUID,
        cut: Callable[[Cut], None],
        catch_up: Callable[[], None],
        came_at: float = 0.0,
    ) -> None:
        self.user_id = user_id
        self.device_id = device_id
        self.login_id = login_id
        self.session_id = session_id
        self.cut = cut
        self.catch_up = catch_up
        self.came_at = came_at
        self.connection_no = 0
        self.frames: list[bytes] = []
        self.size = 0
        self.wake = trio.Event()
        self.is_ready = False
        self.live = self.has_been_live = False
        self.closed = False
        # The connection that this one replaced here, and the sign that it does nothing more.
        self.older: Outbox | None = None
        # Its session and those that it had replaced: they came before us.
        self.replaced: tuple[UUID, ...] = ()
        self.gone = trio.Event()
        self.sent = 0
        self.told = self.told_ever = 0
        self.confirmed = 0
        self.unconfirmed: deque[Owed] | tuple[()] = ()
        # What was sent before a resend: a device that was only slow may still confirm it.
        self._earlier: deque[Owed] | None = None
        self.pages = 0
        self.resends = 0
        # When its device last sent a frame.
        self.heard_at = trio.current_time()
        # When the oldest unconfirmed entry left, or the device last confirmed, whichever was later.
        self.progress_at = trio.current_time()
        # How many entries and pages were ever queued to be confirmed; of these, with the write under way, and gone.
        self._owed = self._leaving = self._left = 0
        self._room: trio.Event | None = None
        self._progressed: trio.Event | None = None
        self._late: Late | None = None
        # For uim trace: where this connection began; (after, up to, when) of writes that had entries; what was confirmed when.
        self.began = self._taking = self._written = 0
        self.writes: list[tuple[int, int, float]] = []
        self.confirmations: list[tuple[int, float]] = []
        self.full_at: float | None = None

    def end(self) -> None:
        """Its connection does nothing more. Its session is let go of, so that both leave at once, and wait for no collector."""
        self.closed = True
        self.cut = self.catch_up = _nothing
        self.gone.set()

    # -- putting in -------------------------------------------------------------------------------------------------------

    def push(self, data: bytes) -> None:
        """Queue a frame that answers this connection's own doing: bounded by what it may have open."""
        if self.closed:
            return
        self.frames.append(data)
        self.size += len(data)
        self.wake.set()

    def offer(self, entry: Entry) -> None:
        """A live entry, in log order. Full, or too much unconfirmed: back to catching up, which will find it again."""
        if not self.live or self.closed or entry.message_id <= self.sent:
            return
        if entry.origin == self.session_id:
            self.sent = entry.message_id  # it has the ack instead
            return
        if self.size > MAX_BYTES or len(self.unconfirmed) >= MAX_UNCONFIRMED:
            self.full_at = trio.current_time()
            self.fall_back()
            return
        own = entry.sender_id == self.user_id
        self._owe(entry.message_id, entry.conversation_id, not own)
        self.sent = entry.message_id
        self.tell(self.sent)
        self.push(message_receive(entry, own=own))

    def push_page(self, data: bytes, entries: list[Entry], position: int) -> None:
        """Queue a SYNC_BATCH whose next_sync_id is `position`."""
        for entry in entries:
            self._owe(entry.message_id, entry.conversation_id, entry.sender_id != self.user_id)
        self._owe(position, None, False)
        self.pages += 1
        self.sent = position
        self.tell(position)
        self.push(data)

    def _owe(self, message_id: int, conversation_id: UUID | None, by_other: bool) -> None:
        if not self.unconfirmed:
            self.unconfirmed = deque()
        self.unconfirmed.append((message_id, conversation_id, by_other))
        self._owed += 1

    def tell(self, position: int) -> None:
        """The device is told this position, so it may confirm it."""
        self.told = max(self.told, position)
        self.told_ever = max(self.told_ever, self.told)

    def hint(self, about: object, data: bytes) -> None:
        """Queue what is not in the log and soon over. Without room the newest about each thing is kept."""
        if self.size <= MAX_BYTES:
            if self._late is not None:
                self._late.forget(about)  # older, and would come after this
            self.push(data)
        else:
            self._keep_late(about, data)

    def update(self, about: object, data: bytes) -> None:
        """Queue what is not in the log and stays true (an updated conversation), for one that is live.

        While it catches up once more, the newest about each thing is kept: its client does not know of that, and asks for
        nothing afterwards. At first it does.
        """
        if self.live:
            self.hint(about, data)
        elif self.has_been_live:
            self._keep_late(about, data)

    def _keep_late(self, about: object, data: bytes) -> None:
        if self._late is None:
            self._late = Late()
        self._late.keep(about, data)
        self._check_late()

    def receipts(self, conversation_id: UUID, status: str, receipts: list[Receipt], **more: object) -> None:
        """Queue a receipts frame. Without room intervals are merged, so that none is left out."""
        if not self.is_ready:
            return  # SESSION_READY comes first; who reads the watermarks after it finds these there
        if self.size <= MAX_BYTES:
            self.push(frame("MESSAGE_ACK", {"status": status, "conversation_id": conversation_id, "receipts": receipts, **more}))
            return
        if self._late is None:
            self._late = Late()
        self._late.keep_receipts(conversation_id, status, receipts, more)
        self._check_late()

    @property
    def late(self) -> int:
        """Receipts and updates that wait for room, or until it is live again."""
        return len(self._late) if self._late is not None else 0

    def _check_late(self) -> None:
        if self.late > MAX_LATE:
            self.cut(Cut.SLOW)

    # -- taking out -------------------------------------------------------------------------------------------------------

    def take(self) -> bytes:
        """All that waits, as one piece for one write; b"" if nothing does."""
        if not self.frames:
            return b""
        taken = self.frames[0] if len(self.frames) == 1 else b"".join(self.frames)
        self.frames.clear()
        self.size = len(taken)  # until it is written it still counts
        self._leaving = self._owed
        self._taking = self.sent
        self.wake = trio.Event()
        return taken

    def put_back(self, taken: bytes) -> None:
        """What was taken has not left after all."""
        self.frames.insert(0, taken)
        self.size = sum(map(len, self.frames))

    def written(self, size: int) -> None:
        """That many bytes have left: those of the last `take`. What came late has room now."""
        self.size -= size
        self._note_progress()
        oldest = self._owed - len(self.unconfirmed) + 1
        if self._left < oldest <= self._leaving:
            self.progress_at = trio.current_time()
        self._left = self._leaving
        if self._taking > self._written:
            _keep(self.writes, (self._written, self._taking, trio.current_time()))
            self._written = self._taking
        if self._room is not None and self.size <= MAX_BYTES:
            self._room.set()
        if self.size == 0 and self._late is not None:
            self._push_late(self._late)

    def _push_late(self, late: Late) -> None:
        if self.live:
            self._late = None
            for data in late.take():
                self.push(data)
        for conversation_id, status, merged in late.take_receipts():
            self.receipts(conversation_id, status, merged.receipts, **merged.more)

    @property
    def written_up_to(self) -> int:
        """Every visible entry up to here has left; those above it wait, or are under way."""
        return self._written

    async def room(self) -> None:
        """Returns once little enough waits here for its client to be read on: who does not take answers asks no more."""
        while self.size > MAX_BYTES:
            self._room = trio.Event()
            await self._room.wait()

    # -- the cursor -------------------------------------------------------------------------------------------------------

    def confirm(self, message_id: int) -> dict[UUID, int]:
        """The device has everything up to here. Returns what that delivers: each conversation's newest entry by others."""
        delivered: dict[UUID, int] = {}
        while self._earlier and self._earlier[0][0] <= message_id:
            reached, conversation_id, by_other = self._earlier.popleft()
            if by_other and conversation_id is not None:
                delivered[conversation_id] = reached
        while self.unconfirmed and self.unconfirmed[0][0] <= message_id:
            reached, conversation_id, by_other = self.unconfirmed.popleft()
            if conversation_id is None:
                self.pages -= 1
            elif by_other:
                delivered[conversation_id] = max(reached, delivered.get(conversation_id, 0))
        if not self.unconfirmed:
            self.unconfirmed = ()  # even an empty deque has 700 bytes
        self._note_progress()
        if message_id > self.confirmed:
            self.confirmed = message_id
            self.resends = 0
            self.progress_at = trio.current_time()
            _keep(self.confirmations, (message_id, self.progress_at))
        return delivered

    @property
    def oldest_unconfirmed(self) -> int:
        """Its id, where there is one."""
        assert self.unconfirmed
        return self.unconfirmed[0][0]

    @property
    def is_fresh(self) -> bool:
        """Whether nothing has been sent from its present start on: only then may the offline queue know what follows."""
        return self.sent == self.told == self.confirmed and not self.unconfirmed

    def may_read_page(self) -> bool:
        """Whether catching up may go on: few pages unconfirmed, and room."""
        confirmed_enough = self.pages < MAX_UNCONFIRMED_PAGES and len(self.unconfirmed) < MAX_UNCONFIRMED_IN_PAGES
        return confirmed_enough and self.size <= MAX_BYTES // 2

    async def progress(self) -> None:
        """Returns when something has been confirmed or written: only then may the next page be read that could not be now."""
        self._progressed = trio.Event()
        await self._progressed.wait()

    def _note_progress(self) -> None:
        if self._progressed is not None:
            self._progressed.set()
            self._progressed = None

    def go_live(self) -> None:
        """The page just queued was the last: from now on entries come as they are handed on, and what was kept meanwhile follows."""
        self.live = self.has_been_live = True

    def fall_back(self) -> None:
        """From live to catching up; what is queued stays."""
        self.live = False
        self.catch_up()

    def send_again(self) -> None:
        """Catch up once more from what is confirmed; first copies that arrived after all may still be confirmed."""
        last = self.unconfirmed[-1][0] if self.unconfirmed else self.confirmed
        self._earlier = deque([*self.unconfirmed, *(item for item in self._earlier or () if item[0] > last)])
        self.unconfirmed = ()
        self.pages = 0
        self.resends += 1
        self.sent = self._taking = self._written = self.confirmed
        self.progress_at = trio.current_time()
        self.fall_back()

    def start_at(self, position: int) -> None:
        """Forget what was sent: the next entry is the first above `position`, and what is told above it is not confirmed."""
        self.live = False
        self.unconfirmed = ()
        self._earlier = None
        self.pages = self.resends = 0
        self.sent = self.told = self.confirmed = self.began = self._taking = self._written = position
        self.told_ever = max(self.told_ever, position)
        self.progress_at = trio.current_time()


def _nothing(*_: object) -> None:
    """What there is to do where a connection has gone."""


def _keep(times: list[Time], time: Time) -> None:
    if len(times) == KEPT_TIMES:
        del times[0]
    times.append(time)
