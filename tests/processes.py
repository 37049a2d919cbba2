"""Several processes on one PostgreSQL and Redis, in one run: what tests of more than one server begin with.

`async with processes(4, database_url, redis_url) as servers:` gives servers that know of each other only by what they share.
Rule: they have the same keys, so a person of one is a person of all: `at(person, server)`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import trio

from tests.house import WAIT_S, Person, Server, serving, settings_for


@asynccontextmanager
async def processes(count: int, database_url: str, *redis_urls: str, **changed: Any) -> AsyncIterator[list[Server]]:
    """All ready, and each known to the others where there is a bus. Several `redis_urls`: each has its own way to Redis."""
    settings = settings_for(database_url, redis_urls[0], **changed)
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(serving(replace(settings, redis_url=redis_urls[number % len(redis_urls)])))
            for number in range(count)
        ]
        yield servers


async def acquainted(servers: Sequence[Server]) -> None:
    """Returns once each hears the bus and knows how many others do."""
    with trio.fail_after(WAIT_S):
        while not all(server.house.link.hears and server.house.bus._others == len(servers) - 1 for server in servers):
            await trio.sleep(0.01)


def at(person: Person, server: Server) -> Person:
    """The same person, who asks that server."""
    return replace(person, server=server)
