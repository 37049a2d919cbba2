"""Presence room by room: what is shed and what never is, processes that die or lose Redis, words that come out of order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
import redis
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.faults.lossy_bus import DEAF, PERFECT, lossy_bus
from tests.faults.proxy import redis_proxy
from tests.test_outbox import texts
from uim.chat.leases import Leases
from uim.chat.outbox import Outbox
from uim.chat.presence import Presence
from uim.chat.switchboard import Switchboard
from uim.model.presence import FRAMES_PER_TICK, REST_S, TICK_S, Choices, Waiting, seen_by_friend, seen_by_oneself
from uim.store.postgres import Pool
from uim.store.presence import Word
from uim.store.redis import RedisLink

WAIT_S = 10.0
GRACE_S = 0.2
LEASE_S = 0.6
EVERY_S = 0.2


# -- what is shed, and what never is ------------------------------------------------------------------------------------------

RECEIVERS = 130
put = st.tuples(st.just("put"), st.integers(0, RECEIVERS - 1), st.integers(0, 3))
tick = st.tuples(st.just("tick"), st.floats(0, 0.06), st.integers(0, 3))
flood = st.tuples(st.just("flood"), st.integers(0, 3), st.just(0))


@given(st.lists(put | tick | flood | st.tuples(st.just("forget"), st.integers(0, RECEIVERS - 1), st.just(0)), max_size=80))
def test_whatever_happens_the_newest_state_wins_and_the_rates_hold(steps: list[tuple[str, Any, int]]) -> None:
    waiting: Waiting[int, int] = Waiting()
    users = [UUID(int=number) for number in range(4)]
    newest: dict[int, dict[UUID, int]] = {}
    told: dict[int, dict[UUID, int]] = {}
    taken_at: list[tuple[float, int]] = []
    now, version = 0.0, 0

    def state(receiver: int, user_id: UUID) -> None:
        nonlocal version
        version += 1
        waiting.put(receiver, user_id, version)
        newest.setdefault(receiver, {})[user_id] = version

    def take() -> None:
        due = waiting.take(now, lambda receiver: True)
        assert len({receiver for receiver, _ in due}) == len(due) <= FRAMES_PER_TICK
        for receiver, what in due:
            told.setdefault(receiver, {}).update(what.states)
            taken_at.append((now, receiver))

    for what, number, user in steps:
        if what == "put":
            state(number, users[user])
        elif what == "flood":
            for receiver in range(RECEIVERS):
                state(receiver, users[number])
        elif what == "forget":
            waiting.forget(number)
            newest.pop(number, None)
            told.pop(number, None)
        else:
            now += number
            take()
    while len(waiting):
        now = max(now, waiting.next_at)
        take()
    assert told == newest
    for began, receiver in taken_at:
        within = [other for at, other in taken_at if began <= at < began + 1.0 - 1e-6]
        assert len(within) <= 1_000
        assert within.count(receiver) <= 20


def test_who_has_no_room_keeps_what_waits_and_holds_nobody_up() -> None:
    waiting: Waiting[int, str] = Waiting()
    user_id = uuid4()
    for receiver in range(2 * FRAMES_PER_TICK):
        waiting.put(receiver, user_id, "online")
    asleep = set(range(FRAMES_PER_TICK))
    first = waiting.take(0.0, lambda receiver: receiver not in asleep)
    assert [receiver for receiver, _ in first] == list(range(FRAMES_PER_TICK, 2 * FRAMES_PER_TICK))
    waiting.put(3, user_id, "offline")
    assert waiting.take(TICK_S / 2, lambda receiver: True) == []
    second = waiting.take(TICK_S, lambda receiver: True)
    assert {receiver: due.states[user_id] for receiver, due in second} == {
        receiver: "offline" if receiver == 3 else "online" for receiver in asleep
    }


def test_one_that_is_owed_too_much_is_told_all_afresh() -> None:
    waiting: Waiting[str, int] = Waiting(states_per_receiver=10)
    for number in range(11):
        waiting.put("phone", UUID(int=number), number)
    waiting.put("phone", UUID(int=99), 99)
    ((_, due),) = waiting.take(0.0, lambda receiver: True)
    assert due.afresh
    assert due.states == {UUID(int=99): 99}


@given(st.sampled_from(["available", "away", "busy"]), st.booleans(), st.none() | st.datetimes(timezones=st.just(UTC)))
def test_invisible_is_offline_in_every_field(availability: str, shows: bool, last_seen: datetime | None) -> None:
    me = uuid4()
    hidden = Choices("invisible", "hm", shows, last_seen)
    assert seen_by_friend(me, hidden, is_online=True) == seen_by_friend(
        me, Choices(availability, "hm", shows, last_seen), is_online=False
    )
    assert seen_by_oneself(me, hidden, is_online=True).availability == "invisible"


# -- processes ----------------------------------------------------------------------------------------------------------------


@dataclass
class Process:
    """One process's presence, on a link of its own, with connections that have no sockets."""

    presence: Presence
    link: RedisLink
    switchboard: Switchboard
    nursery: trio.Nursery
    process_id: UUID
    held: dict[Outbox, Any] = field(default_factory=dict)

    def connect(self, user_id: UUID, device_id: str = "phone") -> Outbox:
        outbox = Outbox(
            user_id=user_id,
            device_id=device_id,
            login_id=uuid4(),
            session_id=uuid4(),
            cut=lambda reason: None,
            catch_up=lambda: None,
        )
        attached = self.switchboard.attached(outbox)
        assert attached.__enter__()
        self.held[outbox] = attached
        outbox.is_ready = outbox.live = True
        self.presence.came(outbox)
        self.presence.live(outbox)
        return outbox

    def leave(self, outbox: Outbox) -> None:
        outbox.closed = True
        self.presence.left(outbox)
        self.held.pop(outbox).__exit__(None, None, None)

    def die(self) -> None:
        """As by SIGKILL: nothing is said any more."""
        self.nursery.cancel_scope.cancel()


