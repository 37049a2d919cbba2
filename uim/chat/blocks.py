"""Blocks: the verbs, and who is kept apart from whom among those connected here.

What is stored is judged in SQL, where it is stored (texts, requests, groups, profiles); what is only passed on (typing) asks
`apart`. The answers follow the log: each block is an account entry, which every process reads in order, bus or not. Rule: a
block is told to the blocker's own devices and to nobody else; where nothing is known of two users they count as apart.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final
from uuid import UUID, uuid4

import msgspec

from uim.chat.appending import Append
from uim.chat.friends import PlaceMark, end_between, tell
from uim.chat.switchboard import Switchboard
from uim.chat.writer import Writer
from uim.errors import invalid, not_found
from uim.model.ids import rfc3339
from uim.model.message import Entry
from uim.model.person import User
from uim.store import blocks, friends, people
from uim.store.postgres import Connection, Pool

# Before this many are known nobody is forgotten; then those who are not connected here any more.
KEEP_AT_LEAST: Final = 2_000


class BlockedUser(msgspec.Struct, frozen=True):
    """Somebody whom the caller has blocked: only the names, and since when (RFC 3339)."""

    user: User
    since: str


@dataclass(frozen=True, slots=True)
class BlockPage:
    items: list[BlockedUser]
    next: str | None


@dataclass(slots=True)
class _Around:
    """Everybody that one user blocks, and everybody that blocks them. Frozen sets: most are empty, and all empty ones are one."""

    blocking: frozenset[UUID]
    blocked_by: frozenset[UUID]


@dataclass(frozen=True, slots=True)
class _Change:
    blocker_id: UUID
    blocked_id: UUID
    stands: bool


class Blocks:
    """One a process. `on_parted(one, other)` hears, without awaiting, of each new block, wherever it was made."""

    def __init__(
        self,
        pool: Pool,
        writer: Writer,
        switchboard: Switchboard,
        *,
        on_parted: Callable[[UUID, UUID], None] = lambda one, other: None,
    ) -> None:
        self._pool = pool
        self._writer = writer
        self._switchboard = switchboard
        self._on_parted = on_parted
        self._known: dict[UUID, _Around] = {}
        self._forget_above = KEEP_AT_LEAST
        # What the log says while somebody is being loaded: the load may be older than it.
        self._news: dict[object, list[_Change]] = {}

    # -- the verbs: each raises `unavailable` while the database is away; cancelled, it may still happen ----------------------

    async def block(self, *, user_id: UUID, other_id: UUID) -> None:
        """Block somebody; a friendship or request between the two ends. Raises `not_found`, `validation_failed` (oneself)."""
        if other_id == user_id:
            raise invalid("user_id", "must be somebody else")

        async def act(tx: Connection, append: Append) -> None:
            if len(await friends.lock_people(tx, (user_id, other_id))) < 2:
                raise not_found("no such user")
            if await blocks.add(tx, user_id=user_id, blocked_id=other_id):
                await end_between(tx, append, user_id, other_id)
                await tell(tx, append, user_id, "blocked", user_id=str(other_id))

        await self._writer.do(act, key=uuid4())

    async def unblock(self, *, user_id: UUID, other_id: UUID) -> None:
        """Unblock somebody, which brings nothing back. Raises `not_found` where there is no block."""

        async def act(tx: Connection, append: Append) -> None:
            await friends.lock_people(tx, (user_id, other_id))
            if not await blocks.remove(tx, user_id=user_id, blocked_id=other_id):
                raise not_found("you have not blocked this user")
            await tell(tx, append, user_id, "unblocked", user_id=str(other_id))

        await self._writer.do(act, key=uuid4())

    async def page(self, *, user_id: UUID, cursor: str | None, limit: int) -> BlockPage:
        """Whom a user has blocked, the newest first."""
        below = PlaceMark.below(cursor)
        async with self._pool.connection() as tx:
            found = await blocks.listed(tx, user_id=user_id, below=below, limit=limit + 1)
            here = found[:limit]
            users = await people.users_by_id(tx, viewer=user_id, user_ids=[one.place.user_id for one in here])
        items = [BlockedUser(users[one.place.user_id], rfc3339(one.since)) for one in here if one.place.user_id in users]
        return BlockPage(items, PlaceMark.after(here[-1].place) if len(found) > limit else None)

    # -- who is apart ---------------------------------------------------------------------------------------------------------

    def apart(self, one: UUID, other: UUID) -> bool:
        """Whether a block stands between two users, of whom one at least is connected here. Does not await."""
        if (around := self._known.get(one)) is not None:
            return other in around.blocking or other in around.blocked_by
        if (around := self._known.get(other)) is not None:
            return one in around.blocking or one in around.blocked_by
        return True

    async def learn(self, tx: Connection, user_ids: Collection[UUID]) -> None:
        """Know these users' blocks from now on; for each connection, before anything is passed on to it."""
        loading = object()
        news: list[_Change] = []
        self._news[loading] = news
        try:
            found = await blocks.around(tx, user_ids)
        finally:
            del self._news[loading]
        self._forget_absent()
        for user_id, (blocking, blocked_by) in found.items():
            self._known[user_id] = _Around(frozenset(blocking), frozenset(blocked_by))
        for change in news:
            self._apply(change)

    def follow(self, entry: Entry) -> None:
        """Move over one account entry of the log. Does not await."""
        event = entry.event
        if event.get("event") not in ("blocked", "unblocked"):
            return
        change = _Change(entry.sender_id, UUID(event["user_id"]), event["event"] == "blocked")
        for news in self._news.values():
            news.append(change)
        self._apply(change)
        if change.stands:
            self._on_parted(change.blocker_id, change.blocked_id)

    def clear(self) -> None:
        """Forget all of it: each connection learns its own again, and until then counts as apart. Does not await."""
        self._known.clear()

    def _apply(self, change: _Change) -> None:
        if (around := self._known.get(change.blocker_id)) is not None:
            other = {change.blocked_id}
            around.blocking = around.blocking | other if change.stands else around.blocking - other
        if (around := self._known.get(change.blocked_id)) is not None:
            other = {change.blocker_id}
            around.blocked_by = around.blocked_by | other if change.stands else around.blocked_by - other

    def _forget_absent(self) -> None:
        """Now and then, so that it costs each connection a constant: whoever is not connected here is forgotten."""
        if len(self._known) >= self._forget_above:
            self._known = {user_id: around for user_id, around in self._known.items() if self._switchboard.is_here(user_id)}
            self._forget_above = max(KEEP_AT_LEAST, 2 * len(self._known))
