"""The loop of visits: thousands of devices that connect side by side, stay, are cut, and come again.

One selector, one timetable, and no look at a connection on which nothing happens. Rule: who is told to come back later does so, and is
counted; any other word of refusal ends the run.
"""

from __future__ import annotations

import errno
import re
import resource
import selectors
import socket
import ssl
import struct
import time
from array import array
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from heapq import heappop, heappush
from os import urandom
from typing import Final
from urllib.parse import urlsplit

from loadtest.frames import Closed, Torn, client_frame, split
from loadtest.visitor import PING, Visitor

SECOND_NS: Final = 1_000_000_000
RECEIVE_BYTES: Final = 256 * 1024
CONFIRM_AFTER_NS: Final = 250_000_000
PING_EVERY_NS: Final = 30 * SECOND_NS
LOOK_EVERY_S: Final = 0.02
# Nobody listens, as while a server restarts: asked again so often.
REFUSED_AGAIN_NS: Final = 50_000_000
# Not in Python's socket module everywhere: the port is chosen by connect, not by bind (ip(7)).
IP_BIND_ADDRESS_NO_PORT: Final = 24
LINGER_NOT: Final = struct.pack("ii", 1, 0)
GOODBYE: Final = client_frame(0x8, (1000).to_bytes(2, "big"))
READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
_RETRY_AFTER: Final = re.compile(rb"\r\nretry-after: *(\d+)", re.IGNORECASE)
_RETRY_AFTER_MS: Final = re.compile(r"retry_after_ms=(\d+)")


class Step(Enum):
    CONNECT = "its SYN is under way"
    SECURE = "TLS"
    UPGRADE = "the head is sent"
    OPEN = "frames"
    OVER = "closed"


class Visit:
    """One connection of a visitor."""

    __slots__ = ("began_ns", "is_due", "live_ns", "received", "sock", "step", "to_send", "visitor", "wanted")

    def __init__(self, visitor: Visitor, sock: socket.socket, began_ns: int) -> None:
        self.visitor = visitor
        self.sock = sock
        self.began_ns = began_ns
        self.live_ns = 0
        self.step = Step.CONNECT
        self.received = b""
        self.to_send = b""
        self.wanted = WRITE
        self.is_due = False


