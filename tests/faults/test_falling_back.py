"""A law: whoever is sent back to catching up again and again ends with what everybody ends with.

A slow reader, and a device that does not confirm in time, are live, then catch up, then live again, on one connection and without
a word of it to the client: what happens between the two is told like what happens before and after.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import trio

from tests.faults.lossy_bus import PERFECT
from tests.faults.test_lossy_bus import differences, played, settled, town
from tests.house import Server

pytestmark = pytest.mark.timeout(90)


async def send_back(servers: Sequence[Server], seed: int) -> None:
    """Until cancelled: now this one, now that one of those who are live."""
    chance = random.Random(seed)
    while True:
        live = [outbox for server in servers for outbox in server.house.switchboard.all() if outbox.live]
        for outbox in chance.sample(live, len(live) // 4):
            outbox.fall_back()
        await trio.sleep(0.002)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_whoever_is_sent_back_to_catching_up_sees_the_same(seed: int, database_url: str, redis_url: str) -> None:
    async with town(2, seed, database_url, redis_url) as (servers, lines):
        perfect = await played(servers, lines, PERFECT, seed)
        await settled(perfect)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_back, servers, seed)
            sent_back = await played(servers, lines, PERFECT, seed)
            nursery.cancel_scope.cancel()
        differs = await differences(sent_back, perfect)
    assert differs == []
