"""A kill aimed into a drain: what was left in the spool has been read, and is being appended or is not yet taken out.

A random kill hardly ever strikes there, for a drain takes milliseconds. So a lock on the log's table holds the append, Redis is
halted for the removal, and the victim dies then. Rule: at each moment it is known where the drain stands, never guessed by time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import Enum

import trio

from tests.faults.world import World
from uim.store.postgres import Connection, connect

DRAINS_WITHIN_S = 30.0
_DRAINERS = "select count(*) from pg_stat_activity where application_name = 'uim spool' and wait_event_type = 'Lock'"
_TEXTS = "select count(*) from messages"


class Moment(Enum):
    """Where the drain stands, and who dies there."""

    SERVER_AT_APPEND = "the server, while it appends"
    POSTGRES_AT_APPEND = "PostgreSQL, while a text is appended"
    SERVER_AT_REMOVAL = "the server, when it has appended and not yet taken out"


class NoDrain(Exception):
    """What was left was drained by nobody, or not as far as was waited for."""


async def in_a_drain(world: World, moment: Moment, *, start: Callable[[], object], strike: Callable[[], object]) -> None:
    """With the servers dead, texts in the spool and PostgreSQL there: `start` the servers, and `strike` at that moment.

    Raises NoDrain.
    """
    async with await connect(world.database_url, name="observer") as eye:
        async with _appends_held(world):
            start()
            await _until(eye, _DRAINERS, 1)
            if moment is not Moment.SERVER_AT_REMOVAL:
                strike()
                return
            before = await _count(eye, _TEXTS)
            world.valkey.halt()
        try:
            await _until(eye, _TEXTS, before + 1)
            strike()
        finally:
            world.valkey.go_on()


@asynccontextmanager
async def _appends_held(world: World) -> AsyncIterator[None]:
    """Reads go on; whoever appends waits."""
    holder = await connect(world.database_url, name="holder", settings={"idle_in_transaction_session_timeout": "0"})
    try:
        await holder.execute("begin")
        await holder.execute("lock table messages in share mode")
        yield
    finally:
        holder.pgconn.finish()


async def _until(eye: Connection, question: str, least: int) -> None:
    with trio.move_on_after(DRAINS_WITHIN_S):
        while await _count(eye, question) < least:
            await trio.sleep(0.005)
        return
    raise NoDrain(f"not within {DRAINS_WITHIN_S:g} s: {question}")


async def _count(eye: Connection, question: str) -> int:
    row = await (await eye.execute(question)).fetchone()
    assert row is not None
    return int(row[0])
