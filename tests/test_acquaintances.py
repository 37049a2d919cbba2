"""What is remembered of friendships and choices for an outage of the database: laws, bounds and cost; and the two lines of changes."""

from __future__ import annotations

import tracemalloc
from datetime import UTC, datetime
from uuid import UUID, uuid4

from hypothesis import given, settings
from hypothesis import strategies as st

from uim.chat.acquaintances import MAX_UNLEARNT, Acquaintances
from uim.chat.changes import Change, Changes
from uim.model.presence import Choices

CHOICES = Choices("available", None, True, datetime(2026, 1, 5, tzinfo=UTC))
# Ids whose bytes also lie across two others.
PEOPLE = [UUID(bytes=one) for one in (b"\0" * 16, b"\1" * 16, b"\0" * 8 + b"\1" * 8, b"\1" * 8 + b"\0" * 8)]
people = st.integers(0, len(PEOPLE) - 1)
some = st.sets(people).map(sorted)


async def friends_in(known: Acquaintances) -> set[tuple[UUID, UUID]]:
    met: list[tuple[UUID, UUID]] = []
    await known.for_each_friend_of(PEOPLE, lambda viewer_id, user_id: met.append((viewer_id, user_id)))
    assert len(met) == len(set(met)), "each once"
    return set(met)


steps = st.one_of(
    st.tuples(st.just("begin"), st.just(0), st.just([])),
    st.tuples(st.just("all"), people, some),
    st.tuples(st.just("one"), people, people.map(lambda one: [one])),
    st.tuples(st.just("part"), people, people.map(lambda one: [one])),
    st.tuples(st.just("leaves"), people, st.just([])),
)


@settings(max_examples=100, derandomize=True)
@given(st.lists(steps, min_size=20, max_size=40))
async def test_friends_are_those_of_the_last_reading_without_who_was_parted_since_it_began(
    done: list[tuple[str, int, list[int]]],
) -> None:
    known = Acquaintances()
    model: dict[UUID, set[UUID]] = {}
    parted: set[tuple[UUID, UUID]] = set()
    for what, number, others in done:
        viewer_id, other_ids = PEOPLE[number], [PEOPLE[other] for other in others]
        if what == "begin":
            known.begin()
            parted.clear()
        elif what == "all":
            known.remember_friends(viewer_id, other_ids)
            model[viewer_id] = {other for other in other_ids if (viewer_id, other) not in parted}
        elif what == "one":
            known.remember_friend(viewer_id, other_ids[0])
            if viewer_id in model and (viewer_id, other_ids[0]) not in parted:
                model[viewer_id].add(other_ids[0])
        elif what == "part":
            known.part(viewer_id, other_ids[0])
            parted.add((viewer_id, other_ids[0]))
            model.get(viewer_id, set()).discard(other_ids[0])
        else:
            known.forget_viewer(viewer_id)
            model.pop(viewer_id, None)
        assert known._count == sum(map(len, model.values()))
    assert await friends_in(known) == {(viewer_id, friend_id) for viewer_id, friends in model.items() for friend_id in friends}


def test_choices_made_while_they_are_read_are_not_known_and_who_is_gone_is_forgotten() -> None:
    known = Acquaintances()
    bob, cyd = uuid4(), uuid4()
    known.begin()
    known.remember_choices([bob, cyd], {bob: CHOICES, cyd: CHOICES})
    assert known.choices_of(bob) == CHOICES
    known.begin()
    known.forget_choices(bob)
    known.remember_choices([bob, cyd], {bob: CHOICES})
    assert known.choices_of(bob) is None and known.choices_of(cyd) is None
    known.begin()
    known.remember_choices([bob], {bob: CHOICES})
    assert known.choices_of(bob) == CHOICES
    known.forget_all_choices()
    known.remember_choices([bob], {bob: CHOICES})
    assert known.choices_of(bob) is None, "a reading that began before that brings nothing"


async def test_too_much_is_forgotten_the_oldest_first() -> None:
    known = Acquaintances(max_friends=5, max_people=3)
    known.begin()
    for viewer_id in PEOPLE[:3]:
        known.remember_friends(viewer_id, PEOPLE[:2])
    assert {viewer_id for viewer_id, _ in await friends_in(known)} == set(PEOPLE[1:3])
    for user_id in PEOPLE:
        known.remember_choices([user_id], {user_id: CHOICES})
    assert [known.choices_of(user_id) is None for user_id in PEOPLE] == [True, False, False, False]
    for number in range(MAX_UNLEARNT + 2):
        known.forget_choices(UUID(int=number + 1))
    known.remember_friends(PEOPLE[0], PEOPLE[:1])
    assert {viewer_id for viewer_id, _ in await friends_in(known)} == set(PEOPLE[1:3]), "more changed than is kept in mind"


def test_a_viewer_with_50_friends_costs_less_than_a_kilobyte() -> None:
    viewers, friends = [uuid4() for _ in range(2_000)], [uuid4() for _ in range(50)]
    known = Acquaintances()
    known.begin()
    tracemalloc.start()
    try:
        for viewer_id in viewers:
            known.remember_friends(viewer_id, friends)
        cost = tracemalloc.get_traced_memory()[0] / len(viewers)
    finally:
        tracemalloc.stop()
    assert cost < 1_024, cost


# -- the two lines ------------------------------------------------------------------------------------------------------------

ONLINE, OFFLINE, CHOSEN = Change(True), Change(False), Change(True, chosen=True)


def test_a_newer_change_takes_the_place_of_one_that_is_owed_or_could_not_be_told() -> None:
    bob, cyd = uuid4(), uuid4()
    changes = Changes()
    changes.put(bob, CHOSEN)
    assert changes.owe(10) == {bob: CHOSEN}
    assert changes.owe(10) == {}, "told from memory once"
    changes.put(bob, OFFLINE)
    assert len(changes) == 1
    batch = changes.take(10)
    assert batch.all() == {bob: Change(False, chosen=True)}, "the choice was never told in full"
    changes.put(bob, ONLINE)
    changes.put(cyd, ONLINE)
    changes.put_back(batch)
    assert changes.take(10).all() == {bob: CHOSEN, cyd: ONLINE}


def test_what_was_told_from_memory_is_told_in_full_behind_the_news_and_dropped_first() -> None:
    bob, cyd, eve = uuid4(), uuid4(), uuid4()
    changes = Changes()
    changes.put(bob, ONLINE)
    changes.owe(10)
    changes.put(cyd, ONLINE)
    batch = changes.take(10)
    assert (batch.news, batch.owed) == ({cyd: ONLINE}, {bob: ONLINE})
    changes.put_back(batch)
    assert changes.owe(10) == {cyd: ONLINE}
    changes.put(eve, ONLINE)
    changes.drop()
    assert changes.take(10).all() == {eve: ONLINE}
    changes.put(eve, ONLINE)
    changes.drop()
    assert len(changes) == 0
