"""HTTP from peers that are slow, endless or in a hurry: each is refused or cut, in bounded memory and time; others are served."""

from __future__ import annotations

import gzip
import subprocess
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest
import trio
import trustme

from loadtest.lines import upgrade_request
from tests.faults import raw
from tests.faults.conftest import Pair
from tests.house import Person, Server, serving, settings_for
from uim import listener
from uim.admission import Admission
from uim.api.app import MAX_BODY_BYTES
from uim.chat.house import TURNS

pytestmark = pytest.mark.timeout(60)

LOGIN = b"POST /api/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n%b\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


@pytest.fixture
async def eve(server: Server) -> Person:
    return await server.register("eve")


def get(person: Person, path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {person.tokens['access_token']}\r\n\r\n".encode()


async def is_served(server: Server, pair: Pair) -> None:
    """Who has signed in and who comes new, by the address that the honest have."""
    await pair.talks(1)
    with trio.fail_after(10):
        assert (await server.http.get("/health", headers={"Connection": "close"})).status_code == 200


async def test_ten_thousand_connects_from_one_address_take_no_place_from_another(server: Server, pair: Pair) -> None:
    """Fifty of them stay, by drops; the rest is turned away while it comes, and the log says so once in a while."""
    async with AsyncExitStack() as slow:
        for _ in range(50):
            peer = await slow.enter_async_context(raw.line(server, b"GET / HTTP/1.1\r\nX: "))
        async with raw.line(server) as refused:
            assert (await refused.to_the_end()).startswith(b"HTTP/1.1 503 ")
        limit = trio.CapacityLimiter(100)

        async def connect() -> None:
            async with limit, raw.line(server) as one:
                assert b"HTTP/1.1 503 " in await one.to_the_end()

        async with trio.open_nursery() as nursery:
            for _ in range(1_000):
                nursery.start_soon(connect)
            for _ in range(3):
                await peer.say(b"x")
                await is_served(server, pair)


async def test_who_is_turned_away_does_not_fill_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    async with trio.open_nursery() as nursery:
        sockets = await trio.open_tcp_listeners(0, host="127.0.0.1")

        async def nobody(stream: trio.abc.Stream, peer: object) -> None: ...

        start = partial(listener.serve, sockets, tls=None, http=nobody, websocket=None, admission=Admission(max_strangers=0))
        port = (await nursery.start(start)).addresses[0][1]
        for _ in range(20):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                assert await stream.receive_some()
        nursery.cancel_scope.cancel()
    assert capsys.readouterr().out.count("too many connections") == 1


@pytest.mark.parametrize(
    ("fields", "unit"),
    [
        (CHUNKED, b"1000\r\n" + b" " * 4096 + b"\r\n"),
        (CHUNKED, b"10;" + b"e" * 1_000 + b"\r\n" + b" " * 16 + b"\r\n"),
        (b"Content-Length: 1099511627776\r\n", b" " * 4096),
        (CHUNKED + b"Content-Encoding: gzip\r\n", b"1000\r\n" + b"\x1f" * 4096 + b"\r\n"),
    ],
    ids=["chunks", "chunk extensions", "a tebibyte", "compressed"],
)
async def test_a_body_that_never_ends_is_413_at_its_bound(server: Server, pair: Pair, fields: bytes, unit: bytes) -> None:
    most = MAX_BODY_BYTES // 16 * (len(unit) + 1) if unit.startswith(b"10;") else MAX_BODY_BYTES * 2
    async with raw.line(server, LOGIN % fields) as peer, trio.open_nursery() as nursery:
        nursery.start_soon(peer.pour, unit * 20, most // len(unit))
        answer = await peer.to_the_end(30)
        nursery.cancel_scope.cancel()
        assert answer.startswith(b"HTTP/1.1 413 ") and b"payload_too_large" in answer, answer[:300]
    await is_served(server, pair)


async def test_a_compressed_body_is_not_inflated(server: Server) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    answer = await server.http.post(
        "/api/auth/login", content=bomb, headers={"Content-Type": "application/json", "Content-Encoding": "gzip"}
    )
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


@pytest.mark.parametrize("before", [b"", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"], ids=["first", "later"])
async def test_a_head_of_thousands_of_fields_is_431(server: Server, before: bytes) -> None:
    head = b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"a:b\r\n" * 2_000 + b"\r\n"
    async with raw.line(server, before) as peer:
        if before:
            await peer.until(b"}")
        await peer.say(head)
        assert (await peer.to_the_end()).startswith(b"HTTP/1.1 431 ")


async def test_requests_in_a_row_whose_answers_nobody_reads_are_read_no_further(server: Server, pair: Pair, eve: Person) -> None:
    async with raw.line(server, window_bytes=2048) as peer:
        unit = get(eve, "/api/openapi.json") * 10
        said = await peer.pour(unit, 5_000)
        assert said < 5_000, "13 MB of requests were taken though no answer was"
        await is_served(server, pair)


async def test_one_users_slow_requests_leave_the_others_theirs(server: Server, pair: Pair, eve: Person) -> None:
    """Every turn of one user's is taken: that user waits, nobody else does."""
    turns_of = server.house.turns
    async with AsyncExitStack() as turns:
        for _ in range(TURNS):
            await turns.enter_async_context(turns_of.turn(UUID(eve.user_id)))
        with trio.move_on_after(0.3) as waited:
            await eve.get("/api/users/me")
        assert waited.cancelled_caught
        await pair.one.person.get("/api/users/me")
    with trio.fail_after(10):
        await eve.get("/api/users/me")


async def test_who_connects_again_and_again_is_told_to_wait_and_others_are_not(server: Server, pair: Pair, eve: Person) -> None:
    for number in range(60):
        head = upgrade_request(eve.tokens["access_token"], f"device-{number % 20}")
        async with raw.line(server, head) as peer:
            answer = await peer.until(b"\r\n\r\n")
            if b" 429 " in answer:
                assert b"Retry-After: " in answer
                break
    else:
        raise AssertionError("sixty times in a row")
    assert number >= 40
    mallory = await server.register("mallory")
    await mallory.connect("phone")
    await is_served(server, pair)


async def test_one_users_connections_end_where_others_places_begin(server: Server, pair: Pair, eve: Person) -> None:
    """Kept alive and signed in they would else be opened until the process has no descriptor left."""
    kept = 0
    async with AsyncExitStack() as held:
        while kept < 200:
            peer = await held.enter_async_context(raw.line(server, get(eve, "/api/users/me")))
            if b" 503 " in await peer.until(b"\r\n"):
                break
            kept += 1
        assert 100 <= kept <= 150
        await is_served(server, pair)


# -- half-open -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_unread", [False, True], ids=["silent", "written to"])
async def test_a_peer_that_vanishes_without_a_word_is_given_up(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch, has_unread: bool
) -> None:
    """No FIN, no reset, no ACK: its kernel drops every segment. The waits are made short; what they are is checked below."""
    monkeypatch.setattr(listener, "ASKED_AFTER_S", 1)
    monkeypatch.setattr(listener, "ASKED_EVERY_S", 1)
    monkeypatch.setattr(listener, "GIVEN_UP_AFTER_S", 2)
    async with serving(settings_for(database_url, redis_url)) as server:
        eve = await server.register("eve")
        async with raw.websocket(eve, "x") as peer:
            await peer.until(b"SESSION_READY")
            await peer.until(b'"has_more":false')
            peer.vanish()
            if has_unread:
                (outbox,) = server.house.switchboard.all()
                outbox.push(b"\x81\x02{}")
            with trio.fail_after(15):
                while server.house.switchboard.connections:
                    await trio.sleep(0.02)


def test_a_vanished_peer_may_be_silent_as_long_as_a_session() -> None:
    assert listener.GIVEN_UP_AFTER_S == 90


# -- TLS -------------------------------------------------------------------------------------------------------------------


async def test_renegotiation_is_refused(tmp_path: Path) -> None:
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "both.pem"))
    tls = listener.tls_context(tmp_path / "both.pem", tmp_path / "both.pem")
    spoken = trio.Event()

    async def wait_for_end(stream: trio.abc.Stream, peer: object) -> None:
        spoken.set()
        while await stream.receive_some():
            pass

    async with trio.open_nursery() as nursery:
        sockets = await trio.open_tcp_listeners(0, host="127.0.0.1")
        start = partial(listener.serve, sockets, tls=tls, http=wait_for_end, websocket=None, admission=Admission())
        port = (await nursery.start(start)).addresses[0][1]
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_2"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "check": False}
        client = await nursery.start(partial(trio.run_process, command, **pipes))
        with trio.fail_after(20):
            await client.stdin.send_all(b"GET / HTTP/1.1\nHost: x\n\n")
            await spoken.wait()
            # To this program a line that begins with R is an order.
            await client.stdin.send_all(b"R\n")
            told = b""
            while b"no renegotiation" not in told and (piece := await client.stdout.receive_some()):
                told += piece
        nursery.cancel_scope.cancel()
    assert b"RENEGOTIATING" in told and b"no renegotiation" in told, told[-600:]
