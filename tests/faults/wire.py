"""One WebSocket from the client's side, frames by hand: cheap, and exact about what came before the line broke.

Rule: everything that the server wrote before its end is given before the end is told.
"""

from __future__ import annotations

import msgspec
import trio

from loadtest.frames import CLOSE, PONG, TEXT, masked_text

RECEIVE_BYTES = 64 * 1024
GONE = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)


class Rejected(Exception):
    """No upgrade: the HTTP status, and the code of the problem if there is one."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(f"{status} {code}")
        self.status = status
        self.code = code


class Closed(Exception):
    """The connection is over: its close code (1006: torn without a word) and reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}")
        self.code = code
        self.reason = reason


class Wire:
    """Made by `open_wire`. One task receives, one sends."""

    def __init__(self, stream: trio.SocketStream, said: bytes) -> None:
        self._stream = stream
        self._rest = said
        self._close: Closed | None = None

    async def receive(self) -> list[bytes]:
        """The payloads of the text frames that came, one or more. Raises Closed once all before the end has been given."""
        while True:
            payloads = self._whole()
            if payloads:
                return payloads
            if self._close is not None:
                raise self._close
            try:
                data = await self._stream.receive_some(RECEIVE_BYTES)
            except GONE:
                data = b""
            if not data:
                raise Closed(1006, "torn")
            self._rest += data

    async def send(self, payloads: list[bytes]) -> None:
        """Text frames, in one write. A line that is gone says so to the receiver."""
        try:
            await self._stream.send_all(b"".join(map(masked_text, payloads)))
        except GONE:
            return

    async def hang_up(self) -> None:
        await trio.aclose_forcefully(self._stream)

    def _whole(self) -> list[bytes]:
        payloads: list[bytes] = []
        data, at = self._rest, 0
        while self._close is None and len(data) - at >= 2:
            size, start = data[at + 1], at + 2
            if size >= 126:
                wide = 2 if size == 126 else 8
                size, start = int.from_bytes(data[start : start + wide], "big"), start + wide
            if start + size > len(data):
                break
            payload = data[start : start + size]
            if data[at] == TEXT:
                payloads.append(payload)
            elif data[at] == CLOSE:
                self._close = Closed(int.from_bytes(payload[:2], "big"), payload[2:].decode(errors="replace"))
            elif data[at] != PONG:
                self._close = Closed(1002, f"a frame that begins with {data[at]:#x}")
            at = start + size
        self._rest = data[at:]
        return payloads


async def open_wire(port: int, path: str, token: str) -> Wire:
    """A WebSocket on loopback, after the upgrade. Raises Rejected, OSError; Closed if the server went meanwhile."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        f"Authorization: Bearer {token}",
    ]
    answer = b""
    try:
        await stream.send_all(("\r\n".join(lines) + "\r\n\r\n").encode())
        while b"\r\n\r\n" not in answer:
            data = await stream.receive_some(RECEIVE_BYTES)
            if not data:
                raise Closed(1006, "torn before the upgrade")
            answer += data
        head, _, rest = answer.partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        if status != 101:
            raise Rejected(status, await _problem(stream, rest))
        return Wire(stream, rest)
    except trio.BrokenResourceError:
        await trio.aclose_forcefully(stream)
        raise Closed(1006, "torn before the upgrade") from None
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


async def _problem(stream: trio.SocketStream, body: bytes) -> str:
    """The `code` of a problem+json, as far as it comes."""
    with trio.move_on_after(1.0):
        while data := await stream.receive_some(RECEIVE_BYTES):
            body += data
    try:
        return str(msgspec.json.decode(body)["code"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return ""
