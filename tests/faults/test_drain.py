"""The drain when something is wrong: a database or a Redis that hangs, readers that read nothing, signals at odd moments.

Real processes, their line to PostgreSQL and Redis through a proxy that hangs. Whatever happens, the process ends by itself within
its 10 s, with exit code 0, and who can be told is told.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import trio

from tests.faults.crowd import Member, Phone, addresses, members_in
from tests.faults.proxy import Proxy, postgres_proxy, redis_proxy
from tests.faults.service import Service, ask, service
from tests.test_cli import SECRET
from tests.test_cli import settings_for as variables_for
from uim.config import JwtKey

pytestmark = pytest.mark.timeout(120)

ENDED_WITHIN_S = 10.0
LIMIT_S = 40.0


@dataclass
class Scene:
    service: Service
    postgres: Proxy
    redis: Proxy
    members: list[Member]
    nursery: trio.Nursery

    async def phones(self) -> list[Phone]:
        """One of each member, live."""
        phones = [Phone(self.service.port, address, member) for address, member in zip(addresses(), self.members, strict=False)]
        for phone in phones:
            self.nursery.start_soon(phone.stay)
        await until(lambda: all(phone.is_live for phone in phones))
        return phones


@asynccontextmanager
async def scene(database_url: str, redis_url: str, folder: Path) -> AsyncIterator[Scene]:
    """A server that has started, whose lines to both databases lead through proxies."""
    async with AsyncExitStack() as stack:
        postgres = await stack.enter_async_context(postgres_proxy(database_url))
        redis = await stack.enter_async_context(redis_proxy(redis_url))
        made = stack.enter_context(service(variables_for(postgres.url, redis.url), folder))
        members = members_in(database_url, JwtKey("a", SECRET.encode()), 2, time.time)
        await made.process.start()
        nursery = await stack.enter_async_context(trio.open_nursery())
        yield Scene(made, postgres, redis, members, nursery)
        nursery.cancel_scope.cancel()


async def until(holds: object, within_s: float = LIMIT_S) -> None:
    with trio.fail_after(within_s):
        while not holds():  # type: ignore[operator]  # a function without arguments
            await trio.sleep(0.01)


@pytest.mark.parametrize("hung", ["postgres", "redis", "both"])
async def test_what_hangs_does_not_hold_up_a_drain_and_who_has_sent_is_answered(
    hung: str, database_url: str, redis_url: str, tmp_path: Path
) -> None:
    async with scene(database_url, redis_url, tmp_path) as it:
        phones = await it.phones()
        talker, partner = phones[:2]
        await talker.say_text("so that the server knows who is a member")
        await until(lambda: talker.acked and partner.received)
        if hung != "redis":
            it.postgres.hang()
        if hung != "postgres":
            it.redis.hang()
        await talker.say_text("on its way when all stands still")
        it.service.terminate()
        assert await it.service.ended(LIMIT_S) < ENDED_WITHIN_S
        for phone in phones:
            assert [code for code, _, _ in phone.closes] == [1012], (phone.closes, phone.troubles)
        # One answer, before the closing frame, to the text that was on its way when all stood still.
        answer = (len(talker.acked) - 1, talker.queued, talker.troubles["unavailable"])
        assert answer == {"postgres": (0, 1, 0), "redis": (1, 0, 0), "both": (0, 0, 1)}[hung] or (
            answer == (0, 0, 1) and it.service.starved_at_the_end_s > 1.0
        )
        if talker.queued:
            await the_next_process_appends_it(it, partner)


async def the_next_process_appends_it(it: Scene, partner: Phone) -> None:
    it.postgres.cut()
    it.postgres.flow()
    it.service.process.begin()
    await until(lambda: len(set(partner.received)) == 2)


async def test_neither_readers_that_read_nothing_nor_a_second_signal_change_a_drain(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    async with scene(database_url, redis_url, tmp_path) as it:
        talker, partner, sleeper, other = await it.phones()
        # Neither reads, nor answers a closing frame; one of them has more waiting than its socket takes.
        await sleeper.fall_asleep()
        await partner.fall_asleep()
        for _ in range(400):
            await talker.say_text("x" * 10_000)
        await until(lambda: len(talker.acked) == 400)
        it.service.terminate()
        # The goodbyes to the sleepers take a moment, in which the second one comes.
        await until(lambda: talker.closes and other.closes)
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(it.service.process.pid, number)
        assert await it.service.ended(LIMIT_S) < ENDED_WITHIN_S
        assert [code for phone in (talker, other) for code, _, _ in phone.closes] == [1012, 1012]


async def test_a_signal_during_the_start_ends_it(database_url: str, redis_url: str, tmp_path: Path) -> None:
    async with postgres_proxy(database_url) as postgres:
        with service(variables_for(postgres.url, redis_url), tmp_path) as made:
            made.process.begin()
            await until(lambda: postgres.accepted >= 2)  # the schema has been looked at, the rooms begin
            postgres.hang()
            made.terminate()
            assert await made.ended(LIMIT_S) < ENDED_WITHIN_S
            with socket.create_connection(("127.0.0.1", made.port), timeout=5):
                pass  # it waits for the next process


async def test_a_request_that_is_under_way_is_answered_and_operators_are_told_meanwhile(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    async with scene(database_url, redis_url, tmp_path) as it:
        answers: list[str] = []

        async def ask_for_friends() -> None:
            answers.append(await ask(it.service.port, "/api/friends", it.members[0].token))

        assert (await it.service.ask_operations("/health/ready")).startswith("HTTP/1.1 200")
        with psycopg.connect(database_url) as holding:
            holding.execute("lock table friendships")
            it.nursery.start_soon(ask_for_friends)
            await until(lambda: holding.execute("select count(*) from pg_locks where not granted").fetchone() == (1,))
            it.service.terminate()
            while "uim_draining 1.0" not in await it.service.ask_operations("/metrics"):
                await trio.sleep(0.01)
            assert (await it.service.ask_operations("/health/ready")).startswith("HTTP/1.1 503")
        await it.service.ended(LIMIT_S)
        assert answers[0].startswith("HTTP/1.1 200") and '"items"' in answers[0]
