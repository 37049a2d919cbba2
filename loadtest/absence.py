"""W5: a device was away while many messages came: from its connect to the moment when it is live, and messages a second.

They are said over the wire by the other one, while it is away: what then waits for it waits where it would. It comes again and again for
the same ones, from the last entry that it had before. Rule: every count is checked, and the order.
"""

from __future__ import annotations

import statistics
from array import array
from dataclasses import asdict, dataclass
from typing import Final

from loadtest import people
from loadtest.crowd import gather, visitor
from loadtest.latencies import Latencies, count_us
from loadtest.parameters import option, whole_numbers
from loadtest.progress import bar
from loadtest.result import Result
from loadtest.target import Broken, Target
from loadtest.visitor import Talk, Visitor
from loadtest.visits import Visits

WINDOW: Final = 64
LIVE_WITHIN_S: Final = 60.0
# The database is left alone for that long between what was written and what is read.
REST_S: Final = 0.2
LEAST_PER_S: Final = 200.0


@dataclass(frozen=True, slots=True)
class Parameters:
    missed: str = option("1000,100000", "How many messages were missed, one number after the other.", least=1, is_list=True)
    rounds: int = option(5, "Times that the device comes for each number; the median counts.", least=1)
    text_bytes: int = option(200, "Size of each text.", least=20, most=10_000)


def run(target: Target, parameters: Parameters) -> Result:
    """Figures of each number by its name: missed_1000_live_ms, missed_1000_per_s."""
    numbers = sorted(whole_numbers(parameters.missed))
    crowd = gather(target, 2)
    talker, away = (visitor(target, member, number) for number, member in enumerate(crowd.members))
    talk = Talk(people.make_pair(target.url, *crowd.members))
    visits = Visits(target.websocket_url, at_once=2)
    whole = Result("w5", asdict(parameters), {})
    try:
        _come(visits, talker)
        _come(visits, away)
        visits.cut(away)
        _say(visits, talker, talk, max(numbers), parameters.text_bytes)
        for missed in numbers:
            server_s = target.processor_s()
            took_ns = array("q", [_caught_up(visits, away, talk, missed) for _ in range(parameters.rounds)])
            median_s = statistics.median(took_ns) / 1e9
            whole.figures[f"missed_{missed}_live_ms"] = median_s * 1000
            whole.figures[f"missed_{missed}_per_s"] = missed / median_s
            if server_s is not None and (now_s := target.processor_s()) is not None:
                whole.figures[f"missed_{missed}_server_us_each"] = (now_s - server_s) / (missed * parameters.rounds) * 1e6
            whole.latencies[f"live after {missed}"] = Latencies(count_us(took_ns))
    finally:
        visits.close()
    return whole


def _come(visits: Visits, who: Visitor) -> None:
    wanted = visits.live + 1
    visits.come([who])
    if not visits.run(LIVE_WITHIN_S, lambda: visits.live == wanted):
        raise Broken(f"a device was not live within {LIVE_WITHIN_S:g} s")


def _say(visits: Visits, talker: Visitor, talk: Talk, count: int, text_bytes: int) -> None:
    with bar("say", count, "texts") as shown:

        def keep_window(now_ns: int) -> int | None:
            more = min(WINDOW - len(talker.opens), count - talker.said)
            if more > 0:
                visits.say(talker, b"".join(talker.say(talk, now_ns, text_bytes) for _ in range(more)))
            shown.update(len(talk.acknowledged) - shown.n)
            return None

        if not visits.run(LIVE_WITHIN_S + count / LEAST_PER_S, lambda: len(talk.acknowledged) == count, keep_window):
            raise Broken(f"only {len(talk.acknowledged)} of {count} texts were acknowledged")


def _caught_up(visits: Visits, away: Visitor, talk: Talk, missed: int) -> int:
    """Nanoseconds from connect to live."""
    ids = talk.acknowledged
    away.position = ids[-missed] - 1
    del away.arrived[:], visits.lives_ns[:]
    visits.run(REST_S)
    _come(visits, away)
    visits.cut(away)
    if away.arrived != ids[-missed:]:
        raise Broken(f"of {missed} missed messages {len(away.arrived)} came, or not in order")
    return visits.lives_ns[0]
