"""How long things took: counts by microsecond while a run is on (`Counts`), an HDR histogram when it is over (`Latencies`).

Histograms of several processes and runs are added, never their percentiles. Rule: nothing is counted here while the server is
being measured: nanoseconds are put in an array as they come, and counted once a second (`count_us`).
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable
from typing import Final, Self

from hdrh.codec import HdrCookieException, HdrHistogramSettingsException, HdrLengthException
from hdrh.histogram import HdrHistogram

# From a microsecond to an hour, three significant digits.
LEAST_US: Final = 1
MOST_US: Final = 3_600_000_000
DIGITS: Final = 3
# Microseconds -> how often.
Counts = Counter[int]
PERCENTILES: Final = {"p50": 50.0, "p95": 95.0, "p99": 99.0, "p999": 99.9}


def count_us(times_ns: Iterable[int]) -> Counts:
    return Counter(ns // 1000 for ns in times_ns)


class Latencies:
    """A histogram, in milliseconds to the outside."""

    def __init__(self, counts: Counts | None = None) -> None:
        self._histogram = HdrHistogram(LEAST_US, MOST_US, DIGITS)
        self.add_counts(counts or Counter())

    @classmethod
    def decode(cls, text: str) -> Self:
        """What `encode` gave, from this or any other HDR histogram library. Raises ValueError for what is no histogram."""
        made = cls()
        try:
            made._histogram.decode_and_add(text.encode("ascii"))
        except (AttributeError, TypeError, zlib.error, HdrCookieException, HdrLengthException, HdrHistogramSettingsException) as why:
            raise ValueError(f"a damaged histogram: {why}") from why
        return made

    def encode(self) -> str:
        return bytes(self._histogram.encode()).decode("ascii")

    def add_counts(self, counts: Counts) -> None:
        for us, count in counts.items():
            self._histogram.record_value(min(max(us, LEAST_US), MOST_US), count)

    def add(self, other: Latencies) -> None:
        self._histogram.add(other._histogram)

    @property
    def count(self) -> int:
        return int(self._histogram.get_total_count())

    @property
    def max_ms(self) -> float:
        return float(self._histogram.get_max_value()) / 1000

    def percentile_ms(self, percent: float) -> float:
        return float(self._histogram.get_value_at_percentile(percent)) / 1000

    def figures(self, prefix: str = "") -> dict[str, float]:
        """p50_ms, p95_ms, p99_ms, p999_ms and max_ms, each name after the prefix; nothing of an empty histogram."""
        if not self.count:
            return {}
        found = {f"{prefix}{name}_ms": self.percentile_ms(percent) for name, percent in PERCENTILES.items()}
        return found | {f"{prefix}max_ms": self.max_ms}
