"""A small house behind the HTTP front: routes of each kind, served over real sockets.

What the tests of the HTTP front share; it has no tests of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any
from uuid import UUID

import httpx
import msgspec
import trio
import trio.testing

from uim.admission import Admission
from uim.api.app import new_app
from uim.api.asking import Asking
from uim.api.connection import HttpFront
from uim.api.exchange import App
from uim.api.openapi import add_openapi
from uim.api.routes import Routes, register
from uim.errors import UIMError
from uim.listener import Listener, serve
from uim.metrics import Metrics

SOME_ID = UUID("01234567-89ab-cdef-0123-456789abcdef")


class Note(msgspec.Struct, forbid_unknown_fields=True):
    text: Annotated[str, msgspec.Meta(max_length=200_000)]
    tags: list[str] = []
    metadata: dict[str, str] = {}


class Page(msgspec.Struct, forbid_unknown_fields=True):
    limit: Annotated[int, msgspec.Meta(ge=1, le=100)] = 50
    q: str = ""


class Seen(msgspec.Struct):
    user_id: UUID
    message_id: int
    limit: int
    at: datetime


class Caller(msgspec.Struct, frozen=True):
    username: str


async def authenticate(asking: Asking) -> Caller:
    if asking.header(b"authorization") != "Bearer good":
        raise UIMError("unauthorized", "sign in")
    return Caller("alice")


def make_routes() -> Routes:
    routes = Routes()

    @routes.route("POST", "/api/notes", body=Note, answers=Note, status=201, signed_in=False, summary="Echo")
    async def post_note(*, body: Note) -> Note:
        return body

    @routes.route("GET", "/api/users/{user_id}/messages/{message_id}", query=Page, answers=Seen)
    async def see(caller: Caller, *, user_id: UUID, message_id: int, query: Page) -> Seen:
        assert caller.username == "alice"
        return Seen(user_id, message_id, query.limit, datetime(2026, 1, 2, 3, 4, 5, 678_901, UTC))

    @routes.route("DELETE", "/api/notes", signed_in=False)
    async def delete_notes() -> None:
        return None

    @routes.route("GET", "/api/bug", answers=Note, signed_in=False)
    async def meet_bug() -> Note:
        raise RuntimeError("the secret is 42")

    @routes.route("GET", "/api/busy", answers=Note, signed_in=False)
    async def be_busy() -> Note:
        raise UIMError("rate_limited", "slower", retry_after_s=1.25)

    @routes.route("GET", "/api/group", answers=Note, signed_in=False)
    async def refuse_in_a_group() -> Note:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refuse)
        raise AssertionError

    async def refuse() -> None:
        raise UIMError("conflict", "not so")

    @routes.route("GET", "/api/stuck", answers=Note, signed_in=False)
    async def hang() -> Note:
        await trio.sleep_forever()
        raise AssertionError

    add_openapi(routes, title="UIM", version="1")
    return routes


@asynccontextmanager
async def serving(
    app: App, *, admission: Admission | None = None, keep_alive_s: float = 5.0
) -> AsyncIterator[Listener]:
    async with trio.open_nursery() as nursery:
        sockets = await trio.open_tcp_listeners(0, host="127.0.0.1")
        front = HttpFront(app, keep_alive_s=keep_alive_s)
        start = partial(
            serve, sockets, tls=None, http=front, websocket=None, admission=admission or Admission()
        )  # fmt: skip
        yield await nursery.start(start)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def client_of(app: App, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(app, **options) as listener:
        host, port = listener.addresses[0]
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}") as client:
            yield client


def house_app(*, metrics: Metrics | None = None, body_s: float = 5.0, admission: Admission | None = None) -> App:
    app = new_app(metrics=metrics, body_s=body_s)
    on_signed_in = admission.signed_in if admission is not None else None
    register(app, make_routes(), authenticate=authenticate, on_signed_in=on_signed_in, handler_s=0.3)
    return app


def is_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.headers["Content-Type"] == "application/problem+json", answer.text
    told: dict[str, Any] = answer.json()
    assert (answer.status_code, told["status"], told["code"]) == (status, status, code), told
    assert {"type", "title", "detail"} <= told.keys()
    assert answer.headers["X-Request-ID"] and answer.headers["Cache-Control"] == "no-store"
    return told


SIGNED_IN = {"Authorization": "Bearer good"}
SEEN = f"/api/users/{SOME_ID}/messages/7"
JSON = {"Content-Type": "application/json"}


async def exchange(listener: Listener, request: bytes) -> bytes:
    """All that the server says to these bytes, until it closes."""
    stream = await trio.open_tcp_stream(*listener.addresses[0])
    await stream.send_all(request)
    with trio.fail_after(10):
        return b"".join([bytes(piece) async for piece in stream])
