"""The server in the test's own process that hostile peers meet, and an honest pair that talks meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import trio

from tests.house import Device, Server, serving, settings_for


@pytest.fixture
async def server(database_url: str, redis_url: str) -> AsyncIterator[Server]:
    async with serving(settings_for(database_url, redis_url)) as started:
        yield started


@dataclass
class Pair:
    """Two people who keep all rules, live, in a conversation of their own."""

    conversation_id: str
    one: Device
    other: Device
    said: int = 0

    async def talks(self, times: int = 3) -> None:
        """Text and answer, so often, each acknowledged and delivered: the server serves others."""
        with trio.fail_after(20):
            for _ in range(times):
                self.said += 1
                text = f"text {self.said}"
                assert (await self.one.say(self.conversation_id, text))["type"] == "MESSAGE_ACK"
                await self.other.expect("MESSAGE_RECEIVE", content=text)


@pytest.fixture
async def pair(server: Server) -> Pair:
    alice, bob = await server.register("alice"), await server.register("bob")
    conversation_id = await server.pair(alice, bob)
    return Pair(conversation_id, await alice.connect("laptop"), await bob.connect("phone"))
