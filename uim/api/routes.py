"""The table of routes: what each takes and answers, once, for the application and for OpenAPI alike.

A room of the HTTP front adds its handlers to a `Routes` (they get the house by closure); `register` puts the table
into the application. Rule: a handler is called with checked values alone: the caller it asked for, ids of its path,
its query and its body; and it answers with a value, or raises a refusal.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec
import quart
import trio
from quart import Response

from uim.api.answers import Answer, answer
from uim.api.asking import Asking, asking_of
from uim.api.direct import Answering
from uim.api.exchange import App, response_of
from uim.api.requests import parse_query, path_id, path_number, read_body
from uim.errors import UIMError

HANDLER_S: Final = 30.0
_NUMBERED: Final = frozenset({"message_id"})
_PLACE: Final = re.compile(r"\{(\w+)\}")

Handler = Callable[..., Awaitable[object]]
HandlerT = TypeVar("HandlerT", bound=Handler)
Authenticate = Callable[[Asking], Awaitable[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One method of one path. `answers` is the type of its JSON on success, None for no body; `also`: those of other successes."""

    method: str
    path: str
    handler: Handler
    body: Any
    query: Any
    answers: Any
    status: int
    also: Mapping[int, Any]
    signed_in: bool
    asking: bool
    streams: bool
    summary: str

    @property
    def places(self) -> list[str]:
        """The names in the path's braces, in order."""
        return _PLACE.findall(self.path)


class _NoQuery(msgspec.Struct, forbid_unknown_fields=True):
    pass


class Routes:
    """The routes of one application, in the order in which they were added."""

    def __init__(self) -> None:
        self._routes: list[Route] = []

    def __iter__(self) -> Iterator[Route]:
        return iter(self._routes)

    def route(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Any = None,
        answers: Any = None,
        status: int | None = None,
        also: Mapping[int, Any] | None = None,
        signed_in: bool = True,
        asking: bool = False,
        streams: bool = False,
        summary: str = "",
    ) -> Callable[[HandlerT], HandlerT]:
        """Add the decorated handler under `path`, where `{user_id}` stands for a UUID and `{message_id}` for a number.

        It is called as `handler(caller, asking=…, user_id=…, query=…, body=…)`, with only what the route names: `caller` if
        `signed_in`, the request itself if `asking`, `query` and `body` if their types are given. What it returns is the JSON of
        the answer (None: no body), under `status` (200, or 204 without `answers`), or an Answer of its own, e.g.
        `answer(value, 201)`; a route that `streams` returns Quart's Response.
        """

        def add(handler: HandlerT) -> HandlerT:
            self._routes.append(
                Route(
                    method=method,
                    path=path,
                    handler=handler,
                    body=body,
                    query=query,
                    answers=answers,
                    status=status or (200 if answers is not None else 204),
                    also=also or {},
                    signed_in=signed_in,
                    asking=asking,
                    streams=streams,
                    summary=summary,
                )
            )
            return handler

        return add


def register(
    app: App,
    routes: Routes,
    *,
    authenticate: Authenticate,
    on_signed_in: Callable[[str, int, Any], None] | None = None,
    turn_of: Callable[[Any], AbstractAsyncContextManager[None]] | None = None,
    handler_s: float = HANDLER_S,
) -> None:
    """Put every route into the application.

    `authenticate(asking)` finds the caller of a signed-in route or raises its refusal; `on_signed_in(address, port, caller)`
    hears of each success, by the address of the connection itself. Its handler runs inside `turn_of(caller)`, once its
    body is there: who sends it drop by drop keeps nobody waiting. A handler that takes more than `handler_s` is
    cancelled and answers 503.
    """
    for route in routes:
        answering = _answering(route, authenticate, on_signed_in, turn_of, handler_s)
        rule = _PLACE.sub(r"<\1>", route.path)
        app.add_url_rule(rule, f"{route.method} {route.path}", _view(route, answering), methods=[route.method])
        if not route.streams:
            app.direct.add(route.method, rule, _whole(route, answering))


def _view(route: Route, answering: _Answering) -> Callable[..., Awaitable[Response]]:
    async def view(**places: str) -> Response:
        value = await answering(asking_of(quart.request), places)
        return value if isinstance(value, Response) else response_of(_answer(route, value))

    return view


def _whole(route: Route, answering: _Answering) -> Answering:
    async def answer_whole(asking: Asking, places: dict[str, str]) -> Answer:
        return _answer(route, await answering(asking, places))

    return answer_whole


def _answer(route: Route, value: object) -> Answer:
    return value if isinstance(value, Answer) else answer(value, route.status)


# What a handler returns.
_Answering = Callable[[Asking, dict[str, str]], Awaitable[object]]


def _answering(
    route: Route,
    authenticate: Authenticate,
    on_signed_in: Callable[[str, int, Any], None] | None,
    turn_of: Callable[[Any], AbstractAsyncContextManager[None]] | None,
    handler_s: float,
) -> _Answering:
    async def find_caller(asking: Asking) -> list[object]:
        if not route.signed_in:
            return []
        caller = await authenticate(asking)
        if on_signed_in is not None and asking.client is not None:
            on_signed_in(*asking.client, caller)
        return [caller]

    async def answer_to(asking: Asking, places: dict[str, str]) -> object:
        with trio.move_on_after(handler_s):
            callers = await find_caller(asking)
            arguments = await _arguments(route, asking, places)
            async with turn_of(callers[0]) if turn_of is not None and callers else nullcontext():
                return await route.handler(*callers, **arguments)
        raise UIMError("unavailable", "this took too long", retry_after_s=2.0)

    return answer_to


async def _arguments(route: Route, asking: Asking, places: dict[str, str]) -> dict[str, object]:
    arguments: dict[str, object] = {"asking": asking} if route.asking else {}
    for name, text in places.items():
        arguments[name] = path_number(text, name) if name in _NUMBERED else path_id(text, name)
    # A parameter that nobody asked for is a mistake too, and a silent one if it is let through.
    query = parse_query(asking.query, route.query or _NoQuery)
    if route.query is not None:
        arguments["query"] = query
    if route.body is not None:
        arguments["body"] = await read_body(asking, route.body)
    return arguments
