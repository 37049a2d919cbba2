"""Devices' places in the log, in SQL.

Rule: `connection_no` fences: only the newest connection of a device moves its cursor; a write that hits no row says that the
writer has been replaced. Opening reads, or rewinds, in the same statement that raises the number (storage.md §2); of two
connections of a device the one that came later has it, whichever opens first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from uim.errors import UIMError
from uim.store.postgres import Connection

# A device's first connect begins where some device of the user has confirmed everything, 0 for a user's first.
# `asked` is null where none was given: least() alone would pass over it and give the head, and skip all that is owed.
_OPEN: Final = """
    with head as materialized (
        select coalesce((select message_id from messages order by message_id desc limit 1), 0) as id
    ), wish as (
        select case when %(asked)s::bigint is not null then least(%(asked)s::bigint, head.id) end as at from head
    ), known as (
        select last_synced_message_id as at from device_cursors where user_id = %(user_id)s and device_id = %(device_id)s
    ), others as (
        select max(last_synced_message_id) as at from device_cursors where user_id = %(user_id)s
    )
    insert into device_cursors as c (user_id, device_id, last_synced_message_id, session_id, came_at)
    select u.user_id, %(device_id)s, coalesce(wish.at, others.at, 0), %(session_id)s,
        now() - make_interval(secs => coalesce(%(waited_s)s::float8, 0))
    from wish, others, users u where u.user_id = %(user_id)s and u.deleted_at is null
    on conflict (user_id, device_id) do update set
        connection_no = c.connection_no + 1,
        last_synced_message_id = coalesce((select at from wish), c.last_synced_message_id),
        session_id = excluded.session_id,
        came_at = case when c.session_id = excluded.session_id then c.came_at else excluded.came_at end,
        connected_at = now(), updated_at = now()
        where excluded.session_id is null or c.session_id = excluded.session_id or c.session_id = any(%(replaced)s::uuid[])
            or %(waited_s)s::float8 is not null and coalesce(c.came_at, '-infinity') <= excluded.came_at
    returning connection_no, last_synced_message_id, coalesce((select at from known), (select at from others), 0),
        (select id from head)"""


@dataclass(frozen=True, slots=True)
class Opened:
    """A device's cursor as a new connection finds it: where it is now, where it was, and the head at that moment."""

    connection_no: int
    at: int
    was: int
    head: int


@dataclass(frozen=True, slots=True)
class Opener:
    """The connection that opens: its session, and the seconds since it came; None for one that has opened before.

    `replaced`: sessions that are known to have come before it, whatever the database's clock makes of that.
    """

    session_id: UUID
    waited_s: float | None
    replaced: tuple[UUID, ...] = ()


class Overtaken(Exception):
    """The device has come again since: its later connection has opened before this one."""


async def open_cursor(
    tx: Connection, *, user_id: UUID, device_id: str, asked: int | None, opener: Opener | None = None
) -> Opened:
    """Begin a connection (or a SYNC_REQUEST): raise connection_no and read the cursor, or set it to `asked`.

    By the database's clock, so in a transaction `opener` is to be made after its beginning. Raises Overtaken, and UIMError
    session_ended for an account that is deleted: it shall leave no device behind.
    """
    session_id, waited_s = (opener.session_id, opener.waited_s) if opener is not None else (None, None)
    replaced = list(opener.replaced) if opener is not None else []
    given = {"user_id": user_id, "device_id": device_id, "asked": asked, "session_id": session_id, "waited_s": waited_s,
             "replaced": replaced}  # fmt: skip
    cursor = await tx.execute(_OPEN, given, binary=True)
    row = await cursor.fetchone()
    if row is not None:
        return Opened(*row)
    cursor = await tx.execute("select from users where user_id = %s and deleted_at is null", (user_id,), binary=True)
    if await cursor.fetchone() is None:
        raise UIMError("session_ended", "this account is no more")
    raise Overtaken


@dataclass(frozen=True, slots=True)
class Move:
    """A cursor's new place, as the connection of that number has it."""

    user_id: UUID
    device_id: str
    connection_no: int
    message_id: int


async def move(tx: Connection, moves: Sequence[Move]) -> set[tuple[UUID, str]]:
    """Write a batch of moves, sorted; the devices of those that hit no row, for a newer connection has replaced them.

    Cursors that are gone went with their accounts, and numbers that are lower than ours came with a database that has been
    restored: those connections end for that, and not as replaced.
    """
    ordered = sorted(moves, key=lambda m: (m.user_id.bytes, m.device_id))
    cursor = await tx.execute(
        """with given as materialized (
                select * from unnest(%b::uuid[], %b::text[], %s::bigint[], %s::bigint[])
                    as g (user_id, device_id, connection_no, message_id)
            ), held as (
                select c.user_id, c.device_id, g.message_id from device_cursors c
                join given g on g.user_id = c.user_id and g.device_id = c.device_id and g.connection_no = c.connection_no
                order by c.user_id, c.device_id for update of c
            )
            update device_cursors c
            set last_synced_message_id = greatest(c.last_synced_message_id, h.message_id), updated_at = now()
            from held h where c.user_id = h.user_id and c.device_id = h.device_id
            returning c.user_id, c.device_id""",
        (
            [m.user_id for m in ordered],
            [m.device_id for m in ordered],
            [m.connection_no for m in ordered],
            [m.message_id for m in ordered],
        ),
        binary=True,
    )
    hit = {(row[0], row[1]) for row in await cursor.fetchall()}
    missed = [m for m in ordered if (m.user_id, m.device_id) not in hit]
    return await _replaced(tx, missed) if missed else set()


async def _replaced(tx: Connection, missed: Sequence[Move]) -> set[tuple[UUID, str]]:
    cursor = await tx.execute(
        """select c.user_id, c.device_id from device_cursors c
            join unnest(%b::uuid[], %b::text[], %s::bigint[]) as g (user_id, device_id, connection_no)
                on g.user_id = c.user_id and g.device_id = c.device_id and c.connection_no > g.connection_no""",
        ([m.user_id for m in missed], [m.device_id for m in missed], [m.connection_no for m in missed]),
        binary=True,
    )
    return {(row[0], row[1]) for row in await cursor.fetchall()}


async def connected_since(tx: Connection, seconds: float) -> list[tuple[UUID, str, int]]:
    """(user, device, connection_no) of the connects of the last seconds."""
    cursor = await tx.execute(
        "select user_id, device_id, connection_no from device_cursors where connected_at > now() - make_interval(secs => %s)",
        (seconds,),
        binary=True,
    )
    return [(row[0], row[1], row[2]) for row in await cursor.fetchall()]
