"""Results as people read them: on a terminal, in Markdown, and two of them side by side.

Rule: nothing is counted here; a number is shown with three significant digits, and with the unit that its name has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from loadtest.latencies import Latencies
from loadtest.result import Report, Result

PERCENTILES: Final = ("p50_ms", "p95_ms", "p99_ms", "p999_ms", "max_ms")
LATENCY_HEAD: Final = ("ms", "p50", "p95", "p99", "p99.9", "max", "count")


def shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def title(result: Result) -> str:
    told = (f"{name.replace('_', ' ')} {_parameter(value)}" for name, value in result.parameters.items() if value != "")
    return f"{result.workload} ({', '.join(told)})"


def terminal(result: Result) -> str:
    """Title, figures, latencies."""
    lines = [title(result), *aligned(_figure_rows(result))]
    if result.latencies:
        lines += ["", *aligned([LATENCY_HEAD, *_latency_rows(result)])]
    return "\n".join(lines)


def markdown(result: Result) -> list[str]:
    """Its tables, without a heading."""
    lines = [f"{title(result)}.", "", *markdown_table(("figure", "value"), _figure_rows(result))]
    if result.latencies:
        lines += ["", *markdown_table(LATENCY_HEAD, _latency_rows(result))]
    return lines


def comparison(one: Report, other: Report) -> str:
    """Every figure of the workloads that both have, and how many times the first is the second. Shares tell most."""
    lines = []
    for name in sorted(set(one.machine) | set(other.machine)):
        first, second = one.machine.get(name, "-"), other.machine.get(name, "-")
        if first != second:
            lines.append(f"{name}: {first} | {second}")
    others = {result.workload: result for result in other.results}
    for result in one.results:
        if (beside := others.get(result.workload)) is not None:
            lines += ["", *_compared(result, beside)]
    missing = {result.workload for result in one.results} ^ set(others)
    if missing:
        lines += ["", f"only in one of them: {', '.join(sorted(missing))}"]
    return "\n".join(lines)


def _compared(one: Result, other: Result) -> list[str]:
    head = title(one) if one.parameters == other.parameters else f"{title(one)} | {title(other)}: NOT THE SAME WORK"
    rows = [(f"ceiling: {name}", value, other.ceilings.get(name)) for name, value in one.ceilings.items()]
    rows += [(name, value, other.figures.get(name)) for name, value in one.figures.items()]
    told = [(_words(name), shown(first), *_beside(first, second)) for name, first, second in rows]
    return [head, *aligned([("", "first", "second", "second / first"), *told])]


def _beside(first: float, second: float | None) -> tuple[str, str]:
    if second is None:
        return "-", ""
    return shown(second), f"{second / first:.2f}" if first else ""


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, the others to the right."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))] if rows else []
    return ["  " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [_markdown_row(head), _markdown_row(["---"] * len(head)), *map(_markdown_row, rows)]


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _figure_rows(result: Result) -> list[tuple[str, str]]:
    """What the table of latencies does not tell already."""
    told = {value for each in result.latencies.values() for value in each.figures().values()}
    rows = [(f"ceiling: {_words(name)}", shown(value)) for name, value in result.ceilings.items()]
    return rows + [
        (_words(name), shown(value)) for name, value in result.figures.items() if not (name.endswith("_ms") and value in told)
    ]


def _latency_rows(result: Result) -> list[tuple[str, ...]]:
    return [_latency_row(name, each) for name, each in result.latencies.items() if each.count]


def _latency_row(name: str, each: Latencies) -> tuple[str, ...]:
    figures = each.figures()
    return name, *(shown(figures[percentile]) for percentile in PERCENTILES), f"{each.count:,}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _parameter(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else f"{value}"
