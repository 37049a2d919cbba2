"""Looking through the database for what breaks a rule, in one snapshot, in steps.

Everything is judged by PostgreSQL; what comes out of a step is a count and a few sentences for each broken rule, so that a log
of any length takes the same memory here. Rule: it only reads, and asks for index plans, as the writer does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from uim.store.invariants import Invariant, Walk
from uim.store.postgres import BY_INDEX, Connection, Deadlines, connect

EXAMPLES: Final = 5
# A step takes a second or so; this is for a disk that is very slow or very busy.
STEP_WITHIN_S: Final = 600.0
_SETTINGS: Final = {
    **BY_INDEX,
    "jit": "off",
    "work_mem": "16MB",
    "statement_timeout": f"{STEP_WITHIN_S * 1000:.0f}",
    "idle_in_transaction_session_timeout": "0",
}
_BEGINNING: Final[dict[str, object]] = {"user_id": UUID(int=0), "conversation_id": UUID(int=0)}
_LEAST_NUMBER: Final = -(2**62)

Progress = Callable[[str, int], None]


@dataclass(slots=True)
class Finding:
    """How often a rule is broken, and the first few sentences that say where."""

    invariant: Invariant
    number: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, number: int, examples: list[str]) -> None:
        self.number += number
        self.examples += examples[: EXAMPLES - len(self.examples)]


@asynccontextmanager
async def snapshot(database_url: str) -> AsyncIterator[Connection]:
    """A connection in one read-only transaction: everything that is read through it is of one moment.

    While it lasts PostgreSQL keeps what was deleted since, so it is not for keeping open. Raises psycopg.Error.
    """
    deadlines = Deadlines(answer_s=STEP_WITHIN_S + 5)
    async with await connect(database_url, name="verify", settings=_SETTINGS, deadlines=deadlines) as tx, tx.transaction():
        await tx.execute("set transaction isolation level repeatable read, read only")
        yield tx


async def steps(tx: Connection, walk: Walk) -> AsyncIterator[tuple[int, dict[str, object]]]:
    """The ranges of a walk: how many rows each has, and its ends as the step's parameters."""
    ends = f"""select count(*), (array_agg(t.{walk.key} order by t.{walk.key} desc))[1] from (
        select {walk.key} from {walk.table} where {walk.key} > %(after)s order by {walk.key} limit {walk.rows}) t"""
    after = _BEGINNING.get(walk.key, _LEAST_NUMBER)
    while True:
        cursor = await tx.execute(ends, {"after": after})
        row = await cursor.fetchone()
        if row is None or not row[0]:
            return
        yield row[0], {"after": after, "end": row[1]}
        after = row[1]


async def look(tx: Connection, walk: Walk, progress: Progress) -> list[Finding]:
    """Every rule of a walk over the whole table; a finding for each, `number` 0 where it holds."""
    findings = {str(at): Finding(invariant) for at, invariant in enumerate(walk.rules)}
    query = _query(walk)
    seen = 0
    async for rows, ends in steps(tx, walk):
        cursor = await tx.execute(query, ends)
        for rule, number, examples in await cursor.fetchall():
            findings[rule].add(number, examples)
        seen += rows
        progress(walk.what, seen)
    return list(findings.values())


def _query(walk: Walk) -> str:
    each = [f"select '{at}' as rule, {rule.what} as what from e where {rule.broken}" for at, rule in enumerate(walk.rules)]
    found = " union all ".join(each)
    return f"""with {walk.step}, found as ({found})
        select rule, count(*), (array_agg(what))[1:{EXAMPLES}] from found group by rule"""


async def head(tx: Connection) -> tuple[int, Any]:
    """The newest entry of the snapshot, and the snapshot's time."""
    cursor = await tx.execute(
        "select coalesce((select message_id from messages order by message_id desc limit 1), 0), transaction_timestamp()"
    )
    row = await cursor.fetchone()
    assert row is not None
    return row[0], row[1]


# -- what blocks for search hold ------------------------------------------------------------------------------------------

BLOCKS_AT_ONCE: Final = 100


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """A block as it is, and what its entries' texts are now (empty for what is no text, or was taken back)."""

    conversation_id: UUID
    last_message_id: int
    message_ids: list[int]
    signature: bytes
    folded: str
    texts: list[str]


async def stored_blocks(tx: Connection) -> AsyncIterator[list[StoredBlock]]:
    """All blocks for search, some at a time."""
    after: tuple[UUID, int] = (UUID(int=0), _LEAST_NUMBER)
    while True:
        cursor = await tx.execute(
            f"""select b.conversation_id, b.last_message_id, b.message_ids, b.signature, b.folded, coalesce((
                    select array_agg(case when m.message_type = 'text' and m.deleted_at is null then m.content else '' end
                        order by m.message_id)
                    from messages m where m.conversation_id = b.conversation_id and m.message_id = any(b.message_ids)
                ), '{{}}')
                from search_blocks b where (b.conversation_id, b.last_message_id) > (%s, %s)
                order by b.conversation_id, b.last_message_id limit {BLOCKS_AT_ONCE}""",
            after,
            binary=True,
            prepare=True,
        )
        blocks = [StoredBlock(*row) for row in await cursor.fetchall()]
        if not blocks:
            return
        yield blocks
        after = (blocks[-1].conversation_id, blocks[-1].last_message_id)


async def deletions_to_come(tx: Connection, conversation_id: UUID) -> set[int]:
    """The texts of a conversation that were taken back further on in the log than it is packed: blocks may hold them still."""
    cursor = await tx.execute(
        """select (m.metadata->>'target_message_id')::bigint from messages m, search_position position
            where m.conversation_id = %s and m.message_id > position.message_id and m.message_type = 'deletion'
                and m.metadata->>'target_message_id' ~ '^[0-9]{1,18}$'""",
        (conversation_id,),
    )
    return {row[0] for row in await cursor.fetchall()}
