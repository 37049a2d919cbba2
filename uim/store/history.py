"""Pages of one conversation's past, one entry, and what has become of one's own messages.

Rule: an entry is found only by who is a member now, and through a stay of theirs, both ends included. A receipt counts where
the stay of whoever gave it holds the message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
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
    """Entries that a member may see, the ids of those that they have deleted for themselves, and of a page what has become of the
    member's own messages in it.
    """

    entries: list[Entry]
    hidden: frozenset[int]
    counts: dict[int, DeliveryCounts]


# Per stay by index from the near end, so that a page costs its own length and not the conversation's. A member has a row even
# where nothing is found. $1 and $2 are the seat's; $3, $4: the least id and the greatest; $5: how many.
_PAGE: Final = f"""
    select {COLUMNS}, exists (select from hidden_messages any_of where any_of.user_id = $2::uuid) and exists (
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
# One's intervals lie end to end, so the one that may hold an id is the first that reaches up to it: one look into the index
# for each message and member. A join by ranges would read all the receipts that were given since. `ids`: messages of the
# conversation that the sender has sent.
_RECEIPTS: Final = """
    select ids.message_id, p.user_id, kinds.kind, reaching.at
    from conversation_participants p
    join users u on u.user_id = p.user_id
    join users sender on sender.user_id = {sender}::uuid
    join (values ('delivered'), ('read')) kinds (kind) on kinds.kind = 'delivered' or u.read_receipts and sender.read_receipts
    cross join {ids} as ids (message_id)
    cross join lateral (
        select r.after, r.at from receipts r
        where r.conversation_id = p.conversation_id and r.user_id = p.user_id and r.kind = kinds.kind
            and r.up_to >= ids.message_id
        order by r.up_to limit 1
    ) reaching
    where p.conversation_id = {conversation}::uuid and p.user_id <> {sender}::uuid and reaching.after < ids.message_id
        -- Both settings stand now; neither may have been off when it was read (of the reader's own pauses there are no rows).
        and (kinds.kind = 'delivered' or not receipts_paused({sender}::uuid, reaching.at))
        and exists (
            select from participations s where s.conversation_id = p.conversation_id and s.user_id = p.user_id
                and s.joined_message_id <= ids.message_id and (s.left_message_id is null or s.left_message_id >= ids.message_id)
        )"""

_OF_SOME: Final = _RECEIPTS.format(ids="unnest($1::bigint[])", conversation="$2", sender="$3")
_STATUS: Final = Statement(b"delivery_status", _OF_SOME.encode())
_COUNTED: Final = """
    select given.message_id, count(*) filter (where given.kind = 'delivered'), count(*) filter (where given.kind = 'read')
    from ({receipts}) given group by given.message_id"""
_COUNTS: Final = Statement(b"delivery_counts", _COUNTED.format(receipts=_OF_SOME).encode())

_ENTRY_VALUES: Final = 10
# Of an entry only: no count has one, nor the row of a member to whom nothing is found.
_SEQ: Final = 2
_message_id: Final = attrgetter("message_id")
# A page's entries, and after them the counts of the member's own messages among them: one question in place of two.
_COUNTED_PAGE: Final = f"""
    with page (message_id, conversation_id, seq, sender_id, client_message_id, content, message_type, metadata, created_at,
        is_deleted, is_hidden) as materialized ({{page}})
    select page.*, null::bigint, null::bigint from page
    union all
    select counted.message_id, {"null, " * _ENTRY_VALUES} counted.delivered, counted.read
    from ({{counted}}) counted (message_id, delivered, read)"""
_OWN_IN_PAGE: Final = _RECEIPTS.format(
    # As an array, for the planner takes the entries of a page for one, and would look all members up for each.
    ids="unnest(array(select page.message_id from page where page.sender_id = $2::uuid and page.message_type = 'text'))",
    conversation="$1",
    sender="$2",
)


def _counted(direction: str) -> bytes:
    counted = _COUNTED.format(receipts=_OWN_IN_PAGE)
    return _COUNTED_PAGE.format(page=_PAGE.format(direction=direction), counted=counted).encode()


_UP_FROM: Final = Statement(b"history_up", _counted("asc"))
_DOWN_FROM: Final = Statement(b"history_down", _counted("desc"))
_ONE: Final = Statement(b"history_one", _PAGE.format(direction="asc").encode())


async def entries_down(tx: Connection, *, user_id: UUID, conversation_id: UUID, below: int, limit: int) -> Stretch | None:
    """The nearest entries below an id, the newest first; None to who is no member."""
    found = await _page(tx, _DOWN_FROM, user_id, conversation_id, least=0, most=below - 1, limit=limit)
    if found is not None:
        found.entries.sort(key=_message_id, reverse=True)
    return found


async def entries_up(tx: Connection, *, user_id: UUID, conversation_id: UUID, above: int, limit: int) -> Stretch | None:
    """The nearest entries above an id, the oldest first; None to who is no member."""
    found = await _page(tx, _UP_FROM, user_id, conversation_id, least=above + 1, most=MAX_MESSAGE_ID, limit=limit)
    if found is not None:
        found.entries.sort(key=_message_id)
    return found


async def entry(tx: Connection, *, user_id: UUID, conversation_id: UUID, message_id: int) -> Stretch | None:
    """One entry, if it is in this conversation, without counts; None to who is no member."""
    return await _page(tx, _ONE, user_id, conversation_id, least=message_id, most=message_id, limit=1)


async def _page(
    tx: Connection, statement: Statement, user_id: UUID, conversation_id: UUID, *, least: int, most: int, limit: int
) -> Stretch | None:
    where = (conversation_id.bytes, user_id.bytes, of_bigint(least), of_bigint(most), of_bigint(limit))
    rows = await tx.rows(statement, where)
    if not rows:
        return None
    found = [row for row in rows if row[_SEQ] is not None]
    entries = [Entry(*row[:_ENTRY_VALUES]) for row in found]
    given = {row[0]: row[-2:] for row in rows if row[_SEQ] is None}
    counts = {} if statement is _ONE else _counts(entries, user_id, given)
    return Stretch(entries, frozenset([row[0] for row in found if row[_ENTRY_VALUES]]), counts)


def _counts(entries: Sequence[Entry], sender_id: UUID, given: Mapping[int, tuple[int, int]]) -> dict[int, DeliveryCounts]:
    return {
        own.message_id: DeliveryCounts(rfc3339(own.created_at), *given.get(own.message_id, (0, 0)))
        for own in entries
        if is_own(own, sender_id)
    }


async def delivery_counts(
    tx: Connection, *, sender_id: UUID, conversation_id: UUID, entries: Sequence[Entry]
) -> dict[int, DeliveryCounts]:
    """Of this sender's messages among the entries: by how many others each was received and, where both show it, read."""
    mine = [own for own in entries if is_own(own, sender_id)]
    return _counts(mine, sender_id, {row[0]: row[1:] for row in await _receipts(tx, _COUNTS, sender_id, conversation_id, mine)})


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