@dataclass
class Town:
    """A deployment: people who are friends, and the processes."""

    database_url: str
    redis_url: str
    log_id: UUID
    pool: Pool
    nursery: trio.Nursery

    async def process(self, redis_url: str | None = None, **changed: Any) -> Process:
        link, switchboard = RedisLink(redis_url or self.redis_url), Switchboard(devices_per_user=20)
        process_id = uuid4()
        times = {"grace_s": GRACE_S, "lease_s": LEASE_S, "every_s": EVERY_S, **changed}
        presence = Presence(
            pool=self.pool, link=link, switchboard=switchboard, log_id=self.log_id, process_id=process_id, **times
        )
        started: Process = await self.nursery.start(_run, Process, presence, link, switchboard, process_id)
        return started

    async def friends(self, count: int = 1) -> tuple[UUID, list[UUID]]:
        """Somebody, and that many friends of theirs."""
        async with self.pool.connection() as tx:
            cursor = await tx.execute(
                """insert into users (username, password_hash) select 'person_' || left(gen_random_uuid()::text, 8), '-'
                    from generate_series(0, %s) returning user_id""",
                (count,),
            )
            me, *others = [row[0] for row in await cursor.fetchall()]
            await tx.execute(
                "insert into friendships (user_id, friend_id, status) select %s, unnest(%s::uuid[]), 'accepted'", (me, others)
            )
        return me, others

    async def last_seen(self, user_id: UUID) -> Any:
        async with self.pool.connection() as tx:
            cursor = await tx.execute("select last_seen from users where user_id = %s", (user_id,))
            row = await cursor.fetchone()
        assert row is not None
        return row[0]


async def _run(
    make: Callable[..., Process], presence: Presence, link: RedisLink, switchboard: Switchboard, process_id: UUID, *,
    task_status: trio.TaskStatus[Process],
) -> None:  # fmt: skip
    async with trio.open_nursery() as nursery:
        await nursery.start(link.run)
        await nursery.start(presence.run)
        task_status.started(make(presence, link, switchboard, nursery, process_id))


