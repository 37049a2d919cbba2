"""The log's tailer: what was committed, in log order, to the connections of this process.

Entries come from this process's writer, over the bus, or from the database; only the next id in line is handed on, at once by
whoever offers it where nothing has to be read for that. Rule: the bus is a hint. A hole is waited for (20 ms), then read from the
database, and every 500 ms the database is asked for the head anyway, together with the logins that ended and the devices that
connected lately (storage.md §2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final
from uuid import UUID

import trio

from uim.chat.epochs import Epochs
from uim.chat.memberships import Memberships
from uim.chat.ring import Ring
from uim.chat.switchboard import Switchboard
from uim.log import get_logger
from uim.model.message import Entry
from uim.store import cursors, logins, messages
from uim.store.epochs import Epoch
from uim.store.postgres import Connection, ConnectionLost, connect
from uim.wire.frames import frame

RING_ENTRIES: Final = 4_096
HOLE_PATIENCE_S: Final = 0.020
POLL_EVERY_S: Final = 0.5
POLL_EVERY_WITHOUT_BUS_S: Final = 0.1
READ_ENTRIES: Final = 1_000
HAND_ON_AT_ONCE: Final = 256
# Ends and connects are asked for this far back before the last poll that was answered: the database's clock is not ours, and
# what was in mid-commit then is dated before it.
LOOK_BACK_S: Final = 10.0

log = get_logger(__name__)


class Tailer:
    """One a process. `position`: every entry up to here has been handed on to those who are live here.

    `on_passed(entry)` hears, without awaiting, of each entry of the log, in its order, once those have it who may;
    `on_handed_on(batch)` of some at once, while the stays of all their conversations are known.
    """

    def __init__(
        self,
        database_url: str,
        *,
        epochs: Epochs,
        switchboard: Switchboard,
        memberships: Memberships,
        origin_of: Callable[[Entry], UUID | None],
        on_changed: Callable[[UUID], None],
        on_logins_ended: Callable[[Iterable[UUID]], None],
        bus_is_up: Callable[[], bool],
        on_passed: Callable[[Entry], None] = lambda entry: None,
        on_handed_on: Callable[[list[Entry]], None] = lambda batch: None,
    ) -> None:
        self._url = database_url
        self._epochs = epochs
        self._switchboard = switchboard
        self._memberships = memberships
        self._origin_of = origin_of
        self._on_changed = on_changed
        self._on_logins_ended = on_logins_ended
        self._bus_is_up = bus_is_up
        self._on_passed = on_passed
        self._on_handed_on = on_handed_on
        self._pending: dict[int, Entry] = {}
        self._wake = trio.Event()
        self._tx: Connection | None = None
        self._next_poll = self._polled_at = 0.0
        self._is_cut_off = False
        # What follows our position is being read, or handed on: until that is done, nothing else is.
        self._is_busy = True
        self.position = 0
        # Counts the epochs that began meanwhile: what was asked for before is not handed on after.
        self._beginnings = 0
        self.ring = Ring(maxlen=RING_ENTRIES)

    def offer(self, entries: Iterable[Entry]) -> None:
        """Entries that somebody has committed, in any order, perhaps again. Does not await.

        What is next in line, of conversations that are known, has been handed on when this returns.
        """
        for entry in entries:
            if entry.message_id > self.position and len(self._pending) < RING_ENTRIES:
                self._pending.setdefault(entry.message_id, entry)
        if self._pending and not self._is_busy:
            self._hand_on_known()
        if self._pending:
            self._wake.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hand on until cancelled. Started once the head is known; connections before that would miss nothing either."""
        while self._tx is None:
            try:
                tx = await self._connected()
                self._polled_at = trio.current_time()
                self.position = max(await messages.head(tx), self._epochs.present.base - 1)
            except ConnectionLost as lost:
                await self._rest(lost)
        self._is_busy = False
        task_status.started()
        while True:
            try:
                await self._step()
            except ConnectionLost as lost:
                await self._rest(lost)

    def begin_again(self, epoch: Epoch) -> None:
        """The log goes on in a new epoch: what lies before it comes from the database alone. Does not await."""
        self._beginnings += 1
        self._pending.clear()
        self.ring.clear()
        self.position = epoch.base - 1
        self._next_poll = self._polled_at = 0.0
        self._wake.set()

    async def _step(self) -> None:
        # First, or a stream of entries without an end would starve revocations.
        if trio.current_time() >= self._next_poll:
            await self._poll()
        elif batch := self._in_line():
            await self._hand_on(batch)
        elif self._pending:
            await self._wait(HOLE_PATIENCE_S)
            if self._pending and self.position + 1 not in self._pending:
                await self._read_on()
        else:
            await self._wait(self._next_poll - trio.current_time())

    async def _wait(self, at_most_s: float) -> None:
        """Until an entry is offered that is next in line, or that long."""
        with trio.move_on_after(at_most_s):
            while self.position + 1 not in self._pending:
                self._wake = trio.Event()
                await self._wake.wait()
                if at_most_s > HOLE_PATIENCE_S:
                    return

    def _in_line(self) -> list[Entry]:
        batch: list[Entry] = []
        at = self.position + 1
        while len(batch) < HAND_ON_AT_ONCE and (entry := self._pending.pop(at, None)) is not None:
            batch.append(entry)
            at += 1
        return batch

    def _hand_on_known(self) -> None:
        """As much of the line as needs nothing from the database first."""
        batch = self._in_line()
        if self._memberships.unknown(batch):
            self._pending.update((entry.message_id, entry) for entry in batch)
        elif batch:
            self._pass_all(batch)

    async def _hand_on(self, batch: list[Entry]) -> None:
        unknown = self._memberships.unknown(batch)
        if unknown and not await self._learn(unknown, batch):
            return
        self._pass_all(batch)
        await trio.lowlevel.checkpoint()

    async def _learn(self, unknown: list[UUID], batch: list[Entry]) -> bool:
        """Read the stays of those conversations; False where another epoch has begun meanwhile. Lost, the batch stands in line again."""
        beginnings = self._beginnings
        try:
            with self._busy():
                found = await messages.stays_of(await self._connected(), unknown)
        except ConnectionLost:
            if beginnings == self._beginnings:
                self._pending.update((entry.message_id, entry) for entry in batch)
            raise
        if beginnings == self._beginnings:
            self._memberships.learn(unknown, found)
        return beginnings == self._beginnings

    @contextmanager
    def _busy(self) -> Iterator[None]:
        was, self._is_busy = self._is_busy, True
        try:
            yield
        finally:
            self._is_busy = was

    def _pass_all(self, batch: list[Entry]) -> None:
        """The next entries, of conversations that are known, to everybody. Does not await."""
        now = trio.current_time()
        with self._busy():
            for entry in batch:
                entry.handed_on_at = now
                self._pass(entry)
            if batch:
                self._on_handed_on(batch)
            self._memberships.shrink()

    def _pass(self, entry: Entry) -> None:
        """One entry to everybody live here who may see it. No await: position and outboxes move together."""
        self._memberships.follow(entry)
        membership = self._memberships.get(entry.conversation_id)
        assert membership is not None
        for user_id in membership.audience(entry.message_id):
            for outbox in self._switchboard.of_user(user_id):
                outbox.offer(entry)
        self.ring.append(entry)
        self.position = entry.message_id
        if entry.message_type == "deletion":
            self._take_back(entry)
        if entry.message_type == "system":
            self._announce(entry)
        self._on_passed(entry)

    def _take_back(self, deletion: Entry) -> None:
        """What was deleted for everyone leaves the ring too; those who catch up from it get what the database would give."""
        target = self.ring.held(deletion.event["target_message_id"])
        if target is not None:
            target.blank()

    def _announce(self, entry: Entry) -> None:
        """A changed conversation is told to its members (with its object, loaded later), its end to who is out."""
        membership = self._memberships.get(entry.conversation_id)
        assert membership is not None
        gone = frame("CONVERSATION_UPDATE", {"conversation_id": entry.conversation_id, "removed": True})
        for user_id in membership.audience(entry.message_id):
            if not membership.is_member(user_id):
                for outbox in self._switchboard.of_user(user_id):
                    outbox.update(entry.conversation_id, gone)
        self._on_changed(entry.conversation_id)

    async def _read_on(self) -> None:
        with self._busy():
            await self._hand_on_what_is_stored()

    async def _hand_on_what_is_stored(self) -> None:
        """What the database has above our position. Ids that are missing there do not exist: the log is in commit order."""
        tx = await self._connected()
        beginnings = self._beginnings
        found = await messages.entries_after(tx, self.position, READ_ENTRIES)
        # The log jumps where an epoch begins, and there alone.
        in_line = sum(1 for at, entry in enumerate(found, self.position + 1) if entry.message_id == at)
        if found and not in_line:
            await self._epochs.look(tx)
        if beginnings != self._beginnings:
            return
        del found[in_line or len(found) :]
        for entry in found:
            # What this process has appended waits behind the hole, its commit long answered: it knows who sent it.
            waiting = self._pending.get(entry.message_id)
            entry.origin = (waiting.origin if waiting is not None else None) or self._origin_of(entry)
            entry.accepted_at = waiting.accepted_at if waiting is not None else None
        for start in range(0, len(found), HAND_ON_AT_ONCE):
            await self._hand_on([entry for entry in found[start : start + HAND_ON_AT_ONCE] if entry.message_id > self.position])
        self._pending = {at: entry for at, entry in self._pending.items() if at > self.position}

    async def _poll(self) -> None:
        tx = await self._connected()
        now = trio.current_time()
        look_back_s = now - self._polled_at + LOOK_BACK_S
        position = self.position
        head = await messages.head(tx)
        if head < position and position >= self._epochs.present.base:
            await self._epochs.settle(tx)  # the tail is gone, under our very connection
        self._on_logins_ended(await logins.ended_since(tx, look_back_s))
        for user_id, device_id, connection_no in await cursors.connected_since(tx, look_back_s):
            self._switchboard.cut_older(user_id, device_id, connection_no)
        self._polled_at = now
        self._next_poll = trio.current_time() + (POLL_EVERY_S if self._bus_is_up() else POLL_EVERY_WITHOUT_BUS_S)
        if head > self.position and self.position + 1 not in self._pending:
            await self._read_on()

    async def _connected(self) -> Connection:
        if self._tx is None or self._tx.closed:
            tx = await connect(self._url, name="tailer", settings={"statement_timeout": "4000"})
            try:
                await self._epochs.settle(tx)
            except BaseException:
                tx.pgconn.finish()
                raise
            self._tx = tx
        if self._is_cut_off:
            self._is_cut_off = False
            log.info("the tailer reaches the database again")
        return self._tx

    async def _rest(self, lost: Exception) -> None:
        if not self._is_cut_off:
            log.warning("the tailer cannot reach the database", error=str(lost).splitlines()[0])
        self._is_cut_off = True
        if self._tx is not None:
            self._tx.pgconn.finish()
            self._tx = None
        await trio.sleep(0.2)
        # Before the next try, what stands in line is handed on as far as it can be without the database.
        self._next_poll = trio.current_time() + POLL_EVERY_WITHOUT_BUS_S

    async def passed_all(self) -> None:
        """Returns once what was offered has been handed on; for a drain."""
        while self._pending:
            await trio.sleep(0.005)

    # -- for those who catch up -------------------------------------------------------------------------------------------

    def since(self, position: int, user_id: UUID) -> list[Entry] | None:
        """The ring's entries above `position` that the user may see; None if the ring does not reach back that far.

        Does not await: together with what the caller does next it is one step of the hand-over.
        """
        epoch = self._epochs.present
        if position >= self.position or (position >= epoch.empty_above and self.position == epoch.base - 1):
            return []
        return self.ring.since(position, user_id, self._memberships)
