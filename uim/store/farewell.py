"""The end of an account, in SQL: what it is still part of, and what is erased.

Rule: the users row stays, for messages stay and have a sender; nothing on it tells any more whose it was. The name is kept
as a hash alone, so that it is not given again. What is still to be left or forgotten of an account that is gone is what
its rows here say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from uim.store.postgres import Connection

# A hyphen, which no username has: so nobody can have taken this name before.
_ANONYMISE: Final = """
    with gone as (
        select user_id, username from users where user_id = %(user_id)s
    ), retired as (
        insert into retired_usernames (name_hash) select username_hash(username) from gone on conflict do nothing
    )
    update users u set username = 'deleted-' || replace(u.user_id::text, '-', ''), email = null, password_hash = '!',
        display_name = null, avatar_url = null, status_text = null, availability = 'available', last_seen = null,
        deleted_at = clock_timestamp(), updated_at = clock_timestamp()
    from gone where u.user_id = gone.user_id"""

# In this order: the last two are how `unfinished` finds an account for which the others have not been done.
_FORGET: Final = (
    "delete from blocks where user_id = %(user_id)s or blocked_id = %(user_id)s",
    "delete from hidden_messages where user_id = %(user_id)s",
    "delete from receipt_pauses where user_id = %(user_id)s",
    # What the account's entries told of devices and friends; nobody can read that conversation any more.
    """update messages set metadata = null, deleted_at = clock_timestamp() where metadata is not null and conversation_id =
        (select conversation_id from conversations where created_by = %(user_id)s and type = 'self')""",
    "delete from device_cursors where user_id = %(user_id)s",
    # The rows stay, for other processes ask which logins have ended of late.
    "update logins set device_id = '-', device_name = null, platform = null where user_id = %(user_id)s",
)

_GROUPS: Final = """conversation_participants p
    join conversations c on c.conversation_id = p.conversation_id and c.deleted_at is null and c.type = 'group'
    where p.left_at is null and p.user_id"""

_END_FRIENDSHIPS: Final = """
    with chosen as (
        select user_id, friend_id from friendships where user_id = %(user_id)s or friend_id = %(user_id)s
        order by user_id, friend_id limit %(at_most)s
    ), ended as (
        delete from friendships f using chosen where f.user_id = chosen.user_id and f.friend_id = chosen.friend_id
        -- A request of this user's that is `rejected` was never shown to the other one.
        returning case when f.user_id = %(user_id)s then f.friend_id else f.user_id end as other_id,
            f.user_id <> %(user_id)s or f.status <> 'rejected' as knew
    )
    select e.other_id, own.conversation_id, e.knew
    from ended e join conversations own on own.created_by = e.other_id and own.type = 'self' order by e.other_id"""


@dataclass(frozen=True, slots=True)
class Ended:
    """A friendship or request that has ended: the other one, where their account's entries stand, whether they knew of it."""

    user_id: UUID
    self_conversation_id: UUID
    knew: bool


async def is_gone(tx: Connection, user_id: UUID) -> bool:
    cursor = await tx.execute("select from users where user_id = %s and deleted_at is not null", (user_id,))
    return await cursor.fetchone() is not None


async def anonymise(tx: Connection, user_id: UUID) -> None:
    """The account is gone from here on, and its name given to nobody."""
    await tx.execute(_ANONYMISE, {"user_id": user_id})


async def pairs_of(tx: Connection, user_id: UUID) -> list[UUID]:
    """The one-on-ones that this user is in."""
    cursor = await tx.execute(
        """select c.conversation_id from conversation_participants p
            join conversations c on c.conversation_id = p.conversation_id and c.deleted_at is null and c.type = 'one_on_one'
            where p.user_id = %s and p.left_at is null order by c.conversation_id""",
        (user_id,),
        binary=True,
    )
    return [row[0] for row in await cursor.fetchall()]


async def next_group_of(tx: Connection, user_id: UUID) -> UUID | None:
    """A group that this user is in."""
    cursor = await tx.execute(
        f"select p.conversation_id from {_GROUPS} = %s order by p.conversation_id limit 1", (user_id,), binary=True
    )
    row = await cursor.fetchone()
    return None if row is None else row[0]


async def end_friendships(tx: Connection, user_id: UUID, *, at_most: int) -> list[Ended]:
    """End some of this user's friendships and requests; empty once there are none. The caller holds the log lock."""
    cursor = await tx.execute(_END_FRIENDSHIPS, {"user_id": user_id, "at_most": at_most}, binary=True)
    return [Ended(*row) for row in await cursor.fetchall()]


async def unfinished(tx: Connection) -> list[UUID]:
    """Accounts that are gone and have something left, some at a time, the longest gone first."""
    cursor = await tx.execute(
        f"""select u.user_id from users u where u.deleted_at is not null and (
                exists (select from {_GROUPS} = u.user_id)
                or exists (select from friendships f where f.user_id = u.user_id)
                or exists (select from friendships f where f.friend_id = u.user_id)
                or exists (select from device_cursors d where d.user_id = u.user_id)
                or exists (select from logins l where l.user_id = u.user_id and l.device_id <> '-'))
            order by u.deleted_at limit 1000""",
        binary=True,
    )
    return [row[0] for row in await cursor.fetchall()]


async def forget(tx: Connection, user_id: UUID) -> None:
    """Erase what is only this user's. Each statement by itself: broken off, it is begun again and finds the rest."""
    for statement in _FORGET:
        await tx.execute(statement, {"user_id": user_id})
