"""Deleting a message over HTTP, for everyone or for oneself.

Rule: a repeat is answered like the first time; what is told to devices is the log's affair.
"""

from __future__ import annotations

from typing import Literal
from uuid import UUID

import msgspec

from uim.api.routes import Routes
from uim.chat.deletion import Deletion
from uim.model.person import Caller


class DeletionQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`for` everyone, or for `me` alone."""

    whom: Literal["everyone", "me"] = msgspec.field(name="for")


def add_deletion_routes(routes: Routes, deletion: Deletion) -> None:
    @routes.route(
        "DELETE",
        "/api/conversations/{conversation_id}/messages/{message_id}",
        query=DeletionQuery,
        summary="Delete a message, for everyone or for oneself",
    )
    async def delete_message(caller: Caller, *, conversation_id: UUID, message_id: int, query: DeletionQuery) -> None:
        verb = deletion.for_everyone if query.whom == "everyone" else deletion.for_me
        await verb(user_id=caller.user_id, conversation_id=conversation_id, message_id=message_id)
