"""The link to Redis: pipelines in order, refusals, and Redis going away and coming back at any moment."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis
import structlog.testing
import trio

from tests.faults.proxy import Proxy, redis_proxy
from uim.cli import embedded
from uim.store.redis import MAX_WAITING, PING_EVERY_S, RedisAway, RedisLink

pytestmark = pytest.mark.timeout(30)


@asynccontextmanager
async def linked(url: str, *, heard: list[bytes] | None = None) -> AsyncIterator[RedisLink]:
    link = RedisLink(url)
    if heard is not None:
        link.subscribe("news", heard.append)
    async with trio.open_nursery() as nursery:
        await nursery.start(link.run)
        yield link
        nursery.cancel_scope.cancel()


@pytest.fixture
async def proxy(redis_url: str) -> AsyncIterator[Proxy]:
    async with redis_proxy(redis_url) as made:
        yield made


async def until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not holds():
            await trio.sleep(0.005)


async def test_commands_are_carried_out_in_order_and_each_gets_its_own_reply(redis_url: str) -> None:
    replies: dict[int, int] = {}

    async def call(link: RedisLink, number: int) -> None:
        replies[number] = await link.call("RPUSH", "list", str(number))

    async with linked(redis_url) as link:
        for number in range(500):
            link.send("RPUSH", "sent", str(number))
        async with trio.open_nursery() as nursery:
            for number in range(1_200):
                nursery.start_soon(call, link, number)
        places = await link.call("LRANGE", "list", 0, -1)
        sent = await link.call("LRANGE", "sent", 0, -1)
    assert [int(number) for number in sent] == list(range(500))
    assert {int(number): place for place, number in enumerate(places, start=1)} == replies


async def test_what_waits_is_one_pipeline(proxy: Proxy, redis_url: str) -> None:
    requests: list[bytes] = []

    def note(request: bytes) -> bool:
        requests.append(request)
        return False

    async with linked(proxy.url) as link:
        proxy.lose(note, carried_out=True)
        for number in range(200):
            link.send("SET", f"key{number}", "x")
        await link.call("PING")
    assert len([request for request in requests if b"key" in request]) <= 2, "a socket may take it in two pieces"


async def test_a_refused_command_is_its_callers_alone(redis_url: str) -> None:
    async with linked(redis_url) as link:
        await link.call("SET", "text", "x")
        with structlog.testing.capture_logs() as logged:
            link.send("LPUSH", "text", "1")
            with pytest.raises(RedisAway, match="WRONGTYPE"):
                await link.call("LPUSH", "text", "2")
        assert await link.call("GET", "text") == b"x"
        assert link.is_up
    assert [(line["event"], line["command"]) for line in logged] == [("redis refused a command", "LPUSH")]


async def test_without_redis_a_call_is_refused_at_once_and_what_is_sent_is_dropped() -> None:
    with trio.fail_after(10):
        async with linked("redis://127.0.0.1:1/0") as link:
            assert not link.is_up
            started = trio.current_time()
            with pytest.raises(RedisAway):
                await link.probe()
            link.send("SET", "a", "b")
            assert trio.current_time() - started < 0.1
            assert not link._usual.waiting


async def test_more_than_a_bound_does_not_wait(proxy: Proxy) -> None:
    async with linked(proxy.url) as link:
        proxy.hang()
        for number in range(MAX_WAITING + 50):
            link.send("SET", f"key{number}", "x")
        with pytest.raises(RedisAway):
            await link.call("PING")
        assert len(link._usual.waiting) <= MAX_WAITING
        proxy.flow()


async def test_a_hung_redis_is_noticed_and_its_callers_are_told(proxy: Proxy) -> None:
    async with linked(proxy.url) as link:
        await link.call("PING")
        proxy.hang()
        started = trio.current_time()
        with pytest.raises(RedisAway):
            await link.call("PING")
        assert trio.current_time() - started < 4
        assert not link.is_up
        proxy.flow()
        await until(lambda: link.is_up)
        assert await link.call("PING")


async def test_a_line_that_breaks_in_mid_call_is_told_and_made_again(proxy: Proxy) -> None:
    async with linked(proxy.url) as link:
        loss = proxy.lose(lambda request: b"counter" in request, carried_out=True)
        with pytest.raises(RedisAway):
            await link.call("INCR", "counter")
        assert loss.happened.is_set()
        await until(lambda: link.is_up)
        assert await link.call("GET", "counter") == b"1", "carried out once: it is not for the link to repeat"


async def test_the_subscription_comes_back(proxy: Proxy, redis_url: str) -> None:
    heard: list[bytes] = []
    async with linked(proxy.url, heard=heard) as link:
        await until(lambda: link.hears)
        await link.call("PUBLISH", "news", b"one")
        await until(lambda: heard == [b"one"])
        proxy.refuse()
        await until(lambda: not link.hears and not link.is_up)
        proxy.accept()
        await until(lambda: link.hears and link.is_up)
        await link.call("PUBLISH", "news", b"two")
        await until(lambda: heard == [b"one", b"two"])


async def test_a_cancelled_link_ends_even_at_the_moment_at_which_its_subscription_looks_up(redis_url: str) -> None:
    """redis-py swallows some of the cancellations that come as its own time-out expires: a drained server never ended."""

    async def live_and_end(after_s: float) -> None:
        link = RedisLink(redis_url)
        link.subscribe("news", lambda data: None)
        async with trio.open_nursery() as nursery:
            await nursery.start(link.run)
            while not link.hears:
                await trio.sleep(0.0005)
            await trio.sleep(after_s)
            nursery.cancel_scope.cancel()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(live_and_end, PING_EVERY_S + (-0.01, 0.001, 0.004)[number % 3])


@asynccontextmanager
async def valkey(folder: Path) -> AsyncIterator[tuple[str, int]]:
    """A Valkey of the test's own: its address and process id."""
    (folder / "valkey").mkdir(exist_ok=True)
    with embedded._valkey(folder, folder, embedded._find_programs()) as pid:
        yield f"unix://{folder}/valkey.sock?db=0", pid


