"""One port: accepts, does TLS, reads the first head, and says which front it is for.

`/ws` goes to the WebSocket front, everything else to the HTTP front; both get a stream that gives the bytes already
read once more. Rule: until a whole head has come, a client costs one task and 16 KiB and has a deadline at each step;
and no failure of one connection reaches another or the listener.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Final
from uuid import uuid4

import structlog
import trio

from uim.admission import Admission, Peer, plain_address

MAX_HEAD_BYTES: Final = 16 * 1024
# Progress is judged by pieces of this size, so that a big answer to a slow but living reader is no stall.
PIECE_BYTES: Final = 64 * 1024
WEBSOCKET_PATH: Final = b"/ws"
# RFC 9110 sets no bound; real clients send some twenty. Each costs its parser more than its bytes do.
MAX_FIELDS: Final = 100
# Told of at most so often, with their number: who is turned away must not fill the log as well.
TOLD_EVERY_S: Final = 10.0
# What the kernel holds for a reader that does not read; it would let that grow to megabytes. (It doubles this.)
SEND_BUFFER_BYTES: Final = 256 * 1024
# A peer that has gone without a word: asked after a minute of silence, given up after as long as a session's silence may last.
ASKED_AFTER_S: Final = 60
ASKED_EVERY_S: Final = 10
GIVEN_UP_AFTER_S: Final = 90
# For a head that is on its way when the ports close; a browser's spare connection never sends one.
LAST_HEAD_S: Final = 1.0

# h11 too ends a head at a bare line feed; were we stricter, the two would disagree about where a head ends.
_END_OF_HEAD: Final = re.compile(rb"\n\r?\n")

log = structlog.get_logger("uim.listener")

Front = Callable[[trio.abc.Stream, Peer], Awaitable[None]]
# Takes what it can of the bytes at once, and says how many; none where it would block or fail.
WriteNow = Callable[[bytes | bytearray | memoryview], int]
# The patience with each connection whose first head has not come.
Heads = set[trio.CancelScope]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """How long a client may take: for the TLS handshake, the whole first head, a piece of a write, its own goodbye."""

    handshake_s: float = 10.0
    head_s: float = 10.0
    write_s: float = 30.0
    linger_s: float = 1.0


class ByteStream(trio.abc.Stream):
    """A connection after TLS. Bytes put back with `unread` come again; a write that makes no progress hangs up.

    Closing tells the peer first and then, for a short while, throws away what it still sends: a socket closed with
    unread bytes is reset by the kernel, and the peer would lose our last answer (413 to a client still sending).
    Cancelled while closing, it hangs up at once.
    """

    def __init__(self, secured: trio.abc.Stream, tcp: trio.SocketStream, deadlines: Deadlines, write_now: WriteNow | None = None) -> None:
        self._secured = secured
        self._tcp = tcp
        self._deadlines = deadlines
        self._write_now = write_now
        self.unread_bytes = b""  # they come again
        self._closing = False
        self._is_being_read = False
        # Made by whoever waits for that to end.
        self._no_reader: trio.Event | None = None

    def unread(self, head: bytes) -> None:
        self.unread_bytes = head + self.unread_bytes

    def hang_up(self) -> None:
        """Close the socket now; whoever waits on it gets ClosedResourceError."""
        self._closing = True
        self._tcp.socket.close()

    async def receive_some(self, max_bytes: int | None = None, *, waits_first: bool = False) -> bytes:
        if self._closing:
            raise trio.ClosedResourceError
        if self.unread_bytes:
            await trio.lowlevel.checkpoint()
            end = max_bytes or len(self.unread_bytes)
            piece, self.unread_bytes = self.unread_bytes[:end], self.unread_bytes[end:]
            return piece
        self._is_being_read = True
        try:
            # Spares a look that fails, where nothing has come yet. Over TLS something may have that the socket does not show any more.
            if waits_first and self._secured is self._tcp:
                await trio.lowlevel.wait_readable(self._tcp.socket)
            received = bytes(await self._secured.receive_some(max_bytes))
            while self._closing and received:
                received = bytes(await self._secured.receive_some(max_bytes))
        finally:
            self._is_being_read = False
            if self._no_reader is not None:
                self._no_reader.set()
        if self._closing:
            raise trio.ClosedResourceError
        return received

    def send_now(self, data: bytes | bytearray | memoryview) -> int:
        """How many bytes the kernel has taken at once; over TLS, and where there is a fault to be told, none: then `send_all`."""
        return 0 if self._write_now is None or self._closing else self._write_now(data)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        for start in range(self.send_now(view), len(view), PIECE_BYTES):
            if self._closing:
                raise trio.ClosedResourceError  # and not the socket's complaint that its end is being sent just now
            with trio.move_on_after(self._deadlines.write_s) as patience:
                await self._secured.send_all(view[start : start + PIECE_BYTES])
            if patience.cancelled_caught:
                self.hang_up()
                raise trio.BrokenResourceError("no progress in writing")

    async def wait_send_all_might_not_block(self) -> None:
        await self._secured.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        is_first, self._closing = not self._closing, True
        try:
            if is_first:
                await self._linger()
        finally:
            self.hang_up()
        await trio.lowlevel.checkpoint()

    async def _linger(self) -> None:
        gone = (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError)
        with trio.move_on_after(self._deadlines.linger_s), suppress(*gone):
            await self._tcp.send_eof()
            if self._is_being_read:
                # Only one task may read a socket: the reader that is there throws the rest away.
                self._no_reader = trio.Event()
                await self._no_reader.wait()
                return
            while await self._tcp.receive_some(PIECE_BYTES):
                pass


class Listener:
    """What a running `serve` gives its owner: where it listens, and the way to stop accepting.

    `emptied`: set once the ports are closed and the last connection has gone.
    """

    def __init__(self, listeners: list[trio.SocketListener], accepting: trio.CancelScope, heads: Heads) -> None:
        self.addresses: list[tuple[str, int]] = [_local_address(listener) for listener in listeners]
        self.emptied = trio.Event()
        self._accepting = accepting
        self._heads = heads
        self._closed = trio.Event()

    async def close_accepting(self) -> None:
        """Take no new connections and go on with those that are here; returns when the ports are closed.

        Those of a socket that others hold too (systemd) wait there for whoever accepts next.
        """
        self._accepting.cancel()
        await self._closed.wait()
        for head in self._heads:
            head.deadline = min(head.deadline, trio.current_time() + LAST_HEAD_S)


def tls_context(cert: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 and 1.3 alone, offering HTTP/1.1 alone. OSError or ssl.SSLError if the files can't be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    # A browser that is given h2 would try its WebSocket over h2.
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(cert, key)
    return context


@dataclass(frozen=True, slots=True)
class _Doors:
    tls: ssl.SSLContext | None
    http: Front
    websocket: Front | None
    admission: Admission
    deadlines: Deadlines
    crowd: _Crowd
    heads: Heads


class _Crowd:
    """Those who were turned away, for the log."""

    def __init__(self) -> None:
        self._untold = 0
        self._told_at = float("-inf")

    def note(self, peer: Peer) -> None:
        self._untold += 1
        if trio.current_time() - self._told_at < TOLD_EVERY_S:
            return
        log.warning("too many connections that have not signed in", turned_away=self._untold, last=peer.address)
        self._untold, self._told_at = 0, trio.current_time()


async def serve(
    listeners: list[trio.SocketListener],
    *,
    tls: ssl.SSLContext | None,
    http: Front,
    websocket: Front | None,
    admission: Admission,
    deadlines: Deadlines | None = None,
    task_status: trio.TaskStatus[Listener] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled, or until `close_accepting` was called and the last connection has gone.

    A front is called with (stream, peer) once the whole first head is there, and owns the conversation until it
    returns; then the socket is closed. Without `websocket`, `/ws` is a path like any other. Cancelled, connections are
    cancelled with it: cut the sessions and close accepting first, or their clients see a torn connection.
    """
    for listening in listeners:
        _bound(listening.socket)
    doors = _Doors(tls, http, websocket, admission, deadlines or Deadlines(), _Crowd(), set())
    async with trio.open_nursery() as conversations:
        async with trio.open_nursery() as accepting:
            listener = Listener(listeners, accepting.cancel_scope, doors.heads)
            answer = partial(_answer, doors)
            # It outlives EMFILE and its like: says so, waits a moment, accepts again.
            accepting.start_soon(partial(trio.serve_listeners, answer, listeners, handler_nursery=conversations))
            task_status.started(listener)
        listener._closed.set()
    listener.emptied.set()


