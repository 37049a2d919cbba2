"""Epochs: which incarnation of the log this is.

After a restore, or a failover that lost its tail, the head has gone back, and numbers that clients hold would be used again. Rule:
no id is used twice. Where the server, its timeline or the log's own tables are not those of the last epoch, or the log ends below
what has been seen of it, numbering goes on far above: 10^9 above everything known, and above 10^6 for each second since 2024. So two
restores of one dump do not share numbers either, whoever remembers the first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from uim.store.messages import head, lock_log
from uim.store.postgres import Connection
from uim.store.redis import RedisLink

STEP: Final = 10**9
# Clients are told of as many stretches that were lost; an older one they have long dropped.
MOST_TOLD: Final = 100

# A million ids a second is more than any log here takes, and lasts for 285 years: below 2^53.
_IDENTITY: Final = """select (select system_identifier from pg_control_system()),
    ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::bigint,
    (select d.oid from pg_database d where d.datname = current_database()) || '/' || 'messages'::regclass::oid,
    (extract(epoch from clock_timestamp() - timestamptz '2024-01-01 00:00:00Z') * 1000000)::bigint"""


@dataclass(frozen=True, slots=True)
class Epoch:
    """Clients drop what they hold with after < message_id < base; `lost` has that of the epochs before too, the newest first."""

    number: int
    base: int
    after: int
    lost: tuple[tuple[int, int], ...] = field(default=(), compare=False)

    @property
    def empty_above(self) -> int:
        """Nothing lies between this and `base`: epochs in which nothing was said are one stretch with this one's."""
        at = self.after
        for after, base in self.lost:
            if base == at + 1:
                at = after
        return at


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of the log from outside: its newest epoch, and an id up to which it went."""

    number: int = 0
    highest: int = 0


UNSEEN: Final = Seen()


async def latest(tx: Connection) -> Epoch:
    """The epoch that the log was last begun in. Raises LookupError before the first."""
    rows = await _rows(tx)
    if not rows:
        raise LookupError("the log has no epoch yet")
    return _epoch(rows)


async def settle(tx: Connection, seen: Seen = UNSEEN) -> Epoch:
    """The present epoch; a new one is begun when this is not the log that the last epoch was begun on, or has lost its tail."""
    async with tx.transaction():
        await lock_log(tx)
        cursor = await tx.execute(_IDENTITY)
        row = await cursor.fetchone()
        assert row is not None
        server, tables, clock = tuple(row[:2]), row[2], row[3]
        rows = await _rows(tx)
        newest = await head(tx)
        number, reached = (rows[0][0], max(newest, rows[0][1] - 1)) if rows else (0, newest)
        if rows and rows[0][3:5] == server and rows[0][5] in (None, tables) and reached >= seen.highest:
            if rows[0][5] is None:
                await tx.execute("update log_epochs set tables = %s where epoch = %s", (tables, number))
            return _epoch(rows)
        epoch = Epoch(max(number, seen.number) + 1, max(max(reached, seen.highest) + STEP, clock), reached)
        if not rows and not newest and not seen.highest:
            epoch = Epoch(1, 1, 0)
        await tx.execute(
            "insert into log_epochs (epoch, base, after, system_identifier, timeline, tables) values (%s, %s, %s, %s, %s, %s)",
            (epoch.number, epoch.base, epoch.after, *server, tables),
        )
        return _epoch(await _rows(tx))


async def _rows(tx: Connection) -> list[tuple[Any, ...]]:
    cursor = await tx.execute(
        "select epoch, base, after, system_identifier, timeline, tables from log_epochs order by epoch desc limit %s", (MOST_TOLD,)
    )
    return await cursor.fetchall()


def _epoch(rows: list[tuple[Any, ...]]) -> Epoch:
    number, base, after = rows[0][:3]
    return Epoch(number, base, after, tuple((row[2], row[1]) for row in rows if row[1] > row[2] + 1))


# -- in Redis ---------------------------------------------------------------------------------------------------------------


def remember(link: RedisLink, log_id: UUID, seen: Seen) -> None:
    """How far the log went, for a start after its files were put back from a copy: a hint, lost while Redis is away."""
    link.send("ZADD", _key(log_id), "GT", seen.highest, "highest", seen.number, "epoch")


async def recall(link: RedisLink, log_id: UUID) -> Seen:
    """What was remembered; nothing is as good as a beginning. Raises RedisAway."""
    number, highest = await link.call("ZMSCORE", _key(log_id), "epoch", "highest")
    return Seen(int(float(number or 0)), int(float(highest or 0)))


def _key(log_id: UUID) -> str:
    return f"{log_id}:log"
