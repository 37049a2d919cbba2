"""What the database knows of one entry: itself, who was a member then, what each has had delivered and read, and their devices.

Rule: everything but the content.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from uim.store.postgres import Connection


@dataclass(frozen=True, slots=True)
class TracedEntry:
    """`kind`: what a system or account entry tells of; `pair` is set for a conversation of two."""

    message_id: int
    seq: int
    message_type: str
    kind: str | None
    created_at: datetime
    deleted_at: datetime | None
    client_message_id: str | None
    conversation_id: UUID
    conversation_type: str | None
    sender_id: UUID
    sender_name: str | None


@dataclass(frozen=True, slots=True)
class Member:
    """A user in whose stay the entry lies. `delivered_at`, `read_at`: of the interval that holds it, where there is one."""

    user_id: UUID
    username: str
    joined: int
    left: int | None
    delivered_up_to: int
    delivered_at: datetime | None
    read_up_to: int
    read_at: datetime | None
    shows_reads: bool
    has_hidden_it: bool
    is_deleted: bool


@dataclass(frozen=True, slots=True)
class Device:
    user_id: UUID
    device_id: str
    cursor: int
    connection_no: int
    connected_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Block:
    user_id: UUID
    blocked_id: UUID
    since: datetime


@dataclass(frozen=True, slots=True)
class Absence:
    """Why an id may not be there: the log's ends, and the epoch in whose gap it lies."""

    head: int
    horizon: int
    epoch: int | None
    after: int | None
    base: int | None
    began_at: datetime | None


async def entry(tx: Connection, message_id: int) -> TracedEntry | None:
    cursor = await tx.execute(
        """select m.message_id, m.seq, m.message_type,
                case when m.message_type in ('system', 'account') then m.metadata->>'event' end,
                m.created_at, m.deleted_at, m.client_message_id, m.conversation_id, c.type, m.sender_id, u.username
            from messages m
            left join conversations c on c.conversation_id = m.conversation_id
            left join users u on u.user_id = m.sender_id
            where m.message_id = %s""",
        (message_id,),
        binary=True,
    )
    row = await cursor.fetchone()
    return None if row is None else TracedEntry(*row)


async def absence(tx: Connection, message_id: int) -> Absence:
    cursor = await tx.execute(
        """select coalesce((select m.message_id from messages m order by m.message_id desc limit 1), 0), i.horizon,
                e.epoch, e.after, e.base, e.began_at
            from log_identity i left join log_epochs e on %(id)s > e.after and %(id)s < e.base
            order by e.epoch desc limit 1""",
        {"id": message_id},
        binary=True,
    )
    row = await cursor.fetchone()
    assert row is not None
    return Absence(*row)


_MEMBERS: Final = """
    select s.user_id, u.username, s.joined_message_id, s.left_message_id,
        p.last_delivered_message_id, delivered.at, p.last_read_message_id, read.at, u.read_receipts,
        exists (select from hidden_messages h where h.user_id = s.user_id and h.message_id = %(id)s), u.deleted_at is not null
    from participations s
    join users u on u.user_id = s.user_id
    join conversation_participants p on p.conversation_id = s.conversation_id and p.user_id = s.user_id
    left join lateral (
        select r.after, r.at from receipts r where r.conversation_id = s.conversation_id and r.user_id = s.user_id
            and r.kind = 'delivered' and r.up_to >= %(id)s order by r.up_to limit 1
    ) delivered on delivered.after < %(id)s
    left join lateral (
        select r.after, r.at from receipts r where r.conversation_id = s.conversation_id and r.user_id = s.user_id
            and r.kind = 'read' and r.up_to >= %(id)s order by r.up_to limit 1
    ) read on read.after < %(id)s
    where s.conversation_id = %(conversation_id)s and s.joined_message_id <= %(id)s
        and (s.left_message_id is null or s.left_message_id >= %(id)s)
    order by s.user_id <> %(sender_id)s, u.username"""


async def members(tx: Connection, of: TracedEntry) -> list[Member]:
    """Those who may see it, its sender first."""
    given = {"id": of.message_id, "conversation_id": of.conversation_id, "sender_id": of.sender_id}
    cursor = await tx.execute(_MEMBERS, given, binary=True)
    return [Member(*row) for row in await cursor.fetchall()]


async def devices(tx: Connection, user_ids: list[UUID]) -> list[Device]:
    cursor = await tx.execute(
        """select user_id, device_id, last_synced_message_id, connection_no, connected_at, updated_at from device_cursors
            where user_id = any(%s) order by user_id, connected_at desc""",
        (user_ids,),
        binary=True,
    )
    return [Device(*row) for row in await cursor.fetchall()]


async def blocks(tx: Connection, user_ids: list[UUID]) -> list[Block]:
    """Those that stand now between any two of the users."""
    cursor = await tx.execute(
        "select user_id, blocked_id, created_at from blocks where user_id = any(%(ids)s) and blocked_id = any(%(ids)s)",
        {"ids": user_ids},
        binary=True,
    )
    return [Block(*row) for row in await cursor.fetchall()]