@pytest.fixture
async def town(database_url: str, redis_url: str) -> AsyncIterator[Town]:
    pool = Pool(database_url, 6)
    async with trio.open_nursery() as nursery:
        yield Town(database_url, redis_url, uuid4(), pool, nursery)
        nursery.cancel_scope.cancel()
    pool.close_idle()


Update = dict[str, Any]


def updates(outbox: Outbox) -> list[Update]:
    """The presence frames' payloads that have come since."""
    return [text["payload"] for text in texts(outbox.take()) if text["type"] == "PRESENCE_UPDATE"]


async def told(outbox: Outbox, user_id: UUID, status: str) -> None:
    """That person's status becomes this one, be it by an update or by a snapshot."""
    known = ""
    with trio.fail_after(WAIT_S):
        while known != status:
            await outbox.wake.wait()
            for payload in updates(outbox):
                states = {user["user_id"]: user["status"] for user in payload["users"]}
                known = states.get(str(user_id), "offline" if payload.get("snapshot") else known)


async def snapshot(outbox: Outbox) -> dict[str, str]:
    with trio.fail_after(WAIT_S):
        while True:
            for payload in updates(outbox):
                if payload.get("snapshot"):
                    return {user["user_id"]: user["status"] for user in payload["users"]}
            await outbox.wake.wait()


async def eventually(holds: Callable[[], bool]) -> None:
    with trio.fail_after(WAIT_S):
        while not holds():
            await trio.sleep(0.01)


@asynccontextmanager
async def quiet(outbox: Outbox) -> AsyncIterator[None]:
    """Inside, this connection is told nothing."""
    updates(outbox)
    yield
    assert updates(outbox) == []


async def test_what_a_killed_process_held_is_cleared_by_a_survivor(town: Town) -> None:
    bob, (alice, cyd) = await town.friends(2)
    here, there = await town.process(), await town.process()
    laptop = here.connect(alice)
    await snapshot(laptop)
    there.connect(bob)
    there.connect(cyd)
    await told(laptop, bob, "online")
    there.die()
    began = trio.current_time()
    await told(laptop, bob, "offline")
    assert trio.current_time() - began < LEASE_S + 2 * EVERY_S + 1.0
    await eventually_seen(town, bob)
    with redis.Redis.from_url(town.redis_url) as client:
        await eventually(lambda: not client.exists(f"presence:held:{there.process_id}"))
        assert client.smembers(f"{town.log_id}:processes") == {str(here.process_id).encode()}


async def eventually_seen(town: Town, user_id: UUID) -> None:
    with trio.fail_after(WAIT_S):
        while await town.last_seen(user_id) is None:
            await trio.sleep(0.01)


async def test_one_who_has_come_back_elsewhere_is_not_told_offline_with_the_dead_process(town: Town) -> None:
    bob, (alice,) = await town.friends()
    here, there = await town.process(), await town.process()
    laptop = here.connect(alice)
    await snapshot(laptop)
    there.connect(bob)
    await told(laptop, bob, "online")
    there.die()
    here.connect(bob)
    async with quiet(laptop):
        with redis.Redis.from_url(town.redis_url) as client:
            await eventually(lambda: not client.exists(f"presence:held:{there.process_id}"))
        await trio.sleep(4 * REST_S)


async def test_a_process_that_was_only_slow_says_again_what_it_holds(town: Town) -> None:
    bob, (alice,) = await town.friends()
    here, there = await town.process(), await town.process()
    laptop = here.connect(alice)
    there.connect(bob)
    await told(laptop, bob, "online")
    with redis.Redis.from_url(town.redis_url) as client:
        # As a survivor does who finds the lease run out.
        await here.presence._let_go(there.process_id, [bob])
        client.delete(f"process:{there.process_id}")
        await eventually(lambda: client.exists(f"process:{there.process_id}", f"presence:held:{there.process_id}") == 2)
    # What went and came back within one tick is told to nobody, else both are; who asks now is told how it is.
    assert await snapshot(here.connect(alice, "tablet")) == {str(bob): "online"}
    if [user["status"] for payload in updates(laptop) for user in payload["users"]][-1:] == ["offline"]:
        await told(laptop, bob, "online")


