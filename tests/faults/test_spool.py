"""The writer, its spool and Redis, while the database comes and goes: what is "queued", in which order it ends, and what a kill leaves."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import pytest
import redis
import trio

from tests.faults.desk import GIVE_UP_AFTER_S, QUICK, Desk, desk_on, text
from tests.faults.proxy import Proxy, postgres_proxy, redis_proxy
from uim.chat.spool import Spool
from uim.chat.writer import Writer
from uim.errors import UIMError
from uim.model.message import QUEUED, Draft, Entry, Posted, Queued
from uim.store import spool as store
from uim.store.redis import RedisLink

pytestmark = pytest.mark.timeout(60)

WAIT_S = 15.0
LOG = UUID("11111111-1111-4111-8111-111111111111")


@dataclass
class Told:
    """What a sender has been told, text by text, in order."""

    by_client_id: dict[str, list[str]] = field(default_factory=dict)

    def take(self, client_id: str, what: Posted | Queued | UIMError) -> None:
        said = what.code if isinstance(what, UIMError) else "queued" if what is QUEUED else "sent"
        self.by_client_id.setdefault(client_id, []).append(said)

    async def until(self, *client_ids: str, last: str) -> None:
        with trio.fail_after(WAIT_S):
            while not all(self.by_client_id.get(client_id, [""])[-1] == last for client_id in client_ids):
                await trio.sleep(0.01)


@dataclass
class Process:
    """A writer with its spool: what a process has to do with a database that may be away."""

    link: RedisLink
    writer: Writer
    spool: Spool
    told: Told
    appended: list[Entry]
    scope: trio.CancelScope

    def say(self, draft: Draft) -> None:
        self.writer.submit(draft, lambda what: self.told.take(draft.client_message_id, what))

    async def until(self, queued: int) -> None:
        with trio.fail_after(WAIT_S):
            while self.writer.queued != queued:
                await trio.sleep(0.01)


@asynccontextmanager
async def process(database_url: str, redis_url: str, *, may_keep: bool = True, max_bytes: int = 10**6) -> AsyncIterator[Process]:
    link = RedisLink(redis_url)
    appended: list[Entry] = []
    spool = Spool(
        link,
        log_id=LOG,
        database_url=database_url,
        may_keep=lambda draft: may_keep,
        is_settled=lambda: not writer.queued,
        on_appended=appended.extend,
        max_bytes=max_bytes,
    )
    writer = Writer(
        database_url, appended.extend, spool=spool, give_up_after_s=5.0, patience_s=0.1, deadlines=QUICK
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(link.run)
        await nursery.start(writer.run)
        await nursery.start(spool.run)
        yield Process(link, writer, spool, Told(), appended, nursery.cancel_scope)
        nursery.cancel_scope.cancel()


@dataclass
class Scene:
    desk: Desk
    proxy: Proxy
    alice: UUID
    bob: UUID
    pair: UUID
    redis_url: str

    async def client_ids(self) -> list[str]:
        return [row[2] for row in await self.desk.texts_in_log()]

    def spooled(self) -> int:
        with redis.Redis.from_url(self.redis_url) as client:
            return int(client.xlen(f"{LOG}:spool:messages"))

    async def until_spooled(self, count: int) -> None:
        with trio.fail_after(WAIT_S):
            while self.spooled() != count:
                await trio.sleep(0.02)


@pytest.fixture
async def scene(database_url: str, redis_url: str) -> AsyncIterator[Scene]:
    async with postgres_proxy(database_url) as proxy, desk_on(database_url) as desk:
        alice, bob = await desk.people("alice", "bob")
        yield Scene(desk, proxy, alice, bob, await desk.pair(alice, bob), redis_url)


@pytest.mark.parametrize("fault", ["refuse", "hang"])
async def test_what_is_said_during_an_outage_is_queued_then_sent_in_order(scene: Scene, fault: str) -> None:
    async with process(scene.proxy.url, scene.redis_url) as here:
        here.say(text(scene.pair, scene.alice, "before"))
        await here.told.until("before", last="sent")
        getattr(scene.proxy, fault)()
        said = [f"m{number}" for number in range(20)]
        for client_id in said[:10]:
            here.say(text(scene.pair, scene.alice, client_id))
        await here.told.until(*said[:10], last="queued")
        for client_id in said[10:]:
            here.say(text(scene.pair, scene.alice, client_id))
        await here.told.until(*said, last="queued")
        assert scene.spooled() == 20
        assert await scene.client_ids() == ["before"]
        scene.proxy.accept()
        scene.proxy.flow()
        here.say(text(scene.pair, scene.alice, "after"))
        await here.told.until(*said, "after", last="sent")
        assert await scene.client_ids() == ["before", *said, "after"]
        assert all(here.told.by_client_id[client_id] == ["queued", "sent"] for client_id in said)
        await scene.until_spooled(0)
        assert sorted(entry.message_id for entry in here.appended) == [entry.message_id for entry in here.appended]


async def test_a_database_that_flaps_reorders_and_doubles_nothing(scene: Scene) -> None:
    chance = random.Random(7)
    said = [f"m{number}" for number in range(60)]
    async with process(scene.proxy.url, scene.redis_url) as here:

        async def flap() -> None:
            for _ in range(8):
                chance.choice((scene.proxy.refuse, scene.proxy.hang, scene.proxy.cut))()
                await trio.sleep(chance.uniform(0.1, 0.6))
                scene.proxy.accept()
                scene.proxy.flow()
                await trio.sleep(chance.uniform(0.05, 0.3))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flap)
            for client_id in said:
                here.say(text(scene.pair, scene.alice, client_id))
                await trio.sleep(0.06)
        await here.told.until(*said, last="sent")
        assert await scene.client_ids() == said
        await scene.until_spooled(0)
    assert sum("queued" in answers for answers in here.told.by_client_id.values()) > 3, "the outages were none"


async def test_an_ambiguous_commit_before_an_outage_is_one_message(scene: Scene) -> None:
    async with process(scene.proxy.url, scene.redis_url) as here:
        loss = scene.proxy.lose(lambda request: b"hello" in request, carried_out=True)
        here.say(text(scene.pair, scene.alice, "m0"))
        with trio.fail_after(WAIT_S):
            await loss.happened.wait()
        scene.proxy.refuse()
        here.say(text(scene.pair, scene.alice, "m1"))
        await here.told.until("m0", "m1", last="queued")
        scene.proxy.accept()
        await here.told.until("m0", "m1", last="sent")
        assert await scene.client_ids() == ["m0", "m1"]


async def test_a_kill_with_a_filled_spool_loses_nothing_and_the_next_process_drains_it_in_order(scene: Scene) -> None:
    said = [f"m{number}" for number in range(300)]
    async with process(scene.proxy.url, scene.redis_url) as killed:
        scene.proxy.refuse()
        for client_id in said:
            killed.say(text(scene.pair, scene.alice, client_id))
        await killed.told.until(*said, last="queued")
        killed.scope.cancel()
    scene.proxy.accept()
    assert await scene.client_ids() == []
    async with process(scene.proxy.url, scene.redis_url) as after:
        assert await scene.client_ids() == said, "drained before it starts to serve"
        assert [entry.client_message_id for entry in after.appended] == said, "and handed on"
        assert scene.spooled() == 0
        after.say(text(scene.pair, scene.alice, "m7"))
        await after.told.until("m7", last="sent")
        assert await scene.client_ids() == said


async def test_while_one_process_is_cut_off_another_drains_and_nothing_is_doubled(scene: Scene, database_url: str) -> None:
    said = [f"m{number}" for number in range(50)]
    async with process(scene.proxy.url, scene.redis_url) as cut_off, process(database_url, scene.redis_url):
        scene.proxy.refuse()
        for client_id in said:
            cut_off.say(text(scene.pair, scene.alice, client_id))
        await cut_off.told.until(*said, last="queued")
        await scene.until_spooled(0)
        assert await scene.client_ids() == said
        cut_off.say(text(scene.pair, scene.alice, "later"))
        scene.proxy.accept()
        await cut_off.told.until(*said, "later", last="sent")
        assert await scene.client_ids() == [*said, "later"]


async def test_refusals_at_the_drain_reach_the_sender(scene: Scene) -> None:
    async with process(scene.proxy.url, scene.redis_url) as here:
        scene.proxy.refuse()
        here.say(text(scene.pair, scene.alice, "m0"))
        await here.told.until("m0", last="queued")
        await scene.desk.run("insert into blocks (user_id, blocked_id) values (%s, %s)", scene.alice, scene.bob)
        scene.proxy.accept()
        await here.told.until("m0", last="blocked")
        await scene.until_spooled(0)
    assert await scene.client_ids() == []


async def test_a_repeat_of_what_is_queued_is_answered_at_once_and_takes_no_room(scene: Scene) -> None:
    async with process(scene.proxy.url, scene.redis_url) as here:
        scene.proxy.refuse()
        here.say(text(scene.pair, scene.alice, "m0"))
        await here.told.until("m0", last="queued")
        for _ in range(50):
            here.say(text(scene.pair, scene.alice, "m0"))
        assert here.told.by_client_id["m0"] == ["queued"] * 51
        assert scene.spooled() == 1
        here.say(text(scene.pair, scene.alice, "m0", "something else"))
        scene.proxy.accept()
        await here.until(queued=0)
        await here.told.until("m0", last="conflict")
        assert await scene.client_ids() == ["m0"]


async def test_an_unknown_member_is_told_unavailable(scene: Scene) -> None:
    async with process(scene.proxy.url, scene.redis_url, may_keep=False) as here:
        scene.proxy.refuse()
        here.say(text(scene.pair, scene.alice, "m0"))
        await here.told.until("m0", last="unavailable")
        assert here.told.by_client_id["m0"] == ["unavailable"]
        assert scene.spooled() == 0


async def test_a_full_spool_takes_no_more_and_says_so(scene: Scene) -> None:
    async with process(scene.proxy.url, scene.redis_url, max_bytes=2_000) as here:
        scene.proxy.refuse()
        here.say(text(scene.pair, scene.alice, "m0", "x" * 1_500))
        await here.told.until("m0", last="queued")
        for client_id in ("m1", "m2"):
            here.say(text(scene.pair, scene.alice, client_id, "x" * 300))
        here.say(text(scene.pair, scene.alice, "m3", "x" * 1_500))
        here.say(text(scene.pair, scene.alice, "m4"))
        await here.told.until("m3", "m4", last="unavailable")
        assert here.told.by_client_id["m1"] == ["queued"] and here.told.by_client_id["m2"] == ["unavailable"]
        scene.proxy.accept()
        await here.told.until("m0", "m1", last="sent")
        assert await scene.client_ids() == ["m0", "m1"]
        await scene.until_spooled(0)
        scene.proxy.refuse()
        here.say(text(scene.pair, scene.alice, "m3", "x" * 1_500))
        await here.told.until("m3", last="queued")


async def test_thousands_of_texts_are_queued_within_seconds_and_sent_in_order(scene: Scene) -> None:
    said = [f"m{number}" for number in range(2_000)]
    async with process(scene.proxy.url, scene.redis_url) as here:
        scene.proxy.refuse()
        for client_id in said:
            here.say(text(scene.pair, scene.alice, client_id))
        await here.told.until(*said, last="queued")
        scene.proxy.accept()
        await here.told.until(*said, last="sent")
    assert await scene.client_ids() == said


async def test_with_both_away_nothing_is_acknowledged_and_both_come_back(scene: Scene) -> None:
    async with redis_proxy(scene.redis_url) as redis_line, process(scene.proxy.url, redis_line.url) as here:
        redis_line.refuse()
        scene.proxy.refuse()
        here.say(text(scene.pair, scene.alice, "m0"))
        await here.told.until("m0", last="unavailable")
        assert here.told.by_client_id["m0"] == ["unavailable"]
        redis_line.accept()
        here.say(text(scene.pair, scene.alice, "m0"))
        await here.told.until("m0", last="queued")
        redis_line.refuse()
        scene.proxy.accept()
        await here.told.until("m0", last="sent")
        assert await scene.client_ids() == ["m0"], "appended from memory: the spool is an insurance"
        redis_line.accept()
        await scene.until_spooled(0)
        assert await scene.client_ids() == ["m0"]


async def test_what_is_not_on_redis_disk_is_not_queued(scene: Scene) -> None:
    with redis.Redis.from_url(scene.redis_url) as client:
        client.config_set("appendonly", "no")
        try:
            async with process(scene.proxy.url, scene.redis_url) as here:
                scene.proxy.refuse()
                here.say(text(scene.pair, scene.alice, "m0"))
                await here.told.until("m0", last="unavailable")
                assert here.told.by_client_id["m0"] == ["unavailable"]
        finally:
            client.config_set("appendonly", "yes")
            with trio.fail_after(WAIT_S):
                while client.info("persistence")["aof_rewrite_in_progress"] or client.info("persistence")["aof_rewrite_scheduled"]:
                    await trio.sleep(0.02)


async def test_poison_in_the_spool_is_buried_and_does_not_stop_the_rest(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    link = RedisLink(scene.redis_url)
    async with trio.open_nursery() as nursery:
        await nursery.start(link.run)
        drafts = [text(scene.pair, scene.alice, f"m{number}", f"text {number}") for number in range(5)]
        await scene.desk.run("alter table messages add check (content <> 'text 2')")
        await store.add(link, LOG, [*map(store.packed, drafts[:3]), b"\xc1 no draft"])
        await link.call("XADD", f"{LOG}:spool:messages", "*", "somebody", "else's")
        await store.add(link, LOG, [*map(store.packed, drafts[3:])])
        nursery.cancel_scope.cancel()
    async with process(scene.proxy.url, scene.redis_url) as here:
        assert await scene.client_ids() == ["m0", "m1", "m3", "m4"]
        assert (here.spool.drained, here.spool.dead_letters) == (4, 3)
        assert "text 2" not in capsys.readouterr().out, "what people write is in no log"
        assert scene.spooled() == 0


async def test_a_process_that_ends_in_an_outage_leaves_what_is_queued_to_the_next(scene: Scene) -> None:
    async with process(scene.proxy.url, scene.redis_url) as here:
        scene.proxy.refuse()
        here.say(text(scene.pair, scene.alice, "m0"))
        here.writer.close(within_s=10)
        with trio.fail_after(GIVE_UP_AFTER_S + 5):
            await here.writer.drained.wait()
        assert here.told.by_client_id["m0"] == ["queued"]
    scene.proxy.accept()
    async with process(scene.proxy.url, scene.redis_url):
        assert await scene.client_ids() == ["m0"]


async def test_verbs_keep_their_place_between_the_texts_of_an_outage(scene: Scene) -> None:
    async with process(scene.proxy.url, scene.redis_url) as here:
        scene.proxy.refuse()
        here.say(text(scene.pair, scene.alice, "m0"))
        done = trio.Event()

        async def rename() -> None:
            async def act(tx: object, append: object) -> str:
                return ",".join(await scene.client_ids())

            assert await here.writer.do(act, key=uuid4()) == "m0", "run after what stood before it, before what came later"
            done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(rename)
            await here.told.until("m0", last="queued")
            here.say(text(scene.pair, scene.alice, "m1"))
            await here.told.until("m1", last="queued")
            scene.proxy.accept()
        assert done.is_set()
        await here.told.until("m1", last="sent")
