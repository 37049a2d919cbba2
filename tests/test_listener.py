"""The one port, over real sockets: heads, deadlines, TLS, the count of strangers, and stopping."""

from __future__ import annotations

import errno
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import ip_network
from pathlib import Path

import httpx
import pytest
import quart
import trio
import trio.testing
import trio_websocket
import trustme

from uim.admission import Admission, Peer, plain_address
from uim.api.app import new_app
from uim.api.connection import HttpFront
from uim.listener import MAX_HEAD_BYTES, Deadlines, Front, Listener, serve, tls_context

QUICK = Deadlines(handshake_s=0.2, head_s=0.2, write_s=0.2, linger_s=0.2)
GET = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"

pytestmark = pytest.mark.timeout(30)


async def echo_front(name: bytes, stream: trio.abc.Stream, peer: Peer) -> None:
    """Says who it is, then all that it reads until the line "end"."""
    await stream.send_all(name + b"\n")
    heard = b""
    while not heard.endswith(b"end"):
        piece = await stream.receive_some()
        if not piece:
            return
        heard += piece
    await stream.send_all(heard)


def front(name: bytes) -> Front:
    return partial(echo_front, name)


@asynccontextmanager
async def serving(
    *,
    tls: ssl.SSLContext | None = None,
    http: Front | None = None,
    websocket: Front | None = None,
    admission: Admission | None = None,
    deadlines: Deadlines = Deadlines(),  # noqa: B008 - frozen
) -> AsyncIterator[Listener]:
    async with trio.open_nursery() as nursery:
        sockets = await trio.open_tcp_listeners(0, host="127.0.0.1")
        start = partial(
            serve,
            sockets,
            tls=tls,
            http=http or front(b"http"),
            websocket=websocket or front(b"websocket"),
            admission=admission or Admission(),
            deadlines=deadlines,
        )
        yield await nursery.start(start)
        nursery.cancel_scope.cancel()


async def connect(listener: Listener) -> trio.SocketStream:
    return await trio.open_tcp_stream(*listener.addresses[0])


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    with trio.fail_after(5):
        return b"".join([bytes(piece) async for piece in stream])


async def ask(listener: Listener, *pieces: bytes) -> bytes:
    stream = await connect(listener)
    for piece in pieces:
        await stream.send_all(piece)
    return await read_all(stream)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (b"/ws", b"websocket"),
        (b"/ws?token=x&last_sync_id=0", b"websocket"),
        (b"/", b"http"),
        (b"/wsx", b"http"),
        (b"/ws/", b"http"),
        (b"/api?/ws", b"http"),
        (b"/%77s", b"http"),
    ],
)
async def test_first_line_says_which_front_and_it_reads_every_byte(path: bytes, name: bytes) -> None:
    request = GET % path + b"and the body, end"
    async with serving() as listener:
        assert await ask(listener, request) == name + b"\n" + request


async def test_head_in_single_bytes_is_the_same_head() -> None:
    request = GET % b"/ws" + b"end"
    async with serving() as listener:
        assert await ask(listener, *(bytes([byte]) for byte in request)) == b"websocket\n" + request


@pytest.mark.parametrize("sent", [b"", b"GET /ws HTTP/1.1\r\nHost: x\r\n"])
async def test_head_that_does_not_come_is_cut_at_its_deadline(sent: bytes) -> None:
    async with serving(deadlines=QUICK) as listener:
        began = trio.current_time()
        answer = await ask(listener, sent)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert trio.current_time() - began < 2


async def test_head_by_drops_is_cut_at_the_same_deadline() -> None:
    async with serving(deadlines=QUICK) as listener, trio.open_nursery() as nursery:
        stream = await connect(listener)

        async def drip() -> None:
            while True:
                try:
                    await stream.send_all(b"G")
                except trio.BrokenResourceError:
                    return
                await trio.sleep(0.02)

        nursery.start_soon(drip)
        assert (await read_all(stream)).startswith(b"HTTP/1.1 408 ")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("path", [b"/ws", b"/api"])
async def test_head_over_its_bound_is_431(path: bytes) -> None:
    start = b"GET %s HTTP/1.1\r\nX: " % path
    async with serving() as listener:
        assert (await ask(listener, start + b"a" * 17_000 + b"\r\n\r\n")).startswith(b"HTTP/1.1 431 ")
        most = start + b"a" * (MAX_HEAD_BYTES - len(start) - 4) + b"\r\n\r\n"
        assert len(most) == MAX_HEAD_BYTES
        assert (await ask(listener, most + b"end")).endswith(b"end")


@pytest.mark.parametrize("noise", [b"\x16\x03\x01\x02\x00", b"\x00", b"\xff\xff", b"\r\n\r\n"])
async def test_what_is_not_http_is_refused_at_its_first_byte(noise: bytes) -> None:
    async with serving() as listener:
        answer = await ask(listener, noise)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b'"code":"bad_request"' in answer and b"X-Request-ID: " in answer


