"""Receipts in SQL: watermarks of participants, and each advance as an interval.

Rule: both watermarks only move forward, clamped to an entry of that conversation that lies in a stay; all of it is one
function in schema/, so a batch is one statement and its locks are taken in sorted order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from uim.store.postgres import Connection, array_text


@dataclass(frozen=True, slots=True)
class Advance:
    """That user has everything in (after, up_to] of the conversation. `senders`: whose texts that covers and who may know."""

    conversation_id: UUID
    user_id: UUID
    kind: str
    after: int
    up_to: int
    at: datetime
    senders: list[UUID]


async def advance(tx: Connection, wanted: Mapping[tuple[UUID, UUID], tuple[int, int]]) -> list[Advance]:
    """Move watermarks: (conversation, user) → (delivered up to, read up to; 0 for none). Gives what moved."""
    if not wanted:
        return []
    cursor = await tx.execute(
        """select conversation_id, user_id, kind, after, up_to, at, senders
            from receipts_advance(%s::uuid[], %s::uuid[], %s::bigint[], %s::bigint[])""",
        (
            array_text(key[0] for key in wanted),
            array_text(key[1] for key in wanted),
            array_text(marks[0] for marks in wanted.values()),
            array_text(marks[1] for marks in wanted.values()),
        ),
        binary=True,
        prepare=True,
    )
    return [Advance(*row) for row in await cursor.fetchall()]


# member → up to where that member's reads are told to one viewer
Reads = dict[UUID, int]


async def reads_outside_pauses(tx: Connection, pairs: Sequence[tuple[UUID, UUID]]) -> dict[tuple[UUID, UUID], Reads]:
    """For (conversation, viewer): what is told to one who has hidden read receipts: nothing that was read in that time."""
    if not pairs:
        return {}
    cursor = await tx.execute(
        """select g.conversation_id, g.viewer_id, p.user_id, told.up_to
            from unnest(%s::uuid[], %s::uuid[]) as g (conversation_id, viewer_id)
            join conversation_participants p on p.conversation_id = g.conversation_id and p.left_at is null
            cross join lateral (
                select r.up_to from receipts r
                where r.conversation_id = p.conversation_id and r.user_id = p.user_id and r.kind = 'read'
                    and not receipts_paused(g.viewer_id, r.at)
                order by r.up_to desc limit 1
            ) told""",
        (array_text(pair[0] for pair in pairs), array_text(pair[1] for pair in pairs)),
        binary=True,
        prepare=True,
    )
    found: dict[tuple[UUID, UUID], Reads] = {pair: {} for pair in pairs}
    for conversation_id, viewer_id, user_id, up_to in await cursor.fetchall():
        found[conversation_id, viewer_id][user_id] = up_to
    return found


async def newest_between(tx: Connection, spans: Sequence[tuple[UUID, int, int]]) -> dict[tuple[UUID, UUID], int]:
    """For spans (user, after, up to): of each (conversation, user) the newest entry in (after, up to] that the user may see."""
    cursor = await tx.execute(
        """select s.conversation_id, s.user_id, max(newest.message_id)
            from unnest(%s::uuid[], %s::bigint[], %s::bigint[]) as g (user_id, after, up_to)
            join participations s on s.user_id = g.user_id
            cross join lateral (
                select m.message_id from messages m
                where m.conversation_id = s.conversation_id and m.message_id > g.after and m.message_id >= s.joined_message_id
                    and m.message_id <= least(g.up_to, coalesce(s.left_message_id, g.up_to))
                order by m.message_id desc limit 1
            ) newest
            group by s.conversation_id, s.user_id""",
        (array_text(span[0] for span in spans), array_text(span[1] for span in spans), array_text(span[2] for span in spans)),
        binary=True,
        prepare=True,
    )
    return {(row[0], row[1]): row[2] for row in await cursor.fetchall()}
