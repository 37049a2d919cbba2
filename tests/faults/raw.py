"""A peer that keeps no rules: a bare TCP connection to the server, on which any bytes may be said, read or left unread.

`async with raw.line(server, head) as peer:` for HTTP; `raw.websocket(person, "device")` after the upgrade. Rule: it comes from an
address of its own, so that what is counted by address is counted apart from the tests' honest clients.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import trio

from loadtest.lines import upgrade_request
from tests.house import WAIT_S, Person, Server

ADDRESS = "127.0.0.66"
TEXT, PING, PONG, CLOSE, CONTINUATION = 1, 9, 10, 8, 0
# linux/filter.h: BPF_RET | BPF_K, a filter of one instruction that lets nothing through.
_DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)
_SO_ATTACH_FILTER = 26


class Peer:
    """One connection. What was read and not yet asked for is in `received`."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.received = b""
        self.was_reset = False

    async def say(self, data: bytes) -> None:
        """Raises trio.BrokenResourceError once the server has gone."""
        await self.stream.send_all(data)

    async def until(self, part: bytes) -> bytes:
        """Read until `part` has come; what came up to its end."""
        with trio.fail_after(WAIT_S):
            while part not in self.received:
                piece = await self.stream.receive_some()
                assert piece, f"the server closed; it had said {self.received[-500:]!r}"
                self.received += piece
        end = self.received.index(part) + len(part)
        said, self.received = self.received[:end], self.received[end:]
        return said

    async def to_the_end(self, within_s: float = WAIT_S) -> bytes:
        """All that comes until the server closes, or tears, the connection."""
        with trio.fail_after(within_s):
            try:
                while piece := await self.stream.receive_some():
                    self.received += piece
            except trio.BrokenResourceError:
                self.was_reset = True
        return self.received

    async def pour(self, unit: bytes, number: int, *, patience_s: float = 0.5) -> int:
        """Say it so often, or until the server has taken nothing for a while, or has gone; how often it was said in full."""
        for said in range(number):
            with trio.move_on_after(patience_s) as patience:
                try:
                    await self.say(unit)
                except trio.BrokenResourceError:
                    return said
            if patience.cancelled_caught:
                return said
        return number

    def vanish(self) -> None:
        """From now on nothing reaches this end: no segment is acknowledged, none refused. As when the cable is pulled."""
        instructions = ctypes.create_string_buffer(_DROP_ALL)
        program = struct.pack("HP", 1, ctypes.addressof(instructions))
        self.stream.socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def close_code(said: bytes) -> int | None:
    """The code of the closing frame that ends what a server said; None without one."""
    at = said.rfind(b"\x88")
    return int.from_bytes(said[at + 2 : at + 4], "big") if 0 <= at <= len(said) - 4 else None


@asynccontextmanager
async def line(server: Server, said: bytes = b"", *, window_bytes: int = 0, address: str = ADDRESS) -> AsyncIterator[Peer]:
    """A connection that has said this. `window_bytes`: SO_RCVBUF; 0 is the kernel's choice."""
    parts = urlsplit(server.url)
    with trio.socket.socket() as opened:
        if window_bytes:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window_bytes)
        await opened.bind((address, 0))
        with trio.fail_after(WAIT_S):
            await opened.connect((parts.hostname or "", parts.port or 0))
        peer = Peer(trio.SocketStream(opened))
        if said:
            await peer.say(said)
        yield peer


@asynccontextmanager
async def websocket(person: Person, device: str, *, window_bytes: int = 0) -> AsyncIterator[Peer]:
    """A connection after the upgrade, SESSION_READY read or on its way."""
    head = upgrade_request(person.tokens["access_token"], device)
    async with line(person.server, head, window_bytes=window_bytes) as peer:
        assert (await peer.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        yield peer
