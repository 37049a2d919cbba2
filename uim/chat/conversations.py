"""Conversations: making them, listing them, looking at one, and the way of every verb into the log.

What changes a conversation goes through the writer, in line with the sends, under a key fixed before its first try; what is
answered is read after the commit. Rule: what the caller may not see does not exist (`not_found`), and never `forbidden`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Final
from uuid import UUID, uuid4

import msgspec
from msgspec import Meta

from uim.chat import groups
from uim.chat.appending import Append
from uim.chat.writer import Writer
from uim.errors import invalid, not_found
from uim.model.conversation import MAX_MEMBERS, MIN_FOUNDERS, ConversationView, Removed
from uim.model.ids import MAX_MESSAGE_ID, rfc3339
from uim.store import conversations, listing, messages, people, seats
from uim.store.listing import Place
from uim.store.postgres import Connection, Pool
from uim.wire.paging import cursor_of, mark_of

# A transaction notes a time and commits later, but never this much later: its statements end before (statement_timeout).
OVERLAP: Final = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class ConversationPage:
    """One page of a user's list. `as_of` is what to give as changed_since the next time."""

    items: list[ConversationView | Removed]
    next: str | None
    as_of: str


class _Mark(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where the list goes on, and the question that it answers: `as_of` and `since` of the first page hold for all."""

    at_us: Annotated[int, Meta(ge=0, le=2**62)]
    message_id: Annotated[int, Meta(ge=0, le=MAX_MESSAGE_ID)]
    conversation_id: UUID
    as_of: str
    since: Annotated[datetime, Meta(tz=True)] | None


class Conversations:
    """The room of conversations. `on_made(conversation_id)` hears, after the commit, of a one-on-one, which has no entry."""

    def __init__(self, pool: Pool, writer: Writer, on_made: Callable[[UUID], None]) -> None:
        self._pool = pool
        self._writer = writer
        self._on_made = on_made

    # -- looking ----------------------------------------------------------------------------------------------------------

    async def view(self, *, user_id: UUID, conversation_id: UUID) -> ConversationView:
        """One conversation as this user sees it. Raises `not_found`."""
        async with self._pool.connection() as tx:
            found = await conversations.views(tx, user_id=user_id, conversation_ids=[conversation_id])
        if conversation_id not in found:
            raise not_found("no such conversation")
        return found[conversation_id]

    async def page(self, *, user_id: UUID, changed_since: datetime | None, cursor: str | None, limit: int) -> ConversationPage:
        """A user's conversations, newest activity first; a cursor carries the `changed_since` of its first page.

        With `changed_since`, what has changed after it (less five seconds, so that nothing falls between two questions).
        """
        mark = mark_of(cursor, _Mark) if cursor is not None else None
        below = Place(mark.at_us, mark.message_id, mark.conversation_id) if mark is not None else None
        async with self._pool.connection() as tx:
            since = mark.since if mark is not None else _with_overlap(changed_since)
            now, found = await listing.listed(tx, user_id=user_id, changed_since=since, below=below, limit=limit + 1)
        here = found[:limit]
        items = [each.view or Removed(each.place.conversation_id) for each in here]
        as_of = mark.as_of if mark is not None else rfc3339(now)
        return ConversationPage(items, _next(here[-1].place, as_of, since) if len(found) > limit else None, as_of)

    # -- making -----------------------------------------------------------------------------------------------------------

    async def make_one_on_one(
        self, *, user_id: UUID, other_id: UUID, client_conversation_id: UUID | None = None
    ) -> tuple[ConversationView, bool]:
        """The one conversation of two users, and whether this call has made it.

        Raises `not_found` (no such user), `blocked`, `forbidden`, `validation_failed` (with oneself). Cancelled: it may be made.
        """
        if other_id == user_id:
            raise invalid("participant_ids", "must be somebody else")
        planned = uuid4()

        async def act(tx: Connection, append: Append) -> UUID:
            known = await _known(tx, user_id, client_conversation_id) or await seats.of_pair(tx, user_id, other_id)
            if known is not None:
                return known
            await groups.judge_company(tx, user_id, [other_id])
            return await seats.open_pair(
                tx,
                conversation_id=planned,
                user_id=user_id,
                other_id=other_id,
                client_conversation_id=client_conversation_id,
            )

        conversation_id = await self._writer.do(act, key=planned)
        if conversation_id == planned:
            self._on_made(planned)
        return await self.view(user_id=user_id, conversation_id=conversation_id), conversation_id == planned

    async def make_group(
        self, *, user_id: UUID, name: str, member_ids: Sequence[UUID], client_conversation_id: UUID | None = None
    ) -> tuple[ConversationView, bool]:
        """A new group, or the first one made under the same client id; and whether this call has made it.

        Raises `not_found` (no such user), `blocked`, `forbidden`, `validation_failed`. Cancelled: it may be made.
        """
        others = [member_id for member_id in member_ids if member_id != user_id]
        _refuse_twice(others, "participant_ids")
        if not MIN_FOUNDERS <= len(others) + 1 <= MAX_MEMBERS:
            raise invalid("participant_ids", f"a group has {MIN_FOUNDERS} to {MAX_MEMBERS} members, the creator included")
        planned = uuid4()

        async def act(tx: Connection, append: Append) -> UUID:
            known = await _known(tx, user_id, client_conversation_id)
            if known is not None:
                return known
            await groups.found(
                tx,
                append,
                conversation_id=planned,
                founder_id=user_id,
                name=name,
                others=others,
                client_conversation_id=client_conversation_id,
            )
            return planned

        conversation_id = await self._writer.do(act, key=planned)
        return await self.view(user_id=user_id, conversation_id=conversation_id), conversation_id == planned

    # -- changing: each raises `not_found`, `forbidden`, `not_a_group`; cancelled, it may still happen -----------------------

    async def add(self, *, user_id: UUID, conversation_id: UUID, user_ids: Sequence[UUID]) -> ConversationView:
        """Add users to a group, all or none. Also raises `blocked` and `group_full`."""
        _refuse_twice(user_ids, "user_ids")
        await self._do(
            lambda tx, append: groups.add(tx, append, conversation_id=conversation_id, actor_id=user_id, user_ids=user_ids)
        )
        return await self.view(user_id=user_id, conversation_id=conversation_id)

    async def remove(self, *, user_id: UUID, conversation_id: UUID, target_id: UUID) -> None:
        """Remove a member from a group, or leave it."""
        await self._do(
            lambda tx, append: groups.remove(tx, append, conversation_id=conversation_id, actor_id=user_id, target_id=target_id)
        )

    async def change_role(self, *, user_id: UUID, conversation_id: UUID, target_id: UUID, role: str) -> ConversationView:
        """Give a member another role. Also raises `conflict` for an owner who would leave the group without one."""
        await self._do(
            lambda tx, append: groups.change_role(
                tx, append, conversation_id=conversation_id, actor_id=user_id, target_id=target_id, role=role
            )
        )
        return await self.view(user_id=user_id, conversation_id=conversation_id)

    async def rename(self, *, user_id: UUID, conversation_id: UUID, name: str) -> ConversationView:
        await self._do(lambda tx, append: groups.rename(tx, append, conversation_id=conversation_id, actor_id=user_id, name=name))
        return await self.view(user_id=user_id, conversation_id=conversation_id)

    async def delete(self, *, user_id: UUID, conversation_id: UUID) -> None:
        """End a group for all; hide a one-on-one from one's own list until its next entry."""

        async def act(tx: Connection, append: Append) -> None:
            room, seat = await groups.room_of(tx, conversation_id, user_id)
            if room.is_group:
                await groups.delete(tx, append, room=room, actor=seat)
            else:
                await _hide(tx, append, conversation_id=conversation_id, user_id=user_id)

        await self._do(act)

    async def _do(self, act: Callable[[Connection, Append], Awaitable[None]]) -> None:
        await self._writer.do(act, key=uuid4())


async def _known(tx: Connection, user_id: UUID, client_conversation_id: UUID | None) -> UUID | None:
    if client_conversation_id is None:
        return None
    return await seats.made_under(tx, user_id=user_id, client_conversation_id=client_conversation_id)


async def _hide(tx: Connection, append: Append, *, conversation_id: UUID, user_id: UUID) -> None:
    """Hide up to the log's head, and tell the user's other devices by an account entry."""
    up_to = await messages.head(tx)
    await seats.hide(tx, conversation_id=conversation_id, user_id=user_id, up_to=up_to)
    await append(
        conversation_id=await people.self_conversation_of(tx, user_id),
        sender_id=user_id,
        message_type="account",
        # Not under the name message_id: with that the entry tells of one message that is hidden (chat/deletion.py).
        event={"event": "hidden", "conversation_id": str(conversation_id), "up_to": up_to},
    )


def _refuse_twice(user_ids: Sequence[UUID], field: str) -> None:
    if len(set(user_ids)) < len(user_ids):
        raise invalid(field, "names a user twice")


def _with_overlap(changed_since: datetime | None) -> datetime | None:
    if changed_since is None:
        return None
    try:
        return changed_since - OVERLAP
    except OverflowError:
        return changed_since  # the first second of all time


def _next(last: Place, as_of: str, since: datetime | None) -> str:
    return cursor_of(_Mark(last.at_us, last.message_id, last.conversation_id, as_of, since))