async def test_redis_killed_and_back(reachable_folder: Path) -> None:
    heard: list[bytes] = []
    async with valkey(reachable_folder) as (url, pid):
        link = RedisLink(url)
        link.subscribe("news", heard.append)
        async with trio.open_nursery() as nursery:
            await nursery.start(link.run)
            await until(lambda: link.hears)
            await link.call("SET", "kept", "x")
            os.kill(pid, signal.SIGKILL)
            await until(lambda: not link.is_up and not link.hears)
            with pytest.raises(RedisAway):
                await link.probe()
            async with valkey(reachable_folder):
                await until(lambda: link.is_up and link.hears)
                await link.call("PUBLISH", "news", b"back")
                await until(lambda: heard == [b"back"])
                with redis.Redis.from_url(url) as other:
                    assert other.pubsub_numsub("news") == [(b"news", 1)]
            nursery.cancel_scope.cancel()


async def test_one_that_takes_no_writes_is_told_by_the_probe_and_its_refusals_do_not_fill_the_log(redis_url: str) -> None:
    async with linked(redis_url) as link:
        await link.probe()
        with redis.Redis.from_url(redis_url) as client, structlog.testing.capture_logs() as logged:
            client.execute_command("REPLICAOF", "127.0.0.1", "1")
            try:
                for number in range(500):
                    link.send("SET", f"key{number}", "x")
                with pytest.raises(RedisAway, match="read only"):
                    await link.probe()
                assert link.is_up, "what it can be asked it answers"
            finally:
                client.execute_command("REPLICAOF", "NO", "ONE")
        await link.probe()
        assert link.refused == 500
    assert [line["event"] for line in logged] == ["redis refused a command"]
