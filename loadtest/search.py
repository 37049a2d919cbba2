"""`search`: how long a member of fifty conversations waits for what they look for, in a log of a million messages.

The log is written by COPY, with the words of a language (few are common, most are rare) and with Chinese characters; then it is
packed as the server packs it, and searched through the server's own room. Rule: each question is asked with other words each
time, and a word that is asked as rare or absent is so by the seeding, not by luck.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Final
from uuid import UUID, uuid4

import psycopg
import trio

from uim.chat import indexer
from uim.chat.indexer import Indexer
from uim.chat.search import Search
from uim.chat.writer import Writer
from uim.model.message import Draft
from uim.store.postgres import Pool, connect

OWN_CONVERSATIONS: Final = 50
OTHER_CONVERSATIONS: Final = 950
AGE: Final = timedelta(days=25)
RARE_WORDS: Final = 200
NEEDLE_EVERY: Final = 2_000
OPEN_SENDS: Final = 200
_ENDS: Final = ("a", "e", "i", "o", "u", "an", "er", "in", "or", "th")
_SYLLABLES: Final = [first + end for first in "bcdfghlmnprstvw" for end in _ENDS]
_CHARACTERS: Final = [chr(code) for code in range(0x4E00, 0x4E00 + 2_500)]


@dataclass(frozen=True, slots=True)
class Language:
    """Words and characters by falling frequency, each with its weight (Zipf's law); words said a few times or never."""

    words: list[str]
    word_weights: list[float]
    character_weights: list[float]
    rare: list[str]
    absent: list[str]

    def sentence(self, chance: random.Random) -> str:
        if chance.random() < 0.25:
            return "".join(chance.choices(_CHARACTERS, cum_weights=self.character_weights, k=chance.randint(4, 40)))
        return " ".join(chance.choices(self.words, cum_weights=self.word_weights, k=chance.randint(2, 24)))


def language(chance: random.Random) -> Language:
    made: dict[str, None] = {}
    while len(made) < 8_000 + 2 * RARE_WORDS:
        made["".join(chance.choices(_SYLLABLES, k=chance.randint(1, 4)))] = None
    words = [word for word in made if len(word) < 9]
    apart = [word for word in made if len(word) >= 9]
    rare, absent = apart[:RARE_WORDS], apart[RARE_WORDS : 2 * RARE_WORDS]
    zipf = list(accumulate(1 / (rank + 3) for rank in range(len(words))))
    return Language(words, zipf, list(accumulate(1 / (rank + 20) for rank in range(len(_CHARACTERS)))), rare, absent)


def seed(database_url: str, *, messages: int, own_share: float, chance: random.Random) -> tuple[UUID, list[UUID], Language]:
    """Write the log: (whoever will search, their conversations, the language). Takes some 20 s for a million."""
    spoken = language(chance)
    seeker, other = uuid4(), uuid4()
    own = [uuid4() for _ in range(OWN_CONVERSATIONS)]
    others = [uuid4() for _ in range(OTHER_CONVERSATIONS)]
    with psycopg.connect(database_url, autocommit=True) as connection:
        for user_id in (seeker, other):
            connection.execute(
                "insert into users (user_id, username, password_hash) values (%s, %s, '')", (user_id, f"load_{user_id.hex}")
            )
        cursor = connection.cursor()
        members = [(conversation_id, [seeker, other]) for conversation_id in own] + [(each, [other]) for each in others]
        with cursor.copy("copy conversations (conversation_id, type, name, created_by) from stdin") as copy:
            for conversation_id, _ in members:
                copy.write_row((conversation_id, "group", "load", other))
        with cursor.copy("copy conversation_participants (conversation_id, user_id) from stdin") as copy:
            for conversation_id, users in members:
                for user_id in users:
                    copy.write_row((conversation_id, user_id))
        with cursor.copy("copy participations (conversation_id, user_id, joined_message_id) from stdin") as copy:
            for conversation_id, users in members:
                for user_id in users:
                    copy.write_row((conversation_id, user_id, 1))
        columns = "message_id, conversation_id, seq, sender_id, client_message_id, content_hash, content, created_at"
        with cursor.copy(f"copy messages ({columns}) from stdin") as copy:
            for row in _rows(messages, own, others, own_share, (seeker, other), spoken, chance):
                copy.write_row(row)
        connection.execute("vacuum analyze")
    return seeker, own, spoken


def _rows(
    messages: int,
    own: list[UUID],
    others: list[UUID],
    own_share: float,
    users: tuple[UUID, UUID],
    spoken: Language,
    chance: random.Random,
) -> Iterator[tuple[object, ...]]:
    seqs = dict.fromkeys(own + others, 0)
    began_at = datetime.now(UTC) - AGE
    for message_id in range(1, messages + 1):
        is_own = chance.random() < own_share
        conversation_id = chance.choice(own if is_own else others)
        seqs[conversation_id] += 1
        content = spoken.sentence(chance)
        if is_own and message_id % NEEDLE_EVERY < 4:
            content += " " + spoken.rare[message_id // NEEDLE_EVERY % RARE_WORDS]
        created_at = began_at + AGE * (message_id / messages)
        sender = users[message_id % 2] if is_own else users[1]
        yield message_id, conversation_id, seqs[conversation_id], sender, f"c{message_id}", b"0" * 16, content, created_at


Question = Callable[[random.Random], str]


def questions(spoken: Language) -> dict[str, Question]:
    """What is asked, by what it is."""
    words, characters = spoken.words, _CHARACTERS
    return {
        "common words": lambda chance: chance.choice(words[:40]),
        "middling words": lambda chance: chance.choice(words[1_000:]),
        "rare words": lambda chance: chance.choice(spoken.rare),
        "absent words": lambda chance: chance.choice(spoken.absent),
        "absent words of common parts": lambda chance: "".join(chance.sample(words[:60], 3)) + "q",
        "two words in a row": lambda chance: " ".join(chance.sample(words[:400], 2)),
        "two letters": lambda chance: chance.choice(words[200:])[-2:],
        "two absent letters": lambda chance: chance.choice("qxzjk") + chance.choice("qxzjk"),
        "two common characters": lambda chance: "".join(chance.sample(characters[:40], 2)),
        "two rare characters": lambda chance: "".join(chance.sample(characters[800:], 2)),
        "four characters": lambda chance: "".join(chance.sample(characters[:300], 4)),
    }


def measure(database_url: str, *, messages: int, own_share: float, asked: int) -> dict[str, float]:
    """Seed, pack, ask each question that many times: milliseconds to the page, and what the packing took."""
    chance = random.Random(1865)
    seeker, own, spoken = seed(database_url, messages=messages, own_share=own_share, chance=chance)
    return trio.run(_measure, database_url, seeker, own, spoken, messages, asked, chance)


async def _measure(
    database_url: str, seeker: UUID, own: list[UUID], spoken: Language, messages: int, asked: int, chance: random.Random
) -> dict[str, float]:
    figures: dict[str, float] = {}
    async with await connect(database_url, name="load") as tx:
        began_at, processor_at = time.perf_counter(), time.process_time()
        while await indexer.step(tx):
            await trio.lowlevel.checkpoint()
        figures["packed_messages_per_s"] = messages / (time.perf_counter() - began_at)
        figures["packing_own_us_a_message"] = (time.process_time() - processor_at) / messages * 1e6
        row = await (await tx.execute("select pg_total_relation_size('search_blocks')")).fetchone()
        assert row is not None
        figures["blocks_bytes_a_message"] = row[0] / messages
        await tx.execute("vacuum analyze search_blocks")
    pool = Pool(database_url, 2)
    search = Search(pool)
    times: dict[str, list[float]] = {name: [] for name in (*questions(spoken), "in one conversation", "second page")}
    for _ in range(asked):
        for name, question in questions(spoken).items():
            q = question(chance)
            times[name].append(await _ask(search, seeker, q))
        times["in one conversation"].append(await _ask(search, seeker, q, conversation_id=chance.choice(own)))
        times["second page"].append(await _second_page_ms(search, seeker, chance.choice(spoken.words[:40])))
    pool.close_idle()
    for name, taken in times.items():
        figures |= {f"{name}, ms": statistics.median(taken), f"{name}, p95 ms": _p95(taken)}
    figures["all, p95 ms"] = _p95([each for taken in times.values() for each in taken])
    return figures


def _p95(taken: list[float]) -> float:
    return sorted(taken)[int(len(taken) * 0.95)]


async def _ask(search: Search, seeker: UUID, q: str, conversation_id: UUID | None = None) -> float:
    began_at = time.perf_counter()
    await search.page(user_id=seeker, q=q, conversation_id=conversation_id, limit=50)
    return (time.perf_counter() - began_at) * 1000


async def _second_page_ms(search: Search, seeker: UUID, q: str) -> float:
    first = await search.page(user_id=seeker, q=q, limit=50)
    began_at = time.perf_counter()
    if first.next is not None:
        await search.page(user_id=seeker, q=q, cursor=first.next, limit=50)
    return (time.perf_counter() - began_at) * 1000


# -- what it costs the writer ---------------------------------------------------------------------------------------------


def measure_cost(database_url: str, *, seconds: float, rounds: int) -> dict[str, float]:
    """Texts a second through the writer without and with the packing beside it, by turns; `share` is with of without."""
    chance = random.Random(1815)
    sender, conversation_ids, spoken = seed(database_url, messages=1, own_share=1, chance=chance)
    texts = [spoken.sentence(chance) for _ in range(5_000)]
    return trio.run(_measure_cost, database_url, sender, conversation_ids, texts, seconds, rounds)


async def _measure_cost(
    database_url: str, sender: UUID, conversation_ids: list[UUID], texts: list[str], seconds: float, rounds: int
) -> dict[str, float]:
    without: list[float] = []
    beside: list[float] = []
    for turn in range(2 * rounds):
        # By turns in the order A B B A, so that a machine that gets slower is unfair to neither.
        is_beside = turn % 4 in (1, 2)
        rate = await _posted_per_s(database_url, sender, conversation_ids, texts, seconds, is_beside)
        (beside if is_beside else without).append(rate)
    shares = [one / other for one, other in zip(beside, without, strict=True)]
    return {
        "without_per_s": statistics.median(without),
        "with_per_s": statistics.median(beside),
        "share": statistics.median(beside) / statistics.median(without),
        "least_share": min(shares),
        "greatest_share": max(shares),
    }


async def _posted_per_s(
    database_url: str, sender: UUID, conversation_ids: list[UUID], texts: list[str], seconds: float, is_beside: bool
) -> float:
    posted = 0
    writer = Writer(database_url, lambda _: None)

    async def post(number: int) -> None:
        nonlocal posted
        while True:
            text = texts[(number * 37 + posted) % len(texts)]
            await writer.post(Draft(conversation_ids[posted % OWN_CONVERSATIONS], sender, uuid4().hex, text, None))
            posted += 1

    async with await connect(database_url, name="load") as tx:
        while await indexer.step(tx):
            await trio.lowlevel.checkpoint()
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        if is_beside:
            await nursery.start(Indexer(database_url).run)
        began_at = time.perf_counter()
        for number in range(OPEN_SENDS):
            nursery.start_soon(post, number)
        await trio.sleep(seconds)
        rate = posted / (time.perf_counter() - began_at)
        nursery.cancel_scope.cancel()
    return rate
