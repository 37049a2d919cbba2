"""Taking messages back, in SQL: for everyone, and for oneself.

Rule: what is blanked keeps its row, its place and its content_hash; what is hidden is hidden from one user alone, and every
reading for that user asks `hidden_of`, or joins hidden_messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import msgspec

from uim.model.message import Entry
from uim.store.postgres import Connection


@dataclass(frozen=True, slots=True)
class Target:
    """A text that somebody wants to take back. `is_blank`: it has been, for everyone."""

    message_id: int
    sender_id: UUID
    is_blank: bool


async def text_in_stays(tx: Connection, *, user_id: UUID, conversation_id: UUID, message_id: int) -> Target | None:
    """The text of this id in this conversation, if it lies in a stay of that user."""
    cursor = await tx.execute(
        """select m.message_id, m.sender_id, m.deleted_at is not null from messages m
            where m.message_id = %(message_id)s and m.conversation_id = %(conversation_id)s and m.message_type = 'text'
                and exists (
                    select from participations s where s.conversation_id = m.conversation_id and s.user_id = %(user_id)s
                        and s.joined_message_id <= m.message_id
                        and (s.left_message_id is null or s.left_message_id >= m.message_id)
                )""",
        {"user_id": user_id, "conversation_id": conversation_id, "message_id": message_id},
        binary=True,
    )
    row = await cursor.fetchone()
    return None if row is None else Target(*row)


async def blank(tx: Connection, *, conversation_id: UUID, target_id: int, actor_id: UUID, server_key: UUID) -> Entry | None:
    """Blank a text and append its `deletion` entry; None, and nothing appended, if it was blank already."""
    cursor = await tx.execute(
        "select message_id, seq, created_at from log_delete(%s, %s::bigint, %s, %s)",
        (conversation_id, target_id, actor_id, server_key),
        binary=True,
    )
    row = await cursor.fetchone()
    assert row is not None
    if row[0] is None:
        return None
    metadata = msgspec.json.encode({"target_message_id": target_id}).decode()
    return Entry(row[0], conversation_id, row[1], actor_id, None, "", "deletion", metadata, row[2])


async def hide(tx: Connection, *, user_id: UUID, message_id: int) -> bool:
    """Hide a message from this user alone; False if it was hidden already."""
    cursor = await tx.execute(
        "insert into hidden_messages (user_id, message_id) values (%s, %s) on conflict do nothing returning true",
        (user_id, message_id),
    )
    return await cursor.fetchone() is not None


async def hidden_of(tx: Connection, *, user_id: UUID, message_ids: Sequence[int]) -> frozenset[int]:
    """Those of these messages that the user has deleted for themselves."""
    if not message_ids:
        return frozenset()
    cursor = await tx.execute(
        "select message_id from hidden_messages where user_id = %s and message_id = any(%s::bigint[])",
        (user_id, list(message_ids)),
        binary=True,
        prepare=True,
    )
    return frozenset([row[0] for row in await cursor.fetchall()])
