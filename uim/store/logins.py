"""Logins in SQL: one row for each time a device signed in.

A login lives while it is neither ended nor expired; its refreshing moves `expires_at` on. Rule: an ended login never
lives again, and all times are the database's own, for several processes judge them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from uim.model.person import Device, Profile
from uim.store import people
from uim.store.binary import of_bigint
from uim.store.postgres import Connection, Statement, array_text

_LIVES: Final = "l.ended_at is null and l.expires_at > clock_timestamp()"


@dataclass(frozen=True, slots=True)
class LiveLogin:
    """A living login. `used_generation`: the newest generation whose pair is known to be in use."""

    login_id: UUID
    user_id: UUID
    username: str
    device_id: str
    used_generation: int


@dataclass(frozen=True, slots=True)
class RefreshRow:
    """What a refresh is judged by. `used_for_s`: since when the newest generation is used, None if it is not yet."""

    profile: Profile
    device_id: str
    generation: int
    refresh_key: bytes
    refresh_hash: bytes
    previous_hash: bytes | None
    used_for_s: float | None
    expires_in_s: float


@dataclass(frozen=True, slots=True)
class ListedLogin:
    """A living login as its user's list of devices shows it."""

    login_id: UUID
    device_id: str
    device_name: str | None
    platform: str | None
    created_at: datetime
    last_used_at: datetime


async def add(
    tx: Connection, *, login_id: UUID, user_id: UUID, device: Device, refresh_key: bytes, refresh_hash: bytes, life_s: int
) -> None:
    """A new login in its first generation."""
    await tx.execute(
        """insert into logins (login_id, user_id, device_id, device_name, platform, refresh_key, refresh_hash, expires_at)
            values (%s, %s, %s, %s, %s, %s, %s, clock_timestamp() + make_interval(secs => %s))""",
        (login_id, user_id, device.device_id, device.device_name, device.platform, refresh_key, refresh_hash, life_s),
    )


async def living(tx: Connection, login_ids: Sequence[UUID]) -> dict[UUID, LiveLogin]:
    """Those of these logins that live, and their accounts too."""
    cursor = await tx.execute(
        f"""select l.login_id, l.user_id, u.username, l.device_id,
                case when l.generation_used_at is null then l.generation - 1 else l.generation end
            from logins l join users u on u.user_id = l.user_id
            where l.login_id = any(%s::uuid[]) and {_LIVES} and u.deleted_at is null""",
        (array_text(login_ids),),
        binary=True,
        prepare=True,
    )
    return {row[0]: LiveLogin(*row) for row in await cursor.fetchall()}


async def mark_used(tx: Connection, *, login_id: UUID, generation: int) -> None:
    """Note, once, that this generation's pair is in use; nothing happens if there is a newer one."""
    await tx.execute(
        """update logins set generation_used_at = clock_timestamp(), last_used_at = clock_timestamp()
            where login_id = %s and generation = %s and generation_used_at is null""",
        (login_id, generation),
    )


_REFRESHING: Final = Statement(
    b"login_refreshing",
    f"""select l.device_id, l.generation, l.refresh_key, l.refresh_hash, l.previous_hash,
            extract(epoch from clock_timestamp() - l.generation_used_at)::float8,
            extract(epoch from l.expires_at - clock_timestamp())::float8, {people.PROFILE}
        from logins l join users u on u.user_id = l.user_id
        where l.login_id = $1::uuid and {_LIVES} and u.deleted_at is null""".encode(),
)


async def refreshing(tx: Connection, login_id: UUID) -> RefreshRow | None:
    """A living login of a living account."""
    rows = await tx.rows(_REFRESHING, (login_id.bytes,))
    return RefreshRow(people.profile(rows[0][7:]), *rows[0][:7]) if rows else None


# $1: the token's hash; $2: of the one that it follows; $3: how long it lives, in seconds; $4: the login.
_ADVANCE: Final = Statement(
    b"login_advance",
    f"""update logins l set generation = generation + 1, previous_hash = refresh_hash, refresh_hash = $1::bytea,
            generation_used_at = null, last_used_at = clock_timestamp(),
            expires_at = clock_timestamp() + $3::bigint * interval '1 second'
        where l.login_id = $4::uuid and l.refresh_hash = $2::bytea and {_LIVES}
            and exists (select from users u where u.user_id = l.user_id and u.deleted_at is null)
        returning true""".encode(),
)


async def advance(tx: Connection, *, login_id: UUID, present_hash: bytes, refresh_hash: bytes, life_s: int) -> bool:
    """The next generation begins, with this token; False if the present one is no longer that of `present_hash`, or lives no more."""
    return bool(await tx.rows(_ADVANCE, (refresh_hash, present_hash, of_bigint(life_s), login_id.bytes)))


async def living_of(tx: Connection, user_id: UUID) -> list[ListedLogin]:
    """A user's living logins, the last used first."""
    cursor = await tx.execute(
        f"""select l.login_id, l.device_id, l.device_name, l.platform, l.created_at, l.last_used_at
            from logins l where l.user_id = %s and {_LIVES} order by l.last_used_at desc, l.login_id""",
        (user_id,),
        binary=True,
    )
    return [ListedLogin(*row) for row in await cursor.fetchall()]


async def living_on(tx: Connection, *, user_id: UUID, device_id: str) -> list[UUID]:
    """A user's living logins on one device; the caller holds the log lock, so there is no new one meanwhile."""
    cursor = await tx.execute(
        f"select l.login_id from logins l where l.user_id = %s and l.device_id = %s and {_LIVES}",
        (user_id, device_id),
        binary=True,
    )
    return [row[0] for row in await cursor.fetchall()]


async def end(tx: Connection, *, user_id: UUID, login_ids: Sequence[UUID], reason: str) -> list[UUID]:
    """End those of these logins that are this user's and live; returns them, sorted."""
    cursor = await tx.execute(
        f"""update logins l set ended_at = clock_timestamp(), ended_reason = %s
            where l.user_id = %s and l.login_id = any(%s) and {_LIVES} returning l.login_id""",
        (reason, user_id, list(login_ids)),
        binary=True,
    )
    return sorted(row[0] for row in await cursor.fetchall())


async def ended_since(tx: Connection, seconds: float) -> list[UUID]:
    """Logins that were ended, or ran out, within the last `seconds`."""
    # now(), which is one time for the whole statement, or no index would serve.
    cursor = await tx.execute(
        """select login_id from logins where ended_at > now() - make_interval(secs => %(s)s)
            union all
            select login_id from logins where ended_at is null
                and expires_at > now() - make_interval(secs => %(s)s) and expires_at <= now()""",
        {"s": seconds},
        binary=True,
    )
    return [row[0] for row in await cursor.fetchall()]
