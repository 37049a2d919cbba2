"""Redis on Trio: one trio-asyncio loop, owned by one task, fed in pipelines.

redis-py is asyncio's; a call across that bridge costs about 185 µs, a command inside a pipeline of fifty 24. So Trio tasks hand
commands to the link's task, which sends whatever waits as one pipeline. Rule: whatever lives in Redis may be lost at any moment;
here an outage is a word (`is_up`), a refused call, a dropped command, never an exception in somebody else's task.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import redis.asyncio
import redis.exceptions
import trio
import trio_asyncio

from uim.log import get_logger

MAX_WAITING: Final = 10_000
PIPELINE_COMMANDS: Final = 500
ANSWER_WITHIN_S: Final = 2.0
# An append-only file is written to disk once a second.
DURABLE_WITHIN_S: Final = 4.0
PING_EVERY_S: Final = 1.0
# Between tries to come back: twice as long each time, and drawn, so that many processes do not come at once.
LEAST_REST_S: Final = 0.25
MOST_REST_S: Final = 2.0
# One that is full, or a replica, refuses each of a thousand commands a second.
REFUSALS_TOLD_EVERY_S: Final = 10.0
# Written at each question for its health: one that takes no writes answers a PING too.
PROBE: Final = ("SET", "uim:probe", "1", "EX", 60)

log = get_logger(__name__)

Command = tuple[Any, ...]
# What somebody else may have written there, or a bit that has tipped over, makes of decoding it: it is skipped, and ends nothing.
UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_AWAY = (redis.exceptions.RedisError, OSError, EOFError, TimeoutError)


class RedisAway(Exception):
    """The command was not carried out, or nobody knows whether it was."""


class _Lane:
    """What stands in line for one connection."""

    __slots__ = ("waiting", "wake")

    def __init__(self) -> None:
        self.waiting: deque[_Call] = deque()
        self.wake = trio.Event()

    def enter(self, calls: Sequence[_Call]) -> None:
        self.waiting.extend(calls)
        self.wake.set()

    def take(self) -> list[_Call]:
        """What goes into the next pipeline."""
        self.wake = trio.Event()
        batch = [self.waiting.popleft() for _ in range(min(len(self.waiting), PIPELINE_COMMANDS))]
        if self.waiting:
            self.wake.set()
        return batch

    def fail(self, batch: Sequence[_Call], why: str) -> None:
        for call in [*batch, *self.waiting]:
            _settle(call, RedisAway(why))
        self.waiting.clear()


class _Call:
    __slots__ = ("command", "done", "reply")

    def __init__(self, command: Command, *, waits: bool) -> None:
        self.command = command
        self.done = trio.Event() if waits else None
        self.reply: Any = RedisAway("no answer")


class _Rest:
    """How long to rest before the next try, which no success has ended yet."""

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance
        self._rest_s = LEAST_REST_S

    def ended(self) -> None:
        self._rest_s = LEAST_REST_S

    def next_s(self) -> float:
        rest_s = self._rest_s * (0.5 + self._chance())
        self._rest_s = min(2 * self._rest_s, MOST_REST_S)
        return rest_s


class RedisLink:
    """One a process. `run` is its task; `send` and `call` are for everybody else.

    `is_up`: Redis answers; `hears`: the channels are heard; `refused`: commands that it has refused. `chance` draws from 0 to 1.
    """

    def __init__(self, url: str, chance: Callable[[], float] = random.random) -> None:
        self._url = url
        self._chance = chance
        self._usual = _Lane()
        # Of its own: waiting for the disk takes up to a second, and all that stands behind it waits too.
        self._durable = _Lane()
        self.is_up = False
        self.hears = False
        self._tried = trio.Event()
        self._ended = False
        self.refused = self._refusals_told = 0
        self._tell_refusals_at = 0.0
        self._channels: dict[bytes, tuple[Callable[[bytes], None], Callable[[], None]]] = {}

    def subscribe(
        self, channel: str, on_message: Callable[[bytes], None], *, on_begun: Callable[[], None] = lambda: None
    ) -> None:
        """Hear a channel; called before `run`, once for each. Neither callback awaits.

        `on_begun` hears that the channel is heard from now on, at first and after each gap in which words were lost.
        """
        self._channels[channel.encode()] = (on_message, on_begun)

    def send(self, *command: Any) -> None:
        """Carry out a command whose reply nobody needs; dropped while Redis is away or 10,000 wait."""
        if self.is_up and len(self._usual.waiting) < MAX_WAITING:
            self._usual.enter([_Call(command, waits=False)])

    async def call(self, *command: Any) -> Any:
        """Carry out a command and give its reply. Raises RedisAway, within ANSWER_WITHIN_S + a second."""
        return (await self._call_in(self._usual, [command], ANSWER_WITHIN_S))[0]

    async def call_all(self, commands: Sequence[Command]) -> list[Any]:
        """Carry out commands as one pipeline, or what fits into one, in order; their replies. Raises RedisAway if any failed."""
        return await self._call_in(self._usual, commands, ANSWER_WITHIN_S)

    async def call_durably(self, *command: Any) -> Any:
        """Carry out a command, and give its reply once Redis has it in its append-only file on disk (WAITAOF).

        Raises RedisAway, within DURABLE_WITHIN_S + a second, where that is not sure; also where there is no such file.
        """
        return (await self._call_in(self._durable, [command], DURABLE_WITHIN_S))[0]

    async def _call_in(self, lane: _Lane, commands: Sequence[Command], within_s: float) -> list[Any]:
        if not self.is_up or len(lane.waiting) + len(commands) > MAX_WAITING:
            raise RedisAway("redis is away")
        calls = [_Call(command, waits=True) for command in commands]
        lane.enter(calls)
        with trio.move_on_after(within_s + 1.0):
            for call in calls:
                assert call.done is not None
                await call.done.wait()
        for call in calls:
            if isinstance(call.reply, Exception):
                raise RedisAway(str(call.reply))
        return [call.reply for call in calls]

    async def probe(self) -> None:
        """Whether it takes a write, and the channels are heard; raises RedisAway."""
        await self.call(*PROBE)
        if self._channels and not self.hears:
            raise RedisAway("its channels are not heard")

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the link until cancelled. Started after the first try, whatever came of it: who needs Redis asks."""
        async with trio_asyncio.open_loop(), trio.open_nursery() as nursery:
            nursery.start_soon(self._pump)
            nursery.start_soon(self._pump_durably)
            nursery.start_soon(self._listen)
            nursery.start_soon(self._note_the_end)
            with trio.move_on_after(ANSWER_WITHIN_S):
                await self._tried.wait()
            task_status.started()

    async def _note_the_end(self) -> None:
        """Tell the subscription when the link is cancelled.

        redis-py swallows a cancellation that comes just as its own time-out expires, and would then go on listening for ever.
        """
        try:
            await trio.sleep_forever()
        finally:
            self._ended = True

    def _client(self, answer_within_s: float | None = None) -> Any:
        """`answer_within_s` is for each reply, and a timer for each; a pipeline has one of its own."""
        return redis.asyncio.Redis.from_url(
            self._url, socket_timeout=answer_within_s, socket_connect_timeout=ANSWER_WITHIN_S, health_check_interval=0
        )

    async def _pump(self) -> None:
        """Pipelines of what waits; without work, a ping a second tells whether Redis is there."""
        client = self._client()
        rest = _Rest(self._chance)
        while True:
            with trio.move_on_after(PING_EVERY_S):
                if self.is_up:
                    await self._usual.wake.wait()
            batch = self._usual.take()
            commands = [call.command for call in batch] or [("PING",)]
            replies = await trio_asyncio.aio_as_trio(_carry_out)(client, commands, ANSWER_WITHIN_S)
            if isinstance(replies, Exception):
                self._went_away(batch, replies)
                await trio.sleep(rest.next_s())
                continue
            rest.ended()
            self._came_back()
            for call, reply in zip(batch, replies, strict=False):
                _settle(call, reply)
                if call.done is None and isinstance(reply, redis.exceptions.ResponseError):
                    self._note_refusal(call, reply)

    async def _pump_durably(self) -> None:
        """Pipelines that end with WAITAOF: their replies count once it has given 1."""
        client = self._client()
        wait_for_disk = ("WAITAOF", 1, 0, int((DURABLE_WITHIN_S - 0.5) * 1000))
        while True:
            await self._durable.wake.wait()
            batch = self._durable.take()
            commands = [*(call.command for call in batch), wait_for_disk]
            replies = await trio_asyncio.aio_as_trio(_carry_out)(client, commands, DURABLE_WITHIN_S)
            if isinstance(replies, Exception):
                self._durable.fail(batch, str(replies))
            elif isinstance(replies[-1], Exception) or replies[-1][0] < 1:
                self._durable.fail(batch, f"not on disk: {replies[-1]}")
            else:
                for call, reply in zip(batch, replies, strict=False):
                    _settle(call, reply)

    def _came_back(self) -> None:
        if not self.is_up:
            log.info("redis is there")
        self.is_up = True
        self._tried.set()

    def _went_away(self, batch: list[_Call], why: Exception) -> None:
        if self.is_up:
            log.warning("redis is away", error=str(why))
        self.is_up = False
        self._tried.set()
        self._usual.fail(batch, str(why))

    def _note_refusal(self, call: _Call, why: Exception) -> None:
        self.refused += 1
        now = trio.current_time()
        if now >= self._tell_refusals_at:
            times = self.refused - self._refusals_told
            log.warning("redis refused a command", command=str(call.command[0]), error=str(why), times=times)
            self._refusals_told, self._tell_refusals_at = self.refused, now + REFUSALS_TOLD_EVERY_S

    async def _listen(self) -> None:
        """The subscription, made again whenever it breaks."""
        if not self._channels:
            return
        rest = _Rest(self._chance)
        while True:
            why = await trio_asyncio.aio_as_trio(self._hear)()
            if self.hears:
                log.warning("the bus is silent", error=str(why))
                rest.ended()
            self.hears = False
            await trio.sleep(rest.next_s())

    async def _hear(self) -> Exception:
        """In asyncio: hear the channels until they break. A ping every second tells a dead line from a quiet one."""
        client = self._client(ANSWER_WITHIN_S)
        try:
            async with client.pubsub() as subscription:
                await subscription.subscribe(*self._channels)
                begun = 0
                silent = 0
                while silent < 3 and not self._ended:
                    message = await subscription.get_message(timeout=PING_EVERY_S)
                    silent = 0 if message else silent + 1
                    if message is None:
                        await subscription.ping()
                    elif message["type"] == "subscribe":
                        begun += 1
                        self.hears = begun == len(self._channels)
                        self._channels[message["channel"]][1]()
                    elif message["type"] == "message":
                        self._channels[message["channel"]][0](message["data"])
                return TimeoutError("no answer")
        except _AWAY as away:
            return away
        finally:
            await client.aclose()


async def _carry_out(client: Any, commands: Sequence[Command], within_s: float) -> list[Any] | Exception:
    """In asyncio: one pipeline. The replies, a failed command's as an exception; or the exception that broke all of it."""
    try:
        async with asyncio.timeout(within_s), client.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            replies: list[Any] = await pipe.execute(raise_on_error=False)
            return replies
    except _AWAY as away:
        return away


def _settle(call: _Call, reply: Any) -> None:
    call.reply = reply
    if call.done is not None:
        call.done.set()
