"""Everything of one user's, in SQL, as streams of rows.

Read from cursors of the database's, a few rows at a time, so that memory does not grow with what there is. Rule: all of it
is one snapshot on a connection of its own; of messages only what lies in the user's stays.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from uim.model.ids import MAX_MESSAGE_ID
from uim.model.message import Entry
from uim.store.messages import COLUMNS
from uim.store.postgres import Connection, connect

# At most 8 MB of the longest messages.
ROWS_AT_ONCE: Final = 200
# In index order from the first row on: sorted, a million messages would all be read before the first was told.
_SETTINGS: Final = {
    "statement_timeout": "60000",
    # As long as a client may take for one piece, and more: the stream's own deadline comes first.
    "idle_in_transaction_session_timeout": "90s",
    "enable_seqscan": "off",
    "enable_sort": "off",
    "enable_bitmapscan": "off",
}

_LOGINS: Final = """
    select login_id, device_id, device_name, platform, created_at, last_used_at, expires_at, ended_at, ended_reason
    from logins where user_id = %(user_id)s order by created_at, login_id"""

# A request that was kept from this user by a block of theirs stays kept.
_FRIENDS: Final = """
    select other.user_id, other.username, other.display_name,
        case when f.status = 'accepted' then 'friend' when f.user_id = %(user_id)s then 'outgoing' else 'incoming' end as state,
        f.updated_at as since
    from friendships f
    join users other on other.user_id = case when f.user_id = %(user_id)s then f.friend_id else f.user_id end
    where f.user_id = %(user_id)s or f.friend_id = %(user_id)s and f.status <> 'rejected'
    order by f.updated_at, other.user_id"""

_BLOCKS: Final = """
    select other.user_id, other.username, other.display_name, b.created_at as since
    from blocks b join users other on other.user_id = b.blocked_id
    where b.user_id = %(user_id)s order by b.created_at, other.user_id"""

# What became of a conversation after the user had left it is not theirs to know.
_CONVERSATIONS: Final = """
    select c.conversation_id, c.type, c.created_by, c.created_at, p.role, p.joined_at, p.left_at,
        p.last_delivered_message_id, p.last_read_message_id,
        case when p.left_at is null then c.name end as name,
        (select json_agg(json_build_array(s.joined_message_id, s.left_message_id) order by s.joined_message_id)
            from participations s where s.conversation_id = p.conversation_id and s.user_id = p.user_id) as stays,
        case when p.left_at is null then (
            select json_agg(json_build_object('user_id', u.user_id, 'username', u.username, 'display_name', u.display_name)
                order by o.joined_at, u.user_id)
            from conversation_participants o join users u on u.user_id = o.user_id
            where o.conversation_id = p.conversation_id and o.left_at is null) end as participants
    from conversation_participants p join conversations c on c.conversation_id = p.conversation_id
    where p.user_id = %(user_id)s order by p.joined_at, p.conversation_id"""

_LISTS: Final = (("login", _LOGINS), ("friend", _FRIENDS), ("block", _BLOCKS), ("conversation", _CONVERSATIONS))

_MESSAGES: Final = f"""
    select {COLUMNS}, h.message_id is not null from messages m
    left join hidden_messages h on h.user_id = %(user_id)s and h.message_id = m.message_id
    where m.conversation_id = %(conversation_id)s and m.message_id >= %(first)s and m.message_id <= %(last)s
    order by m.message_id"""


@dataclass(frozen=True, slots=True)
class Stay:
    """A stretch of a conversation that the user may read, both ends included."""

    conversation_id: UUID
    first: int
    last: int


@asynccontextmanager
async def snapshot(database_url: str) -> AsyncIterator[Connection]:
    """A connection outside the pool in one read-only snapshot; closed at the end, which awaits nothing.

    Raises psycopg.OperationalError when the database is away.
    """
    tx = await connect(database_url, name="export", settings=_SETTINGS)
    try:
        await tx.execute("begin isolation level repeatable read read only")
        yield tx
    finally:
        tx.pgconn.finish()


async def lists(tx: Connection, user_id: UUID) -> AsyncGenerator[tuple[str, list[dict[str, Any]]], None]:
    """What is no message, by kind: login, friend, block, conversation; a few rows at a time."""
    for kind, query in _LISTS:
        async with tx.cursor(f"export_{kind}", binary=True) as cursor:
            await cursor.execute(query, {"user_id": user_id})
            names = [column.name for column in cursor.description or ()]
            while rows := await cursor.fetchmany(ROWS_AT_ONCE):
                yield kind, [dict(zip(names, row, strict=True)) for row in rows]


async def stays(tx: Connection, user_id: UUID) -> list[Stay]:
    """Every stay of the user, by conversation; also that in the conversation which carries their account's entries."""
    cursor = await tx.execute(
        """select conversation_id, joined_message_id, coalesce(left_message_id, %s) from participations
            where user_id = %s order by conversation_id, joined_message_id""",
        (MAX_MESSAGE_ID, user_id),
        binary=True,
    )
    return [Stay(*row) for row in await cursor.fetchall()]


async def entries(tx: Connection, user_id: UUID, stay: Stay) -> AsyncGenerator[list[tuple[Entry, bool]], None]:
    """The entries of a stay in their order, a few at a time, each with whether the user has hidden it."""
    given: Mapping[str, object] = {
        "user_id": user_id, "conversation_id": stay.conversation_id, "first": stay.first, "last": stay.last,
    }  # fmt: skip
    async with tx.cursor("export_entries", binary=True) as cursor:
        await cursor.execute(_MESSAGES, given)
        while rows := await cursor.fetchmany(ROWS_AT_ONCE):
            yield [(Entry(*row[:-1]), row[-1]) for row in rows]
