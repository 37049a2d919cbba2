"""Presence over HTTP: of one user, as the caller may know it.

Rule: strangers and the blocked look alike, offline; a user who isn't there is `not_found`.
"""

from __future__ import annotations

from uuid import UUID

from uim.api.routes import Routes
from uim.chat.presence import Presence
from uim.model.person import Caller
from uim.model.presence import ShownPresence


def add_presence(routes: Routes, presence: Presence) -> None:
    """Add the route that asks for one user's presence."""

    @routes.route("GET", "/api/users/{user_id}/presence", answers=ShownPresence, summary="A user's presence, for friends")
    async def get_presence(caller: Caller, user_id: UUID) -> ShownPresence:
        return await presence.one(caller.user_id, user_id)
