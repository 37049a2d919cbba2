"""`python -m loadtest.hostile`: what hostile and slow peers take from everybody else.

Pairs talk at a steady rate, well below what the server carries, alone and beside each attack in turn; the attacker is a
process of its own, its rate capped. Rule: times with and without take turns, since machines drift; judged is the median over
the turns of each turn's p99, from send to arrival, and over 100 ms the run fails.
"""

from __future__ import annotations

import select
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from loadtest import people
from loadtest.attacks import ATTACKS, Orders
from loadtest.crew import LIVE_WITHIN_S
from loadtest.devices import Listener, Talker
from loadtest.servers import migrated_databases, server_on
from loadtest.sockets import Loop
from loadtest.target import Broken, Target

P99_MS: Final = 100.0
ATTACKERS: Final = 10
HISTORY: Final = 1_000
OPEN_SENDS: Final = 64
ATTACKER_WITHIN_S: Final = 30.0
SETTLE_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Turn:
    """One time: milliseconds from send to arrival, sorted; the server's share of one core; what the attacker tells of itself."""

    times_ms: list[float]
    server_share: float
    told: dict[str, Any]

    @property
    def p50(self) -> float:
        return self.times_ms[len(self.times_ms) // 2]

    @property
    def p99(self) -> float:
        return self.times_ms[int(len(self.times_ms) * 0.99)]


@dataclass(frozen=True, slots=True)
class Finding:
    """All turns of one attack, each beside the time alone just before it; memory of the server in MiB."""

    name: str
    alone: list[Turn]
    during: list[Turn]
    before_mib: float
    peak_mib: float
    after_mib: float

    def p99(self, turns: Sequence[Turn]) -> float:
        return statistics.median(turn.p99 for turn in turns)

    @property
    def verdict(self) -> str:
        if self.p99(self.during) < P99_MS:
            return "held"
        return "unclear: over it alone too" if self.p99(self.alone) >= P99_MS else "OVER"


class PacedTalker(Talker):
    """One text at each tick of the loop, 20 a second, whether or not the last ones are acked: a stall is seen by every text."""

    def take(self, payloads: list[bytes], now_ns: int) -> bytes:
        self.stop()
        return super().take(payloads, now_ns)

    def tick(self, now_ns: int) -> bytes:
        self._window = min(len(self._open) + 1, OPEN_SENDS)
        self.talk()
        return super().tick(now_ns)


class Ground:
    """The pairs, live, and the attackers' accounts. Made once for a run."""

    def __init__(self, target: Target, *, pairs: int) -> None:
        members = people.register(target.url, 2 * pairs + ATTACKERS)
        attackers = members[2 * pairs :]
        self.target = target
        self.loop = Loop()
        self.devices: list[Listener] = []
        # One after the other, or what is left of one attack would spare the server the next; never the pairs' own address.
        self._tokens = cycle([attacker.token for attacker in attackers])
        self._sources = cycle([f"127.0.1.{number}" for number in range(1, 255)])
        self.orders = Orders("", target.url, 0.0, attackers[0].token, people.make_group(target.url, attackers), "")
        url = target.url.replace("http", "ws", 1) + "/ws?last_sync_id=0"
        _fill(url, self.orders)
        for one, other in zip(members[:pairs], members[pairs : 2 * pairs], strict=True):
            talker = PacedTalker(people.make_pair(target.url, one, other), "steady", window=1, text_bytes=200)
            for member, device in ((one, talker), (other, Listener())):
                self.loop.connect(url, device, token=member.token)
                self.devices.append(device)
        if not self.loop.run(seconds=LIVE_WITHIN_S, until=lambda: all(device.is_live for device in self.devices)):
            raise Broken(f"not every device was live within {LIVE_WITHIN_S:g} s")

    def turn(self, attack: str | None, seconds: float) -> Turn:
        """One time, beside that attack or alone."""
        if attack is None:
            self.loop.run(seconds=SETTLE_S)
            return self._measure(seconds, None)
        orders = msgspec.structs.replace(
            self.orders, attack=attack, seconds=seconds, token=next(self._tokens), source=next(self._sources)
        )
        with _attacker(orders) as process:
            # While it connects, the pairs go on confirming.
            self.loop.run(seconds=ATTACKER_WITHIN_S, until=lambda: _has_said(process))
            _told(process)
            return self._measure(seconds, process)

    def _measure(self, seconds: float, attacker: subprocess.Popen[str] | None) -> Turn:
        for device in self.devices:
            device.is_measured = True
            del device.latencies_ns[:]
        if attacker is not None:
            _say(attacker, "go\n")
        began_at, server_s = time.perf_counter(), self.target.processor_s() or 0.0
        self.loop.run(seconds=seconds)
        took_s, spent_s = time.perf_counter() - began_at, (self.target.processor_s() or 0.0) - server_s
        told: dict[str, Any] = {}
        if attacker is not None:
            self.loop.run(seconds=ATTACKER_WITHIN_S, until=lambda: _has_said(attacker))
            told = msgspec.json.decode(_told(attacker))
        for device in self.devices:
            device.is_measured = False
        times_ms = sorted(ns / 1e6 for device in self.devices for ns in device.latencies_ns)
        if not times_ms:
            raise Broken("nothing arrived")
        return Turn(times_ms, spent_s / took_s, told)


def _fill(url: str, orders: Orders) -> None:
    """A thousand texts in the attackers' conversation, so that pages are long."""
    loop, talker = Loop(), Talker(orders.conversation_id, "fill", window=32, text_bytes=200)
    loop.connect(url, talker, token=orders.token)
    talker.talk()
    try:
        if not loop.run(seconds=LIVE_WITHIN_S, until=lambda: len(talker.acknowledged) >= HISTORY):
            raise Broken(f"no {HISTORY} texts were stored within {LIVE_WITHIN_S:g} s")
    finally:
        loop.close()


@contextmanager
def _attacker(orders: Orders) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "loadtest.attacks"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            _say(process, msgspec.json.encode(orders).decode() + "\n")
            yield process
        finally:
            process.kill()


def _say(process: subprocess.Popen[str], words: str) -> None:
    assert process.stdin is not None
    process.stdin.write(words)
    process.stdin.flush()


def _has_said(process: subprocess.Popen[str]) -> bool:
    assert process.stdout is not None
    return bool(select.select([process.stdout], [], [], 0)[0])


def _told(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    if not _has_said(process) or not (line := process.stdout.readline()):
        raise Broken("the attacker failed")
    return line


def measure(target: Target, names: Sequence[str], *, pairs: int, turns: int, seconds: float) -> Iterator[Finding]:
    """Each attack, so many times, each time beside one alone. Raises Broken, Torn or Refused."""
    ground = Ground(target, pairs=pairs)
    memory = Memory(target)
    try:
        ground.turn(None, seconds)
        for name in names:
            alone, during = [], []
            before_mib = memory.now_mib()
            memory.forget_peak()
            for _ in range(turns):
                alone.append(ground.turn(None, seconds))
                during.append(ground.turn(name, seconds))
            peak_mib = memory.peak_mib()
            ground.turn(None, seconds=SETTLE_S)
            yield Finding(name, alone, during, before_mib, peak_mib, memory.now_mib())
    finally:
        ground.loop.close()


class Memory:
    """What the server's process holds, as the kernel counts it."""

    def __init__(self, target: Target) -> None:
        self._folder = Path(f"/proc/{target.pid}")

    def now_mib(self) -> float:
        return self._mib("VmRSS")

    def peak_mib(self) -> float:
        """The most since `forget_peak`."""
        return self._mib("VmHWM")

    def forget_peak(self) -> None:
        # proc(5): 5 resets the high-water mark.
        (self._folder / "clear_refs").write_text("5")

    def _mib(self, name: str) -> float:
        lines = dict(line.split(":", 1) for line in (self._folder / "status").read_text().splitlines())
        return int(lines[name].split()[0]) / 1024


@click.command(help=__doc__)
@click.argument("names", nargs=-1, metavar="[ATTACK]...")
@click.option("--pairs", type=click.IntRange(1), default=5, show_default=True)
@click.option("--turns", type=click.IntRange(1), default=3, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.2), default=3.0, show_default=True)
def main(names: tuple[str, ...], pairs: int, turns: int, seconds: float) -> None:
    if unknown := set(names) - set(ATTACKS):
        raise click.UsageError(f"no such attack: {', '.join(sorted(unknown))}; there are {', '.join(ATTACKS)}")
    click.echo(HEAD)
    is_over = False
    with migrated_databases() as servers, server_on(servers) as target:
        for finding in measure(target, names or list(ATTACKS), pairs=pairs, turns=turns, seconds=seconds):
            click.echo(_row(finding))
            is_over |= finding.verdict == "OVER"
    sys.exit(int(is_over))


HEAD: Final = (
    f"{'attack':18} {'units/s':>8} {'own':>5} {'alone p50':>9} {'p99':>6} {'during p50':>10} {'p99':>6} {'server':>7}"
    f" {'MiB':>5} {'peak':>5} {'after':>5}  {'verdict':8} what the attacker saw"
)


def _row(found: Finding) -> str:
    def middle(values: Iterable[float]) -> float:
        return statistics.median(values)

    seen: Counter[str] = Counter()
    for turn in found.during:
        seen.update(turn.told["answers"])
        seen["lines cut"] += turn.told["cut"]
    return (
        f"{found.name:18} {middle(turn.told['per_s'] for turn in found.during):8,.0f}"
        f" {middle(turn.told['own_share'] for turn in found.during):5.0%}"
        f" {middle(turn.p50 for turn in found.alone):9.1f} {found.p99(found.alone):6.1f}"
        f" {middle(turn.p50 for turn in found.during):10.1f} {found.p99(found.during):6.1f}"
        f" {middle(turn.server_share for turn in found.during):7.0%}"
        f" {found.before_mib:5.0f} {found.peak_mib:5.0f} {found.after_mib:5.0f}  {found.verdict:8}"
        f" {', '.join(f'{name} {number}' for name, number in seen.most_common(5) if number)}"
    )


if __name__ == "__main__":
    main()
