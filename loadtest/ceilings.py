"""What this machine can do at all, measured just before a workload: bare echoes a second, and appends by log_append alone.

Machines differ, and this kind drifts by half within minutes. Rule: a rate is also given as a share of a ceiling of the same
minutes, and shares are what is compared.
"""

from __future__ import annotations

from typing import Final

from loadtest import append, echo
from loadtest.result import Result
from loadtest.servers import bare_echo, migrated_databases

# As W1: so many connections, open frames and bytes; and batches of the size that W1 makes.
CONNECTIONS: Final = 50
WINDOW: Final = 4
TEXT_BYTES: Final = 200
BATCH: Final = 64


def measure(seconds: float) -> dict[str, float]:
    """Each for that long."""
    with bare_echo() as url:
        echoes = echo.measure(url, connections=CONNECTIONS, window=WINDOW, seconds=seconds, text_bytes=TEXT_BYTES)
    with migrated_databases() as servers:
        appends = append.measure(servers.database_url, seconds=seconds, text_bytes=TEXT_BYTES, batches=(BATCH,))
    return {"echoes_per_s": echoes["echoes_per_s"], "appends_per_s": appends[f"batches of {BATCH}"]}


def add_shares(result: Result, ceilings: dict[str, float]) -> None:
    """`share_of_echo`: of what arrived; `share_of_append`: of what was stored."""
    result.ceilings = ceilings
    for share, rate, ceiling in (
        ("share_of_echo", "arrived_per_s", "echoes_per_s"),
        ("share_of_append", "acknowledged_per_s", "appends_per_s"),
    ):
        if rate in result.figures and ceilings.get(ceiling):
            result.figures[share] = result.figures[rate] / ceilings[ceiling]
