"""Search: its folding letter by letter, and its answers, which are those of a plain reading however much of the log is packed."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from functools import partial
from itertools import pairwise
from typing import Any
from uuid import UUID

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from loadtest import search as load
from tests.rooms import Rooms, rooms_on
from uim.chat import indexer
from uim.chat.search import MAX_HIGHLIGHTS, Search
from uim.errors import UIMError
from uim.model import folding
from uim.model.folding import SEPARATOR, fold, matches, probes_of, signature_of
from uim.store.packing import BLOCK_BYTES, BLOCK_ENTRIES, SPAN_ENTRIES
from uim.store.postgres import connect

# Letters that fold to two, to none, to other widths, and the four i's.
ODD = "iIİı\u0307sSßﬁfＩｉａＡ ŉΣσς\x1e\u3000東京👩\u200d\u0301"
TEXTS = st.text(st.one_of(st.sampled_from(ODD), st.characters(exclude_categories=["Cs"])), max_size=12)

# -- folding --------------------------------------------------------------------------------------------------------------


@given(TEXTS, TEXTS.filter(bool))
def test_highlights_are_the_match_in_the_original_and_stand_apart(text: str, wanted: str) -> None:
    found = matches(text, fold(wanted), limit=100)
    assert bool(found) == (fold(wanted) in fold(text))
    assert all(0 <= start < end <= len(text) for start, end in found)
    assert all(fold(wanted) in fold(text[start:end]) for start, end in found)
    assert all(one[1] <= next_one[0] for one, next_one in pairwise(found))


@given(st.lists(TEXTS))
def test_texts_folded_apart_stay_apart_in_their_block(texts: list[str]) -> None:
    folded = [fold(text) for text in texts]
    assert all(SEPARATOR not in text for text in folded)
    assert SEPARATOR.join(folded).split(SEPARATOR) == (folded or [""])


@given(TEXTS, TEXTS, TEXTS)
def test_a_signature_misses_no_word_that_is_there(before: str, wanted: str, after: str) -> None:
    folded = fold(before + wanted + after)
    if fold(wanted) in folded:
        signature = signature_of(folded)
        probes = probes_of(fold(wanted))
        assert len(probes) <= folding.MAX_PROBES
        assert all(signature[bit >> 3] >> (bit & 7) & 1 for bit in probes)


def test_a_signature_that_is_made_in_pieces_misses_no_word_between_two() -> None:
    seeded = random.Random(5)
    words = ["".join(seeded.choices("etaoinshrdlu", k=size)) for size in (4 * folding.PIECE_CHARS, *range(2, 60))]
    signature = signature_of(" ".join(words))
    grams = {word[at : at + size] for word in words for size in (2, 3) for at in range(len(word) - size + 1)}
    assert all(signature[bit >> 3] >> (bit & 7) & 1 for gram in grams for bit in probes_of(gram))


def test_a_signature_misses_most_words_that_are_not_there() -> None:
    seeded = random.Random(3)
    words = ["".join(seeded.choices("etaoinshrdlu", k=seeded.randint(2, 8))) for _ in range(2_000)]
    signature = signature_of(" ".join(words[:400]))
    absent = [word for word in words[400:] if len(word) > 4]
    passing = [word for word in absent if all(signature[bit >> 3] >> (bit & 7) & 1 for bit in probes_of(word))]
    assert len(passing) < len(absent) / 5


@pytest.mark.parametrize(
    ("one", "other"),
    [("STRASSE", "straße"), ("ＡＢＣ！", "abc!"), ("İIıi", "iiii"), ("ΣΊΣΥΦΟΣ", "σίσυφος"), ("ÀÉ", "àé"), ("ﬁn", "FIN")],
)
def test_these_are_the_same_without_regard_to_case(one: str, other: str) -> None:
    assert fold(one) == fold(other)


# -- finding --------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def rooms(database_url: str) -> AsyncIterator[Rooms]:
    async with rooms_on(database_url) as made:
        yield made


async def pack(database_url: str) -> None:
    async with await connect(database_url, name="test") as tx:
        while await indexer.step(tx):
            await trio.lowlevel.checkpoint()


async def say_all(rooms: Rooms, sender: UUID, conversation_id: UUID, contents: list[str]) -> None:
    async with trio.open_nursery() as nursery:
        for content in contents:
            nursery.start_soon(rooms.say, sender, conversation_id, content)


async def rows(rooms: Rooms, query: str, *values: object) -> list[tuple[Any, ...]]:
    async with rooms.pool.connection() as tx:
        return await (await tx.execute(query, values)).fetchall()


async def walk(search: Search, user_id: UUID, q: str, *, limit: int, **where: Any) -> list[dict[str, Any]]:
    """The messages of all pages, which must be full but for the last."""
    found: list[dict[str, Any]] = []
    cursor = None
    while True:
        page = await search.page(user_id=user_id, q=q, limit=limit, cursor=cursor, **where)
        found += [msgspec.json.decode(hit.message) for hit in page.items]
        if page.next is None:
            return found
        assert len(page.items) == limit
        cursor = page.next


async def test_pages_are_those_of_a_plain_reading_however_much_is_packed(rooms: Rooms, database_url: str) -> None:
    seeded = random.Random(5)
    ada, bob, cyd = await rooms.people("ada", "bob", "cyd")
    groups = [await rooms.group(ada, bob, cyd) for _ in range(3)]
    words = ["apple", "pear", "plum", "東京", "会議", "Straße"]
    search = Search(rooms.pool, first_stretch=50)
    for turn in range(6):
        for group in groups:
            texts = [" ".join(seeded.choices(words[: 2 + turn], k=seeded.randint(1, 4))) for _ in range(40 + 90 * (turn % 2))]
            await say_all(rooms, ada, group, texts)
        if turn % 2:
            await rooms.conversations.remove(user_id=ada, conversation_id=groups[0], target_id=bob)
            await say_all(rooms, ada, groups[0], ["plum behind his back"] * 9)
            await rooms.conversations.add(user_id=ada, conversation_id=groups[0], user_ids=[bob])
        if turn in (1, 4):
            await pack(database_url)
        for reader in (ada, bob):
            seen = [item for group in groups for item in await everything(rooms, reader, group)]
            for q in ("PEAR", "plum", "会議", "strasse", "e p", "behind"):
                wanted = [item for item in seen if item["message_type"] == "text" and fold(q) in fold(item["content"])]
                ids = sorted((item["message_id"] for item in wanted), reverse=True)
                for limit in (seeded.randint(20, 40), 100):
                    assert [found["message_id"] for found in await walk(search, reader, q, limit=limit)] == ids
                here = [item["message_id"] for item in wanted if item["conversation_id"] == str(groups[0])]
                found = await walk(search, reader, q, limit=100, conversation_id=groups[0])
                assert [message["message_id"] for message in found] == sorted(here, reverse=True)
    ((blocks,),) = await rows(rooms, "select count(*) from search_blocks")
    assert blocks > 12


async def everything(rooms: Rooms, user_id: UUID, conversation_id: UUID) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor = None
    while True:
        page = await rooms.history.page(user_id=user_id, conversation_id=conversation_id, limit=100, cursor=cursor)
        found += msgspec.json.decode(msgspec.json.encode(page.items))
        if page.next is None:
            return found
        cursor = page.next


async def test_a_page_of_one_goes_on_though_every_conversation_has_a_block_across_its_end(
    rooms: Rooms, database_url: str
) -> None:
    ada, bob = await rooms.people("ada", "bob")
    groups = [await rooms.group(ada, bob, *await rooms.people(f"x{number}")) for number in range(6)]
    async with trio.open_nursery() as nursery:
        for number in range(BLOCK_ENTRIES * 2 * len(groups)):
            nursery.start_soon(rooms.say, ada, groups[number % len(groups)], f"apple {number}" if number % 7 == 0 else "pear")
    await pack(database_url)
    found = await walk(Search(rooms.pool, first_stretch=100), bob, "apple", limit=1)
    assert len(found) == -(-BLOCK_ENTRIES * 2 * len(groups) // 7)
    assert [each["message_id"] for each in found] == sorted((each["message_id"] for each in found), reverse=True)


async def test_a_deleted_text_is_found_no_more_and_leaves_its_block(rooms: Rooms, database_url: str) -> None:
    ada, bob = await rooms.people("ada", "bob")
    pair = await rooms.pair(ada, bob)
    secret = await rooms.say(ada, pair, "a secret word")
    await say_all(rooms, ada, pair, [f"word {number}" for number in range(BLOCK_ENTRIES)])
    await pack(database_url)
    search = Search(rooms.pool)
    assert len(await walk(search, bob, "secret", limit=9)) == 1
    await rooms.run("select log_delete(%s, %s, %s, gen_random_uuid())", pair, secret.message_id, ada)
    assert await walk(search, bob, "secret", limit=9) == []
    assert await rows(rooms, "select 1 from search_blocks where strpos(folded, 'secret') > 0")
    await pack(database_url)
    assert not await rows(rooms, "select 1 from search_blocks where strpos(folded, 'secret') > 0")
    assert len(await walk(search, bob, "word", limit=9)) == BLOCK_ENTRIES


async def test_what_is_older_than_thirty_days_is_not_found_and_its_blocks_go(rooms: Rooms, database_url: str) -> None:
    ada, bob = await rooms.people("ada", "bob")
    pair = await rooms.pair(ada, bob)
    await say_all(rooms, ada, pair, [f"word {number}" for number in range(BLOCK_ENTRIES * 2)])
    await pack(database_url)
    later = await rooms.say(ada, pair, "a newer word")
    await rooms.run("update messages set created_at = now() - interval '31 days' where message_id < %s", later.message_id)
    search = Search(rooms.pool)
    assert [found["content"] for found in await walk(search, bob, "word", limit=9)] == ["a newer word"]
    await rooms.run("update search_blocks set newest_at = now() - interval '31 days'")
    async with await connect(database_url, name="test") as tx:
        assert await indexer.drop(tx)
        assert not await indexer.drop(tx)
    assert await rows(rooms, "select horizon from search_position") == [(BLOCK_ENTRIES * 2,)]
    assert [found["content"] for found in await walk(search, bob, "word", limit=9)] == ["a newer word"]


async def test_a_long_old_log_is_passed_by_without_being_packed(rooms: Rooms, database_url: str) -> None:
    ada, bob = await rooms.people("ada", "bob")
    pair = await rooms.pair(ada, bob)
    await rooms.run(
        """insert into messages (message_id, conversation_id, seq, sender_id, client_message_id, content, created_at)
            select n, %s, n, %s, n, 'word ' || n, now() - interval '1 day' * case when n <= %s then 40 else 2 end
            from generate_series(1, %s) n""",
        pair, ada, SPAN_ENTRIES, SPAN_ENTRIES + 100,
    )
    await rooms.run("update participations set joined_message_id = 1 where user_id = %s", bob)
    await pack(database_url)
    assert await rows(rooms, "select min(first_message_id) > %s, count(*) from search_blocks", SPAN_ENTRIES) == [(True, 1)]
    assert len(await walk(Search(rooms.pool), bob, "word", limit=100)) == 100


async def test_long_texts_fill_a_block_sooner_and_the_last_few_stay_in_the_log(rooms: Rooms, database_url: str) -> None:
    ada, bob = await rooms.people("ada", "bob")
    pair = await rooms.pair(ada, bob)
    for number in range(3):
        await rooms.say(ada, pair, f"{number} " + "long " * (BLOCK_BYTES // 10))
    await pack(database_url)
    assert await rows(rooms, "select cardinality(message_ids) from search_blocks") == [(2,)]
    assert len(await walk(Search(rooms.pool), bob, "long", limit=2)) == 3


async def test_one_process_packs_at_a_time(rooms: Rooms, database_url: str) -> None:
    ada, bob = await rooms.people("ada", "bob")
    await say_all(rooms, ada, await rooms.pair(ada, bob), ["word"] * BLOCK_ENTRIES)
    async with await connect(database_url, name="one") as one, await connect(database_url, name="other") as other:
        async with one.transaction():
            await one.execute("select from search_position for update")
            assert not await indexer.step(other)
            assert not await indexer.drop(other)
        assert await rows(rooms, "select count(*) from search_blocks") == [(0,)]
        await indexer.step(other)
        assert await rows(rooms, "select count(*) from search_blocks") == [(1,)]
        await indexer.step(one)
        assert await rows(rooms, "select count(*) from search_blocks") == [(1,)]


async def test_the_room_packs_by_itself_and_again_after_its_connection_was_cut(rooms: Rooms, database_url: str) -> None:
    ada, bob = await rooms.people("ada", "bob")
    pair = await rooms.pair(ada, bob)

    async def packed(blocks: int) -> None:
        with trio.fail_after(20):
            while await rows(rooms, "select count(*) from search_blocks") != [(blocks,)]:
                await trio.sleep(0.05)

    async with trio.open_nursery() as nursery:
        await nursery.start(indexer.Indexer(database_url).run)
        await say_all(rooms, ada, pair, ["word"] * BLOCK_ENTRIES)
        await packed(1)
        await rooms.run("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'uim indexer'")
        await say_all(rooms, ada, pair, ["word"] * BLOCK_ENTRIES)
        await packed(2)
        nursery.cancel_scope.cancel()


async def test_highlights_are_bounded(rooms: Rooms) -> None:
    ada, bob = await rooms.people("ada", "bob")
    await rooms.say(ada, await rooms.pair(ada, bob), "ha" * 5_000)
    page = await Search(rooms.pool).page(user_id=bob, q="ha", limit=1)
    assert page.items[0].highlights == [(2 * at, 2 * at + 2) for at in range(MAX_HIGHLIGHTS)]


async def test_who_belongs_to_no_conversation_finds_nothing(rooms: Rooms) -> None:
    (ada,) = await rooms.people("ada")
    page = await Search(rooms.pool).page(user_id=ada, q="registered", limit=1)
    assert (page.items, page.next) == ([], None)


async def test_who_waits_too_long_for_others_is_told_so(rooms: Rooms, monkeypatch: pytest.MonkeyPatch) -> None:
    (ada,) = await rooms.people("ada")
    monkeypatch.setattr("uim.chat.search.WAIT_S", 0.0)
    monkeypatch.setattr("uim.chat.search.AT_ONCE", 0)
    with pytest.raises(UIMError) as refusal:
        await Search(rooms.pool).page(user_id=ada, q="word", limit=1)
    assert refusal.value.code == "unavailable"


def test_the_measuring_of_search_finds_what_it_has_sown(database_url: str) -> None:
    figures = load.measure(database_url, messages=6_000, own_share=0.5, asked=1)
    assert {f"{name}, p95 ms" for name in load.questions(load.language(random.Random(1)))} < figures.keys()
    assert figures["packed_messages_per_s"] > 0


async def test_its_rare_words_are_few_and_its_absent_ones_are_not_there(rooms: Rooms, database_url: str) -> None:
    chance = random.Random(1)
    sow = partial(load.seed, database_url, messages=6_000, own_share=0.9, chance=chance)
    seeker, _, spoken = await trio.to_thread.run_sync(sow)
    await pack(database_url)
    search = Search(rooms.pool)
    assert 1 <= len(await walk(search, seeker, spoken.rare[1], limit=100)) < 5
    assert await walk(search, seeker, spoken.absent[1], limit=100) == []
    assert len((await search.page(user_id=seeker, q=spoken.words[0], limit=100)).items) == 100
