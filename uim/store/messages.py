"""The log in SQL: appending, reading on from a cursor, history.

Rule: everything that reads entries for a user goes through that user's stays; ids are numbered only by the functions in
schema/, under the log lock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from uim.model.ids import MAX_MESSAGE_ID
from uim.model.message import Draft, Entry
from uim.store.binary import BYTEA_OID, TEXT_OID, UUID_OID, array, bigint, moment
from uim.store.postgres import Connection, Statement, array_text

COLUMNS: Final = """m.message_id, m.conversation_id, m.seq, m.sender_id, m.client_message_id, m.content, m.message_type,
    m.metadata::text, m.created_at, m.deleted_at is not null"""

_APPEND: Final = Statement(
    b"log_append",
    b"""select ord, outcome, message_id, seq, created_at
        from log_append($1::uuid[], $2::uuid[], $3::text[], $4::bytea[], $5::text[], $6::text[])""",
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one draft: `inserted`, `duplicate`, `conflict`, or the code of its refusal (then without a place)."""

    verdict: str
    message_id: int | None
    seq: int | None
    created_at: datetime | None


async def append(tx: Connection, drafts: Sequence[Draft], meanwhile: Callable[[], None] | None = None) -> list[Outcome]:
    """Append a batch in one call; an outcome for each draft, in order. Any SQL error fails the whole batch.

    `meanwhile` is called while the database works.
    """
    columns = (
        array(UUID_OID, [d.conversation_id.bytes for d in drafts]),
        array(UUID_OID, [d.sender_id.bytes for d in drafts]),
        array(TEXT_OID, [d.client_message_id.encode() for d in drafts]),
        array(BYTEA_OID, [d.content_hash for d in drafts]),
        array(TEXT_OID, [d.content.encode() for d in drafts]),
        array(TEXT_OID, [None if d.metadata is None else d.metadata.encode() for d in drafts]),
    )
    found = await tx.call(_APPEND, columns, meanwhile)
    value = found.get_value
    # `ord` is binary, and of one sign: its bytes sort as it does.
    rows = sorted((value(row, 0), row) for row in range(found.ntuples))
    return [
        Outcome(value(row, 1).decode(), bigint(value(row, 2)), bigint(value(row, 3)), moment(value(row, 4))) for _, row in rows
    ]


async def append_own(
    tx: Connection, *, conversation_id: UUID, sender_id: UUID, server_key: UUID, message_type: str, metadata: str
) -> Entry:
    """Append an entry of the server's own inside the caller's transaction; takes the log lock if it is not held yet."""
    cursor = await tx.execute(
        "select message_id, seq, created_at from log_append_own(%s, %s, %s, %s::text, %s::text)",
        (conversation_id, sender_id, server_key, message_type, metadata),
        binary=True,
    )
    row = await cursor.fetchone()
    assert row is not None
    return Entry(row[0], conversation_id, row[1], sender_id, None, "", message_type, metadata, row[2])


async def lock_log(tx: Connection) -> None:
    """Take the log's append lock for this transaction: the first of all locks."""
    await tx.execute("select log_lock()")


async def has_server_key(tx: Connection, server_key: UUID) -> bool:
    cursor = await tx.execute("select from messages where server_key = %s", (server_key,))
    return await cursor.fetchone() is not None


async def head(tx: Connection) -> int:
    """The newest id of the log; 0 while it is empty."""
    cursor = await tx.execute("select message_id from messages order by message_id desc limit 1", binary=True)
    row = await cursor.fetchone()
    return int(row[0]) if row is not None else 0


async def entries_after(tx: Connection, after: int, limit: int) -> list[Entry]:
    """Every entry of the log above `after`, whoever may see it: for the tailer alone."""
    cursor = await tx.execute(
        f"select {COLUMNS} from messages m where m.message_id > %s order by m.message_id limit %s", (after, limit), binary=True
    )
    return [Entry(*row) for row in await cursor.fetchall()]


@dataclass(frozen=True, slots=True)
class Page:
    """Entries that a user may see above a cursor, and the id up to which that is complete."""

    entries: list[Entry]
    position: int
    full: bool