class Visits:
    """`lives_ns`: from connect to live, of each visit; `upgrades_ns`: from connect to the 101. `sent_away`: told to come back later;
    `refused`: found nobody listening. `at_once`: how many may be opening at the same time.
    """

    def __init__(self, websocket_url: str, *, at_once: int) -> None:
        parts = urlsplit(websocket_url)
        self._tls = ssl.create_default_context() if parts.scheme == "wss" else None
        self._host = parts.hostname or "127.0.0.1"
        self._at = socket.getaddrinfo(self._host, parts.port or (443 if self._tls else 80), type=socket.SOCK_STREAM)[0]
        self._path, self._netloc = parts.path, parts.netloc
        self._at_once = at_once
        self._selector = selectors.DefaultSelector()
        self._coming: deque[Visitor] = deque()
        self._later: list[tuple[int, int, Visitor]] = []
        self._laters = 0
        self._confirms: deque[tuple[int, Visit]] = deque()
        self._pings: deque[tuple[int, Visit]] = deque()
        self._opening = 0
        self.here: dict[Visitor, Visit] = {}
        self.live = 0
        self.lives_ns: array[int] = array("q")
        self.upgrades_ns: array[int] = array("q")
        self.sent_away = 0
        self.refused = 0
        self.waits_for_server = False

    # -- what a workload asks for -----------------------------------------------------------------------------------------

    def come(self, visitors: Iterable[Visitor]) -> None:
        """They connect as soon as there is room."""
        self._coming.extend(visitors)

    def come_later(self, visitor: Visitor, after_s: float) -> None:
        self._laters += 1
        heappush(self._later, (time.monotonic_ns() + int(after_s * SECOND_NS), self._laters, visitor))

    def cut(self, visitor: Visitor) -> None:
        """Hang up hard: the server gets a reset, and no word."""
        visit = self.here[visitor]
        visit.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
        self._over(visit)

    def leave(self, visitor: Visitor) -> None:
        """Go with a word."""
        visit = self.here[visitor]
        if visit.step is Step.OPEN:
            self._send(visit, GOODBYE)
        self._over(visit)

    def cut_all(self) -> list[Visitor]:
        visitors = list(self.here)
        for visitor in visitors:
            self.cut(visitor)
        return visitors

    def say(self, visitor: Visitor, frames: bytes) -> None:
        visit = self.here[visitor]
        if visit.step is Step.OPEN:
            self._send(visit, frames)

    def run(
        self, seconds: float, until: Callable[[], bool] = lambda: False, beat: Callable[[int], int | None] = lambda now_ns: None
    ) -> bool:
        """Serve for that long, or until `until()` holds; whether it did. `beat(now)` does what is due, and says when to call again."""
        ends_ns = time.monotonic_ns() + int(seconds * SECOND_NS)
        while True:
            now_ns = time.monotonic_ns()
            again_ns = beat(now_ns)
            self._open_more(now_ns)
            self._keep_times(now_ns)
            if until():
                return True
            if now_ns >= ends_ns:
                return False
            wake_ns = min(ends_ns, again_ns or ends_ns)
            for key, events in self._selector.select(max(0.0, min(LOOK_EVERY_S, (wake_ns - time.monotonic_ns()) / SECOND_NS))):
                self._serve(key.data, events)

    def close(self) -> None:
        """Leave without a word."""
        self.cut_all()
        self._selector.close()

    # -- opening ----------------------------------------------------------------------------------------------------------

    def _open_more(self, now_ns: int) -> None:
        while self._later and self._later[0][0] <= now_ns:
            self._coming.append(heappop(self._later)[2])
        while self._coming and self._opening < self._at_once:
            self._open(self._coming.popleft())

    def _open(self, visitor: Visitor) -> None:
        family, kind, protocol, _, address = self._at
        sock = socket.socket(family, kind, protocol)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if visitor.source:
            sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((visitor.source, 0))
        visit = Visit(visitor, sock, time.monotonic_ns())
        self.here[visitor] = visit
        self._opening += 1
        failed = sock.connect_ex(address)
        if failed not in (0, errno.EINPROGRESS):
            self._not_there(visit, failed)
            return
        self._selector.register(sock, WRITE, visit)

    def _not_there(self, visit: Visit, failed: int) -> None:
        self._over(visit)
        if not self.waits_for_server:
            raise OSError(failed, f"no connection: {errno.errorcode.get(failed, failed)}")
        self.refused += 1
        self.come_later(visit.visitor, REFUSED_AGAIN_NS / SECOND_NS)

    def _connected(self, visit: Visit) -> None:
        if failed := visit.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._not_there(visit, failed)
            return
        if self._tls is not None:
            self._selector.unregister(visit.sock)
            visit.sock = self._tls.wrap_socket(visit.sock, server_hostname=self._host, do_handshake_on_connect=False)
            self._selector.register(visit.sock, READ | WRITE, visit)
            visit.wanted = READ | WRITE
            visit.step = Step.SECURE
            self._secure(visit)
            return
        self._ask(visit)

    def _secure(self, visit: Visit) -> None:
        assert isinstance(visit.sock, ssl.SSLSocket)
        try:
            visit.sock.do_handshake()
        except ssl.SSLWantReadError:
            self._want(visit, READ)
        except ssl.SSLWantWriteError:
            self._want(visit, WRITE)
        else:
            self._ask(visit)

    def _ask(self, visit: Visit) -> None:
        visitor = visit.visitor
        visit.step = Step.UPGRADE
        self._want(visit, READ)
        head = (
            f"GET {self._path}?last_sync_id={visitor.position}&device_id={visitor.device_id} HTTP/1.1\r\nHost: {self._netloc}\r\n"
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {b64encode(urandom(16)).decode()}\r\nAuthorization: Bearer {visitor.token}\r\n\r\n"
        )
        self._send(visit, head.encode("ascii"))

    def _upgraded(self, visit: Visit, now_ns: int) -> None:
        head, end, rest = visit.received.partition(b"\r\n\r\n")
        if not end:
            return
        if head.startswith(b"HTTP/1.1 101 "):
            self.upgrades_ns.append(now_ns - visit.began_ns)
            visit.step, visit.received = Step.OPEN, b""
            self._hear(visit, rest, now_ns)
        elif head.startswith(b"HTTP/1.1 503 ") and (told := _RETRY_AFTER.search(head)):
            self._over(visit)
            self._sent_away(visit.visitor, float(told[1]))
        else:
            raise Torn(f"no upgrade: {visit.received[:500].decode(errors='replace')}")

    def _sent_away(self, visitor: Visitor, after_s: float) -> None:
        self.sent_away += 1
        self.come_later(visitor, after_s)

    # -- what comes and goes ----------------------------------------------------------------------------------------------

    def _serve(self, visit: Visit, events: int) -> None:
        if visit.step is Step.OVER:
            return
        try:
            if visit.step is Step.CONNECT:
                self._connected(visit)
            elif visit.step is Step.SECURE:
                self._secure(visit)
            else:
                if events & WRITE:
                    self._send(visit, b"")
                if events & READ:
                    self._read(visit)
        except ConnectionResetError:
            self._lost(visit, "reset")

    def _read(self, visit: Visit) -> None:
        while True:
            try:
                data = visit.sock.recv(RECEIVE_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError):
                return
            now_ns = time.monotonic_ns()
            if not data:
                self._lost(visit, "hung up on")
            elif visit.step is Step.UPGRADE:
                visit.received += data
                self._upgraded(visit, now_ns)
            else:
                self._hear(visit, data, now_ns)
            if visit.step is Step.OVER or not (isinstance(visit.sock, ssl.SSLSocket) and visit.sock.pending()):
                return

    def _hear(self, visit: Visit, data: bytes, now_ns: int) -> None:
        visitor = visit.visitor
        try:
            payloads, visit.received = split(visit.received + data if visit.received else data)
        except Closed as closed:
            visitor.take(closed.last_words, now_ns)
            self._told_goodbye(visit, closed)
            return
        if not payloads:
            return
        if said := visitor.take(payloads, now_ns):
            self._send(visit, said)
        if visitor.is_live and not visit.live_ns:
            self._now_live(visit, now_ns)
        if visitor.unconfirmed and not visit.is_due:
            visit.is_due = True
            self._confirms.append((now_ns + CONFIRM_AFTER_NS, visit))

    def _now_live(self, visit: Visit, now_ns: int) -> None:
        visit.live_ns = now_ns
        self.lives_ns.append(now_ns - visit.began_ns)
        self.live += 1
        self._opening -= 1
        self._pings.append((now_ns + PING_EVERY_NS, visit))

    def _keep_times(self, now_ns: int) -> None:
        while self._confirms and self._confirms[0][0] <= now_ns:
            visit = self._confirms.popleft()[1]
            visit.is_due = False
            if visit.step is Step.OPEN and visit.visitor.unconfirmed:
                self._send(visit, visit.visitor.confirm())
        while self._pings and self._pings[0][0] <= now_ns:
            visit = self._pings.popleft()[1]
            if visit.step is Step.OPEN:
                self._send(visit, PING)
                self._pings.append((now_ns + PING_EVERY_NS, visit))

    def _send(self, visit: Visit, said: bytes) -> None:
        waiting = visit.to_send + said
        try:
            sent = visit.sock.send(waiting) if waiting else 0
        except (BlockingIOError, ssl.SSLWantWriteError):
            sent = 0
        except (BrokenPipeError, ConnectionResetError):
            self._lost(visit, "reset")
            return
        visit.to_send = waiting[sent:]
        self._want(visit, READ | (WRITE if visit.to_send else 0))

    def _want(self, visit: Visit, wanted: int) -> None:
        if wanted != visit.wanted:
            visit.wanted = wanted
            self._selector.modify(visit.sock, wanted, visit)

    # -- ends -------------------------------------------------------------------------------------------------------------

    def _told_goodbye(self, visit: Visit, closed: Closed) -> None:
        told = _RETRY_AFTER_MS.search(closed.reason)
        if closed.code not in (1012, 1013) or told is None:
            raise closed
        self._over(visit)
        self._sent_away(visit.visitor, int(told[1]) / 1000)

    def _lost(self, visit: Visit, how: str) -> None:
        self._over(visit)
        if not self.waits_for_server:
            raise Torn(f"a connection was {how}")
        self.refused += 1
        self.come_later(visit.visitor, REFUSED_AGAIN_NS / SECOND_NS)

    def _over(self, visit: Visit) -> None:
        if visit.step is Step.OVER:
            return
        if visit.live_ns:
            self.live -= 1
        else:
            self._opening -= 1
        visit.step = Step.OVER
        if self._is_watched(visit):
            self._selector.unregister(visit.sock)
        visit.sock.close()
        visit.visitor.leave()
        del self.here[visit.visitor]

    def _is_watched(self, visit: Visit) -> bool:
        return visit.sock.fileno() in self._selector.get_map()


def raise_open_files() -> int:
    """As many as this process may have; that number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
