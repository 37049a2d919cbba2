"""Who is told of whose presence: friends, one's own other devices, and nobody across a block.

What changed is gathered by person, in batches of one query each, and given out by connection, in ticks (model/presence.py). Rule:
presence yields to everything else: a connection without room, or without its turn, gets the newest states later; one that is owed
too much gets all afresh.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, TypeVar
from uuid import UUID

import msgspec
import trio

from uim.chat.outbox import Outbox
from uim.chat.switchboard import Switchboard
from uim.errors import UIMError
from uim.model.presence import Choices, State, Waiting, seen_by_friend, seen_by_oneself, stranger
from uim.store import presence as store
from uim.store.postgres import Connection, Pool
from uim.store.presence import Seat
from uim.wire.frames import raw_frame

REST_S: Final = 0.5
GATHER_EVERY_S: Final = 0.1
PERSONS_AT_ONCE: Final = 100
# About 5 ms of this thread; a person with more friends takes another query, and others their turn between.
SEATS_PER_PAGE: Final = 5_000
# More than this and it is cheaper to tell everybody here everything.
MAX_CHANGED: Final = 10_000
MAX_FRAME_BYTES: Final = 192 * 1024
# A connection with more than this in its outbox has its messages first.
ROOM_BYTES: Final = 64 * 1024

Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Change:
    """A person's newest status. `seen_at`: when they were last here, if they have just left; `chosen`: by a choice of theirs."""

    is_online: bool
    seen_at: datetime | None = None
    chosen: bool = False