async def test_redis_that_comes_back_empty_is_filled_again(town: Town) -> None:
    bob, (alice,) = await town.friends()
    here, there = await town.process(), await town.process()
    laptop = here.connect(alice)
    there.connect(bob)
    await told(laptop, bob, "online")
    with redis.Redis.from_url(town.redis_url) as client:
        client.flushall()
        await eventually(lambda: b"online" in (client.get(f"presence:user:{bob}") or b""))
        await eventually(lambda: b"online" in (client.get(f"presence:user:{alice}") or b""))
    fresh = here.connect(alice, "tablet")
    assert (await snapshot(fresh))[str(bob)] == "online"


async def test_with_redis_away_and_back_everybody_ends_with_the_truth(town: Town) -> None:
    bob, (alice, cyd) = await town.friends(2)
    async with redis_proxy(town.redis_url) as proxy:
        here, there = await town.process(proxy.url), await town.process()
        laptop = here.connect(bob)
        await snapshot(laptop)
        tablet = there.connect(alice)
        phone = there.connect(cyd)
        await told(laptop, alice, "online")
        proxy.refuse()
        await eventually(lambda: not here.link.is_up and not here.link.hears)
        # Without Redis one's own connections are known ...
        own = here.connect(cyd, "desk")
        assert await here.presence.online_soon([alice, bob, cyd]) == {bob, cyd}
        assert await snapshot(own) == {str(bob): "online"}
        # ... and what happens elsewhere is not.
        there.leave(tablet)
        there.leave(phone)
        await eventually(lambda: there.presence._here == {})
        proxy.accept()
        await told(laptop, alice, "offline")
        with trio.fail_after(WAIT_S):
            while await there.presence.online_soon([alice, bob, cyd]) != {bob, cyd}:
                await trio.sleep(0.01)
        again = there.connect(alice)
        assert (await snapshot(again)) == {str(bob): "online"}


async def test_who_left_while_redis_was_away_is_offline_when_it_is_back(town: Town) -> None:
    bob, (alice,) = await town.friends()
    async with redis_proxy(town.redis_url) as proxy:
        here, there = await town.process(proxy.url, lease_s=30.0), await town.process()
        laptop = there.connect(alice)
        phone = here.connect(bob)
        await told(laptop, bob, "online")
        proxy.refuse()
        await eventually(lambda: not here.link.is_up)
        here.leave(phone)
        await eventually(lambda: here.presence._here == {})
        proxy.accept()
        await told(laptop, bob, "offline")


@pytest.mark.parametrize("waits", [True, False], ids=["its word waits to be told", "its word was never heard"])
async def test_what_a_user_has_chosen_elsewhere_is_told_beside_what_is_told_afresh(town: Town, waits: bool) -> None:
    bob, _ = await town.friends()
    here, there = await town.process(), await town.process()
    await eventually(lambda: here.presence._updates._line is not None)
    laptop = here.connect(bob)
    await snapshot(laptop)
    laptop.size = 128 * 1024
    async with town.pool.connection() as tx:
        await tx.execute("update users set availability = 'busy' where user_id = %s", (bob,))
    if waits:
        there.presence.chosen(bob, frozenset({"availability"}))
        await eventually(lambda: laptop in here.presence._onlookers._own_waits)
    here.presence._onlookers.afresh_all()
    laptop.size = 0
    came: list[Update] = []
    with trio.fail_after(WAIT_S):
        while len(came) < 2:
            came += updates(laptop)
            await trio.sleep(0.01)
    assert [(payload.get("snapshot"), len(payload["users"])) for payload in came] == [(True, 0), (None, 1)]
    assert came[1]["users"][0]["availability"] == "busy"
    async with quiet(laptop):
        here.presence._onlookers.afresh_all()
        await snapshot(laptop)
        await trio.sleep(4 * REST_S)


