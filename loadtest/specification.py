"""Every figure of the specification's sections 1.2, 2.2 and 14.2, where it is measured, and whether it is reached.

Rule: a figure that a run cannot show is told as such, with the reason: that is not a pass. One that a run could show and did not
(its workload was left out) is not measured either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from loadtest.result import Result
from loadtest.tables import shown

PER_DAY: Final = 86_400.0


class Verdict(StrEnum):
    PASS = "PASS"
    FAIL = "FAIL"
    NOT_MEASURED = "not measured here"


@dataclass(frozen=True, slots=True)
class Source:
    """A figure or parameter of a workload, and what it is multiplied with."""

    workload: str
    name: str
    times: float = 1.0


@dataclass(frozen=True, slots=True)
class Demand:
    """`at_least` or `below` is the limit. Of the sources the first that the run has counts; without any `reason` says why."""

    section: str
    words: str
    sources: tuple[Source, ...] = ()
    at_least: float | None = None
    below: float | None = None
    unit: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    demand: Demand
    verdict: Verdict
    measured: str


def _delivery(percentile: str) -> tuple[Source, ...]:
    """The specification's own case first, then its rate alone."""
    return Source("w8", f"{percentile}_ms"), Source("w2", f"at_100_{percentile}_ms")


CONNECT: Final = (Source("w8", "connect_p95_ms"), Source("w4", "connect_p95_ms"))
CONNECTIONS: Final = (Source("w8", "parameters.connections"), Source("w4", "parameters.connections"))
USERS: Final = (Source("w8", "parameters.users"),)
DELIVERED: Final = (Source("w8", "delivered_share"), Source("w1", "delivered_share"))
STORED: Final = (Source("w8", "stored_share"), Source("w1", "stored_share"))
HISTORY: Final = (Source("w7", "history_p95_ms"),)
SUSTAINED: Final = (Source("w8", "acknowledged_per_s"), Source("w2", "at_100_acknowledged_per_s"))
BURST: Final = (Source("w8", "burst_acknowledged_per_s"), Source("w2", "at_200_acknowledged_per_s"))
# What was due just before the end is acknowledged after it.
RATE_KEPT: Final = 0.98
A_MONTH: Final = "a month's measure; what an outage of each part does is tested in tests/faults"
DEMANDS: Final = (
    Demand("1.2", "up to 50 participants per group", (Source("w3", "parameters.members"),), at_least=50),
    Demand("1.2", "text up to 10,000 characters", (Source("longest", "parameters.text_bytes"),), at_least=10_000),
    Demand("1.2", "message delivery P95 < 500 ms", _delivery("p95"), below=500, unit="ms"),
    Demand("1.2", "WebSocket connection established < 2 s (P95)", CONNECT, below=2_000, unit="ms"),
    Demand("1.2", "recent history < 200 ms (P95)", HISTORY, below=200, unit="ms"),
    Demand("1.2", "1K-10K daily active users", USERS, at_least=10_000, unit="registered"),
    Demand("1.2", "100-1K concurrent connections per server", CONNECTIONS, at_least=1_000),
    Demand("1.2", "99 % availability", reason=A_MONTH),
    Demand("1.2", "message delivery success 99 %", DELIVERED, at_least=0.99, unit="of what was acknowledged"),
    Demand("1.2", "zero message loss", STORED, at_least=1, unit="of what was acknowledged"),
    Demand("2.2", "delivery P50 < 200 ms", _delivery("p50"), below=200, unit="ms"),
    Demand("2.2", "delivery P95 < 500 ms", _delivery("p95"), below=500, unit="ms"),
    Demand("2.2", "delivery P99 < 1 s", _delivery("p99"), below=1_000, unit="ms"),
    Demand("2.2", "persistence < 100 ms (P95 of send to ack)", (Source("w8", "ack_p95_ms"), Source("w2", "at_100_ack_p95_ms")),
           below=100, unit="ms"),
    Demand("2.2", "1K-10K daily active users", USERS, at_least=10_000, unit="registered"),
    Demand("2.2", "20 messages per user per day", reason="an estimate of use; the next row is what 10,000 such users send"),
    Demand("2.2", "200K messages/day", tuple(Source(each.workload, each.name, PER_DAY) for each in SUSTAINED),
           at_least=200_000, unit="a day"),
    Demand("2.2", "about 100 messages/s at the peak", SUSTAINED, at_least=100 * RATE_KEPT, unit="a second"),
    Demand("2.2", "100-1K concurrent connections per server", CONNECTIONS, at_least=1_000),
    Demand("2.2", "10-20 % of daily users online at once", reason="an estimate of use; 1,000 of 10,000 are connected in w8"),
    Demand("2.2", "99 % uptime (< 7.2 h a month down)", reason=A_MONTH),
    Demand("2.2", "99.9 % durability", STORED, at_least=0.999, unit="of what was acknowledged"),
    Demand("2.2", "at-least-once delivery", DELIVERED, at_least=1, unit="of what was acknowledged"),
    Demand("2.2", "messages stored for at least a year",
           reason="a year's measure; nothing deletes them unless UIM_RETENTION_DAYS is set, which takes 365 or more"),
    Demand("14.2", "delivery P50 < 200 ms", _delivery("p50"), below=200, unit="ms"),
    Demand("14.2", "delivery P95 < 500 ms", _delivery("p95"), below=500, unit="ms"),
    Demand("14.2", "delivery P99 < 1 s", _delivery("p99"), below=1_000, unit="ms"),
    Demand("14.2", "API response P95 < 200 ms", (Source("api", "p95_ms"), Source("w7", "list_p95_ms")), below=200, unit="ms"),
    Demand("14.2", "WebSocket connection established < 2 s (P95)", CONNECT, below=2_000, unit="ms"),
    Demand("14.2", "1K-10K daily active users", USERS, at_least=10_000, unit="registered"),
    Demand("14.2", "100 messages/s sustained", SUSTAINED, at_least=100 * RATE_KEPT, unit="a second"),
    Demand("14.2", "200 messages/s in a burst", BURST, at_least=200 * RATE_KEPT, unit="a second"),
    Demand("14.2", "1K connections on one server", CONNECTIONS, at_least=1_000),
    Demand("14.2", "horizontal scaling", reason="no figure; several processes on one log are tested in tests/faults"),
    Demand("14.2", "a database of 10 million messages", (Source("w7", "parameters.messages"),), at_least=10_000_000),
    Demand("14.2", "scaling without downtime", reason="no figure; handing over from one process to the next is tested in tests/faults"),
)


def judge(results: Sequence[Result]) -> list[Finding]:
    by_workload = {result.workload: result for result in results}
    return [_judged(demand, by_workload) for demand in DEMANDS]


def _judged(demand: Demand, results: dict[str, Result]) -> Finding:
    for source in demand.sources:
        value = _value(source, results)
        if value is not None:
            is_reached = value >= demand.at_least if demand.at_least is not None else value < (demand.below or 0.0)
            told = f"{shown(value)} {demand.unit}".strip()
            return Finding(demand, Verdict.PASS if is_reached else Verdict.FAIL, f"{told} ({source.workload})")
    wanted = ", ".join(dict.fromkeys(source.workload for source in demand.sources))
    return Finding(demand, Verdict.NOT_MEASURED, demand.reason or f"was not run, or not so: {wanted}")


def _value(source: Source, results: dict[str, Result]) -> float | None:
    result = results.get(source.workload)
    if result is None:
        return None
    place, _, name = source.name.rpartition(".")
    value = result.parameters.get(name) if place else result.figures.get(name)
    return None if value is None else float(value) * source.times
