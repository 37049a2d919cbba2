"""An attacker's connections: opened by hand, fed at a capped rate, read or left unread as the attack wants it.

Rule: one thread, one selector, bounded in number, rate and time; what the server did to each line is counted, never guessed.
"""

from __future__ import annotations

import selectors
import socket
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from os import urandom
from typing import Final

TICK_S: Final = 0.005
CONNECT_WITHIN_S: Final = 5.0
RECEIVE_BYTES: Final = 256 * 1024
# More than this is not held ready for a server that does not take it.
MAX_PENDING_BYTES: Final = 64 * 1024
CONNECTS_AGAIN_PER_S: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What an attacker does on each of `lines` connections, for a time that its caller gives.

    `opening` is said first (for a WebSocket the upgrade, whose answer is then awaited), then `first`. `unit(n)` is the n-th
    thing to send; at most `per_s` of them on all lines together. `reads`: whether answers are taken. `again`: whether a line
    that was cut is replaced. `window_bytes`: SO_RCVBUF, 0 for the kernel's choice. `hold`: whether connections are kept; else
    there are no units, but each is made, and the oldest closed, at most `per_s`.
    """

    lines: int
    opening: Callable[[int], bytes]
    is_websocket: bool = False
    first: bytes = b""
    unit: Callable[[int], bytes] | None = None
    per_s: float = 0.0
    reads: bool = True
    again: bool = True
    window_bytes: int = 0
    hold: bool = True


@dataclass(slots=True)
class Outcome:
    """What came of it: units (or connections) that left, how many lines were cut, what was answered, by first words."""

    sent: int = 0
    cut: int = 0
    connected: int = 0
    answers: Counter[str] = field(default_factory=Counter)


class _Line:
    __slots__ = ("pending", "sock", "tail", "watched")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.watched = 0
        self.pending = b""
        self.tail = b""


class Attacker:
    """Carries out one plan against (host, port), from the address `source`."""

    def __init__(self, host: str, port: int, plan: Plan, *, source: str) -> None:
        self._at = (host, port)
        self._source = source
        self._plan = plan
        self._selector = selectors.DefaultSelector()
        self._lines: list[_Line] = []
        self._turn = 0
        self._opened = 0
        self.outcome = Outcome()

    def open(self) -> None:
        """All lines, before the time that is measured; none for a plan that connects as its attack."""
        if self._plan.hold:
            for _ in range(self._plan.lines):
                self._open_one()

    def run(self, seconds: float) -> None:
        """Attack for that long, then leave without a word."""
        began_at = time.monotonic()
        again_at = began_at
        while (now := time.monotonic()) < began_at + seconds:
            due = int(self._plan.per_s * (now - began_at)) - self.outcome.sent
            if not self._plan.hold:
                self._connect_on(due)
            elif self._plan.unit is not None and self._lines:
                self._send_units(due)
            if self._plan.hold and self._plan.again and len(self._lines) < self._plan.lines and now >= again_at:
                again_at = now + 1 / CONNECTS_AGAIN_PER_S
                self._open_one()
            self._serve(max(0.0, now + TICK_S - time.monotonic()))
        self.close()

    def close(self) -> None:
        for line in self._lines:
            line.sock.close()
        self._lines.clear()
        self._selector.close()

    def _connect_on(self, due: int) -> None:
        """The oldest makes room for the newest: so many are open at once, and no more."""
        for _ in range(min(due, 50)):
            self.outcome.sent += 1
            if len(self._lines) >= self._plan.lines:
                self._drop(self._lines[0])
            self._open_one()

    def _open_one(self) -> None:
        number, self._opened = self._opened, self._opened + 1
        sock = socket.socket()
        if self._plan.window_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._plan.window_bytes)
        try:
            sock.bind((self._source, 0))
            sock.settimeout(CONNECT_WITHIN_S)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect(self._at)
            sock.sendall(self._plan.opening(number))
            if self._plan.is_websocket:
                self._await_upgrade(sock)
        except OSError as refused:
            self.outcome.answers[type(refused).__name__] += 1
            sock.close()
            return
        self.outcome.connected += 1
        sock.setblocking(False)
        line = _Line(sock)
        line.pending = self._plan.first
        self._lines.append(line)
        self._watch(line)

    def _await_upgrade(self, sock: socket.socket) -> None:
        answer = b""
        while b"\r\n\r\n" not in answer:
            piece = sock.recv(4096)
            if not piece:
                raise ConnectionRefusedError
            answer += piece
        if not answer.startswith(b"HTTP/1.1 101 "):
            self._note(answer)
            raise ConnectionRefusedError

    def _send_units(self, due: int) -> None:
        """Round the lines, as many as are due, to those that take them."""
        assert self._plan.unit is not None
        for _ in range(len(self._lines)):
            if due <= 0:
                return
            self._turn = (self._turn + 1) % len(self._lines)
            line = self._lines[self._turn]
            share = -(-due // len(self._lines))
            if len(line.pending) < MAX_PENDING_BYTES:
                units = [self._plan.unit(self.outcome.sent + n) for n in range(share)]
                line.pending += b"".join(units)
                self.outcome.sent += share
                self._write(line)
                due -= share

    def _serve(self, wait_s: float) -> None:
        for key, events in self._selector.select(wait_s):
            line: _Line = key.data
            if events & selectors.EVENT_WRITE:
                self._write(line)
            if events & selectors.EVENT_READ and line in self._lines:
                self._read(line)
        # Without anybody to wait for, select returns at once.
        if not self._lines:
            time.sleep(wait_s)

    def _write(self, line: _Line) -> None:
        try:
            sent = line.sock.send(line.pending) if line.pending else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lost(line)
            return
        line.pending = line.pending[sent:]
        self._watch(line)

    def _read(self, line: _Line) -> None:
        try:
            data = line.sock.recv(RECEIVE_BYTES)
        except OSError:
            data = b""
        if not data:
            self._lost(line)
            return
        if not self._plan.is_websocket:
            self._note(data)
        line.tail = data[-200:]

    def _watch(self, line: _Line) -> None:
        wanted = (selectors.EVENT_READ if self._plan.reads else 0) | (selectors.EVENT_WRITE if line.pending else 0)
        if wanted == line.watched:
            return
        if not line.watched:
            self._selector.register(line.sock, wanted, line)
        elif wanted:
            self._selector.modify(line.sock, wanted, line)
        else:
            self._selector.unregister(line.sock)
        line.watched = wanted

    def _note(self, answer: bytes) -> None:
        if answer.startswith(b"HTTP/1.1 "):
            self.outcome.answers[answer[9:12].decode()] += 1

    def _lost(self, line: _Line) -> None:
        self.outcome.cut += 1
        # How a closing frame begins: its code is told where one came.
        at = line.tail.rfind(b"\x88")
        if self._plan.is_websocket and at >= 0 and len(line.tail) >= at + 4:
            self.outcome.answers[f"closed {int.from_bytes(line.tail[at + 2 : at + 4], 'big')}"] += 1
        self._drop(line)

    def _drop(self, line: _Line) -> None:
        if line in self._lines:
            self._lines.remove(line)
        if line.watched:
            self._selector.unregister(line.sock)
            line.watched = 0
        line.sock.close()


def upgrade_request(token: str, device_id: str, *, last_sync_id: int = 0) -> bytes:
    """The head that asks for /ws as that device."""
    key = b64encode(urandom(16)).decode()
    return (
        f"GET /ws?last_sync_id={last_sync_id}&device_id={device_id} HTTP/1.1\r\nHost: load\r\n"
        "Connection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nAuthorization: Bearer {token}\r\n\r\n"
    ).encode("ascii")
