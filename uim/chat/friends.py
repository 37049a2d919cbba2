"""Friends: asking, accepting, ending, and the list.

Every change is one verb of the log's writer, with an account entry for each of the two who are to know, so all their devices
learn it live or later. Rule: a block is told to nobody: a request to somebody who blocks its sender is kept from the one and
looks like any other to the other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated
from uuid import UUID, uuid4

import msgspec
from msgspec import Meta

from uim.chat.appending import Append
from uim.chat.writer import Writer
from uim.errors import UIMError, invalid, not_found
from uim.model.ids import rfc3339
from uim.model.person import User
from uim.model.presence import NOT_SHOWN, ShownPresence
from uim.store import friends, people, seats
from uim.store.friends import Listed, Place, State
from uim.store.postgres import Connection, Pool
from uim.wire.paging import cursor_of, mark_of

PresenceOf = Callable[[UUID, Sequence[UUID]], Awaitable[Mapping[UUID, ShownPresence]]]


async def nobody_is_here(viewer_id: UUID, user_ids: Sequence[UUID]) -> Mapping[UUID, ShownPresence]:
    return {}


class Friend(msgspec.Struct, frozen=True):
    """Somebody in a user's list of friends and requests; `since` is when that state began, RFC 3339."""

    user: User
    state: State
    since: str
    presence: ShownPresence


@dataclass(frozen=True, slots=True)
class FriendPage:
    items: list[Friend]
    next: str | None