async def _answer(doors: _Doors, tcp: trio.SocketStream) -> None:
    """One connection from accept to close: the one error boundary around it."""
    try:
        peer = _peer_of(tcp.socket, tls=doors.tls is not None)
    except OSError:
        return  # It had gone before we looked.
    if not doors.admission.enter(peer.address, peer.port):
        doors.crowd.note(peer)
        await _turn_away(tcp, peer)
        return
    try:
        await _converse(doors, tcp, peer)
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        log.debug("connection lost", peer=peer.address)
    except* Exception:
        log.exception("a connection failed", peer=peer.address)
    finally:
        doors.admission.leave(peer.address, peer.port)


async def _converse(doors: _Doors, tcp: trio.SocketStream, peer: Peer) -> None:
    secured = await _secured(doors, tcp)
    if secured is None:
        return
    stream = ByteStream(secured, tcp, doors.deadlines, partial(_write_now, tcp.socket) if secured is tcp else None)
    with trio.move_on_after(doors.deadlines.head_s) as patience:
        doors.heads.add(patience)
        try:
            head = await _read_head(stream)
        finally:
            doors.heads.discard(patience)
    if patience.cancelled_caught:
        await _refuse(stream, HTTPStatus.REQUEST_TIMEOUT, "the request's head did not come in time")
    elif isinstance(head, _Fault):
        await _refuse(stream, head.status, head.detail)
    elif head:
        stream.unread(head)
        front = doors.websocket if doors.websocket is not None and _path_of(head) == WEBSOCKET_PATH else doors.http
        del head  # or it would be held as long as the connection
        await front(stream, peer)


