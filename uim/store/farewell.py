"""The end of an account, in SQL: what it is still part of, and what is erased.

Rule: the users row stays, for messages stay and have a sender; nothing on it tells any more whose it was. The name is kept
as a hash alone, so that it is not given again.
"""

from __future__ import annotations

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

_FORGET: Final = (
    "delete from friendships where user_id = %(user_id)s or friend_id = %(user_id)s",
    "delete from blocks where user_id = %(user_id)s or blocked_id = %(user_id)s",
    "delete from hidden_messages where user_id = %(user_id)s",
    "delete from receipt_pauses where user_id = %(user_id)s",
    "delete from device_cursors where user_id = %(user_id)s",
    # The rows stay, for other processes ask which logins have ended of late.
    "update logins set device_id = '-', device_name = null, platform = null where user_id = %(user_id)s",
    # What the account's entries told of devices and friends; nobody can read that conversation any more.
    """update messages set metadata = null, deleted_at = clock_timestamp() where metadata is not null and conversation_id =
        (select conversation_id from conversations where created_by = %(user_id)s and type = 'self')""",
)


async def is_gone(tx: Connection, user_id: UUID) -> bool:
    cursor = await tx.execute("select from users where user_id = %s and deleted_at is not null", (user_id,))
    return await cursor.fetchone() is not None


async def conversations_of(tx: Connection, user_id: UUID) -> tuple[list[UUID], list[UUID]]:
    """The groups and the one-on-ones that this user is in, each in the order of their locks."""
    cursor = await tx.execute(
        """select c.conversation_id, c.type from conversation_participants p
            join conversations c on c.conversation_id = p.conversation_id and c.deleted_at is null and c.type <> 'self'
            where p.user_id = %s and p.left_at is null order by c.conversation_id""",
        (user_id,),
        binary=True,
    )
    rows = await cursor.fetchall()
    return [row[0] for row in rows if row[1] == "group"], [row[0] for row in rows if row[1] == "one_on_one"]


async def listing(tx: Connection, user_id: UUID) -> list[UUID]:
    """Those who have this user in their list of friends and requests, in the order of their ids."""
    # A request of this user's that is `rejected` was never shown to the other one.
    cursor = await tx.execute(
        """select friend_id from friendships where user_id = %(user_id)s and status <> 'rejected'
            union select user_id from friendships where friend_id = %(user_id)s order by 1""",
        {"user_id": user_id},
        binary=True,
    )
    return [row[0] for row in await cursor.fetchall()]


async def erase(tx: Connection, user_id: UUID) -> None:
    """Anonymise the account and forget what is only its user's."""
    await tx.execute(_ANONYMISE, {"user_id": user_id})
    for statement in _FORGET:
        await tx.execute(statement, {"user_id": user_id})
