"""A user's list of conversations: where each stands in it, and how it looks from there.

One statement gives the places and the faces of a page, so what is listed is shown as of the same moment. Rule: a list has what its
user is in now; one of changes also what they have been out of since, of which it tells no more than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec

from uim.model.conversation import ConversationView
from uim.store import conversations
from uim.store.binary import of_bigint, of_moment
from uim.store.conversations import FACE
from uim.store.postgres import Connection, Statement


class Place(msgspec.Struct, frozen=True):
    """Where a conversation stands in a user's list: by its last activity. `at_us` is microseconds since the epoch."""

    at_us: int
    message_id: int
    conversation_id: UUID


class Listed(msgspec.Struct, frozen=True):
    """A conversation in its place; without a view where the user is out of it."""

    place: Place
    view: ConversationView | None


# What the face asks for of seat, conversation and viewer has been read for the place already.
_SEAT: Final = """
        (select $1::uuid as user_id, l.conversation_id, l.role, l.last_read_message_id where l.left_at is null) p
        cross join (select l.conversation_id, l.type, l.name, l.created_by, l.created_at, l.updated_at where l.deleted_at is null) c
        cross join (select l.read_receipts) viewer"""
# $1: the user; $2, $3, $4: a place, or nulls; $5: how many; $6: since when, in a list of changes. Entries of one batch share their time,
# so the id decides next; a one-on-one without entries stands where it was made, one that the user is out of where that happened. The
# clock that stored times are taken from is read before the list is: also where the list is empty.
_LIST: Final = f"""
    select statement_timestamp(), l.at_us, l.message_id, l.conversation_id, face.*
    from (values (1)) once
    left join lateral (
        select (extract(epoch from place.at) * 1000000)::bigint as at_us, place.message_id, p.conversation_id,
            p.left_at, p.role, p.last_read_message_id, (select v.read_receipts from users v where v.user_id = $1::uuid),
            c.type, c.name, c.created_by, c.created_at, c.updated_at, c.deleted_at
        from conversation_participants p
        join conversations c on c.conversation_id = p.conversation_id and c.type <> 'self'
        left join lateral (
            select m.message_id, m.created_at from messages m
            where m.conversation_id = p.conversation_id and p.left_at is null order by m.message_id desc limit 1
        ) newest on true
        cross join lateral (
            select coalesce(p.left_at, newest.created_at, c.created_at) as at, coalesce(newest.message_id, 0) as message_id
        ) place
        where p.user_id = $1::uuid and (p.hidden_up_to is null or newest.message_id > p.hidden_up_to) and {{wanted}}
            and ($2::bigint is null or ((extract(epoch from place.at) * 1000000)::bigint, place.message_id, p.conversation_id)
                < ($2::bigint, $3::bigint, $4::uuid))
        order by 1 desc, 2 desc, 3 desc
        limit $5::bigint
    ) l on true
    left join lateral ({FACE.format(seat=_SEAT)}) face on true
    order by l.at_us desc, l.message_id desc, l.conversation_id desc"""
_CHANGED: Final = """
    (p.left_at is null or p.left_at > $6::timestamptz)
    and (p.left_at is not null or newest.created_at > $6 or c.updated_at > $6 or p.last_read_at > $6
        or exists (
            select from conversation_participants other join users u on u.user_id = other.user_id
            where other.conversation_id = p.conversation_id
                and (other.changed_at > $6 or other.left_at is null and (u.updated_at > $6
                    or other.last_read_at > $6 and u.read_receipts
                        and (select v.read_receipts from users v where v.user_id = $1)
                        and (
                            select r.at from receipts r
                            where r.conversation_id = other.conversation_id and r.user_id = other.user_id and r.kind = 'read'
                                and not receipts_paused($1, r.at)
                            order by r.up_to desc limit 1
                        ) > $6))
        ))"""
# Of a row: after the database's time and the place.
_FACE: Final = slice(4, None)
# Two, for the plan of one that asks for changes if there is a `since` is made anew at each call: that took as long as all the rest.
_ALL: Final = Statement(b"list", _LIST.format(wanted="p.left_at is null").encode())
_CHANGES: Final = Statement(b"list_of_changes", _LIST.format(wanted=_CHANGED).encode())


async def listed(
    tx: Connection, *, user_id: UUID, changed_since: datetime | None, below: Place | None, limit: int
) -> tuple[datetime, list[Listed]]:
    """The database's time, and a user's conversations as of then, newest activity first, below a place.

    With `changed_since`: only those in which something has changed after it, and those that the user has been out of since.
    """
    where = [user_id.bytes, *_parameters(below), of_bigint(limit)]
    if changed_since is None:
        rows = await tx.rows(_ALL, where)
    else:
        rows = await tx.rows(_CHANGES, [*where, of_moment(changed_since)])
    views = iter(await conversations.views_with(tx, [row[_FACE] for row in rows if row[_FACE.start] is not None]))
    found = [Listed(Place(*row[1:4]), next(views) if row[_FACE.start] is not None else None) for row in rows if row[1] is not None]
    return rows[0][0], found


def _parameters(below: Place | None) -> Sequence[bytes | None]:
    if below is None:
        return None, None, None
    return of_bigint(below.at_us), of_bigint(below.message_id), below.conversation_id.bytes
