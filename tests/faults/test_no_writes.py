"""A database that lets us in and takes no writes: its disk is full, it is read-only, we lost our rights, a table is being restored.

It is away like any other: queued, told to the operator, and asked again now and then, not without end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import uuid4

import pytest
import trio

from tests.faults.desk import Desk, desk_on, rename, text
from tests.faults.proxy import Proxy, postgres_proxy
from tests.faults.test_spool import process
from tests.house import serving, settings_for
from uim.errors import UIMError

pytestmark = pytest.mark.timeout(60)

WAIT_S = 15.0
WATCHED_S = 3.0
# A second between two, and at first some quick ones; without any rest there were 70.
MOST_TRIES = 12

DISK_FULL, READ_ONLY, NOT_ALLOWED = "53100", "25006", "42501"


@dataclass
class Scene:
    desk: Desk
    proxy: Proxy
    redis_url: str

    async def take_no_writes(self, sqlstate: str) -> None:
        await self.desk.run(
            f"""create function take_none() returns trigger language plpgsql as
                $$ begin raise exception 'could not extend file' using errcode = '{sqlstate}'; end $$"""
        )
        await self.desk.run("create trigger take_none before insert on messages execute function take_none()")

    async def take_writes(self) -> None:
        await self.desk.run("drop trigger take_none on messages")


@pytest.fixture
async def scene(database_url: str, redis_url: str) -> AsyncIterator[Scene]:
    async with postgres_proxy(database_url) as proxy, desk_on(database_url) as desk:
        yield Scene(desk, proxy, redis_url)


@pytest.mark.parametrize("sqlstate", [DISK_FULL, READ_ONLY, NOT_ALLOWED])
async def test_it_is_asked_now_and_then_and_what_was_queued_is_sent_soon_after_it_takes_writes(scene: Scene, sqlstate: str) -> None:
    alice, bob = await scene.desk.people("alice", "bob")
    pair = await scene.desk.pair(alice, bob)
    async with process(scene.proxy.url, scene.redis_url) as here:
        await scene.take_no_writes(sqlstate)
        for client_id in ("m0", "m1"):
            here.say(text(pair, alice, client_id))
            await here.told.until(client_id, last="queued")
        before = scene.proxy.accepted
        await trio.sleep(WATCHED_S)
        assert 1 <= scene.proxy.accepted - before <= MOST_TRIES
        await scene.take_writes()
        with trio.fail_after(3.0):
            await here.told.until("m0", "m1", last="sent")
        assert [row[2] for row in await scene.desk.texts_in_log()] == ["m0", "m1"]


async def test_its_trouble_is_told_while_it_lasts_and_not_once_nothing_waits(scene: Scene) -> None:
    owner, *others = await scene.desk.people("owner", "one", "two")
    group = await scene.desk.group(owner, *others)
    async with process(scene.proxy.url, scene.redis_url) as here:
        assert here.writer.trouble == ""
        await scene.take_no_writes(DISK_FULL)
        told: list[str] = []
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                while True:
                    told.append(here.writer.trouble)
                    await trio.sleep(0.1)

            nursery.start_soon(watch)
            with pytest.raises(UIMError, match="away"):
                await here.writer.do(rename(group, owner, "another name"), key=uuid4())
            nursery.cancel_scope.cancel()
        assert {"nothing can be appended: could not extend file"} <= set(told) <= {"", "nothing can be appended: could not extend file"}
        with trio.fail_after(WAIT_S):
            while here.writer.trouble:
                await trio.sleep(0.05)


async def test_what_a_killed_process_left_is_told_while_it_cannot_be_appended(scene: Scene) -> None:
    alice, bob = await scene.desk.people("alice", "bob")
    pair = await scene.desk.pair(alice, bob)
    await scene.take_no_writes(DISK_FULL)
    async with process(scene.proxy.url, scene.redis_url) as killed:
        killed.say(text(pair, alice, "m0"))
        await killed.told.until("m0", last="queued")
        killed.scope.cancel()
    async with process(scene.proxy.url, scene.redis_url) as here:
        assert here.spool.trouble == "what was left queued cannot be appended: could not extend file"
        await scene.take_writes()
        with trio.fail_after(WAIT_S):
            while here.spool.trouble:
                await trio.sleep(0.05)
        assert [row[2] for row in await scene.desk.texts_in_log()] == ["m0"]


async def test_health_is_failed_while_a_text_waits_for_the_disk(scene: Scene, database_url: str) -> None:
    async with serving(settings_for(database_url, scene.redis_url)) as server:
        alice, bob = await server.register("alice"), await server.register("bob")
        pair = await server.pair(alice, bob)
        laptop = await alice.connect("laptop")
        await laptop.say(pair, "before")
        await scene.take_no_writes(DISK_FULL)
        said = await laptop.say(pair, "during", "m1")
        assert said["status"] == "queued"
        health = (await server.http.get(f"{server.operations_url}/health")).json()
        assert health["status"] == "failed"
        assert "could not extend file" in health["checks"]["postgresql"]["error"]
        await scene.take_writes()
        await laptop.expect("MESSAGE_ACK", status="sent", client_message_id="m1")
        with trio.fail_after(WAIT_S):
            while (await server.http.get("/health")).json()["status"] != "ok":
                await trio.sleep(0.2)


@pytest.mark.parametrize("table", ["messages", "participations", "receipts", "device_cursors", "bus_words", "logins", "log_epochs"])
async def test_while_a_table_is_not_there_everybody_stays_and_nothing_is_lost(scene: Scene, database_url: str, table: str) -> None:
    async with serving(settings_for(database_url, scene.redis_url)) as server:
        alice, bob = await server.register("alice"), await server.register("bob")
        pair = await server.pair(alice, bob)
        laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
        await phone.reached((await laptop.say(pair, "before"))["message_id"])
        await scene.desk.run(f"alter table {table} rename to put_away")
        said = await laptop.say(pair, "during", "m1")
        assert said["status"] in ("queued", "sent"), said
        await trio.sleep(1.0)  # long enough for each room to ask the database
        await scene.desk.run(f"alter table put_away rename to {table}")
        last = await laptop.say(pair, "after", "m2")
        with trio.fail_after(WAIT_S):
            await phone.until(lambda: phone.contents() == ["before", "during", "after"])
        assert last["type"] == "MESSAGE_ACK" and not laptop.ended.is_set() and not phone.ended.is_set()
