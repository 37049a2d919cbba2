"""kill -9 under load, by a plan that a seed makes: what is killed, when, and for how long it stays away.

A kill strikes a random time after the k-th acknowledgement since the last one, or, one in five, while what was killed before
is still starting. What was killed starts again as under systemd, as often as it takes. Rule: the seed fixes the plan; what the
processes do meanwhile nobody can fix, so a seed that failed is worth repeating, not certain to fail again.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import trio

from tests.faults.accounts import ANSWER_WITHIN_S, Door
from tests.faults.party import Party, gather
from tests.faults.process import Ended, Process
from tests.faults.world import SOURCE, World, world

KINDS = ("uim", "postgres", "redis")
MOST_ACKS = 40
MOST_DELAY_MS = 30.0
MOST_AWAY_MS = 1_500.0
CHECK_EVERY = 5
# Said by each device right before the delay that ends with the kill: some are being stored, some are stored and not yet told.
BURST = 3
PROGRESS_WITHIN_S = 40.0
SETTLE_WITHIN_S = 40.0
RESTART_REST_S = 0.05
RATE = 8.0


@dataclass(frozen=True)
class Kill:
    """`victim`: which of that kind's processes. Strikes `after_acks`, and `delay_ms` later; 0 acks: while the last one starts."""

    what: str
    victim: int
    after_acks: int
    delay_ms: float
    away_ms: float


def plan(seed: int, kills: int, what: Sequence[str] = KINDS, processes: int = 1) -> list[Kill]:
    """As many of each kind as of the others, in a random order. The first never strikes before an acknowledgement."""
    rng = random.Random(seed)
    kinds = [what[number % len(what)] for number in range(kills)]
    rng.shuffle(kinds)
    made = []
    for number, kind in enumerate(kinds):
        is_hurried = number > 0 and rng.random() < 0.2
        stays_away = rng.random() < 0.25
        made.append(
            Kill(
                kind,
                rng.randrange(processes) if kind == "uim" else 0,
                0 if is_hurried else rng.randint(1, MOST_ACKS),
                rng.uniform(0.0, 500.0 if is_hurried else MOST_DELAY_MS),
                rng.uniform(0.0, MOST_AWAY_MS) if stays_away else 0.0,
            )
        )
    return made


@dataclass
class Verdict:
    """What a run came to. `faults`: every broken promise; `tails`: of the processes' logs, if there are any."""

    kills: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    tails: str = ""
    took_s: float = 0.0

    def __str__(self) -> str:
        killed = ", ".join(f"{count} of {what}" for what, count in sorted(self.kills.items())) or "none"
        counted = ", ".join(f"{count} {name}" for name, count in sorted(self.counts.items()))
        said = [f"kills: {killed}; in {self.took_s:.0f} s", f"ledger: {counted}"]
        said += self.faults
        said.append("VIOLATED" if self.faults else "every promise was kept")
        return "\n".join(said)


@dataclass
class _Keeper:
    """Starts a process again whenever it has ended, as systemd does. `away_s` holds for the next start alone."""

    process: Process
    may_fail_to_start: bool
    verdict: Verdict
    was_killed: bool = False
    away_s: float = 0.0

    def kill(self, away_s: float) -> None:
        self.was_killed = True
        self.away_s = away_s
        self.process.kill()

    async def run(self) -> None:
        has_served = True
        while True:
            while self.process.is_alive:
                await trio.sleep(0.005)
            # `uim serve` gives up its start where it finds no database; nothing else may end by itself.
            if not self.was_killed and (has_served or not self.may_fail_to_start):
                self.verdict.faults.append(f"{self.process.name} ended by itself: {self.process.exit_code}\n{self.process.tail()}")
            away_s, self.away_s, self.was_killed = self.away_s, 0.0, False
            await trio.sleep(away_s or RESTART_REST_S)
            has_served = False
            self.process.begin()
            try:
                await self.process.ready()
            except Ended:
                continue
            has_served = True