class Onlookers:
    """One a process; `run` is its task. `online_among(user_ids)` knows who of many is online."""

    def __init__(
        self,
        pool: Pool,
        switchboard: Switchboard,
        online_among: Callable[[Sequence[UUID]], Awaitable[set[UUID]]],
        waiting: Waiting[Outbox, bytes],
    ) -> None:
        self._pool = pool
        self._switchboard = switchboard
        self._online_among = online_among
        self._waiting = waiting
        self._changes: dict[UUID, Change] = {}
        # (who looks, at whom): what is between the two has changed.
        self._pairs: dict[tuple[UUID, UUID], None] = {}
        # What each connection was last told of its own user, so that it is not told what it has just said; and those whose
        # answer is under way, with whether they were passed over meanwhile.
        self._own_told: dict[Outbox, bytes] = {}
        # What that was at a connection's first snapshot: if it differs at a later one, nobody has told it.
        self._own_at_first: dict[Outbox, bytes] = {}
        self._own_waits: set[Outbox] = set()
        self._answering: dict[Outbox, bool] = {}
        self._wake = trio.Event()
        self._gather_at = float("-inf")

    # -- what there is to tell; nothing here awaits -----------------------------------------------------------------------------

    def changed(self, user_id: UUID, change: Change) -> None:
        """Tell that person's friends and, of a choice, the person's own devices."""
        older = self._changes.get(user_id)
        if older is not None and older.chosen and not change.chosen:
            change = replace(change, chosen=True)
        self._changes[user_id] = change
        if len(self._changes) > MAX_CHANGED:
            self._changes.clear()
            self.afresh_all()
        self._wake.set()

    def pair_changed(self, viewer_id: UUID, other_id: UUID) -> None:
        """Tell the viewer, if connected here, what may be known of the other from now on."""
        if not self._switchboard.is_here(viewer_id):
            return
        self._pairs[viewer_id, other_id] = None
        if len(self._pairs) > MAX_CHANGED:
            # Who is no friend any more is in no snapshot, and must not be shown as if nothing had happened.
            self._pairs.pop(next(iter(self._pairs)))
            self.afresh_all()
        self._wake.set()

    def afresh(self, outbox: Outbox) -> None:
        """Tell a connection of all friends who are not offline, in place of what it knows."""
        self._waiting.put_afresh(outbox)
        self._wake.set()

    def afresh_all(self) -> None:
        for outbox in self._switchboard.all():
            if outbox.is_ready and not outbox.closed:
                self.afresh(outbox)

    def answering(self, outbox: Outbox) -> None:
        """The connection changes its own user's state: until `answered` it is told nothing of that."""
        self._answering[outbox] = False

    def answered(self, outbox: Outbox, state: State | None) -> None:
        """The connection has its user's state as the answer; None: the change was refused."""
        was_passed_over = self._answering.pop(outbox, False)
        if state is not None:
            self._own_told[outbox] = msgspec.json.encode(state)
        if was_passed_over:
            # Perhaps by what another device did in the same moment: looked at again, and told if it differs.
            self.changed(outbox.user_id, Change(is_online=True, chosen=True))

    def forget(self, outbox: Outbox) -> None:
        """The connection has ended."""
        self._waiting.forget(outbox)
        self._own_told.pop(outbox, None)
        self._own_at_first.pop(outbox, None)
        self._own_waits.discard(outbox)
        self._answering.pop(outbox, None)

    # -- the task ---------------------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tell, tick by tick, until cancelled. While the database is away everything waits, the newest of each."""
        task_status.started()
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            while self._changes or self._pairs or self._waiting:
                try:
                    await self._gather()
                    await self._give_out()
                except UIMError as refused:
                    if refused.code != "unavailable":
                        raise
                    await trio.sleep(REST_S)
                await trio.sleep_until(self._waiting.next_at if self._waiting else self._gather_at)

    async def _gather(self) -> None:
        """What has changed, person by person, to those who wait for it; a batch at a time, and not too often."""
        now = trio.current_time()
        if now < self._gather_at or not (self._changes or self._pairs):
            return
        self._gather_at = now + GATHER_EVERY_S
        await self._gather_changes()
        await self._gather_pairs()

    async def _gather_changes(self) -> None:
        batch = _first(self._changes, PERSONS_AT_ONCE)
        if not batch:
            return
        try:
            async with self._pool.connection() as tx:
                await self._tell_friends(tx, batch)
        except UIMError:
            # What is not told yet waits, unless something newer does.
            for user_id, change in batch.items():
                self._changes.setdefault(user_id, change)
            raise

    async def _tell_friends(self, tx: Connection, batch: Mapping[UUID, Change]) -> None:
        choices = await store.choices_of(tx, batch)
        user_ids = [user_id for user_id, change in batch.items() if change.chosen or not _hides(choices.get(user_id))]
        states = [_seen_since(user_id, choices.get(user_id), batch[user_id]) for user_id in user_ids]
        encoded = [msgspec.json.encode(state) for state in states]
        above = store.START
        while True:
            page = await store.friends_of(tx, user_ids, above=above, limit=SEATS_PER_PAGE)
            for seat in page:
                self._put(seat.friend_id, user_ids[seat.at], encoded[seat.at])
            if len(page) < SEATS_PER_PAGE:
                break
            above = page[-1]
        for user_id, change in batch.items():
            if change.chosen and user_id in choices:
                self._put_own(user_id, seen_by_oneself(user_id, choices[user_id], is_online=change.is_online))

    def _put(self, viewer_id: UUID, user_id: UUID, state: bytes) -> None:
        for outbox in self._switchboard.of_user(viewer_id):
            if outbox.is_ready and not outbox.closed:
                self._waiting.put(outbox, user_id, state)

    def _put_own(self, user_id: UUID, state: State) -> None:
        data = msgspec.json.encode(state)
        for outbox in self._switchboard.of_user(user_id):
            if outbox in self._answering:
                self._answering[outbox] = True
            elif outbox.is_ready and not outbox.closed and self._own_told.get(outbox) != data:
                self._own_told[outbox] = data
                self._own_waits.add(outbox)
                self._waiting.put(outbox, user_id, data)

    async def _gather_pairs(self) -> None:
        by_viewer: dict[UUID, list[UUID]] = {}
        for viewer_id, other_id in _first(self._pairs, PERSONS_AT_ONCE):
            by_viewer.setdefault(viewer_id, []).append(other_id)
        while by_viewer:
            viewer_id, others = by_viewer.popitem()
            try:
                states = await self.states_for(viewer_id, others, self._online_among)
            except UIMError:
                by_viewer[viewer_id] = others
                self._pairs.update({(viewer, other): None for viewer, waiting in by_viewer.items() for other in waiting})
                raise
            for state in states:
                self._put(viewer_id, state.user_id, msgspec.json.encode(state))

    async def states_for(
        self,
        viewer_id: UUID,
        user_ids: Collection[UUID],
        online_among: Callable[[Sequence[UUID]], Awaitable[set[UUID]]],
    ) -> list[State]:
        """What a viewer may know of each of these users, who are not the viewer. Raises UIMError `unavailable`."""
        if not user_ids:
            return []
        async with self._pool.connection() as tx:
            friends = await store.friends_among(tx, viewer_id, user_ids)
            choices = await store.choices_of(tx, friends)
        online = await online_among(list(choices))
        return [
            seen_by_friend(user_id, choices[user_id], is_online=user_id in online) if user_id in choices else stranger(user_id)
            for user_id in user_ids
        ]

    # -- giving out -------------------------------------------------------------------------------------------------------------

    async def _give_out(self) -> None:
        """One tick: at most one frame for each connection (a very long list is cut in several)."""
        fresh: list[Outbox] = []
        for outbox, due in self._waiting.take(trio.current_time(), _has_room):
            if due.afresh:
                fresh.append(outbox)
            else:
                self._own_waits.discard(outbox)
                _push_states(outbox, due.states.values(), is_snapshot=False)
        if not fresh:
            return
        try:
            snapshots, own = await self._snapshots(sorted({outbox.user_id for outbox in fresh}))
        except UIMError:
            for outbox in fresh:
                self._waiting.put_afresh(outbox)
            raise
        for outbox in fresh:
            if outbox.live:
                _push_states(outbox, snapshots[outbox.user_id], is_snapshot=True)
                self._push_own(outbox, own.get(outbox.user_id))
            elif not outbox.closed:
                self._waiting.put_afresh(outbox)

    def _push_own(self, outbox: Outbox, own: bytes | None) -> None:
        """Beside a snapshot, which has friends alone: what the user has chosen elsewhere, if it still waits or nobody told."""
        if own is None or outbox in self._answering:
            return
        first = self._own_at_first.setdefault(outbox, own)
        if outbox in self._own_waits or self._own_told.get(outbox, first) != own:
            self._own_waits.discard(outbox)
            self._own_told[outbox] = own
            _push_states(outbox, [own], is_snapshot=False)

    async def _snapshots(self, viewer_ids: Sequence[UUID]) -> tuple[dict[UUID, list[bytes]], dict[UUID, bytes]]:
        """For each viewer the friends who are not offline, and the viewer's own true state, encoded."""
        async with self._pool.connection() as tx:
            seats = await self._all_friends(tx, viewer_ids)
        online = await self._online_among(list({seat.friend_id for seat in seats}))
        async with self._pool.connection() as tx:
            choices = await store.choices_of(tx, online | set(viewer_ids))
        states = [seen_by_friend(user_id, choices[user_id], is_online=True) for user_id in online if user_id in choices]
        encoded = {state.user_id: msgspec.json.encode(state) for state in states if state.status == "online"}
        own = {
            user_id: msgspec.json.encode(seen_by_oneself(user_id, choices[user_id], is_online=True))
            for user_id in viewer_ids
            if user_id in choices
        }
        snapshots: dict[UUID, list[bytes]] = {viewer_id: [] for viewer_id in viewer_ids}
        for seat in seats:
            if seat.friend_id in encoded:
                snapshots[viewer_ids[seat.at]].append(encoded[seat.friend_id])
        return snapshots, own

    async def _all_friends(self, tx: Connection, user_ids: Sequence[UUID]) -> list[Seat]:
        seats: list[Seat] = []
        while True:
            above = seats[-1] if seats else store.START
            page = await store.friends_of(tx, user_ids, above=above, limit=SEATS_PER_PAGE)
            seats += page
            if len(page) < SEATS_PER_PAGE:
                return seats


