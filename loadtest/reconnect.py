"""W6: everybody is torn at the same moment, and everybody comes back at once; and again when the server has been restarted.

Torn is a reset, without a word, so nobody waits before coming back; after a restart each comes back when the server's goodbye said.
Rule: who is back must have everything: meanwhile texts were said, in pairs, and each has to arrive, once and in order.
"""

from __future__ import annotations

import statistics
import time
from array import array
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Final

from loadtest import people
from loadtest.crowd import visitors
from loadtest.latencies import Latencies, count_us
from loadtest.parameters import option
from loadtest.people import Member
from loadtest.progress import bar
from loadtest.result import Result
from loadtest.target import Broken, Target
from loadtest.visitor import Talk, Visitor
from loadtest.visits import Visits, raise_open_files

LIVE_WITHIN_S: Final = 120.0
SETTLE_WITHIN_S: Final = 30.0
TEXT_BYTES: Final = 200


@dataclass(frozen=True, slots=True)
class Parameters:
    connections: int = option(1_000, "Devices that are connected, and all come back.", least=2)
    rounds: int = option(3, "Times that all of them are torn; the median counts.", least=1)
    talkers: int = option(50, "Of them so many pairs; each says a text before it is torn, and it is heard on coming back.", least=1)


def run(target: Target, parameters: Parameters) -> Result:
    """Without a server of its own it is not restarted."""
    raise_open_files()
    _, everybody = visitors(target, parameters.connections)
    talks = _talks(target, everybody, parameters.talkers)
    visits = Visits(target.websocket_url, at_once=len(everybody))
    result = Result("w6", asdict(parameters), {})
    storm = _Storm(visits, everybody, talks)
    try:
        storm.await_live("connect", everybody)
        took, times_ns = [], array("q")
        server_s = target.processor_s()
        for _ in range(parameters.rounds):
            del visits.lives_ns[:]
            took.append(storm.tear())
            times_ns += visits.lives_ns
        if server_s is not None and (now_s := target.processor_s()) is not None:
            result.figures["server_us_per_return"] = (now_s - server_s) / (parameters.rounds * len(everybody)) * 1e6
        result.figures |= {"all_live_s": statistics.median(took), "slowest_round_s": max(took), "sent_away": visits.sent_away}
        result.latencies["return"] = Latencies(count_us(times_ns))
        result.figures |= result.latencies["return"].figures("return_")
        if target.restart is not None:
            result.figures |= storm.restart(target)
            result.latencies["return after a restart"] = Latencies(count_us(visits.lives_ns))
        result.figures["texts"] = storm.check()
    finally:
        visits.close()
    return result


def _talks(target: Target, everybody: list[Visitor], most: int) -> list[tuple[Visitor, Visitor, Talk]]:
    """Pairs of two users each, from both ends of the crowd, nobody in two: of each user's devices the first talks or hears."""
    firsts: dict[str, Visitor] = {}
    for device in everybody:
        firsts.setdefault(device.user_id, device)
    people_here = list(firsts.values())
    talks = []
    for number in range(min(most, len(people_here) // 2)):
        one, other = people_here[number], people_here[-1 - number]
        member, friend = Member(one.user_id, one.token), Member(other.user_id, other.token)
        talks.append((one, other, Talk(people.make_pair(target.url, member, friend))))
    return talks


@dataclass(slots=True)
class _Storm:
    visits: Visits
    everybody: list[Visitor]
    talks: list[tuple[Visitor, Visitor, Talk]]

    def await_live(self, what: str, coming: list[Visitor]) -> float:
        began_at = time.monotonic()
        self.visits.come(coming)
        with bar(what, len(self.everybody), "devices") as shown:

            def all_live() -> bool:
                shown.update(self.visits.live - shown.n)
                return self.visits.live == len(self.everybody)

            if not self.visits.run(LIVE_WITHIN_S, all_live):
                raise Broken(f"only {self.visits.live} of {len(self.everybody)} were back within {LIVE_WITHIN_S:g} s")
        return time.monotonic() - began_at

    def tear(self) -> float:
        """Seconds from the cut until the last is live again."""
        self._say()
        began_at = time.monotonic()
        self.await_live("come back", self.visits.cut_all())
        took_s = time.monotonic() - began_at
        self._settle()
        return took_s

    def restart(self, target: Target) -> dict[str, float]:
        """SIGTERM, drain, start; each comes back when it was told to, or as soon as somebody listens."""
        assert target.restart is not None
        self._say()
        del self.visits.lives_ns[:]
        self.visits.waits_for_server = True
        began_at = time.monotonic()
        with ThreadPoolExecutor(1) as thread:
            restarted = thread.submit(target.restart)
            ready_at = self._serve_until(restarted)
            back_s = self.await_live("restart", [])
        self.visits.waits_for_server = False
        self._settle()
        return {"restart_away_s": ready_at - began_at, "restart_all_live_s": back_s, "restart_sent_away": self.visits.sent_away}

    def _serve_until(self, restarted: Future[Target]) -> float:
        while not restarted.done():
            self.visits.run(0.05)
        restarted.result()
        return time.monotonic()

    def _say(self) -> None:
        """A text of each pair, which may be on its way when the line is cut: then it is said again."""
        for talker, _, talk in self.talks:
            self.visits.say(talker, talker.say(talk, time.monotonic_ns(), TEXT_BYTES))

    def _settle(self) -> None:
        def settled() -> bool:
            return all(not one.opens and len(other.arrived) >= len(talk.acknowledged) for one, other, talk in self.talks)

        if not self.visits.run(SETTLE_WITHIN_S, settled):
            raise Broken(f"acks or texts were missing {SETTLE_WITHIN_S:g} s after all had come back")

    def check(self) -> float:
        for one, other, talk in self.talks:
            if list(other.arrived) != list(talk.acknowledged):
                raise Broken(f"{one.user_id} said {len(talk.acknowledged)} texts, {len(other.arrived)} arrived, or not in order")
        return sum(len(talk.acknowledged) for _, _, talk in self.talks)
