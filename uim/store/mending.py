"""Making derived values right again: watermarks, cursors, and how far the log is packed for search.

Each is what other rows say it must be; those other rows (messages, stays, receipts) are never touched. Rule: small transactions
in the order of all locks: the log's first, so that nothing is appended meanwhile, then rows sorted by key (storage.md §1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from uim.model.ids import MAX_MESSAGE_ID
from uim.store.invariants import HEAD, Walk
from uim.store.messages import lock_log
from uim.store.postgres import Connection

AT_ONCE: Final = 200

Seat = tuple[UUID, UUID]

_RIGHT: Final = f"""
    with given as materialized (
        select * from unnest(%(conversations)s::uuid[], %(users)s::uuid[]) as g (conversation_id, user_id)
    ), held as materialized (
        select p.* from conversation_participants p
        join given g on g.conversation_id = p.conversation_id and g.user_id = p.user_id
        order by p.conversation_id, p.user_id for update of p
    ), newest as materialized (
        select h.*, coalesce(newest_in_stays(h.conversation_id, h.user_id, {MAX_MESSAGE_ID}), 0) as newest from held h
    ), told as materialized (
        select n.*, coalesce(max(r.up_to) filter (where r.kind = 'delivered'), 0) as delivered,
            coalesce(max(r.up_to) filter (where r.kind = 'read'), 0) as read
        from (select conversation_id, user_id, newest, last_delivered_message_id, last_read_message_id from newest) n
        left join receipts r on r.conversation_id = n.conversation_id and r.user_id = n.user_id and r.up_to <= n.newest
        group by n.conversation_id, n.user_id, n.newest, n.last_delivered_message_id, n.last_read_message_id
    ), reached as materialized (
        select t.conversation_id, t.user_id, least(t.newest, greatest(t.last_read_message_id, t.read)) as read,
            least(t.newest, greatest(t.last_delivered_message_id, t.delivered, t.last_read_message_id, t.read)) as delivered
        from told t
    )
    update conversation_participants p set last_delivered_message_id = w.delivered, last_read_message_id = w.read,
        last_delivered_at = case when w.delivered > 0 then coalesce(p.last_delivered_at, clock_timestamp()) end,
        last_read_at = case when w.read > 0 then coalesce(p.last_read_at, clock_timestamp()) end, changed_at = clock_timestamp()
    from reached w where p.conversation_id = w.conversation_id and p.user_id = w.user_id
        and (p.last_delivered_message_id, p.last_read_message_id) <> (w.delivered, w.read)
    returning p.user_id"""


async def broken(tx: Connection, walk: Walk, ends: dict[str, object], *, mend: str, columns: str) -> list[tuple[UUID, ...]]:
    """The keys of the rows in one step of a walk that break a rule which that mending makes right."""
    wrong = " or ".join(f"({rule.broken})" for rule in walk.rules if rule.mend == mend)
    cursor = await tx.execute(f"with {walk.step} select distinct {columns} from e where {wrong} order by {columns}", ends)
    return await cursor.fetchall()


async def set_watermarks_right(tx: Connection, seats: Sequence[Seat]) -> int:
    """To what the receipts say and the log has; how many were wrong. Some AT_ONCE seats, sorted."""
    async with tx.transaction():
        await lock_log(tx)
        given = {"conversations": [seat[0] for seat in seats], "users": [seat[1] for seat in seats]}
        cursor = await tx.execute(_RIGHT, given)
        return len(await cursor.fetchall())


async def set_cursors_right(tx: Connection) -> int:
    """Some of those above the head to the head: what comes next is above it. How many; 0 once none is left."""
    async with tx.transaction():
        await lock_log(tx)
        cursor = await tx.execute(
            f"""with head as materialized (select {HEAD} as id), held as materialized (
                    select d.user_id, d.device_id from device_cursors d
                    where d.last_synced_message_id > (select id from head)
                    order by d.user_id, d.device_id limit {AT_ONCE} for update
                )
                update device_cursors d set last_synced_message_id = head.id, updated_at = now() from held h, head
                where d.user_id = h.user_id and d.device_id = h.device_id returning d.user_id"""
        )
        return len(await cursor.fetchall())


# -- search: the caller holds search_position -----------------------------------------------------------------------------


async def set_position_right(tx: Connection) -> bool:
    """Down to the head; whether it was above."""
    cursor = await tx.execute(
        f"""update search_position set message_id = least(message_id, {HEAD}), horizon = least(horizon, message_id, {HEAD})
            where message_id > {HEAD} or horizon > message_id returning true"""
    )
    return await cursor.fetchone() is not None


async def drop_blocks(tx: Connection, conversation_id: UUID) -> None:
    """Search reads the conversation's entries from the log until they are packed again."""
    await tx.execute("delete from search_blocks where conversation_id = %s", (conversation_id,))


async def next_to_pack(tx: Connection, conversation_id: UUID, *, above: int, up_to: int, limit: int) -> tuple[int, int] | None:
    """The stretch (after, end] of a conversation that stands in no block, of `limit` entries at most; None if there is none."""
    cursor = await tx.execute(
        """with packed as materialized (
                select greatest(%(above)s::bigint, coalesce((select b.last_message_id from search_blocks b
                    where b.conversation_id = %(conversation_id)s order by b.last_message_id desc limit 1), 0)) as after
            )
            select packed.after, max(found.message_id) from packed cross join lateral (
                select m.message_id from messages m where m.conversation_id = %(conversation_id)s
                    and m.message_id > packed.after and m.message_id <= %(up_to)s order by m.message_id limit %(limit)s
            ) found group by packed.after""",
        {"conversation_id": conversation_id, "above": above, "up_to": up_to, "limit": limit},
    )
    row = await cursor.fetchone()
    return None if row is None else (row[0], row[1])
