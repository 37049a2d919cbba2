"""Packing the log into blocks for search: what stands next in it, who has enough for a block, and what is too old.

Rule: whoever packs holds the one row of search_position from the first statement to the commit, so one process does at a time,
and a position moves only together with its blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from uim.store.postgres import Connection
from uim.store.search import DAYS

BLOCK_ENTRIES: Final = 64
# A block with fewer entries but this much text is full too.
BLOCK_BYTES: Final = 8_000
# What one step reads of the log at most, but for a single entry over it.
SPAN_ENTRIES: Final = 2_000
SPAN_BYTES: Final = 1_000_000
DROP_AT_ONCE: Final = 1_000


@dataclass(frozen=True, slots=True)
class Packed:
    """How far the log is packed, and what of it is too old to be found."""

    message_id: int
    horizon: int


async def take_position(tx: Connection) -> Packed | None:
    """The position, with the right to pack until the transaction's end; None while another process has it."""
    cursor = await tx.execute("select message_id, horizon from search_position for update skip locked", binary=True)
    row = await cursor.fetchone()
    return Packed(*row) if row is not None else None


async def move_position(tx: Connection, to: Packed) -> None:
    await tx.execute("update search_position set message_id = %s, horizon = %s", (to.message_id, to.horizon))


@dataclass(frozen=True, slots=True)
class Due:
    """A conversation with enough for a block: its entries with ids in (after, up_to]."""

    conversation_id: UUID
    after: int
    up_to: int


@dataclass(frozen=True, slots=True)
class Span:
    """The next stretch of the log: its end, whether it ends for its size alone, whether all of it is too old to be found, who
    is due, and the texts that were deleted in it."""

    end: int
    is_full: bool
    is_old: bool
    due: list[Due]
    deleted: list[int]


_SPAN: Final = f"""
    with read as materialized (
        select m.message_id, m.conversation_id, m.seq, m.message_type, m.created_at, m.metadata, octet_length(m.content) as bytes
        from messages m where m.message_id > %(after)s order by m.message_id limit {SPAN_ENTRIES}
    ), span as materialized (
        select * from (select r.*, sum(r.bytes) over (order by r.message_id) - r.bytes as before from read r) r
        where r.before < {SPAN_BYTES}
    ), touched as (
        select s.conversation_id, max(s.message_id) as up_to, max(s.seq) as seq, sum(s.bytes) as bytes from span s
        where s.message_type <> 'account' group by s.conversation_id
    ), due as (
        select t.conversation_id, coalesce(packed.last_message_id, 0) as after, t.up_to from touched t
        left join lateral (
            select b.last_message_id, b.last_seq from search_blocks b
            where b.conversation_id = t.conversation_id order by b.last_message_id desc limit 1
        ) packed on true
        where t.seq - coalesce(packed.last_seq, 0) >= {BLOCK_ENTRIES} or t.bytes >= {BLOCK_BYTES}
    )
    select max(s.message_id), count(*) = {SPAN_ENTRIES} or sum(s.bytes) >= {SPAN_BYTES},
        max(s.created_at) < now() - make_interval(days => {DAYS}),
        (select coalesce(array_agg(d.conversation_id order by d.conversation_id), '{{}}') from due d),
        (select coalesce(array_agg(d.after order by d.conversation_id), '{{}}') from due d),
        (select coalesce(array_agg(d.up_to order by d.conversation_id), '{{}}') from due d),
        coalesce(array_agg((s.metadata->>'target_message_id')::bigint) filter (where s.message_type = 'deletion'), '{{}}')
    from span s having count(*) > 0"""


async def next_span(tx: Connection, *, after: int) -> Span | None:
    """What stands in the log above an id, a bounded stretch of it; None if there is nothing."""
    cursor = await tx.execute(_SPAN, {"after": after}, binary=True)
    row = await cursor.fetchone()
    if row is None:
        return None
    end, is_full, is_old, conversation_ids, afters, up_tos, deleted = row
    due = [Due(*each) for each in zip(conversation_ids, afters, up_tos, strict=True)]
    return Span(end, is_full, is_old, due, deleted)


@dataclass(frozen=True, slots=True)
class Unpacked:
    """An entry that waits for its block; `text` is empty where there is nothing to find in it."""

    message_id: int
    seq: int
    created_at: datetime
    text: str


_TEXT: Final = "case when m.message_type = 'text' and m.deleted_at is null then m.content else '' end"


async def unpacked(tx: Connection, due: Due, *, above: int) -> list[Unpacked]:
    """The entries of a conversation that is due, oldest first; none at or below `above`."""
    cursor = await tx.execute(
        f"""select m.message_id, m.seq, m.created_at, {_TEXT} from messages m
            where m.conversation_id = %s and m.message_id > %s and m.message_id <= %s order by m.message_id""",
        (due.conversation_id, max(due.after, above), due.up_to),
        binary=True,
        prepare=True,
    )
    return [Unpacked(*row) for row in await cursor.fetchall()]


@dataclass(frozen=True, slots=True)
class Block:
    """A run of one conversation's entries as it is stored."""

    conversation_id: UUID
    entries: list[Unpacked]
    signature: bytes
    folded: str


async def add_block(tx: Connection, block: Block) -> None:
    first, last = block.entries[0], block.entries[-1]
    await tx.execute(
        "insert into search_blocks values (%s, %s, %s, %s, %s, %s, %s, %s)",
        (
            block.conversation_id,
            first.message_id,
            last.message_id,
            last.seq,
            last.created_at,
            [entry.message_id for entry in block.entries],
            block.signature,
            block.folded,
        ),
        binary=True,
        prepare=True,
    )


async def block_around(tx: Connection, message_id: int) -> Due | None:
    """The place of the block that holds an entry; None if none does."""
    cursor = await tx.execute(
        """select b.conversation_id, b.first_message_id - 1, b.last_message_id
            from messages m join search_blocks b on b.conversation_id = m.conversation_id and b.last_message_id >= m.message_id
            where m.message_id = %s order by b.last_message_id limit 1""",
        (message_id,),
        binary=True,
    )
    row = await cursor.fetchone()
    return Due(*row) if row is not None and row[1] < message_id else None


async def replace_block(tx: Connection, block: Block) -> None:
    """The same entries with what their texts are now."""
    await tx.execute(
        "update search_blocks set signature = %s, folded = %s where conversation_id = %s and last_message_id = %s",
        (block.signature, block.folded, block.conversation_id, block.entries[-1].message_id),
        binary=True,
    )


async def drop_old(tx: Connection) -> int:
    """Remove blocks that are too old whole, some at a time; the highest id that they held, 0 if there were none."""
    cursor = await tx.execute(
        f"""delete from search_blocks b using (
                select o.conversation_id, o.last_message_id from search_blocks o
                where o.newest_at < now() - make_interval(days => {DAYS}) order by o.newest_at limit {DROP_AT_ONCE}
            ) old where b.conversation_id = old.conversation_id and b.last_message_id = old.last_message_id
            returning b.last_message_id""",
        binary=True,
    )
    return max([row[0] for row in await cursor.fetchall()], default=0)
