"""The past of a conversation: pages of it, and one message.

Rule: who is not a member now gets `not_found`; who is gets what lies in their own stays, earlier ones too. Items stand in
ascending message_id order whatever the direction, and `next` is null only where there is nothing further that way.
"""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import msgspec
from msgspec import Meta

from uim.errors import UIMError, not_found
from uim.model.ids import MAX_MESSAGE_ID
from uim.model.message import DeliveryCounts, Entry
from uim.store import history
from uim.store.postgres import Connection, Pool
from uim.wire.frames import TrackedMessage, hidden_object, tracked_message
from uim.wire.paging import cursor_of, mark_of


class _Mark(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where a page ended: the next one goes on beyond this id, up or down."""

    up: bool
    message_id: Annotated[int, Meta(ge=0, le=MAX_MESSAGE_ID)]


class HistoryPage(msgspec.Struct, frozen=True):
    """Messages in ascending message_id order, for msgspec to encode. `next` goes on in the page's direction."""

    items: list[TrackedMessage | msgspec.Raw]
    next: str | None


class History:
    """The room of history. Everything here only reads; cancelling has no effect but that."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def page(
        self,
        *,
        user_id: UUID,
        conversation_id: UUID,
        before: int | None = None,
        after: int | None = None,
        around: int | None = None,
        cursor: str | None = None,
        limit: int,
    ) -> HistoryPage:
        """A page at one of these places; without any, the newest.

        `next` of `before` (and of none) leads to older entries, that of `after` and `around` to newer ones; older ones than
        a page around a message come with `before` its first. Raises `not_found`; `validation_failed` for two places at once.
        """
        if sum(place is not None for place in (before, after, around, cursor)) > 1:
            raise UIMError("validation_failed", "give at most one of before, after, around and cursor")
        if cursor is not None:
            mark = mark_of(cursor, _Mark)
            before, after = (None, mark.message_id) if mark.up else (mark.message_id, None)
        async with self._pool.connection() as tx:
            look = _Look(tx, user_id, conversation_id, limit)
            if around is not None:
                entries, next_mark = await look.around(around)
            elif after is not None:
                entries, next_mark = await look.up(after)
            else:
                entries, next_mark = await look.down(before if before is not None else MAX_MESSAGE_ID + 1)
        items = [
            tracked_message(entry, own=entry.sender_id == user_id, status=look.counts.get(entry.message_id))
            if entry.message_id not in look.hidden
            else msgspec.Raw(hidden_object(entry))
            for entry in entries
        ]
        return HistoryPage(items, cursor_of(next_mark) if next_mark is not None else None)

    async def message(self, *, user_id: UUID, conversation_id: UUID, message_id: int) -> bytes:
        """One encoded message; for its sender with who has received and read it. Raises `not_found`."""
        async with self._pool.connection() as tx:
            found = await history.entry(tx, user_id=user_id, conversation_id=conversation_id, message_id=message_id)
            if found is None:
                raise not_found("no such conversation")
            if not found.entries:
                raise not_found("no such message")
            (entry,) = found.entries
            if found.hidden:
                return hidden_object(entry)
            own = history.is_own(entry, user_id)
            status = await history.delivery_status(tx, sender_id=user_id, entry=entry) if own else None
        return msgspec.json.encode(tracked_message(entry, own=entry.sender_id == user_id, status=status))


class _Look:
    """One member's look at one conversation: entries in ascending order, and where to go on, if anywhere.

    Raises `not_found` for who is no member. `hidden` are those that the member has deleted for themselves, `counts` those of their own.
    """

    def __init__(self, tx: Connection, user_id: UUID, conversation_id: UUID, limit: int) -> None:
        self._tx = tx
        self._who = {"user_id": user_id, "conversation_id": conversation_id}
        self._limit = limit
        self.hidden: set[int] = set()
        self.counts: dict[int, DeliveryCounts] = {}

    async def down(self, below: int) -> tuple[list[Entry], _Mark | None]:
        found = await self._down(below, self._limit + 1)
        here = found[: self._limit][::-1]
        return here, _Mark(False, here[0].message_id) if len(found) > self._limit else None

    async def up(self, above: int) -> tuple[list[Entry], _Mark | None]:
        found = await self._up(above, self._limit + 1)
        here = found[: self._limit]
        return here, _Mark(True, here[-1].message_id) if len(found) > self._limit else None

    async def around(self, middle: int) -> tuple[list[Entry], _Mark | None]:
        """Half of the page below the message, the rest from it on; near an end the other side fills the page."""
        older = await self._down(middle, self._limit)
        newer = await self._up(middle - 1, self._limit + 1)
        taken_below = max(self._limit // 2, self._limit - len(newer))
        below = older[:taken_below][::-1]
        wanted = self._limit - len(below)
        here = below + newer[:wanted]
        return here, _Mark(True, here[-1].message_id) if len(newer) > wanted else None

    async def _down(self, below: int, limit: int) -> list[Entry]:
        return self._seen(await history.entries_down(self._tx, **self._who, below=below, limit=limit))

    async def _up(self, above: int, limit: int) -> list[Entry]:
        return self._seen(await history.entries_up(self._tx, **self._who, above=above, limit=limit))

    def _seen(self, found: history.Stretch | None) -> list[Entry]:
        if found is None:
            raise not_found("no such conversation")
        self.hidden |= found.hidden
        self.counts |= found.counts
        return found.entries