async def test_bug_in_one_connection_ends_that_connection_alone() -> None:
    async def http(stream: trio.abc.Stream, peer: Peer) -> None:
        if b"bug" in await stream.receive_some():
            raise RuntimeError("a bug")
        await stream.send_all(b"fine")

    admission = Admission()
    async with serving(http=http, admission=admission) as listener:
        assert await ask(listener, GET % b"/bug") == b""
        assert await ask(listener, GET % b"/") == b"fine"
        await until(lambda: admission.strangers == 0)


async def until(is_so: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not is_so():
            await trio.sleep(0.001)


async def test_one_address_has_fifty_places_until_it_signs_in() -> None:
    admission = Admission()
    async with serving(admission=admission) as listener:
        streams = [await connect(listener) for _ in range(50)]
        await until(lambda: admission.strangers == 50)
        refused = await ask(listener)
        assert refused.startswith(b"HTTP/1.1 503 ") and b"Retry-After: " in refused

        address, port = streams[0].socket.getsockname()
        admission.signed_in(address, port, "alice")
        admission.signed_in(address, port, "alice")
        assert admission.strangers == 49
        streams.append(await connect(listener))
        await until(lambda: admission.strangers == 50)

        await streams[0].aclose()
        await streams[1].aclose()
        await until(lambda: admission.strangers == 49)


def test_one_user_vouches_for_so_many_and_the_rest_stay_strangers() -> None:
    admission = Admission(max_vouched=2, trusted_proxies=[ip_network("10.0.0.0/8")])
    for port in range(4):
        assert admission.enter("192.0.2.1", port)
        admission.signed_in("192.0.2.1", port, "eve")
    assert admission.strangers == 2
    assert admission.enter("192.0.2.1", 9)
    admission.signed_in("192.0.2.1", 9, "alice")
    assert admission.strangers == 2, "others vouch for theirs"
    admission.leave("192.0.2.1", 0)
    admission.signed_in("192.0.2.1", 2, "eve")
    assert admission.strangers == 1
    for port in range(4):
        assert admission.enter("10.1.2.3", port)
        admission.signed_in("10.1.2.3", port, "eve")
    assert admission.strangers == 1, "behind a proxy they are everybody's in turn"
    for address, port in [("192.0.2.1", port) for port in (0, 1, 2, 3, 9)] + [("10.1.2.3", port) for port in range(4)]:
        admission.leave(address, port)
    assert admission.strangers == 0
    assert not admission._of_user and not admission._vouched and not admission._of_neighbourhood


async def test_stranger_over_the_bound_gets_no_handshake() -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    async with serving(tls=context, admission=Admission(max_strangers=0)) as listener:
        assert await ask(listener) == b""


def test_ipv6_counts_by_network_and_proxies_do_not_count() -> None:
    admission = Admission(max_per_address=1, max_strangers=4, trusted_proxies=[ip_network("10.0.0.0/8")])
    assert admission.enter("2001:db8::1", 1)
    assert not admission.enter("2001:db8::2", 2)
    assert admission.enter("2001:db8:0:1::1", 3)
    assert admission.enter("10.1.2.3", 4) and admission.enter("10.1.2.3", 5)
    assert not admission.enter("10.1.2.3", 6), "the bound of all holds for proxies too"
    admission.leave("2001:db8::2", 2)
    assert admission.strangers == 4
    admission.leave("2001:db8::1", 1)
    assert admission.enter("2001:db8::2", 2)
    assert plain_address("::ffff:192.0.2.1") == "192.0.2.1"


async def test_closing_refuses_new_connections_and_keeps_the_old() -> None:
    async with serving() as listener:
        stream = await connect(listener)
        await stream.send_all(GET % b"/ws")
        assert await stream.receive_some() == b"websocket\n"
        await listener.close_accepting()
        with pytest.raises(OSError):
            await connect(listener)
        await stream.send_all(b"still here, end")
        assert (await read_all(stream)).endswith(b"still here, end")


async def test_once_the_ports_are_closed_a_connection_that_says_nothing_is_not_waited_for() -> None:
    async with serving(deadlines=Deadlines(head_s=60)) as listener:
        spare = await connect(listener)
        await trio.testing.wait_all_tasks_blocked(0.05)  # it has been accepted
        await listener.close_accepting()
        assert (await read_all(spare)).startswith(b"HTTP/1.1 408")
        with trio.fail_after(5):
            await listener.emptied.wait()


async def test_listener_outlives_a_lack_of_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    accept = trio.SocketListener.accept
    failures = [OSError(errno.EMFILE, "too many open files")]

    async def accept_after_failing(self: trio.SocketListener) -> trio.SocketStream:
        if failures:
            raise failures.pop()
        return await accept(self)

    monkeypatch.setattr(trio.SocketListener, "accept", accept_after_failing)
    async with serving() as listener:
        assert (await ask(listener, GET % b"/" + b"end")).startswith(b"http\n")
    assert not failures


async def test_reader_that_takes_nothing_is_hung_up() -> None:
    ended = trio.Event()

    async def pour(stream: trio.abc.Stream, peer: Peer) -> None:
        try:
            while True:
                await stream.send_all(bytes(1 << 20))
        except trio.BrokenResourceError:
            ended.set()

    async with serving(deadlines=QUICK, http=pour) as listener:
        stream = await connect(listener)
        await stream.send_all(GET % b"/")
        with trio.fail_after(5):
            await ended.wait()


async def test_last_answer_reaches_a_client_that_is_still_sending() -> None:
    async def refuse(stream: trio.abc.Stream, peer: Peer) -> None:
        await stream.send_all(b"no")
        await stream.aclose()

    async with serving(http=refuse, deadlines=Deadlines(linger_s=5)) as listener:
        stream = await connect(listener)
        await stream.send_all(GET % b"/")
        for _ in range(20):
            await stream.send_all(bytes(10_000))
        await stream.send_eof()
        assert await read_all(stream) == b"no"


# --- TLS -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA, tmp_path: Path) -> ssl.SSLContext:
    issued = authority.issue_cert("localhost", "127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    return tls_context(tmp_path / "cert.pem", tmp_path / "key.pem")


async def s_client(listener: Listener, *options: str) -> str:
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{listener.addresses[0][1]}", *options]
    done = await trio.run_process(
        command, stdin=b"", capture_stdout=True, stderr=subprocess.STDOUT, check=False
    )  # fmt: skip
    return done.stdout.decode(errors="replace")


TLS_1_1 = ("-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0")


@pytest.mark.parametrize(("option", "version"), [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")])
async def test_tls_1_2_and_1_3_are_spoken(tls: ssl.SSLContext, option: str, version: str) -> None:
    async with serving(tls=tls) as listener:
        told = await s_client(listener, option)
        assert f"New, {version}, Cipher is " in told and "(NONE)" not in told


async def test_tls_1_1_is_refused(tls: ssl.SSLContext) -> None:
    async with serving(tls=tls) as listener:
        assert "Cipher is (NONE)" in await s_client(listener, *TLS_1_1)
    # The same client is let in by a server that allows it: so it was the version that we refused.
    with pytest.warns(DeprecationWarning):
        tls.minimum_version = ssl.TLSVersion.TLSv1_1
    tls.set_ciphers("DEFAULT@SECLEVEL=0")
    async with serving(tls=tls) as listener:
        assert "Cipher is (NONE)" not in await s_client(listener, *TLS_1_1)


async def secured(authority: trustme.CA, listener: Listener, alpn: list[str]) -> trio.SSLStream[trio.SocketStream]:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.set_alpn_protocols(alpn)
    stream = trio.SSLStream(await connect(listener), context, server_hostname="localhost", https_compatible=True)
    await stream.do_handshake()
    return stream


async def test_both_fronts_over_tls_and_alpn_offers_http_1_alone(tls: ssl.SSLContext, authority: trustme.CA) -> None:
    async with serving(tls=tls) as listener:
        for path, name in ((b"/ws", b"websocket"), (b"/", b"http")):
            stream = await secured(authority, listener, ["h2", "http/1.1"])
            assert stream.selected_alpn_protocol() == "http/1.1"
            await stream.send_all(GET % path + b"end")
            assert await read_all(stream) == name + b"\n" + GET % path + b"end"


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01", GET % b"/"])
async def test_handshake_that_fails_or_stalls_is_cut(tls: ssl.SSLContext, sent: bytes) -> None:
    admission = Admission()
    async with serving(deadlines=QUICK, tls=tls, admission=admission) as listener:
        assert b"HTTP" not in await ask(listener, sent)
        await until(lambda: admission.strangers == 0)


async def websocket_echo(stream: trio.abc.Stream, peer: Peer) -> None:
    assert peer.tls and peer.address == "127.0.0.1"
    async with trio.open_nursery() as nursery:
        request = await trio_websocket.wrap_server_stream(nursery, stream)
        connection = await request.accept()
        try:
            while True:
                await connection.send_message(f"{request.path}: {await connection.get_message()}")
        except trio_websocket.ConnectionClosed:
            nursery.cancel_scope.cancel()


async def test_websockets_and_http_share_the_tls_port(tls: ssl.SSLContext, authority: trustme.CA) -> None:
    app = new_app()

    @app.get("/scheme")
    async def tell_scheme() -> str:
        return f"{quart.request.scheme} {quart.request.scope['client'][0]}"

    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    fronts = {"http": HttpFront(app), "websocket": websocket_echo}
    async with serving(tls=tls, **fronts) as listener:
        port = listener.addresses[0][1]
        url = f"wss://localhost:{port}/ws?device_id=a"
        async with trio_websocket.open_websocket_url(url, ssl_context=trust) as connection:
            await connection.send_message("hi")
            assert await connection.get_message() == "/ws?device_id=a: hi"
        async with httpx.AsyncClient(base_url=f"https://localhost:{port}", verify=trust) as client:
            for _ in range(3):
                assert (await client.get("/scheme")).text == "https 127.0.0.1"
