"""People in SQL: accounts, own profiles, and what one user sees of another.

Rule: a query for what others see takes the viewer, and hides in SQL what a block hides; a deleted account is found by none
of them, and keeps its names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import psycopg

from uim.errors import UIMError
from uim.model.person import PersonalSettings, Profile, User
from uim.store.postgres import Connection

_TAKEN: Final = {
    "users_username": ("username_taken", "username", "this username is taken"),
    "users_email": ("email_taken", "email", "an account has this email"),
}


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a password is checked against."""

    user_id: UUID
    username: str
    password_hash: str


async def add_account(
    tx: Connection, *, username: str, email: str, password_hash: str, display_name: str | None, self_conversation_id: UUID
) -> UUID:
    """A new user, with the `self` conversation that carries their account's entries. Returns the user's id.

    Raises UIMError `username_taken` or `email_taken`; the transaction is lost then.
    """
    try:
        cursor = await tx.execute(
            """with person as (
                insert into users (username, email, password_hash, display_name)
                values (%(username)s, %(email)s, %(password_hash)s, %(display_name)s) returning user_id
            ), own as (
                insert into conversations (conversation_id, type, created_by) select %(own)s, 'self', user_id from person
            ), seat as (
                insert into conversation_participants (conversation_id, user_id) select %(own)s, user_id from person
            ), stay as (
                insert into participations (conversation_id, user_id, joined_message_id) select %(own)s, user_id, 0 from person
            )
            select user_id from person""",
            {
                "username": username,
                "email": email,
                "password_hash": password_hash,
                "display_name": display_name,
                "own": self_conversation_id,
            },
            binary=True,
        )
    except psycopg.errors.UniqueViolation as taken:
        raise _refusal_of(taken) from taken
    row = await cursor.fetchone()
    assert row is not None and isinstance(row[0], UUID)
    # A statement of its own, after the insert: that may have waited for the end of the very account that had the name.
    cursor = await tx.execute("select from retired_usernames where name_hash = username_hash(%s)", (username,))
    if await cursor.fetchone() is not None:
        raise UIMError(*_TAKEN["users_username"][::2], field="username")
    return row[0]


def _refusal_of(taken: psycopg.errors.UniqueViolation) -> Exception:
    refusal = _TAKEN.get(taken.diag.constraint_name or "")
    return taken if refusal is None else UIMError(refusal[0], refusal[2], field=refusal[1])


async def credentials_of(tx: Connection, name: str) -> Credentials | None:
    """Of the user with this username or email, without regard to case."""
    column = "email" if "@" in name else "username"
    cursor = await tx.execute(
        f"select user_id, username, password_hash from users where lower({column}) = lower(%s) and deleted_at is null",
        (name,),
        binary=True,
    )
    row = await cursor.fetchone()
    return None if row is None else Credentials(*row)


async def credentials_by_id(tx: Connection, user_id: UUID) -> Credentials | None:
    cursor = await tx.execute(
        "select user_id, username, password_hash from users where user_id = %s and deleted_at is null", (user_id,), binary=True
    )
    row = await cursor.fetchone()
    return None if row is None else Credentials(*row)


async def lock_if_password_is(tx: Connection, *, user_id: UUID, password_hashes: Sequence[str]) -> bool:
    """Lock the user's row, if the account still lives and the hash of its password is still one of these."""
    cursor = await tx.execute(
        "select from users where user_id = %s and password_hash = any(%s) and deleted_at is null for no key update",
        (user_id, list(password_hashes)),
    )
    return await cursor.fetchone() is not None


async def set_password(tx: Connection, *, user_id: UUID, password_hash: str) -> None:
    await tx.execute("update users set password_hash = %s where user_id = %s", (password_hash, user_id))


async def self_conversation_of(tx: Connection, user_id: UUID) -> UUID:
    """The unlisted conversation that carries this user's account entries; every account has one."""
    cursor = await tx.execute(
        "select conversation_id from conversations where created_by = %s and type = 'self'", (user_id,), binary=True
    )
    row = await cursor.fetchone()
    assert row is not None and isinstance(row[0], UUID)
    return row[0]


PROFILE: Final = """u.user_id, u.username, u.email, u.display_name, u.avatar_url, u.status_text, u.availability,
    u.read_receipts, u.show_last_seen, u.created_at, u.updated_at"""


def profile(row: tuple[Any, ...]) -> Profile:
    """From the columns of PROFILE."""
    user_id, username, email, display_name, avatar_url, status_text, availability, read_receipts, show_last_seen, *times = row
    settings = PersonalSettings(read_receipts, show_last_seen)
    return Profile(user_id, username, email, display_name, avatar_url, status_text, availability, settings, *times)


async def profile_of(tx: Connection, user_id: UUID) -> Profile | None:
    """A living account as its owner sees it."""
    query = f"select {PROFILE} from users u where u.user_id = %s and u.deleted_at is null"
    row = await (await tx.execute(query, (user_id,), binary=True, prepare=True)).fetchone()
    return None if row is None else profile(row)


# What others see of an account itself, and what changes how they see conversations; only these move updated_at, which they
# see too: a change of availability must not show who is there but invisible.
SHOWN: Final = frozenset({"display_name", "avatar_url", "status_text"})
_NOTED: Final = SHOWN | {"read_receipts"}
_PROFILE: Final = ("display_name", "avatar_url", "status_text", "availability", "email", "read_receipts", "show_last_seen")


