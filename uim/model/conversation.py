"""A conversation: who sits in it, in which role, what each role may do, and how one member sees it.

`ConversationView` is the protocol's `conversation` object, made for one viewer; a `Room` is what a verb judges: the rows
as they stand under their locks. Rule: every question of who may do what in a conversation is answered here, and nowhere
else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Final, Literal
from uuid import UUID

import msgspec
from msgspec import Meta

MIN_FOUNDERS: Final = 3
MAX_MEMBERS: Final = 50
UNREAD_LIMIT: Final = 100

Role = Literal["owner", "admin", "member"]
GroupName = Annotated[str, Meta(min_length=1, max_length=255)]
# Encoded by wire/frames.py; the shape is told once, by the endpoints of messages.
MessageJSON = Annotated[msgspec.Raw, Meta(extra_json_schema={"$ref": "#/components/schemas/ListedMessage"})]


class Participant(msgspec.Struct, frozen=True):
    """One current member as shown to another; `last_read_message_id` is null where either hides read receipts."""

    user_id: UUID
    username: str
    display_name: str | None
    avatar_url: str | None
    role: str
    joined_at: str
    last_delivered_message_id: int
    last_read_message_id: int | None


class ConversationView(msgspec.Struct, frozen=True):
    """The protocol's `conversation`, as one current member sees it. Times are RFC 3339; `role` is the viewer's own."""

    conversation_id: UUID
    type: str
    name: str | None
    created_by: UUID
    created_at: str
    updated_at: str
    role: str
    participants: list[Participant]
    last_message: MessageJSON | None
    unread_count: int
    last_read_message_id: int


class Removed(msgspec.Struct, frozen=True):
    """What stands in a list of changes for a conversation that the user is out of."""

    conversation_id: UUID
    removed: bool = True


@dataclass(frozen=True, slots=True)
class Seat:
    """A current member, for judging."""

    user_id: UUID
    role: str
    joined_at: datetime


@dataclass(frozen=True, slots=True)
class Room:
    """A living conversation and its current members, as read under lock."""

    conversation_id: UUID
    type: str
    name: str | None
    seats: dict[UUID, Seat] = field(default_factory=dict)

    @property
    def is_group(self) -> bool:
        return self.type == "group"


def may_rename(actor: Seat) -> bool:
    return actor.role in ("owner", "admin")


def may_add(actor: Seat) -> bool:
    return actor.role in ("owner", "admin")


def may_remove(actor: Seat, target: Seat) -> bool:
    """The owner removes anybody, an admin removes members, everybody may go."""
    if actor.user_id == target.user_id or actor.role == "owner":
        return True
    return actor.role == "admin" and target.role == "member"


def may_change_role(actor: Seat) -> bool:
    return actor.role == "owner"


def may_delete(actor: Seat) -> bool:
    return actor.role == "owner"


def may_delete_any_message(actor: Seat) -> bool:
    """For everyone, a message of somebody else's."""
    return actor.role in ("owner", "admin")


def heir_of(seats: Iterable[Seat], leaver_id: UUID) -> Seat | None:
    """Who takes over from an owner who leaves: the longest-serving admin, else member; None for the last one out."""
    others = [seat for seat in seats if seat.user_id != leaver_id]
    # Founders came at one moment: the id decides, so that every copy of this server would choose alike.
    return min(others, key=lambda seat: (seat.role != "admin", seat.joined_at, seat.user_id), default=None)
