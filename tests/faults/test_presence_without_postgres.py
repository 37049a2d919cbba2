"""Presence while PostgreSQL is away and Redis is there: who is told of whom from memory, who never, and the truth afterwards.

Whole servers with the database refused; where it hangs, or Redis goes too, the room alone, with quick deadlines.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
import trio

from tests.faults.desk import QUICK
from tests.faults.proxy import Proxy, postgres_proxy, redis_proxy
from tests.house import Device, Person, serving, settings_for
from tests.test_presence import Process, Town, eventually, eventually_seen, quiet, snapshot, updates
from tests.transcripts.test_friends import befriend
from tests.transcripts.test_presence import NOTHING, choose, online, seen, seen_offline
from uim.chat.onlookers import GATHER_EVERY_S, MAX_CHANGED
from uim.chat.outbox import Outbox
from uim.model.presence import REST_S
from uim.store.postgres import Pool
from uim.store.presence import Word

pytestmark = pytest.mark.timeout(60)

GRACE_S = 0.2
WAIT_S = 15.0


State = dict[str, Any]


@dataclass
class View:
    """What a device shows of its user's friends by what it was told; `told`: of whom, since `look`."""

    device: Device
    shown: dict[str, State] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)

    def look(self) -> dict[str, State]:
        """Take what has come, and begin anew to note of whom."""
        self._take()
        self.told.clear()
        return self.shown

    def _take(self) -> None:
        frames = self.device.frames
        for frame in [frame for frame in frames if frame["type"] == "PRESENCE_UPDATE"]:
            frames.remove(frame)
            if frame["payload"].get("snapshot"):
                self.shown.clear()
            self.shown |= {user["user_id"]: user for user in frame["payload"]["users"]}
            self.told |= {user["user_id"] for user in frame["payload"]["users"]}

    async def until(self, status: str, *people: Person) -> None:
        """These are shown so, told since the last look."""

        def is_so() -> bool:
            self._take()
            return all(one.user_id in self.told and self.shown[one.user_id]["status"] == status for one in people)

        await self.device.until(is_so)

    async def only_told_of(self, *people: Person) -> None:
        """Whatever has been said by now has arrived, and it was of these alone."""
        await self.device.roundtrip()
        self._take()
        assert self.told == {one.user_id for one in people}


# -- whole servers ------------------------------------------------------------------------------------------------------------


async def test_a_friend_who_leaves_is_told_of_and_nobody_else(database_url: str, redis_url: str) -> None:
    async with (
        postgres_proxy(database_url) as proxy,
        serving(settings_for(proxy.url, redis_url, presence_grace_s=GRACE_S)) as server,
    ):
        alice, bob, cyd = [await server.register(name) for name in ("alice", "bob", "cyd")]
        hidden, parted, blocked, stranger = [await server.register(name) for name in ("hidden", "parted", "blocked", "stranger")]
        for other in (bob, cyd, hidden, parted, blocked):
            await befriend(alice, other)
        others = [await person.connect("phone") for person in (hidden, parted, blocked, stranger)]
        await choose(others[0], "invisible")
        tablet = await cyd.connect("tablet")
        view = View(await alice.connect("laptop"))
        phone = await bob.connect("phone")
        await view.until("online", bob, cyd, parted, blocked)
        await parted.call("DELETE", f"/api/friends/{alice.user_id}", expect=204)
        await blocked.call("PUT", f"/api/blocks/{alice.user_id}", expect=204)
        await view.until("offline", parted, blocked)
        view.look()

        proxy.refuse()
        for other in others:
            await other.leave()
        await phone.leave()
        await view.until("offline", bob)
        await view.only_told_of(bob)
        await tablet.leave()
        await view.until("offline", cyd)
        await view.only_told_of(bob, cyd)
        shown = dict(view.look())
        assert shown[bob.user_id]["last_seen"] is not None and shown[bob.user_id]["availability"] is None
        for path in (f"/api/users/{bob.user_id}/presence", "/api/friends"):
            assert (await alice.call("GET", path, expect=503)).json()["code"] == "unavailable"

        proxy.accept()
        await view.until("offline", bob, cyd)
        await view.only_told_of(bob, cyd)
        assert view.look() == shown
        for person in (bob, cyd):
            assert await seen_offline(alice, person) == {key: shown[person.user_id][key] for key in NOTHING}
        for person in (parted, blocked, stranger):
            assert await seen(alice, person) == NOTHING
        assert (await seen(alice, hidden))["status"] == "offline"
        await bob.connect("phone")
        await view.until("online", bob)


async def test_friends_in_another_process_are_told_of_and_a_choice_made_there_keeps_one_unseen(
    database_url: str, redis_url: str
) -> None:
    async with (
        postgres_proxy(database_url) as near,
        postgres_proxy(database_url) as far,
        serving(settings := settings_for(near.url, redis_url, presence_grace_s=GRACE_S)) as here,
        serving(replace(settings, database_url=far.url)) as there,
    ):
        alice, bob, cyd = [await here.register(name) for name in ("alice", "bob", "cyd")]
        for other in (bob, cyd):
            await befriend(alice, other)
        view = View(await alice.connect("laptop"))
        phone, tablet = await bob.connect("phone", to=there), await cyd.connect("tablet", to=there)
        await view.until("online", bob, cyd)
        view.look()

        near.refuse()
        far.refuse()
        await phone.leave()
        await view.until("offline", bob)
        await view.only_told_of(bob)
        far.accept()
        # A connection is opened in the database, so this process has to reach it.
        phone = await bob.connect("phone", to=there)
        await view.until("online", bob)
        assert view.look()[bob.user_id] == online(bob)
        assert (await choose(phone, "invisible"))["type"] == "PRESENCE_UPDATE"
        await phone.leave()
        await tablet.leave()
        await view.until("offline", cyd)
        await view.only_told_of(cyd)
        assert view.look()[bob.user_id] == online(bob), "what is not known is not told"

        near.accept()
        await view.until("offline", bob, cyd)
        shown = {key: view.shown[bob.user_id][key] for key in NOTHING}
        assert await seen(alice, bob) == shown


