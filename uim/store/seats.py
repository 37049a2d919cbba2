"""The rows that verbs on conversations judge and change: rooms, seats, stays.

Called inside a verb's transaction, the log lock held. Rule: the lock order is log, conversation, participants by user_id,
and every row of the conversation is locked, those of people who left too, for they may come back in the same verb.
A seat and its stay are begun and ended together.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from uuid import UUID

from uim.model.conversation import Room, Seat
from uim.store.postgres import Connection


async def locked(tx: Connection, conversation_id: UUID) -> Room | None:
    """The living conversation and its members, their rows locked until the end of the transaction."""
    cursor = await tx.execute(
        """select conversation_id, type, name from conversations
            where conversation_id = %s and deleted_at is null and type <> 'self' for update""",
        (conversation_id,),
        binary=True,
    )
    row = await cursor.fetchone()
    if row is None:
        return None
    cursor = await tx.execute(
        """select user_id, role, joined_at, left_at is null from conversation_participants
            where conversation_id = %s order by user_id for update""",
        (conversation_id,),
        binary=True,
    )
    sitting = {seat[0]: Seat(*seat[:3]) for seat in await cursor.fetchall() if seat[3]}
    return Room(row[0], row[1], row[2], sitting)


async def made_under(tx: Connection, *, user_id: UUID, client_conversation_id: UUID) -> UUID | None:
    """The conversation that this user has made under an id of the client's own."""
    cursor = await tx.execute(
        "select conversation_id from conversations where created_by = %s and client_conversation_id = %s",
        (user_id, client_conversation_id),
    )
    row = await cursor.fetchone()
    return row[0] if row is not None else None


async def of_pair(tx: Connection, one: UUID, other: UUID) -> UUID | None:
    """The one-on-one of two users."""
    cursor = await tx.execute("select conversation_id from conversations where pair = %s::uuid[]", (sorted((one, other)),))
    row = await cursor.fetchone()
    return row[0] if row is not None else None


async def open_pair(
    tx: Connection, *, conversation_id: UUID, user_id: UUID, other_id: UUID, client_conversation_id: UUID | None
) -> UUID:
    """The one-on-one of two users: made under this id, both in it from the log's beginning, or the one that is there."""
    cursor = await tx.execute(
        """insert into conversations (conversation_id, type, created_by, client_conversation_id, pair)
            values (%s, 'one_on_one', %s, %s, %s::uuid[]) on conflict (pair) where pair is not null do nothing returning true""",
        (conversation_id, user_id, client_conversation_id, sorted((user_id, other_id))),
    )
    if await cursor.fetchone() is None:
        there = await of_pair(tx, user_id, other_id)
        assert there is not None  # it is what the insert has met, and such rows are never deleted
        return there
    await seat(tx, conversation_id, {user_id: ("member", 0), other_id: ("member", 0)})
    return conversation_id


async def insert_group(
    tx: Connection, *, conversation_id: UUID, user_id: UUID, name: str, client_conversation_id: UUID | None
) -> None:
    """Make a group without members."""
    await tx.execute(
        """insert into conversations (conversation_id, type, name, created_by, client_conversation_id)
            values (%s, 'group', %s, %s, %s)""",
        (conversation_id, name, user_id, client_conversation_id),
    )


async def seat(tx: Connection, conversation_id: UUID, stays: dict[UUID, tuple[str, int]]) -> None:
    """Seat users, each in a role and from an entry on. Who was here before keeps what they had delivered and read."""
    users = sorted(stays)
    await tx.execute(
        """insert into conversation_participants as p (conversation_id, user_id, role, joined_at, changed_at)
            select %s, g.user_id, g.role, statement_timestamp(), statement_timestamp()
            from unnest(%s::uuid[], %s::text[]) with ordinality as g (user_id, role, ord) order by g.ord
            on conflict (conversation_id, user_id) do update set role = excluded.role, joined_at = excluded.joined_at,
                left_at = null, changed_at = excluded.changed_at""",
        (conversation_id, users, [stays[user][0] for user in users]),
    )
    await tx.execute(
        """insert into participations (conversation_id, user_id, joined_message_id)
            select %s, g.user_id, g.joined from unnest(%s::uuid[], %s::bigint[]) as g (user_id, joined)""",
        (conversation_id, users, [stays[user][1] for user in users]),
    )


async def unseat(tx: Connection, conversation_id: UUID, user_ids: Sequence[UUID], *, at: int) -> None:
    """End the open stays of users with the entry `at`, which they still see."""
    await tx.execute(
        """update participations set left_message_id = %s
            where conversation_id = %s and user_id = any(%s) and left_message_id is null""",
        (at, conversation_id, list(user_ids)),
    )
    await tx.execute(
        """update conversation_participants set left_at = clock_timestamp(), changed_at = clock_timestamp()
            where conversation_id = %s and user_id = any(%s) and left_at is null""",
        (conversation_id, list(user_ids)),
    )


async def set_role(tx: Connection, conversation_id: UUID, user_id: UUID, role: str) -> None:
    await tx.execute(
        """update conversation_participants set role = %s, changed_at = clock_timestamp()
            where conversation_id = %s and user_id = %s""",
        (role, conversation_id, user_id),
    )


async def set_name(tx: Connection, conversation_id: UUID, name: str) -> None:
    await tx.execute("update conversations set name = %s where conversation_id = %s", (name, conversation_id))


async def touch(tx: Connection, conversation_id: UUID) -> None:
    """Note that name, members or roles have changed now."""
    await tx.execute("update conversations set updated_at = clock_timestamp() where conversation_id = %s", (conversation_id,))


async def end(tx: Connection, conversation_id: UUID) -> None:
    """The conversation is over for everybody."""
    await tx.execute(
        "update conversations set deleted_at = clock_timestamp(), updated_at = clock_timestamp() where conversation_id = %s",
        (conversation_id,),
    )


async def hide(tx: Connection, *, conversation_id: UUID, user_id: UUID, up_to: int) -> None:
    """Leave the conversation out of this user's list until an entry above `up_to` is there."""
    await tx.execute(
        """update conversation_participants set hidden_up_to = %s, changed_at = clock_timestamp()
            where conversation_id = %s and user_id = %s""",
        (up_to, conversation_id, user_id),
    )


async def living(tx: Connection, user_ids: Collection[UUID]) -> set[UUID]:
    """Those of the users who exist and have not deleted their account."""
    cursor = await tx.execute("select user_id from users where user_id = any(%s) and deleted_at is null", (list(user_ids),))
    return {row[0] for row in await cursor.fetchall()}


async def blocks_between(tx: Connection, user_id: UUID, other_ids: Collection[UUID]) -> tuple[set[UUID], set[UUID]]:
    """Those of the others whom this user blocks, and those who block this user."""
    cursor = await tx.execute(
        """select user_id, blocked_id from blocks where user_id = %(user)s and blocked_id = any(%(others)s)
            union all select user_id, blocked_id from blocks where user_id = any(%(others)s) and blocked_id = %(user)s""",
        {"user": user_id, "others": list(other_ids)},
    )
    rows = await cursor.fetchall()
    return {row[1] for row in rows if row[0] == user_id}, {row[0] for row in rows if row[1] == user_id}
