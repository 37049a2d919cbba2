"""Friendships in SQL: one row for two people, whoever asked.

`status` is pending, accepted, or rejected: a request to somebody who blocks its sender, which the sender sees as pending and the
other one never. Rule: a query for a list takes the user whose list it is, and shows them no more than that.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal
from uuid import UUID

from uim.store.postgres import Connection

State = Literal["friend", "incoming", "outgoing"]


@dataclass(frozen=True, slots=True)
class Friendship:
    """What stands between two people; `asker_id` is the one who asked first."""

    asker_id: UUID
    status: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where somebody stands in a user's list: the newest first. `at_us` is microseconds since the epoch."""

    at_us: int
    user_id: UUID


@dataclass(frozen=True, slots=True)
class Listed:
    """Somebody in a user's list: a friend, or one who has asked or was asked, and since when."""

    place: Place
    state: State
    since: datetime


async def lock_people(tx: Connection, user_ids: Collection[UUID]) -> set[UUID]:
    """Lock these users' rows, sorted, until the end of the transaction; those who live."""
    cursor = await tx.execute(
        "select user_id, deleted_at is null from users where user_id = any(%s) order by user_id for no key update",
        (list(user_ids),),
        binary=True,
    )
    return {row[0] for row in await cursor.fetchall() if row[1]}


async def between(tx: Connection, one: UUID, other: UUID) -> Friendship | None:
    cursor = await tx.execute(
        "select user_id, status from friendships where (user_id, friend_id) in ((%(one)s, %(other)s), (%(other)s, %(one)s))",
        {"one": one, "other": other},
        binary=True,
    )
    row = await cursor.fetchone()
    return None if row is None else Friendship(*row)


async def add(tx: Connection, *, asker_id: UUID, asked_id: UUID, status: str) -> None:
    await tx.execute(
        """insert into friendships (user_id, friend_id, status, created_at, updated_at)
            values (%s, %s, %s, clock_timestamp(), clock_timestamp())""",
        (asker_id, asked_id, status),
    )


async def accept(tx: Connection, *, asker_id: UUID, asked_id: UUID) -> None:
    """The two are friends from now on."""
    await tx.execute(
        "update friendships set status = 'accepted', updated_at = clock_timestamp() where user_id = %s and friend_id = %s",
        (asker_id, asked_id),
    )


async def let_through(tx: Connection, *, asker_id: UUID, asked_id: UUID) -> None:
    """Show a request that was kept back. Its time stays: in the asker's list, one that moved would tell of the block."""
    await tx.execute(
        "update friendships set status = 'pending' where user_id = %s and friend_id = %s", (asker_id, asked_id)
    )


async def end(tx: Connection, one: UUID, other: UUID) -> None:
    await tx.execute(
        "delete from friendships where (user_id, friend_id) in ((%(one)s, %(other)s), (%(other)s, %(one)s))",
        {"one": one, "other": other},
    )


_LIST: Final = """
    with known as (
        select friend_id as other_id, case status when 'accepted' then 'friend' else 'outgoing' end as state, updated_at
            from friendships where user_id = %(user_id)s
        union all
        select user_id, case status when 'accepted' then 'friend' else 'incoming' end, updated_at
            from friendships where friend_id = %(user_id)s and status <> 'rejected'
    )
    select (extract(epoch from k.updated_at) * 1000000)::bigint, k.other_id, k.state, k.updated_at
    from known k join users u on u.user_id = k.other_id and u.deleted_at is null
    where %(at_us)s::bigint is null
        or ((extract(epoch from k.updated_at) * 1000000)::bigint, k.other_id) < (%(at_us)s::bigint, %(other_id)s::uuid)
    order by 1 desc, 2 desc limit %(limit)s"""


async def listed(tx: Connection, *, user_id: UUID, below: Place | None, limit: int) -> list[Listed]:
    """A user's friends and requests below a place, the newest first."""
    given = {
        "user_id": user_id,
        "at_us": below.at_us if below is not None else None,
        "other_id": below.user_id if below is not None else None,
        "limit": limit,
    }
    cursor = await tx.execute(_LIST, given, binary=True)
    return [Listed(Place(row[0], row[1]), row[2], row[3]) for row in await cursor.fetchall()]


async def state_of(tx: Connection, *, user_id: UUID, other_id: UUID) -> tuple[State, datetime] | None:
    """How one other stands in a user's list, and since when; None for one who is not in it."""
    cursor = await tx.execute(
        """select case when status = 'accepted' then 'friend' when user_id = %(user_id)s then 'outgoing' else 'incoming' end,
                updated_at
            from friendships where user_id = %(user_id)s and friend_id = %(other_id)s
                or user_id = %(other_id)s and friend_id = %(user_id)s and status <> 'rejected'""",
        {"user_id": user_id, "other_id": other_id},
        binary=True,
    )
    row = await cursor.fetchone()
    return None if row is None else (row[0], row[1])


async def friends_of(tx: Connection, user_id: UUID) -> set[UUID]:
    """Everybody who is that user's friend; no block stands between friends."""
    cursor = await tx.execute(
        """select friend_id from friendships where user_id = %(user_id)s and status = 'accepted'
            union all select user_id from friendships where friend_id = %(user_id)s and status = 'accepted'""",
        {"user_id": user_id},
        binary=True,
        prepare=True,
    )
    return {row[0] for row in await cursor.fetchall()}


async def friends_among(tx: Connection, *, user_id: UUID, others: Sequence[UUID]) -> set[UUID]:
    """Those of the others who are that user's friends."""
    cursor = await tx.execute(
        """select friend_id from friendships
                where user_id = %(user_id)s and friend_id = any(%(others)s) and status = 'accepted'
            union all select user_id from friendships
                where friend_id = %(user_id)s and user_id = any(%(others)s) and status = 'accepted'""",
        {"user_id": user_id, "others": list(others)},
        binary=True,
        prepare=True,
    )
    return {row[0] for row in await cursor.fetchall()}
