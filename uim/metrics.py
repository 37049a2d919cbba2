"""What the server counts about itself, for Prometheus.

One object made at the roof over a registry of its own and passed down; a room takes from it the counters it moves.
Rule: labels have few, known values (a route, a code), never a path, a user or an address.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

_FAST_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BATCH: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4


class Metrics:
    """All counters (`_total`), gauges and histograms of one process, under the prefix `uim_`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._add_fronts()
        self._add_rooms()

    def _add_fronts(self) -> None:
        registry = self._registry
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
        self.strangers = Gauge(
            "uim_connections_not_signed_in", "Connections that have not signed in.", registry=registry
        )
        self.sessions = Gauge("uim_sessions", "WebSocket connections signed in.", registry=registry)
        self.cuts = Counter("uim_cuts", "Sessions ended by the server, by close code.", ("code",), registry=registry)
        self.refusals = Counter("uim_refusals", "ERROR frames, by code.", ("code",), registry=registry)

    def _add_rooms(self) -> None:
        registry = self._registry
        self.messages = Counter(
            "uim_messages", "Sends, by outcome: sent, duplicate, queued, refused.", ("outcome",), registry=registry
        )
        self.send_seconds = Histogram(
            "uim_send_seconds", "From a send read to its durable answer.", buckets=_FAST_S, registry=registry
        )
        self.append_entries = Histogram(
            "uim_append_entries", "Entries in one append to the log.", buckets=_BATCH, registry=registry
        )
        self.append_seconds = Histogram(
            "uim_append_seconds", "One append to the log.", buckets=_FAST_S, registry=registry
        )
        self.database_seconds = Histogram(
            "uim_database_seconds", "A connection held from the pool.", buckets=_FAST_S, registry=registry
        )
        self.database_busy = Gauge("uim_database_busy", "Connections taken from the pool.", registry=registry)
        self.redis_commands = Counter(
            "uim_redis_commands", "Redis commands, by outcome: ok, failed.", ("outcome",), registry=registry
        )
        self.dead_letters = Counter("uim_dead_letters", "Entries given up; look at the log.", registry=registry)

    def text(self) -> bytes:
        """All of the registry in Prometheus' text format."""
        return generate_latest(self._registry)
