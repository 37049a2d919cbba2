"""kill -9 under load, by a plan that a seed makes: what is killed, when, and for how long it stays away.

A kill strikes a random time after the k-th acknowledgement since the last one; or, one in five, while what was killed before
is still starting; or, three in ten of those of a server or of Redis, in an outage: PostgreSQL is killed first, and stays away
until some texts are queued and the victim is dead. `drain` aims into the drain of what is left then (drains.py). What was killed
starts again as under systemd, as often as it takes. Rule: the seed fixes the plan; what the processes do meanwhile nobody can fix,
so a seed that failed is worth repeating, not certain to fail.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import chain, cycle
from pathlib import Path

import httpx
import trio

from tests.faults.accounts import ANSWER_WITHIN_S, Door
from tests.faults.drains import Moment, NoDrain, in_a_drain
from tests.faults.party import Party, gather
from tests.faults.process import Ended, NotReady, Process
from tests.faults.world import SOURCE, World, world

KINDS = ("uim", "postgres", "redis")
# All processes in one step, as when a machine's power goes (but its disks keep what was written).
ALL = "all"
# Of all servers, or of PostgreSQL, while what is left in the spool is drained.
DRAIN = "drain"
LEAST_LEFT, MOST_LEFT = 8, 24
# Before a drain: a server that has just started knows no conversation, and queues for none that nobody has written to.
LEAST_ACKS = 15
MOST_ACKS = 25
MOST_QUEUED = 12
MOST_DELAY_MS = 30.0
# A start takes a second or so, with what is drained then.
MOST_HURRIED_MS = 1_500.0
MOST_AWAY_MS = 1_500.0
CHECK_EVERY = 7
# Said by each device right before the delay that ends with the kill: some are being stored, some are stored and not yet told.
BURST = 3
PROGRESS_WITHIN_S = 60.0
QUEUED_WITHIN_S = 10.0
SETTLE_WITHIN_S = 60.0
DELIVERED_WITHIN_S = 20.0
RESTART_REST_S = 0.05
LONG_S = 3_600.0
RATE = 8.0


@dataclass(frozen=True)
class Kill:
    """`victim`: which of that kind's processes. `delay_ms` are counted from that acknowledgement; from that text queued in an
    outage, which begins with the acknowledgement; or (both 0) from the kill before. After it the victim (in an outage
    PostgreSQL) stays away for `away_ms`.
    """

    what: str
    victim: int
    after_acks: int
    after_queued: int
    delay_ms: float
    away_ms: float
    moment: Moment | None = None

    def __str__(self) -> str:
        if self.after_queued:
            since = f"text {self.after_queued} was queued in an outage"
        else:
            since = f"acknowledgement {self.after_acks}" if self.after_acks else "the kill before"
        since = f"the drain began: {self.moment.value}; {since}" if self.moment else since
        away = f", away for {self.away_ms:.0f} ms" if self.away_ms else ""
        return f"{self.delay_ms:.1f} ms after {since}{away}"


def plan(seed: int, kills: int, what: Sequence[str] = KINDS, processes: int = 1) -> list[Kill]:
    """As many of each kind as of the others, in a random order. The first never strikes before an acknowledgement."""
    rng = random.Random(seed)
    kinds = [what[number % len(what)] for number in range(kills)]
    rng.shuffle(kinds)
    made: list[Kill] = []
    moments = cycle(Moment)
    for kind in kinds:
        if kind == DRAIN:
            made.append(Kill(DRAIN, 0, rng.randint(LEAST_ACKS, MOST_ACKS), rng.randint(LEAST_LEFT, MOST_LEFT), 0.0, 0.0, next(moments)))
            continue
        victim = rng.randrange(processes) if kind == "uim" else 0
        after_outage = bool(made and made[-1].after_queued)
        if kind in ("uim", "redis") and "postgres" in what and rng.random() < 0.3:
            queued, delay_ms, away_ms = rng.randint(1, MOST_QUEUED), rng.uniform(0, MOST_DELAY_MS), rng.uniform(0, MOST_AWAY_MS)
            made.append(Kill(kind, victim, rng.randint(1, MOST_ACKS), queued, delay_ms, away_ms))
            continue
        away_ms = rng.uniform(0, MOST_AWAY_MS) if rng.random() < 0.2 else 0.0
        if made and rng.random() < (0.5 if after_outage else 0.2):
            made.append(Kill(kind, victim, 0, 0, rng.uniform(0, MOST_HURRIED_MS), away_ms))
        else:
            made.append(Kill(kind, victim, rng.randint(1, MOST_ACKS), 0, rng.uniform(0, MOST_DELAY_MS), away_ms))
    return made


@dataclass
class Verdict:
    """What a run came to. `faults`: every broken promise; `tails`: of the processes' logs, if there are any.

    `errors`: what the servers logged as errors, which in an outage need not be a fault.
    """

    kills: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    tails: str = ""
    took_s: float = 0.0

    def __str__(self) -> str:
        killed = ", ".join(f"{count} of {what}" for what, count in sorted(self.kills.items())) or "none"
        counted = ", ".join(f"{count} {name}" for name, count in sorted(self.counts.items()))
        said = [f"kills: {killed}; in {self.took_s:.0f} s", f"ledger: {counted}"]
        said += [f"logged {count} times: {message}" for message, count in sorted(self.errors.items())]
        said += self.faults
        said.append("VIOLATED" if self.faults else "every promise was kept")
        return "\n".join(said)


@dataclass
class _Keeper:
    """Starts a process again whenever it has ended, as systemd does; after a kill not before its time is over."""

    process: Process
    may_fail_to_start: bool
    verdict: Verdict
    was_killed: bool = False
    may_start_at: float = 0.0

    def kill(self, away_s: float) -> None:
        self.was_killed = True
        self.away_for(away_s)
        self.process.kill()

    def away_for(self, away_s: float) -> None:
        """From now."""
        self.may_start_at = trio.current_time() + away_s

    async def up(self) -> None:
        """Until its process runs, ready or not."""
        while not self.process.is_alive:
            await trio.sleep(0.002)

    async def run(self) -> None:
        has_served = True
        while True:
            while self.process.is_alive:
                await trio.sleep(0.005)
            # `uim serve` gives up its start where it finds no database; nothing else may end by itself.
            if not self.was_killed and (has_served or not self.may_fail_to_start):
                self.verdict.faults.append(f"{self.process.name} ended by itself: {self.process.exit_code}\n{self.process.tail()}")
            self.was_killed = False
            await trio.sleep(RESTART_REST_S)
            while trio.current_time() < self.may_start_at:
                await trio.sleep(0.005)
            has_served = False
            self.process.begin()
            try:
                await self.process.ready()
            except Ended:
                continue
            except NotReady as late:
                self.verdict.faults.append(str(late))
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
                victims = list(chain(*keepers.values())) if kill.what in (ALL, DRAIN) else [keepers[kill.what][kill.victim]]
                if kill.moment is not None:
                    await self._strike_in_drain(number, kill, kill.moment, keepers["uim"], keepers["postgres"][0])
                else:
                    await self._strike(number, kill, victims, keepers["postgres"][0])
                if number == len(kills) or number % CHECK_EVERY == 0 or kill.moment is not None:
                    await self._check(chain(*keepers.values()), is_last=number == len(kills))
                if self.verdict.faults:
                    break
            nursery.cancel_scope.cancel()
        self.verdict.took_s = trio.current_time() - self.began_at
        self.verdict.counts = self.party.ledger.counts
        self.verdict.errors = self.world.errors()
        self.verdict.counts["connections"] = sum(device.connections for device in self.party.devices)
        if self.verdict.faults:
            self.verdict.tails = self.world.tails()

    async def _makes_progress(self, acks: int) -> bool:
        if not acks or await self.party.acknowledge(acks, PROGRESS_WITHIN_S):
            return True
        self.verdict.faults.append(f"no progress: not {acks} texts were acknowledged within {PROGRESS_WITHIN_S:g} s")
        self.verdict.faults += self.party.under_way()
        return False

    async def _strike_in_drain(
        self, number: int, kill: Kill, moment: Moment, servers: Sequence[_Keeper], postgres: _Keeper
    ) -> None:
        if not await self._makes_progress(kill.after_acks):
            return
        await postgres.up()
        postgres.kill(LONG_S)
        if not await self.party.queue(kill.after_queued, QUEUED_WITHIN_S):
            self.verdict.faults.append(f"not {kill.after_queued} texts were queued within {QUEUED_WITHIN_S:g} s")
            return
        for server in servers:
            server.kill(LONG_S)
        postgres.away_for(0.0)
        await postgres.up()
        await postgres.process.ready()
        victims = [postgres] if moment is Moment.POSTGRES_AT_APPEND else servers
        try:
            await in_a_drain(
                self.world,
                moment,
                start=lambda: [server.away_for(0.0) for server in servers],
                strike=lambda: [victim.kill(0.0) for victim in victims],
            )
        except NoDrain as none:
            self.verdict.faults.append(str(none))
        self._tell(number, kill, victims)

    async def _strike(self, number: int, kill: Kill, victims: Sequence[_Keeper], postgres: _Keeper) -> None:
        if not await self._makes_progress(kill.after_acks):
            return
        if kill.after_queued:
            await postgres.up()
            postgres.kill(LONG_S)
            await self.party.queue(kill.after_queued, QUEUED_WITHIN_S)
        for victim in victims:
            await victim.up()
        self.party.burst(BURST)
        await trio.sleep(kill.delay_ms / 1000)
        for victim in victims:
            victim.kill(0.0 if kill.after_queued else kill.away_ms / 1000)
        if kill.after_queued:
            postgres.away_for(kill.away_ms / 1000)
        self._tell(number, kill, victims)

    def _tell(self, number: int, kill: Kill, victims: Sequence[_Keeper]) -> None:
        self.verdict.kills[kill.what] += 1
        names = " ".join(victim.process.name for victim in victims)
        self.tell(f"{number:4} {trio.current_time() - self.began_at:6.1f} s {names} {kill}; {self._count()}")

    def _count(self) -> str:
        counts = self.party.ledger.counts
        return ", ".join(f"{counts[what]} {what}" for what in ("sent", "queued", "put off", "written"))

    async def _check(self, keepers: Iterable[_Keeper], *, is_last: bool) -> None:
        # Everything is there again first: what a check finds is what is left, not what is away.
        with trio.move_on_after(PROGRESS_WITHIN_S):
            for keeper in keepers:
                await keeper.up()
        faults = [f"still under way after {SETTLE_WITHIN_S:g} s: {what}" for what in await self.party.settle(SETTLE_WITHIN_S)]
        self.verdict.faults += faults + await self.party.check(from_the_start=is_last)
        self.verdict.faults += await self.party.undelivered(DELIVERED_WITHIN_S)
        if is_last:
            self.verdict.faults += await self.world.verify()
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
    kills: Sequence[Kill],
    *,
    seed: int,
    processes: int = 1,
    tell: Callable[[str], None] = print,
    source: Path = SOURCE,
    rate: float = RATE,
) -> Verdict:
    """A plan on a world of its own, and its judgement. `seed`: of what is said."""
    async with run_on(seed=seed, processes=processes, tell=tell, source=source, rate=rate) as run:
        await run.carry_out(kills)
        return run.verdict
    raise AssertionError("not reached")
