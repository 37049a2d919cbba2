"""The server under load, as a workload sees it: where it is, and what may be asked of it besides its protocol.

Rule: only the URL is always known. A server elsewhere has no process here to look at, and perhaps no database to count in; a
workload that cannot go without says so by `Missing`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


class Broken(Exception):
    """A promise that the run saw broken: it gives no figures."""


class Missing(Exception):
    """What the workload needs and was not given: a database's URL, a process on this machine."""


@dataclass(frozen=True, slots=True)
class Target:
    """`pid`: the server's process, if it is on this machine. `database_url`: its PostgreSQL, if a run may look into it."""

    url: str
    pid: int | None = None
    database_url: str | None = None

    @property
    def websocket_url(self) -> str:
        return self.url.replace("http", "ws", 1) + "/ws"

    def processor_s(self) -> float | None:
        """Seconds of processor time that its process has had."""
        if self.pid is None:
            return None
        # After the name, which may hold anything but ends with the last bracket: state is field 3, utime 14, stime 15.
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_kb(self) -> int | None:
        """Resident memory of its process."""
        if self.pid is None:
            return None
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
