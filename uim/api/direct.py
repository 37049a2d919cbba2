"""The short way: a request that has come whole, for a path that the table of routes knows, is answered without Quart.

Quart, and Hypercorn's way to it, cost more than most of our answers do. Whatever else comes (other paths and methods, bodies in
pieces, odd paths) goes through Quart. Rule: nobody can tell which way a request went: the handlers, the failures, the headers and
the counts are the same ones (tests/test_direct.py).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Final
from uuid import UUID

import msgspec
import structlog
import trio

from uim.api.answers import Answer, Headers, plain_problem, problem
from uim.api.asking import Asking
from uim.errors import UIMError
from uim.metrics import Metrics

# A request of one route, with the texts in its path's places: its answer, or the refusal that is raised.
Answering = Callable[[Asking, dict[str, str]], Awaitable[Answer]]

_SANE_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# Nothing that Quart's router would decode, or take for a way up or a path that is not in order.
_PLAIN_PATH: Final = re.compile(r"(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)+")
_PLACE: Final = re.compile(r"<(\w+)>")

log = structlog.get_logger("uim.api")


def request_ids(randomness: Random) -> Callable[[], str]:
    """Names for requests: nobody gains by guessing one, and to ask the kernel for each takes longer than to read the request's head."""
    return lambda: str(UUID(int=randomness.getrandbits(128), version=4))


class Frame:
    """What is true of every request, whichever way it goes: its id, the headers of its answer, its bugs, its counts."""

    def __init__(self, metrics: Metrics | None = None, new_request_id: Callable[[], str] | None = None) -> None:
        self._new_request_id = new_request_id or request_ids(Random())
        if metrics is not None:
            # To look a series up by its labels takes three times as long as to count. As many as there are routes and statuses.
            self._requests_of = lru_cache(maxsize=None)(metrics.http_requests.labels)
            self._seconds_of = lru_cache(maxsize=None)(metrics.http_seconds.labels)
        self._is_counted = metrics is not None

    def name(self, brought: str | None) -> str:
        """The id under which a request is told of, here and in the log: its own, if it brings a sane one."""
        request_id = brought if brought is not None and _SANE_REQUEST_ID.fullmatch(brought) else self._new_request_id()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        return request_id

    def headers(self, request_id: str) -> Headers:
        """What every answer carries, unless it says something else itself."""
        return [(b"x-request-id", request_id.encode()), (b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]

    def count(self, method: str, rule: str, status: int, began_at: float) -> None:
        """By the route and never by the path, or a scanner would grow the memory."""
        if self._is_counted:
            method = method if method in _METHODS else "other"
            self._requests_of(method, rule, str(status)).inc()
            self._seconds_of(method, rule).observe(trio.current_time() - began_at)

    def bug(self, bug: Exception, *, method: str, path: str, request_id: str) -> Answer:
        """Told as `internal`, with its traceback in the log under the request's id."""
        # The path only: a query may carry a token.
        log.error("a request failed", method=method, path=path, request_id=request_id, exc_info=bug)
        return plain_problem("internal", 500, "the server has a bug; its operator finds it by the request id")


class Crowd:
    """Of requests that come all at once the first few begin at once, and each of the others in a turn of the loop of its own.

    To begin is a tenth of a millisecond without an await: whoever else has something to do would wait for all of a crowd. But to wait
    for the next turn costs as much as that, so those that come no faster than the few are not asked to.
    """

    def __init__(self, *, few: int = 8, within_s: float = 0.002) -> None:
        self._few, self._within_s = few, within_s
        self._since = float("-inf")
        self._passed = 0
        self._others = trio.Lock()

    async def pass_through(self) -> None:
        now = trio.current_time()
        if now - self._since > self._within_s:
            self._since, self._passed = now, 0
        self._passed += 1
        if self._passed > self._few:
            async with self._others:
                pass  # the lock is handed on in this turn, and its next owner runs in the next


class Found(msgspec.Struct, frozen=True):
    """The route of a request, and the texts in its path's places."""

    rule: str
    answering: Answering
    places: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Placed:
    rule: str
    parts: list[str | None]
    names: list[str]
    answering: Answering

    def match(self, parts: list[str]) -> Found | None:
        places: list[str] = []
        for part, wanted in zip(parts, self.parts, strict=True):
            if wanted is None:
                places.append(part)
            elif part != wanted:
                return None
        return Found(self.rule, self.answering, dict(zip(self.names, places, strict=True)))


class Direct:
    """The routes that are answered directly, by method and path."""

    def __init__(self, frame: Frame, *, max_body_bytes: int) -> None:
        self.max_body_bytes = max_body_bytes
        self._frame = frame
        self._fixed: dict[tuple[str, str], Found] = {}
        self._placed: dict[tuple[str, int], list[_Placed]] = {}
        self._crowd = Crowd()

    def add(self, method: str, rule: str, answering: Answering) -> None:
        """A route by its rule, as Quart has it: `/api/users/<user_id>`."""
        parts = [None if _PLACE.fullmatch(part) else part for part in rule.split("/")]
        if None not in parts:
            self._fixed[method, rule] = Found(rule, answering, {})
        else:
            placed = _Placed(rule, parts, _PLACE.findall(rule), answering)
            self._placed.setdefault((method, len(parts)), []).append(placed)

    def find(self, method: str, path: str) -> Found | None:
        """The route of that path, as it stands in the request; None is for Quart."""
        if found := self._fixed.get((method, path)):
            return found
        if not _PLAIN_PATH.fullmatch(path):
            return None
        parts = path.split("/")
        candidates = self._placed.get((method, len(parts)), ())
        return next((found for placed in candidates if (found := placed.match(parts))), None)

    async def answer(self, found: Found, asking: Asking) -> Answer:
        """Never raises but for cancellation."""
        await self._crowd.pass_through()
        began_at = trio.current_time()
        request_id = self._frame.name(asking.first(b"x-request-id"))
        try:
            answer = await found.answering(asking, found.places)
        except Exception as failure:
            answer = self._told(failure, asking, request_id)
        self._frame.count(asking.method, found.rule, answer.status, began_at)
        length = (b"content-length", b"%d" % len(answer.body))
        return Answer(answer.status, answer.body, [*answer.headers, length, *self._frame.headers(request_id)])

    def _told(self, failure: Exception, asking: Asking, request_id: str) -> Answer:
        # Of what failed together the first is told, as Quart does it.
        while isinstance(failure, ExceptionGroup):
            failure = failure.exceptions[0]
        if isinstance(failure, UIMError):
            return problem(failure)
        return self._frame.bug(failure, method=asking.method, path=asking.path, request_id=request_id)
