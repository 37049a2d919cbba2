"""Presence where it is kept: which process holds whose devices, in Redis; who may see it, and what they chose to show, in SQL.

The keys are `presence:user:{user_id}` (JSON, 90 s), beside it a hash of the user's devices, and for each process the set of
users that it holds, so that others can let go for one that died. Rule: a holding is said as it is now, never as a change, so
that saying it twice, or late, does no harm.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec

from uim.model.ids import rfc3339
from uim.model.presence import Choices, Status
from uim.store.postgres import Connection, array_text
from uim.store.redis import UNREADABLE, Command, RedisLink
from uim.store.scripts import HOLD_DEVICES

LIFE_S: Final = 90
# A process's own set outlives its lease for long enough that somebody will have let go of what is in it.
HELD_LIFE_S: Final = 3_600
# Whoever has missed more words than these is told everything afresh.
LATEST_WORDS: Final = 1_000
_MGET_KEYS: Final = 1_000
_FIRST: Final = UUID(int=0)


# -- Redis ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Holding:
    """The devices of one user that a process holds; `chosen`: tell others even if nobody came or went."""

    user_id: UUID
    devices: Sequence[str]
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What Redis made of a holding: whether the user's status has changed, whether others were told, and by which version."""

    changed: bool
    told: bool
    version: int
    status: Status


class Word(msgspec.Struct, frozen=True):
    """One message on presence:updates. `last_seen` only where the status has changed; `number` 0 from an older release."""

    user_id: UUID
    status: str
    last_seen: datetime | None
    version: int
    chosen: bool = False
    number: int = 0


def word_of(holding: Holding, verdict: Verdict, now: datetime) -> Word:
    """What the channel says of a verdict."""
    return Word(holding.user_id, verdict.status, now if verdict.changed else None, verdict.version, holding.chosen)


class _Stored(msgspec.Struct):
    status: str


def held_key(process_id: UUID) -> str:
    """The set of users whose devices a process holds."""
    return f"presence:held:{process_id}"


def _keys(user_id: UUID) -> tuple[str, str]:
    # The braces keep both in one slot of a cluster.
    return f"presence:user:{user_id}", f"presence:devices:{{presence:user:{user_id}}}"


async def words_told(link: RedisLink, channel: str) -> int:
    """How many words have ever been told on the channel; fewer than before where Redis has lost its memory. Raises RedisAway."""
    return int(await link.call("GET", f"{channel}:told") or 0)


async def latest_words(link: RedisLink, channel: str) -> list[bytes]:
    """The latest LATEST_WORDS words, the oldest first. Raises RedisAway."""
    latest: list[bytes] = await link.call("LRANGE", f"{channel}:latest", 0, -1)
    return latest


async def hold(
    link: RedisLink, *, channel: str, process_id: UUID, now: datetime, holdings: Sequence[Holding]
) -> list[Verdict]:
    """Say what a process holds of these users; what changes by it is told on the channel. One pipeline. Raises RedisAway."""
    # Loading is cheap beside a round trip that finds it not loaded; and a user is in the set before a device is in the hash.
    commands: list[Command] = [("SCRIPT", "LOAD", HOLD_DEVICES.text)]
    coming = [str(holding.user_id) for holding in holdings if holding.devices]
    gone = [str(holding.user_id) for holding in holdings if not holding.devices]
    if coming:
        commands.append(("SADD", held_key(process_id), *coming))
        commands.append(("EXPIRE", held_key(process_id), HELD_LIFE_S))
    first = len(commands)
    commands += [_hold_command(channel, process_id, now, holding) for holding in holdings]
    if gone:
        commands.append(("SREM", held_key(process_id), *gone))
    replies = await link.call_all(commands)
    return [
        Verdict(reply[0] == 2, reply[0] > 0, int(reply[1]), "online" if reply[2] == b"online" else "offline")
        for reply in replies[first : first + len(holdings)]
    ]


def _hold_command(channel: str, process_id: UUID, now: datetime, holding: Holding) -> Command:
    return (
        "EVALSHA", HOLD_DEVICES.name, 4, *_keys(holding.user_id), f"{channel}:told", f"{channel}:latest",
        channel, str(holding.user_id), str(process_id), rfc3339(now), "1" if holding.chosen else "0", LIFE_S, LATEST_WORDS,
        *holding.devices,
    )  # fmt: skip