async def change_profile(
    tx: Connection, *, user_id: UUID, columns: Mapping[str, str | bool | None], is_online: bool
) -> frozenset[str] | None:
    """Set these columns of a living account; the names of those that had another value. None if the account is no more.

    Who becomes invisible while `is_online` was last seen now.
    Raises UIMError `email_taken`; the transaction is lost then.
    """
    cursor = await tx.execute(
        """select display_name, avatar_url, status_text, availability, email, read_receipts, show_last_seen
            from users where user_id = %s and deleted_at is null for no key update""",
        (user_id,),
    )
    row = await cursor.fetchone()
    if row is None:
        return None
    held = dict(zip(_PROFILE, row, strict=True))
    changed = frozenset(name for name, value in columns.items() if held[name] != value)
    if changed:
        leaves = is_online and "availability" in changed and columns["availability"] == "invisible"
        await _set_profile(tx, user_id, {**held, **columns}, is_noted=bool(changed & _NOTED), leaves=leaves)
    return changed


async def _set_profile(
    tx: Connection, user_id: UUID, columns: Mapping[str, str | bool | None], *, is_noted: bool, leaves: bool
) -> None:
    try:
        await tx.execute(
            """update users set display_name = %(display_name)s, avatar_url = %(avatar_url)s, status_text = %(status_text)s,
                    availability = %(availability)s, email = %(email)s,
                    last_seen = case when %(leaves)s then clock_timestamp() else last_seen end,
                    read_receipts = %(read_receipts)s, show_last_seen = %(show_last_seen)s,
                    updated_at = case when %(is_noted)s then clock_timestamp() else updated_at end
                where user_id = %(user_id)s""",
            {**columns, "is_noted": is_noted, "leaves": leaves, "user_id": user_id},
        )
    except psycopg.errors.UniqueViolation as taken:
        raise _refusal_of(taken) from taken


async def acquaintances_of(tx: Connection, user_id: UUID) -> list[UUID]:
    """Friends, and members of common groups; without those between whom and the user a block stands, either way."""
    cursor = await tx.execute(
        """select friend_id from friendships where user_id = %(user_id)s and status = 'accepted'
            union select user_id from friendships where friend_id = %(user_id)s and status = 'accepted'
            union select other.user_id from conversation_participants own
                join conversations c on c.conversation_id = own.conversation_id and c.type = 'group' and c.deleted_at is null
                join conversation_participants other on other.conversation_id = own.conversation_id and other.left_at is null
                where own.user_id = %(user_id)s and own.left_at is null and other.user_id <> own.user_id
            except select blocked_id from blocks where user_id = %(user_id)s
            except select user_id from blocks where blocked_id = %(user_id)s""",
        {"user_id": user_id},
        binary=True,
    )
    return [row[0] for row in await cursor.fetchall()]


# Across a block, either way, only the names; `updated_at` then is no sign of life either.
_SEEN: Final = """
    select u.user_id, u.username, u.display_name,
        case when b.hides then null else u.avatar_url end,
        case when b.hides then null else u.status_text end,
        case when b.hides then u.created_at else u.updated_at end
    from {found} u
    cross join lateral (select exists (
        select from blocks where (user_id, blocked_id) in ((%(viewer)s, u.user_id), (u.user_id, %(viewer)s))
    ) as hides) b
    order by lower(u.username) using ~<~"""

_BY_ID: Final = _SEEN.format(found="(select * from users where user_id = any(%(ids)s) and deleted_at is null)")

# Each way by its own index on prefixes, the second whole before it is sorted: given both conditions and the order at once,
# the planner likes to walk all usernames until it has met enough. Usernames are ASCII; ~<~ compares bytes, in any locale.
_BY_PREFIX: Final = """
    with by_display_name as materialized (
        select user_id, lower(username) as name from users where lower(display_name) like lower(%(prefix)s)
            and lower(username) ~>~ %(after)s and deleted_at is null
    ), by_username as (
        select user_id, lower(username) as name from users where lower(username) like lower(%(prefix)s)
            and lower(username) ~>~ %(after)s and deleted_at is null
        order by lower(username) using ~<~ limit %(limit)s
    ), found as (
        select user_id, name from by_display_name union select user_id, name from by_username
    )""" + _SEEN.format(
    found="(select u.* from (select * from found order by name using ~<~ limit %(limit)s) f join users u using (user_id))"
)


async def users_by_id(tx: Connection, *, viewer: UUID, user_ids: Sequence[UUID]) -> dict[UUID, User]:
    """As the viewer sees them; who is unknown or deleted is absent."""
    cursor = await tx.execute(_BY_ID, {"viewer": viewer, "ids": list(user_ids)}, binary=True)
    return {row[0]: User(*row) for row in await cursor.fetchall()}


async def users_by_prefix(tx: Connection, *, viewer: UUID, prefix: str, after: str, limit: int) -> list[User]:
    """Whose username or display name begins so, without regard to case, by username, from above the name `after`.

    `after` is a username in small letters, "" for the first page.
    """
    pattern = prefix.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
    # Never as a prepared statement: only a plan that knows the pattern can use the index on prefixes.
    cursor = await tx.execute(
        _BY_PREFIX, {"viewer": viewer, "prefix": pattern, "after": after, "limit": limit}, binary=True, prepare=False
    )
    return [User(*row) for row in await cursor.fetchall()]
