"""What the promises need of the servers below us, read off them: for `uim check`.

"sent" means committed with fsync on; "queued" means in an append-only file that no eviction touches. Rule: only looks,
changes nothing; each finding is a sentence for the operator, or None where all is well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from psycopg import AsyncConnection

LEAST_POSTGRESQL: Final = 15
# The first with WAITAOF; Valkey calls itself 7.2.4 or newer.
LEAST_REDIS: Final = (7, 2)


def postgresql_version(tx: AsyncConnection[Any]) -> str | None:
    """What is wrong with the server's version, or None."""
    major = tx.info.server_version // 10000
    return f"it is version {major}: {LEAST_POSTGRESQL} or newer is needed" if major < LEAST_POSTGRESQL else None


async def fsync(tx: AsyncConnection[Any]) -> str | None:
    if await _setting(tx, "fsync") == "on":
        return None
    return "fsync is off: acknowledged messages would be lost with the power; set fsync = on"


async def synchronous_commit(tx: AsyncConnection[Any]) -> str | None:
    """As it holds for this connection, the way the server connects: what is asked for at connect outranks the database."""
    if await _setting(tx, "synchronous_commit") != "off":
        return None
    return "synchronous_commit is off: a commit would be told before it is on disk; set it to on"


async def _setting(tx: AsyncConnection[Any], name: str) -> str:
    row = await (await tx.execute("select current_setting(%s)", [name])).fetchone()
    return "" if row is None else str(row[0])


def append_only(persistence: Mapping[str, Any]) -> str | None:
    """`persistence`: the section of that name of Redis INFO."""
    if int(persistence.get("aof_enabled", 0)) == 1:
        return None
    return "the append-only file is off: spooled sends would not outlive a restart; set appendonly yes"


def eviction(memory: Mapping[str, Any]) -> str | None:
    """`memory`: the section of that name of Redis INFO."""
    policy = str(memory.get("maxmemory_policy", "noeviction"))
    if policy == "noeviction" or int(memory.get("maxmemory", 0)) == 0:
        return None
    return f"maxmemory-policy is {policy}: spooled sends could be evicted; set it to noeviction"


def redis_version(server: Mapping[str, Any]) -> str | None:
    """`server`: the section of that name of Redis INFO."""
    version = str(server.get("redis_version", "0"))
    numbers = tuple(int(number) for number in version.split(".")[:2] if number.isdigit())
    if numbers >= LEAST_REDIS:
        return None
    return f"it is version {version}: without WAITAOF, which {'.'.join(map(str, LEAST_REDIS))} and Valkey have, nothing can be queued"


def takes_writes(replication: Mapping[str, Any]) -> str | None:
    """`replication`: the section of that name of Redis INFO."""
    if replication.get("role") == "master":
        return None
    return "it is a replica and takes no writes: UIM_REDIS_URL must name its primary"