async def _secured(doors: _Doors, tcp: trio.SocketStream) -> trio.abc.Stream | None:
    """The stream to speak over; None if the handshake fails or takes too long."""
    if doors.tls is None:
        return tcp
    secured = trio.SSLStream(tcp, doors.tls, server_side=True, https_compatible=True)
    with trio.move_on_after(doors.deadlines.handshake_s), suppress(trio.BrokenResourceError):
        await secured.do_handshake()
        return secured
    return None


def _write_now(sock: trio.socket.SocketType, data: bytes | bytearray | memoryview) -> int:
    try:
        return os.write(sock.fileno(), data)
    except OSError:
        return 0  # it is full, or whoever waits for it will be told what is wrong with it


@dataclass(frozen=True, slots=True)
class _Fault:
    status: HTTPStatus
    detail: str


async def _read_head(stream: ByteStream) -> bytes | _Fault:
    """All bytes up to at least the end of the head; b"" if the peer leaves before that."""
    head = bytearray()
    while True:
        searched = max(0, len(head) - 3)
        received = await stream.receive_some(MAX_HEAD_BYTES)
        if not received:
            return b""
        head += received
        if head[0] <= 0x20 or head[0] >= 0x7F:
            return _Fault(HTTPStatus.BAD_REQUEST, "this is not HTTP")
        end = _END_OF_HEAD.search(head, searched)
        if (end.end() if end else len(head)) > MAX_HEAD_BYTES:
            return _Fault(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"a head has at most {MAX_HEAD_BYTES} bytes")
        if end:
            if head.count(b"\n", 0, end.end()) > MAX_FIELDS + 2:
                return _Fault(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"a head has at most {MAX_FIELDS} fields")
            return bytes(head)


def _path_of(head: bytes) -> bytes:
    words = head.split(b"\n", 1)[0].split()
    return words[1].partition(b"?")[0] if len(words) > 1 else b""


async def _refuse(stream: ByteStream, status: HTTPStatus, detail: str) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await stream.send_all(refusal(status, "bad_request", detail))
    await stream.aclose()


async def _turn_away(tcp: trio.SocketStream, peer: Peer) -> None:
    if peer.tls:
        return  # A handshake is what an attacker would like us to pay for.
    busy = refusal(HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", "too many connections", retry_after_s=10)
    # A fresh socket's buffer takes it whole; the deadline is for what we did not think of.
    with trio.move_on_after(1), suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await tcp.send_all(busy)
        await tcp.send_eof()


def refusal(status: HTTPStatus, code: str, detail: str, *, retry_after_s: int | None = None) -> bytes:
    """A whole HTTP/1.1 answer, as problem+json, that ends the connection. The texts are ours: nothing is escaped."""
    retry = "" if retry_after_s is None else f',"retry_after":{retry_after_s}'
    body = (
        f'{{"type":"about:blank","title":"{status.phrase}","status":{status.value},"detail":"{detail}","code":"{code}"'
        f"{retry}}}"
    )
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        "Content-Type: application/problem+json",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        f"X-Request-ID: {uuid4()}",
        "Connection: close",
    ]
    if retry_after_s is not None:
        lines.append(f"Retry-After: {retry_after_s}")
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode("ascii")


def _bound(listening: trio.socket.SocketType) -> None:
    """What each connection inherits from the socket that it came through (tcp(7)): it costs nothing to accept."""
    if listening.family not in (socket.AF_INET, socket.AF_INET6):
        return
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, ASKED_AFTER_S)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, ASKED_EVERY_S)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, GIVEN_UP_AFTER_S * 1000)


def _peer_of(sock: trio.socket.SocketType, *, tls: bool) -> Peer:
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return Peer("", sock.fileno(), tls)
    host, port = sock.getpeername()[:2]
    return Peer(plain_address(host), port, tls)


def _local_address(listener: trio.SocketListener) -> tuple[str, int]:
    name = listener.socket.getsockname()
    return (str(name), 0) if isinstance(name, str | bytes) else (name[0], name[1])
