"""The frame of the HTTP application, through the listener and real sockets: problems, and the protocol itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
import quart
import trio
import trio.testing

from tests.http_house import SEEN, SIGNED_IN, client_of, exchange, house_app, is_problem, serving
from uim.admission import Admission
from uim.api import connection
from uim.api.app import new_app
from uim.api.connection import HttpFront, _one_at_a_time
from uim.listener import serve

pytestmark = pytest.mark.timeout(30)


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
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + DELETE, 400),
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


async def test_what_comes_during_a_long_answer_is_answered_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "WATCHED_AFTER_S", 0.01)
    app, (begun, go_on) = new_app(), trio.open_memory_channel[None](0)

    @app.get("/slow")
    async def slow() -> str:
        await begun.send(None)
        await trio.sleep(0.1)
        return "slow"

    @app.post("/note")
    async def note() -> bytes:
        return bytes(await quart.request.get_data())

    async with serving(app) as listener:
        stream = await trio.open_tcp_stream(*listener.addresses[0])
        for _ in range(3):
            await stream.send_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
            await go_on.receive()
            await stream.send_all(b"POST /note HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\nhalf")
            answers = b""
            with trio.fail_after(5):
                while not answers.endswith(b"slow"):
                    answers += await stream.receive_some()
                await stream.send_all(b"next")
                while not answers.endswith(b"halfnext"):
                    answers += await stream.receive_some()
            assert answers.count(b"HTTP/1.1 200") == 2


async def test_a_connection_is_good_for_more_than_a_thousand_requests() -> None:
    async with serving(new_app()) as listener:
        stream = await trio.open_tcp_stream(*listener.addresses[0])
        answers = b""
        with trio.fail_after(20):
            for number in range(1, 12):
                await stream.send_all(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
                while answers.count(b"HTTP/1.1 404") < 100 * number:
                    piece = await stream.receive_some()
                    assert piece, "hung up"
                    answers += piece


async def test_an_answer_that_takes_just_as_long_as_nobody_watches_ends_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "WATCHED_AFTER_S", 0.02)
    app = new_app()

    @app.get("/just")
    async def just() -> str:
        await trio.sleep_until(trio.current_time() + 0.0195)
        return "as long"

    async with serving(app) as listener:
        stream = await trio.open_tcp_stream(*listener.addresses[0])
        for _ in range(60):
            await stream.send_all(b"GET /just HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            with trio.fail_after(5):
                while not answer.endswith(b"as long"):
                    piece = await stream.receive_some()
                    assert piece, "hung up"
                    answer += piece


async def test_a_body_that_nobody_takes_is_read_no_further() -> None:
    app, go_on = new_app(), trio.Event()

    async def late(scope: Any, receive: Any, send: Any) -> None:
        await go_on.wait()
        await app(scope, receive, send)

    @app.post("/note")
    async def note() -> str:
        return str(len(await quart.request.get_data()))

    piece = b"400\r\n" + bytes(1024) + b"\r\n"
    async with serving(late) as listener:
        stream = await trio.open_tcp_stream(*listener.addresses[0])
        await stream.send_all(b"POST /note HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        sent = 0
        with trio.move_on_after(0.5):
            while True:
                await stream.send_all(piece * 100)
                sent += 100 * 1024
        assert sent < 16 * 1024 * 1024, "more than the kernel holds"
        go_on.set()
        with trio.fail_after(5):
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 413")


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


async def test_a_request_that_comes_after_finishing_on_a_connection_taken_before_is_answered() -> None:
    async with trio.open_nursery() as nursery:
        sockets = await trio.open_tcp_listeners(0, host="127.0.0.1")
        front = HttpFront(new_app(), keep_alive_s=60)
        listener = await nursery.start(partial(serve, sockets, tls=None, http=front, websocket=None, admission=Admission()))
        late = await trio.open_tcp_stream(*listener.addresses[0])
        await late.send_all(b"GET /nothing HTTP/1.1\r\n")
        await trio.testing.wait_all_tasks_blocked(0.05)  # the server waits for the rest of the head
        await listener.close_accepting()
        await front.finish()
        await late.send_all(b"Host: x\r\n\r\n")
        with trio.fail_after(5):
            assert b"".join([bytes(piece) async for piece in late]).startswith(b"HTTP/1.1 404")


class Turns(trio.abc.Instrument):
    """Counts the loop's turns."""

    number = 0

    def before_io_wait(self, timeout: float) -> None:
        self.number += 1


async def test_of_a_crowd_of_requests_one_begins_in_each_turn_of_the_loop() -> None:
    """And what takes long once it has begun keeps nobody from beginning."""
    turns = Turns()
    began: list[int] = []
    all_began = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        began.append(turns.number)
        if len(began) == 20:
            all_began.set()
        await all_began.wait()

    begin = _one_at_a_time(app)
    trio.lowlevel.add_instrument(turns)
    try:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(begin, {}, None, None)
    finally:
        trio.lowlevel.remove_instrument(turns)
    assert len(set(began)) == 20
