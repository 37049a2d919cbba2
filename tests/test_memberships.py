"""Who sees which entry: the cache of stays against the one sentence that defines it, over all short histories.

Bob's device catches up by one page at head h and is fed live from h; the process's cache was loaded at head l,
when its tailer stood at t. Whatever t <= h and t <= l are, bob gets exactly the entries in [joined, left], both ends included.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import UUID, uuid4

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from uim.chat import memberships
from uim.chat.memberships import Membership, Memberships
from uim.model.message import Entry

ALICE, BOB, CYD, ROOM = uuid4(), uuid4(), uuid4(), uuid4()
NOW = datetime(2026, 1, 1, tzinfo=UTC)
LONGEST = 6

Stay = tuple[int, int | None]
EVENT_OF = {"A": "participant_added", "R": "participant_removed", "L": "participant_left"}


def entry(message_id: int, what: str, user_id: UUID = BOB) -> Entry:
    """`t` a text, `A` added, `R` removed, `L` left, `D` the group's end."""
    if what == "t":
        return Entry(message_id, ROOM, message_id, ALICE, f"c{message_id}", "hello", "text", None, NOW)
    event = {"event": "deleted"} if what == "D" else {"event": EVENT_OF[what], "user_id": str(user_id)}
    return Entry(message_id, ROOM, message_id, ALICE, None, "", "system", msgspec.json.encode(event).decode(), NOW)


def histories() -> Iterator[str]:
    """All valid logs up to LONGEST entries: nobody is added twice or removed while out."""
    for length in range(1, LONGEST + 1):
        for log in itertools.product("tAR", repeat=length):
            members = [what for what in log if what != "t"]
            if members == ["A", "R"] * (len(members) // 2) + ["A"] * (len(members) % 2):
                yield "".join(log)


def stays(log: str, up_to: int) -> list[Stay]:
    """What the table holds of bob at that head."""
    found: list[Stay] = []
    for at, what in enumerate(log[:up_to], start=1):
        if what == "A":
            found.append((at, None))
        elif what in "RLD" and found and found[-1][1] is None:
            found[-1] = (found[-1][0], at)
    return found


def seen_in(found: list[Stay], message_id: int) -> bool:
    return any(joined <= message_id and (left is None or message_id <= left) for joined, left in found)


def loaded(log: str, at_head: int) -> Memberships:
    cache = Memberships()
    table = {BOB: stays(log, at_head)} if stays(log, at_head) else {}
    cache.learn([ROOM], {ROOM: table} if table else {})
    return cache


def test_a_page_and_the_live_feed_give_bob_his_stays_and_nothing_else_whenever_the_cache_was_loaded() -> None:
    cases = 0
    for log in histories():
        size = len(log)
        ideal = {at for at in range(1, size + 1) if seen_in(stays(log, size), at)}
        for page_head in range(size + 1):
            by_page = {at for at in range(1, page_head + 1) if seen_in(stays(log, page_head), at)}
            for tailer_at in range(page_head + 1):
                for load_head in range(tailer_at, size + 1):
                    cases += 1
                    cache = loaded(log, load_head)
                    live = set(passed_to_bob(cache, log, tailer_at))
                    got = by_page | {at for at in live if at > page_head}
                    assert got == ideal, (log, page_head, tailer_at, load_head)
    assert cases > 10_000


def passed_to_bob(cache: Memberships, log: str, tailer_at: int) -> Iterator[int]:
    """The tailer's step for each entry above its position."""
    for at in range(tailer_at + 1, len(log) + 1):
        passing = entry(at, log[at - 1])
        cache.follow(passing)
        membership = cache.get(ROOM)
        assert membership is not None
        audience = membership.audience(at)
        assert (BOB in audience) == membership.sees(BOB, at)
        if BOB in audience:
            yield at


def test_at_the_end_of_every_history_bob_is_a_member_if_the_last_word_was_added() -> None:
    for log in histories():
        for load_head in range(len(log) + 1):
            cache = loaded(log, load_head)
            list(passed_to_bob(cache, log, 0))
            membership = cache.get(ROOM)
            assert membership is not None
            words = log.replace("t", "")
            assert membership.is_member(BOB) == words.endswith("A")


@given(st.lists(st.tuples(st.sampled_from("tARLD"), st.sampled_from([ALICE, BOB, CYD])), max_size=30), st.data())
def test_three_people_come_and_go_and_each_sees_their_own_stays(steps: list[tuple[str, UUID]], data: st.DataObject) -> None:
    inside: set[UUID] = set()
    log: list[Entry] = []
    table: dict[UUID, list[Stay]] = {}
    tables: list[dict[UUID, list[Stay]]] = [{}]
    for what, user_id in steps:
        if (what == "A" and user_id in inside) or (what in "RL" and user_id not in inside) or (what == "D" and not inside):
            continue
        at = len(log) + 1
        log.append(entry(at, what, user_id))
        if what == "A":
            inside.add(user_id)
            table.setdefault(user_id, []).append((at, None))
        leavers = [user_id] if what in "RL" else list(inside) if what == "D" else []
        for leaver in leavers:
            inside.discard(leaver)
            table[leaver][-1] = (table[leaver][-1][0], at)
        tables.append({who: list(found) for who, found in table.items()})
    load_head = data.draw(st.integers(0, len(log)))
    start = data.draw(st.integers(0, load_head))
    cache = Memberships()
    cache.learn([ROOM], {ROOM: tables[load_head]})
    for passing in log[start:]:
        cache.follow(passing)
        membership = cache.get(ROOM)
        assert membership is not None
        should = {who for who, found in table.items() if seen_in(found, passing.message_id)}
        assert set(membership.audience(passing.message_id)) == should


def test_a_member_is_in_the_audience_once_after_any_number_of_stays() -> None:
    membership = Membership({BOB: [(1, 3), (5, 7), (9, None)]})
    assert [list(membership.audience(at)).count(BOB) for at in range(1, 12)] == [1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1]


def test_a_conversation_that_is_not_known_is_asked_for_once_and_then_kept() -> None:
    cache = Memberships()
    first, second = entry(1, "t"), entry(2, "t")
    assert cache.unknown([first, second]) == [ROOM]
    cache.learn([ROOM], {ROOM: {BOB: [(1, None)]}})
    assert cache.unknown([first, second]) == []
    cache.learn([ROOM], {})  # an older reading: what is here has followed the log and stays
    membership = cache.get(ROOM)
    assert membership is not None and membership.is_member(BOB)


def test_a_conversation_without_any_stay_has_no_audience() -> None:
    cache = Memberships()
    cache.learn([ROOM], {})
    membership = cache.get(ROOM)
    assert membership is not None
    assert list(membership.audience(1)) == []


def test_the_cache_is_bounded_and_forgets_what_was_used_least() -> None:
    cache = Memberships()
    rooms = [uuid4() for _ in range(memberships.MAX_CONVERSATIONS + 10)]
    cache.learn(rooms[:-10], {})
    assert cache.get(rooms[0]) is not None
    cache.learn(rooms[-10:], {})
    cache.shrink()
    assert cache.get(rooms[0]) is not None
    assert cache.get(rooms[1]) is None
    assert sum(cache.get(room) is not None for room in rooms) == memberships.MAX_CONVERSATIONS
