"""Which words are missing: laws of the bookkeeping, over any order, any losses and any repeats."""

from __future__ import annotations

from uuid import UUID, uuid4

from hypothesis import given
from hypothesis import strategies as st

from uim.chat.gaps import GIVE_UP_AFTER_S, GONE_AFTER_S, MAX_SPEAKERS, SILENT_AFTER_S, Gaps, Line


@given(st.lists(st.integers(1, 30), max_size=80), st.integers(0, 30))
def test_each_number_is_taken_once_and_what_is_missing_is_known(numbers: list[int], told_of: int) -> None:
    line = Line()
    taken = [number for number in numbers if line.take(number, 0.0)]
    line.told_of(told_of, 0.0)
    assert sorted(taken) == sorted(set(numbers))
    newest = max([*numbers, told_of])
    missing = set(range(1, newest + 1)) - set(numbers)
    assert line.newest == newest
    assert line.up_to == (min(missing) - 1 if missing else newest)
    assert (line.missing_for_s(1.0) > 0) == bool(missing)


@given(st.integers(1, 30), st.sets(st.integers(1, 30)), st.sets(st.integers(31, 60)))
def test_what_was_missing_is_given_up_and_not_what_has_come_to_be_missing_since(
    newest: int, came: set[int], later: set[int]
) -> None:
    line = Line()
    line.told_of(newest, 0.0)
    taken = {number for number in came if number <= newest and line.take(number, 0.0)}
    is_missing = taken != set(range(1, newest + 1))
    for number in later:
        line.take(number, 1.0)
    line.give_up(2.0)
    if is_missing:
        assert line.up_to >= newest
        still = set(range(newest + 1, line.newest + 1)) - later
        assert all(line.take(number, 3.0) for number in still), "what comes after all is taken"
        assert line.up_to == line.newest and line.missing_for_s(4.0) == 0.0


def test_a_gap_that_is_closed_begins_no_time_for_the_next() -> None:
    line = Line()
    line.take(2, 0.0)
    assert line.missing_for_s(5.0) == 5.0
    line.take(4, 5.0)
    line.take(1, 6.0)
    assert line.up_to == 2 and line.missing_for_s(6.0) == 0.0
    assert line.missing_for_s(8.0) == 2.0


ONE, OTHER = uuid4(), uuid4()


def test_a_process_that_falls_silent_is_missed_until_it_is_gone() -> None:
    gaps = Gaps()
    gaps.heard(ONE, 0, 10.0)
    assert not gaps.are_there(10.0 + SILENT_AFTER_S - 0.1, others=1)
    assert gaps.are_there(10.0 + SILENT_AFTER_S + 0.1, others=1)
    assert gaps.are_there(10.0 + SILENT_AFTER_S + 0.1, others=0)
    assert not gaps.are_there(10.0 + GONE_AFTER_S, others=0)


def test_a_process_that_was_never_heard_is_missed() -> None:
    gaps = Gaps()
    gaps.heard(ONE, 0, 10.0)
    assert gaps.are_there(10.5, others=2)
    gaps.heard(OTHER, 0, 10.5)
    assert not gaps.are_there(10.6, others=2)


def test_what_was_said_before_we_began_is_not_missed_and_what_was_said_by_one_who_came_later_is() -> None:
    gaps = Gaps()
    gaps.begin({ONE: 500})
    gaps.heard(ONE, 500, 0.0)
    assert not gaps.are_there(0.1, others=1)
    gaps.heard(OTHER, 1, 0.2)
    assert gaps.are_there(0.3, others=2)
    assert gaps.up_to() == {ONE: 500, OTHER: 0}
    assert gaps.take(OTHER, 1, 0.4) and not gaps.take(OTHER, 1, 0.5) and not gaps.take(ONE, 500, 0.5)
    assert not gaps.are_there(0.6, others=2)


def test_what_is_nowhere_to_be_found_is_given_up_after_a_while() -> None:
    gaps = Gaps()
    gaps.heard(ONE, 3, 0.0)
    gaps.give_up(GIVE_UP_AFTER_S - 1)
    assert gaps.are_there(GIVE_UP_AFTER_S - 1, others=0)
    gaps.heard(ONE, 3, GIVE_UP_AFTER_S + 1)
    gaps.give_up(GIVE_UP_AFTER_S + 1)
    assert not gaps.are_there(GIVE_UP_AFTER_S + 1, others=1)


def test_it_remembers_a_bounded_number_of_processes_the_last_heard() -> None:
    gaps = Gaps()
    for number in range(MAX_SPEAKERS + 100):
        gaps.heard(UUID(int=number), 1, float(number))
        gaps.take(UUID(int=number), 1, float(number))
    assert len(gaps.up_to()) == MAX_SPEAKERS
    assert UUID(int=MAX_SPEAKERS + 99) in gaps.up_to()
