"""Which words have not come, by their numbers: bookkeeping alone, nothing here reads or waits.

A speaker numbers its words 1, 2, 3 … and says with each, and in between, which is the newest. Rule: a number is taken once,
whoever brings it and in whatever order; one that is nowhere to be found is given up after a while.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from uuid import UUID

# Longer than a transaction in which a word is kept may last: what is not there by then was never committed.
GIVE_UP_AFTER_S: Final = 15.0
# Each process lets itself be heard once a second.
SILENT_AFTER_S: Final = 2.5
GONE_AFTER_S: Final = 30.0
MAX_SPEAKERS: Final = 1_000


class Line:
    """The numbers of one speaker. `up_to`: all up to here have come or are given up; `newest`: there are as many."""

    __slots__ = ("_above", "_missing", "newest", "up_to")

    def __init__(self, up_to: int = 0) -> None:
        self.up_to = self.newest = up_to
        self._above: set[int] = set()
        # Since when numbers are missing, and the newest that there was then.
        self._missing: tuple[float, int] | None = None

    def take(self, number: int, now: float) -> bool:
        """A numbered word has come; whether it is the first of its number."""
        if number <= self.up_to or number in self._above:
            return False
        self._above.add(number)
        self.newest = max(self.newest, number)
        if number == self.up_to + 1:
            self._missing = None  # what is missing from now on is another one
        self._close_up(now)
        return True

    def told_of(self, newest: int, now: float) -> None:
        """There are words up to this number."""
        if newest > self.newest:
            self.newest = newest
            self._close_up(now)

    def _close_up(self, now: float) -> None:
        while self.up_to + 1 in self._above:
            self.up_to += 1
            self._above.remove(self.up_to)
        if self.up_to == self.newest:
            self._missing = None
        elif self._missing is None:
            self._missing = (now, self.newest)

    def missing_for_s(self, now: float) -> float:
        """For how long the oldest missing number has been missing; 0 if none is."""
        return now - self._missing[0] if self._missing is not None else 0.0

    def give_up(self, now: float) -> None:
        """Miss no more what was missing when the gap was noticed."""
        if self._missing is not None:
            self.up_to = max(self.up_to, self._missing[1])
            self._above = {number for number in self._above if number > self.up_to}
            self._missing = None
            self._close_up(now)


class Gaps:
    """The lines of all other processes, and when each was last heard."""

    def __init__(self) -> None:
        self._lines: dict[UUID, Line] = {}
        self._heard_at: dict[UUID, float] = {}

    def begin(self, newest: Mapping[UUID, int]) -> None:
        """What was said before now is nobody's concern here."""
        for process_id, number in newest.items():
            self._lines[process_id] = Line(number)

    def heard(self, process_id: UUID, newest: int, now: float) -> None:
        """Anything from that process, which says how many words there are."""
        # In the order of their last words, so that the first is the one to forget.
        self._heard_at.pop(process_id, None)
        self._heard_at[process_id] = now
        self._line(process_id).told_of(newest, now)

    def take(self, process_id: UUID, number: int, now: float) -> bool:
        """A numbered word, from the bus or from the database; whether it is the first of its number."""
        return self._line(process_id).take(number, now)

    def _line(self, process_id: UUID) -> Line:
        line = self._lines.get(process_id)
        if line is None:
            line = self._lines[process_id] = Line()
            if len(self._lines) > MAX_SPEAKERS:
                self._forget(next(iter(self._heard_at), next(iter(self._lines))))
        return line

    def _forget(self, process_id: UUID) -> None:
        self._heard_at.pop(process_id, None)
        del self._lines[process_id]

    def are_there(self, now: float, *, others: int) -> bool:
        """Whether something may be missing: a number, a process that has fallen silent, one of the `others` never heard."""
        lately = [now - at for at in self._heard_at.values() if now - at < GONE_AFTER_S]
        if any(silent_s > SILENT_AFTER_S for silent_s in lately) or len(lately) < others:
            return True
        return any(line.up_to < line.newest for line in self._lines.values())

    def up_to(self) -> dict[UUID, int]:
        """Of each process the number up to which nothing is missing."""
        return {process_id: line.up_to for process_id, line in self._lines.items()}

    def give_up(self, now: float) -> None:
        """Miss no longer what has been looked for long enough."""
        for line in self._lines.values():
            if line.missing_for_s(now) > GIVE_UP_AFTER_S:
                line.give_up(now)
