"""The offline queue: what came for those who were not there, kept in Redis for the first page of their catching up.

The process that appended an entry pushes it for whoever is connected nowhere, and each process for those who have just left it.
A push may be lost and may be repeated: elements are a chain, and a reader takes only what hangs together. Rule: a process
believes the queue only of entries that have passed through its own tailer, and only above the last one by which something was
taken back from that user; so a page from here is what PostgreSQL would have given, or nothing (store/offline.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Final
from uuid import UUID

import trio

from uim.chat.memberships import Memberships
from uim.log import get_logger
from uim.model.message import Entry
from uim.store import offline as store
from uim.store.redis import UNREADABLE, Command, RedisAway, RedisLink

# Pushes are gathered this long, so that a busy group costs one command a member and not one a message.
GATHER_S: Final = 0.1
REST_S: Final = 0.5
# Of one gathering, so that the link stays free for others; the rest waits for the next.
USERS_AT_ONCE: Final = 200
BYTES_AT_ONCE: Final = 1024 * 1024
# Beyond these something is dropped, and PostgreSQL gives it.
MAX_WAITING: Final = 10_000
MAX_USERS: Final = 50_000

log = get_logger(__name__)


class Newest:
    """Of each user the newest visible entry that has passed, in bounded memory: two generations, of which the older goes.

    Law: whatever has passed that a user may see is at or below `bound(user)`; for those not remembered that is the floor,
    which is where the forgotten generation ended, or where we began.
    """

    def __init__(self, floor: int, most: int = MAX_USERS) -> None:
        self._floor = self._turned_at = floor
        self._most = most
        self._young: dict[UUID, int] = {}
        self._old: dict[UUID, int] = {}

    def note(self, user_id: UUID, message_id: int) -> None:
        self._young[user_id] = message_id

    def of(self, user_id: UUID) -> int | None:
        """None: nothing has passed for that user above the floor."""
        return self._young.get(user_id) or self._old.get(user_id)

    def bound(self, user_id: UUID) -> int:
        return self.of(user_id) or self._floor

    def turn(self, position: int) -> None:
        """Once everything up to `position` is noted: forget the older generation if the younger is full."""
        if len(self._young) >= self._most:
            self._old, self._young = self._young, {}
            self._floor, self._turned_at = self._turned_at, position


class Offline:
    """One a process; `run` is its task. What does not say `async` does not await.

    `is_here(user)`: connected to this process; `holds(user)`: or in its grace here; `seems_online(user)`: connected anywhere, as
    far as is known; `epoch_base()`: of the present epoch. Wrong answers cost pages from PostgreSQL, nothing else.
    """

    def __init__(
        self,
        link: RedisLink,
        memberships: Memberships,
        *,
        is_here: Callable[[UUID], bool],
        holds: Callable[[UUID], bool],
        seems_online: Callable[[UUID], bool],
        epoch_base: Callable[[], int],
        most_users: int = MAX_USERS,
    ) -> None:
        self._link = link
        self._memberships = memberships
        self._is_here = is_here
        self._holds = holds
        self._seems_online = seems_online
        self._epoch_base = epoch_base
        self._most_users = most_users
        self._ours: set[int] = set()
        self._waiting: dict[UUID, list[tuple[int, int, Entry]]] = {}
        self._waiting_entries = 0
        self._to_forget: set[UUID] = set()
        self._wake = trio.Event()
        self.pushed = 0
        self._begin(0)

    def _begin(self, position: int) -> None:
        """Nothing at or below `position` is known: not who saw what, and not what was taken back."""
        self._position = self._trusted_above = position
        self._newest = Newest(position, self._most_users)
        self._taken_back: dict[UUID, int] = {}

    # -- what passes ------------------------------------------------------------------------------------------------------

    def appended(self, entries: Iterable[Entry]) -> None:
        """This process has committed these: it is the one to push them."""
        if len(self._ours) > MAX_WAITING:
            self._ours.clear()
        self._ours.update(entry.message_id for entry in entries)

    def handed_on(self, batch: list[Entry]) -> None:
        """The next entries of the log, in its order; their conversations' stays are known."""
        first, last = batch[0].message_id, batch[-1].message_id
        if first != self._position + 1:
            self._begin(first - 1)
        if last - first + 1 != len(batch):
            self._begin(last)  # an epoch begins in there
            return
        self._position = last
        absent: dict[UUID, list[Entry]] = {}
        for together, audience in self._by_audience(batch):
            for user_id in audience:
                if self._is_here(user_id):
                    self._newest.note(user_id, together[-1].message_id)
                else:
                    absent.setdefault(user_id, []).extend(together)
        for user_id, entries in absent.items():
            self._push(user_id, sorted(entries, key=_place))
        for entry in batch:
            if entry.message_type in ("deletion", "account"):
                self._follow(entry)
        self._ours.difference_update(range(first, last + 1))
        self._newest.turn(last)

    def _by_audience(self, batch: list[Entry]) -> Iterator[tuple[list[Entry], Collection[UUID]]]:
        """Entries of one conversation that the same users may see, in the order of each group's last one."""
        groups: dict[UUID, list[Entry]] = {}
        for entry in batch:
            groups.setdefault(entry.conversation_id, []).append(entry)
        found: list[tuple[list[Entry], Collection[UUID]]] = []
        for conversation_id, entries in groups.items():
            membership = self._memberships.get(conversation_id)
            assert membership is not None
            if entries[0].message_id > membership.settled:
                found.append((entries, membership.open))
            else:
                found += [([entry], membership.audience(entry.message_id)) for entry in entries]
        yield from sorted(found, key=lambda group: group[0][-1].message_id)

    def _push(self, user_id: UUID, entries: list[Entry]) -> None:
        after = self._newest.bound(user_id)
        # While the grace lasts the other processes take that user for online.
        everything = self._holds(user_id)
        ours_alone = not everything and not self._seems_online(user_id)
        epoch = self._epoch_base()
        for entry in entries:
            if everything or (ours_alone and entry.message_id in self._ours):
                self._wait(user_id, (epoch, after, entry))
            after = entry.message_id
        self._newest.note(user_id, after)

    def _wait(self, user_id: UUID, link: tuple[int, int, Entry]) -> None:
        if self._waiting_entries >= MAX_WAITING:
            return
        waiting = self._waiting.setdefault(user_id, [])
        if len(waiting) < store.MOST:
            waiting.append(link)
            self._waiting_entries += 1
            self._wake.set()

    # -- what is taken back -----------------------------------------------------------------------------------------------

    def _follow(self, entry: Entry) -> None:
        """Everybody who could see what this entry takes back has no queue below it any more."""
        event = entry.event
        membership = self._memberships.get(entry.conversation_id)
        assert membership is not None
        users = set(membership.audience(entry.message_id))
        if entry.message_type == "deletion":
            # Also those who have left since.
            users.update(membership.audience(event["target_message_id"]))
        elif event.get("event") != "hidden":
            return
        if len(self._taken_back) + len(users) > self._most_users:
            self._taken_back.clear()
            self._trusted_above = entry.message_id
        for user_id in users:
            self._taken_back[user_id] = entry.message_id
            self.forget(user_id)

    def forget(self, user_id: UUID) -> None:
        """Remove that user's queue, here and, as soon as it answers, from Redis."""
        self._waiting_entries -= len(self._waiting.pop(user_id, ()))
        if len(self._to_forget) < MAX_WAITING:
            self._to_forget.add(user_id)
            self._wake.set()

    def _believed_above(self, user_id: UUID) -> int:
        return max(self._trusted_above, self._taken_back.get(user_id, 0))

    # -- reading ----------------------------------------------------------------------------------------------------------

    async def page(self, *, user_id: UUID, after: int, limit: int) -> list[Entry]:
        """What follows a cursor, if the queue has it without a gap: `limit` entries, or all that has passed, or none."""
        if self._newest.bound(user_id) <= max(after, self._believed_above(user_id)):
            return []  # nothing has passed that could be in there
        try:
            held = await store.read(self._link, user_id, after=after, limit=limit)
        except RedisAway:
            return []
        found = self.believed(held, user_id=user_id, after=after, limit=limit)
        # A few before a gap are not worth a page of their own.
        is_whole = bool(found) and (len(found) == limit or found[-1].message_id >= self._newest.bound(user_id))
        return found if is_whole else []

    def believed(self, held: Iterable[bytes], *, user_id: UUID, after: int, limit: int) -> list[Entry]:
        """Of a queue as it was read what is certain, by what has passed here until now."""
        try:
            return store.chain(
                held,
                epoch=self._epoch_base(),
                after=after,
                above=self._believed_above(user_id),
                up_to=self._position,
                limit=limit,
            )
        except UNREADABLE as odd:
            log.warning("an offline queue that this release does not know", user_id=str(user_id), error=str(odd))
            return []

    # -- the task ---------------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Push what is gathered until cancelled; what waits then is lost, which is no loss."""
        task_status.started()
        while True:
            await self._wake.wait()
            await trio.sleep(GATHER_S)
            self._wake = trio.Event()
            await self._forget_queues()
            for command in self.take():
                self._link.send(*command)
            if self._waiting:
                self._wake.set()

    async def _forget_queues(self) -> None:
        going, self._to_forget = self._to_forget, set()
        if not going:
            return
        try:
            await store.forget(self._link, going)
        except RedisAway:
            # Until it is back nobody reads them either; afterwards no living process believes them.
            self._to_forget |= going
            self._wake.set()
            await trio.sleep(REST_S)

    def take(self) -> list[Command]:
        """The next pushes, one command a user; what was too long to keep is a gap."""
        commands: list[Command] = []
        size = 0
        shared: dict[int, bytes | None] = {}
        while self._waiting and len(commands) < USERS_AT_ONCE and size < BYTES_AT_ONCE:
            user_id = next(iter(self._waiting))
            links = self._waiting.pop(user_id)
            self._waiting_entries -= len(links)
            elements: list[bytes] = []
            for epoch, after, entry in links:
                if entry.message_id not in shared:
                    shared[entry.message_id] = store.shared_part(entry)
                if (part := shared[entry.message_id]) is not None:
                    elements.append(store.element(epoch=epoch, after=after, shared=part))
            if elements:
                commands.append(store.push_command(user_id, elements))
                self.pushed += len(elements)
                size += sum(map(len, elements))
        return commands


def _place(entry: Entry) -> int:
    return entry.message_id
