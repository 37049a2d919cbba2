"""A line to Redis on which the words of its channels are dropped, delayed, repeated and reordered, by seed.

Everything else that Redis answers passes untouched and in order. Rule: what becomes of a word is drawn from the seed alone, and
`perfect` is a line like any other: two runs differ by nothing else.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

import trio

from tests.faults.proxy import _GONE, PIECE_BYTES, Proxy, _Line, _running

_OF_ONE_LINE = b"+-:,#_("
_WITH_LENGTH = b"$=!"
_ITEMS_EACH = {b"*": 1, b">": 1, b"~": 1, b"%": 2, b"|": 2}


@dataclass
class Fates:
    """The shares of words that are lost, come twice, and come late, by up to `delay_s`; late ones are overtaken."""

    lost: float = 0.0
    repeated: float = 0.0
    late: float = 0.0
    delay_s: float = 0.0

    def draw(self, chance: random.Random) -> list[float]:
        """When each copy of a word comes, in seconds from now; none for one that is lost."""
        if chance.random() < self.lost:
            return []
        copies = 2 if chance.random() < self.repeated else 1
        return [chance.random() * self.delay_s if chance.random() < self.late else 0.0 for _ in range(copies)]


PERFECT = Fates()
BAD = Fates(lost=0.3, repeated=0.2, late=0.4, delay_s=0.5)
DEAF = Fates(lost=1.0)


class LossyBus(Proxy):
    """Between a process and Redis. `fates` may be changed at any time; `words` counts what came, `lost` what went no further."""

    def __init__(self, server_path: str, seed: int, fates: Fates) -> None:
        super().__init__(server_path, b"\r\n")
        self._chance = random.Random(seed)
        self.fates = fates
        self.words = self.lost = 0

    async def _pass(self, line: _Line, source: trio.abc.Stream, carry: Callable[[_Line, bytes], bool | bytes]) -> None:
        if source is line.client:
            await super()._pass(line, source, carry)
            return
        turn = trio.Lock()
        waiting = b""
        async with trio.open_nursery() as nursery:
            with suppress(*_GONE):
                while data := bytes(await source.receive_some(PIECE_BYTES)):
                    await self._flows.wait()
                    waiting += data
                    while (end := _end_of_reply(waiting, 0)) is not None:
                        reply, waiting = waiting[:end], waiting[end:]
                        await self._deal(reply, line, turn, nursery)
            line.scope.cancel()

    async def _deal(self, reply: bytes, line: _Line, turn: trio.Lock, nursery: trio.Nursery) -> None:
        if reply[:1] not in (b">", b"*") or not reply[4:].startswith(b"$7\r\nmessage\r\n"):
            async with turn:
                await line.client.send_all(reply)
            return
        copies = self.fates.draw(self._chance)
        self.words += 1
        self.lost += not copies
        for after_s in copies:
            nursery.start_soon(_send_later, after_s, reply, line, turn)


async def _send_later(after_s: float, reply: bytes, line: _Line, turn: trio.Lock) -> None:
    await trio.sleep(after_s)
    async with turn:
        with suppress(*_GONE):
            await line.client.send_all(reply)


def _end_of_reply(data: bytes, at: int) -> int | None:
    """Where the reply that begins at `at` ends, in either version of the protocol; None if not all of it is here."""
    head_end = data.find(b"\r\n", at)
    if head_end < 0:
        return None
    kind, rest = data[at : at + 1], head_end + 2
    if kind in _OF_ONE_LINE:
        return rest
    count = int(data[at + 1 : head_end])
    if kind in _WITH_LENGTH:
        end = rest + count + 2 if count >= 0 else rest
        return end if len(data) >= end else None
    for _ in range(max(count, 0) * _ITEMS_EACH[kind]):
        inner = _end_of_reply(data, rest)
        if inner is None:
            return None
        rest = inner
    return rest


@asynccontextmanager
async def lossy_bus(redis_url: str, *, seed: int, fates: Fates) -> AsyncIterator[LossyBus]:
    made = LossyBus(unquote(urlsplit(redis_url).path), seed, fates)
    async with _running(made) as (_, port):
        made.url = f"redis://127.0.0.1:{port}/0"
        yield made
