"""Looking at people: oneself, one other, several, by the beginning of a name.

Rule: what one sees of another is the store's answer for this viewer, never a row of one's own making; who is unknown
or deleted is not found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

import msgspec

from uim.errors import UIMError, invalid, not_found
from uim.model.person import Caller, Profile, User, text_fault
from uim.store import people
from uim.store.postgres import Pool
from uim.wire.paging import cursor_of, mark_of

MAX_IDS: Final = 100
MAX_PREFIX_CHARS: Final = 100


class SearchMark(msgspec.Struct, frozen=True):
    """Where a search goes on: above this username, in small letters."""

    after: str


class People:
    """The verbs of looking. Each raises UIMError `unavailable` while the database is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def profile(self, caller: Caller) -> Profile:
        """The caller's own profile. Raises UIMError `session_ended` if the account was deleted this moment."""
        async with self._pool.connection() as tx:
            found = await people.profile_of(tx, caller.user_id)
        if found is None:
            raise UIMError("session_ended", "this account is no more")
        return found

    async def user(self, caller: Caller, user_id: UUID) -> User:
        """One user as the caller sees them. Raises UIMError `not_found`."""
        found = await self.users(caller, [user_id])
        if not found:
            raise not_found("no such user")
        return found[0]

    async def users(self, caller: Caller, user_ids: Sequence[UUID]) -> list[User]:
        """Those of these (100 at most, else `validation_failed`) who exist, in the order asked."""
        if len(user_ids) > MAX_IDS:
            raise invalid("ids", f"are {len(user_ids)}: {MAX_IDS} at most")
        async with self._pool.connection() as tx:
            found = await people.users_by_id(tx, viewer=caller.user_id, user_ids=user_ids)
        return [found[user_id] for user_id in dict.fromkeys(user_ids) if user_id in found]

    async def search(
        self, caller: Caller, *, prefix: str, limit: int, cursor: str | None = None
    ) -> tuple[list[User], str | None]:
        """Whose username or display name begins so, by username, and the cursor of the next page, None at the end."""
        if fault := text_fault(1, MAX_PREFIX_CHARS, prefix):
            raise invalid("query", fault)
        after = mark_of(cursor, SearchMark).after if cursor is not None else ""
        if text_fault(0, MAX_PREFIX_CHARS, after):
            raise invalid("cursor", "is not a cursor of this list")
        async with self._pool.connection() as tx:
            # One more than asked tells whether there is a next page.
            found = await people.users_by_prefix(tx, viewer=caller.user_id, prefix=prefix, after=after, limit=limit + 1)
        page = found[:limit]
        return page, cursor_of(SearchMark(page[-1].username.lower())) if len(found) > limit else None
