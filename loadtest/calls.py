"""`api`: calls of the HTTP API a second, kind by kind: each user on a connection that is kept alive, one request after the other.

Signing in costs a password hash on purpose and is bounded by that alone. Rule: every answer is a success, and every text that was
answered is in the history afterwards, once.
"""

from __future__ import annotations

import itertools
import time
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from loadtest import people
from loadtest.crowd import gather, source_of
from loadtest.http_calls import Ask, Hear, Line, Lines, request
from loadtest.latencies import Latencies, count_us
from loadtest.parameters import option
from loadtest.people import PASSWORD, Member
from loadtest.progress import bar
from loadtest.result import Result
from loadtest.target import Broken, Missing, Target

HISTORY: Final = 50
KINDS: Final = ("login", "refresh", "profile", "conversations", "history", "send")
_encode: Final = msgspec.json.encode
_decode: Final[Callable[[bytes], Any]] = msgspec.json.decode


@dataclass(frozen=True, slots=True)
class Parameters:
    users: int = option(16, "Users, on a connection each.", least=3)
    conversations: int = option(10, "One-on-ones of each, at least.", least=1)
    texts: int = option(60, "Texts of each that are there before.", least=0)
    seconds: float = option(5.0, "How long each kind of call is measured.", least=0.1)
    text_bytes: int = option(200, "Size of each text.", least=20, most=10_000)


def run(target: Target, parameters: Parameters) -> Result:
    """`p95_ms` is of all calls but signing in. Raises Missing for https."""
    if urlsplit(target.url).scheme != "http":
        raise Missing("api speaks no TLS: point it at the server behind")
    members = gather(target, parameters.users).members
    talks = _talks(target, members, parameters.conversations)
    lines = Lines(target.url, [source_of(target, number) for number in range(parameters.users)])
    try:
        seats = zip(lines.all, members, talks, strict=True)
        askers = [_Asker(line, member, talk, parameters.text_bytes) for line, member, talk in seats]
        _prepare(lines, askers, parameters.texts)
        whole = _measure(target, lines, askers, parameters)
        whole.figures["sent"] = _check(target, askers)
    finally:
        lines.close()
    return whole


def _talks(target: Target, members: list[Member], each: int) -> list[str]:
    """With the next ones in the circle; of each the conversation that is read and written, the first."""
    first = []
    with bar("talks", len(members), "users") as shown:
        for at, member in enumerate(members):
            others = [members[(at + step) % len(members)] for step in range(1, min(each, len(members) - 1) + 1)]
            made = [people.make_pair(target.url, member, other) for other in others]
            first.append(made[0])
            shown.update(1)
    return first


@dataclass(slots=True)
class _Asker:
    """One user and what its connection asks."""

    line: Line
    member: Member
    conversation_id: str
    text_bytes: int
    username: str = ""
    refresh_token: str = ""
    sent: array[int] = field(default_factory=lambda: array("q"))
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    def ask_for(self, kind: str) -> None:
        ways: dict[str, tuple[Ask, Hear]] = {
            "login": (self._login, self._keep_refresh_token),
            "refresh": (self._refresh, self._keep_refresh_token),
            "profile": (partial(self._get, "/api/users/me"), self._keep_username),
            "conversations": (partial(self._get, "/api/conversations"), _not_empty),
            "history": (partial(self._get, f"/api/conversations/{self.conversation_id}/messages?limit={HISTORY}"), _not_empty),
            "send": (self._send, self._keep_sent),
        }
        self.line.ask, self.line.hear = ways[kind]

    def _login(self) -> bytes:
        wanted = {"username": self.username, "password": PASSWORD, "device_id": "api"}
        return request("POST", "/api/auth/login", body=_encode(wanted))

    def _refresh(self) -> bytes:
        return request("POST", "/api/auth/refresh", body=_encode({"refresh_token": self.refresh_token}))

    def _keep_refresh_token(self, body: bytes) -> None:
        self.refresh_token = _decode(body)["refresh_token"]

    def _get(self, path: str) -> bytes:
        return request("GET", path, token=self.member.token)

    def _keep_username(self, body: bytes) -> None:
        self.username = _decode(body)["username"]

    def _send(self) -> bytes:
        text = {"client_message_id": f"api-{next(self.numbers)}", "content": "x" * self.text_bytes}
        return request("POST", f"/api/conversations/{self.conversation_id}/messages", token=self.member.token, body=_encode(text))

    def _keep_sent(self, body: bytes) -> None:
        self.sent.append(_decode(body)["message_id"])


def _not_empty(body: bytes) -> None:
    if body.startswith(b'{"items":[]'):
        raise Broken("a page that cannot be empty was")


def _prepare(lines: Lines, askers: list[_Asker], texts: int) -> None:
    """Texts are there, names are known, and nothing is asked for the first time when it is measured."""
    for kind in ("profile", *["send"] * max(texts, 1), "conversations", "history", "login", "refresh"):
        for asker in askers:
            asker.ask_for(kind)
        lines.once()
    for asker in askers:
        del asker.line.times_ns[:]


def _measure(target: Target, lines: Lines, askers: list[_Asker], parameters: Parameters) -> Result:
    whole = Result("api", asdict(parameters), {})
    together = Latencies()
    for kind in KINDS:
        for asker in askers:
            asker.ask_for(kind)
        server_s, own_s = target.processor_s(), time.process_time()
        with bar(kind, 1, "kind"):
            took_s = lines.run(seconds=parameters.seconds)
        own_s = time.process_time() - own_s
        times_ns = array("q", itertools.chain.from_iterable(asker.line.times_ns for asker in askers))
        for asker in askers:
            del asker.line.times_ns[:]
        whole.figures |= {f"{kind}_per_s": len(times_ns) / took_s, f"{kind}_generator_share": own_s / took_s}
        if server_s is not None and (now_s := target.processor_s()) is not None:
            whole.figures[f"{kind}_server_us"] = (now_s - server_s) / len(times_ns) * 1e6
        whole.latencies[kind] = Latencies(count_us(times_ns))
        if kind != "login":
            together.add(whole.latencies[kind])
    whole.figures["least_per_s"] = min(whole.figures[f"{kind}_per_s"] for kind in KINDS[1:])
    whole.figures |= together.figures()
    return whole


def _check(target: Target, askers: list[_Asker]) -> int:
    """All texts that were answered are stored, each once."""
    with bar("count", len(askers), "users") as shown:
        for asker in askers:
            stored = Counter(people.stored_message_ids(target.url, asker.member))
            if len(set(asker.sent)) != len(asker.sent) or any(stored[message_id] != 1 for message_id in asker.sent):
                raise Broken(f"of {len(asker.sent)} texts that were sent some are not stored once")
            shown.update(1)
    return sum(len(asker.sent) for asker in askers)
