"""Looking for texts: in blocks of folded texts, and in the log itself what is in no block yet (packing.py makes them).

Rule: blocks and tails only name candidates; `still_visible` reads their rows again, so what was deleted, hidden, left or is
older than DAYS is never shown, whatever a block still holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from uim.model.folding import MAX_PROBES, SEPARATOR, fold
from uim.model.message import Entry
from uim.store.messages import COLUMNS
from uim.store.postgres import Connection

DAYS: Final = 30


@dataclass(frozen=True, slots=True)
class Extent:
    """Whose conversations are looked through, each from its member's first entry on, and how far the log is packed."""

    conversation_ids: list[UUID]
    since: list[int]
    packed_up_to: int
    horizon: int
    head: int


async def extent(tx: Connection, *, user_id: UUID, conversation_id: UUID | None) -> Extent:
    """The living conversations that the user is a member of now; or that one, if it is such."""
    cursor = await tx.execute(
        """select coalesce(array_agg(seat.conversation_id), '{}'), coalesce(array_agg(seat.since), '{}'),
                position.message_id, position.horizon,
                coalesce((select m.message_id from messages m order by m.message_id desc limit 1), 0)
            from search_position position
            left join lateral (
                select p.conversation_id, min(s.joined_message_id) as since
                from conversation_participants p
                join conversations c on c.conversation_id = p.conversation_id and c.deleted_at is null and c.type <> 'self'
                join participations s on s.conversation_id = p.conversation_id and s.user_id = p.user_id
                where p.user_id = %(user_id)s and p.left_at is null
                    and (%(conversation_id)s::uuid is null or p.conversation_id = %(conversation_id)s)
                group by p.conversation_id
            ) seat on true
            group by position.message_id, position.horizon""",
        {"user_id": user_id, "conversation_id": conversation_id},
        binary=True,
    )
    row = await cursor.fetchone()
    assert row is not None
    ids, since, packed_up_to, horizon, head = row
    return Extent([found for found in ids if found], [at for at in since if at is not None], packed_up_to, horizon, head)


@dataclass(frozen=True, slots=True)
class Run:
    """Folded texts of one conversation, SEPARATOR between them, with their ids in order."""

    message_ids: Sequence[int]
    folded: str

    def holding(self, wanted: str) -> Iterator[int]:
        """The ids of those texts that hold it."""
        if wanted in self.folded:
            for message_id, text in zip(self.message_ids, self.folded.split(SEPARATOR), strict=True):
                if wanted in text:
                    yield message_id


# Its last block ends where a conversation's tail begins; where all blocks are gone by age, that is at the horizon.
_TAILS: Final = """
    select run.ids, run.texts
    from unnest(%(conversations)s::uuid[], %(since)s::bigint[]) as seat (conversation_id, since)
    cross join lateral (
        select coalesce((
            select b.last_message_id from search_blocks b
            where b.conversation_id = seat.conversation_id order by b.last_message_id desc limit 1
        ), 0) as last_message_id
    ) packed
    cross join lateral (
        select array_agg(m.message_id order by m.message_id) as ids, array_agg(m.content order by m.message_id) as texts
        from messages m
        where m.conversation_id = seat.conversation_id
            and m.message_id >= greatest(packed.last_message_id + 1, seat.since, %(least)s::bigint)
            and m.message_id < %(below)s::bigint and m.message_type = 'text' and m.deleted_at is null
    ) run
    where run.ids is not null"""


async def tails(tx: Connection, where: Extent, *, least: int, below: int) -> list[Run]:
    """The texts with ids in [least, below) that are in no block. Ask before the blocks: what moves in between is in both."""
    given = {"conversations": where.conversation_ids, "since": where.since, "least": least, "below": below}
    cursor = await tx.execute(_TAILS, given, binary=True, prepare=True)
    return [Run(row[0], SEPARATOR.join(map(fold, row[1]))) for row in await cursor.fetchall()]


# The last block of a stretch is the one that reaches up to `below` or over it. What the inner limit leaves away is older than
# all that the outer one takes.
_BLOCKS: Final = """
    select b.message_ids, b.folded, b.last_message_id
    from unnest(%(conversations)s::uuid[], %(since)s::bigint[]) as seat (conversation_id, since)
    cross join lateral (
        select coalesce((
            select reaching.last_message_id from search_blocks reaching
            where reaching.conversation_id = seat.conversation_id and reaching.last_message_id >= %(below)s::bigint
            order by reaching.last_message_id limit 1
        ), %(below)s::bigint) as message_id
    ) upper_end
    cross join lateral (
        select * from search_blocks b
        where b.conversation_id = seat.conversation_id and b.last_message_id >= greatest(seat.since, %(least)s::bigint)
            and b.last_message_id <= upper_end.message_id and case when {tests} then strpos(b.folded, %(wanted)s) > 0 else false end
        order by b.last_message_id desc limit %(limit)s
    ) b
    order by b.last_message_id desc limit %(limit)s"""
# By the number of probes. CASE, for what AND joins may be judged in any order, and reading a text is what the probes are to spare.
_PROBES: Final = [f"get_bit(b.signature, %(probe_{at})s) = 1" for at in range(MAX_PROBES)]
_BLOCKS_BY_PROBES: Final = tuple(
    _BLOCKS.replace("{tests}", " and ".join(_PROBES[:probes]) or "true") for probes in range(MAX_PROBES + 1)
)


async def blocks(
    tx: Connection, where: Extent, *, wanted: str, probes: Sequence[int], least: int, below: int, limit: int
) -> tuple[list[Run], int]:
    """The newest blocks that hold a folded text and reach into [least, below), and the id down to which that is all of them.

    At least `limit` of them that end below `below`, if there are so many.
    """
    given: dict[str, object] = {f"probe_{at}": bit for at, bit in enumerate(probes)}
    given |= {"conversations": where.conversation_ids, "since": where.since, "least": least, "below": below, "wanted": wanted}
    given["limit"] = at_most = len(where.conversation_ids) + limit
    cursor = await tx.execute(_BLOCKS_BY_PROBES[len(probes)], given, binary=True, prepare=True)
    rows = await cursor.fetchall()
    return [Run(row[0], row[1]) for row in rows], max(least, rows[-1][2]) if len(rows) == at_most else least


async def still_visible(tx: Connection, *, user_id: UUID, message_ids: Sequence[int]) -> list[Entry]:
    """Those of the texts that this user may find now, newest first."""
    cursor = await tx.execute(
        f"""select {COLUMNS} from unnest(%(ids)s::bigint[]) as asked (message_id)
            join messages m on m.message_id = asked.message_id
            join conversation_participants p
                on p.conversation_id = m.conversation_id and p.user_id = %(user_id)s and p.left_at is null
            where m.message_type = 'text' and m.deleted_at is null and m.created_at > now() - make_interval(days => {DAYS})
                and exists (
                    select from participations s where s.conversation_id = m.conversation_id and s.user_id = %(user_id)s
                        and s.joined_message_id <= m.message_id
                        and (s.left_message_id is null or s.left_message_id >= m.message_id))
                and not exists (
                    select from hidden_messages h where h.user_id = %(user_id)s and h.message_id = m.message_id)
            order by m.message_id desc""",
        {"user_id": user_id, "ids": list(message_ids)},
        binary=True,
        prepare=True,
    )
    return [Entry(*row) for row in await cursor.fetchall()]