# -- the room -----------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def town_on(proxy: Proxy, redis_url: str) -> AsyncIterator[Town]:
    pool = Pool(proxy.url, 6, deadlines=QUICK)
    async with trio.open_nursery() as nursery:
        yield Town(proxy.url, redis_url, uuid4(), pool, nursery)
        nursery.cancel_scope.cancel()
    pool.close_idle()


async def hearing(process: Process) -> Process:
    """Once it hears every word: until then nothing is remembered of choices."""
    await eventually(lambda: process.presence._updates.hears)
    return process


async def shows(outbox: Outbox, wanted: dict[UUID, str], known: dict[str, str]) -> None:
    """That connection has been told so of these, be it by updates or by a snapshot; `known` is what it was told before."""
    with trio.fail_after(WAIT_S):
        while any(known.get(str(user_id), "offline") != status for user_id, status in wanted.items()):
            await outbox.wake.wait()
            for payload in updates(outbox):
                if payload.get("snapshot"):
                    known.clear()
                known |= {user["user_id"]: user["status"] for user in payload["users"]}


async def test_a_database_that_hangs_keeps_nobody_waiting_for_long(database_url: str, redis_url: str) -> None:
    async with postgres_proxy(database_url) as proxy, town_on(proxy, redis_url) as town:
        bob, (alice, cyd) = await town.friends(2)
        here, there = await hearing(await town.process()), await hearing(await town.process())
        laptop, known = here.connect(bob), dict[str, str]()
        phone, tablet = there.connect(alice), there.connect(cyd)
        await shows(laptop, {alice: "online", cyd: "online"}, known)
        proxy.hang()
        there.leave(phone)
        await shows(laptop, {alice: "offline", cyd: "online"}, known)
        # As a third process says it, which does reach the database.
        here.presence._updates._heard(msgspec.json.encode(Word(alice, "online", None, 2**60)))
        there.leave(tablet)
        await shows(laptop, {alice: "online", cyd: "offline"}, known)
        proxy.flow()
        await eventually(lambda: not here.presence._onlookers._changes)
        await eventually_seen(town, cyd)
        await shows(laptop, {alice: "online", cyd: "offline"}, known)


async def test_without_redis_too_nothing_is_told_and_what_was_known_of_choices_is_not_trusted_after_that(
    database_url: str, redis_url: str
) -> None:
    async with postgres_proxy(database_url) as proxy, redis_proxy(redis_url) as cache, town_on(proxy, redis_url) as town:
        bob, (alice, cyd) = await town.friends(2)
        here = await hearing(await town.process(cache.url))
        laptop, known = here.connect(bob), dict[str, str]()
        phone, tablet = here.connect(alice), here.connect(cyd)
        await shows(laptop, {alice: "online", cyd: "online"}, known)
        proxy.refuse()
        cache.refuse()
        await eventually(lambda: not here.link.is_up and not here.link.hears)
        async with quiet(laptop):
            here.leave(phone)
            await eventually(lambda: alice not in here.presence._here)
            await trio.sleep(2 * GATHER_EVERY_S + 2 * REST_S)
            cache.accept()
            await eventually(lambda: here.link.is_up and here.link.hears)
            here.leave(tablet)
            await eventually(lambda: cyd not in here.presence._here)
            await trio.sleep(2 * GATHER_EVERY_S + 2 * REST_S)
        proxy.accept()
        await shows(laptop, {alice: "offline", cyd: "offline"}, known)


async def test_ever_so_many_changes_take_bounded_memory_and_end_with_the_truth(database_url: str, redis_url: str) -> None:
    async with postgres_proxy(database_url) as proxy, town_on(proxy, redis_url) as town:
        bob, (alice, cyd) = await town.friends(2)
        here = await hearing(await town.process())
        laptop, known = here.connect(bob), dict[str, str]()
        phone = here.connect(alice)
        here.connect(cyd)
        await shows(laptop, {alice: "online", cyd: "online"}, known)
        proxy.refuse()
        here.leave(phone)
        await shows(laptop, {alice: "offline"}, known)
        onlookers = here.presence._onlookers
        for number in range(3 * MAX_CHANGED):
            here.presence._updates._heard(msgspec.json.encode(Word(UUID(int=number + 1), "online", None, 1)))
            assert len(onlookers._changes) <= MAX_CHANGED
            if number % 1_000 == 0:
                await trio.lowlevel.checkpoint()
        phone = here.connect(alice)
        await shows(laptop, {alice: "online"}, known)
        here.leave(phone)
        await shows(laptop, {alice: "offline"}, known)
        assert laptop in onlookers._owed_afresh
        proxy.accept()
        with trio.fail_after(WAIT_S):
            assert await snapshot(laptop) == {str(cyd): "online"}
        assert not onlookers._owed_afresh
