"""What processes tell each other over Redis, words that are lost on the way, and words that make no sense."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
import redis
import structlog.testing
import trio

from tests.faults.lossy_bus import PERFECT, Fates, lossy_bus
from uim.chat.bus import Bus
from uim.model.message import Entry
from uim.store import words
from uim.store.postgres import Pool
from uim.store.receipts import Advance
from uim.store.redis import RedisLink

pytestmark = pytest.mark.timeout(30)
AT = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)


@dataclass
class Process:
    """One end of the bus, and what it has heard from the others."""

    link: RedisLink
    pool: Pool
    log_id: UUID
    process_id: UUID = field(default_factory=uuid4)
    entries: list[Entry] = field(default_factory=list)
    receipts: list[tuple[list[Advance], dict[tuple[UUID, UUID], int]]] = field(default_factory=list)
    rest: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        def on_ended(login_ids: Iterable[UUID]) -> None:
            self.rest.extend(login_ids)

        self.bus = Bus(
            self.link,
            self.pool,
            log_id=self.log_id,
            process_id=self.process_id,
            on_log=self.entries.extend,
            on_receipts=lambda advances, unread: self.receipts.append((advances, unread)),
            on_changed=self.rest.append,
            on_profile=self.rest.append,
            on_ended=on_ended,
            on_replaced=lambda *replaced: self.rest.append(replaced),
        )


    async def tell(self, advances: list[Advance], unread: dict[tuple[UUID, UUID], int]) -> None:
        """As receipts do: kept with what they store, said after the commit."""
        async with self.pool.transaction() as tx:
            kept = await self.bus.keep_receipts(tx, advances, unread)
        self.bus.say(kept)


@asynccontextmanager
async def processes(
    database_url: str, redis_url: str, *log_ids: UUID, last_at: str | None = None
) -> AsyncIterator[list[Process]]:
    """`last_at`: where the last of them finds Redis, if not there."""
    urls = [redis_url] * (len(log_ids) - 1) + [last_at or redis_url]
    made = [Process(RedisLink(url), Pool(database_url, 2), log_id) for url, log_id in zip(urls, log_ids, strict=True)]
    async with trio.open_nursery() as nursery:
        for process in made:
            await nursery.start(process.link.run)
        await until(lambda: all(process.link.hears for process in made))
        for process in made:
            await nursery.start(process.bus.run)
        yield made
        nursery.cancel_scope.cancel()
    for process in made:
        process.pool.close_idle()


async def until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not holds():
            await trio.sleep(0.002)


def entry(message_id: int) -> Entry:
    return Entry(message_id, uuid4(), 3, uuid4(), "id \N{GRINNING FACE}", "hello", "text", '{"a":"b"}', AT, True)


def values(of: Entry) -> list[object]:
    names = ("message_id", "conversation_id", "seq", "sender_id", "client_message_id", "content", "message_type", "metadata")
    return [getattr(of, name) for name in (*names, "created_at", "deleted")]


async def test_every_kind_of_word_reaches_the_others_whole_and_not_oneself(database_url: str, redis_url: str) -> None:
    log_id = uuid4()
    async with processes(database_url, redis_url, log_id, log_id, log_id) as (one, two, three):
        said = [entry(7), entry(8)]
        user, changed, ended = uuid4(), uuid4(), uuid4()
        read = Advance(uuid4(), user, "read", 1, 5, AT, [uuid4(), uuid4()])
        delivered = Advance(read.conversation_id, user, "delivered", 2, 5, AT, [])
        one.bus.appended(said)
        await one.tell([delivered, read], {(read.conversation_id, user): 4})
        one.bus.changed(changed)
        one.bus.ended(ended)
        one.bus.replaced(user, "phone", 2)
        one.bus.profile_changed(user)
        for other in (two, three):
            await until(lambda other=other: len(other.rest) == 4)  # type: ignore[misc]  # bound for this round
            assert [values(heard) for heard in other.entries] == [values(each) for each in said]
            assert other.receipts == [([delivered, read], {(read.conversation_id, user): 4})]
            assert set(other.rest) == {changed, ended, (user, "phone", 2), user}
        assert (one.entries, one.receipts, one.rest) == ([], [], [])


async def test_logs_on_one_redis_do_not_hear_each_other(database_url: str, redis_url: str) -> None:
    mine, other = uuid4(), uuid4()
    async with processes(database_url, redis_url, mine, other, mine) as (one, stranger, two):
        word = uuid4()
        one.bus.changed(word)
        await until(lambda: two.rest == [word])
        assert stranger.rest == []


async def test_nothing_is_said_of_a_devices_first_connection_nor_of_nothing(database_url: str, redis_url: str) -> None:
    log_id, last = uuid4(), uuid4()
    async with processes(database_url, redis_url, log_id, log_id) as (one, two):
        one.bus.replaced(uuid4(), "phone", 1)
        one.bus.appended([])
        await one.tell([], {})
        one.bus.changed(last)
        await until(lambda: two.rest == [last])
        assert (two.entries, two.receipts) == ([], [])


async def test_a_lone_process_keeps_its_log_batches_to_itself_until_another_comes(database_url: str, redis_url: str) -> None:
    log_id = uuid4()
    with redis.Redis.from_url(redis_url) as client:
        async with processes(database_url, redis_url, log_id) as (one,):
            await until(lambda: not one.bus._others_hear)
            with client.pubsub(ignore_subscribe_messages=True) as listener:
                one.bus.appended([entry(1)])
                await one.link.call("PING")
                listener.subscribe(f"{log_id}:bus")
                listener.get_message(timeout=1)
                await until(lambda: one.bus._others_hear)
                one.bus.appended([entry(2)])
                await one.link.call("PING")
                batches: list[Any] = []
                while not batches:
                    message = listener.get_message(timeout=1)
                    assert message is not None
                    batches += msgspec.msgpack.decode(message["data"]).get("log", [])  # others only tell that it is there
                assert [said[0] for said in batches] == [2]


# -- what the bus loses ------------------------------------------------------------------------------------------------


def an_advance(up_to: int = 5) -> Advance:
    return Advance(uuid4(), uuid4(), "delivered", up_to - 1, up_to, AT, [uuid4()])


async def test_what_the_bus_lost_is_read_from_the_database_and_taken_once(database_url: str, redis_url: str) -> None:
    log_id = uuid4()
    async with (
        lossy_bus(redis_url, seed=1, fates=PERFECT) as line,
        processes(database_url, redis_url, log_id, log_id, last_at=line.url) as (one, two),
    ):
        await until(lambda: two.bus._gaps.up_to().keys() == {one.process_id})
        line.fates = Fates(lost=1.0)
        lost, changed, profile = an_advance(), uuid4(), uuid4()
        await one.tell([lost], {})
        one.bus.changed(changed)
        one.bus.profile_changed(profile)
        await until(lambda: line.lost >= 2)
        assert two.receipts == [] and two.rest == []
        line.fates = Fates(repeated=1.0)
        heard = an_advance()
        await one.tell([heard], {})
        await until(lambda: len(two.receipts) == 2 and set(two.rest) == {changed, profile})
        await until(lambda: not two.bus._gaps.are_there(trio.current_time(), others=1))
        assert sorted(str(advances) for advances, _ in two.receipts) == sorted(map(str, ([lost], [heard])))
        assert len(two.rest) == 2


async def test_a_process_that_is_deaf_or_without_redis_learns_all_of_it_from_the_database(
    database_url: str, redis_url: str
) -> None:
    log_id = uuid4()
    async with lossy_bus(redis_url, seed=1, fates=Fates(lost=1.0)) as deaf:
        for url in (deaf.url, "redis://127.0.0.1:1/0"):
            one, two = (Process(RedisLink(at), Pool(database_url, 2), log_id) for at in (redis_url, url))
            async with trio.open_nursery() as nursery:
                for process in (one, two):
                    await nursery.start(process.link.run)
                    await nursery.start(process.bus.run)
                said = [an_advance(number) for number in range(1, 6)]
                for advance in said:
                    await one.tell([advance], {})
                await until(lambda two=two: len(two.receipts) == 5)  # type: ignore[misc]  # bound for this round
                assert [advances for advances, _ in two.receipts] == [[advance] for advance in said]
                nursery.cancel_scope.cancel()


async def test_nobody_asks_the_database_while_the_bus_is_whole(database_url: str, redis_url: str) -> None:
    log_id = uuid4()
    async with processes(database_url, redis_url, log_id, log_id) as (one, two):
        await until(lambda: len(one.bus._gaps.up_to()) == len(two.bus._gaps.up_to()) == 1)

        asked: list[Process] = []
        for process in (one, two):

            async def ask(process: Process = process, read: Callable[[], Awaitable[None]] = process.bus._read) -> None:
                asked.append(process)
                await read()

            process.bus._read = ask  # type: ignore[method-assign]  # counts, and does it
        for turn in range(3):
            for number in range(10):
                await one.tell([an_advance(number)], {})
                await trio.sleep(0.05)
            await until(lambda turn=turn: len(two.receipts) == 10 * (turn + 1))  # type: ignore[misc]  # bound for this round
            if not asked:
                return
            asked.clear()  # on a machine so busy that a process was not heard for seconds
        raise AssertionError("asked again and again")


async def test_receipts_whose_commit_was_not_heard_are_told_if_there_was_one(database_url: str, redis_url: str) -> None:
    log_id = uuid4()
    async with processes(database_url, redis_url, log_id, log_id) as (one, two):
        stored, not_stored = an_advance(), an_advance()
        async with one.pool.transaction() as tx:
            committed = await one.bus.keep_receipts(tx, [stored], {})
        with trio.CancelScope() as scope:
            async with one.pool.transaction() as tx:
                rolled_back = await one.bus.keep_receipts(tx, [not_stored], {})
                scope.cancel()
                await trio.lowlevel.checkpoint()
        one.bus.doubt(committed)
        one.bus.doubt(rolled_back)
        for process in (one, two):
            await until(lambda process=process: bool(process.receipts))  # type: ignore[misc]  # bound for this round
            assert process.receipts == [([stored], {})]


async def test_words_are_forgotten_once_nobody_can_want_them(database_url: str, redis_url: str) -> None:
    async with processes(database_url, redis_url, uuid4()) as (one,):
        await one.tell([an_advance()], {})
        await one.tell([an_advance()], {})
        async with one.pool.connection() as tx:
            await tx.execute("update bus_words set said_at = said_at - interval '2 minutes' where number = 1")
            await words.forget(tx)
            assert await words.newest(tx) == {one.process_id: 2}
            cursor = await tx.execute("select number from bus_words")
            assert [row[0] for row in await cursor.fetchall()] == [2]


SOMEBODY = "3d0a3e5a-6a52-4f0c-9b65-0d3c1a2f7b11"


@pytest.mark.parametrize(
    "garbled",
    [
        b"",
        b"\xc1",
        b"hello",
        msgspec.msgpack.encode([1, 2]),
        msgspec.msgpack.encode({"process": "no uuid"}),
        msgspec.msgpack.encode({"log": []}),
        msgspec.msgpack.encode({"process": SOMEBODY, "log": [[1, 2]]}),
        msgspec.msgpack.encode({"process": SOMEBODY, "replaced": [[SOMEBODY, "phone", "three"]]}),
        msgspec.msgpack.encode({"process": SOMEBODY, "ended": None}),
        msgspec.msgpack.encode({"process": SOMEBODY, "replaced": [[SOMEBODY, "phone", 3]]}).replace(b"phone", b"ph\x8dne"),
        b"\x81\xa3new" + b"\x91" * 50_000,
    ],
    ids=lambda garbled: repr(garbled[:40]),
)
async def test_garbled_words_are_told_in_the_log_and_harm_nothing(database_url: str, redis_url: str, garbled: bytes) -> None:
    log_id, last = uuid4(), uuid4()
    with structlog.testing.capture_logs() as logged:
        async with processes(database_url, redis_url, log_id, log_id) as (one, two):
            await one.link.call("PUBLISH", f"{log_id}:bus", garbled)
            one.bus.changed(last)
            await until(lambda: two.rest == [last])
    assert [line["log_level"] for line in logged if "this release does not know" in line["event"]] == ["warning"] * 2


async def test_what_a_later_release_adds_is_passed_over(database_url: str, redis_url: str) -> None:
    log_id, changed = uuid4(), uuid4()
    word = {"process": str(uuid4()), "changed": [str(changed)], "weather": {"sun": True}}
    async with processes(database_url, redis_url, log_id) as (one,):
        await one.link.call("PUBLISH", f"{log_id}:bus", msgspec.msgpack.encode(word))
        await until(lambda: one.rest == [changed])