@dataclass(eq=False)
class Run:
    """One world, one party, and the plan."""

    world: World
    party: Party
    tell: Callable[[str], None]
    verdict: Verdict = field(default_factory=Verdict)
    began_at: float = 0.0

    async def carry_out(self, kills: Sequence[Kill]) -> None:
        """All of it, and the checks; what is wrong is in the verdict. Ends at the first broken promise."""
        self.began_at = trio.current_time()
        keepers = {
            "uim": [_Keeper(server.process, True, self.verdict) for server in self.world.servers],
            "postgres": [_Keeper(self.world.postgres, False, self.verdict)],
            "redis": [_Keeper(self.world.valkey, False, self.verdict)],
        }
        async with trio.open_nursery() as nursery:
            for kept in keepers.values():
                for keeper in kept:
                    nursery.start_soon(keeper.run)
            await nursery.start(self.party.run)
            self.party.talks = True
            for number, kill in enumerate(kills, 1):
                await self._strike(number, kill, keepers[kill.what][kill.victim])
                if number == len(kills) or number % CHECK_EVERY == 0:
                    await self._check(keepers, is_last=number == len(kills))
                if self.verdict.faults:
                    break
            nursery.cancel_scope.cancel()
        self.verdict.took_s = trio.current_time() - self.began_at
        self.verdict.counts = self.party.ledger.counts
        self.verdict.counts["connections"] = sum(device.connections for device in self.party.devices)
        if self.verdict.faults:
            self.verdict.tails = self.world.tails()

    async def _strike(self, number: int, kill: Kill, keeper: _Keeper) -> None:
        if kill.after_acks and not await self.party.acknowledge(kill.after_acks, PROGRESS_WITHIN_S):
            self.verdict.faults.append(f"no progress: not {kill.after_acks} texts were acknowledged within {PROGRESS_WITHIN_S:g} s")
            self.verdict.faults += self.party._under_way()
            return
        while not keeper.process.is_alive:
            await trio.sleep(0.002)
        self.party.burst(BURST)
        await trio.sleep(kill.delay_ms / 1000)
        when = f"{kill.delay_ms:.1f} ms after " + (f"acknowledgement {kill.after_acks}" if kill.after_acks else "the kill before")
        keeper.kill(kill.away_ms / 1000)
        self.verdict.kills[kill.what] += 1
        counts = self.party.ledger.counts
        away = f", away for {kill.away_ms:.0f} ms" if kill.away_ms else ""
        self.tell(
            f"{number:4} {trio.current_time() - self.began_at:6.1f} s {keeper.process.name} {when}{away}; "
            f"{counts['sent']} sent, {counts['queued']} queued, {counts['put off']} put off, {len(self.party.ledger.texts)} written"
        )

    async def _check(self, keepers: dict[str, list[_Keeper]], *, is_last: bool) -> None:
        # Everything is there again first: what a check finds is what is left, not what is away.
        for process in self.world.processes:
            with trio.move_on_after(PROGRESS_WITHIN_S):
                while not process.is_alive:
                    await trio.sleep(0.01)
        faults = [f"still under way after {SETTLE_WITHIN_S:g} s: {what}" for what in await self.party.settle(SETTLE_WITHIN_S)]
        self.verdict.faults += faults + await self.party.check(from_the_start=is_last)
        self.party.talks = True


@asynccontextmanager
async def run_on(
    *, seed: int, processes: int, tell: Callable[[str], None], source: Path = SOURCE, rate: float = RATE
) -> AsyncIterator[Run]:
    """A world with its party, ready to be struck. `source`: where the server under test stands."""
    async with world(processes=processes, source=source) as it, httpx.AsyncClient(timeout=ANSWER_WITHIN_S) as http:
        party = await gather(Door([server.url for server in it.servers], http), seed=seed, rate=rate)
        yield Run(it, party, tell)


async def carry_out(
    *,
    kills: int,
    seed: int,
    what: Sequence[str] = KINDS,
    processes: int = 1,
    tell: Callable[[str], None] = print,
    source: Path = SOURCE,
    rate: float = RATE,
) -> Verdict:
    """Make the plan, carry it out on a world of its own, judge."""
    async with run_on(seed=seed, processes=processes, tell=tell, source=source, rate=rate) as run:
        await run.carry_out(plan(seed, kills, what, processes))
        return run.verdict
    raise AssertionError("not reached")
