"""`python -m loadtest.plot RESULTS.json FILE`: of each workload its latency over time, and its distribution by percentile.

And of what was asked at several sizes (growth, crowded) how it grows. Rule: a process of its own, for matplotlib takes long to import;
it draws to files alone (Agg), whose kind is their name's ending.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from loadtest.latencies import Latencies
from loadtest.result import Moment, Result, read
from loadtest.tables import shown, title

ROW_INCHES: Final = (13.0, 4.4)
# Where the curve is asked: the share that is slower, from all to one in a hundred thousand.
SLOWER: Final = [10 ** (-step / 20) for step in range(101)]
# The left end, where all are slower, has no words: they would stand in those of the median.
TICKS: Final = (0.5, 0.1, 0.01, 0.001, 0.0001)
LEAST_SLOWER_TO_SHOW: Final = 5
FEW: Final = 50
TITLE_CHARACTERS: Final = 95
# Of the height of a timeline.
LEGEND_SHARE: Final = 0.12
# A figure at a size, as growth.py and crowded.py name them.
AT_A_SIZE: Final = re.compile(r"(?P<what>.+)_at_(?P<size>\d+)_(?P<unit>p50_ms|server_us)")
# Not the server's.
OWN: Final = "generator"


def draw(results: Sequence[Result], file: Path) -> None:
    """Those that have latencies, or figures at several sizes. Raises ValueError for a kind of file that is not known."""
    timed = [result for result in results if any(each.count for each in result.latencies.values())]
    grown = [result for result in results if result not in timed and _sizes(result, "p50_ms")]
    if not timed and not grown:
        raise ValueError("no result has latencies to draw")
    figure = Figure(figsize=(ROW_INCHES[0], ROW_INCHES[1] * (len(timed) + len(grown))), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(timed) + len(grown), 2, squeeze=False)
    for result, (left, right) in zip(grown, grid[len(timed) :], strict=True):
        _draw_growth(left, _sizes(result, "p50_ms"), "median, ms")
        _draw_growth(right, _sizes(result, "server_us"), "server, us of processor time a message")
        _entitle(left, result)
    for result, (left, right) in zip(timed, grid[: len(timed)], strict=True):
        _draw_timeline(left, result.timeline, next(iter(result.latencies)).partition(" at ")[0])
        _draw_distribution(right, result.latencies)
        _entitle(left, result)
    figure.savefig(file, dpi=120)


def _entitle(axes: Axes, result: Result) -> None:
    axes.set_title(textwrap.fill(title(result), TITLE_CHARACTERS), loc="left", fontsize=9)


def _sizes(result: Result, unit: str) -> dict[str, dict[int, float]]:
    """By what was measured, its figure in that unit at each size."""
    found: dict[str, dict[int, float]] = {}
    for name, value in result.figures.items():
        at = AT_A_SIZE.fullmatch(name)
        if at is not None and at["unit"] == unit:
            found.setdefault(at["what"].replace("_", " "), {})[int(at["size"])] = value
    return {what: sizes for what, sizes in found.items() if len(sizes) > 1}


def _draw_growth(axes: Axes, curves: dict[str, dict[int, float]], what: str) -> None:
    if not curves:
        axes.set_axis_off()
        return
    for name, sizes in curves.items():
        axes.plot(list(sizes), list(sizes.values()), label=name, marker="o", linewidth=1.2)
    axes.set_xscale("log")
    axes.set_xlabel("size: messages in the log, or silent connections")
    _scale(axes, what)
    axes.set_ylabel(what)
    axes.set_ylim(bottom=min(min(sizes.values()) for sizes in curves.values()) / 2)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=7)


def _draw_timeline(axes: Axes, timeline: Sequence[Moment], what: str) -> None:
    if not timeline:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "not timed by second", ha="center", va="center", color="#808080", transform=axes.transAxes)
        return
    seconds = [moment.second for moment in timeline]
    # One second is a point, not a line.
    mark = "o" if len(seconds) < 3 else ""
    for name, color in (("max", "#c8c8c8"), ("p99", "#d62728"), ("p95", "#ff7f0e"), ("p50", "#1f77b4")):
        values = [getattr(moment, f"{name}_ms") for moment in timeline]
        axes.plot(seconds, values, label=name, color=color, marker=mark, linewidth=1.4)
    axes.set_xlabel("second of the run")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _scale(axes, what)
    # Room above the highest, for the legend.
    bottom, top = axes.get_ylim()
    axes.set_ylim(top=top * (top / bottom) ** LEGEND_SHARE)
    axes.legend(loc="upper left", ncols=4, fontsize=8)


def _draw_distribution(axes: Axes, latencies: dict[str, Latencies]) -> None:
    for name, each in latencies.items():
        if each.count and not name.startswith(OWN):
            # No further than where a few are slower: beyond that the curve is one text's. Of a few all are shown.
            least = LEAST_SLOWER_TO_SHOW if each.count >= FEW else 1
            asked = [slower for slower in SLOWER if slower * each.count >= least]
            values = [each.percentile_ms(100 * (1 - slower)) for slower in asked]
            axes.plot(asked, values, label=f"{name} ({each.count:,})", marker="o" if each.count < FEW else "", markersize=3)
    axes.set_xscale("log")
    axes.set_xlim(1.0, TICKS[-1])
    axes.set_xticks(TICKS, [f"{100 * (1 - slower):g} %" for slower in TICKS])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("share that took no longer")
    axes.set_title("distribution", loc="right", fontsize=9)
    _scale(axes, "latency")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=8, title="texts, requests (how many)", title_fontsize=8)


def _scale(axes: Axes, what: str) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _place: shown(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel(f"{what}, ms")
    axes.grid(visible=True, color="#e4e4e4")


if __name__ == "__main__":
    try:
        draw(read(Path(sys.argv[1])).results, Path(sys.argv[2]))
    except (ValueError, OSError) as why:
        sys.exit(f"no plot: {why}")
