"""The frame of the HTTP application, through the listener and real sockets: bodies, queries, ids, problems, health."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import httpx
import msgspec
import pytest
import quart
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from quart_trio import QuartTrio

from uim.admission import Admission
from uim.api.answers import to_json
from uim.api.app import MAX_BODY_BYTES, new_app
from uim.api.connection import HttpFront
from uim.api.openapi import add_openapi
from uim.api.operations import Checkup, add_public_health, free_memory, judge_free, operations_app
from uim.api.requests import parse_body, parse_query, path_id, path_number
from uim.api.routes import Routes, register
from uim.errors import UIMError
from uim.listener import Listener, serve
from uim.metrics import Metrics

pytestmark = pytest.mark.timeout(30)

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


async def authenticate(request: quart.Request) -> Caller:
    if request.headers.get("Authorization") != "Bearer good":
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
    app: QuartTrio, *, admission: Admission | None = None, keep_alive_s: float = 5.0
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
async def client_of(app: QuartTrio, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(app, **options) as listener:
        host, port = listener.addresses[0]
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}") as client:
            yield client


def house_app(*, metrics: Metrics | None = None, body_s: float = 5.0, admission: Admission | None = None) -> QuartTrio:
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


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("body", "status", "errors"),
    [
        (b'{"text": "hi"}', 201, None),
        (b'{"text": "\\ud83d\\ude00 \xf0\x9f\x98\x80"}', 201, None),
        (b"", 400, None),
        (b"{", 400, None),
        (b'{"text": "a",}', 400, None),
        (b'{"text": "a"} and more', 400, None),
        (b'{"text": "\xff"}', 400, None),
        (b'{"text": "a\x00"}', 400, None),
        (b'{"text": 1, "tags": ', 400, None),
        (b'{"text": NaN}', 400, None),
        (b"[" * 100_000, 400, None),
        (b'{"text": "a", "tags": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", 400, None),
        (b"[]", 422, {""}),
        (b"null", 422, {""}),
        (b"{}", 422, {"text"}),
        (b'{"text": 1}', 422, {"text"}),
        (b'{"text": null}', 422, {"text"}),
        (b'{"text": "a", "tags": ["b", 3]}', 422, {"tags[1]"}),
        (b'{"text": "a", "colour": "red"}', 422, {"colour"}),
        (b'{"text": "a\\u0000"}', 422, {"text"}),
        (b'{"text": "a", "tags": ["b", "\\u0000"]}', 422, {"tags[1]"}),
        (b'{"text": "a", "metadata": {"k": "\\u0000"}}', 422, {"metadata.k"}),
        (b'{"text": "a", "metadata": {"k\\u0000": "v"}}', 422, {"metadata.k\N{REPLACEMENT CHARACTER}"}),
        (b'{"text": "\\ud800"}', 422, {"text"}),
        (b'{"text": "a", "metadata": {"k": "x\\udc00y and more"}}', 422, {"metadata.k"}),
        (b'{"text": "\\ud800\\ud800"}', 422, {"text"}),
        (b'{"text": "a", "tags": 1e999}', 422, {""}),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_body_gives_a_value_or_says_what_is_wrong(body: bytes, status: int, errors: set[str] | None) -> None:
    async with client_of(house_app()) as client:
        answer = await client.post("/api/notes", content=body, headers=JSON)
        if status == 201:
            assert answer.status_code == 201 and answer.json()["text"] == json.loads(body)["text"]
            return
        told = is_problem(answer, status, "bad_request" if status == 400 else "validation_failed")
        assert set(told.get("errors", {})) == (errors or set())


@given(st.binary(max_size=300) | st.text(max_size=50).map(lambda text: b'{"text": "%s"}' % text.encode()))
def test_any_bytes_give_a_value_or_a_refusal(body: bytes) -> None:
    for parse, type_ in ((parse_body, Note), (parse_query, Page)):
        try:
            assert isinstance(parse(body, type_), type_)
        except UIMError as refusal:
            assert refusal.code in ("bad_request", "validation_failed")


async def test_body_that_is_not_json_by_its_type_is_415() -> None:
    async with client_of(house_app()) as client:
        for headers in ({"Content-Type": "text/plain"}, {}):
            answer = await client.post("/api/notes", content=b'{"text": "a"}', headers=headers)
            is_problem(answer, 415, "unsupported_media_type")
        charset = {"Content-Type": "application/json; charset=utf-8"}
        assert (await client.post("/api/notes", content=b'{"text": "a"}', headers=charset)).status_code == 201


async def test_body_over_128_kib_is_413_with_its_length_told_or_in_chunks() -> None:
    def note_of(size: int) -> bytes:
        return b'{"text": "' + b"a" * (size - 12) + b'"}'

    async def in_chunks(body: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(body), 4096):
            yield body[start : start + 4096]

    async with client_of(house_app()) as client:
        most, over = note_of(MAX_BODY_BYTES), note_of(MAX_BODY_BYTES + 1)
        assert (await client.post("/api/notes", content=most, headers=JSON)).status_code == 201
        assert (await client.post("/api/notes", content=in_chunks(most), headers=JSON)).status_code == 201
        for body in (over, note_of(3 * MAX_BODY_BYTES)):
            is_problem(await client.post("/api/notes", content=body, headers=JSON), 413, "payload_too_large")
            chunked = await client.post("/api/notes", content=in_chunks(body), headers=JSON)
            is_problem(chunked, 413, "payload_too_large")
        assert (await client.delete("/api/notes")).status_code == 204, "the server lives"


async def test_body_by_drops_is_cut() -> None:
    async with serving(house_app(body_s=0.2)) as listener:
        head = b"POST /api/notes HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
        answer = await exchange(listener, head + b"{")
        assert answer.startswith(b"HTTP/1.1 408 ") and b'"code":"bad_request"' in answer


SIGNED_IN = {"Authorization": "Bearer good"}
SEEN = f"/api/users/{SOME_ID}/messages/7"


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("limit=", "limit"),
        ("limit=" + "9" * 5000, "limit"),
        ("limit=1&limit=2", "limit"),
        ("colour=red", "colour"),
        ("q=%00", "q"),
        ("q=%ff", ""),
        ("q=%ed%a0%80", ""),
        ("&".join(f"q{n}=" for n in range(100)), ""),
    ],
    ids=lambda value: value[:20],
)
async def test_bad_query_names_its_parameter(query: str, field: str) -> None:
    async with client_of(house_app()) as client:
        told = is_problem(await client.get(f"{SEEN}?{query}", headers=SIGNED_IN), 422, "validation_failed")
        assert list(told["errors"]) == [field]


async def test_handler_gets_caller_ids_and_query() -> None:
    async with client_of(house_app()) as client:
        answer = await client.get(f"{SEEN}?limit=3&q=%F0%9F%98%80", headers=SIGNED_IN)
        seen = {"user_id": str(SOME_ID), "message_id": 7, "limit": 3, "at": "2026-01-02T03:04:05.678Z"}
        assert answer.json() == seen and answer.headers["Content-Type"] == "application/json"
        told = is_problem(await client.get(SEEN), 401, "unauthorized")
        assert told["detail"] == "sign in"
        assert (await client.get(SEEN)).headers["WWW-Authenticate"] == "Bearer"
        is_problem(await client.get("/api/openapi.json?x=1"), 422, "validation_failed")


@pytest.mark.parametrize("text", ["x", "", str(SOME_ID)[:-1], "{" + str(SOME_ID) + "}", SOME_ID.hex, "\x00", "٣"])
def test_malformed_id_names_nothing(text: str) -> None:
    for read in (path_id, path_number):
        with pytest.raises(UIMError) as refusal:
            read(text, "user_id")
        assert refusal.value.code == "not_found"


@pytest.mark.parametrize("text", ["0", "-1", "007", "1.0", "9007199254740992", "9" * 5000])
def test_number_that_is_no_message_id_names_nothing(text: str) -> None:
    with pytest.raises(UIMError) as refusal:
        path_number(text, "message_id")
    assert refusal.value.code == "not_found"
    assert path_number("9007199254740991", "message_id") == 2**53 - 1
    assert path_id(str(SOME_ID).upper(), "user_id") == SOME_ID


@pytest.mark.parametrize("path", ["/nothing", "/api//notes", "/api/notes/", "/static/x", "/ws", "/%ff%00", "/../etc"])
async def test_unknown_path_is_404(path: str) -> None:
    async with client_of(house_app()) as client:
        is_problem(await client.get(path), 404, "not_found")


async def test_other_methods_are_405_and_say_what_is_allowed() -> None:
    async with client_of(house_app()) as client:
        answer = await client.put("/api/notes")
        is_problem(answer, 405, "method_not_allowed")
        assert answer.headers["Allow"] == "DELETE, OPTIONS, POST"
        is_problem(await client.request("BREW", "/api/notes"), 405, "method_not_allowed")
        options = await client.options("/api/notes")
        assert options.status_code == 200 and set(options.headers["Allow"].split(", ")) == {"DELETE", "OPTIONS", "POST"}
        head = await client.head(SEEN, headers=SIGNED_IN)
        assert head.status_code == 200 and head.content == b"" and int(head.headers["Content-Length"]) > 50
        assert (await client.head("/nothing")).status_code == 404


async def test_bug_is_a_500_that_tells_nothing_and_the_server_lives(capsys: pytest.CaptureFixture[str]) -> None:
    async with client_of(house_app()) as client:
        answer = await client.get("/api/bug", headers={"X-Request-ID": "req-7"})
        is_problem(answer, 500, "internal")
        assert "42" not in answer.text and answer.headers["X-Request-ID"] == "req-7"
        assert (await client.delete("/api/notes")).status_code == 204
    logged = capsys.readouterr().out
    assert "the secret is 42" in logged and "req-7" in logged


async def test_refusal_out_of_a_nursery_is_a_refusal() -> None:
    async with client_of(house_app()) as client:
        assert is_problem(await client.get("/api/group"), 409, "conflict")["detail"] == "not so"


async def test_answer_without_a_body_has_no_content_type() -> None:
    async with client_of(house_app()) as client:
        answer = await client.delete("/api/notes")
        assert answer.status_code == 204 and "Content-Type" not in answer.headers


async def test_refusal_says_when_to_come_back() -> None:
    async with client_of(house_app()) as client:
        answer = await client.get("/api/busy")
        assert is_problem(answer, 429, "rate_limited")["retry_after"] == 1.25
        assert answer.headers["Retry-After"] == "2"


async def test_handler_over_its_time_is_503() -> None:
    async with client_of(house_app()) as client:
        is_problem(await client.get("/api/stuck"), 503, "unavailable")


async def test_request_id_is_taken_if_sane_else_made() -> None:
    async with client_of(house_app()) as client:
        for brought, is_kept in (("abc-1.2_3", True), ("a b", False), ("x" * 65, False), ("a;drop", False)):
            answer = await client.delete("/api/notes", headers={"X-Request-ID": brought})
            assert (answer.headers["X-Request-ID"] == brought) is is_kept
        assert "server" not in answer.headers


# --- the protocol itself -------------------------------------------------------------------------------------------


async def exchange(listener: Listener, request: bytes) -> bytes:
    """All that the server says to these bytes, until it closes."""
    stream = await trio.open_tcp_stream(*listener.addresses[0])
    await stream.send_all(request)
    with trio.fail_after(10):
        return b"".join([bytes(piece) async for piece in stream])


DELETE = b"DELETE /api/notes HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"DELETE /api/notes HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


async def test_pipelined_requests_are_answered_in_order() -> None:
    note = b'{"text":"one"}'
    post = b"POST /api/notes HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
    async with serving(house_app()) as listener:
        answer = await exchange(listener, DELETE + post % (len(note), note) + DELETE + LAST)
        assert answer.count(b"HTTP/1.1 204") == 3 and answer.count(b"HTTP/1.1 201") == 1
        assert answer.index(b"HTTP/1.1 204") < answer.index(b"HTTP/1.1 201") < answer.rindex(b"HTTP/1.1 204")


async def test_idle_connection_ends_after_its_time() -> None:
    async with serving(house_app(), keep_alive_s=0.2) as listener:
        assert (await exchange(listener, DELETE)).count(b"HTTP/1.1 204") == 1
        assert (await exchange(listener, DELETE + b"DELETE /api/no")).count(b"HTTP/1.1") == 1


UPGRADE = b"GET %s HTTP/1.1\r\nHost: x\r\nConnection: %s\r\nUpgrade: %s\r\n%s\r\n"
WEBSOCKET = UPGRADE % (
    b"/nothing",
    b"Upgrade",
    b"websocket",
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
)
H2C = UPGRADE % (b"/nothing", b"Upgrade, HTTP2-Settings", b"h2c", b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n")
H2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@pytest.mark.parametrize("before", [b"", DELETE], ids=["first", "later"])
@pytest.mark.parametrize("request_", [WEBSOCKET, H2C, H2], ids=["websocket", "h2c", "h2"])
async def test_no_request_leaves_http_1(before: bytes, request_: bytes) -> None:
    async with serving(house_app(), keep_alive_s=0.3) as listener:
        answer = await exchange(listener, before + request_)
        assert b"101 Switching" not in answer and b"\x00" not in answer
        assert answer.count(b"HTTP/1.1 204") == (1 if before else 0)
        refused = answer[answer.rindex(b"HTTP/1.1 ") :] if request_ != H2 else answer
        assert (b"HTTP/1.1 404 " in refused or b"HTTP/1.1 405 " in refused or b"HTTP/1.1 400 " in refused), answer
        assert b"application/problem+json" in refused


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (DELETE + b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 17_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: \xff<>@:::/\r\nConnection: close\r\n\r\n", 404),
        (b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
        (b"GET http://other/nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
        (b"GET /nothing HTTP/1.0\r\n\r\n", 404),
    ],
    ids=lambda value: repr(value)[:30],
)
async def test_strange_requests_are_told_as_problems(request_: bytes, status: int) -> None:
    async with serving(house_app()) as listener:
        answer = await exchange(listener, request_)
        last = answer[answer.rindex(b"HTTP/1.1 ") :]
        assert last.startswith(b"HTTP/1.1 %d " % status), answer
        assert b"application/problem+json" in last and b"x-request-id: " in last.lower()
        assert (await exchange(listener, LAST)).startswith(b"HTTP/1.1 204"), "the server lives"


async def test_signing_in_frees_the_connections_place() -> None:
    admission = Admission()
    async with client_of(house_app(admission=admission), admission=admission) as client:
        assert (await client.get("/nothing")).status_code == 404
        assert admission.strangers == 1
        assert (await client.get(SEEN, headers=SIGNED_IN)).status_code == 200
        assert admission.strangers == 0


async def test_client_that_leaves_cancels_its_handler() -> None:
    began, cancelled = trio.Event(), trio.Event()
    app = new_app()

    @app.get("/wait")
    async def wait() -> str:
        began.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()
        raise AssertionError

    async with serving(app) as listener:
        stream = await trio.open_tcp_stream(*listener.addresses[0])
        await stream.send_all(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        await began.wait()
        await stream.aclose()
        with trio.fail_after(5):
            await cancelled.wait()


async def test_stopping_does_not_wait_for_a_client_that_reads_nothing() -> None:
    app, pouring = new_app(), trio.Event()

    @app.get("/pour")
    async def pour() -> quart.Response:
        async def pieces() -> AsyncIterator[bytes]:
            pouring.set()
            while True:
                yield bytes(1 << 20)

        return quart.Response(pieces())

    with trio.fail_after(5):
        async with serving(app) as listener:
            stream = await trio.open_tcp_stream(*listener.addresses[0])
            await stream.send_all(b"GET /pour HTTP/1.1\r\nHost: x\r\n\r\n")
            await pouring.wait()
            # Until no buffer takes any more.
            await trio.testing.wait_all_tasks_blocked(0.05)


async def test_finishing_ends_idle_connections_and_lets_an_answer_be_given() -> None:
    app, began, go_on = new_app(), trio.Event(), trio.Event()

    @app.get("/slow")
    async def slow() -> str:
        began.set()
        await go_on.wait()
        return "done"

    async with trio.open_nursery() as nursery:
        sockets = await trio.open_tcp_listeners(0, host="127.0.0.1")
        front = HttpFront(app, keep_alive_s=60)
        start = partial(serve, sockets, tls=None, http=front, websocket=None, admission=Admission())
        listener = await nursery.start(start)
        idle = await trio.open_tcp_stream(*listener.addresses[0])
        await idle.send_all(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await idle.receive_some()).startswith(b"HTTP/1.1 404")
        busy = await trio.open_tcp_stream(*listener.addresses[0])
        await busy.send_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        await began.wait()

        await listener.close_accepting()
        await front.finish()
        with trio.fail_after(5):
            async for _ in idle:
                pass
            go_on.set()
            assert b"".join([bytes(piece) async for piece in busy]).endswith(b"done")
        # And so serve returns, and this nursery ends.


# --- what is told about the server ----------------------------------------------------------------------------------


async def test_openapi_tells_what_the_routes_check() -> None:
    async with client_of(house_app()) as client:
        document = (await client.get("/api/openapi.json")).json()
        assert document["openapi"].startswith("3.1")
        see = document["paths"]["/api/users/{user_id}/messages/{message_id}"]["get"]
        assert [parameter["name"] for parameter in see["parameters"]] == ["user_id", "message_id", "limit", "q"]
        assert see["security"] == [{"bearer": []}]
        post = document["paths"]["/api/notes"]["post"]
        assert post["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Note"}
        assert document["components"]["schemas"]["Note"]["additionalProperties"] is False
        assert "201" in post["responses"] and post["security"] == []


async def fine() -> None:
    await trio.lowlevel.checkpoint()


async def away() -> None:
    raise ConnectionRefusedError("no server there")


@pytest.mark.parametrize(
    ("postgresql", "redis", "status", "http_status"),
    [
        (fine, fine, "ok", 200),
        (fine, away, "degraded", 200),
        (away, fine, "failed", 503),
        (trio.sleep_forever, fine, "failed", 503),
    ],
)
async def test_health_is_that_of_the_worst(
    postgresql: Any, redis: Any, status: str, http_status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This machine's own disk and memory may be short.
    monkeypatch.setattr("uim.api.operations.judge_free", lambda free: "ok")
    checkup = Checkup(postgresql=postgresql, redis=redis, disk=tmp_path, probe_s=0.1)
    public = new_app()
    add_public_health(public, checkup)
    async with client_of(public) as client:
        answer = await client.get("/health")
        assert (answer.status_code, answer.json()) == (http_status, {"status": status})
        assert (await client.get("/health/ready")).status_code == http_status
        assert (await client.get("/health/live")).json() == {"status": "ok"}
        is_problem(await client.get("/metrics"), 404, "not_found")
    async with client_of(operations_app(checkup, Metrics(CollectorRegistry()))) as client:
        full = await client.get("/health")
        assert full.status_code == http_status and full.json()["status"] == status
        checks = full.json()["checks"]
        assert list(checks) == ["disk", "memory", "postgresql", "redis"] and checks["disk"] == {"status": "ok"}
        assert all(check["status"] == "ok" or check["error"] for check in checks.values())


async def test_draining_is_not_ready() -> None:
    public = new_app()
    checkup = Checkup(postgresql=fine, redis=fine, disk=Path("/"))
    add_public_health(public, checkup, is_draining=lambda: True)
    async with client_of(public) as client:
        assert (await client.get("/health/ready")).status_code == 503
        assert (await client.get("/health/live")).status_code == 200


async def test_health_asks_once_a_second_however_often_it_is_called(autojump_clock: trio.abc.Clock) -> None:
    asked = []

    async def count() -> None:
        asked.append(1)

    checkup = Checkup(postgresql=count, redis=fine, disk=Path("/"))
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(checkup.health)
    assert len(asked) == 1
    await trio.sleep(1.1)
    await checkup.health()
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("free", "status"), [(1.0, "ok"), (0.10, "ok"), (0.0999, "degraded"), (0.02, "degraded"), (0.0199, "failed")]
)
def test_free_space_is_judged(free: float, status: str) -> None:
    assert judge_free(free) == status


def test_memory_is_judged_by_the_tighter_limit(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       1000 kB\nMemAvailable:    400 kB\nHugePages_Total:       0\n")
    assert free_memory(tmp_path, tmp_path) == 0.4
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("950\n")
    (tmp_path / "memory.stat").write_text("anon 800\ninactive_file 50\n")
    assert free_memory(tmp_path, tmp_path) == 0.4
    (tmp_path / "memory.max").write_text("1000\n")
    assert free_memory(tmp_path, tmp_path) == pytest.approx(0.1)


async def test_metrics_count_by_route_and_not_by_path() -> None:
    metrics = Metrics(CollectorRegistry())
    async with client_of(house_app(metrics=metrics)) as client:
        await client.get(SEEN, headers=SIGNED_IN)
        await client.get("/scan/me")
        await client.request("BREW", "/scan/me")
    async with client_of(operations_app(Checkup(postgresql=fine, redis=fine, disk=Path("/")), metrics)) as client:
        told = (await client.get("/metrics")).text
        route = "/api/users/<user_id>/messages/<message_id>"
        assert f'uim_http_requests_total{{method="GET",route="{route}",status="200"}} 1.0' in told
        assert 'uim_http_requests_total{method="other",route="none",status="404"} 1.0' in told
        assert "scan" not in told and str(SOME_ID) not in told


def test_times_go_out_in_utc_with_milliseconds() -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, 999_999, timezone(timedelta(hours=2)))
    assert to_json([{"at": at}, (at,)]) == b'[{"at":"2026-01-02T01:04:05.999Z"},["2026-01-02T01:04:05.999Z"]]'
    with pytest.raises(ValueError, match="zone"):
        to_json(at.replace(tzinfo=None))
