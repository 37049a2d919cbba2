"""The way in: turns, the line, and the times at which those who are sent away come back. On a clock that jumps."""

from __future__ import annotations

import random
from typing import Any
from uuid import UUID, uuid4

import pytest
import trio
import trio.testing

from tests.test_http_front import Turns
from uim.live.arrivals import (
    LEAST_RETURN_S,
    MOST_RETURN_S,
    RETURN_WITHIN_S,
    RETURNS_PER_S,
    Arrivals,
    OverCapacity,
)

pytestmark = pytest.mark.timeout(20)
ALICE = uuid4()


def arrivals(**changed: Any) -> Arrivals:
    return Arrivals(**{"at_once": 2, "per_user": 20, "randomness": random.Random(7), "per_s": 1_000.0, "wait_s": 5.0, **changed})


async def come(way_in: Arrivals, told: list[tuple[int, str, float]], number: int, user_id: UUID, opens_for_s: float) -> None:
    try:
        with await way_in.turn(user_id):
            told.append((number, "opens", trio.current_time()))
            await trio.sleep(opens_for_s)
    except OverCapacity:
        told.append((number, "away", trio.current_time()))


async def crowd(way_in: Arrivals, count: int, *, opens_for_s: float = 1.0) -> list[tuple[int, str, float]]:
    """So many at once, each another user: what became of each, and when after their coming."""
    told: list[tuple[int, str, float]] = []
    began_at = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(come, way_in, told, number, uuid4(), opens_for_s)
            await trio.testing.wait_all_tasks_blocked()  # so that they come in this order
    return [(number, what, at - began_at) for number, what, at in told]


async def test_so_many_open_at_once_and_the_others_follow_in_the_order_in_which_they_came(autojump_clock: trio.testing.MockClock) -> None:
    told = await crowd(arrivals(), 6)
    assert [(number, what) for number, what, _ in told] == [(number, "opens") for number in range(6)]
    assert [round(at) for _, _, at in told] == [0, 0, 1, 1, 2, 2]


async def test_turns_are_given_no_quicker_than_the_rate(autojump_clock: trio.testing.MockClock) -> None:
    told = await crowd(arrivals(at_once=50, per_s=10.0), 50, opens_for_s=0.0)
    assert [what for _, what, _ in told] == ["opens"] * 50
    assert told[-1][2] == pytest.approx(4.9, abs=0.01)


async def test_who_has_stood_in_line_for_too_long_is_sent_away_and_so_is_who_finds_it_full(autojump_clock: trio.testing.MockClock) -> None:
    way_in = arrivals(max_waiting=20)
    told = await crowd(way_in, 30)
    assert [number for number, what, at in told if what == "away" and at < 0.1] == list(range(22, 30)), "2 open, 20 wait"
    # Those at the front when the time is up have their turn just then.
    assert {number for number, what, at in told if what == "away" and at > 4.9} >= set(range(12, 22))
    assert {number for number, what, _ in told if what == "opens"} >= set(range(10))
    assert way_in.waiting == 0
    assert [what for _, what, _ in await crowd(way_in, 2)] == ["opens"] * 2, "the places are free again"


async def test_a_user_has_only_so_many_in_line(autojump_clock: trio.testing.MockClock) -> None:
    way_in = arrivals(per_user=3)
    told: list[tuple[int, str, float]] = []
    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(come, way_in, told, number, ALICE, 1.0)
            await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(come, way_in, told, 99, uuid4(), 1.0)
    assert [number for number, what, _ in told if what == "away"] == [5, 6, 7], "2 open, 3 wait"
    assert (99, "opens") in [(number, what) for number, what, _ in told]


async def test_who_leaves_the_line_or_is_cancelled_in_a_turn_keeps_no_place(autojump_clock: trio.testing.MockClock) -> None:
    way_in = arrivals(per_s=1.0)
    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(come, way_in, [], number, uuid4(), 60.0)
        await trio.sleep(1.5)  # one of them opens, one has a place and waits for the rate, the others stand in line
        nursery.cancel_scope.cancel()
    assert way_in.waiting == 0
    assert [what for _, what, _ in await crowd(way_in, 2, opens_for_s=0.0)] == ["opens"] * 2


async def test_a_turn_ends_once(autojump_clock: trio.testing.MockClock) -> None:
    way_in = arrivals(at_once=1)
    with await way_in.turn(ALICE) as turn:
        turn.end()
    told = await crowd(way_in, 2)
    assert [round(at) for _, _, at in told] == [0, 1], "one at a time as before"


async def test_when_the_server_stops_the_line_is_dissolved_and_nobody_has_a_turn_any_more(autojump_clock: trio.testing.MockClock) -> None:
    way_in = arrivals()
    told: list[tuple[int, str, float]] = []
    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(come, way_in, told, number, uuid4(), 1.0)
        await trio.sleep(0.5)
        way_in.close()
    assert sorted(what for _, what, _ in told) == ["away"] * 3 + ["opens"] * 2
    assert [what for _, what, _ in await crowd(way_in, 1)] == ["away"]


def returns(way_in: Arrivals, count: int) -> list[float]:
    return [way_in.comes_back_in_s() for _ in range(count)]


async def test_a_thousand_who_are_sent_away_at_once_come_back_evenly_within_five_seconds(autojump_clock: trio.testing.MockClock) -> None:
    told = returns(arrivals(), 1_000)
    assert min(told) >= LEAST_RETURN_S and max(told) <= RETURN_WITHIN_S
    in_each_second = [sum(second <= at < second + 1 for at in told) for second in range(1, 5)]
    assert max(in_each_second) < 1.3 * RETURNS_PER_S


async def test_the_more_are_sent_away_the_later_the_last_come_back(autojump_clock: trio.testing.MockClock) -> None:
    told = returns(arrivals(), 10_000)
    in_each_second = [sum(second <= at < second + 1 for at in told) for second in range(1, 60)]
    assert 30 < max(told) < 1.2 * 10_000 / RETURNS_PER_S
    assert max(in_each_second) < 1.5 * RETURNS_PER_S
    assert max(returns(arrivals(), 100_000)) <= 1.1 * MOST_RETURN_S


async def test_once_those_sent_away_have_come_back_there_is_room_again(autojump_clock: trio.testing.MockClock) -> None:
    way_in = arrivals()
    returns(way_in, 10_000)
    await trio.sleep(45)
    assert max(returns(way_in, 100)) <= RETURN_WITHIN_S


async def test_the_words_of_a_closing_frame_are_those_of_the_protocol(autojump_clock: trio.testing.MockClock) -> None:
    name, _, value = arrivals().words().partition("=")
    assert name == "retry_after_ms" and 1_000 <= int(value) <= 5_000


async def test_of_a_crowd_that_leaves_one_goes_in_each_turn_of_the_loop() -> None:
    turns, left = Turns(), list[int]()
    arrivals = Arrivals(per_user=5, randomness=random.Random(1))

    async def leave() -> None:
        await arrivals.departure()
        left.append(turns.number)

    trio.lowlevel.add_instrument(turns)
    try:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(leave)
    finally:
        trio.lowlevel.remove_instrument(turns)
    assert len(set(left)) == 20
