"""What a workload gives back: figures with their units in their names, histograms, a timeline for the plot; and its file.

Rule: whoever reads a file of ours can add and compare: histograms are whole (HDR's own encoding), parameters stand beside the
figures, and a figure's name says its unit (`_ms`, `_per_s`, `_kb`, `_share`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from loadtest.latencies import Counts, Latencies

Parameter = int | float | str | bool


class Moment(msgspec.Struct, frozen=True):
    """One second of a run, counted from its beginning."""

    second: int
    count: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float

    def later(self, seconds: int) -> Moment:
        return msgspec.structs.replace(self, second=self.second + seconds)


class Result(msgspec.Struct):
    """`latencies` by what was timed ("arrival", "ack", "connect"); the first is the one that `timeline` tells.

    `ceilings`: what the machine could do just before (see ceilings.py), if that was measured.
    """

    workload: str
    parameters: dict[str, Parameter]
    figures: dict[str, float]
    latencies: dict[str, Latencies] = {}
    timeline: list[Moment] = []
    ceilings: dict[str, float] = {}


class Report(msgspec.Struct):
    """All of one run of `python -m loadtest`: a file of results. `machine`: what it ran on, by name.

    `failed` and `left_out`: why, by workload.
    """

    machine: dict[str, str]
    results: list[Result]
    failed: dict[str, str] = {}
    left_out: dict[str, str] = {}


def timeline(seconds: dict[int, Counts]) -> list[Moment]:
    """The seconds in which something was timed, in order."""
    moments = []
    for second, counts in sorted(seconds.items()):
        if counts:
            figures = Latencies(counts).figures()
            del figures["p999_ms"]
            moments.append(Moment(second, counts.total(), **figures))
    return moments


def write(report: Report, file: Path) -> None:
    encoded = msgspec.json.encode(report, enc_hook=_encoded)
    file.write_bytes(msgspec.json.format(encoded, indent=1) + b"\n")


def read(file: Path) -> Report:
    """Raises msgspec.ValidationError or OSError."""
    return msgspec.json.decode(file.read_bytes(), type=Report, dec_hook=_decoded)


def _encoded(value: Any) -> str:
    if isinstance(value, Latencies):
        return value.encode()
    raise NotImplementedError(type(value))


def _decoded(kind: type, value: Any) -> Latencies:
    if kind is Latencies:
        return Latencies.decode(value)
    raise NotImplementedError(kind)
