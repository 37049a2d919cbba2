"""Receipts while the database is away for long: who waits for one is told in the end, and nothing grows with each try."""

from __future__ import annotations

from uuid import uuid4

import pytest
import trio
import trio.testing

from tests.faults.proxy import postgres_proxy
from uim.chat.bus import Bus
from uim.chat.receipts import Receipts
from uim.chat.switchboard import Switchboard
from uim.errors import UIMError
from uim.store.postgres import Pool
from uim.store.redis import RedisLink

pytestmark = pytest.mark.timeout(30)

FLUSHES = 200


def nobody(*_said: object) -> None:
    """What the bus would tell; here it tells nothing."""


async def test_many_tries_hold_no_more_than_who_waits_and_a_waiter_of_the_first_is_told_at_the_last(
    database_url: str, redis_url: str
) -> None:
    async with postgres_proxy(database_url) as proxy:
        pool, switchboard, link = Pool(proxy.url, 2), Switchboard(devices_per_user=20), RedisLink(redis_url)
        bus = Bus(link, pool, log_id=uuid4(), process_id=uuid4(), on_log=nobody, on_receipts=nobody, on_changed=nobody,
                  on_ended=nobody, on_replaced=nobody, on_typing=nobody, on_profile=nobody)  # fmt: skip
        receipts = Receipts(pool, switchboard, bus)
        receipts.read(uuid4(), uuid4(), 5)
        proxy.refuse()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receipts.settled)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(FLUSHES):
                with pytest.raises(UIMError):
                    await receipts.flush()
            assert len(receipts._failed) == 1, "one waits"
            proxy.accept()
            await receipts.flush()
        pool.close_idle()