def _first(waiting: dict[Key, Value], at_most: int) -> dict[Key, Value]:
    """Take out the longest waiting."""
    taken = {key: waiting[key] for key, _ in zip(waiting, range(at_most), strict=False)}
    for key in taken:
        del waiting[key]
    return taken


def _hides(choices: Choices | None) -> bool:
    # Even the same state once more would tell that somebody came or went.
    return choices is not None and choices.availability == "invisible"


def _seen_since(user_id: UUID, choices: Choices | None, change: Change) -> State:
    if choices is None:
        return stranger(user_id)
    if change.seen_at is not None and choices.availability != "invisible":
        # It may not be stored yet.
        last_seen = change.seen_at if choices.last_seen is None else max(choices.last_seen, change.seen_at)
        choices = replace(choices, last_seen=last_seen)
    return seen_by_friend(user_id, choices, is_online=change.is_online)


def _has_room(outbox: Outbox) -> bool:
    return outbox.live and outbox.size <= ROOM_BYTES


def _push_states(outbox: Outbox, states: Iterable[bytes], *, is_snapshot: bool) -> None:
    """As one frame; what does not fit follows in others, which add to it."""
    group: list[bytes] = []
    size = 0
    for state in states:
        if group and size + len(state) > MAX_FRAME_BYTES:
            outbox.push(_frame(group, is_snapshot=is_snapshot))
            group, size, is_snapshot = [], 0, False
        group.append(state)
        size += len(state) + 1
    if group or is_snapshot:
        outbox.push(_frame(group, is_snapshot=is_snapshot))


def _frame(states: Sequence[bytes], *, is_snapshot: bool) -> bytes:
    end = b'],"snapshot":true}' if is_snapshot else b"]}"
    return raw_frame("PRESENCE_UPDATE", b'{"users":[' + b",".join(states) + end)