async def online_among(link: RedisLink, user_ids: Sequence[UUID]) -> set[UUID]:
    """Those who are connected to some process. One pipeline. Raises RedisAway."""
    commands: list[Command] = [
        ("MGET", *(_keys(user_id)[0] for user_id in user_ids[at : at + _MGET_KEYS]))
        for at in range(0, len(user_ids), _MGET_KEYS)
    ]
    stored = [value for reply in await link.call_all(commands) for value in reply]
    return {user_id for user_id, value in zip(user_ids, stored, strict=True) if value and _status_in(value) == "online"}


def _status_in(value: bytes) -> str:
    try:
        return msgspec.json.decode(value, type=_Stored).status
    except UNREADABLE:
        return "offline"  # somebody else's key


# -- PostgreSQL -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seat:
    """A place in the friends of several users: which of them, and the friend."""

    at: int
    friend_id: UUID


START: Final = Seat(-1, _FIRST)

# No block stands between friends; yet what hides somebody is asked for where it hides.
_FRIENDS: Final = """
    with asked as (select user_id, at::int - 1 as at from unnest(%(ids)s::uuid[]) with ordinality as a (user_id, at)),
    known as (
        select a.at, a.user_id, f.friend_id from asked a join friendships f on f.user_id = a.user_id and f.status = 'accepted'
        union all
        select a.at, a.user_id, f.user_id from asked a join friendships f on f.friend_id = a.user_id and f.status = 'accepted'
    )
    select k.at, k.friend_id from known k
    where (k.at, k.friend_id) > (%(at)s, %(friend_id)s)
        and not exists (select from blocks b where b.user_id = k.user_id and b.blocked_id = k.friend_id)
        and not exists (select from blocks b where b.user_id = k.friend_id and b.blocked_id = k.user_id)
    order by k.at, k.friend_id limit %(limit)s"""


async def friends_of(tx: Connection, user_ids: Sequence[UUID], *, above: Seat, limit: int) -> list[Seat]:
    """The friends of these users between whom no block stands, in order, above a place: at most `limit`."""
    given = {"ids": array_text(user_ids), "at": above.at, "friend_id": above.friend_id, "limit": limit}
    cursor = await tx.execute(_FRIENDS, given, binary=True, prepare=True)
    return [Seat(*row) for row in await cursor.fetchall()]


async def friends_among(tx: Connection, user_id: UUID, others: Collection[UUID]) -> set[UUID]:
    """Those of the others who are that user's friends, without a block between them."""
    cursor = await tx.execute(
        """select o.user_id from unnest(%(others)s::uuid[]) as o (user_id)
            where exists (
                select from friendships f where f.status = 'accepted'
                    and (f.user_id, f.friend_id) in ((%(user_id)s, o.user_id), (o.user_id, %(user_id)s))
            ) and not exists (
                select from blocks b where (b.user_id, b.blocked_id) in ((%(user_id)s, o.user_id), (o.user_id, %(user_id)s))
            )""",
        {"user_id": user_id, "others": list(others)},
        binary=True,
        prepare=True,
    )
    return {row[0] for row in await cursor.fetchall()}


async def choices_of(tx: Connection, user_ids: Collection[UUID]) -> dict[UUID, Choices]:
    """What these users have chosen to show; a deleted account is absent."""
    cursor = await tx.execute(
        """select user_id, availability, status_text, show_last_seen, last_seen
            from users where user_id = any(%s::uuid[]) and deleted_at is null""",
        (array_text(user_ids),),
        binary=True,
        prepare=True,
    )
    return {row[0]: Choices(*row[1:]) for row in await cursor.fetchall()}


async def set_last_seen(tx: Connection, seen_at: Mapping[UUID, datetime]) -> None:
    """When these users were last seen, where that is later than what is stored. One who is invisible was not seen."""
    await tx.execute(
        """with seen as (
                select s.user_id, s.at from unnest(%(ids)s::uuid[], %(times)s::timestamptz[]) as s (user_id, at)
                    join users u using (user_id) order by u.user_id for no key update of u
            )
            update users u set last_seen = greatest(u.last_seen, seen.at) from seen
                where u.user_id = seen.user_id and u.availability <> 'invisible' and u.deleted_at is null""",
        {"ids": list(seen_at), "times": list(seen_at.values())},
    )
