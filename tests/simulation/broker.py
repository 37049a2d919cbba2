"""A Redis in memory, as far as a RedisLink shows it: a bus that loses, repeats, delays and reorders.

Rule: whatever is said on it may be lost; `is_up` and `hears` tell each process's own view, as the real link's do.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from itertools import count
from random import Random
from typing import Any

import trio

from uim.store.redis import Command, RedisAway

# As many words may be on their way to one process; the real link forgets beyond as many commands.
MAX_UNDER_WAY = 10_000


class Broker:
    """`faults` is read at every word: shares of words lost and repeated, and the longest delay of one."""

    def __init__(self, chance: Random) -> None:
        self.chance = chance
        self.links: list[Link] = []
        self.lost = self.repeated = 0.0
        self.slowest_s = 0.005
        self._numbers = count()

    def publish(self, channel: bytes, data: bytes) -> int:
        hearers = [link for link in self.links if link.hears and channel in link.channels]
        for link in hearers:
            while self.chance.random() >= self.lost:
                due = trio.current_time() + self.chance.random() * self.slowest_s
                link.arrive(due, next(self._numbers), channel, data)
                if self.chance.random() >= self.repeated:
                    break
        return len(hearers)

    def listeners(self, channel: bytes) -> int:
        return sum(link.hears and channel in link.channels for link in self.links)


class Link:
    """RedisLink's interface. `cut()` and `mend()` are the network's."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.channels: dict[bytes, tuple[Callable[[bytes], None], Callable[[], None]]] = {}
        self._under_way: list[tuple[float, int, bytes, bytes]] = []
        self._news = trio.Event()
        self.is_up = False
        self.hears = False
        self._is_dead = False

    def subscribe(
        self, channel: str, on_message: Callable[[bytes], None], *, on_begun: Callable[[], None] = lambda: None
    ) -> None:
        self.channels[channel.encode()] = (on_message, on_begun)

    def send(self, *command: Any) -> None:
        if self.is_up:
            self._carry_out(command)

    async def call(self, *command: Any) -> Any:
        return (await self.call_all([command]))[0]

    async def call_all(self, commands: Sequence[Command]) -> list[Any]:
        if not self.is_up:
            raise RedisAway("redis is away")
        await trio.sleep(self._broker.chance.random() * 0.002)
        if not self.is_up:
            raise RedisAway("redis is away")
        return [self._carry_out(command) for command in commands]

    async def probe(self) -> None:
        await self.call("PING")

    def _carry_out(self, command: Command) -> Any:
        if command[0] == "PUBLISH":
            return self._broker.publish(command[1].encode(), command[2])
        if command[0] == "PUBSUB":
            return [command[2], self._broker.listeners(command[2].encode())]
        return None

    def arrive(self, due: float, number: int, channel: bytes, data: bytes) -> None:
        if len(self._under_way) < MAX_UNDER_WAY:
            heapq.heappush(self._under_way, (due, number, channel, data))
            self._news.set()

    def cut(self) -> None:
        self.is_up = self.hears = False
        self._under_way.clear()

    def die(self) -> None:
        """Its process is dead: from now on it says nothing and hears nothing, whatever is mended."""
        self.cut()
        self._is_dead = True

    def mend(self) -> None:
        if not self.is_up and not self._is_dead:
            self.is_up = self.hears = True
            for _, on_begun in self.channels.values():
                on_begun()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self._broker.links.append(self)
        self.mend()
        task_status.started()
        try:
            while True:
                self._news = trio.Event()
                with trio.move_on_at(self._under_way[0][0] if self._under_way else float("inf")):
                    await self._news.wait()
                while self._under_way and self._under_way[0][0] <= trio.current_time():
                    _, _, channel, data = heapq.heappop(self._under_way)
                    self.channels[channel][0](data)
        finally:
            self._broker.links.remove(self)
