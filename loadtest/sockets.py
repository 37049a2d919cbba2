"""The loop under a load: many sockets, one selector, nothing else.

Rule: a connection costs one `recv` and at most one `send` for all that has arrived on it; what its owner does with the frames
is the owner's (`Peer`). Not Trio: its tasks would cost the generator more than the frames do.
"""

from __future__ import annotations

import select
import selectors
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Callable, Iterable
from os import urandom
from typing import Final, Protocol
from urllib.parse import urlsplit

from loadtest.frames import Torn, split

RECEIVE_BYTES: Final = 256 * 1024
TICK_S: Final = 0.05
# Devices have clocks of their own: one part of them after the other ticks, each once in TICK_S.
TICK_PARTS: Final = 10
CONNECT_WITHIN_S: Final = 15.0


class Peer(Protocol):
    """What a connection's owner does: answers in whole frames, b"" for nothing."""

    def take(self, payloads: list[bytes], now_ns: int) -> bytes: ...

    def tick(self, now_ns: int) -> bytes: ...


class Schedule(Protocol):
    """Frames with a fixed time. What was due while the loop was late is told at once, with the time when it was due."""

    def next_due_ns(self) -> int: ...

    def due(self, now_ns: int) -> Iterable[tuple[Connection, bytes]]: ...


class Connection:
    """One open WebSocket and its owner."""

    def __init__(self, sock: socket.socket, peer: Peer, received: bytes) -> None:
        self.sock = sock
        self.peer = peer
        self.received = received
        self.to_send = b""


class Loop:
    """All connections of a run. Not for threads."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._connections: list[Connection] = []
        self._tls: ssl.SSLContext | None = None
        self._part = 0

    def connect(self, url: str, peer: Peer, *, token: str | None = None) -> Connection:
        """Open a WebSocket (ws:// or wss://) and give it to `peer`. Raises Torn if the server refuses, OSError if it isn't there."""
        if self._tls is None and url.startswith("wss:"):
            self._tls = ssl.create_default_context()
        sock, received = _upgraded(url, token, self._tls)
        sock.setblocking(False)
        connection = Connection(sock, peer, received)
        self._connections.append(connection)
        self._selector.register(sock, selectors.EVENT_READ, connection)
        if received:
            self._take(connection, b"", time.monotonic_ns())
        if isinstance(sock, ssl.SSLSocket):
            # What TLS has read already no selector tells.
            self._serve(connection, selectors.EVENT_READ)
        # Those before it have been told things meanwhile, and have a second to confirm them.
        self._serve_ready(0.0)
        return connection

    def run(
        self, *, seconds: float, until: Callable[[], bool] = lambda: False, schedule: Schedule | None = None
    ) -> bool:
        """Serve all peers for that long, or until `until()` holds, asked every 50 ms; tells whether it held. Raises Torn."""
        ends_at = time.monotonic() + seconds
        next_tick = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= next_tick or now >= ends_at:
                next_tick = now + TICK_S / TICK_PARTS
                self._tick()
                if self._part == 0 and until():
                    return True
                if now >= ends_at:
                    return until()
            wake_at = min(next_tick, ends_at)
            if schedule is not None:
                for connection, said in schedule.due(time.monotonic_ns()):
                    self._send(connection, said)
                wake_at = min(wake_at, schedule.next_due_ns() / 1e9)
                # A selector waits for whole milliseconds; this waits for microseconds until there is something to select.
                select.select([self._selector], [], [], max(0.0, wake_at - time.monotonic()))
                wake_at = 0.0
            self._serve_ready(max(0.0, wake_at - now))

    def close(self) -> None:
        """Leave without a word; the server sees its clients gone."""
        for connection in self._connections:
            connection.sock.close()
        self._connections.clear()
        self._selector.close()

    def _serve_ready(self, wait_s: float) -> None:
        for key, events in self._selector.select(wait_s):
            self._serve(key.data, events)

    def _tick(self) -> None:
        now_ns = time.monotonic_ns()
        part, self._part = self._part, (self._part + 1) % TICK_PARTS
        for connection in self._connections[part::TICK_PARTS]:
            if said := connection.peer.tick(now_ns):
                self._send(connection, said)

    def _serve(self, connection: Connection, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._send(connection, b"")
        if events & selectors.EVENT_READ and (data := _read(connection.sock)):
            self._take(connection, data, time.monotonic_ns())

    def _take(self, connection: Connection, data: bytes, now_ns: int) -> None:
        payloads, connection.received = split(connection.received + data)
        if payloads and (said := connection.peer.take(payloads, now_ns)):
            self._send(connection, said)

    def _send(self, connection: Connection, said: bytes) -> None:
        waiting = connection.to_send + said
        try:
            sent = connection.sock.send(waiting)
        except (BlockingIOError, ssl.SSLWantWriteError):
            sent = 0
        was_full, connection.to_send = bool(connection.to_send), waiting[sent:]
        if bool(connection.to_send) != was_full:
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.to_send else 0)
            self._selector.modify(connection.sock, wanted, connection)


def _read(sock: socket.socket) -> bytes:
    """All that is there; nothing where TLS had only words of its own. Raises Torn at the end."""
    try:
        data = sock.recv(RECEIVE_BYTES)
        if not data:
            raise Torn("the server hung up")
        while isinstance(sock, ssl.SSLSocket) and sock.pending():
            data += sock.recv(RECEIVE_BYTES)
    except ssl.SSLWantReadError:
        return b""
    return data


def _upgraded(url: str, token: str | None, tls: ssl.SSLContext | None) -> tuple[socket.socket, bytes]:
    """A socket after the upgrade, and what the server has said already."""
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or (443 if tls else 80)
    sock = socket.create_connection((host, port), timeout=CONNECT_WITHIN_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if tls is not None:
        sock = tls.wrap_socket(sock, server_hostname=host)
    lines = [
        f"GET {parts.path or '/'}{'?' + parts.query if parts.query else ''} HTTP/1.1",
        f"Host: {parts.netloc}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {b64encode(urandom(16)).decode()}",
    ]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("ascii"))
    answer = b""
    while b"\r\n\r\n" not in answer:
        piece = sock.recv(RECEIVE_BYTES)
        if not piece:
            break
        answer += piece
    head, _, rest = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 101 "):
        sock.close()
        raise Torn(f"no upgrade: {answer[:500].decode(errors='replace')}")
    return sock, rest
