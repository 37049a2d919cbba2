"""Pages of one conversation's past, one entry, and what has become of one's own messages.

Rule: an entry is found only by who is a member now, and through a stay of theirs, both ends included. A receipt counts where
the stay of whoever gave it holds the message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from uim.model.ids import MAX_MESSAGE_ID, rfc3339
from uim.model.message import DeliveryCounts, DeliveryStatus, Entry
from uim.store.binary import bigints, of_bigint
from uim.store.conversations import SEAT
from uim.store.messages import COLUMNS
from uim.store.postgres import Connection, Statement


@dataclass(frozen=True, slots=True)
class Stretch:
    """Entries that a member may see, and the ids of those that they have deleted for themselves."""

    entries: list[Entry]
    hidden: frozenset[int]


# Per stay by index from the near end, so that a page costs its own length and not the conversation's. A member has a row even
# where nothing is found. $1 and $2 are the seat's; $3, $4: the least id and the greatest; $5: how many.
_PAGE: Final = f"""
    select {COLUMNS}, exists (
        select from hidden_messages h where h.user_id = seat.user_id and h.message_id = m.message_id
    )
    from ({SEAT}) seat
    left join lateral (
        select near.* from participations s
        cross join lateral (
            select e.* from messages e
            where e.conversation_id = s.conversation_id
                and e.message_id >= greatest(s.joined_message_id, $3::bigint)
                and e.message_id <= least(coalesce(s.left_message_id, {MAX_MESSAGE_ID}), $4::bigint)
            order by e.message_id {{direction}} limit $5::bigint
        ) near
        where s.conversation_id = seat.conversation_id and s.user_id = seat.user_id
        order by near.message_id {{direction}} limit $5::bigint
    ) m on true
    order by m.message_id {{direction}}"""
_UP_FROM: Final = Statement(b"history_up", _PAGE.format(direction="asc").encode())
_DOWN_FROM: Final = Statement(b"history_down", _PAGE.format(direction="desc").encode())


async def entries_down(tx: Connection, *, user_id: UUID, conversation_id: UUID, below: int, limit: int) -> Stretch | None:
    """The nearest entries below an id, the newest first; None to who is no member."""
    return await _page(tx, _DOWN_FROM, user_id, conversation_id, least=0, most=below - 1, limit=limit)


async def entries_up(tx: Connection, *, user_id: UUID, conversation_id: UUID, above: int, limit: int) -> Stretch | None:
    """The nearest entries above an id, the oldest first; None to who is no member."""
    return await _page(tx, _UP_FROM, user_id, conversation_id, least=above + 1, most=MAX_MESSAGE_ID, limit=limit)


async def entry(tx: Connection, *, user_id: UUID, conversation_id: UUID, message_id: int) -> Stretch | None:
    """One entry, if it is in this conversation; None to who is no member."""
    return await _page(tx, _DOWN_FROM, user_id, conversation_id, least=message_id, most=message_id, limit=1)


async def _page(
    tx: Connection, statement: Statement, user_id: UUID, conversation_id: UUID, *, least: int, most: int, limit: int
) -> Stretch | None:
    where = (conversation_id.bytes, user_id.bytes, of_bigint(least), of_bigint(most), of_bigint(limit))
    rows = await tx.rows(statement, where)
    if not rows:
        return None
    found = [row for row in rows if row[0] is not None]
    return Stretch([Entry(*row[:-1]) for row in found], frozenset([row[0] for row in found if row[-1]]))


# One's intervals lie end to end, so the one that may hold an id is the first that reaches up to it: one look into the index
# for each message and member. A join by ranges would read all the receipts that were given since. $1: the messages, of the
# conversation $2, that $3 has sent.
_RECEIPTS: Final = """
    select ids.message_id, p.user_id, kinds.kind, reaching.at
    from conversation_participants p
    join users u on u.user_id = p.user_id
    join users sender on sender.user_id = $3::uuid
    join (values ('delivered'), ('read')) kinds (kind) on kinds.kind = 'delivered' or u.read_receipts and sender.read_receipts
    cross join unnest($1::bigint[]) as ids (message_id)
    cross join lateral (
        select r.after, r.at from receipts r
        where r.conversation_id = p.conversation_id and r.user_id = p.user_id and r.kind = kinds.kind
            and r.up_to >= ids.message_id
        order by r.up_to limit 1
    ) reaching
    where p.conversation_id = $2::uuid and p.user_id <> $3::uuid and reaching.after < ids.message_id
        -- Both settings stand now; neither may have been off when it was read (of the reader's own pauses there are no rows).
        and (kinds.kind = 'delivered' or not receipts_paused($3::uuid, reaching.at))
        and exists (
            select from participations s where s.conversation_id = p.conversation_id and s.user_id = p.user_id
                and s.joined_message_id <= ids.message_id and (s.left_message_id is null or s.left_message_id >= ids.message_id)
        )"""

_STATUS: Final = Statement(b"delivery_status", _RECEIPTS.encode())
_COUNTS: Final = Statement(
    b"delivery_counts",
    f"""
    select given.message_id, count(*) filter (where given.kind = 'delivered'), count(*) filter (where given.kind = 'read')
    from ({_RECEIPTS}) given group by given.message_id""".encode(),
)


async def delivery_counts(
    tx: Connection, *, sender_id: UUID, conversation_id: UUID, entries: Sequence[Entry]
) -> dict[int, DeliveryCounts]:
    """Of this sender's messages among the entries: by how many others each was received and, where both show it, read."""
    mine = [own for own in entries if is_own(own, sender_id)]
    given = {row[0]: (row[1], row[2]) for row in await _receipts(tx, _COUNTS, sender_id, conversation_id, mine)}
    return {own.message_id: DeliveryCounts(rfc3339(own.created_at), *given.get(own.message_id, (0, 0))) for own in mine}


async def delivery_status(tx: Connection, *, sender_id: UUID, entry: Entry) -> DeliveryStatus:
    """Of one of this sender's messages: who received and, where both show it, read it, and when."""
    delivered: dict[str, str] = {}
    read: dict[str, str] = {}
    for _, user_id, kind, at in await _receipts(tx, _STATUS, sender_id, entry.conversation_id, [entry]):
        (delivered if kind == "delivered" else read)[str(user_id)] = rfc3339(at)
    return DeliveryStatus(sent=rfc3339(entry.created_at), delivered=delivered, read=read)


def is_own(entry: Entry, user_id: UUID) -> bool:
    """Whether this is a message that the user has sent, and not an entry of the server's on their behalf."""
    return entry.sender_id == user_id and entry.message_type == "text"


async def _receipts(
    tx: Connection, statement: Statement, sender_id: UUID, conversation_id: UUID, mine: Sequence[Entry]
) -> list[tuple[Any, ...]]:
    if not mine:
        return []
    return await tx.rows(statement, (bigints(own.message_id for own in mine), conversation_id.bytes, sender_id.bytes))
