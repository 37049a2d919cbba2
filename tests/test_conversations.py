"""Conversations: what is judged, what is raced for, what each member is shown.

Real PostgreSQL and the real writer; two verbs at once are two tasks that enter the writer's line together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.rooms import Rooms, roles, rooms_on, rows_touched
from uim.errors import UIMError
from uim.model.conversation import ConversationView, Removed, Seat, heir_of, may_remove
from uim.model.ids import rfc3339
from uim.store import conversations, seats
from uim.wire.paging import mark_of


@pytest.fixture
async def rooms(database_url: str) -> AsyncIterator[Rooms]:
    async with rooms_on(database_url) as made:
        yield made


async def refused(code: str, attempt: Awaitable[object]) -> UIMError:
    with pytest.raises(UIMError) as refusal:
        await attempt
    assert refusal.value.code == code, refusal.value
    return refusal.value


async def at_once(*attempts: Callable[[], Awaitable[object]]) -> list[object]:
    """What each of these gave, or the code of its refusal."""
    results: list[object] = [None] * len(attempts)

    async def one(place: int, attempt: Callable[[], Awaitable[object]]) -> None:
        try:
            results[place] = await attempt()
        except UIMError as refusal:
            results[place] = refusal.code

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for place, attempt in enumerate(attempts):
                nursery.start_soon(one, place, attempt)
    return results


async def listed(rooms: Rooms, user_id: UUID, **question: Any) -> list[UUID]:
    page = await rooms.conversations.page(user_id=user_id, **{"changed_since": None, "cursor": None, "limit": 100, **question})
    return [item.conversation_id for item in page.items]


# -- making -------------------------------------------------------------------------------------------------------------


async def test_both_open_their_one_on_one_at_once_and_get_the_same(rooms: Rooms) -> None:
    ada, bob = await rooms.people("ada", "bob")
    make = rooms.conversations.make_one_on_one
    results = await at_once(lambda: make(user_id=ada, other_id=bob), lambda: make(user_id=bob, other_id=ada))
    (one, first_made), (other, second_made) = results  # type: ignore[misc]  # refusals would fail here
    assert one.conversation_id == other.conversation_id
    assert {first_made, second_made} == {True, False}
    assert rooms.made == [one.conversation_id]
    assert rooms.appended == []


async def test_a_one_on_one_with_oneself_or_with_nobody_is_refused(rooms: Rooms) -> None:
    ada, gone = await rooms.people("ada", "gone")
    await rooms.run("update users set deleted_at = now() where user_id = %s", gone)
    make = rooms.conversations.make_one_on_one
    await refused("validation_failed", make(user_id=ada, other_id=ada))
    await refused("not_found", make(user_id=ada, other_id=uuid4()))
    await refused("not_found", make(user_id=ada, other_id=gone))


async def test_a_block_is_told_to_the_blocker_alone(rooms: Rooms) -> None:
    ada, bob, cyd, dan = await rooms.people("ada", "bob", "cyd", "dan")
    await rooms.block(ada, bob)
    make, group = rooms.conversations.make_one_on_one, rooms.conversations.make_group
    await refused("blocked", make(user_id=ada, other_id=bob))
    await refused("forbidden", make(user_id=bob, other_id=ada))
    await refused("blocked", group(user_id=ada, name="x", member_ids=[cyd, bob]))
    await refused("forbidden", group(user_id=bob, name="x", member_ids=[cyd, ada]))
    tea = await rooms.group(ada, cyd, dan)
    await refused("blocked", rooms.conversations.add(user_id=ada, conversation_id=tea, user_ids=[bob]))
    lunch = await rooms.group(bob, cyd, dan)
    await refused("forbidden", rooms.conversations.add(user_id=bob, conversation_id=lunch, user_ids=[ada]))
    # A third one may bring both together: a block is between two.
    assert await rooms.group(cyd, ada, bob)


async def test_a_one_on_one_that_is_there_is_found_across_a_block(rooms: Rooms) -> None:
    ada, bob = await rooms.people("ada", "bob")
    pair = await rooms.pair(ada, bob)
    await rooms.block(ada, bob)
    view, made = await rooms.conversations.make_one_on_one(user_id=bob, other_id=ada)
    assert (view.conversation_id, made) == (pair, False)


async def test_a_group_has_three_to_fifty_different_members_who_exist(rooms: Rooms) -> None:
    ada, bob, cyd = await rooms.people("ada", "bob", "cyd")
    make = rooms.conversations.make_group
    await refused("validation_failed", make(user_id=ada, name="x", member_ids=[bob]))
    await refused("validation_failed", make(user_id=ada, name="x", member_ids=[bob, ada]))
    await refused("validation_failed", make(user_id=ada, name="x", member_ids=[bob, cyd, bob]))
    await refused("validation_failed", make(user_id=ada, name="x", member_ids=[uuid4() for _ in range(50)]))
    await refused("not_found", make(user_id=ada, name="x", member_ids=[bob, uuid4()]))
    assert rooms.appended == []
    view, made = await make(user_id=ada, name="x", member_ids=[ada, bob, cyd])
    assert made and roles(view, rooms.names) == {"ada": "owner", "bob": "member", "cyd": "member"}


async def test_a_client_id_answers_with_the_first_conversation_whatever_is_asked(rooms: Rooms) -> None:
    ada, bob, cyd = await rooms.people("ada", "bob", "cyd")
    mine = uuid4()
    make = rooms.conversations.make_group
    first, made = await make(user_id=ada, name="Tea", member_ids=[bob, cyd], client_conversation_id=mine)
    assert made
    again, made = await make(user_id=ada, name="Coffee", member_ids=[cyd, bob], client_conversation_id=mine)
    assert (again.conversation_id, again.name, made) == (first.conversation_id, "Tea", False)
    same, made = await rooms.conversations.make_one_on_one(user_id=ada, other_id=bob, client_conversation_id=mine)
    assert (same.conversation_id, made) == (first.conversation_id, False)
    other, made = await make(user_id=bob, name="Tea", member_ids=[ada, cyd], client_conversation_id=mine)
    assert made and other.conversation_id != first.conversation_id
    assert len(rooms.appended) == 6


# -- members ------------------------------------------------------------------------------------------------------------


async def test_two_adds_at_once_never_exceed_fifty(rooms: Rooms) -> None:
    ada, *others = await rooms.people("ada", *(f"user{number}" for number in range(54)))
    tea = await rooms.group(ada, *others[:44])
    add = rooms.conversations.add
    results = await at_once(
        lambda: add(user_id=ada, conversation_id=tea, user_ids=others[44:49]),
        lambda: add(user_id=ada, conversation_id=tea, user_ids=others[49:54]),
    )
    assert sorted(isinstance(result, ConversationView) for result in results) == [False, True]
    assert "group_full" in results
    assert len((await rooms.view(ada, tea)).participants) == 50
    # All or none: of the refused five nobody got an entry.
    assert len(rooms.appended) == 1 + 44 + 5


async def test_who_leaves_while_being_removed_goes_once(rooms: Rooms) -> None:
    ada, bob, cyd = await rooms.people("ada", "bob", "cyd")
    tea = await rooms.group(ada, bob, cyd)
    remove = rooms.conversations.remove
    results = await at_once(
        lambda: remove(user_id=ada, conversation_id=tea, target_id=bob),
        lambda: remove(user_id=bob, conversation_id=tea, target_id=bob),
    )
    assert sorted(map(str, results)) == ["None", "not_found"]
    assert len(rooms.appended) == 4
    assert roles(await rooms.view(ada, tea), rooms.names) == {"ada": "owner", "cyd": "member"}


async def test_two_owners_to_be_at_once_leave_one_owner(rooms: Rooms) -> None:
    ada, bob, cyd = await rooms.people("ada", "bob", "cyd")
    tea = await rooms.group(ada, bob, cyd)
    change = rooms.conversations.change_role
    results = await at_once(
        lambda: change(user_id=ada, conversation_id=tea, target_id=bob, role="owner"),
        lambda: change(user_id=ada, conversation_id=tea, target_id=cyd, role="owner"),
    )
    assert "forbidden" in results
    assert sorted(roles(await rooms.view(ada, tea), rooms.names).values()) == ["admin", "member", "owner"]


async def test_what_a_text_sent_after_leaving_meets(rooms: Rooms) -> None:
    ada, bob, cyd = await rooms.people("ada", "bob", "cyd")
    tea = await rooms.group(ada, bob, cyd)
    await rooms.conversations.remove(user_id=bob, conversation_id=tea, target_id=bob)
    await refused("not_found", rooms.say(bob, tea, "one more thing"))


async def test_a_stranger_and_an_ex_member_find_nothing_anywhere(rooms: Rooms) -> None:
    ada, bob, cyd, eve, fay = await rooms.people("ada", "bob", "cyd", "eve", "fay")
    tea = await rooms.group(ada, bob, cyd, fay)
    await rooms.conversations.remove(user_id=ada, conversation_id=tea, target_id=fay)
    theirs, nothing = rooms.conversations, uuid4()
    for who in (eve, fay):
        for where in (tea, nothing):
            me: dict[str, Any] = {"user_id": who, "conversation_id": where}
            await refused("not_found", theirs.view(**me))
            await refused("not_found", theirs.rename(**me, name="x"))
            await refused("not_found", theirs.delete(**me))
            await refused("not_found", theirs.add(**me, user_ids=[bob]))
            await refused("not_found", theirs.remove(**me, target_id=bob))
            await refused("not_found", theirs.remove(**me, target_id=who))
            await refused("not_found", theirs.change_role(**me, target_id=bob, role="admin"))
            await refused("not_found", rooms.history.page(**me, limit=50))
            await refused("not_found", rooms.history.message(**me, message_id=1))
        assert await listed(rooms, who) == []
    assert len(rooms.appended) == 5


async def test_the_account_conversation_is_nowhere(rooms: Rooms) -> None:
    (ada,) = await rooms.people("ada")
    async with rooms.pool.connection() as tx:
        row = await (await tx.execute("select conversation_id from conversations where created_by = %s", (ada,))).fetchone()
    assert row is not None
    me: dict[str, Any] = {"user_id": ada, "conversation_id": row[0]}
    assert await listed(rooms, ada) == []
    assert await listed(rooms, ada, changed_since=datetime(2000, 1, 1, tzinfo=UTC)) == []
    await refused("not_found", rooms.conversations.view(**me))
    await refused("not_found", rooms.conversations.delete(**me))
    await refused("not_found", rooms.history.page(**me, limit=50))


async def test_an_owner_leaves_by_handing_over_first_and_the_last_one_ends_the_group(rooms: Rooms) -> None:
    ada, bob, cyd = await rooms.people("ada", "bob", "cyd")
    tea = await rooms.group(ada, bob, cyd)
    await rooms.conversations.change_role(user_id=ada, conversation_id=tea, target_id=cyd, role="admin")
    for leaver in (ada, cyd, bob):
        await rooms.conversations.remove(user_id=leaver, conversation_id=tea, target_id=leaver)
    assert (await rooms.told(tea))[4:] == [
        "ada: role_changed role=owner user_id=cyd",
        "ada: participant_left user_id=ada",
        "cyd: role_changed role=owner user_id=bob",
        "cyd: participant_left user_id=cyd",
        "bob: participant_left user_id=bob",
    ]
    async with rooms.pool.transaction() as tx:
        assert await seats.locked(tx, tea) is None


async def test_a_verb_that_changes_nothing_appends_nothing(rooms: Rooms) -> None:
    ada, bob, cyd = await rooms.people("ada", "bob", "cyd")
    me: dict[str, Any] = {"user_id": ada, "conversation_id": await rooms.group(ada, bob, cyd, name="Tea")}
    before = (len(rooms.appended), await rooms.view(**me))
    await rooms.conversations.rename(**me, name="Tea")
    await rooms.conversations.add(**me, user_ids=[bob, cyd])
    await rooms.conversations.change_role(**me, target_id=bob, role="member")
    await rooms.conversations.change_role(**me, target_id=ada, role="owner")
    assert (len(rooms.appended), await rooms.view(**me)) == before


async def test_a_verb_locks_the_seats_in_order_those_of_ex_members_too(rooms: Rooms) -> None:
    lowest, *higher = sorted(await rooms.people("ada", "bob", "cyd", "dan"))
    tea = await rooms.group(higher[0], lowest, *higher[1:])
    await rooms.conversations.remove(user_id=lowest, conversation_id=tea, target_id=lowest)
    bring_back = partial(rooms.conversations.add, user_id=higher[0], conversation_id=tea, user_ids=[lowest])
    lock = "select from conversation_participants where conversation_id = %s and user_id = %s for update nowait"
    waiting = "select from pg_stat_activity where application_name = 'uim writer' and wait_event_type = 'Lock'"
    async with trio.open_nursery() as nursery, rooms.pool.connection() as watcher, rooms.pool.transaction() as tx:
        # As receipts do, from the lowest on.
        await tx.execute(lock, (tea, lowest))
        nursery.start_soon(bring_back)
        with trio.fail_after(10):
            while await (await watcher.execute(waiting)).fetchone() is None:
                await trio.lowlevel.checkpoint()
        for user_id in higher:
            await tx.execute(lock, (tea, user_id))
    assert len((await rooms.view(lowest, tea)).participants) == 4


async def test_verbs_of_groups_do_not_touch_a_one_on_one(rooms: Rooms) -> None:
    ada, bob, cyd = await rooms.people("ada", "bob", "cyd")
    me: dict[str, Any] = {"user_id": ada, "conversation_id": await rooms.pair(ada, bob)}
    await refused("not_a_group", rooms.conversations.rename(**me, name="x"))
    await refused("not_a_group", rooms.conversations.add(**me, user_ids=[cyd]))
    await refused("not_a_group", rooms.conversations.remove(**me, target_id=ada))
    await refused("not_a_group", rooms.conversations.change_role(**me, target_id=bob, role="admin"))


SEATS = st.lists(
    st.builds(
        Seat,
        user_id=st.uuids(),
        role=st.sampled_from(["admin", "member"]),
        joined_at=st.datetimes(timezones=st.just(UTC)),
    ),
    max_size=6,
    unique_by=lambda seat: seat.user_id,
)


@given(SEATS, st.uuids())
def test_the_heir_is_the_longest_serving_admin_else_member(others: list[Seat], leaver_id: UUID) -> None:
    leaver = Seat(leaver_id, "owner", datetime(2026, 1, 1, tzinfo=UTC))
    heir = heir_of([leaver, *others], leaver_id)
    if heir is None:
        assert others == []
        return
    ranked = [seat for seat in others if seat.role == "admin"] or others
    assert heir in ranked
    assert heir.joined_at == min(seat.joined_at for seat in ranked)


@pytest.mark.parametrize(
    ("actor", "target", "may"),
    [
        ("owner", "admin", True),
        ("owner", "member", True),
        ("admin", "owner", False),
        ("admin", "admin", False),
        ("admin", "member", True),
        ("member", "member", False),
        ("member", "admin", False),
        ("member", "owner", False),
    ],
)
def test_who_may_remove_whom(actor: str, target: str, may: bool) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert may_remove(Seat(uuid4(), actor, now), Seat(uuid4(), target, now)) is may


# -- what each is shown -------------------------------------------------------------------------------------------------


async def test_unread_counts_others_texts_above_the_mark_within_stays(rooms: Rooms) -> None:
    ada, bob, cyd, dan = await rooms.people("ada", "bob", "cyd", "dan")
    tea = await rooms.group(ada, bob, cyd)
    first = await rooms.say(ada, tea, "one")
    await rooms.say(ada, tea, "two")
    await rooms.say(bob, tea, "my own")
    deleted = await rooms.say(ada, tea, "gone")
    await rooms.run("update messages set content = '', deleted_at = now() where message_id = %s", deleted.message_id)
    assert (await rooms.view(bob, tea)).unread_count == 2
    assert (await rooms.view(cyd, tea)).unread_count == 3
    await rooms.confirm(bob, tea, read=first.message_id)
    assert (await rooms.view(bob, tea)).unread_count == 1

    await rooms.conversations.remove(user_id=ada, conversation_id=tea, target_id=bob)
    await rooms.say(ada, tea, "behind his back")
    await rooms.conversations.add(user_id=ada, conversation_id=tea, user_ids=[bob, dan])
    assert (await rooms.view(bob, tea)).unread_count == 1
    assert (await rooms.view(dan, tea)).unread_count == 0
    await rooms.say(ada, tea, "welcome back")
    async with rooms.pool.connection() as tx:
        counted = await conversations.unread(tx, user_id=bob, conversation_ids=[tea, uuid4()])
        assert counted == {tea: 2}
        assert await conversations.unread(tx, user_id=uuid4(), conversation_ids=[tea]) == {}


async def test_unread_is_counted_to_a_hundred(rooms: Rooms) -> None:
    ada, bob = await rooms.people("ada", "bob")
    pair = await rooms.pair(ada, bob)
    async with trio.open_nursery() as nursery:
        for number in range(101):
            nursery.start_soon(rooms.say, ada, pair, str(number))
    assert (await rooms.view(bob, pair)).unread_count == 100
    assert (await rooms.view(ada, pair)).unread_count == 0


async def test_read_marks_are_shown_where_both_show_them(rooms: Rooms) -> None:
    ada, bob, cyd = await rooms.people("ada", "bob", "cyd")
    tea = await rooms.group(ada, bob, cyd)
    said = (await rooms.say(ada, tea, "hello")).message_id
    for reader in (bob, cyd):
        await rooms.confirm(reader, tea, read=said)
    await rooms.run("update users set read_receipts = false where user_id = %s", cyd)

    async with rooms.pool.connection() as tx:
        seen = await conversations.views_of(tx, conversation_id=tea, user_ids=[ada, bob, cyd, uuid4()])
    marks = {
        rooms.names[viewer]: {rooms.names[other.user_id]: other.last_read_message_id for other in view.participants}
        for viewer, view in seen.items()
    }
    assert marks == {
        "ada": {"ada": 0, "bob": said, "cyd": None},
        "bob": {"ada": 0, "bob": said, "cyd": None},
        "cyd": {"ada": None, "bob": None, "cyd": said},
    }
    assert {other.last_delivered_message_id for other in seen[cyd].participants} == {0, said}
    assert seen[cyd].last_read_message_id == said


async def test_the_last_message_is_the_newest_one_may_see_and_no_deletion(rooms: Rooms) -> None:
    ada, bob, cyd = await rooms.people("ada", "bob", "cyd")
    tea = await rooms.group(ada, bob, cyd)
    said = await rooms.say(ada, tea, "hello")
    await rooms.writer.do(
        lambda _, append: append(
            conversation_id=tea, sender_id=ada, message_type="deletion", event={"target_message_id": said.message_id}
        ),
        key=uuid4(),
    )
    for viewer in (ada, bob):
        last = msgspec.json.decode((await rooms.view(viewer, tea)).last_message or b"null")
        assert last["message_id"] == said.message_id
        assert ("client_message_id" in last) == (viewer == ada)


# -- the list -----------------------------------------------------------------------------------------------------------


async def test_the_list_is_by_newest_activity_and_its_pages_join_up(rooms: Rooms) -> None:
    ada, *others = await rooms.people("ada", *(f"user{number}" for number in range(5)))
    pairs = [await rooms.pair(ada, other) for other in others]
    for place in (3, 0, 4):
        await rooms.say(others[place], pairs[place], "hello")
    expected = [pairs[place] for place in (4, 0, 3, 2, 1)]
    assert await listed(rooms, ada) == expected

    walked: list[UUID] = []
    cursor, pages = None, 0
    while pages == 0 or cursor is not None:
        page = await rooms.conversations.page(user_id=ada, changed_since=None, cursor=cursor, limit=2)
        walked += [item.conversation_id for item in page.items]
        cursor, pages = page.next, pages + 1
    assert (walked, pages) == (expected, 3)


async def test_conversations_of_one_batch_share_their_time_and_no_page_loses_one(rooms: Rooms) -> None:
    ada, *others = await rooms.people("ada", *(f"user{number}" for number in range(6)))
    pairs = [await rooms.pair(ada, other) for other in others]
    async with trio.open_nursery() as nursery:
        for other, pair in zip(others, pairs, strict=True):
            nursery.start_soon(rooms.say, other, pair, "at once")
    walked: list[UUID] = []
    cursor = None
    for _ in pairs:
        page = await rooms.conversations.page(user_id=ada, changed_since=None, cursor=cursor, limit=1)
        walked += [item.conversation_id for item in page.items]
        cursor = page.next
    assert sorted(walked) == sorted(pairs) and cursor is None


async def test_a_hidden_one_on_one_comes_back_with_its_next_message(rooms: Rooms) -> None:
    ada, bob = await rooms.people("ada", "bob")
    pair = await rooms.pair(ada, bob)
    said = await rooms.say(bob, pair, "hello")
    await rooms.conversations.delete(user_id=ada, conversation_id=pair)
    assert await listed(rooms, ada) == []
    assert await listed(rooms, bob) == [pair]
    assert (await rooms.view(ada, pair)).conversation_id == pair
    hidden = rooms.appended[-1]
    assert (hidden.message_type, hidden.sender_id) == ("account", ada)
    assert hidden.event == {"event": "hidden", "conversation_id": str(pair), "up_to": said.message_id}
    assert hidden.conversation_id != pair
    await rooms.say(bob, pair, "still there?")
    assert await listed(rooms, ada) == [pair]


async def changes(rooms: Rooms, user_id: UUID, since: datetime) -> dict[UUID, bool]:
    """What changed, by conversation: True for those that the user is out of. The overlap is taken off here."""
    page = await rooms.conversations.page(user_id=user_id, changed_since=since + timedelta(seconds=5), cursor=None, limit=100)
    return {item.conversation_id: isinstance(item, Removed) for item in page.items}


async def database_time(rooms: Rooms) -> datetime:
    async with rooms.pool.connection() as tx:
        (now,) = await (await tx.execute("select clock_timestamp()")).fetchone() or (None,)
        assert isinstance(now, datetime)
        return now


async def test_changed_since_tells_what_changed_and_nothing_else(rooms: Rooms) -> None:
    ada, bob, cyd, dan = await rooms.people("ada", "bob", "cyd", "dan")
    tea, quiet = await rooms.group(ada, bob, cyd), await rooms.group(ada, bob, dan)
    pair = await rooms.pair(ada, cyd)
    steps: list[tuple[Callable[[], Awaitable[object]], dict[UUID, bool]]] = [
        (lambda: rooms.say(bob, tea, "hello"), {tea: False}),
        (lambda: rooms.confirm(bob, tea, read=2**40), {tea: False}),
        (lambda: rooms.conversations.rename(user_id=ada, conversation_id=tea, name="Coffee"), {tea: False}),
        (lambda: rooms.conversations.add(user_id=ada, conversation_id=tea, user_ids=[dan]), {tea: False}),
        (lambda: rooms.conversations.change_role(user_id=ada, conversation_id=tea, target_id=bob, role="admin"), {tea: False}),
        (lambda: rooms.run("update users set updated_at = clock_timestamp() where user_id = %s", cyd), {tea: False, pair: False}),
        (lambda: rooms.conversations.remove(user_id=ada, conversation_id=tea, target_id=cyd), {tea: False}),
        (lambda: rooms.run("update users set updated_at = clock_timestamp() where user_id = %s", cyd), {pair: False}),
        (lambda: rooms.conversations.remove(user_id=ada, conversation_id=tea, target_id=ada), {tea: True}),
        (lambda: rooms.conversations.delete(user_id=ada, conversation_id=quiet), {quiet: True}),
    ]
    for number, (step, expected) in enumerate(steps):
        since = await database_time(rooms)
        await step()
        assert await changes(rooms, ada, since) == expected, number
    assert await listed(rooms, ada) == [pair]


async def test_as_of_of_one_answer_misses_nothing_of_the_next(rooms: Rooms) -> None:
    ada, bob = await rooms.people("ada", "bob")
    pair = await rooms.pair(ada, bob)
    page = await rooms.conversations.page(user_id=ada, changed_since=None, cursor=None, limit=50)
    await rooms.say(bob, pair, "hello")
    as_of = datetime.fromisoformat(page.as_of)
    assert await listed(rooms, ada, changed_since=as_of) == [pair]
    # The overlap: what a transaction noted shortly before, and committed after.
    assert await listed(rooms, ada, changed_since=as_of + timedelta(seconds=4)) == [pair]
    assert await listed(rooms, ada, changed_since=as_of + timedelta(seconds=60)) == []


async def test_pages_of_changes_keep_their_question(rooms: Rooms) -> None:
    ada, *others = await rooms.people("ada", "bob", "cyd", "dan")
    old = await rooms.pair(ada, others[0])
    await rooms.run(
        "update conversations set created_at = '2020-01-01', updated_at = '2020-01-01' where conversation_id = %s", old
    )
    await rooms.run("update conversation_participants set changed_at = '2020-01-01'")
    await rooms.run("update users set updated_at = '2020-01-01'")
    new = [await rooms.pair(ada, other) for other in others[1:]]
    since = datetime(2021, 1, 1, tzinfo=UTC)
    first = await rooms.conversations.page(user_id=ada, changed_since=since, cursor=None, limit=1)
    second = await rooms.conversations.page(user_id=ada, changed_since=None, cursor=first.next, limit=1)
    assert [item.conversation_id for item in (*first.items, *second.items)] == new[::-1]
    assert second.next is None and first.as_of == second.as_of
    assert rfc3339(datetime.fromisoformat(first.as_of)) == first.as_of


async def test_a_page_of_the_list_reads_its_own_conversations_alone(rooms: Rooms) -> None:
    (ada,) = await rooms.people("ada")
    await rooms.run("insert into users (username, password_hash) select 'other' || n, '-' from generate_series(1, 1000) n")
    await rooms.run(
        """insert into conversations (conversation_id, type, created_by, pair)
            select gen_random_uuid(), 'one_on_one', least(user_id, %s), array[least(user_id, %s), greatest(user_id, %s)]
            from users where user_id <> %s""",
        *[ada] * 4,
    )
    await rooms.run(
        """insert into conversation_participants (conversation_id, user_id)
            select conversation_id, unnest(pair) from conversations where pair is not null"""
    )
    await rooms.run(
        """insert into participations (conversation_id, user_id, joined_message_id)
            select conversation_id, unnest(pair), 0 from conversations where pair is not null"""
    )
    await rooms.run("analyze users, conversations, conversation_participants, participations, messages")
    ids = await listed(rooms, ada, limit=50)
    assert len(ids) == 50
    async with rooms.pool.connection() as tx:
        # The users are a thousand too, and may be read as a whole; the seats of one of them may not, fifty times.
        assert await rows_touched(tx, conversations._FACES, [ids, [ada] * 50]) < 3_000


class Mark(msgspec.Struct, array_like=True):
    place: int


@given(st.text(max_size=80) | st.binary(max_size=60).map(lambda raw: raw.hex()))
def test_any_text_as_a_cursor_is_a_mark_or_a_refusal(text: str) -> None:
    try:
        assert isinstance(mark_of(text, Mark), Mark)
    except UIMError as refusal:
        assert (refusal.code, refusal.field) == ("validation_failed", "cursor")


@pytest.mark.parametrize(
    "forged",
    [
        "WzFd",
        "W10",
        "bnVsbA",
        # [2^70, 0, <id>, "", null] and a mark whose time has no zone
        "WzExODA1OTE2MjA3MTc0MTEzMDM0MjQsMCwiMDEyMzQ1NjctODlhYi1jZGVmLTAxMjMtNDU2Nzg5YWJjZGVmIiwiIixudWxsXQ",
        "WzEsMCwiMDEyMzQ1NjctODlhYi1jZGVmLTAxMjMtNDU2Nzg5YWJjZGVmIiwiIiwiMjAyNi0wMS0wMVQwMDowMDowMCJd",
    ],
)
async def test_a_forged_cursor_is_refused(rooms: Rooms, forged: str) -> None:
    (ada,) = await rooms.people("ada")
    await refused("validation_failed", rooms.conversations.page(user_id=ada, changed_since=None, cursor=forged, limit=1))


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00+14:00"])
async def test_changed_since_may_be_any_time_at_all(rooms: Rooms, moment: str) -> None:
    ada, bob = await rooms.people("ada", "bob")
    pair = await rooms.pair(ada, bob)
    found = await listed(rooms, ada, changed_since=datetime.fromisoformat(moment))
    assert found == ([] if moment.startswith("9") else [pair])
