"""HTTP/1.1 by hand, on one selector: each connection asks on as soon as it is answered, and is kept alive.

Rule: an answer is read whole and its status looked at; anything but success ends the run. TLS is not spoken here: through it the client
would be what is measured.
"""

from __future__ import annotations

import re
import selectors
import socket
import time
from array import array
from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import urlsplit

from loadtest.frames import Torn

RECEIVE_BYTES: Final = 256 * 1024
CONNECT_WITHIN_S: Final = 15.0
ANSWER_WITHIN_S: Final = 30.0
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)

# The next request of a connection, whole; and what is done with the body of its answer.
Ask = Callable[[], bytes]
Hear = Callable[[bytes], None]


def request(method: str, path: str, *, host: str = "load", token: str | None = None, body: bytes | None = None) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}"]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii") + (body or b"")


class Line:
    """One connection. `times_ns`: of each answer, from the request's first byte to the answer's last."""

    __slots__ = ("_asked_ns", "_sock", "_wanted", "ask", "hear", "received", "times_ns")

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.received = b""
        self._wanted = 0
        self._asked_ns = 0
        self.ask: Ask = bytes
        self.hear: Hear = lambda body: None
        self.times_ns: array[int] = array("q")

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def send(self) -> None:
        """The next request. It is small: the kernel takes it whole."""
        self._asked_ns = time.monotonic_ns()
        self._sock.sendall(self.ask())

    def read(self) -> bool:
        """Whether an answer has come whole."""
        data = self._sock.recv(RECEIVE_BYTES)
        if not data:
            raise Torn("the server hung up on a connection that is kept alive")
        self.received += data
        if not self.is_whole():
            return False
        self.times_ns.append(time.monotonic_ns() - self._asked_ns)
        body = self.received.partition(b"\r\n\r\n")[2]
        self.received, self._wanted = b"", 0
        self.hear(body)
        return True

    def is_whole(self) -> bool:
        if not self._wanted and (end := self.received.find(b"\r\n\r\n")) >= 0:
            self._wanted = end + 4 + self._body_bytes(self.received[: end + 2])
        return 0 < self._wanted <= len(self.received)

    def _body_bytes(self, head: bytes) -> int:
        length = _LENGTH.search(head)
        if head[9:10] != b"2" or length is None:
            raise Torn(f"an answer that is no success: {self.received[:500].decode(errors='replace')}")
        return int(length[1])


class Lines:
    """All of them. Not for threads."""

    def __init__(self, url: str, sources: Sequence[str]) -> None:
        """One connection from each of these addresses ("" for whichever)."""
        parts = urlsplit(url)
        at = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._selector = selectors.DefaultSelector()
        self.all: list[Line] = []
        for source in sources:
            sock = socket.create_connection(at, CONNECT_WITHIN_S, (source, 0) if source else None)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            line = Line(sock)
            self.all.append(line)
            self._selector.register(line, selectors.EVENT_READ, line)

    def run(self, *, seconds: float) -> float:
        """Each asks on for that long; returns how long it was until the last answer."""
        return self._run(lambda: time.monotonic() < ends_at, ends_at := time.monotonic() + seconds)

    def once(self) -> None:
        """Each asks once."""
        self._run(lambda: False, time.monotonic())

    def close(self) -> None:
        for line in self.all:
            line.close()
        self._selector.close()

    def _run(self, goes_on: Callable[[], bool], ends_at: float) -> float:
        began_at = time.monotonic()
        for line in self.all:
            line.send()
        open_lines = len(self.all)
        while open_lines:
            if time.monotonic() > ends_at + ANSWER_WITHIN_S:
                raise Torn(f"{open_lines} requests had no answer within {ANSWER_WITHIN_S:g} s")
            for key, _ in self._selector.select(1.0):
                answered: Line = key.data
                if answered.read():
                    if goes_on():
                        answered.send()
                    else:
                        open_lines -= 1
        return time.monotonic() - began_at
