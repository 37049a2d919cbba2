"""What the server counts about itself, for Prometheus.

One object made at the roof over a registry of its own and passed down; a room takes from it the counters it moves.
Rule: labels have few, known values (a route, a code), never a path, a user or an address.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

_FAST_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4


class Metrics:
    """All that one process tells, under the prefix `uim_`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.http_requests = Counter(
            "uim_http_requests", "HTTP requests answered.", ("method", "route", "status"), registry=registry
        )
        self.http_seconds = Histogram(
            "uim_http_request_seconds",
            "From a request's head to its answer.",
            ("method", "route"),
            buckets=_FAST_S,
            registry=registry,
        )

    def watch(self, name: str, meaning: str, read: Callable[[], float], *, counts: bool = False) -> None:
        """Tell `read()` at each scrape, as a gauge or (`counts`) a counter: a busy room keeps a plain number, nothing more."""
        self._registry.register(_Watched(name, meaning, read, counts=counts))

    def text(self) -> bytes:
        """All of the registry in Prometheus' text format."""
        return generate_latest(self._registry)


class _Watched(Collector):
    def __init__(self, name: str, meaning: str, read: Callable[[], float], *, counts: bool) -> None:
        self._name = name
        self._meaning = meaning
        self._read = read
        self._family = CounterMetricFamily if counts else GaugeMetricFamily

    def collect(self) -> Iterator[Metric]:
        yield self._family(self._name, self._meaning, value=self._read())
