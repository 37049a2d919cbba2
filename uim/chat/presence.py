"""Presence: who is online, over all devices and processes.

A user is online while some process holds a device of theirs; a process holds one from its connection until the grace after its
last one has passed, so that a reconnect is no flicker. Redis judges (store/scripts.py) and tells every process, each telling its
own connections (onlookers.py). Rule: what is held here is the truth about here, and is said again whenever Redis may have lost
it; without Redis this process's own connections are all that is known.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from itertools import islice
from typing import Final
from uuid import UUID

import trio

from uim.chat.changes import Change
from uim.chat.lastseen import LastSeen
from uim.chat.leases import EVERY_S, LEASE_S, Leases
from uim.chat.onlookers import Onlookers
from uim.chat.outbox import Outbox
from uim.chat.switchboard import Switchboard
from uim.chat.updates import Updates
from uim.errors import UIMError, not_found
from uim.log import get_logger
from uim.model.message import Entry
from uim.model.presence import ShownPresence, State, Waiting, seen_by_oneself
from uim.store import presence as store
from uim.store.postgres import Pool
from uim.store.presence import Holding, Word
from uim.store.redis import RedisAway, RedisLink

REST_S: Final = 0.5
# Who asks over HTTP waits no longer for a Redis that hangs.
ANSWER_WITHIN_S: Final = 0.25
USERS_AT_ONCE: Final = 100
# Everything held is said again within as many turns of the lease: 30 s of the keys' 90.
TURNS_PER_ROUND: Final = 6
# Versions are compared with what came just before; the oldest may go.
MAX_VERSIONS: Final = 50_000
# What could not be said while Redis was away; beyond that it is lost: keys run out by themselves.
MAX_UNSAID: Final = 50_000
# A block ends a friendship by friend_removed for both, where there was one; where there was none, nobody hears of it.
BETWEEN_EVENTS: Final = frozenset({"friend_added", "friend_removed"})

SEEN_OFFLINE: Final = frozenset({"status_text", "show_last_seen"})

log = get_logger(__name__)


class _Choice(IntEnum):
    """Whether there is something chosen to tell: only of one who is online, or anyway."""

    NONE = 0
    IF_ONLINE = 1
    ANYWAY = 2


@dataclass(slots=True)
class _Device:
    """A device held here: its connections, and when the last one left."""

    connections: int = 0
    left_at: float = 0.0


class Presence:
    """One a process; `run` is its task. What does not say `async` does not await.

    `grace_s`: how long after its last connection a device still counts; `lease_s`, `every_s`: this process's lease.
    """

    def __init__(
        self,
        *,
        pool: Pool,
        link: RedisLink,
        switchboard: Switchboard,
        log_id: UUID,
        process_id: UUID,
        grace_s: float,
        lease_s: float = LEASE_S,
        every_s: float = EVERY_S,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._pool = pool
        self._link = link
        self._process_id = process_id
        self._channel = f"{log_id}:presence:updates"
        self._grace_s = grace_s
        self._every_s = every_s
        self._wall_clock = wall_clock
        self._onlookers = Onlookers(pool, switchboard, self._online_among, Waiting(), lambda: self._updates.hears)
        self._leases = Leases(link, log_id=log_id, process_id=process_id, let_go=self._let_go, lease_s=lease_s)
        self._here: dict[UUID, dict[str, _Device]] = {}
        # Connections that came, and whether their snapshot has been asked for.
        self._connections: dict[Outbox, bool] = {}
        self._leaving: deque[tuple[float, UUID, str]] = deque()
        # Users whose holding is to be said, and what by a choice of theirs.
        self._to_say: dict[UUID, _Choice] = {}
        self._unsaid: dict[UUID, _Choice] = {}
        self._versions: OrderedDict[UUID, tuple[int, bool]] = OrderedDict()
        self._last_seen = LastSeen(pool)
        self._wake = trio.Event()
        self._closing = False
        self._renew = trio.Event()
        self._turn = 0
        self._updates = Updates(link, self._channel, on_word=self._learn, on_afresh=self._afresh)

    # -- connections of this process --------------------------------------------------------------------------------------------

    def came(self, outbox: Outbox) -> None:
        """A connection is ready: its user is online from now on."""
        self._connections[outbox] = False
        devices = self._here.setdefault(outbox.user_id, {})
        is_new = outbox.device_id not in devices
        devices.setdefault(outbox.device_id, _Device()).connections += 1
        if is_new:
            self._say(outbox.user_id)

    def live(self, outbox: Outbox) -> None:
        """A connection has its last SYNC_BATCH: at the first time its snapshot follows."""
        if self._connections.get(outbox) is False:
            self._connections[outbox] = True
            self._onlookers.afresh(outbox)

    def left(self, outbox: Outbox) -> None:
        """A connection has ended; its device counts until the grace is over. Not at a drain: its clients come back."""
        if self._connections.pop(outbox, None) is None:
            return
        self._onlookers.forget(outbox)
        device = self._here[outbox.user_id][outbox.device_id]
        device.connections -= 1
        if not device.connections:
            device.left_at = trio.current_time()
            self._leaving.append((device.left_at + self._grace_s, outbox.user_id, outbox.device_id))
            self._wake.set()

    def close(self) -> None:
        """The process drains: nobody is told offline by it any more; when people here were last seen is stored."""
        self._closing = True
        for user_id in self._here:
            self._last_seen.note(user_id, self._now())

    # -- what else changes what others see --------------------------------------------------------------------------------------

    def choosing(self, user_id: UUID) -> None:
        """A user's choice of these is about to be committed: from now on nothing is told by what they were before."""
        self._onlookers.choosing(user_id)

    def chosen(self, user_id: UUID, changed: frozenset[str]) -> None:
        """A user has committed another availability, status text or show_last_seen (`changed` has their names).

        Those who see it are told in every process; nobody of the availability of one who is offline, which looks like any other.
        """
        self._say(user_id, _Choice.ANYWAY if changed & SEEN_OFFLINE else _Choice.IF_ONLINE)

    def friends_changed(self, user_id: UUID, other_id: UUID) -> None:
        """A friendship between these two has been made or ended, and committed: each is told what there is to see now."""
        self._onlookers.pair_changed(user_id, other_id)
        self._onlookers.pair_changed(other_id, user_id)

    def follow(self, entry: Entry) -> None:
        """Move over one entry of the log: account events tell of friendships, in every process."""
        if entry.message_type == "account" and entry.event.get("event") in BETWEEN_EVENTS:
            self.friends_changed(entry.sender_id, UUID(entry.event["user_id"]))

    @contextmanager
    def answering(self, outbox: Outbox) -> Iterator[Callable[[State], None]]:
        """While a connection changes its user's choices: to be given the state that it got as its answer.

        The user's other devices get that as an update; this one does not get it again.
        """
        answered: list[State] = []
        self._onlookers.answering(outbox)
        try:
            yield answered.append
        finally:
            self._onlookers.answered(outbox, answered[0] if answered else None)

    # -- asking -----------------------------------------------------------------------------------------------------------------

    async def of(self, viewer_id: UUID, user_ids: Sequence[UUID]) -> Mapping[UUID, ShownPresence]:
        """What a viewer is shown of each of these other users. Raises UIMError `unavailable`."""
        states = await self._onlookers.states_for(viewer_id, user_ids, self.online_soon)
        return {state.user_id: state.shown() for state in states}

    async def one(self, viewer_id: UUID, user_id: UUID) -> ShownPresence:
        """The same of one user, who may be the viewer. Raises `not_found` (no such user), `unavailable`."""
        if user_id == viewer_id:
            return (await self.own_state(user_id)).shown()
        async with self._pool.connection() as tx:
            if not await store.choices_of(tx, [user_id]):
                raise not_found("no such user")
        return (await self.of(viewer_id, [user_id]))[user_id]

    async def own_state(self, user_id: UUID) -> State:
        """A user's true state, for the user's own devices. Raises `session_ended` if the account is no more, `unavailable`."""
        async with self._pool.connection() as tx:
            choices = (await store.choices_of(tx, [user_id])).get(user_id)
        if choices is None:
            raise UIMError("session_ended", "this account is no more")
        return seen_by_oneself(user_id, choices, is_online=user_id in await self.online_soon([user_id]))

    async def online_soon(self, user_ids: Sequence[UUID]) -> set[UUID]:
        """Those who are online, invisible or not, for somebody who waits: what Redis does not say at once is not known."""
        online = {user_id for user_id in user_ids if user_id in self._here}
        with trio.move_on_after(ANSWER_WITHIN_S):
            online = await self._online_among(user_ids)
        return online

    async def _online_among(self, user_ids: Sequence[UUID]) -> set[UUID]:
        """The same for what is told to devices, which is to be mended if it was not true."""
        online = {user_id for user_id in user_ids if user_id in self._here}
        elsewhere = [user_id for user_id in user_ids if user_id not in online]
        if elsewhere:
            try:
                online |= await store.online_among(self._link, elsewhere)
            except RedisAway:
                # Unknown is offline.
                self._updates.told_in_the_dark()
        return online

    def holds(self, user_id: UUID) -> bool:
        """Whether a device of that user is connected here, or its grace is not over."""
        return user_id in self._here

    def seems_online(self, user_id: UUID) -> bool:
        """Whether that user is connected somewhere, by what has been heard; one of whom nothing was heard is not."""
        return user_id in self._here or self._versions.get(user_id, (0, False))[1]

    # -- the tasks --------------------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold, say and tell until cancelled; cancelled, nothing is taken back: what is held runs out."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._onlookers.run)
            nursery.start_soon(self._updates.run)
            nursery.start_soon(self._last_seen.run)
            nursery.start_soon(self._keep_lease)
            nursery.start_soon(self._say_on)
            task_status.started()

    async def _keep_lease(self) -> None:
        while True:
            try:
                stood = await self._leases.keep()
            except RedisAway:
                await trio.sleep(min(REST_S, self._every_s))
                continue
            self._say_again(everything=not stood)
            with trio.move_on_after(self._every_s):
                await self._renew.wait()
            self._renew = trio.Event()

    def _say_again(self, *, everything: bool) -> None:
        """What Redis missed or may have lost, and a slice of what is held, before its keys run out."""
        unsaid, self._unsaid = self._unsaid, {}
        for user_id, choice in unsaid.items():
            self._say(user_id, choice)
        self._turn = (self._turn + 1) % TURNS_PER_ROUND
        step = 1 if everything else TURNS_PER_ROUND
        for user_id in islice(self._here, self._turn % step, None, step):
            self._say(user_id)

    def _say(self, user_id: UUID, choice: _Choice = _Choice.NONE) -> None:
        self._to_say[user_id] = max(self._to_say.get(user_id, _Choice.NONE), choice)
        self._wake.set()

    async def _say_on(self) -> None:
        """The only task that says what is held, so that it is said in order."""
        while True:
            self._wake = trio.Event()
            self._end_graces()
            batch = dict(islice(self._to_say.items(), USERS_AT_ONCE))
            if not batch:
                with trio.move_on_at(self._leaving[0][0] if self._leaving else float("inf")):
                    await self._wake.wait()
                continue
            for user_id in batch:
                del self._to_say[user_id]
            await self._say_batch(batch)

    def _end_graces(self) -> None:
        now = trio.current_time()
        while self._leaving and self._leaving[0][0] <= now:
            _, user_id, device_id = self._leaving.popleft()
            devices = self._here.get(user_id, {})
            device = devices.get(device_id)
            # It may be connected again, or have left again since: then a later place in the line tells.
            if self._closing or device is None or device.connections or device.left_at + self._grace_s > now:
                continue
            del devices[device_id]
            if not devices:
                del self._here[user_id]
            self._say(user_id)

    async def _say_batch(self, batch: Mapping[UUID, _Choice]) -> None:
        try:
            told = await self._to_tell(batch)
            # Read after the last wait: a holding is said as it is now.
            holdings = [Holding(user_id, list(self._here.get(user_id, ())), user_id in told) for user_id in batch]
            await self._hold(self._process_id, holdings)
        except RedisAway:
            for user_id, choice in batch.items():
                self._judge_alone(user_id, choice)
            await trio.lowlevel.checkpoint()

    async def _to_tell(self, batch: Mapping[UUID, _Choice]) -> set[UUID]:
        """Those whose choice shows. Who comes online meanwhile is told of by that."""
        told = {user_id for user_id, choice in batch.items() if choice is _Choice.ANYWAY or (choice and user_id in self._here)}
        asked = [user_id for user_id, choice in batch.items() if choice and user_id not in told]
        return told | await store.online_among(self._link, asked) if asked else told

    async def _let_go(self, process_id: UUID, user_ids: list[UUID]) -> None:
        """For a process that died: what it held is held no more."""
        for at in range(0, len(user_ids), USERS_AT_ONCE):
            await self._hold(process_id, [Holding(user_id, ()) for user_id in user_ids[at : at + USERS_AT_ONCE]])

    async def _hold(self, process_id: UUID, holdings: Sequence[Holding]) -> None:
        now = self._now()
        verdicts = await store.hold(self._link, channel=self._channel, process_id=process_id, now=now, holdings=holdings)
        for holding, verdict in zip(holdings, verdicts, strict=True):
            if verdict.told:
                # The channel brings it too, or, while nobody hears, does not.
                self._learn(store.word_of(holding, verdict, now))
            else:
                self._correct(holding.user_id, is_online=verdict.status == "online")
            if verdict.changed and verdict.status == "offline":
                self._last_seen.note(holding.user_id, now)

    def _judge_alone(self, user_id: UUID, choice: _Choice) -> None:
        """Without Redis: what is known here goes; all of it is said when Redis is back."""
        is_online = user_id in self._here
        if len(self._unsaid) < MAX_UNSAID:
            self._unsaid[user_id] = max(self._unsaid.get(user_id, _Choice.NONE), choice)
        chosen = choice is _Choice.ANYWAY or (choice is _Choice.IF_ONLINE and is_online)
        version, was_online = self._versions.get(user_id, (0, False))
        if is_online == was_online and not chosen:
            return
        self._know(user_id, version, is_online=is_online)
        seen_at = self._now() if was_online and not is_online else None
        self._onlookers.changed(user_id, Change(is_online, seen_at, chosen))
        if seen_at is not None:
            self._last_seen.note(user_id, seen_at)

    # -- hearing ----------------------------------------------------------------------------------------------------------------

    def _afresh(self) -> None:
        """Redis may have lost what is held here: it is told at once, as everybody here is told what there is now."""
        self._renew.set()
        self._onlookers.missed_words()

    def _learn(self, word: Word) -> None:
        """Take a status unless something as new or newer is known."""
        known = self._versions.get(word.user_id)
        if known is not None and word.version <= known[0]:
            return
        is_online = word.status == "online"
        self._know(word.user_id, word.version, is_online=is_online)
        self._onlookers.changed(word.user_id, Change(is_online, None if is_online else word.last_seen, word.chosen))

    def _correct(self, user_id: UUID, *, is_online: bool) -> None:
        """What was judged here alone may have been wrong: the user had a device elsewhere."""
        version, was_online = self._versions.get(user_id, (0, is_online))
        if was_online != is_online:
            self._know(user_id, version, is_online=is_online)
            self._onlookers.changed(user_id, Change(is_online))

    def _know(self, user_id: UUID, version: int, *, is_online: bool) -> None:
        self._versions[user_id] = (version, is_online)
        self._versions.move_to_end(user_id)
        if len(self._versions) > MAX_VERSIONS:
            self._versions.popitem(last=False)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._wall_clock(), UTC)
