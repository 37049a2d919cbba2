"""What one user may have under way, and how often; and a connection's pace. All waiting is Trio's: the clock jumps."""

from __future__ import annotations

from uuid import uuid4

import pytest
import trio
import trio.testing

from uim.chat.turns import Allowance, Turns
from uim.live.pacing import EARNED_PER_S, MOST_SAVED, Pace

pytestmark = pytest.mark.timeout(10)


async def test_a_user_has_so_many_turns_and_others_have_theirs(autojump_clock: trio.testing.MockClock) -> None:
    turns, alice, bob = Turns(2), uuid4(), uuid4()
    order: list[int] = []

    async def work(number: int) -> None:
        async with turns.turn(alice):
            order.append(number)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(work, number)
            await trio.testing.wait_all_tasks_blocked()
        assert order == [0, 1]
        with trio.fail_after(0.1):
            async with turns.turn(bob):
                pass
    assert (order[:2], set(order[2:4]), order[4:]) == ([0, 1], {2, 3}, [4]), "those who wait come in order"
    assert trio.current_time() == pytest.approx(3, abs=0.5)
    assert not turns._busy and not turns._waiting, "nobody is remembered"


@pytest.mark.parametrize("then", ["nothing", "called, then cancelled", "cancelled, then called"])
async def test_who_is_cancelled_in_line_takes_no_turn_along(then: str) -> None:
    turns, alice = Turns(1), uuid4()
    await turns.take(alice)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(turns.take, alice)
            await trio.testing.wait_all_tasks_blocked()
            if then == "called, then cancelled":
                turns.give_back(alice)
            scope.cancel()
            if then == "cancelled, then called":
                turns.give_back(alice)
    if then != "cancelled, then called":
        assert turns._busy == {alice: 1}, "it has its turn, or the first still has its own"
        turns.give_back(alice)
    assert not turns._busy and not turns._waiting


def test_an_allowance_is_spent_at_once_and_earned_in_time() -> None:
    now = 0.0
    allowance = Allowance(most=3, per_s=0.5, clock=lambda: now)
    alice, bob = uuid4(), uuid4()
    assert [allowance.spend(alice) for _ in range(4)] == [0, 0, 0, 2]
    assert allowance.spend(bob) == 0
    now = 1.0
    assert allowance.spend(alice) == 1
    now = 2.0
    assert allowance.spend(alice) == 0
    now = 20.0
    assert allowance.spend(bob) == 0
    assert list(allowance._left) == [bob], "who has all of it again is forgotten"


async def test_a_pace_saves_up_and_then_waits_for_what_it_owes(autojump_clock: trio.testing.MockClock) -> None:
    pace = Pace()
    for _ in range(int(MOST_SAVED)):
        await pace.spend(1)
    assert trio.current_time() == pytest.approx(0, abs=0.01)
    await pace.spend(EARNED_PER_S)
    assert trio.current_time() == pytest.approx(1, abs=0.01)
    await trio.sleep(1_000)
    before = trio.current_time()
    await pace.spend(MOST_SAVED + EARNED_PER_S)
    assert trio.current_time() - before == pytest.approx(1, abs=0.01), "it saves up so much, and no more"
