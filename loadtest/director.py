"""A run of people who talk, from one end to the other: generator processes led through their steps, and what they saw added up.

Rule: a run whose acknowledged texts are not all stored and not all arrived, each once and in order, gives no figures: it fails.
(A second copy of what a device was slow to confirm is counted, for it is promised.)
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import connection as pipes
from multiprocessing.connection import Connection as Pipe
from typing import Any, Final, cast

from loadtest import crew, promises
from loadtest.latencies import Counts, Latencies
from loadtest.plan import Pace, Party, Plan, Seat, Told
from loadtest.progress import bar
from loadtest.result import Result, timeline
from loadtest.target import Broken, Target

# From the director's word to the first text: it has to reach every process.
BEGIN_AFTER_S: Final = 0.3
LOOK_EVERY_S: Final = 0.2


def perform(workload: str, target: Target, parties: Sequence[Party], plan: Plan, parameters: Any) -> Result:
    """`parameters`: the workload's; `generators` of them is how many processes. Raises Broken."""
    shares = _divided(parties, plan, parameters.generators, target.websocket_urls)
    with ExitStack() as stack:
        orders = [(plan, seats, (number, len(shares))) for number, seats in enumerate(shares)]
        crews = _Crews([stack.enter_context(_crew(each)) for each in orders], target, plan)
        crews.await_live(sum(map(len, shares)))
        paces, server_s = crews.talk()
        told = crews.settle()
    heard = [device for each in told for device in each.heard]
    figures = _rates(paces, server_s) | promises.check(target, parties, heard)
    times = _added(told)
    if not times.get("arrival"):
        raise Broken("nothing arrived in the time that was measured")
    latencies = {name: Latencies(sum(by_second.values(), Counter())) for name, by_second in times.items()}
    figures |= latencies["arrival"].figures()
    for name, each in latencies.items():
        if name != "arrival":
            figures |= each.figures(f"{name.replace(' ', '_')}_")
    return Result(workload, asdict(parameters), figures, latencies, timeline(times["arrival"]))


def _divided(parties: Sequence[Party], plan: Plan, generators: int, urls: Sequence[str]) -> list[list[Seat]]:
    """Seats for each process: whole parties in turn, or, where those are fewer, their members in turn; the server's processes in turn."""
    shares: list[list[Seat]] = [[] for _ in range(generators)]
    by_party = plan.is_last_timed or len(parties) >= generators
    at = 0
    for number, party in enumerate(parties):
        for place, member in enumerate(party.members):
            url = urls[at % len(urls)]
            seat = Seat(number, party.conversation_id, len(party.members), member.token, place < party.talkers, url)
            shares[(number if by_party else at) % generators].append(seat)
            at += 1
    return [share for share in shares if share]


@contextmanager
def _crew(orders: crew.Orders) -> Iterator[Pipe]:
    """A process of the generator, and the way to talk with it. Left, it is gone: it has nothing to lose."""
    ours, theirs = socket.socketpair()
    with theirs:
        # Not by multiprocessing, which has each process import all that its parent did.
        command = [sys.executable, "-m", "loadtest.crew", str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL)
    with Pipe(ours.detach()) as pipe:
        try:
            pipe.send(orders)
            yield pipe
        finally:
            process.kill()
            process.wait()


@dataclass(frozen=True, slots=True)
class _Crews:
    """All of them, in step."""

    pipes: list[Pipe]
    target: Target
    plan: Plan

    def await_live(self, seats: int) -> None:
        with bar("connect", seats, "devices") as shown:
            waiting = list(self.pipes)
            while waiting:
                for pipe in cast(list[Pipe], pipes.wait(waiting)):
                    word = _received(pipe)
                    if word == "live":
                        waiting.remove(pipe)
                    else:
                        shown.update(word)

    def talk(self) -> tuple[list[Pace], float | None]:
        """What each saw; and the processor time that the server had meanwhile, if it is known."""
        begins_at_s = time.monotonic() + BEGIN_AFTER_S
        self._tell(int(begins_at_s * 1e9))
        measured_from_s = begins_at_s + min(crew.WARM_UP_S, self.plan.seconds)
        with bar("talk", self.plan.seconds, "s") as shown:
            time.sleep(max(0.0, measured_from_s - time.monotonic()))
            server_s = self.target.processor_s()
            while (left_s := measured_from_s + self.plan.seconds - time.monotonic()) > 0:
                time.sleep(min(left_s, LOOK_EVERY_S))
                shown.update(min(time.monotonic() - measured_from_s, self.plan.seconds) - shown.n)
                if pipes.wait(self.pipes, 0.0):
                    break
            spent_s = self.target.processor_s()
        paces = self._answers()
        return paces, None if server_s is None or spent_s is None else spent_s - server_s

    def settle(self) -> list[Told]:
        with bar("settle", 2, "steps") as shown:
            said: Counter[int] = sum(self._answers(), Counter())
            shown.update(1)
            self._tell(said)
            told = self._answers()
            shown.update(1)
        return told

    def _tell(self, word: Any) -> None:
        for pipe in self.pipes:
            pipe.send(word)

    def _answers(self) -> list[Any]:
        return [_received(pipe) for pipe in self.pipes]


def _received(pipe: Pipe) -> Any:
    try:
        word = pipe.recv()
    except EOFError:
        raise Broken("a generator process ended; what it said of it is above") from None
    if isinstance(word, Broken):
        raise word
    return word


def _rates(paces: list[Pace], server_s: float | None) -> dict[str, float]:
    """Rates and costs of the time that was measured. `generator_share` is of one core, all its processes together.

    `server_us_per_arrival`: processor time of the server's process (not of PostgreSQL's). It drifts least.
    """
    arrived = sum(pace.arrived for pace in paces)
    figures = {
        "acknowledged_per_s": sum(pace.acknowledged / pace.took_s for pace in paces),
        "arrived_per_s": sum(pace.arrived / pace.took_s for pace in paces),
        "generator_share": sum(pace.own_s / pace.took_s for pace in paces),
    }
    if server_s is not None and arrived:
        figures["server_share"] = server_s / max(pace.took_s for pace in paces)
        figures["server_us_per_arrival"] = server_s / arrived * 1e6
    return figures


def _added(told: list[Told]) -> dict[str, dict[int, Counts]]:
    added: dict[str, dict[int, Counts]] = {}
    for each in told:
        for name, by_second in each.times.items():
            for second, counts in by_second.items():
                added.setdefault(name, {}).setdefault(second, Counter()).update(counts)
    return added
