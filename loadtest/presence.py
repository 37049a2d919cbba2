"""`python -m loadtest.presence`: how much presence at twice its bound takes from messages.

Pairs talk at a steady rate, well below what the server carries; every device has friends whose presence changes, told on the
channel as by another process. Times with and without that take turns on the same connections. Rule: the offered changes come to
twice what a process gives out, so what is measured is the shedding too.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Final
from uuid import UUID, uuid4

import click
import msgspec
import psycopg
import redis

from loadtest import people
from loadtest.crew import LIVE_WITHIN_S
from loadtest.devices import Listener, Talker
from loadtest.frames import masked_text
from loadtest.people import Member
from loadtest.servers import migrated_databases, server_on
from loadtest.sockets import Loop
from loadtest.target import Broken, Target
from uim.cli.embedded import Servers

FRIENDS_PER_CHANGER: Final = 20
# With 20 who hear of each, this is 2,000 states a second.
CHANGES_PER_S: Final = 100
CHANGERS: Final = 300
# A device that hears no texts confirms nothing, and would count as dead.
PING_EVERY_NS: Final = 30_000_000_000
PING: Final = masked_text(b'{"type":"HEARTBEAT_PING","payload":{}}')


class Watcher(Listener):
    """A device that counts the presence it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.presence_frames = 0
        self._pinged_ns = 0

    def tick(self, now_ns: int) -> bytes:
        said = super().tick(now_ns)
        if now_ns - self._pinged_ns < PING_EVERY_NS:
            return said
        self._pinged_ns = now_ns
        return said + PING

    def take(self, payloads: list[bytes], now_ns: int) -> bytes:
        self.presence_frames += sum(b"PRESENCE_UPDATE" in payload[:30] for payload in payloads)
        return super().take(payloads, now_ns)


class SteadyTalker(Talker):
    """One text at each tick of the loop, if the last one is acked: 20 a second."""

    def take(self, payloads: list[bytes], now_ns: int) -> bytes:
        self.stop()
        return super().take(payloads, now_ns)

    def tick(self, now_ns: int) -> bytes:
        self.talk()
        return super().tick(now_ns)


@dataclass(frozen=True, slots=True)
class Turn:
    """What one time on one setting gave; `times_ms` from send to arrival, sorted."""

    times_ms: list[float]
    texts_per_s: float
    presence_frames_per_s: float
    server_share: float


