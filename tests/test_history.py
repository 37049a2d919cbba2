"""History: pages within one's stays, one message, and what has become of one's own.

The law of pages: walked from any place in either direction they give exactly what the reader may see, each entry once."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import msgspec
import pytest
import trio

from tests.rooms import Rooms, rooms_on, rows_touched
from uim.errors import UIMError
from uim.store import history as rows


@pytest.fixture
async def rooms(database_url: str) -> AsyncIterator[Rooms]:
    async with rooms_on(database_url) as made:
        yield made


async def walk(rooms: Rooms, user_id: UUID, conversation_id: UUID, *, limit: int, **place: int) -> list[list[int]]:
    """The ids of every page from a place on."""
    pages: list[list[int]] = []
    question: dict[str, Any] = {**place}
    while True:
        page = await rooms.history.page(user_id=user_id, conversation_id=conversation_id, limit=limit, **question)
        pages.append([item["message_id"] for item in msgspec.json.decode(msgspec.json.encode(page.items))])
        if page.next is None:
            return pages
        question = {"cursor": page.next}


async def broken_stays(rooms: Rooms) -> tuple[UUID, UUID, list[int]]:
    """Bob in a lively group, out and in again three times; and the ids that he may see."""
    ada, bob, cyd = await rooms.people("ada", "bob", "cyd")
    tea = await rooms.group(ada, bob, cyd)
    aside = await rooms.pair(ada, cyd)
    may_see = [1, 2, 3]
    for turn in range(4):
        for number in range(5):
            may_see.append((await rooms.say(ada, tea, f"in {turn}.{number}")).message_id)
            await rooms.say(ada, aside, "elsewhere")
        if turn == 3:
            break
        await rooms.conversations.remove(user_id=ada, conversation_id=tea, target_id=bob)
        may_see.append(rooms.appended[-1].message_id)
        for number in range(3):
            await rooms.say(cyd, tea, f"out {turn}.{number}")
        await rooms.conversations.add(user_id=ada, conversation_id=tea, user_ids=[bob])
        may_see.append(rooms.appended[-1].message_id)
    return tea, bob, may_see


async def test_pages_in_both_directions_give_ones_stays_and_nothing_else(rooms: Rooms) -> None:
    tea, bob, may_see = await broken_stays(rooms)
    for limit in (1, 2, 7, 100):
        down = await walk(rooms, bob, tea, limit=limit)
        assert [found for page in reversed(down) for found in page] == may_see
        up = await walk(rooms, bob, tea, limit=limit, after=0)
        assert [found for page in up for found in page] == may_see
        for page in down + up:
            assert page == sorted(page)
        assert all(len(page) == limit for page in (down + up) if page not in (down[-1], up[-1]))
    assert not [text for text in await rooms.texts(bob, tea) if text.startswith("out")]


async def test_a_page_begins_where_it_was_asked_for(rooms: Rooms) -> None:
    tea, bob, may_see = await broken_stays(rooms)
    seeded = random.Random(7)
    for place in seeded.sample(range(may_see[-1] + 2), 12):
        older = [found for found in may_see if found < place]
        newer = [found for found in may_see if found > place]
        assert [found for page in reversed(await walk(rooms, bob, tea, limit=6, before=place)) for found in page] == older
        assert [found for page in await walk(rooms, bob, tea, limit=6, after=place) for found in page] == newer


async def test_a_page_around_a_message_has_it_in_the_middle_and_is_full(rooms: Rooms) -> None:
    tea, bob, may_see = await broken_stays(rooms)
    for limit in (1, 6, 7):
        for place, middle in enumerate(may_see):
            pages = await walk(rooms, bob, tea, limit=limit, around=middle)
            assert middle in pages[0] and len(pages[0]) == limit
            assert [found for page in pages for found in page] == may_see[may_see.index(pages[0][0]) :]
            if limit // 2 <= place < len(may_see) - limit:
                assert pages[0].index(middle) == limit // 2
    assert (await walk(rooms, bob, tea, limit=100, around=may_see[5])) == [may_see]


async def test_the_newest_fifty_have_no_gap_in_seq_within_a_stay(rooms: Rooms) -> None:
    ada, bob, cyd = await rooms.people("ada", "bob", "cyd")
    tea = await rooms.group(ada, bob, cyd)
    async with trio.open_nursery() as nursery:
        for number in range(60):
            nursery.start_soon(rooms.say, ada, tea, str(number))
    page = await rooms.sees(bob, tea, limit=50)
    assert [item["seq"] for item in page] == list(range(14, 64))


@pytest.mark.parametrize(
    "places",
    [{"before": 1, "after": 1}, {"after": 1, "around": 1}, {"before": 1, "cursor": "WzEsMV0"}],
)
async def test_two_places_at_once_are_refused(rooms: Rooms, places: dict[str, Any]) -> None:
    ada, bob = await rooms.people("ada", "bob")
    pair = await rooms.pair(ada, bob)
    with pytest.raises(UIMError) as refusal:
        await rooms.history.page(user_id=ada, conversation_id=pair, limit=50, **places)
    assert refusal.value.code == "validation_failed"


async def test_an_empty_conversation_is_one_empty_page(rooms: Rooms) -> None:
    ada, bob = await rooms.people("ada", "bob")
    pair = await rooms.pair(ada, bob)
    for place in ({}, {"before": 5}, {"after": 5}, {"around": 5}):
        assert await walk(rooms, ada, pair, limit=50, **place) == [[]]


async def test_one_message_is_found_in_its_own_conversation_and_within_a_stay(rooms: Rooms) -> None:
    tea, bob, may_see = await broken_stays(rooms)
    for message_id in range(1, may_see[-1] + 3):
        try:
            found = await rooms.history.message(user_id=bob, conversation_id=tea, message_id=message_id)
        except UIMError as refusal:
            assert refusal.code == "not_found" and message_id not in may_see
        else:
            assert msgspec.json.decode(found)["message_id"] == message_id and message_id in may_see


async def test_a_client_message_id_and_delivery_status_are_the_senders_alone(rooms: Rooms) -> None:
    ada, bob = await rooms.people("ada", "bob")
    pair = await rooms.pair(ada, bob)
    await rooms.say(ada, pair, "hello")
    (mine,), (theirs,) = await rooms.sees(ada, pair), await rooms.sees(bob, pair)
    assert mine["delivery_status"] == {"sent": mine["created_at"], "delivered_count": 0, "read_count": 0}
    assert mine.keys() - theirs.keys() == {"client_message_id", "delivery_status"}
    assert {key: mine[key] for key in theirs} == theirs


async def test_a_deleted_message_keeps_its_place_without_its_content(rooms: Rooms) -> None:
    ada, bob = await rooms.people("ada", "bob")
    pair = await rooms.pair(ada, bob)
    said = await rooms.say(ada, pair, "oops")
    await rooms.run("update messages set content = '', deleted_at = now() where message_id = %s", said.message_id)
    for reader in (ada, bob):
        (item,) = await rooms.sees(reader, pair)
        assert (item["message_id"], item["content"], item["deleted"]) == (said.message_id, "", True)


async def counts(rooms: Rooms, user_id: UUID, conversation_id: UUID) -> dict[str, tuple[int, int]]:
    return {
        item["content"]: (item["delivery_status"]["delivered_count"], item["delivery_status"]["read_count"])
        for item in await rooms.sees(user_id, conversation_id)
        if "delivery_status" in item
    }


async def test_receipts_count_for_the_messages_they_cover(rooms: Rooms) -> None:
    ada, bob, cyd = await rooms.people("ada", "bob", "cyd")
    tea = await rooms.group(ada, bob, cyd)
    one, two, three = [(await rooms.say(ada, tea, word)).message_id for word in ("one", "two", "three")]
    await rooms.confirm(bob, tea, delivered=two)
    await rooms.confirm(cyd, tea, read=one)
    await rooms.confirm(ada, tea, read=three)
    assert await counts(rooms, ada, tea) == {"one": (2, 1), "two": (1, 0), "three": (0, 0)}
    await rooms.confirm(bob, tea, read=three)
    assert await counts(rooms, ada, tea) == {"one": (2, 2), "two": (1, 1), "three": (1, 1)}

    status = msgspec.json.decode(await rooms.history.message(user_id=ada, conversation_id=tea, message_id=one))
    told = status["delivery_status"]
    assert told["sent"] == status["created_at"]
    assert told["delivered"].keys() == told["read"].keys() == {str(bob), str(cyd)}
    assert all(at.endswith("Z") and at >= told["sent"] for at in (*told["delivered"].values(), *told["read"].values()))


async def test_reads_are_hidden_where_either_side_hides_them(rooms: Rooms) -> None:
    ada, bob, cyd = await rooms.people("ada", "bob", "cyd")
    tea = await rooms.group(ada, bob, cyd)
    said = (await rooms.say(ada, tea, "one")).message_id
    await rooms.confirm(bob, tea, read=said)
    await rooms.confirm(cyd, tea, read=said)
    await rooms.run("update users set read_receipts = false where user_id = %s", cyd)
    assert await counts(rooms, ada, tea) == {"one": (2, 1)}
    await rooms.run("update users set read_receipts = false where user_id = %s", ada)
    assert await counts(rooms, ada, tea) == {"one": (2, 0)}
    told = msgspec.json.decode(await rooms.history.message(user_id=ada, conversation_id=tea, message_id=said))
    assert (len(told["delivery_status"]["delivered"]), told["delivery_status"]["read"]) == (2, {})


async def test_a_receipt_counts_only_where_its_giver_may_see_the_message(rooms: Rooms) -> None:
    ada, bob, cyd = await rooms.people("ada", "bob", "cyd")
    tea = await rooms.group(ada, bob, cyd)
    await rooms.say(ada, tea, "before")
    await rooms.conversations.remove(user_id=ada, conversation_id=tea, target_id=bob)
    await rooms.say(ada, tea, "behind his back")
    await rooms.conversations.add(user_id=ada, conversation_id=tea, user_ids=[bob])
    after = await rooms.say(ada, tea, "after")
    await rooms.confirm(bob, tea, read=after.message_id)
    expected = {"before": (1, 1), "behind his back": (0, 0), "after": (1, 1)}
    assert await counts(rooms, ada, tea) == expected
    # Even if one interval went over what he never saw.
    await rooms.run("delete from receipts")
    for kind in ("delivered", "read"):
        await rooms.run(
            "insert into receipts (conversation_id, user_id, kind, after, up_to, at) values (%s, %s, %s, 0, %s, now())",
            tea,
            bob,
            kind,
            after.message_id,
        )
    assert await counts(rooms, ada, tea) == expected


async def test_what_was_read_in_hiding_stays_hidden(rooms: Rooms) -> None:
    ada, bob = await rooms.people("ada", "bob")
    pair = await rooms.pair(ada, bob)
    shows = "update users set read_receipts = %s where user_id = %s"
    for word, shown in (("one", True), ("two", False), ("three", True)):
        await rooms.run(shows, shown, bob)
        await rooms.confirm(bob, pair, read=(await rooms.say(ada, pair, word)).message_id)
    assert await counts(rooms, ada, pair) == {"one": (1, 1), "two": (1, 0), "three": (1, 1)}


async def test_random_receipts_are_counted_as_a_plain_reading_of_them_says(rooms: Rooms) -> None:
    seeded = random.Random(11)
    ada, *others = await rooms.people("ada", "bob", "cyd", "dan")
    tea = await rooms.group(ada, *others)
    said = [(await rooms.say(ada if seeded.random() < 0.7 else others[0], tea, str(n))).message_id for n in range(30)]
    reached = {(other, kind): 0 for other in others for kind in ("delivered", "read")}
    for _ in range(40):
        other, kind, up_to = seeded.choice(others), seeded.choice(("delivered", "read")), seeded.choice(said)
        await rooms.confirm(other, tea, **{kind: up_to})
        for moved in ("delivered", "read") if kind == "read" else ("delivered",):
            reached[other, moved] = max(reached[other, moved], up_to)
    pages = [await rooms.sees(ada, tea, before=place, limit=9) for place in seeded.sample(said, 6)]
    own = [item for page in pages for item in page if "delivery_status" in item]
    assert len(own) > 20
    for item in own:
        for kind in ("delivered", "read"):
            expected = sum(reached[other, kind] >= item["message_id"] for other in others)
            assert item["delivery_status"][f"{kind}_count"] == expected


async def test_an_old_page_of_a_lively_conversation_costs_its_own_length(rooms: Rooms) -> None:
    ada, bob = await rooms.people("ada", "bob")
    pair = await rooms.pair(ada, bob)
    await rooms.run(
        """insert into messages (message_id, conversation_id, seq, sender_id, client_message_id, content, created_at)
            select n, %s, n, %s, n::text, 'x', now() from generate_series(1, 20000) n""",
        pair,
        ada,
    )
    await rooms.run(
        """insert into receipts (conversation_id, user_id, kind, after, up_to, at)
            select %s, %s, kind, n - 1, n, now() from generate_series(1, 20000) n, (values ('delivered'), ('read')) k (kind)""",
        pair,
        bob,
    )
    await rooms.run("analyze messages, receipts, participations, conversation_participants, users")
    ids = list(range(101, 151))
    async with rooms.pool.connection() as tx:
        assert await rows_touched(tx, rows._DOWN_FROM, [pair, bob, 0, 150, 51]) < 200
        assert await rows_touched(tx, rows._COUNTS, [ids, pair, ada]) < 1_000
    assert await counts(rooms, ada, pair) == {"x": (1, 1)}
