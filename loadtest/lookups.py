"""W7: people look things up in a year of talk: pages of history, their conversations, words, the log from a cursor.

The database is made first (archive.py), by a PostgreSQL that is tuned for that; then it is restarted as `uim dev` has it, and a server
beside it is asked over HTTP, one request after the other, so that what is measured is the request and not its neighbours. Rule: every
answer is looked at, and one that is wrong gives no figures.
"""

from __future__ import annotations

import http.client
import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

import click
import psycopg

from loadtest import archive
from loadtest.latencies import Latencies, count_us
from loadtest.parameters import option
from loadtest.people import PASSWORD
from loadtest.phrases import Phrases, phrases
from loadtest.result import Result
from loadtest.servers import server_on
from loadtest.target import Broken, Target

# Of those asked for, one in so many has more conversations than almost anybody else.
BUSY_SHARE: Final = 0.2
LEAST_DEEP: Final = 200
MOST_TRIES: Final = 50
ANSWER_WITHIN_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Parameters:
    messages: int = option(10_000_000, "In the database.", least=10_000)
    users: int = option(10_000, "Who said them.", least=100)
    people: int = option(200, "Those of them who look things up.", least=10)
    asked: int = option(300, "Times of each question.", least=1)
    keep: str = option("", "A folder for the database, which stays and is found there the next time. Else it is made anew.")


def run(_target: Target, parameters: Parameters) -> Result:
    """Needs no target: its databases and its server are its own."""
    began_at = time.monotonic()
    size = archive.Size(parameters.messages, parameters.users)
    with _folder(parameters.keep) as folder, archive.kept(folder, size, _tell) as servers:
        made_s = time.monotonic() - began_at
        with server_on(servers) as target:
            chance = random.Random(1815)
            persons = people(servers.database_url, parameters.people)
            asked = questions(phrases(archive.PHRASES), parameters.messages)
            took = ask(target.url, persons, asked, parameters.asked, chance)
    return Result("w7", asdict(parameters), {"made_s": made_s} | figures(took), _latencies(took))


def figures(took: dict[str, list[int]]) -> dict[str, float]:
    """By what was asked for as a whole, then by kind."""
    found: dict[str, float] = {}
    for name, latencies in _latencies(took).items():
        for percent in (50, 95, 99):
            found[f"{name.replace(' ', '_')}_p{percent}_ms"] = latencies.percentile_ms(percent)
    return found


def _latencies(took: dict[str, list[int]]) -> dict[str, Latencies]:
    """`history`, `list`, `search` and `sync` are of all their kinds; so many of each were asked that each counts alike."""
    found = {kind: Latencies(count_us(times_ns)) for kind, times_ns in took.items()}
    whole: dict[str, Latencies] = {}
    for kind, latencies in found.items():
        whole.setdefault(kind.partition(" ")[0], Latencies()).add(latencies)
    return whole | found


@contextmanager
def _folder(keep: str) -> Iterator[Path]:
    if keep:
        yield Path(keep)
        return
    folder = Path(tempfile.mkdtemp(prefix="uim-load-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _tell(what: str, share: float) -> None:
    click.echo(f"{share:4.0%}  {what}", err=True)


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
        union (select user_id from counted where seats > 3 order by md5(user_id::text) limit %(usual)s)
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
    found: dict[str, Person] = {}
    with psycopg.connect(database_url) as connection:
        for username, *seat in connection.execute(_PEOPLE, {"busy": busy, "usual": count - busy}):
            found.setdefault(username, Person(username, [])).seats.append(Seat(*seat))
    return list(found.values())


class Http:
    """One connection, kept alive; whose request it is each says itself."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._http = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port or 80, timeout=ANSWER_WITHIN_S)

    def close(self) -> None:
        self._http.close()

    def sign_in(self, username: str) -> str:
        body = json.dumps({"username": username, "password": PASSWORD, "device_id": "load"})
        self._http.request("POST", "/api/auth/login", body, {"Content-Type": "application/json"})
        return str(self._read("login")["access_token"])

    def ask(self, token: str, path: str) -> tuple[int, Any]:
        """(nanoseconds until the whole answer was here, what it says)"""
        began_at = time.perf_counter_ns()
        self._http.request("GET", path, headers={"Authorization": f"Bearer {token}"})
        answer = self._http.getresponse()
        text = answer.read()
        took_ns = time.perf_counter_ns() - began_at
        return took_ns, self._judged(path, answer.status, text)

    def _read(self, path: str) -> Any:
        answer = self._http.getresponse()
        return self._judged(path, answer.status, answer.read())

    def _judged(self, path: str, status: int, text: bytes) -> Any:
        if status != 200:
            raise Broken(f"{path}: {status} {text[:300].decode(errors='replace')}")
        return json.loads(text)


@dataclass(frozen=True, slots=True)
class Question:
    """`path(person, chance)` is one such request, None if that person has none; `fault(answer)` says what is wrong with the answer."""

    kind: str
    path: Callable[[Person, random.Random], str | None]
    fault: Callable[[Any], str | None] = field(default=lambda _answer: None)


def questions(said: Phrases, head: int) -> list[Question]:
    return [*_history(), *_lists(), *_searches(said), *_syncs(head)]


def _messages(seat: Seat | None, at: str = "") -> str | None:
    return None if seat is None else f"/api/conversations/{seat.conversation_id}/messages{at}"


def _deep(seat: Seat) -> bool:
    return seat.total >= LEAST_DEEP


def _history() -> Iterator[Question]:
    def place(person: Person, chance: random.Random, how: str) -> str | None:
        seat = person.seat(chance, _deep)
        return seat and _messages(seat, f"?{how}={chance.randint(seat.since, seat.newest)}")

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
        return seat and f"/api/messages/search?q={quote(chance.choice(said.common))}&conversation_id={seat.conversation_id}"

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


def ask(url: str, persons: list[Person], asked: list[Question], times: int, chance: random.Random) -> dict[str, list[int]]:
    """Nanoseconds by kind. The kinds take turns, so that a slow minute of the machine is unfair to none."""
    took: dict[str, list[int]] = {question.kind: [] for question in asked}
    with closing(Http(url)) as api:
        for person in persons:
            person.token = api.sign_in(person.username)
        for _ in range(times):
            for question in asked:
                took[question.kind] += _asked(api, persons, question, chance)
    return {kind: times_ns for kind, times_ns in took.items() if times_ns}


def _asked(api: Http, persons: list[Person], question: Question, chance: random.Random) -> list[int]:
    """The nanoseconds that it took for somebody who has such a conversation; none if nobody was found who has."""
    for person in chance.sample(persons, min(len(persons), MOST_TRIES)):
        path = question.path(person, chance)
        if path is not None:
            took_ns, answer = api.ask(person.token, path)
            if (fault := question.fault(answer)) is not None:
                raise Broken(f"{path} for {person.username}: {fault}")
            return [took_ns]
    return []
