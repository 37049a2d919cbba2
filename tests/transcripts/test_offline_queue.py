"""The offline queue on real servers: what is in Redis, who gets it, and that nothing depends on it."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

import pytest
import redis
import trio

from tests.house import Device, Person, Server, serving, settings_for
from uim.chat.catchup import Batch
from uim.store.offline import LIFE_S, MOST


@pytest.fixture
async def server(database_url: str, redis_url: str) -> AsyncIterator[Server]:
    async with serving(settings_for(database_url, redis_url)) as made:
        yield made


class Queues:
    """Redis from outside."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url)

    def elements(self, person: Person) -> list[dict[str, Any]]:
        held: list[bytes] = self._client.lrange(f"offline:user:{person.user_id}", 0, -1)  # type: ignore[assignment]
        return [json.loads(one) for one in held]

    def ids(self, person: Person, above: int = 0) -> list[int]:
        return [one["id"] for one in self.elements(person) if one["id"] > above]

    def life_s(self, person: Person) -> int:
        return int(self._client.ttl(f"offline:user:{person.user_id}"))  # type: ignore[arg-type]

    def remove(self, person: Person) -> None:
        self._client.delete(f"offline:user:{person.user_id}")

    def text(self) -> str:
        """Everything that any queue holds."""
        keys: list[bytes] = self._client.keys("offline:user:*")  # type: ignore[assignment]
        return " ".join(str(self._client.lrange(key, 0, -1)) for key in keys)


@pytest.fixture
def queues(redis_url: str) -> Queues:
    return Queues(redis_url)


