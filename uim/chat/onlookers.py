"""Who is told of whose presence: friends, one's own other devices, and nobody across a block.

What changed is gathered by person, in batches of one query each, and given out by connection, in ticks (model/presence.py); while
the database is away, from what was last read (acquaintances.py), and in full when it is back. Rule: presence yields to everything
else: a connection without room, or without its turn, gets the newest states later; one that is owed too much gets all afresh.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final
from uuid import UUID

import msgspec
import trio

from uim.chat.acquaintances import Acquaintances
from uim.chat.changes import Change, Changes, hides, state_after, take_first
from uim.chat.outbox import Outbox
from uim.chat.presence_frames import has_room, push_states
from uim.chat.switchboard import Switchboard
from uim.errors import UIMError
from uim.model.presence import Choices, Due, State, Waiting, seen_by_friend, seen_by_oneself, stranger
from uim.store import presence as store
from uim.store.postgres import Connection, Pool
from uim.store.presence import Seat

# How long the database is left alone after it did not answer.
REST_S: Final = 1.0
GATHER_EVERY_S: Final = 0.1
PERSONS_AT_ONCE: Final = 100
# From memory all of them cost one walk.
REMEMBERED_AT_ONCE: Final = 1_000
# About 5 ms of this thread; a person with more friends takes another query, and others their turn between.
SEATS_PER_PAGE: Final = 5_000
# More than this and it is cheaper to tell everybody here everything.
MAX_CHANGED: Final = 10_000

OnlineAmong = Callable[[Sequence[UUID]], Awaitable[set[UUID]]]


@dataclass(slots=True)
class _Snapshot:
    """What a viewer is told afresh: all friends, the states of those who are not offline and the viewer's own, encoded."""

    own: bytes | None = None
    friend_ids: list[UUID] = field(default_factory=list)
    states: list[bytes] = field(default_factory=list)


