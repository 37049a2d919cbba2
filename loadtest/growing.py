"""What a server's process holds while a run goes on: memory, tasks, open files, looked at again and again; and how that grows.

The slope is by least squares over what was seen after the warm-up: first and last alone would tell of chance. Rule: what cannot be
looked at (a server elsewhere) is left out, not guessed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event
from typing import Final

from loadtest.target import Target

LOOK_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Look:
    """`at_s` is by the monotonic clock."""

    at_s: float
    values: dict[str, float]


@dataclass(slots=True)
class Growing:
    target: Target
    looks: list[Look] = field(default_factory=list)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, it is looked at every second, by a thread: what a server is asked it may take its time to answer."""
        over = Event()

        def watch() -> None:
            while not over.wait(LOOK_EVERY_S):
                self.look()

        with ThreadPoolExecutor(1) as thread:
            watching = thread.submit(watch)
            try:
                yield
            finally:
                over.set()
            watching.result()

    def look(self) -> Look:
        seen = {
            "memory_kb": self.target.memory_kb(),
            "tasks": self.target.metric("uim_tasks"),
            "open_files": self.target.open_files(),
        }
        self.looks.append(Look(time.monotonic(), {name: float(value) for name, value in seen.items() if value is not None}))
        return self.looks[-1]

    def figures(self, after_s: float) -> dict[str, float]:
        """The last value of each, and by how much it grew a minute since that moment."""
        found: dict[str, float] = {}
        for name in self.looks[-1].values if self.looks else ():
            points = [(look.at_s / 60, look.values[name]) for look in self.looks if look.at_s >= after_s and name in look.values]
            if points:
                found[name] = points[-1][1]
            if (grown := slope(points)) is not None:
                found[f"{name}_per_minute"] = grown
        return found


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """Of the line that is nearest to all of them; None for fewer than two."""
    count = len(points)
    mean_x, mean_y = (sum(point[axis] for point in points) / max(count, 1) for axis in (0, 1))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    if count < 2 or not spread:
        return None
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
