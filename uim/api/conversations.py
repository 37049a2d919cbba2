"""Conversations over HTTP: the list, making one, looking at it, and what its members may change.

Rule: nothing is judged here but the shape of a request; who may do what is the rooms' business below.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

import msgspec
from msgspec import Meta

from uim.api.answers import Answer, json_answer
from uim.api.routes import Routes
from uim.chat.conversations import Conversations
from uim.errors import invalid
from uim.model.conversation import MAX_MEMBERS, ConversationView, GroupName, Role
from uim.model.person import Caller
from uim.wire.paging import DEFAULT_LIMIT, Cursor, Limit

CONVERSATION = "/api/conversations/{conversation_id}"
# The creator among them does no harm, so one more than a group's others.
Members = Annotated[list[UUID], Meta(min_length=1, max_length=MAX_MEMBERS)]


# msgspec's schemas know no union of plain objects. `Removed` comes in answers to changed_since alone.
_ITEM = {
    "anyOf": [
        {"$ref": "#/components/schemas/ConversationView"},
        {
            "title": "Removed",
            "type": "object",
            "properties": {"conversation_id": {"type": "string", "format": "uuid"}, "removed": {"const": True}},
            "required": ["conversation_id", "removed"],
        },
    ]
}


class ConversationList(msgspec.Struct, frozen=True):
    """`as_of` is the changed_since of the next time."""

    items: list[Annotated[msgspec.Raw, Meta(extra_json_schema=_ITEM)]]
    next: str | None
    as_of: str


class ListQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A cursor goes on with the changed_since that its first page was asked for."""

    changed_since: Annotated[datetime, Meta(tz=True)] | None = None
    cursor: Cursor | None = None
    limit: Limit = DEFAULT_LIMIT


class NewConversation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One other for a one-on-one; a name and two to 49 others for a group."""

    type: Literal["one_on_one", "group"]
    participant_ids: Members
    name: GroupName | None = None
    client_conversation_id: UUID | None = None


class NewName(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: GroupName


class NewParticipants(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    user_ids: Members


class NewRole(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: Role


def add_conversation_routes(routes: Routes, *, conversations: Conversations) -> None:
    _add_reading(routes, conversations)
    _add_changing(routes, conversations)
    _add_participants(routes, conversations)


def _add_reading(routes: Routes, conversations: Conversations) -> None:
    @routes.route("GET", "/api/conversations", query=ListQuery, answers=ConversationList, summary="The caller's conversations")
    async def list_conversations(caller: Caller, *, query: ListQuery) -> Answer:
        page = await conversations.page(
            user_id=caller.user_id, changed_since=query.changed_since, cursor=query.cursor, limit=query.limit
        )
        return json_answer(msgspec.json.encode(page))

    @routes.route("GET", CONVERSATION, answers=ConversationView, summary="One conversation")
    async def read_conversation(caller: Caller, *, conversation_id: UUID) -> Answer:
        return _answer(await conversations.view(user_id=caller.user_id, conversation_id=conversation_id))


def _add_changing(routes: Routes, conversations: Conversations) -> None:
    @routes.route(
        "POST",
        "/api/conversations",
        body=NewConversation,
        answers=ConversationView,
        status=201,
        summary="Make a conversation, or find the one that is there",
    )
    async def make_conversation(caller: Caller, *, body: NewConversation) -> Answer:
        if body.type == "group":
            view, made = await _make_group(conversations, caller, body)
        else:
            view, made = await _make_one_on_one(conversations, caller, body)
        return _answer(view, 201 if made else 200)

    @routes.route("PATCH", CONVERSATION, body=NewName, answers=ConversationView, summary="Rename a group")
    async def rename_conversation(caller: Caller, *, conversation_id: UUID, body: NewName) -> Answer:
        return _answer(await conversations.rename(user_id=caller.user_id, conversation_id=conversation_id, name=body.name))

    @routes.route("DELETE", CONVERSATION, summary="Delete a group, hide a one-on-one")
    async def delete_conversation(caller: Caller, *, conversation_id: UUID) -> None:
        await conversations.delete(user_id=caller.user_id, conversation_id=conversation_id)


def _add_participants(routes: Routes, conversations: Conversations) -> None:
    participants = CONVERSATION + "/participants"

    @routes.route(
        "POST", participants, body=NewParticipants, answers=ConversationView, status=200, summary="Add users to a group"
    )
    async def add_participants(caller: Caller, *, conversation_id: UUID, body: NewParticipants) -> Answer:
        return _answer(await conversations.add(user_id=caller.user_id, conversation_id=conversation_id, user_ids=body.user_ids))

    @routes.route("PATCH", participants + "/{user_id}", body=NewRole, answers=ConversationView, summary="Change a member's role")
    async def change_role(caller: Caller, *, conversation_id: UUID, user_id: UUID, body: NewRole) -> Answer:
        return _answer(
            await conversations.change_role(
                user_id=caller.user_id, conversation_id=conversation_id, target_id=user_id, role=body.role
            )
        )

    @routes.route("DELETE", participants + "/{user_id}", summary="Remove a member, or leave")
    async def remove_participant(caller: Caller, *, conversation_id: UUID, user_id: UUID) -> None:
        await conversations.remove(user_id=caller.user_id, conversation_id=conversation_id, target_id=user_id)


async def _make_one_on_one(conversations: Conversations, caller: Caller, body: NewConversation) -> tuple[ConversationView, bool]:
    if body.name is not None:
        raise invalid("name", "only a group has a name")
    if len(body.participant_ids) != 1:
        raise invalid("participant_ids", "must be one user")
    return await conversations.make_one_on_one(
        user_id=caller.user_id,
        other_id=body.participant_ids[0],
        client_conversation_id=body.client_conversation_id,
    )


async def _make_group(conversations: Conversations, caller: Caller, body: NewConversation) -> tuple[ConversationView, bool]:
    if body.name is None:
        raise invalid("name", "is required for a group")
    return await conversations.make_group(
        user_id=caller.user_id,
        name=body.name,
        member_ids=body.participant_ids,
        client_conversation_id=body.client_conversation_id,
    )


def _answer(view: ConversationView, status: int = 200) -> Answer:
    return json_answer(msgspec.json.encode(view), status)
