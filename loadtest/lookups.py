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
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import click

from loadtest import archive
from loadtest.latencies import Latencies, count_us
from loadtest.parameters import option
from loadtest.people import PASSWORD
from loadtest.phrases import phrases
from loadtest.questions import Person, Question, people, questions
from loadtest.result import Result
from loadtest.servers import server_on
from loadtest.target import Broken, Target

# What 95 in 100 answers are to keep below.
MOST_P95_MS: Final = {"history": 50.0, "list": 50.0, "search": 200.0}
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
    with a_folder(parameters.keep) as folder, archive.kept(folder, size, teller()) as servers:
        made_s = time.monotonic() - began_at
        with server_on(servers) as target:
            persons = people(servers.database_url, parameters.people)
            asking = Asking(target.url, persons, questions(phrases(archive.PHRASES), parameters.messages))
            ask([asking], parameters.asked, random.Random(1815))
    return Result("w7", asdict(parameters), {"made_s": made_s} | figures(asking.took), _latencies(asking.took))


def figures(took: dict[str, list[int]]) -> dict[str, float]:
    """By what was asked for as a whole, with its share of what it may take, then by kind."""
    found: dict[str, float] = {}
    for name, latencies in _latencies(took).items():
        if name in MOST_P95_MS:
            found[f"{name}_of_target_share"] = latencies.percentile_ms(95) / MOST_P95_MS[name]
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
def a_folder(keep: str) -> Iterator[Path]:
    if keep:
        yield Path(keep)
        return
    folder = Path(tempfile.mkdtemp(prefix="uim-load-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def teller() -> archive.Tell:
    """Says what is being done, at each beginning and every few percent."""
    said: tuple[str, int] = ("", 0)

    def tell(what: str, share: float) -> None:
        nonlocal said
        if (what, int(share * 20)) != said:
            said = what, int(share * 20)
            click.echo(f"{share:4.0%}  {what}", err=True)

    return tell


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


@dataclass(slots=True)
class Asking:
    """Who asks what of one server, and the nanoseconds that it took, by kind."""

    url: str
    persons: list[Person]
    questions: list[Question]
    took: dict[str, list[int]] = field(default_factory=dict)


def ask(askings: list[Asking], times: int, chance: random.Random) -> None:
    """Kinds and servers take turns, so that a slow minute of the machine is unfair to none."""
    with ExitStack() as stack:
        apis = [stack.enter_context(closing(Http(asking.url))) for asking in askings]
        for asking, api in zip(askings, apis, strict=True):
            for person in asking.persons:
                person.token = api.sign_in(person.username)
        for _ in range(times):
            for number in range(len(askings[0].questions)):
                for asking, api in zip(askings, apis, strict=True):
                    question = asking.questions[number]
                    if times_ns := _asked(api, asking.persons, question, chance):
                        asking.took.setdefault(question.kind, []).extend(times_ns)


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