# The page and the head in one statement, so in one snapshot: what is not in the page is above its position. A whole page of every
# conversation would be read and nearly all of it thrown away: so a few ids of each, then what there is up to a page's end among those.
_NEAR: Final = 8
_PAGE: Final = f"""
    with head as materialized (
        select coalesce((select m.message_id from messages m order by m.message_id desc limit 1), 0) as id
    ), stays as materialized (
        select s.conversation_id, greatest(s.joined_message_id, %(after)s::bigint + 1) as least,
            least(h.id, coalesce(s.left_message_id, {MAX_MESSAGE_ID})) as most
        from participations s cross join head h
        where s.user_id = %(user_id)s and (s.left_message_id is null or s.left_message_id > %(after)s)
    ), near as materialized (
        select s.conversation_id, s.most, n.message_id, n.nth from stays s
        cross join lateral (
            select m.message_id, row_number() over (order by m.message_id) as nth from messages m
            where m.conversation_id = s.conversation_id and m.message_id >= s.least and m.message_id <= s.most
            order by m.message_id limit {_NEAR}
        ) n
    ), bound as materialized (
        select coalesce((select n.message_id from near n order by n.message_id offset %(limit)s - 1 limit 1), h.id) as id from head h
    ), page as materialized (
        select n.message_id from near n cross join bound b where n.message_id <= b.id
        union all
        select further.message_id from near n cross join bound b
        cross join lateral (
            select m.message_id from messages m
            where m.conversation_id = n.conversation_id and m.message_id > n.message_id and m.message_id <= least(n.most, b.id)
            order by m.message_id limit %(limit)s
        ) further
        where n.nth = {_NEAR} and n.message_id < b.id
        order by message_id limit %(limit)s
    )
    select h.id, {COLUMNS} from head h left join (page p join messages m on m.message_id = p.message_id) on true
    order by m.message_id"""


async def page_after(tx: Connection, *, user_id: UUID, after: int, limit: int) -> Page:
    """The next entries above `after` that this user may see, and the position that they are complete to."""
    cursor = await tx.execute(_PAGE, {"user_id": user_id, "after": after, "limit": limit}, binary=True, prepare=True)
    rows = await cursor.fetchall()
    entries = [Entry(*row[1:]) for row in rows if row[1] is not None]
    full = len(entries) >= limit
    return Page(entries, entries[-1].message_id if full else max(rows[0][0], after), full)


async def count_after(tx: Connection, positions: Sequence[tuple[UUID, int]], *, limit: int) -> list[int]:
    """For each (user, position) how many entries above it that user may see, counted to `limit`."""
    cursor = await tx.execute(
        # Stay by stay, or everybody else's entries since the cursor would be read too.
        """select (select count(*) from (
                select from participations s
                cross join lateral (
                    select from messages m
                    where m.conversation_id = s.conversation_id and m.message_id > g.after
                        and m.message_id >= s.joined_message_id and m.message_id <= coalesce(s.left_message_id, 9007199254740991)
                    limit %(limit)s
                ) found
                where s.user_id = g.user_id and (s.left_message_id is null or s.left_message_id > g.after)
                limit %(limit)s) visible)
            from unnest(%(user_ids)s::uuid[], %(after)s::bigint[]) with ordinality as g (user_id, after, ord) order by g.ord""",
        {"user_ids": array_text(user_id for user_id, _ in positions), "after": array_text(after for _, after in positions), "limit": limit},
        binary=True,
        prepare=True,
    )
    return [int(row[0]) for row in await cursor.fetchall()]


Stays = dict[UUID, list[tuple[int, int | None]]]


async def stays_of(tx: Connection, conversation_ids: Sequence[UUID]) -> dict[UUID, Stays]:
    """Every stay of each conversation, by user, oldest first; a conversation without any is absent."""
    cursor = await tx.execute(
        """select conversation_id, user_id, joined_message_id, left_message_id from participations
            where conversation_id = any(%s) order by joined_message_id""",
        (list(conversation_ids),),
        binary=True,
    )
    found: dict[UUID, Stays] = {}
    for conversation_id, user_id, joined, left in await cursor.fetchall():
        found.setdefault(conversation_id, {}).setdefault(user_id, []).append((joined, left))
    return found