class PlaceMark(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where a list of people goes on: below this place."""

    at_us: Annotated[int, Meta(ge=0, le=2**62)]
    user_id: UUID

    @classmethod
    def below(cls, cursor: str | None) -> Place | None:
        """The place in a client's cursor. Raises `validation_failed`."""
        if cursor is None:
            return None
        mark = mark_of(cursor, cls)
        return Place(mark.at_us, mark.user_id)

    @classmethod
    def after(cls, place: Place) -> str:
        return cursor_of(cls(place.at_us, place.user_id))


class Friends:
    """The verbs. Each raises `unavailable` while the database is away; cancelled, it may still happen.

    `presence_of(viewer_id, user_ids)` tells what the viewer may know of these users' presence; who is missing is offline.
    """

    def __init__(self, pool: Pool, writer: Writer, presence_of: PresenceOf = nobody_is_here) -> None:
        self._pool = pool
        self._writer = writer
        self._presence_of = presence_of

    async def page(self, *, user_id: UUID, cursor: str | None, limit: int) -> FriendPage:
        """Friends and open requests, the newest first."""
        below = PlaceMark.below(cursor)
        async with self._pool.connection() as tx:
            found = await friends.listed(tx, user_id=user_id, below=below, limit=limit + 1)
            here = found[:limit]
            users = await people.users_by_id(tx, viewer=user_id, user_ids=[one.place.user_id for one in here])
        items = await self._shown(user_id, [(users[one.place.user_id], one) for one in here if one.place.user_id in users])
        return FriendPage(items, PlaceMark.after(here[-1].place) if len(found) > limit else None)

    async def request(self, *, user_id: UUID, other_id: UUID) -> tuple[Friend, bool]:
        """Ask somebody to be friends, or accept who has asked; and whether this call has made a request.

        Raises `not_found` (no such user), `blocked` (by oneself), `validation_failed` (oneself).
        """
        if other_id == user_id:
            raise invalid("user_id", "must be somebody else")

        async def act(tx: Connection, append: Append) -> bool:
            if len(await friends.lock_people(tx, (user_id, other_id))) < 2:
                raise not_found("no such user")
            return await _request(tx, append, user_id, other_id)

        made = await self._writer.do(act, key=uuid4())
        return await self._one(user_id, other_id), made

    async def accept(self, *, user_id: UUID, other_id: UUID) -> Friend:
        """Accept a request; nothing happens to one who is a friend already. Raises `not_found` where nobody has asked."""

        async def act(tx: Connection, append: Append) -> None:
            await friends.lock_people(tx, (user_id, other_id))
            known = await friends.between(tx, user_id, other_id)
            if known is None or known.status == "rejected" or (known.status == "pending" and known.asker_id == user_id):
                raise not_found("no such request")
            if known.status == "pending":
                await _accept(tx, append, asker_id=other_id, asked_id=user_id)

        await self._writer.do(act, key=uuid4())
        return await self._one(user_id, other_id)

    async def end(self, *, user_id: UUID, other_id: UUID) -> None:
        """Unfriend, or reject or withdraw a request. Raises `not_found` where there is nothing of these."""

        async def act(tx: Connection, append: Append) -> None:
            await friends.lock_people(tx, (user_id, other_id))
            if not await end_between(tx, append, user_id, other_id):
                raise not_found("no such friend or request")

        await self._writer.do(act, key=uuid4())

    async def _one(self, user_id: UUID, other_id: UUID) -> Friend:
        async with self._pool.connection() as tx:
            state = await friends.state_of(tx, user_id=user_id, other_id=other_id)
            users = await people.users_by_id(tx, viewer=user_id, user_ids=[other_id])
        if state is None or other_id not in users:
            raise not_found("no such request")  # it was ended again this moment
        return (await self._shown(user_id, [(users[other_id], Listed(Place(0, other_id), *state))]))[0]

    async def _shown(self, viewer_id: UUID, listed: Sequence[tuple[User, Listed]]) -> list[Friend]:
        known = await self._presence_of(viewer_id, [user.user_id for user, one in listed if one.state == "friend"])
        return [
            Friend(user, one.state, rfc3339(one.since), known.get(user.user_id, NOT_SHOWN))
            for user, one in listed
        ]


async def end_between(tx: Connection, append: Append, user_id: UUID, other_id: UUID) -> bool:
    """End, on behalf of `user_id`, whatever stands between the two; False if there is nothing that this user knows of.

    Both are told the same way whichever it was, so that nobody can tell a block from an unfriend or a rejection.
    """
    known = await friends.between(tx, user_id, other_id)
    if known is None or (known.status == "rejected" and known.asker_id == other_id):
        return False
    await friends.end(tx, user_id, other_id)
    await tell(tx, append, user_id, "friend_removed", user_id=str(other_id))
    if known.status != "rejected":
        await tell(tx, append, other_id, "friend_removed", user_id=str(user_id))
    return True


async def tell(tx: Connection, append: Append, owner_id: UUID, event: str, **facts: str) -> None:
    """An account entry for one user's own devices."""
    own = await people.self_conversation_of(tx, owner_id)
    await append(conversation_id=own, sender_id=owner_id, message_type="account", event={"event": event, **facts})


async def _request(tx: Connection, append: Append, user_id: UUID, other_id: UUID) -> bool:
    blocked, blocking = await seats.blocks_between(tx, user_id, [other_id])
    if blocked:
        raise UIMError("blocked", "unblock first")
    known = await friends.between(tx, user_id, other_id)
    if known is None:
        return await _ask(tx, append, user_id, other_id, is_kept_back=bool(blocking))
    if known.status == "rejected" and known.asker_id == other_id:
        # It was kept back by a block that is no more, and stays without force: whom it was kept from now asks on their own.
        await friends.end(tx, user_id, other_id)
        return await _ask(tx, append, user_id, other_id, is_kept_back=bool(blocking))
    if known.status == "pending" and known.asker_id == other_id:
        await _accept(tx, append, asker_id=other_id, asked_id=user_id)
    elif known.status == "rejected" and not blocking:
        # The block is no more: unblocking has brought nothing back, but this is a new request to who sees it now.
        await friends.let_through(tx, asker_id=user_id, asked_id=other_id)
        await tell(tx, append, other_id, "friend_request", user_id=str(user_id), state="incoming")
    return False


async def _ask(tx: Connection, append: Append, user_id: UUID, other_id: UUID, *, is_kept_back: bool) -> bool:
    await friends.add(tx, asker_id=user_id, asked_id=other_id, status="rejected" if is_kept_back else "pending")
    await tell(tx, append, user_id, "friend_request", user_id=str(other_id), state="outgoing")
    if not is_kept_back:
        await tell(tx, append, other_id, "friend_request", user_id=str(user_id), state="incoming")
    return True


async def _accept(tx: Connection, append: Append, *, asker_id: UUID, asked_id: UUID) -> None:
    await friends.accept(tx, asker_id=asker_id, asked_id=asked_id)
    await tell(tx, append, asker_id, "friend_added", user_id=str(asked_id))
    await tell(tx, append, asked_id, "friend_added", user_id=str(asker_id))