async def becomes(holds: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not holds():
            await trio.sleep(0.01)


async def gone_with(phone: Device) -> int:
    """Leave, and give the cursor of then."""
    await phone.leave()
    return phone.cursor


def batches(device: Device) -> list[dict[str, Any]]:
    return [frame["payload"] for frame in device.frames if frame["type"] == "SYNC_BATCH"]


async def test_what_came_while_nobody_was_there_waits_in_the_queue_and_is_the_first_page(server: Server, queues: Queues) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    pair = await server.pair(alice, bob)
    laptop = await alice.connect("laptop")
    phone = await bob.connect("phone")
    await laptop.say(pair, "while bob is there")
    await phone.expect("MESSAGE_RECEIVE")
    cursor = await gone_with(phone)
    said = [(await laptop.say(pair, f"text {number}"))["message_id"] for number in range(3)]
    await becomes(lambda: queues.ids(bob) == said)
    held = queues.elements(bob)
    assert [one["from"] for one in held] == [cursor, *said[:-1]]
    assert held[0]["entry"]["content"] == "text 0" and held[0]["epoch"] == server.house.writer.epoch.base
    assert LIFE_S - 60 < queues.life_s(bob) <= LIFE_S
    again = await bob.connect("phone", last_sync_id=cursor)
    first, *others = batches(again)
    assert [entry["message_id"] for entry in first["messages"]] == said and first["next_sync_id"] == said[-1]
    assert first["has_more"] and not any(batch["messages"] for batch in others)
    assert [entry["message_id"] for entry in again.entries] == said


async def test_no_device_takes_the_queue_away_from_another(server: Server, queues: Queues) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    pair = await server.pair(alice, bob)
    laptop = await alice.connect("laptop")
    await laptop.say(pair, "first")
    cursors = [await gone_with(await bob.connect(device, last_sync_id=0)) for device in ("phone", "tablet")]
    said = [(await laptop.say(pair, f"text {number}"))["message_id"] for number in range(3)]
    await becomes(lambda: queues.ids(bob, cursors[0]) == said)
    for device, cursor in zip(("phone", "tablet"), cursors, strict=True):
        back = await bob.connect(device, last_sync_id=cursor)
        assert [entry["message_id"] for entry in batches(back)[0]["messages"]] == said
        await back.leave()
    assert queues.ids(bob, cursors[0]) == said


async def test_of_a_pair_that_is_online_nothing_is_pushed(server: Server, queues: Queues) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    pair = await server.pair(alice, bob)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    before = server.house.offline.pushed
    ids = await laptop.say_many(pair, [f"text {number}" for number in range(50)])
    await phone.reached(max(ids))
    assert server.house.offline.pushed == before and not server.house.offline._waiting


async def test_the_queue_holds_the_newest_500_and_the_rest_comes_from_the_database(server: Server, queues: Queues) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    pair = await server.pair(alice, bob)
    laptop = await alice.connect("laptop")
    await laptop.say(pair, "first")
    cursor = await gone_with(await bob.connect("phone", last_sync_id=0))
    ids: list[int] = []
    for _ in range(6):
        ids += await laptop.say_many(pair, ["x"] * 100)
    await becomes(lambda: queues.ids(bob) == sorted(ids)[-MOST:])
    back = await bob.connect("phone", last_sync_id=cursor)
    assert [entry["message_id"] for entry in back.entries] == sorted(ids)
    read = server.house.catchup.read_queue
    bob_id = UUID(bob.user_id)
    assert await read(user_id=bob_id, after=cursor) is None
    half = await read(user_id=bob_id, after=sorted(ids)[300])
    assert half is not None and [entry.message_id for entry in half.entries] == sorted(ids)[301:401]


async def test_a_long_text_is_left_to_the_database(server: Server, queues: Queues) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    pair = await server.pair(alice, bob)
    laptop = await alice.connect("laptop")
    await laptop.say(pair, "first")
    cursor = await gone_with(await bob.connect("phone", last_sync_id=0))
    short = await laptop.say(pair, "short")
    await laptop.say(pair, "ü" * 10_000)
    last = await laptop.say(pair, "after it")
    await becomes(lambda: queues.ids(bob, cursor) == [short["message_id"], last["message_id"]])
    back = await bob.connect("phone", last_sync_id=cursor)
    assert [len(text) for text in back.contents()] == [5, 10_000, 8]


# -- taking back ----------------------------------------------------------------------------------------------------------


async def test_what_is_taken_back_is_gone_from_everybodys_queue(server: Server, queues: Queues) -> None:
    alice, bob, cyd, dora = [await server.register(name) for name in ("alice", "bob", "cyd", "dora")]
    tea = await server.group(alice, bob, cyd, dora)
    laptop = await alice.connect("laptop")
    cursor = await gone_with(await bob.connect("phone", last_sync_id=0))
    secret = (await laptop.say(tea, "a slip of the tongue"))["message_id"]
    await becomes(lambda: all(secret in queues.ids(person) for person in (bob, cyd, dora)))
    # One who has left since could see it too.
    await alice.call("DELETE", f"/api/conversations/{tea}/participants/{dora.user_id}", expect=204)
    await alice.call("DELETE", f"/api/conversations/{tea}/messages/{secret}?for=everyone", expect=204)
    with trio.fail_after(1.0):
        while "tongue" in queues.text():
            await trio.sleep(0.01)
    later = (await laptop.say(tea, "never mind"))["message_id"]
    await becomes(lambda: later in queues.ids(bob))
    back = await bob.connect("phone", last_sync_id=cursor)
    shown = {entry["message_id"]: entry for entry in back.entries}
    assert shown[secret]["deleted"] and shown[secret]["content"] == ""
    assert back.contents() == ["", "never mind"]


async def test_what_one_hides_from_oneself_does_not_come_from_the_queue(server: Server, queues: Queues) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    pair = await server.pair(alice, bob)
    laptop = await alice.connect("laptop")
    await laptop.say(pair, "first")
    cursor = await gone_with(await bob.connect("phone", last_sync_id=0))
    said = (await laptop.say(pair, "a surprise"))["message_id"]
    await becomes(lambda: said in queues.ids(bob))
    await bob.call("DELETE", f"/api/conversations/{pair}/messages/{said}?for=me", expect=204)
    await becomes(lambda: "surprise" not in queues.text())
    back = await bob.connect("phone", last_sync_id=cursor)
    assert [entry.get("hidden") for entry in back.entries if entry["message_id"] == said] == [True]


async def test_with_an_account_its_queue_goes(server: Server, queues: Queues) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    pair = await server.pair(alice, bob)
    laptop = await alice.connect("laptop")
    await laptop.say(pair, "are you there?")
    await becomes(lambda: queues.ids(bob) != [])
    await bob.call("DELETE", "/api/users/me", {"current_password": "Wonderland-1865"}, expect=204)
    await becomes(lambda: queues.elements(bob) == [])


# -- without it -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("days", [31, 400])
async def test_a_device_that_comes_back_after_long_gets_everything(server: Server, queues: Queues, days: int) -> None:
    """Nothing in catching up depends on how old an entry is; the queue has run out by then."""
    alice, bob = await server.register("alice"), await server.register("bob")
    pair = await server.pair(alice, bob)
    laptop = await alice.connect("laptop")
    await laptop.say(pair, "first")
    cursor = await gone_with(await bob.connect("phone", last_sync_id=0))
    ids = sorted(await laptop.say_many(pair, [f"text {number}" for number in range(230)]))
    await becomes(lambda: len(queues.ids(bob, cursor)) == 230)
    async with server.house.pool.connection() as tx:
        await tx.execute(f"update messages set created_at = created_at - interval '{days} days'")
        await tx.execute(f"update device_cursors set updated_at = updated_at - interval '{days} days'")
    queues.remove(bob)
    for last_sync_id in (cursor, None):
        back = await bob.connect("phone", last_sync_id=last_sync_id, confirms=last_sync_id is None)
        assert [entry["message_id"] for entry in back.entries] == ids
        await back.leave()


async def test_a_queue_that_is_evicted_between_two_pages_is_not_missed(server: Server, queues: Queues) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    pair = await server.pair(alice, bob)
    laptop = await alice.connect("laptop")
    await laptop.say(pair, "first")
    cursor = await gone_with(await bob.connect("phone", last_sync_id=0))
    ids = sorted(await laptop.say_many(pair, ["x"] * 350))
    await becomes(lambda: len(queues.ids(bob, cursor)) == 350)
    back = await bob.open("phone", last_sync_id=cursor, confirms=False)
    await back.until(lambda: bool(back.entries))
    queues.remove(bob)
    back.confirms = True
    await back.send("MESSAGE_ACK", status="delivered", message_id=back.entries[-1]["message_id"])
    await back.live()
    assert [entry["message_id"] for entry in back.entries] == ids


# -- the law on real servers ----------------------------------------------------------------------------------------------


def shown(batch: Batch) -> list[dict[str, Any]]:
    return [json.loads(message) for message in batch.messages]


@pytest.mark.parametrize("seed", range(3))
async def test_a_page_from_the_queue_is_what_the_database_gives(database_url: str, redis_url: str, queues: Queues, seed: int) -> None:
    """Two servers, three people who come and go, join, leave, and take back; queues cut and lost; any cursor, either server."""
    dice = random.Random(seed)
    compared = 0
    async with AsyncExitStack() as stack:
        settings = settings_for(database_url, redis_url, presence_grace_s=0)
        servers = [await stack.enter_async_context(serving(settings)) for _ in range(2)]
        one = servers[0]
        alice, bob, cyd = [await one.register(name) for name in ("alice", "bob", "cyd")]
        tea = await one.group(alice, bob, cyd)
        pair = await one.pair(bob, cyd)
        mouths = [(await alice.connect("mouth", to=servers[0]), tea), (await cyd.connect("mouth", to=servers[1]), pair)]
        there: Device | None = None
        inside, ids = True, [0]

        async def say() -> None:
            mouth, where = dice.choice(mouths)
            ids.append((await mouth.say(where, f"text {len(ids)}", metadata={"n": "1"}))["message_id"])

        async def come_or_go() -> None:
            nonlocal there
            if there is None:
                there = await bob.connect("phone", to=dice.choice(servers))
            else:
                await there.leave()
                there = None

        async def move() -> None:
            nonlocal inside
            if inside:
                await alice.call("DELETE", f"/api/conversations/{tea}/participants/{bob.user_id}", expect=204)
            else:
                await alice.post(f"/api/conversations/{tea}/participants", {"user_ids": [bob.user_id]})
            inside = not inside

        async def take_back() -> None:
            await cyd.call("DELETE", f"/api/conversations/{pair}/messages/{dice.choice(ids)}?for=everyone")

        async def hide() -> None:
            await bob.call("DELETE", f"/api/conversations/{pair}/messages/{dice.choice(ids)}?for=me")

        async def lose() -> None:
            queues._client.lpop(f"offline:user:{bob.user_id}", dice.randint(1, 3))

        async def compare() -> None:
            nonlocal compared
            await passed_everywhere(servers)
            server, after = dice.choice(servers), dice.choice(ids[-8:])
            queued = await server.house.catchup.read_queue(user_id=UUID(bob.user_id), after=after)
            if queued is not None:
                compared += 1
                stored = await server.house.catchup.read(user_id=UUID(bob.user_id), after=after)
                assert shown(queued) == shown(stored)[: len(queued.entries)]
                assert queued.position == queued.entries[-1].message_id and queued.full

        acts: list[Callable[[], Awaitable[None]]] = [say] * 12 + [come_or_go] * 2 + [compare] * 10 + [move, take_back, hide, lose]
        for _ in range(150):
            await dice.choice(acts)()
        assert compared > 1


async def passed_everywhere(servers: list[Server]) -> None:
    """Both have handed on all there is, and what they gathered is in Redis."""
    async with servers[0].house.pool.connection() as tx:
        row = await (await tx.execute("select max(message_id) from messages")).fetchone()
    assert row is not None
    with trio.fail_after(5):
        for server in servers:
            while server.house.tailer.position < row[0] or server.house.offline._waiting or server.house.offline._to_forget:
                await trio.sleep(0.005)
            await server.house.link.probe()
