"""A Redis in memory, as far as our rooms use one: a bus that loses, repeats, delays and reorders; a stream, lists, a disk.

What is carried out is on disk a second later; a crash leaves what was on disk. Rule: whatever is said on the bus may be lost;
`is_up` and `hears` of a `Link` tell one process's own view, as the real link's do.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from itertools import count
from random import Random
from typing import Any

import trio

from uim.store import offline, scripts
from uim.store.redis import DURABLE_WITHIN_S, Command, RedisAway

# As many words may be on their way to one process; the real link forgets beyond as many commands.
MAX_UNDER_WAY = 10_000
DISK_EVERY_S = 1.0

Kept = dict[str, Any]


class Broker:
    """`lost`, `repeated`: shares of the words; `slowest_s`: the longest delay of one."""

    def __init__(self, chance: Random) -> None:
        self.chance = chance
        self.links: list[Link] = []
        self.lost = self.repeated = 0.0
        self.slowest_s = 0.005
        self.kept: Kept = {}
        self._disk: Kept = {}
        self._written = trio.Event()
        self._numbers = count(1)

    # -- the bus --------------------------------------------------------------------------------------------------------------

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

    # -- what is kept -----------------------------------------------------------------------------------------------------------

    def carry_out(self, command: Command) -> Any:
        name = command[0]
        if name == "PUBLISH":
            return self.publish(command[1].encode(), command[2])
        if name == "PUBSUB":
            return [command[2], self.listeners(command[2].encode())]
        if name == "EVAL":
            return self._evaluate(command[1], command[3 : 3 + command[2]], command[3 + command[2] :])
        if name == "XRANGE":
            return [(spool_id, [b"draft", data]) for spool_id, data in list(self.kept.get(command[1], {}).items())[: command[5]]]
        if name == "XLEN":
            return len(self.kept.get(command[1], {}))
        if name == "LRANGE":
            return list(self.kept.get(command[1], []))
        if name == "DEL":
            return sum(self.kept.pop(key, None) is not None for key in command[1:])
        return None  # sessions and presence: nothing here reads what they write

    def _evaluate(self, script: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        if script == scripts.SPOOL_ADD.text:
            return self._spool(keys, int(args[0]), args[1:])
        if script == scripts.SPOOL_REMOVE.text:
            stream = self.kept.get(keys[0], {})
            there = sum(stream.pop(spool_id.encode(), None) is not None for spool_id in args[1:])
            if there:
                self.kept[keys[1]] -= int(args[0])
            if not stream:
                self.kept.pop(keys[0], None)
                self.kept.pop(keys[1], None)
            return there
        if script == offline._PUSH:
            held = [*self.kept.get(keys[0], []), *args]
            self.kept[keys[0]] = held[-offline.MOST :]
        if script == offline._READ:
            after, most = args
            return [one for one in self.kept.get(keys[0], []) if offline._decode(one).id > after][:most]
        return None

    def _spool(self, keys: Sequence[str], most: int, drafts: Sequence[bytes]) -> list[bytes]:
        stream = self.kept.setdefault(keys[0], {})
        size = self.kept.get(keys[1], 0) if stream else 0
        ids = []
        for draft in drafts:
            if size + len(draft) > most:
                break
            size += len(draft)
            ids.append(b"%d-0" % next(self._numbers))
            stream[ids[-1]] = draft
        self.kept[keys[1]] = size
        return ids

    async def run(self) -> None:
        """Write to disk once a second, until cancelled."""
        while True:
            await trio.sleep(DISK_EVERY_S)
            self._disk = _copy(self.kept)
            self._written.set()
            self._written = trio.Event()

    async def on_disk(self) -> None:
        """Returns once all that has been carried out until now is on disk."""
        await self._written.wait()

    def crash(self) -> None:
        """Gone for everybody, with what was not on disk."""
        self.kept = _copy(self._disk)
        for link in self.links:
            link.cut()


def _copy(kept: Kept) -> Kept:
    return {key: value.copy() if isinstance(value, dict | list) else value for key, value in kept.items()}


class Link:
    """RedisLink's interface. `cut()` and `mend()` are the network's."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.channels: dict[bytes, tuple[Callable[[bytes], None], Callable[[], None]]] = {}
        self._under_way: list[tuple[float, int, bytes, bytes]] = []
        self._news = trio.Event()
        self._cuts = 0
        self._is_dead = False
        self.is_up = False
        self.hears = False

    def subscribe(
        self, channel: str, on_message: Callable[[bytes], None], *, on_begun: Callable[[], None] = lambda: None
    ) -> None:
        self.channels[channel.encode()] = (on_message, on_begun)

    def send(self, *command: Any) -> None:
        if self.is_up:
            self._broker.carry_out(command)

    async def call(self, *command: Any) -> Any:
        return (await self.call_all([command]))[0]

    async def call_all(self, commands: Sequence[Command]) -> list[Any]:
        cuts = self._cuts
        await self._travel(cuts)
        replies = [self._broker.carry_out(command) for command in commands]
        await self._travel(cuts)
        return replies

    async def call_durably(self, *command: Any) -> Any:
        cuts = self._cuts
        await self._travel(cuts)
        reply = self._broker.carry_out(command)
        with trio.move_on_after(DURABLE_WITHIN_S) as patience:
            await self._broker.on_disk()
        if patience.cancelled_caught:
            raise RedisAway("not on disk")
        await self._travel(cuts)
        return reply

    async def _travel(self, cuts: int) -> None:
        """One way; the command or its reply is lost if the line is cut meanwhile."""
        if self.is_up:
            await trio.sleep(self._broker.chance.random() * 0.001)
        if not self.is_up or self._cuts != cuts:
            await trio.lowlevel.checkpoint()
            raise RedisAway("redis is away")

    async def probe(self) -> None:
        await self.call("PING")

    def arrive(self, due: float, number: int, channel: bytes, data: bytes) -> None:
        if len(self._under_way) < MAX_UNDER_WAY:
            heapq.heappush(self._under_way, (due, number, channel, data))
            self._news.set()

    def cut(self) -> None:
        self._cuts += 1
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
