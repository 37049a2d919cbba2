"""Blocks in SQL: who has blocked whom.

Rule: a row is one person's own decision; what it hides, it hides both ways, and whoever asks for that asks for both
directions.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from uim.store.friends import Place
from uim.store.postgres import Connection, array_text


@dataclass(frozen=True, slots=True)
class Blocked:
    """Somebody whom a user has blocked, and since when."""

    place: Place
    since: datetime


async def add(tx: Connection, *, user_id: UUID, blocked_id: UUID) -> bool:
    """Block; False if it was so already."""
    cursor = await tx.execute(
        """insert into blocks (user_id, blocked_id, created_at) values (%s, %s, clock_timestamp())
            on conflict do nothing returning true""",
        (user_id, blocked_id),
    )
    return await cursor.fetchone() is not None


async def remove(tx: Connection, *, user_id: UUID, blocked_id: UUID) -> bool:
    """Unblock; False if there was no block."""
    cursor = await tx.execute("delete from blocks where user_id = %s and blocked_id = %s returning true", (user_id, blocked_id))
    return await cursor.fetchone() is not None


_LIST: Final = """
    select (extract(epoch from b.created_at) * 1000000)::bigint, b.blocked_id, b.created_at
    from blocks b join users u on u.user_id = b.blocked_id and u.deleted_at is null
    where b.user_id = %(user_id)s and (%(at_us)s::bigint is null
        or ((extract(epoch from b.created_at) * 1000000)::bigint, b.blocked_id) < (%(at_us)s::bigint, %(blocked_id)s::uuid))
    order by 1 desc, 2 desc limit %(limit)s"""


async def listed(tx: Connection, *, user_id: UUID, below: Place | None, limit: int) -> list[Blocked]:
    """Whom a user has blocked, below a place, the newest first."""
    given = {
        "user_id": user_id,
        "at_us": below.at_us if below is not None else None,
        "blocked_id": below.user_id if below is not None else None,
        "limit": limit,
    }
    cursor = await tx.execute(_LIST, given, binary=True)
    return [Blocked(Place(row[0], row[1]), row[2]) for row in await cursor.fetchall()]


async def around(tx: Connection, user_ids: Collection[UUID]) -> dict[UUID, tuple[set[UUID], set[UUID]]]:
    """For each of these users everybody whom that user blocks, and everybody who blocks that user."""
    cursor = await tx.execute(
        """select true, user_id, blocked_id from blocks where user_id = any(%(user_ids)s::uuid[])
            union all select false, blocked_id, user_id from blocks where blocked_id = any(%(user_ids)s::uuid[])""",
        {"user_ids": array_text(user_ids)},
        binary=True,
        prepare=True,
    )
    found: dict[UUID, tuple[set[UUID], set[UUID]]] = {user_id: (set(), set()) for user_id in user_ids}
    for is_blocking, user_id, other_id in await cursor.fetchall():
        found[user_id][0 if is_blocking else 1].add(other_id)
    return found
