"""The words of the bus that are kept for a while, in SQL: for those whom the bus did not reach.

Rule: what is kept is told by its process too; who reads it here has missed it there. The database's clock alone says how old a
word is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from uim.store.postgres import Connection

# A connection that has been silent for 90 s is ended: whoever has missed more than this has no connections left to tell.
KEPT_S: Final = 120.0
READ_AT_ONCE: Final = 500
_FORGET_AT_ONCE: Final = 5_000
_NOBODY: Final = UUID(int=0)


async def keep(tx: Connection, *, process_id: UUID, number: int, word: bytes) -> None:
    """Keep a word under its process's number; inside the transaction that makes it true, where there is one."""
    await tx.execute(
        "insert into bus_words (process_id, number, word) values (%s, %s, %s)", (process_id, number, word), binary=True, prepare=True
    )


async def newest(tx: Connection) -> dict[UUID, int]:
    """Of each process that has said something lately the newest number."""
    cursor = await tx.execute("select process_id, max(number) from bus_words group by process_id", binary=True)
    return {row[0]: row[1] for row in await cursor.fetchall()}


@dataclass(frozen=True, slots=True)
class Read:
    """A word as it was kept. What a further page begins behind."""

    said_at: datetime
    process_id: UUID
    number: int
    word: bytes


async def above(
    tx: Connection, up_to: Mapping[UUID, int], *, within_s: float, behind: Read | None = None
) -> list[Read]:
    """The words of the last `within_s` seconds above each process's number (0 for others), the oldest first.

    At most READ_AT_ONCE: then there may be more, behind the last of them.
    """
    cursor = await tx.execute(
        """select w.said_at, w.process_id, w.number, w.word from bus_words w
            left join unnest(%(processes)s::uuid[], %(numbers)s::bigint[]) as k (process_id, number)
                on k.process_id = w.process_id
            where w.said_at > clock_timestamp() - make_interval(secs => %(within_s)s)
                and w.number > coalesce(k.number, 0)
                and (w.said_at, w.process_id, w.number)
                    > (coalesce(%(said_at)s::timestamptz, '-infinity'), %(process_id)s::uuid, %(number)s::bigint)
            order by w.said_at, w.process_id, w.number limit %(limit)s""",
        {
            "processes": list(up_to),
            "numbers": list(up_to.values()),
            "within_s": within_s,
            "limit": READ_AT_ONCE,
            "said_at": behind.said_at if behind else None,
            "process_id": behind.process_id if behind else _NOBODY,
            "number": behind.number if behind else 0,
        },
        binary=True,
    )
    return [Read(*row) for row in await cursor.fetchall()]


async def forget(tx: Connection) -> None:
    """Remove what is older than KEPT_S. Of processes that do so at once each takes what no other does."""
    await tx.execute(
        """delete from bus_words where (process_id, number) in (
                select process_id, number from bus_words where said_at < clock_timestamp() - make_interval(secs => %s)
                order by said_at limit %s for update skip locked
            )""",
        (KEPT_S, _FORGET_AT_ONCE),
    )
