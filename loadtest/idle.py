"""W4: people who are connected and say nothing: what each costs the server in memory and, by their heartbeats, in processor time; and
how fast so many come in.

Each number of connections begins with nobody there. Rule: a connection counts once it is live: TCP, upgrade, SESSION_READY, and the last
page of its catching up. What PostgreSQL and Redis keep of it is not in these figures.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Final

from loadtest.crowd import visitors
from loadtest.latencies import Latencies, count_us
from loadtest.parameters import option, whole_numbers
from loadtest.progress import bar
from loadtest.result import Result
from loadtest.target import Broken, Missing, Target
from loadtest.visitor import Visitor
from loadtest.visits import Visits, raise_open_files

# Besides the connections: databases, files, what the interpreter has open.
OTHER_FILES: Final = 200
WARM_UP: Final = 50
SETTLE_S: Final = 2.0
LIVE_WITHIN_S: Final = 180.0
GONE_WITHIN_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Parameters:
    connections: int = option(10_000, "Connections in the end.", least=1)
    steps: str = option("1000,5000", "Smaller numbers that are measured before.", least=0, is_list=True)
    idle_s: float = option(20.0, "How long they are idle each time.", least=0.1)
    at_once: int = option(200, "Connections that may be opening at the same time.", least=1)


def run(target: Target, parameters: Parameters) -> Result:
    """Figures of each number by its name: at_1000_live_s, and so on. Without a process here to look at only the times."""
    if parameters.connections > raise_open_files() - OTHER_FILES:
        raise Missing(f"{parameters.connections} connections need more open files than one process may have here")
    steps = [*(step for step in sorted(whole_numbers(parameters.steps)) if step < parameters.connections), parameters.connections]
    _, everybody = visitors(target, parameters.connections)
    visits = Visits(target.websocket_url, at_once=parameters.at_once)
    try:
        _come(visits, everybody[:WARM_UP])
        _go(target, visits, parameters.idle_s)
        empty = _Empty(target.memory_kb(), _share(target, visits, parameters.idle_s))
        whole = Result("w4", asdict(parameters), {})
        if empty.share is not None:
            whole.figures["empty_server_s_a_minute"] = empty.share * 60
        for step in steps:
            figures = _measured(target, visits, everybody[:step], parameters.idle_s, empty)
            whole.figures |= {f"at_{step}_{name}": value for name, value in figures.items()}
            whole.latencies = {"connect": Latencies(count_us(visits.lives_ns)), "upgrade": Latencies(count_us(visits.upgrades_ns))}
            whole.figures |= whole.latencies["connect"].figures("connect_")
            if step != steps[-1]:
                _go(target, visits, parameters.idle_s)
    finally:
        visits.close()
    return whole


@dataclass(frozen=True, slots=True)
class _Empty:
    """The server before anybody comes: its memory, its share of a core."""

    memory_kb: int | None
    share: float | None


def _measured(target: Target, visits: Visits, everybody: list[Visitor], idle_s: float, empty: _Empty) -> dict[str, float]:
    own_s, server_s = time.process_time(), target.processor_s()
    del visits.lives_ns[:], visits.upgrades_ns[:]
    took_s = _come(visits, everybody)
    figures = {"live_s": took_s, "live_per_s": len(everybody) / took_s, "sent_away": float(visits.sent_away)}
    figures["generator_share"] = (time.process_time() - own_s) / took_s
    if server_s is not None and (now_s := target.processor_s()) is not None:
        figures["server_us_per_connect"] = (now_s - server_s) / len(everybody) * 1e6
    visits.run(min(SETTLE_S, idle_s))
    if empty.memory_kb is not None and (memory_kb := target.memory_kb()) is not None:
        figures["kb_per_connection"] = (memory_kb - empty.memory_kb) / len(everybody)
    share = _share(target, visits, idle_s)
    if share is not None and empty.share is not None:
        figures["idle_s_per_1000_a_minute"] = (share - empty.share) * 60 / (len(everybody) / 1000)
    if visits.live != len(everybody):
        raise Broken(f"of {len(everybody)} idle connections {visits.live} are left")
    return figures


def _come(visits: Visits, everybody: list[Visitor]) -> float:
    began_at = time.monotonic()
    with bar("connect", len(everybody), "devices") as shown:

        def all_live() -> bool:
            shown.update(visits.live - shown.n)
            return visits.live == len(everybody)

        visits.come(everybody)
        if not visits.run(LIVE_WITHIN_S, all_live):
            raise Broken(f"only {visits.live} of {len(everybody)} connections were live within {LIVE_WITHIN_S:g} s")
    return time.monotonic() - began_at


def _share(target: Target, visits: Visits, idle_s: float) -> float | None:
    """Of a core, that the server has while nothing is said, with one heartbeat every 30 s of each who is there."""
    began_s, began_at = target.processor_s(), time.monotonic()
    visits.run(idle_s)
    ended_s = target.processor_s()
    return None if began_s is None or ended_s is None else (ended_s - began_s) / (time.monotonic() - began_at)


def _go(target: Target, visits: Visits, idle_s: float) -> None:
    """All of them, without a word; returns when the server has seen them gone."""
    visits.cut_all()
    ends_at = time.monotonic() + GONE_WITHIN_S
    visits.run(min(SETTLE_S, idle_s))
    while target.metric("uim_sessions"):
        if time.monotonic() > ends_at:
            raise Broken(f"connections that were torn are still there after {GONE_WITHIN_S:g} s")
        visits.run(SETTLE_S)
