"""W8 and the soak: a town of registered people, some of whom are connected and talk, in pairs and in groups.

W8 is the specification's own case: so many texts a second on a fixed schedule, and bursts. In the soak people also go, torn or with a
word, and come back, and read history, for as long as one likes; a line a minute tells how it stands. Rule: every text that was
acknowledged is stored and has come to each member who is connected, once and in order, however often they went.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from typing import Final

import click

from loadtest.comings import Comings
from loadtest.crowd import gather, visitor
from loadtest.growing import Growing
from loadtest.latencies import Counts, Latencies, count_us
from loadtest.parameters import option
from loadtest.progress import bar
from loadtest.result import Result, timeline
from loadtest.target import Broken, Target
from loadtest.townsfolk import Town, Tune
from loadtest.visits import Visits, raise_open_files

LIVE_WITHIN_S: Final = 120.0
# Growth is that of the second half: in the first the newest entries' memory fills, and the allocator's.
WARM_UP_SHARE: Final = 0.5
DRAIN_EVERY_S: Final = 1.0
TOLD_EVERY_S: Final = 60.0
# A shorter run says nothing of growth: caches fill, and memory comes in pieces.
LEAST_FOR_VERDICT_S: Final = 600.0
MOST_GROWTH: Final = {"memory_kb_per_minute": 100.0, "tasks_per_minute": 0.5, "open_files_per_minute": 0.5}


@dataclass(frozen=True, slots=True)
class Parameters:
    minutes: float = option(10.0, "How long it is measured.", least=0.01)
    users: int = option(10_000, "Registered.", least=4)
    connections: int = option(1_000, "Of them so many are connected, on a device each.", least=4)
    rate: float = option(100.0, "Texts a second.", least=0.1)
    burst_rate: float = option(200.0, "Texts a second in a burst.", least=0.1)
    burst_s: float = option(10.0, "Length of a burst.", least=0.0)
    burst_every_s: float = option(60.0, "From the end of one burst to that of the next.", least=0.1)
    text_bytes: int = option(200, "Size of each text.", least=20, most=10_000)


@dataclass(frozen=True, slots=True)
class SoakParameters(Parameters):
    minutes: float = option(10.0, "How long, besides the hours.", least=0.01)
    hours: float = option(0.0, "How long, besides the minutes.", least=0.0)
    users: int = option(500, "Registered.", least=4)
    connections: int = option(300, "Of them so many have a device that comes and goes.", least=4)
    rate: float = option(50.0, "Texts a second.", least=0.1)
    burst_rate: float = option(100.0, "Texts a second in a burst.", least=0.1)
    goes_per_s: float = option(2.0, "Devices that go, and come back within ten seconds.", least=0.0)
    reads_per_s: float = option(2.0, "Pages of history and of conversations that are read.", least=0.0)


def run(target: Target, parameters: Parameters) -> Result:
    return _Run(target, parameters, "w8", 0.0).whole(parameters.minutes * 60)


def run_soak(target: Target, parameters: SoakParameters) -> Result:
    """Raises Broken too where what the server holds has grown for longer than ten minutes."""
    seconds = parameters.hours * 3600 + parameters.minutes * 60
    run = _Run(target, parameters, "soak", TOLD_EVERY_S, parameters.goes_per_s, parameters.reads_per_s)
    result = run.whole(seconds)
    grown = {name: result.figures[name] for name, most in MOST_GROWTH.items() if result.figures.get(name, 0.0) > most}
    told = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in grown.items()) or "nothing grows"
    if seconds < LEAST_FOR_VERDICT_S:
        click.echo(f"too short for a verdict: {told}", err=True)
    elif grown:
        raise Broken(f"grows: {told}")
    else:
        click.echo(f"steady: {told}", err=True)
    return result


class _Run:
    """One run, from the first user to the last figure. `told_every_s`: a line on stderr so often, 0 for none."""

    def __init__(
        self, target: Target, parameters: Parameters, name: str, told_every_s: float, goes_per_s: float = 0.0, reads_per_s: float = 0.0
    ) -> None:
        self._target = target
        self._parameters = parameters
        self._told_every_s = self._tell_at_s = told_every_s
        raise_open_files()
        crowd = gather(target, parameters.users)
        here = min(parameters.connections, len(crowd.members))
        people = [visitor(target, member, number) for number, member in enumerate(crowd.members[:here])]
        self._visits = Visits(target.websocket_url, at_once=200)
        self._town = Town(target, people, crowd.members, self._visits, parameters.text_bytes)
        self._tune = Tune(parameters.rate, parameters.burst_rate, parameters.burst_s, parameters.burst_every_s)
        self._comings = Comings(target, crowd, self._town, self._visits, goes_per_s=goes_per_s, reads_per_s=reads_per_s)
        self._growing = Growing(target)
        self._arrivals: dict[int, Counts] = defaultdict(Counter)
        self._acks: Counts = Counter()
        self._result = Result(name, asdict(parameters), {})

    def whole(self, seconds: float) -> Result:
        with self._comings:
            try:
                self._connect()
                self._measure(seconds)
                self._comings.stop()
                self._town.settle()
                self._drain(int(seconds))
                self._finish()
            finally:
                self._visits.close()
        return self._result

    def _connect(self) -> None:
        people = self._town.people
        with bar("connect", len(people), "devices") as shown:

            def all_live() -> bool:
                shown.update(self._visits.live - shown.n)
                return self._visits.live == len(people)

            self._visits.come(people)
            if not self._visits.run(LIVE_WITHIN_S, all_live):
                raise Broken(f"only {self._visits.live} of {len(people)} were live within {LIVE_WITHIN_S:g} s")
        self._result.latencies["connect"] = Latencies(count_us(self._visits.lives_ns))
        del self._visits.lives_ns[:], self._visits.upgrades_ns[:]

    def _measure(self, seconds: float) -> None:
        for person in self._town.people:
            person.is_measured = True
        own_s, server_s, began_at = time.process_time(), self._target.processor_s(), time.monotonic()
        self._tune.begin(time.monotonic_ns(), self._town.acknowledged())
        with self._growing.watched(), bar(self._result.workload, seconds, "s") as shown:
            while (at_s := time.monotonic() - began_at) < seconds:
                self._go_on(at_s, seconds - at_s)
                shown.update(min(time.monotonic() - began_at, seconds) - shown.n)
        took_s = time.monotonic() - began_at
        self._result.figures |= self._tune.figures()
        self._result.figures["generator_share"] = (time.process_time() - own_s) / took_s
        if server_s is not None and (now_s := self._target.processor_s()) is not None:
            self._result.figures["server_share"] = (now_s - server_s) / took_s
        self._result.figures |= self._growing.figures(began_at + WARM_UP_SHARE * seconds)

    def _go_on(self, at_s: float, left_s: float) -> None:
        """A second, or less where a burst begins or ends."""
        self._visits.run(min(DRAIN_EVERY_S, left_s, self._tune.turns_in_s(time.monotonic_ns())), beat=self._beat)
        self._tune.note(time.monotonic_ns(), self._town.acknowledged())
        self._drain(int(at_s))
        if self._told_every_s and at_s >= self._tell_at_s:
            self._tell_at_s += self._told_every_s
            self._tell(at_s)

    def _beat(self, now_ns: int) -> int:
        for due_ns in self._tune.due(now_ns):
            self._town.say(due_ns)
        return min(self._tune.next_ns, self._comings.beat(now_ns))

    def _drain(self, second: int) -> None:
        for person in self._town.people:
            if person.arrivals_ns:
                self._arrivals[second].update(count_us(person.arrivals_ns))
                del person.arrivals_ns[:]
            if person.acks_ns:
                self._acks.update(count_us(person.acks_ns))
                del person.acks_ns[:]

    def _tell(self, at_s: float) -> None:
        last = self._arrivals[max(self._arrivals)] if self._arrivals else Counter()
        looks = self._growing.looks
        held = ", ".join(f"{name.replace('_', ' ')} {value:,.0f}" for name, value in (looks[-1].values if looks else {}).items())
        p99 = Latencies(last).figures().get("p99_ms", 0.0)
        click.echo(f"{at_s / 60:6.1f} min: {self._town.said:,} texts, p99 {p99:.1f} ms, {held}, {self._comings.told()}", err=True)

    def _finish(self) -> None:
        result = self._result
        arrivals: Counts = sum(self._arrivals.values(), Counter())
        if not arrivals:
            raise Broken("nothing arrived in the time that was measured")
        result.latencies = {"arrival": Latencies(arrivals), "ack": Latencies(self._acks), **result.latencies}
        result.figures |= result.latencies["arrival"].figures() | result.latencies["ack"].figures("ack_")
        result.figures |= result.latencies["connect"].figures("connect_")
        if self._visits.lives_ns:
            result.latencies["come back"] = Latencies(count_us(self._visits.lives_ns))
        result.figures |= self._comings.figures() | self._town.check()
        result.figures["sent_away"] = self._visits.sent_away
        result.timeline = timeline(self._arrivals)
