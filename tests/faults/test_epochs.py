"""The past brought back under connected clients: what is lost is lost, but no id is used twice, and everybody learns of it.

A dump that is restored, files put back from a copy, a standby that is promoted without having heard of the newest; two servers
run all the while. And a switchover that loses nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
import trio

from tests.faults.cluster import Cluster, cluster_on, initialised
from tests.house import PASSWORD, Device, Person, Server, serving, settings_for
from uim.errors import Cut

WITHIN_S = 30.0


@pytest.fixture(scope="module")
def initial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="uim-epochs-") as folder, initialised(Path(folder)) as made:
        yield made


@pytest.fixture
async def cluster(reachable_folder: Path, initial: Path) -> AsyncIterator[Cluster]:
    async with cluster_on(reachable_folder, initial) as made:
        yield made


async def answers_again(server: Server) -> None:
    """Its database is there."""
    with trio.fail_after(WITHIN_S):
        while (await server.http.get("/health/ready")).status_code != 200:
            await trio.sleep(0.05)


async def in_epoch(server: Server, number: int) -> None:
    """That server has noticed, and its pool of connections too."""
    with trio.fail_after(WITHIN_S):
        while server.house.epochs.present.number < number:
            await trio.sleep(0.02)
    assert server.house.epochs.present.number == number
    await answers_again(server)


def dropped(device: Device, ready: dict[str, Any]) -> list[dict[str, Any]]:
    """What a client keeps of its store when it sees a new epoch."""
    lost = ready["epoch"]["lost"]
    return [entry for entry in device.entries if not any(after < entry["message_id"] < base for after, base in lost)]


@dataclass
class Scene:
    """Alice on one server, bob on the other, in a group with cyd; dora comes into it in the stretch that will be lost."""

    one: Server
    two: Server
    people: dict[str, Person] = field(default_factory=dict)
    group: str = ""

    async def begin(self) -> tuple[Device, Device]:
        for name in ("alice", "bob", "cyd", "dora"):
            self.people[name] = await self.one.register(name)
        self.group = await self.one.group(*[self.people[name] for name in ("alice", "bob", "cyd")])
        alice, bob = await self.people["alice"].connect("phone"), await self.people["bob"].connect("phone", to=self.two)
        kept = await alice.say(self.group, "kept")
        await bob.reached(kept["message_id"])
        return alice, bob


@pytest.fixture
async def scene(cluster: Cluster, redis_url: str) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        settings = settings_for(cluster.url, redis_url, database_pool=4)
        yield Scene(*[await stack.enter_async_context(serving(settings)) for _ in range(2)])


@pytest.mark.parametrize("way", ["dump", "files", "standby"])
async def test_under_connected_clients_the_past_comes_back(cluster: Cluster, scene: Scene, redis_url: str, way: str) -> None:
    alice, bob = await scene.begin()
    people, group = scene.people, scene.group
    kept = await getattr(cluster, f"keep_{way}")()
    await answers_again(scene.one)
    await answers_again(scene.two)
    assert not alice.ended.is_set() and not bob.ended.is_set(), "a restart of PostgreSQL alone ends nobody's connection"

    # The stretch that will be lost: texts, a member, an account; cyd is away, and has them in the offline queue.
    await people["alice"].post(f"/api/conversations/{group}/participants", {"user_ids": [people["dora"].user_id]})
    eve = await scene.one.register("eve")
    lost = [await alice.say(group, f"lost {number}", client_message_id=f"lost-{number}") for number in range(3)]
    dora = await people["dora"].connect("phone", to=scene.two)
    for device in (bob, dora):
        await device.reached(lost[-1]["message_id"])
    with redis.Redis.from_url(redis_url) as client:
        with trio.fail_after(5):
            while not client.llen(f"offline:user:{people['cyd'].user_id}"):
                await trio.sleep(0.02)
    used = {entry["message_id"] for entry in [*alice.entries, *bob.entries, *dora.entries]} | {ack["message_id"] for ack in lost}

    await kept.bring_back()
    await in_epoch(scene.one, 2)
    await in_epoch(scene.two, 2)
    for device in (alice, bob, dora):
        assert "retry_after_ms" in (await device.closing(Cut.RESTART) or "")

    # Everybody comes back, with the cursor of the lost stretch, and learns what is lost.
    cursor = bob.cursor
    assert cursor >= lost[-1]["message_id"]
    alice, was_alice = await people["alice"].connect("phone", last_sync_id=cursor), alice
    bob, was_bob = await people["bob"].connect("phone", last_sync_id=cursor, to=scene.two, confirms=False), bob
    for device, before in ((alice, was_alice), (bob, was_bob)):
        assert device.ready["epoch"]["number"] == 2
        kept_texts = [entry["content"] for entry in dropped(before, device.ready) if entry["message_type"] == "text"]
        assert [text for text in kept_texts if "lost" in text] == []
    assert "kept" in [entry["content"] for entry in dropped(was_bob, bob.ready)]

    # What was lost may be said again, under the same ids; nobody who came in the lost stretch hears it.
    dora = await people["dora"].connect("phone", last_sync_id=dora.cursor)
    again = [await alice.say(group, f"lost {number}", client_message_id=f"lost-{number}") for number in range(3)]
    assert not any(ack["duplicate"] for ack in again)
    assert all(ack["message_id"] >= alice.ready["epoch"]["base"] for ack in again)
    assert not used & {ack["message_id"] for ack in again}
    await bob.reached(again[-1]["message_id"])
    assert [entry["message_id"] for entry in bob.entries] == [ack["message_id"] for ack in again], "live, across the two servers"
    # A receipt for what is lost says nothing of what came instead.
    await bob.send("MESSAGE_ACK", status="read", conversation_id=group, message_id=lost[-1]["message_id"])
    await bob.roundtrip()
    await scene.two.house.receipts.flush()
    path = f"/api/conversations/{group}/messages/{again[0]['message_id']}"
    status = (await people["alice"].get(path))["delivery_status"]
    assert status["read"] == {} and status["delivered"] == {}
    bob.confirms = True
    await bob.send("MESSAGE_ACK", status="delivered", message_id=again[-1]["message_id"])
    reply = await bob.say(group, "got it")
    await alice.reached(reply["message_id"])
    assert alice.contents()[-1] == "got it"
    await dora.roundtrip()
    assert dora.contents() == []

    # Who was away all the time, and who has no login any more.
    cyd = await people["cyd"].connect("phone", last_sync_id=0, to=scene.two)
    assert cyd.contents() == ["kept", "lost 0", "lost 1", "lost 2", "got it"]
    ids = [entry["message_id"] for entry in cyd.entries]
    assert ids == sorted(set(ids)) and not {ack["message_id"] for ack in lost} & set(ids)
    assert (await eve.call("GET", "/api/users/me")).status_code == 401
    body = {"username": eve.username, "password": PASSWORD}
    assert (await scene.one.http.post("/api/auth/login", json=body)).status_code == 401

    # Cursors go on: a device that comes without its own store misses nothing, and has nothing again that it has confirmed.
    await bob.roundtrip()
    for _ in range(2):  # cursors follow receipts
        await scene.two.house.receipts.flush()
    await bob.leave()
    await alice.say(group, "while bob is away")
    bob = await people["bob"].connect("phone")
    assert [text for text in bob.contents() if text != "got it"] == ["while bob is away"]


async def test_a_switchover_that_loses_nothing_loses_nothing(cluster: Cluster, scene: Scene) -> None:
    alice, bob = await scene.begin()
    said = [await alice.say(scene.group, f"text {number}") for number in range(5)]
    await cluster.switch_over()
    await in_epoch(scene.one, 2)
    await in_epoch(scene.two, 2)
    await alice.closing(Cut.RESTART)
    await bob.closing(Cut.RESTART)
    back = await scene.people["bob"].connect("phone", to=scene.two)
    mine = {entry["message_id"] for entry in [*bob.entries, *back.entries]}
    assert {ack["message_id"] for ack in said} <= mine
    assert back.ready["epoch"]["after"] == said[-1]["message_id"]
    # Before anything has been said in the new epoch, a quiet device is live all the same, and its cursor lies below what comes.
    assert (await back.roundtrip())["last_sync_id"] == back.ready["epoch"]["base"] - 1
    alice = await scene.people["alice"].connect("phone")
    after = await alice.say(scene.group, "after it")
    assert after["message_id"] == back.ready["epoch"]["base"]
    await back.reached(after["message_id"])
    assert back.contents()[-1] == "after it"


async def test_files_put_back_while_no_server_runs(cluster: Cluster, redis_url: str) -> None:
    """Nothing in the files tells a copy from what was there. Redis remembers how far the log went; without it the operator says."""
    settings = settings_for(cluster.url, redis_url, database_pool=4)
    async with serving(settings) as server:
        alice, bob = await server.register("alice"), await server.register("bob")
        pair = await server.pair(alice, bob)
    kept = await cluster.keep_files()
    used: list[int] = []
    for told in ("nothing", "by redis", "by the operator"):
        if told == "by the operator":
            with redis.Redis.from_url(redis_url) as client:
                client.flushall()
            with psycopg.connect(cluster.url) as connection:
                connection.execute("update log_epochs set timeline = 0")
        async with serving(settings) as server:
            alice.server = server
            phone = await alice.connect("phone", last_sync_id=max(used, default=0))
            epoch = phone.ready["epoch"]
            assert epoch["number"] == 1 + bool(used), told
            used += [(await phone.say(pair, told))["message_id"] for _ in range(3)]
            assert used[-3] == epoch["base"]
            assert all(epoch["after"] < at < epoch["base"] for at in used[:-3])
            with redis.Redis.from_url(redis_url) as client, trio.fail_after(5):
                key = f"{server.house.epochs._log_id}:log"
                while (client.zscore(key, "highest") or 0) < used[-1]:  # type: ignore[operator]  # not awaitable
                    await trio.sleep(0.05)
        await kept.bring_back()
    assert len(set(used)) == 9