class Changes:
    """Tells of people who come and go, at a steady rate, while switched on; in a thread."""

    def __init__(self, servers: Servers, log_id: UUID, changers: Sequence[UUID]) -> None:
        self._client = redis.Redis.from_url(servers.redis_url)
        self._channel = f"{log_id}:presence:updates"
        self._changers = cycle(changers)
        self._version = time.time_ns() // 1_000
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.is_on = False
        self._ends = False

    @contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._ends = True
            self._thread.join()
            self._client.close()

    def _run(self) -> None:
        next_at = time.monotonic()
        while not self._ends:
            next_at += 0.01
            if self.is_on:
                for _ in range(CHANGES_PER_S // 100):
                    self._change()
            time.sleep(max(0.0, next_at - time.monotonic()))

    def _change(self) -> None:
        self._version += 1
        status = "online" if self._version // CHANGERS % 2 else "offline"
        word = {"user_id": next(self._changers), "status": status, "last_seen": None, "version": self._version}
        self._client.publish(self._channel, msgspec.json.encode(word))


def measure(servers: Servers, target: Target, *, pairs: int, turns: int, seconds: float) -> list[tuple[Turn, Turn]]:
    """So many times without and with presence, in turns. Raises Broken, Torn or Refused."""
    members = people.register(target.url, 4 * pairs)
    log_id, changers = _befriended(servers, [UUID(member.user_id) for member in members])
    loop, devices, talkers = Loop(), [], []
    for one, other in zip(members[:pairs], members[pairs : 2 * pairs], strict=True):
        talker = SteadyTalker(people.make_pair(target.url, one, other), "presence", window=1, text_bytes=200)
        talkers.append((one, talker))
        devices.append((other, Watcher()))
    devices += [(member, Watcher()) for member in members[2 * pairs :]]
    try:
        _go_live(loop, target.url, [*talkers, *devices])
        changes = Changes(servers, log_id, changers)
        with changes.running():
            _turn(loop, target, changes, devices, with_presence=True, seconds=2.0)
            found = []
            for number in range(turns):
                # Whichever comes first has the colder machine.
                first = bool(number % 2)
                earlier = _turn(loop, target, changes, devices, with_presence=first, seconds=seconds)
                later = _turn(loop, target, changes, devices, with_presence=not first, seconds=seconds)
                found.append((later, earlier) if first else (earlier, later))
            return found
    finally:
        loop.close()


def _befriended(servers: Servers, user_ids: Sequence[UUID]) -> tuple[UUID, list[UUID]]:
    """People who are connected nowhere, each with some of these users as friends; and the log's id."""
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        row = connection.execute("select log_id from log_identity").fetchone()
        assert row is not None
        changers = [uuid4() for _ in range(CHANGERS)]
        listening = cycle(user_ids)
        with connection.cursor() as cursor:
            cursor.executemany(
                "insert into users (user_id, username, password_hash) values (%s, %s, '-')",
                [(user_id, f"changer_{number}") for number, user_id in enumerate(changers)],
            )
            cursor.executemany(
                "insert into friendships (user_id, friend_id, status) values (%s, %s, 'accepted')",
                [(user_id, next(listening)) for user_id in changers for _ in range(FRIENDS_PER_CHANGER)],
            )
        connection.execute("analyze friendships")
        return row[0], changers


def _go_live(loop: Loop, url: str, devices: Sequence[tuple[Member, Listener]]) -> None:
    for member, device in devices:
        loop.connect(url.replace("http", "ws", 1) + "/ws?last_sync_id=0", device, token=member.token)
    if not loop.run(seconds=LIVE_WITHIN_S, until=lambda: all(device.is_live for _, device in devices)):
        raise Broken(f"not every device was live within {LIVE_WITHIN_S:g} s")


Watchers = Sequence[tuple[Member, Watcher]]


def _turn(loop: Loop, target: Target, changes: Changes, devices: Watchers, *, with_presence: bool, seconds: float) -> Turn:
    changes.is_on = with_presence
    loop.run(seconds=0.5)
    for _, device in devices:
        device.is_measured, device.presence_frames = True, 0
        del device.latencies_ns[:]
    began_at, server_s = time.perf_counter(), target.processor_s() or 0.0
    loop.run(seconds=seconds)
    took_s = time.perf_counter() - began_at
    spent_s = (target.processor_s() or 0.0) - server_s
    for _, device in devices:
        device.is_measured = False
    times_ms = sorted(ns / 1e6 for _, device in devices for ns in device.latencies_ns)
    if not times_ms:
        raise Broken("nothing arrived")
    return Turn(
        times_ms=times_ms,
        texts_per_s=len(times_ms) / took_s,
        presence_frames_per_s=sum(device.presence_frames for _, device in devices) / took_s,
        server_share=spent_s / took_s,
    )


@click.command(help=__doc__)
@click.option("--pairs", type=click.IntRange(1), default=20, show_default=True)
@click.option("--turns", type=click.IntRange(1), default=8, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.5), default=4.0, show_default=True)
def main(pairs: int, turns: int, seconds: float) -> None:
    with migrated_databases() as servers, server_on(servers) as target:
        found = measure(servers, target, pairs=pairs, turns=turns, seconds=seconds)
    for number, both in enumerate(found):
        for name, turn in zip(("without", "with"), both, strict=True):
            click.echo(
                f"{number:2} {name:8} {_percentiles(turn.times_ms)}  {turn.texts_per_s:5.0f} texts/s"
                f"  {turn.presence_frames_per_s:5.0f} presence frames/s  server {turn.server_share:.0%} of a core"
            )
    moved = sorted(_at(later.times_ms, 0.99) / _at(earlier.times_ms, 0.99) - 1 for earlier, later in found)
    click.echo(f"p99 moved by {statistics.median(moved):+.1%} (median of the pairs), {moved[0]:+.1%} to {moved[-1]:+.1%}")
    for name, turns_of in zip(("without", "with"), zip(*found, strict=True), strict=True):
        # On a noisy machine the quiet half tells more: a turn in which somebody else had the processor tells of that.
        quiet = sorted(turns_of, key=lambda turn: _at(turn.times_ms, 0.99))[: (len(turns_of) + 1) // 2]
        every, calm = (sorted(ms for turn in chosen for ms in turn.times_ms) for chosen in (turns_of, quiet))
        click.echo(f"all turns {name:8} {_percentiles(every)}   the quiet half {_percentiles(calm)}")


def _at(times_ms: Sequence[float], share: float) -> float:
    return times_ms[int(len(times_ms) * share)]


def _percentiles(times_ms: Sequence[float]) -> str:
    return f"p50 {_at(times_ms, 0.5):6.2f}  p95 {_at(times_ms, 0.95):6.2f}  p99 {_at(times_ms, 0.99):6.2f} ms"


if __name__ == "__main__":
    main()
