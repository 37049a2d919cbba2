"""A message: one immutable entry of the log, and a draft of one.

Rule: an Entry is what the log says and nothing that depends on who looks; a viewer's own fields (client_message_id,
delivery_status) are added at the edge. `metadata` stays JSON text, for most readers only pass it on.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from typing import Any, Final
from uuid import UUID

import msgspec


class Entry:
    """One row of the log. `others` and `own` keep the encoded message object once made (wire/frames.py); `live` its frame.

    `origin` is the session that sent it, where this process knows: it has the ack instead.
    """

    __slots__ = (
        "accepted_at",
        "client_message_id",
        "content",
        "conversation_id",
        "created_at",
        "deleted",
        "handed_on_at",
        "live",
        "live_own",
        "message_id",
        "message_type",
        "metadata",
        "origin",
        "others",
        "own",
        "sender_id",
        "seq",
    )

    def __init__(
        self,
        message_id: int,
        conversation_id: UUID,
        seq: int,
        sender_id: UUID,
        client_message_id: str | None,
        content: str,
        message_type: str,
        metadata: str | None,
        created_at: datetime,
        deleted: bool = False,
    ) -> None:
        self.message_id = message_id
        self.conversation_id = conversation_id
        self.seq = seq
        self.sender_id = sender_id
        self.client_message_id = client_message_id
        self.content = content
        self.message_type = message_type
        self.metadata = metadata
        self.created_at = created_at
        self.deleted = deleted
        self.origin: UUID | None = None
        self.accepted_at: float | None = None
        self.handed_on_at: float | None = None
        self.others: bytes | None = None
        self.own: bytes | None = None
        self.live: bytes | None = None
        self.live_own: bytes | None = None

    def blank(self) -> None:
        """Taken back for everyone: forget the content, and every encoding that holds it."""
        self.content, self.metadata, self.deleted = "", None, True
        self.others = self.own = self.live = self.live_own = None

    def __repr__(self) -> str:
        return f"<Entry {self.message_id} {self.message_type} in {self.conversation_id} seq {self.seq}>"

    @property
    def event(self) -> dict[str, Any]:
        """The metadata of a system or account entry, decoded; {} where there is none."""
        decoded = msgspec.json.decode(self.metadata) if self.metadata else {}
        assert isinstance(decoded, dict)
        return decoded


@dataclass(frozen=True, slots=True)
class Draft:
    """A text that somebody wants to append. `metadata` is compact JSON text with sorted keys, or None."""

    conversation_id: UUID
    sender_id: UUID
    client_message_id: str
    content: str
    metadata: str | None
    origin: UUID | None = None

    @property
    def content_hash(self) -> bytes:
        """What tells a repeat from a conflict; kept in the row when its content is blanked."""
        digest = blake2b(self.content.encode(), digest_size=16)
        if self.metadata is not None:
            digest.update(b"\0" + self.metadata.encode())
        return digest.digest()


@dataclass(frozen=True, slots=True)
class Posted:
    """Where a draft stands in the log. `duplicate`: it stood there already."""

    message_id: int
    seq: int
    created_at: datetime
    duplicate: bool


@dataclass(frozen=True, slots=True)
class Queued:
    """A draft is safe while the database is away, and has no place in the log yet: not final (protocol.md §3)."""


QUEUED: Final = Queued()


class DeliveryStatus(msgspec.Struct, frozen=True):
    """Of one message, for its sender: user ids to times (RFC 3339)."""

    sent: str
    delivered: dict[str, str]
    read: dict[str, str]


class DeliveryCounts(msgspec.Struct, frozen=True):
    """Of one's own messages in lists."""

    sent: str
    delivered_count: int
    read_count: int