async def test_what_waits_of_what_was_chosen_elsewhere_is_not_told_after_what_was_chosen_here_since(town: Town) -> None:
    bob, _ = await town.friends()
    here, there = await town.process(), await town.process()
    await eventually(lambda: here.presence._updates._line is not None)
    laptop = here.connect(bob)
    await snapshot(laptop)
    laptop.size = 128 * 1024

    async def choose(availability: str) -> None:
        async with town.pool.connection() as tx:
            await tx.execute("update users set availability = %s where user_id = %s", (availability, bob))

    await choose("busy")
    there.presence.chosen(bob, frozenset({"availability"}))
    await eventually(lambda: laptop in here.presence._onlookers._own_waits)
    with here.presence.answering(laptop) as answered:
        await choose("away")
        answered(await here.presence.own_state(bob))
    here.presence.chosen(bob, frozenset({"availability"}))
    laptop.size = 0
    async with quiet(laptop):
        await trio.sleep(4 * REST_S)


async def test_words_that_were_lost_are_read_and_with_them_what_they_alone_tell(town: Town) -> None:
    bob, (alice,) = await town.friends()
    async with lossy_bus(town.redis_url, seed=1, fates=PERFECT) as line:
        here, there = await town.process(line.url), await town.process()
        await eventually(lambda: here.presence._updates._line is not None)
        laptop = here.connect(alice)
        await snapshot(laptop)
        line.fates = DEAF
        phone = there.connect(bob)
        await told(laptop, bob, "online")
        there.leave(phone)
        with trio.fail_after(WAIT_S):
            while not (came := updates(laptop)):
                await laptop.wake.wait()
        assert [payload.get("snapshot") for payload in came] == [None], "the word itself, not everything afresh"
        assert came[0]["users"][0]["status"] == "offline" and came[0]["users"][0]["last_seen"] is not None
        assert line.lost >= 2


async def test_whoever_has_missed_more_words_than_are_kept_is_told_everything_afresh(town: Town) -> None:
    bob, (alice, cyd) = await town.friends(2)
    async with lossy_bus(town.redis_url, seed=1, fates=PERFECT) as line:
        here, there = await town.process(line.url), await town.process()
        await eventually(lambda: here.presence._updates._line is not None)
        laptop = here.connect(bob)
        await snapshot(laptop)
        line.fates = DEAF
        there.connect(alice)
        await eventually(lambda: line.lost == 1)
        with redis.Redis.from_url(town.redis_url) as client:
            client.delete(f"{town.log_id}:presence:updates:latest")
        there.connect(cyd)
        assert await snapshot(laptop) == {str(alice): "online", str(cyd): "online"}


async def test_what_was_told_while_one_line_to_redis_was_cut_is_told_afresh(town: Town) -> None:
    """Only the line on which is asked: the channel is heard all the time, so it does not begin anew."""
    bob, (alice,) = await town.friends()
    async with redis_proxy(town.redis_url) as proxy:
        here, there = await town.process(proxy.url), await town.process()
        await eventually(lambda: here.presence._updates._line is not None)
        there.connect(alice)
        laptop = here.connect(bob)
        await told(laptop, alice, "online")
        loss = proxy.lose(lambda request: b"MGET" in request, carried_out=True)
        tablet = here.connect(bob, "tablet")
        assert await snapshot(tablet) == {}, "nobody knows"
        assert loss.happened.is_set() and here.link.hears
        assert await snapshot(tablet) == {str(alice): "online"}


async def test_who_could_not_reach_redis_itself_judges_nobody_until_the_others_had_time_to_come_back(town: Town) -> None:
    buried: list[UUID] = []

    async def let_go(process_id: UUID, user_ids: list[UUID]) -> None:
        buried.append(process_id)

    link, one, other = RedisLink(town.redis_url), uuid4(), uuid4()
    await town.nursery.start(link.run)
    ours, theirs = (Leases(link, log_id=town.log_id, process_id=name, let_go=let_go, lease_s=60) for name in (one, other))
    assert not await ours.keep() and not await theirs.keep()
    assert await ours.keep()
    # An outage that was longer than a lease.
    await link.call("DEL", f"process:{one}", f"process:{other}")
    assert not await ours.keep()
    assert not await theirs.keep()
    assert await ours.keep()
    assert buried == []
    # After another one the other does not come back.
    await link.call("DEL", f"process:{one}", f"process:{other}")
    assert not await ours.keep() and buried == []
    assert await ours.keep()
    assert buried == [other]


