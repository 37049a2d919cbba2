"""Conversations as their members see them: the objects, what is unread.

Everything is by sets: some conversations of a user, or one conversation for all of its members, cost a few statements. Rule: a
conversation is shown only to a current member, and of its entries only those in that member's stays.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final
from uuid import UUID

import msgspec

from uim.model.conversation import UNREAD_LIMIT, ConversationView, Participant
from uim.model.ids import MAX_MESSAGE_ID, rfc3339
from uim.model.message import Entry
from uim.store import receipts
from uim.store.binary import uuids
from uim.store.messages import COLUMNS
from uim.store.postgres import Connection, Statement, array_text
from uim.store.receipts import Reads
from uim.wire.frames import hidden_object, message_object

# Counted to the limit and no further: an unread counter that is stored is one that is wrong some day. Whoever has hidden nothing,
# as nearly all, is not asked for each text whether it is hidden; and nobody is asked where nothing `waits`.
_UNREAD: Final = f"""
    select count(*)::integer as number from (
        select from (select exists (select from hidden_messages any_of where any_of.user_id = p.user_id) as anything offset 0) hides
        cross join participations s
        cross join lateral (
            select from messages text
            where text.conversation_id = s.conversation_id
                and text.message_id > p.last_read_message_id and text.message_id >= s.joined_message_id
                and text.message_id <= coalesce(s.left_message_id, {MAX_MESSAGE_ID})
                and text.message_type = 'text' and text.sender_id <> p.user_id and text.deleted_at is null
                and not (hides.anything and exists (
                    select from hidden_messages h where h.user_id = p.user_id and h.message_id = text.message_id
                ))
            limit {UNREAD_LIMIT}
        ) waiting
        where {{waits}} and s.conversation_id = p.conversation_id and s.user_id = p.user_id
            and coalesce(s.left_message_id, {MAX_MESSAGE_ID}) > p.last_read_message_id
        limit {UNREAD_LIMIT}
    ) counted"""

# A conversation as one viewer sees it: the viewer's seat is `p`, and what is asked of it is in `c` and `viewer`. The open stay holds the
# newest entry, for a member who is in is in up to now. Seat and stay are looked up one by one: joined, they may be read by user, and one
# with a thousand conversations would be read fifty times.
FACE: Final = f"""
    select p.user_id, p.role, p.last_read_message_id, viewer.read_receipts,
        c.conversation_id, c.type, c.name, c.created_by, c.created_at, c.updated_at, unread.number,
        exists (select from hidden_messages h where h.user_id = p.user_id and h.message_id = m.message_id),
        exists (select from receipt_pauses o where o.user_id = p.user_id),
        exists (select from blocks b where b.user_id = p.user_id) or exists (select from blocks b where b.blocked_id = p.user_id),
        {COLUMNS}
    from {{seat}}
    cross join lateral (
        select s.joined_message_id from participations s
        where s.conversation_id = p.conversation_id and s.user_id = p.user_id and s.left_message_id is null limit 1
    ) stay
    left join lateral (
        select newest.* from messages newest
        where newest.conversation_id = p.conversation_id and newest.message_id >= stay.joined_message_id
            and newest.message_type <> 'deletion'
        order by newest.message_id desc limit 1
    ) m on true
    cross join lateral ({_UNREAD.format(waits="m.message_id > p.last_read_message_id")}) unread"""
_FACES: Final = Statement(
    b"conversation_faces",
    FACE.format(
        seat="""unnest($1::uuid[], $2::uuid[]) as g (conversation_id, user_id)
    cross join lateral (
        select seat.* from conversation_participants seat
        where seat.conversation_id = g.conversation_id and seat.user_id = g.user_id and seat.left_at is null limit 1
    ) p
    join conversations c on c.conversation_id = g.conversation_id and c.deleted_at is null and c.type <> 'self'
    join users viewer on viewer.user_id = g.user_id"""
    ).encode(),
)
# The values of a `FACE`.
Face = tuple[Any, ...]

# What others are shown is the newest read that was told: the watermark itself counts what was read while that was hidden.
_MEMBERS: Final = Statement(
    b"conversation_members",
    b"""
    select p.conversation_id, p.user_id, u.username, u.display_name, u.avatar_url, p.role, p.joined_at,
        p.last_delivered_message_id, p.last_read_message_id, coalesce(told.up_to, 0), u.read_receipts
    from conversation_participants p
    join users u on u.user_id = p.user_id
    left join lateral (
        select r.up_to from receipts r
        where r.conversation_id = p.conversation_id and r.user_id = p.user_id and r.kind = 'read' order by r.up_to desc limit 1
    ) told on true
    where p.conversation_id = any($1::uuid[]) and p.left_at is null
    order by p.conversation_id, p.joined_at, p.user_id""",
)


async def views(tx: Connection, *, user_id: UUID, conversation_ids: Sequence[UUID]) -> dict[UUID, ConversationView]:
    """The conversations as this user sees them, by id; those that the user is not a current member of are absent."""
    pairs = [(conversation_id, user_id) for conversation_id in conversation_ids]
    return {conversation_id: view for (conversation_id, _), view in (await _views(tx, pairs)).items()}


async def views_of(tx: Connection, *, conversation_id: UUID, user_ids: Sequence[UUID]) -> dict[UUID, ConversationView]:
    """One conversation as each of these users sees it, by user; those who are not current members are absent."""
    pairs = [(conversation_id, user_id) for user_id in user_ids]
    return {user_id: view for (_, user_id), view in (await _views(tx, pairs)).items()}


async def unread(tx: Connection, *, user_id: UUID, conversation_ids: Sequence[UUID]) -> dict[UUID, int]:
    """What the user has not read, per conversation, counted to 100; those that are not theirs are absent."""
    cursor = await tx.execute(
        f"""select p.conversation_id, unread.number from conversation_participants p
            cross join lateral ({_UNREAD.format(waits="true")}) unread
            where p.user_id = %s and p.conversation_id = any(%s) and p.left_at is null""",
        (user_id, list(conversation_ids)),
        binary=True,
        prepare=True,
    )
    return {row[0]: row[1] for row in await cursor.fetchall()}


# The seat of a current member ($2) of a conversation ($1): of a living one, and not of the one of their account.
SEAT: Final = """
    select p.conversation_id, p.user_id from conversation_participants p
    join conversations c on c.conversation_id = p.conversation_id and c.deleted_at is null and c.type <> 'self'
    where p.conversation_id = $1::uuid and p.user_id = $2::uuid and p.left_at is null"""
_SEAT: Final = Statement(b"seat", SEAT.encode())


async def is_member(tx: Connection, *, user_id: UUID, conversation_id: UUID) -> bool:
    """Whether the conversation exists for this user: a living one of theirs, and not the one of their account."""
    return bool(await tx.rows(_SEAT, (conversation_id.bytes, user_id.bytes)))


async def _views(tx: Connection, pairs: Sequence[tuple[UUID, UUID]]) -> dict[tuple[UUID, UUID], ConversationView]:
    if not pairs:
        return {}
    faces = await tx.rows(_FACES, (uuids(pair[0] for pair in pairs), uuids(pair[1] for pair in pairs)))
    return {(face[4], face[0]): view for face, view in zip(faces, await views_with(tx, faces), strict=True)}


async def views_with(tx: Connection, faces: Sequence[Face]) -> list[ConversationView]:
    """The conversations with these faces, one each: as those plus their members."""
    members = await _members(tx, {face[4] for face in faces})
    blocks = await _blocks(tx, {face[0] for face in faces if face[13]})
    reads = await receipts.reads_outside_pauses(tx, [(face[4], face[0]) for face in faces if face[12]])
    return [_view(face, members.get(face[4], []), blocks, reads.get((face[4], face[0]))) for face in faces]


_Blocks = frozenset[tuple[UUID, UUID]]


async def _blocks(tx: Connection, viewers: Collection[UUID]) -> _Blocks:
    """Every block that has to do with these viewers, as (one, other) both ways round."""
    if not viewers:
        return frozenset()
    cursor = await tx.execute(
        """select user_id, blocked_id from blocks where user_id = any(%(viewers)s::uuid[])
            union all select user_id, blocked_id from blocks where blocked_id = any(%(viewers)s::uuid[])""",
        {"viewers": array_text(viewers)},
        binary=True,
        prepare=True,
    )
    found = [(row[0], row[1]) for row in await cursor.fetchall()]
    return frozenset(found) | frozenset([(blocked, blocking) for blocking, blocked in found])


# There may be hundreds on a page: a Struct is made in a seventh of the time of a frozen dataclass.
class _Member(msgspec.Struct, frozen=True):
    """A participant as shown to themselves, and to whoever may know what they have read."""

    shows_reads: bool
    own: Participant
    open: Participant

    def seen(self, viewer_id: UUID, viewer_shows_reads: bool, blocks: _Blocks, reads: Reads | None) -> Participant:
        """`reads`: up to where reads are told to this viewer, where that is not as far as to others."""
        if viewer_id == self.own.user_id:
            return self.own
        shown = self.open
        if not (viewer_shows_reads and self.shows_reads):
            shown = msgspec.structs.replace(shown, last_read_message_id=None)
        if reads is not None and shown is self.open:
            shown = msgspec.structs.replace(shown, last_read_message_id=reads.get(shown.user_id, 0))
        if blocks and (viewer_id, shown.user_id) in blocks:
            # Across a block, either way, only the names.
            return msgspec.structs.replace(shown, avatar_url=None)
        return shown


async def _members(tx: Connection, conversation_ids: Collection[UUID]) -> dict[UUID, list[_Member]]:
    members: dict[UUID, list[_Member]] = {}
    for row in await tx.rows(_MEMBERS, (uuids(conversation_ids),)):
        own = Participant(row[1], row[2], row[3], row[4], row[5], rfc3339(row[6]), row[7], row[8])
        shown = own if row[9] == row[8] else msgspec.structs.replace(own, last_read_message_id=row[9])
        members.setdefault(row[0], []).append(_Member(row[10], own, shown))
    return members


def _view(face: Face, members: list[_Member], blocks: _Blocks, reads: Reads | None) -> ConversationView:
    viewer_id, role, last_read, viewer_shows_reads = face[:4]
    conversation_id, kind, name, created_by, created_at, updated_at, number, is_hidden = face[4:12]
    last = Entry(*face[14:]) if face[14] is not None else None
    return ConversationView(
        conversation_id=conversation_id,
        type=kind,
        name=name,
        created_by=created_by,
        created_at=rfc3339(created_at),
        updated_at=rfc3339(updated_at),
        role=role,
        participants=[member.seen(viewer_id, viewer_shows_reads, blocks, reads) for member in members],
        last_message=_last_message(last, viewer_id, is_hidden) if last is not None else None,
        unread_count=number,
        last_read_message_id=last_read,
    )


def _last_message(last: Entry, viewer_id: UUID, is_hidden: bool) -> msgspec.Raw:
    return msgspec.Raw(hidden_object(last) if is_hidden else message_object(last, own=last.sender_id == viewer_id))
