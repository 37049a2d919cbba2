"""The short way: no client can tell which way its request went. Each request is sent twice, once so that Quart answers it."""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import uuid4

import msgspec
import pytest
import trio
from prometheus_client import CollectorRegistry

from tests.http_house import JSON, SEEN, SIGNED_IN, client_of, exchange, house_app, serving
from uim.admission import Admission
from uim.api.answers import json_answer
from uim.api.connection import HttpFront
from uim.api.direct import Crowd, Direct, Frame
from uim.api.exchange import App
from uim.listener import Listener, serve
from uim.metrics import Metrics

pytestmark = pytest.mark.timeout(60)

# What differs from one answer to the next, whichever way it comes.
PASSING = {"date", "x-request-id"}
NOTE = msgspec.json.encode({"text": "a"})


def house_of_two_ways() -> tuple[App, list[str]]:
    """An application, and the paths that Quart itself has answered so far."""
    app = house_app()
    by_quart: list[str] = []
    handle = app.handle_request

    async def handle_request(request: Any) -> Any:
        by_quart.append(request.path)
        return await handle(request)

    app.handle_request = handle_request  # type: ignore[method-assign]  # the test's own ear
    return app, by_quart


async def told(listener: Listener, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[list[str], bytes, str]:
    """The head of an answer, its body, and its request id. The request is written in one piece."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", *(f"{name}: {value}" for name, value in headers.items())]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    head, _, content = (await exchange(listener, "\r\n".join([*lines, "", ""]).encode() + body)).partition(b"\r\n\r\n")
    said = head.decode().split("\r\n")
    (request_id,) = [line.partition(": ")[2] for line in said if line.startswith("x-request-id")]
    return [line for line in said if line.partition(":")[0] not in PASSING], content, request_id


REQUESTS = [
    ("GET", SEEN, SIGNED_IN, b""),
    ("GET", SEEN + "?limit=7", SIGNED_IN, b""),
    ("GET", SEEN + "?limit=0", SIGNED_IN, b""),
    ("GET", SEEN + "?limit=1&limit=2", SIGNED_IN, b""),
    ("GET", SEEN + "?what=1", SIGNED_IN, b""),
    ("GET", SEEN, {}, b""),
    ("GET", SEEN, {"authorization": "Bearer bad"}, b""),
    ("GET", "/api/users/x/messages/7", SIGNED_IN, b""),
    ("GET", SEEN.removesuffix("7") + "07", SIGNED_IN, b""),
    ("GET", SEEN.removesuffix("7") + "9" * 20, SIGNED_IN, b""),
    ("POST", "/api/notes", JSON, NOTE),
    ("POST", "/api/notes", {"content-type": "Application/JSON; charset=utf-8"}, NOTE),
    ("POST", "/api/notes", {"content-type": "text/plain"}, NOTE),
    ("POST", "/api/notes", {}, NOTE),
    ("POST", "/api/notes", JSON, b""),
    ("POST", "/api/notes", JSON, b"{"),
    ("POST", "/api/notes", JSON, b'{"text":7}'),
    ("POST", "/api/notes", JSON, b'{"text":"\\u0000"}'),
    ("POST", "/api/notes?x=1", JSON, NOTE),
    ("POST", "/api/notes", JSON | {"X-Request-ID": "mine"}, NOTE),
    ("DELETE", "/api/notes", {}, b""),
    ("DELETE", "/api/notes", JSON, NOTE),
    ("GET", "/api/bug", {}, b""),
    ("GET", "/api/busy", {}, b""),
    ("GET", "/api/group", {}, b""),
    ("GET", "/api/stuck", {}, b""),
    ("GET", "/api/openapi.json", {}, b""),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "headers", "body"), REQUESTS)
async def test_both_ways_answer_alike(method: str, path: str, headers: dict[str, str], body: bytes) -> None:
    app, by_quart = house_of_two_ways()
    async with serving(app) as listener:
        *direct, id_of_one = await told(listener, method, path, headers, body)
        assert by_quart == []
        # The same path, with a letter of it in another form: that is for Quart.
        *through_quart, id_of_other = await told(listener, method, path.replace("/api/", "/%61pi/"), headers, body)
        assert by_quart == [path.partition("?")[0]]
    assert direct == through_quart
    if "X-Request-ID" in headers:
        assert id_of_one == id_of_other == headers["X-Request-ID"]
    else:
        assert len(id_of_one) == len(id_of_other) == 36


@pytest.mark.parametrize(
    ("method", "path"),
    [("HEAD", SEEN), ("OPTIONS", "/api/notes"), ("PUT", "/api/notes"), ("BREW", "/api/notes"), ("GET", "/nothing"),
     ("GET", "/api/notes/"), ("GET", "/api//bug"), ("GET", "/api/../api/bug"), ("GET", "/api/bug%00"), ("GET", "/api/BUG")],
)  # fmt: skip
async def test_what_no_route_has_is_left_to_quart(method: str, path: str) -> None:
    app, by_quart = house_of_two_ways()
    async with serving(app) as listener:
        request = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        assert (await exchange(listener, request.encode())).startswith(b"HTTP/1.1 ")
    assert len(by_quart) == 1


@pytest.mark.parametrize(
    ("head", "rest"),
    [
        (b"Content-Length: 12\r\n\r\n", NOTE),
        (b'Content-Length: 12\r\n\r\n{"te', b'xt":"a"}'),
        (b"Transfer-Encoding: chunked\r\n\r\n", b"c\r\n" + NOTE + b"\r\n0\r\n\r\n"),
        (b"Expect: 100-continue\r\nContent-Length: 12\r\n\r\n", NOTE),
    ],
)
async def test_a_body_that_comes_in_pieces_is_left_to_quart(head: bytes, rest: bytes) -> None:
    app, by_quart = house_of_two_ways()
    async with serving(app) as listener:
        stream = await trio.open_tcp_stream(*listener.addresses[0])
        await stream.send_all(b"POST /api/notes HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n" + head)
        with trio.fail_after(5):
            while not by_quart:
                await trio.sleep(0.005)
            await stream.send_all(rest)
            answer = b"".join([piece async for piece in stream])
    assert b"HTTP/1.1 201 " in answer and answer.endswith(b'"metadata":{}}')


ONE = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n%b"


def alternating() -> list[bytes]:
    """Requests that ask for their own letter, every other by a path that is for Quart."""
    bodies = [msgspec.json.encode({"text": letter}) for letter in "abcdef"]
    paths = [b"/api/notes", b"/%61pi/notes"] * 3
    return [ONE % (path, body) for path, body in zip(paths, bodies, strict=True)]


async def test_requests_that_come_together_are_answered_in_their_order_by_quart() -> None:
    app, by_quart = house_of_two_ways()
    last = b"DELETE /api/notes HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    async with serving(app) as listener:
        answer = await exchange(listener, b"".join(alternating()) + last)
    places = [answer.index(b'"text":"%c"' % letter) for letter in b"abcdef"]
    assert places == sorted(places)
    assert answer.count(b"HTTP/1.1 201") == 6 and answer.count(b"HTTP/1.1 204") == 1 and len(by_quart) == 7


async def test_one_connection_goes_both_ways_by_turns() -> None:
    app, by_quart = house_of_two_ways()
    async with serving(app, keep_alive_s=0.3) as listener:
        stream = await trio.open_tcp_stream(*listener.addresses[0])
        with trio.fail_after(5):
            for request, letter in zip(alternating(), b"abcdef", strict=True):
                # Longer together than an idle connection may be: each answer begins its time anew.
                await trio.sleep(0.1)
                await stream.send_all(request)
                answer = b""
                while not answer.endswith(b'"metadata":{}}'):
                    answer += bytes(await stream.receive_some())
                assert answer.startswith(b"HTTP/1.1 201") and b'"text":"%c"' % letter in answer
            assert [piece async for piece in stream] == [], "an idle connection ends"
    assert len(by_quart) == 3


async def test_after_half_a_request_the_rest_of_it_is_no_request() -> None:
    app, by_quart = house_of_two_ways()
    inner = b"DELETE /api/notes HTTP/1.1\r\nHost: x\r\n\r\n"
    async with serving(app) as listener:
        stream = await trio.open_tcp_stream(*listener.addresses[0])
        head = b"POST /%%61pi/notes HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        await stream.send_all(head % len(inner))
        await trio.testing.wait_all_tasks_blocked(0.05)
        await stream.send_all(inner)
        with trio.fail_after(5):
            answer = b"".join([bytes(piece) async for piece in stream])
    assert answer.startswith(b"HTTP/1.1 415") and answer.count(b"HTTP/1.1") == 1 and len(by_quart) == 1


@pytest.mark.parametrize("body", [b"7", b"7" * 8_000_000], ids=["being made", "being written"])
async def test_the_server_stops_after_the_answer_that_it_is_giving(body: bytes) -> None:
    app, began, go_on = house_app(), trio.Event(), trio.Event()

    async def answer_late(asking: Any, places: dict[str, str]) -> Any:
        began.set()
        await go_on.wait()
        return json_answer(body)

    app.direct.add("GET", "/api/late", answer_late)
    async with trio.open_nursery() as nursery:
        sockets = await trio.open_tcp_listeners(0, host="127.0.0.1")
        front = HttpFront(app, keep_alive_s=60)
        listener = await nursery.start(partial(serve, sockets, tls=None, http=front, websocket=None, admission=Admission()))
        stream = await trio.open_tcp_stream(*listener.addresses[0])
        await stream.send_all(b"GET /api/late HTTP/1.1\r\nHost: x\r\n\r\n")
        with trio.fail_after(5):
            await began.wait()
            if len(body) > 1:
                go_on.set()
                await trio.testing.wait_all_tasks_blocked(0.05)  # until no buffer takes any more
            await listener.close_accepting()
            await front.finish()
            go_on.set()
            answer = b"".join([bytes(piece) async for piece in stream])
        assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"\r\n\r\n" + body)


async def test_a_body_over_the_limit_is_refused_either_way() -> None:
    app, by_quart = house_of_two_ways()
    app.direct.max_body_bytes = app.config["MAX_CONTENT_LENGTH"] = 20
    async with serving(app) as listener:
        (head, *_), *_ = await told(listener, "POST", "/api/notes", JSON, NOTE)
        assert head.startswith("HTTP/1.1 201") and by_quart == []
        (head, *_), *_ = await told(listener, "POST", "/api/notes", JSON, b'{"text":"much too long"}')
        assert head.startswith("HTTP/1.1 413") and by_quart == ["/api/notes"]


async def test_both_ways_count_alike() -> None:
    metrics = Metrics(CollectorRegistry())
    async with client_of(house_app(metrics=metrics)) as client:
        for path in (SEEN, SEEN.replace("/api/", "/%61pi/")):
            assert (await client.get(path, headers=SIGNED_IN)).status_code == 200
    route = "/api/users/<user_id>/messages/<message_id>"
    assert f'uim_http_requests_total{{method="GET",route="{route}",status="200"}} 2.0' in metrics.text().decode()
    assert f'uim_http_request_seconds_count{{method="GET",route="{route}"}} 2.0' in metrics.text().decode()


async def test_a_client_that_goes_ends_its_request() -> None:
    ended = trio.Event()
    app = house_app()

    async def take_for_ever(asking: Any, places: dict[str, str]) -> Any:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    app.direct.add("GET", "/api/slow", take_for_ever)
    async with serving(app) as listener:
        stream = await trio.open_tcp_stream(*listener.addresses[0])
        await stream.send_all(b"GET /api/slow HTTP/1.1\r\nHost: x\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked(0.05)
        await stream.aclose()
        with trio.fail_after(5):
            await ended.wait()


class Turns(trio.abc.Instrument):
    """Counts the loop's turns."""

    number = 0

    def before_io_wait(self, timeout: float) -> None:
        self.number += 1


async def test_of_a_crowd_a_few_begin_at_once_and_of_the_others_one_in_each_turn_of_the_loop(autojump_clock: Any) -> None:
    crowd, turns, began = Crowd(few=3, within_s=1.0), Turns(), list[int]()

    async def begin() -> None:
        await crowd.pass_through()
        began.append(turns.number)

    trio.lowlevel.add_instrument(turns)
    try:
        for _ in range(2):
            began.clear()
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(begin)
            assert len(set(began[:3])) == 1 and len(set(began)) == 18
            await trio.sleep(1.1)
        began.clear()
        for _ in range(6):
            # No faster than the few: nobody waits.
            turn = turns.number
            await begin()
            assert began.pop() == turn
            await trio.sleep(0.4)
    finally:
        trio.lowlevel.remove_instrument(turns)


def test_a_fixed_path_goes_before_a_place() -> None:
    direct = Direct(Frame(), max_body_bytes=1)

    async def nobody(asking: Any, places: dict[str, str]) -> Any:
        raise AssertionError

    direct.add("GET", "/api/users/<user_id>", nobody)
    direct.add("GET", "/api/users/me", nobody)
    one = str(uuid4())
    found = [direct.find("GET", path) for path in ("/api/users/me", f"/api/users/{one}", "/api/users", "/api/users/a/b")]
    assert [(way.rule, way.places) if way else None for way in found] == [
        ("/api/users/me", {}), ("/api/users/<user_id>", {"user_id": one}), None, None
    ]  # fmt: skip