async def test_redis_that_comes_back_empty_is_told_at_once_what_is_held(town: Town) -> None:
    bob, (alice,) = await town.friends()
    async with redis_proxy(town.redis_url) as proxy:
        here, there = await town.process(proxy.url, lease_s=90.0, every_s=60.0), await town.process()
        await eventually(lambda: here.presence._updates._line is not None)
        laptop, _ = there.connect(alice), here.connect(bob)
        await told(laptop, bob, "online")
        proxy.refuse()
        await eventually(lambda: not here.link.is_up and not here.link.hears)
        with redis.Redis.from_url(town.redis_url) as client:
            client.flushall()
            proxy.accept()
            await eventually(lambda: b"online" in (client.get(f"presence:user:{bob}") or b""))


async def test_older_versions_are_dropped(town: Town) -> None:
    bob, (alice,) = await town.friends()
    here = await town.process()
    # What Redis knows nothing of would be taken back by what is told afresh at the beginning.
    await eventually(lambda: here.presence._updates._line is not None)
    laptop = here.connect(alice)
    await snapshot(laptop)

    def say(version: int, status: str) -> None:
        here.presence._updates._heard(msgspec.json.encode(Word(bob, status, None, version)))

    say(5, "online")
    await told(laptop, bob, "online")
    async with quiet(laptop):
        say(4, "offline")
        say(5, "offline")
        await trio.sleep(4 * REST_S)
    say(6, "offline")
    await told(laptop, bob, "offline")


async def test_a_word_of_another_release_is_left_alone(town: Town) -> None:
    here = await town.process()
    for odd in (b"", b"{}", b'{"user_id":1}', b"\xff", b'{"user_id":"x","status":"online","version":1,"last_seen":null}',
                b'{"user_id":"\xff"}', b'{"status":"\x8d"}', b'{"new":' + b"[" * 50_000):
        here.presence._updates._heard(odd)
    _, (alice,) = await town.friends()
    assert await snapshot(here.connect(alice)) == {}


async def test_a_user_with_5000_friends_comes_and_each_friend_who_is_here_is_told(town: Town) -> None:
    bob, friends = await town.friends(5_000)
    here = await town.process()
    present = {friend: here.connect(friend) for friend in friends[::250]}
    for outbox in present.values():
        await snapshot(outbox)
    phone = here.connect(bob)
    assert await snapshot(phone) == {str(friend): "online" for friend in present}
    for outbox in present.values():
        await told(outbox, bob, "online")


async def test_a_snapshot_too_long_for_a_frame_goes_on_in_others(town: Town) -> None:
    bob, friends = await town.friends(600)
    here = await town.process()
    async with town.pool.connection() as tx:
        await tx.execute("update users set status_text = %s where user_id = any(%s)", ("\N{SNOWMAN}" * 140, friends))
    for friend in friends:
        here.connect(friend)
    with redis.Redis.from_url(town.redis_url) as client:
        await eventually(lambda: client.get(f"presence:user:{friends[-1]}") is not None)
    phone = here.connect(bob)
    frames: list[Update] = []
    with trio.fail_after(WAIT_S):
        while sum(len(payload["users"]) for payload in frames) < 600:
            frames += updates(phone)
            await trio.sleep(0.01)
    assert [payload.get("snapshot", False) for payload in frames][:2] == [True, False]
    assert {user["user_id"] for payload in frames for user in payload["users"]} == set(map(str, friends))
    assert all(len(msgspec.json.encode(payload)) < 256 * 1024 for payload in frames)


async def test_a_connection_without_room_gets_the_newest_later(town: Town) -> None:
    bob, (alice,) = await town.friends()
    here = await town.process()
    laptop = here.connect(alice)
    await snapshot(laptop)
    laptop.size = 128 * 1024
    phone = here.connect(bob)
    await eventually(lambda: len(here.presence._onlookers._waiting) > 0)
    here.leave(phone)
    await eventually(lambda: here.presence._here.keys() == {alice})
    await trio.sleep(4 * REST_S)
    assert laptop.frames == []
    laptop.size = 0
    await told(laptop, bob, "offline")
