"""Who looks things up in a year of talk, and what: a person's seats, and the requests that each kind of question makes of them.

Rule: a question knows what a right answer looks like, as far as an answer alone can show it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final
from urllib.parse import quote

import psycopg

from loadtest.phrases import Phrases

# Of those asked for, one in so many has more conversations than almost anybody else.
BUSY_SHARE: Final = 0.2
LEAST_DEEP: Final = 200
# Their accounts' own conversation counts as one.
ALIKE: Final = (14, 24)


@dataclass(frozen=True, slots=True)
class Seat:
    """One conversation of one person: from which id they see it, its newest entry, and how many it has."""

    conversation_id: str
    since: int
    newest: int
    total: int
    size: int
    is_owner: bool


@dataclass(slots=True)
class Person:
    username: str
    seats: list[Seat]
    token: str = ""

    def seat(self, chance: random.Random, fits: Callable[[Seat], bool]) -> Seat | None:
        found = [seat for seat in self.seats if fits(seat)]
        return chance.choice(found) if found else None


_PEOPLE: Final = """
    with counted as (
        select p.user_id, count(*) as seats from conversation_participants p where p.left_at is null group by p.user_id
    ), chosen as (
        (select user_id from counted order by seats desc limit %(busy)s)
        union (select user_id from counted where seats between %(least)s and %(most)s order by md5(user_id::text) limit %(usual)s)
    )
    select u.username, s.conversation_id::text, s.since, newest.message_id, newest.seq, size.members, s.role = 'owner'
    from chosen join users u using (user_id)
    cross join lateral (
        select p.conversation_id, p.role, min(y.joined_message_id) as since from conversation_participants p
        join participations y using (conversation_id, user_id)
        join conversations c on c.conversation_id = p.conversation_id and c.type <> 'self'
        where p.user_id = u.user_id and p.left_at is null group by p.conversation_id, p.role
    ) s
    cross join lateral (
        select m.message_id, m.seq from messages m where m.conversation_id = s.conversation_id order by m.message_id desc limit 1
    ) newest
    cross join lateral (
        select count(*) as members from conversation_participants o where o.conversation_id = s.conversation_id
    ) size"""


def people(database_url: str, count: int) -> list[Person]:
    """Some with many conversations, most with as many as people have."""
    busy = max(1, int(count * BUSY_SHARE))
    return _people(database_url, {"busy": busy, "usual": count - busy, "least": 4, "most": 10_000})


def alike(database_url: str, count: int) -> list[Person]:
    """People with some twenty conversations, or nearly."""
    return _people(database_url, {"busy": 0, "usual": count, "least": ALIKE[0], "most": ALIKE[1]})


def _people(database_url: str, wanted: dict[str, int]) -> list[Person]:
    found: dict[str, Person] = {}
    with psycopg.connect(database_url) as connection:
        for username, *seat in connection.execute(_PEOPLE, wanted):
            found.setdefault(username, Person(username, [])).seats.append(Seat(*seat))
    return list(found.values())


@dataclass(frozen=True, slots=True)
class Question:
    """`path(person, chance)` is one such request, None if that person has none; `fault(answer)` says what is wrong with the answer."""

    kind: str
    path: Callable[[Person, random.Random], str | None]
    fault: Callable[[Any], str | None] = field(default=lambda _answer: None)


def questions(said: Phrases, head: int) -> list[Question]:
    """Of each kind. What is asked of no table that grows is there to be compared with: the machine drifts."""
    profile = Question("profile own", lambda _person, _chance: "/api/users/me")
    return [*_history(), *_lists(), *_searches(said), *_syncs(head), profile]


def _messages(seat: Seat | None, at: str = "") -> str | None:
    return None if seat is None else f"/api/conversations/{seat.conversation_id}/messages{at}"


def _deep(seat: Seat) -> bool:
    return seat.total >= LEAST_DEEP


def _history() -> Iterator[Question]:
    def place(person: Person, chance: random.Random, how: str) -> str | None:
        seat = person.seat(chance, _deep)
        return None if seat is None else _messages(seat, f"?{how}={chance.randint(seat.since, seat.newest)}")

    def newest(person: Person, chance: random.Random) -> str | None:
        return _messages(person.seat(chance, lambda seat: seat.total > 0))

    def busiest(person: Person, chance: random.Random) -> str | None:
        seat = max(person.seats, key=lambda seat: seat.total)
        return _messages(seat, f"?before={chance.randint(seat.since + 1, seat.newest)}")

    # Of one's own texts each page tells by how many they were received and read.
    def large(person: Person, chance: random.Random) -> str | None:
        return _messages(person.seat(chance, lambda seat: seat.size >= 20 and seat.is_owner), "?limit=100")

    yield Question("history newest", newest, _hole)
    yield Question("history before", lambda person, chance: place(person, chance, "before"), _hole)
    yield Question("history after", lambda person, chance: place(person, chance, "after"), _hole)
    yield Question("history around", lambda person, chance: place(person, chance, "around"), _hole)
    yield Question("history busiest", busiest, _hole)
    yield Question("history own_in_large_group", large, _hole)


def _hole(page: Any) -> str | None:
    """A page has no hole, but where its reader was away."""
    ids = [item["message_id"] for item in page["items"]]
    return None if all(one < other for one, other in pairwise(ids)) else f"a page that is not in order: {ids}"


def _lists() -> Iterator[Question]:
    def since(_person: Person, chance: random.Random) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - chance.uniform(0, 7 * 86_400)))
        return f"/api/conversations?changed_since={at}"

    yield Question("list newest", lambda person, chance: "/api/conversations", lambda page: None if page["items"] else "an empty list")
    yield Question("list all_at_once", lambda person, chance: "/api/conversations?limit=100")
    yield Question("list changed", since)


def _searches(said: Phrases) -> Iterator[Question]:
    def word(words: list[str]) -> Callable[[Person, random.Random], str]:
        return lambda person, chance: f"/api/messages/search?q={quote(chance.choice(words))}"

    def here(person: Person, chance: random.Random) -> str | None:
        seat = person.seat(chance, _deep)
        if seat is None:
            return None
        return f"/api/messages/search?q={quote(chance.choice(said.common))}&conversation_id={seat.conversation_id}"

    def none(page: Any) -> str | None:
        return f"found what nobody said: {page['items'][0]}" if page["items"] else None

    yield Question("search common", word(said.common))
    yield Question("search middling", word(said.spoken.words[200:2_000]))
    yield Question("search rare", word(said.spoken.rare))
    yield Question("search absent", word(said.spoken.absent), none)
    yield Question("search two_letters", word([one[-2:] for one in said.spoken.words[:300]]))
    yield Question("search in_one", here)


def _syncs(head: int) -> Iterator[Question]:
    def after(least: int, most: int) -> Callable[[Person, random.Random], str]:
        return lambda person, chance: f"/api/sync?last_sync_id={chance.randint(least, max(least, most))}"

    yield Question("sync an_hour", after(int(head * (1 - 1 / 8_760)), head))
    yield Question("sync a_month", after(int(head * 11 / 12), int(head * 11 / 12) + 1_000))
    yield Question("sync from_the_beginning", after(0, 0))
