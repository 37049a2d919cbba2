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
from uim.store.postgres import Connection, array_text

# A device's first connect begins where some device of the user has confirmed everything, 0 for a user's first.
# `asked` is null where none was given: least() alone would pass over it and give the head, and skip all that is owed.
_OPEN: Final = """
    with head as materialized (
        select coalesce((select message_id from messages order by message_id desc limit 1), 0) as id
    ), given as materialized (
        select g.*, case when g.asked is not null then least(g.asked, head.id) end as wish,
            (select max(o.last_synced_message_id) from device_cursors o where o.user_id = g.user_id) as others
        from head, unnest(%(user_ids)s::uuid[], %(device_ids)b::text[], %(asked)s::bigint[], %(session_ids)s::uuid[],
            %(waited_s)s::float8[]) as g (user_id, device_id, asked, session_id, waited_s)
        join users u on u.user_id = g.user_id and u.deleted_at is null
    ), replaced as materialized (
        select * from unnest(%(replaced_by)s::uuid[], %(replaced)s::uuid[]) as r (session_id, before)
    )
    insert into device_cursors as c (user_id, device_id, last_synced_message_id, session_id, came_at)
    select g.user_id, g.device_id, coalesce(g.wish, g.others, 0), g.session_id, now() - make_interval(secs => coalesce(g.waited_s, 0))
    from given g order by g.user_id, g.device_id
    on conflict (user_id, device_id) do update set
        connection_no = c.connection_no + 1,
        last_synced_message_id = coalesce(
            (select g.wish from given g where g.user_id = c.user_id and g.device_id = c.device_id), c.last_synced_message_id),
        session_id = excluded.session_id,
        came_at = case when c.session_id = excluded.session_id then c.came_at else excluded.came_at end,
        connected_at = now(), updated_at = now()
        where excluded.session_id is null or c.session_id = excluded.session_id
            or exists (select from replaced r where r.session_id = excluded.session_id and r.before = c.session_id)
            or coalesce(c.came_at, '-infinity') <= excluded.came_at and exists (
                select from given g where g.user_id = c.user_id and g.device_id = c.device_id and g.waited_s is not null)
    returning c.user_id, c.device_id, c.connection_no, c.last_synced_message_id, coalesce(
        (select k.last_synced_message_id from device_cursors k where k.user_id = c.user_id and k.device_id = c.device_id),
        (select g.others from given g where g.user_id = c.user_id and g.device_id = c.device_id), 0), (select id from head)"""


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


@dataclass(frozen=True, slots=True)
class Opening:
    """A connection (or a SYNC_REQUEST) that begins: `asked` is where its cursor is to be set, None for where it is."""

    user_id: UUID
    device_id: str
    asked: int | None
    opener: Opener | None = None


async def open_cursors(tx: Connection, openings: Sequence[Opening]) -> list[Opened | Overtaken | UIMError]:
    """Begin these connections, each of another device: raise connection_no and read the cursor, or set it to `asked`.

    By the database's clock, so in a transaction an `opener` is to be made after its beginning. In place of one that cannot
    begin stands why: Overtaken, or UIMError session_ended for an account that is deleted: it shall leave no device behind.
    """
    openers = [opening.opener for opening in openings]
    before = [(opener.session_id, session_id) for opener in openers if opener is not None for session_id in opener.replaced]
    given = {
        "user_ids": array_text(opening.user_id for opening in openings),
        "device_ids": [opening.device_id for opening in openings],
        "asked": array_text(opening.asked for opening in openings),
        "session_ids": array_text(opener.session_id if opener is not None else None for opener in openers),
        "waited_s": array_text(opener.waited_s if opener is not None else None for opener in openers),
        "replaced_by": array_text(pair[0] for pair in before),
        "replaced": array_text(pair[1] for pair in before),
    }
    cursor = await tx.execute(_OPEN, given, binary=True, prepare=True)
    found = {(row[0], row[1]): Opened(*row[2:]) for row in await cursor.fetchall()}
    missed = [opening.user_id for opening in openings if (opening.user_id, opening.device_id) not in found]
    living = await _living(tx, missed) if missed else set()
    return [found.get((opening.user_id, opening.device_id)) or _why_not(opening, living) for opening in openings]


async def _living(tx: Connection, user_ids: Sequence[UUID]) -> set[UUID]:
    cursor = await tx.execute(
        "select user_id from users where user_id = any(%s) and deleted_at is null", (list(user_ids),), binary=True
    )
    return {row[0] for row in await cursor.fetchall()}


def _why_not(opening: Opening, living: set[UUID]) -> Overtaken | UIMError:
    return Overtaken() if opening.user_id in living else UIMError("session_ended", "this account is no more")


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
                select * from unnest(%s::uuid[], %b::text[], %s::bigint[], %s::bigint[])
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
            array_text(m.user_id for m in ordered),
            [m.device_id for m in ordered],
            array_text(m.connection_no for m in ordered),
            array_text(m.message_id for m in ordered),
        ),
        binary=True,
        prepare=True,
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
    """(user, device, connection_no) of the connects of the last seconds; a device's first one has replaced none."""
    cursor = await tx.execute(
        """select user_id, device_id, connection_no from device_cursors
            where connected_at > now() - make_interval(secs => %s) and connection_no > 1""",
        (seconds,),
        binary=True,
    )
    return [(row[0], row[1], row[2]) for row in await cursor.fetchall()]
