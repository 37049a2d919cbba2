"""Epochs: which incarnation of the log this is.

After a restore, or a failover that lost its tail, the head may have gone back, and numbers that clients hold would be used
again. Rule: no id is used twice; where the server's identity or timeline changed, numbering goes on 10^9 above the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from uim.store.messages import head, lock_log
from uim.store.postgres import Connection

STEP: Final = 10**9

_IDENTITY: Final = """select (select system_identifier from pg_control_system()),
    ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::bigint"""


@dataclass(frozen=True, slots=True)
class Epoch:
    """Clients drop what they hold with after < message_id < base."""

    number: int
    base: int
    after: int


async def settle(tx: Connection) -> Epoch:
    """The present epoch; a new one is begun when this database is not the one that the last epoch was begun on."""
    async with tx.transaction():
        await lock_log(tx)
        cursor = await tx.execute(_IDENTITY)
        identity = await cursor.fetchone()
        cursor = await tx.execute(
            "select epoch, base, after, system_identifier, timeline from log_epochs order by epoch desc limit 1"
        )
        last = await cursor.fetchone()
        assert identity is not None
        if last is not None and (last[3], last[4]) == tuple(identity):
            return Epoch(*last[:3])
        after = max(await head(tx), last[1] - 1 if last is not None else 0)
        epoch = Epoch(1, 1, 0) if last is None and after == 0 else Epoch((last[0] if last else 0) + 1, after + STEP, after)
        await tx.execute(
            "insert into log_epochs (epoch, base, after, system_identifier, timeline) values (%s, %s, %s, %s, %s)",
            (epoch.number, epoch.base, epoch.after, *identity),
        )
        return epoch
