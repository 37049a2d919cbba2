"""The server under load, as a workload sees it: where it is, and what may be asked of it besides its protocol.

Rule: only the URL is always known. A server elsewhere has no process here to look at, and perhaps no database to count in; a
workload that cannot go without says so by `Missing`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from urllib.request import urlopen

METRICS_WITHIN_S: Final = 5.0


class Broken(Exception):
    """A promise that the run saw broken: it gives no figures."""


class Missing(Exception):
    """What the workload needs and was not given: a database's URL, a process on this machine."""


@dataclass(frozen=True, slots=True)
class Target:
    """`pid`: the server's process, if it is on this machine. `database_url`: its PostgreSQL, if a run may look into it.

    Of a server that was started for the run alone: `operations_url`, where its metrics are; `signing_key`, (kid, secret) of its
    tokens; `restart()` ends it as an operator does and gives the one that has its place.
    """

    url: str
    pid: int | None = None
    database_url: str | None = None
    operations_url: str | None = None
    signing_key: tuple[str, bytes] | None = field(default=None, repr=False)
    restart: Callable[[], Target] | None = None
    # The server's other processes, on the same database.
    others: tuple[Target, ...] = ()

    @property
    def websocket_url(self) -> str:
        return self.url.replace("http", "ws", 1) + "/ws"

    @property
    def websocket_urls(self) -> list[str]:
        """Of all its processes."""
        return [each.websocket_url for each in (self, *self.others)]

    @property
    def port(self) -> int:
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    def processor_s(self) -> float | None:
        """Seconds of processor time that its processes have had."""
        if self.pid is None:
            return None
        return self._own_processor_s(self.pid) + sum(each.processor_s() or 0.0 for each in self.others)

    @staticmethod
    def _own_processor_s(pid: int) -> float:
        # After the name, which may hold anything but ends with the last bracket: state is field 3, utime 14, stime 15.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_kb(self) -> int | None:
        """Resident memory of its process."""
        if self.pid is None:
            return None
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))

    def open_files(self) -> int | None:
        """Descriptors that its process has open."""
        return None if self.pid is None else len(os.listdir(f"/proc/{self.pid}/fd"))

    def metric(self, name: str) -> float | None:
        """A plain one of its metrics, if they can be read."""
        if self.operations_url is None:
            return None
        with urlopen(f"{self.operations_url}/metrics", timeout=METRICS_WITHIN_S) as answer:
            lines = answer.read().decode().splitlines()
        return next((float(line.split()[1]) for line in lines if line.startswith(f"{name} ")), None)
