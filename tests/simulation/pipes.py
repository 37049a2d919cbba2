"""A network in memory: two ends of one connection, with bounded buffers, seeded delays, and ways to break.

An `End` is what uim.listener.ByteStream takes for its socket. Rule: bytes arrive in order or not at all; a reset drops what is
under way; a hole swallows everything and tells nobody; a full buffer makes the writer wait.
"""

from __future__ import annotations

from collections import deque
from random import Random
from typing import Any

import trio

CAPACITY_BYTES = 16 * 1024
# The share of writes that take less than they could.
SHORT_WRITES = 0.1


class _Way:
    """One direction."""

    def __init__(self, chance: Random, capacity: int, slowest_s: float) -> None:
        self._chance = chance
        self._capacity = capacity
        self._slowest_s = slowest_s
        self._under_way: deque[tuple[float, bytes]] = deque()
        self._size = 0
        self._last_due = 0.0
        self._news = trio.Event()
        self._room = trio.Event()
        self.ended = False
        self.reset = False
        self.hole = False

    def wake(self) -> None:
        self._news.set()
        self._room.set()

    async def write(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        while data:
            if self.reset or self.ended:
                raise trio.BrokenResourceError("connection reset")
            room = self._capacity - self._size
            if room <= 0:
                self._room = trio.Event()
                await self._room.wait()
                continue
            piece, data = data[:room], data[room:]
            self._take(piece)

    def write_now(self, data: bytes) -> int:
        """As much as there is room for; now and then only some of it, as a socket may."""
        if self.reset or self.ended:
            return 0
        piece = data[: max(0, self._capacity - self._size)]
        if self._chance.random() < SHORT_WRITES:
            piece = piece[: self._chance.randrange(len(piece) + 1)]
        if piece:
            self._take(piece)
        return len(piece)

    def _take(self, piece: bytes) -> None:
        self._size += len(piece)
        if not self.hole:
            self._last_due = max(self._last_due, trio.current_time() + self._chance.random() * self._slowest_s)
            self._under_way.append((self._last_due, piece))
            self._news.set()

    async def read(self, most: int) -> bytes:
        await trio.lowlevel.checkpoint()
        while True:
            if self.reset:
                raise trio.BrokenResourceError("connection reset")
            if self._under_way:
                due, piece = self._under_way[0]
                if due <= trio.current_time():
                    return self._taken(piece, most)
                with trio.move_on_at(due):
                    self._news = trio.Event()
                    await self._news.wait()
                continue
            if self.ended:
                return b""
            self._news = trio.Event()
            await self._news.wait()

    def _taken(self, piece: bytes, most: int) -> bytes:
        due, _ = self._under_way.popleft()
        if len(piece) > most:
            self._under_way.appendleft((due, piece[most:]))
            piece = piece[:most]
        self._size -= len(piece)
        self._room.set()
        return piece


class End(trio.abc.HalfCloseableStream):
    """One end. `socket` is itself: ByteStream closes that to hang up."""

    def __init__(self, outgoing: _Way, incoming: _Way) -> None:
        self._out = outgoing
        self._in = incoming
        self._closed = False
        self.socket = self

    @property
    def is_over(self) -> bool:
        return self._closed or self._out.reset

    async def send_all(self, data: Any) -> None:
        if self._closed:
            raise trio.ClosedResourceError
        await self._out.write(bytes(data))
        if self._closed:
            raise trio.ClosedResourceError

    def write_now(self, data: Any) -> int:
        return 0 if self._closed else self._out.write_now(bytes(data))

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._closed:
            raise trio.ClosedResourceError
        received = await self._in.read(max_bytes or CAPACITY_BYTES)
        if self._closed:
            raise trio.ClosedResourceError
        return received

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError
        self._out.ended = True
        self._out.wake()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """As a socket's close: the other end reads what is under way, then the end; writing to us breaks."""
        if self._closed:
            return
        self._closed = True
        if not self._out.hole:
            self._out.ended = True
        self._in.reset = True
        self._out.wake()
        self._in.wake()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    def tear(self) -> None:
        """Reset both ways: what was under way is lost."""
        for way in (self._out, self._in):
            way.reset = True
            way.wake()

    def fall_silent(self) -> None:
        """Both ways swallow everything from now on, and nobody is told."""
        self._out.hole = self._in.hole = True


def connection(chance: Random, *, capacity: int = CAPACITY_BYTES, slowest_s: float = 0.02) -> tuple[End, End]:
    there, back = _Way(chance, capacity, slowest_s), _Way(chance, capacity, slowest_s)
    return End(there, back), End(back, there)