class Onlookers:
    """One a process; `run` is its task.

    `online_among(user_ids)` knows who of many is online; `hears()` whether all choices made in other processes are heard of.
    """

    def __init__(
        self,
        pool: Pool,
        switchboard: Switchboard,
        online_among: OnlineAmong,
        waiting: Waiting[Outbox, bytes],
        hears: Callable[[], bool],
    ) -> None:
        self._pool = pool
        self._switchboard = switchboard
        self._online_among = online_among
        self._waiting = waiting
        self._hears = hears
        self._known = Acquaintances()
        self._changes = Changes()
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
        # Whether the database did not answer when it was last asked, and when to ask again; who is told afresh after that.
        self._is_away = False
        self._ask_at = float("-inf")
        self._owed_afresh: dict[Outbox, None] = {}

    # -- what there is to tell; nothing here awaits -----------------------------------------------------------------------------

    def changed(self, user_id: UUID, change: Change) -> None:
        """Tell that person's friends and, of a choice, the person's own devices."""
        if change.chosen:
            self.choosing(user_id)
        self._changes.put(user_id, change)
        if len(self._changes) > MAX_CHANGED:
            self._changes.drop()
            self.afresh_all()
        self._wake.set()

    def choosing(self, user_id: UUID) -> None:
        """What was read of this person's choices is told no more."""
        self._known.forget_choices(user_id)

    def pair_changed(self, viewer_id: UUID, other_id: UUID) -> None:
        """Tell the viewer, if connected here, what may be known of the other from now on."""
        self._known.part(viewer_id, other_id)
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
        if self._is_away:
            self._owed_afresh[outbox] = None
        else:
            self._waiting.put_afresh(outbox)
        self._wake.set()

    def afresh_all(self) -> None:
        for outbox in self._switchboard.all():
            if _is_told(outbox):
                self.afresh(outbox)

    def missed_words(self) -> None:
        """Of who came and went, and perhaps of choices, something was not heard."""
        self._known.forget_all_choices()
        self.afresh_all()

    def answering(self, outbox: Outbox) -> None:
        """The connection changes its own user's state: until `answered` it is told nothing of that."""
        self._answering[outbox] = False

    def answered(self, outbox: Outbox, state: State | None) -> None:
        """The connection has its user's state as the answer; None: the change was refused."""
        was_passed_over = self._answering.pop(outbox, False)
        if state is not None:
            self._own_told[outbox] = msgspec.json.encode(state)
            # What waits, chosen elsewhere, is older: nothing was put there since the answer was begun.
            self._own_waits.discard(outbox)
            self._waiting.withdraw(outbox, outbox.user_id)
        if was_passed_over:
            # Perhaps by what another device did in the same moment: looked at again, and told if it differs.
            self.changed(outbox.user_id, Change(is_online=True, chosen=True))

    def forget(self, outbox: Outbox) -> None:
        """The connection has ended."""
        self._waiting.forget(outbox)
        self._owed_afresh.pop(outbox, None)
        self._own_told.pop(outbox, None)
        self._own_at_first.pop(outbox, None)
        self._own_waits.discard(outbox)
        self._answering.pop(outbox, None)
        if not any(other is not outbox and _is_told(other) for other in self._switchboard.of_user(outbox.user_id)):
            self._known.forget_viewer(outbox.user_id)

    # -- the task ---------------------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tell, tick by tick, until cancelled; while the database is away, what is known here."""
        task_status.started()
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            while self._changes or self._pairs or self._waiting or self._owed_afresh:
                await self._gather()
                await self._give_out()
                await trio.sleep_until(self._waiting.next_at if self._waiting else self._gather_at)

    async def _gather(self) -> None:
        """What has changed, person by person, to those who wait for it; a batch at a time, and not too often."""
        now = trio.current_time()
        if now < self._gather_at or not (self._changes or self._pairs or self._owed_afresh):
            return
        self._gather_at = now + GATHER_EVERY_S
        if now < self._ask_at or not await self._answers(self._gather_in_full):
            await self._gather_remembered()

    async def _answers(self, ask: Callable[[], Awaitable[None]]) -> bool:
        """Ask the database; False if it is away, and then it is left alone for a while."""
        try:
            await ask()
        except UIMError as refused:
            if refused.code != "unavailable":
                raise
            self._is_away = True
            self._ask_at = trio.current_time() + REST_S
            return False
        self._is_away = False
        return True

    async def _gather_in_full(self) -> None:
        await self._gather_changes()
        await self._gather_pairs()
        if self._owed_afresh:
            await self._pool.probe()
            for outbox in self._owed_afresh:
                self._waiting.put_afresh(outbox)
            self._owed_afresh.clear()

    async def _gather_remembered(self) -> None:
        """To viewers here, of who has changed, as far as it was read before; nothing while new choices may not be heard of."""
        if not self._hears():
            return
        states: dict[UUID, bytes] = {}
        for user_id, change in self._changes.owe(REMEMBERED_AT_ONCE).items():
            choices = self._known.choices_of(user_id)
            if choices is not None and not hides(choices):
                states[user_id] = msgspec.json.encode(state_after(user_id, choices, change))
        if states:
            await self._known.for_each_friend_of(states, lambda viewer_id, user_id: self._put(viewer_id, user_id, states[user_id]))

    async def _gather_changes(self) -> None:
        batch = self._changes.take(PERSONS_AT_ONCE)
        changes = batch.all()
        if not changes:
            return
        self._known.begin()
        try:
            async with self._pool.connection() as tx:
                await self._tell_friends(tx, changes)
        except UIMError:
            self._changes.put_back(batch)
            raise

    async def _tell_friends(self, tx: Connection, batch: Mapping[UUID, Change]) -> None:
        choices = await store.choices_of(tx, batch)
        self._known.remember_choices(batch, choices)
        user_ids = [user_id for user_id, change in batch.items() if change.chosen or not hides(choices.get(user_id))]
        states = [state_after(user_id, choices.get(user_id), batch[user_id]) for user_id in user_ids]
        encoded = [msgspec.json.encode(state) for state in states]
        above = store.START
        while True:
            page = await store.friends_of(tx, user_ids, above=above, limit=SEATS_PER_PAGE)
            for seat in page:
                self._known.remember_friend(seat.friend_id, user_ids[seat.at])
                self._put(seat.friend_id, user_ids[seat.at], encoded[seat.at])
            if len(page) < SEATS_PER_PAGE:
                break
            above = page[-1]
        for user_id, change in batch.items():
            if change.chosen and user_id in choices:
                self._put_own(user_id, seen_by_oneself(user_id, choices[user_id], is_online=change.is_online))

    def _put(self, viewer_id: UUID, user_id: UUID, state: bytes) -> None:
        for outbox in self._switchboard.of_user(viewer_id):
            if _is_told(outbox):
                self._waiting.put(outbox, user_id, state)

    def _put_own(self, user_id: UUID, state: State) -> None:
        data = msgspec.json.encode(state)
        for outbox in self._switchboard.of_user(user_id):
            if outbox in self._answering:
                self._answering[outbox] = True
            elif _is_told(outbox) and self._own_told.get(outbox) != data:
                self._own_told[outbox] = data
                self._own_waits.add(outbox)
                self._waiting.put(outbox, user_id, data)

    async def _gather_pairs(self) -> None:
        by_viewer: dict[UUID, list[UUID]] = {}
        for viewer_id, other_id in take_first(self._pairs, PERSONS_AT_ONCE):
            by_viewer.setdefault(viewer_id, []).append(other_id)
        while by_viewer:
            viewer_id, others = by_viewer.popitem()
            self._known.begin()
            try:
                choices = await self._friends_choices(viewer_id, others)
            except UIMError:
                by_viewer[viewer_id] = others
                self._pairs.update({(viewer, other): None for viewer, waiting in by_viewer.items() for other in waiting})
                raise
            self._known.remember_choices(choices, choices)
            for friend_id in choices:
                self._known.remember_friend(viewer_id, friend_id)
            for state in await self._states(others, choices, self._online_among):
                self._put(viewer_id, state.user_id, msgspec.json.encode(state))

    async def states_for(self, viewer_id: UUID, user_ids: Collection[UUID], online_among: OnlineAmong) -> list[State]:
        """What a viewer may know of each of these users, who are not the viewer. Raises UIMError `unavailable`."""
        return await self._states(user_ids, await self._friends_choices(viewer_id, user_ids), online_among) if user_ids else []

    async def _friends_choices(self, viewer_id: UUID, user_ids: Collection[UUID]) -> dict[UUID, Choices]:
        async with self._pool.connection() as tx:
            return await store.choices_of(tx, await store.friends_among(tx, viewer_id, user_ids))

    @staticmethod
    async def _states(user_ids: Collection[UUID], choices: Mapping[UUID, Choices], online_among: OnlineAmong) -> list[State]:
        online = await online_among(list(choices))
        return [
            seen_by_friend(user_id, choices[user_id], is_online=user_id in online) if user_id in choices else stranger(user_id)
            for user_id in user_ids
        ]

    # -- giving out -------------------------------------------------------------------------------------------------------------

    async def _give_out(self) -> None:
        """One tick: at most one frame for each connection (a very long list is cut in several)."""
        fresh: dict[Outbox, Due[bytes]] = {}
        for outbox, due in self._waiting.take(trio.current_time(), has_room):
            if due.afresh:
                fresh[outbox] = due
            else:
                self._push(outbox, due)
        if fresh and (self._is_away or not await self._answers(partial(self._give_out_afresh, list(fresh)))):
            for outbox, due in fresh.items():
                if not outbox.closed:
                    self._owed_afresh[outbox] = None
                    self._push(outbox, due)

    def _push(self, outbox: Outbox, due: Due[bytes]) -> None:
        if outbox.user_id in due.states:
            self._own_waits.discard(outbox)
        push_states(outbox, due.states.values())

    async def _give_out_afresh(self, fresh: Sequence[Outbox]) -> None:
        snapshots = await self._snapshots(sorted({outbox.user_id for outbox in fresh}))
        for outbox in fresh:
            if outbox.closed:
                continue
            if outbox.live:
                snapshot = snapshots[outbox.user_id]
                self._known.remember_friends(outbox.user_id, snapshot.friend_ids)
                push_states(outbox, snapshot.states, is_snapshot=True)
                self._push_own(outbox, snapshot.own)
            else:
                self._waiting.put_afresh(outbox)

    def _push_own(self, outbox: Outbox, own: bytes | None) -> None:
        """Beside a snapshot, which has friends alone: what the user has chosen elsewhere, if it still waits or nobody told."""
        if own is None or outbox in self._answering:
            return
        first = self._own_at_first.setdefault(outbox, own)
        if outbox in self._own_waits or self._own_told.get(outbox, first) != own:
            self._own_waits.discard(outbox)
            self._own_told[outbox] = own
            push_states(outbox, [own])

    async def _snapshots(self, viewer_ids: Sequence[UUID]) -> dict[UUID, _Snapshot]:
        self._known.begin()
        async with self._pool.connection() as tx:
            seats = await self._all_friends(tx, viewer_ids)
        online = await self._online_among(list({seat.friend_id for seat in seats}))
        asked = online | set(viewer_ids)
        async with self._pool.connection() as tx:
            choices = await store.choices_of(tx, asked)
        self._known.remember_choices(asked, choices)
        states = [seen_by_friend(user_id, choices[user_id], is_online=True) for user_id in online if user_id in choices]
        encoded = {state.user_id: msgspec.json.encode(state) for state in states if state.status == "online"}
        snapshots = {viewer_id: _Snapshot() for viewer_id in viewer_ids}
        for viewer_id, snapshot in snapshots.items():
            if viewer_id in choices:
                snapshot.own = msgspec.json.encode(seen_by_oneself(viewer_id, choices[viewer_id], is_online=True))
        for seat in seats:
            snapshot = snapshots[viewer_ids[seat.at]]
            snapshot.friend_ids.append(seat.friend_id)
            if seat.friend_id in encoded:
                snapshot.states.append(encoded[seat.friend_id])
        return snapshots

    async def _all_friends(self, tx: Connection, user_ids: Sequence[UUID]) -> list[Seat]:
        seats: list[Seat] = []
        while True:
            above = seats[-1] if seats else store.START
            page = await store.friends_of(tx, user_ids, above=above, limit=SEATS_PER_PAGE)
            seats += page
            if len(page) < SEATS_PER_PAGE:
                return seats


def _is_told(outbox: Outbox) -> bool:
    return outbox.is_ready and not outbox.closed
