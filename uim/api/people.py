"""People over HTTP: one's own profile, another's, and finding them.

Rule: an answer shows what chat/people.py gave for this caller, nothing more.
"""

from __future__ import annotations

from typing import Annotated, Final
from uuid import UUID

import msgspec

from uim.api.requests import path_id
from uim.api.routes import Routes
from uim.chat.people import MAX_IDS, MAX_PREFIX_CHARS, People
from uim.errors import UIMError, invalid
from uim.model.person import Caller, Profile, User
from uim.wire.paging import DEFAULT_LIMIT, Cursor, Limit

_ID_CHARS: Final = 36


class FindUsers(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Either `query`, the beginning of a username or display name, or `ids`, with commas between them."""

    query: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_PREFIX_CHARS)] | None = None
    ids: str | None = None
    limit: Limit = DEFAULT_LIMIT
    cursor: Cursor | None = None


class UserPage(msgspec.Struct, frozen=True):
    items: list[User]
    next: str | None = None


def add_people(routes: Routes, people: People) -> None:
    """Add the routes under /api/users that look."""

    @routes.route("GET", "/api/users/me", answers=Profile, summary="One's own profile")
    async def get_own_profile(caller: Caller) -> Profile:
        return await people.profile(caller)

    @routes.route("GET", "/api/users", query=FindUsers, answers=UserPage, summary="Find users by name, or by id")
    async def find_users(caller: Caller, query: FindUsers) -> UserPage:
        if (query.query is None) == (query.ids is None):
            raise invalid("query", "give either query or ids")
        if query.ids is not None:
            return UserPage(await people.users(caller, _ids_of(query.ids)))
        return UserPage(*await people.search(caller, prefix=query.query or "", limit=query.limit, cursor=query.cursor))

    @routes.route("GET", "/api/users/{user_id}", answers=User, summary="A user as the caller sees them")
    async def get_user(caller: Caller, user_id: UUID) -> User:
        return await people.user(caller, user_id)


def _ids_of(text: str) -> list[UUID]:
    if len(text) > MAX_IDS * (_ID_CHARS + 1):
        raise invalid("ids", f"are too many: {MAX_IDS} at most")
    try:
        return [path_id(part, "user_id") for part in text.split(",")]
    except UIMError:
        raise invalid("ids", "should be UUIDs with commas between them") from None
