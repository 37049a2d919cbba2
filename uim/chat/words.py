"""A word on the bus: what one process tells the others, as it stands on the channel and in the database.

Rule: fields are only ever added, each with a default, for processes of two releases talk to each other during an upgrade.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec

from uim.model.message import Entry
from uim.store.receipts import Advance

# (conversation, user) → that user's unread texts there
Unread = Mapping[tuple[UUID, UUID], int]


class LogEntry(msgspec.Struct, array_like=True, frozen=True):
    message_id: int
    conversation_id: UUID
    seq: int
    sender_id: UUID
    client_message_id: str | None
    content: str
    message_type: str
    metadata: str | None
    created_at: datetime
    deleted: bool


class Told(msgspec.Struct, array_like=True, frozen=True):
    """A receipt and, for a read, the reader's unread count."""

    conversation_id: UUID
    user_id: UUID
    kind: str
    after: int
    up_to: int
    at: datetime
    senders: list[UUID]
    unread: int


class Word(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message on the bus; a process fills in what it has to say.

    `number`: its own among those that its process has kept (store/words.py), 0 for one that is not kept. `newest`: how many
    the process has kept; None from a release that keeps none.
    """

    process: UUID
    log: list[LogEntry] = []
    receipts: list[Told] = []
    changed: list[UUID] = []
    ended: list[UUID] = []
    replaced: list[tuple[UUID, str, int]] = []
    typing: list[tuple[UUID, UUID, bool, list[UUID]]] = []
    profiles: list[UUID] = []
    number: int = 0
    newest: int | None = None


DECODER: Final = msgspec.msgpack.Decoder(Word)


def packed_log(entries: Sequence[Entry]) -> list[LogEntry]:
    return [
        LogEntry(e.message_id, e.conversation_id, e.seq, e.sender_id, e.client_message_id,
                 e.content, e.message_type, e.metadata, e.created_at, e.deleted)
        for e in entries
    ]  # fmt: skip


def unpacked_log(said: Sequence[LogEntry]) -> list[Entry]:
    return [
        Entry(e.message_id, e.conversation_id, e.seq, e.sender_id, e.client_message_id,
              e.content, e.message_type, e.metadata, e.created_at, e.deleted)
        for e in said
    ]  # fmt: skip


def packed_receipts(advances: Sequence[Advance], unread: Unread) -> list[Told]:
    return [
        Told(a.conversation_id, a.user_id, a.kind, a.after, a.up_to, a.at, a.senders,
             unread.get((a.conversation_id, a.user_id), 0))
        for a in advances
    ]  # fmt: skip


def unpacked_receipts(said: Sequence[Told]) -> tuple[list[Advance], dict[tuple[UUID, UUID], int]]:
    advances = [Advance(t.conversation_id, t.user_id, t.kind, t.after, t.up_to, t.at, t.senders) for t in said]
    return advances, {(t.conversation_id, t.user_id): t.unread for t in said if t.kind == "read"}
