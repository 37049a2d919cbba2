"""How the server is: health for everybody in one word, for its operators in full, and metrics.

Redis can be lost without harm to a promise, so it failing is `degraded`; PostgreSQL failing is `failed`. Rule: the
public port tells the word alone; why, and what is counted, stay on the operations port.
"""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Final, Literal

import msgspec
import structlog
import trio
from quart import Response
from quart_trio import QuartTrio

from uim.api.answers import answer
from uim.api.app import new_app
from uim.api.exchange import response_of
from uim.metrics import CONTENT_TYPE, Metrics

Status = Literal["ok", "degraded", "failed"]
Probe = Callable[[], Awaitable[object]]

PROBE_S: Final = 2.0
# /health is public and asks the database: however often it is called, it asks this often.
FRESH_S: Final = 1.0
WITHOUT_REDIS: Final = (
    "presence and typing are known within one process only; nothing can be queued if PostgreSQL goes too; messages, receipts, "
    "sync and sign-in go on, between processes up to half a second later"
)
_SEVERITY: Final[dict[Status, int]] = {"ok": 0, "degraded": 1, "failed": 2}

log = structlog.get_logger("uim.operations")


class Check(msgspec.Struct, frozen=True, omit_defaults=True):
    """One dependency: its state, and, where it is not ok, why, and what its users notice meanwhile."""

    status: Status
    error: str | None = None
    meanwhile: str | None = None


class Health(msgspec.Struct, frozen=True):
    """The server's state is that of its worst check."""

    status: Status
    checks: dict[str, Check]


class Word(msgspec.Struct, frozen=True):
    """What the public is told."""

    status: Status


class Checkup:
    """Asks how everything is. Probes raise when what they ask is away; each has a deadline of `probe_s`.

    Callers at once share one round, and an answer serves for a second.
    """

    def __init__(self, *, postgresql: Probe, redis: Probe, disk: Path, probe_s: float = PROBE_S) -> None:
        self._postgresql = postgresql
        self._redis = redis
        self._disk = disk
        self._probe_s = probe_s
        self._one_round = trio.Lock()
        # A stuck network disk keeps its thread: one thread, and not one more at each question.
        self._disk_thread = trio.CapacityLimiter(1)
        self._last: tuple[float, Health] | None = None
        # What was last wrong with each: asked every second, it is told when it changes.
        self._told: dict[str, str] = {}

    async def health(self) -> Health:
        """The state now, or of at most a second ago. Cancelled, nothing is kept."""
        async with self._one_round:
            now = trio.current_time()
            if self._last is not None and now - self._last[0] < FRESH_S:
                return self._last[1]
            health = await self._ask_all()
            self._last = (trio.current_time(), health)
            return health

    async def _ask_all(self) -> Health:
        checks: dict[str, Check] = {}

        async def ask(name: str, probe: Callable[[], Awaitable[Check]]) -> None:
            checks[name] = await probe()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "postgresql", lambda: self._ask("postgresql", self._postgresql, "failed"))
            nursery.start_soon(ask, "redis", lambda: self._ask("redis", self._redis, "degraded", meanwhile=WITHOUT_REDIS))
            nursery.start_soon(ask, "disk", self._ask_disk)
            nursery.start_soon(ask, "memory", _ask_memory)
        return Health(worst(check.status for check in checks.values()), dict(sorted(checks.items())))

    async def _ask(self, name: str, probe: Probe, if_away: Status, *, meanwhile: str | None = None) -> Check:
        # A probe may fail in any way that its driver has: whatever it is, it is the answer to the question.
        try:
            with trio.fail_after(self._probe_s):
                await probe()
        except trio.TooSlowError:
            return Check(if_away, f"no answer within {self._probe_s:g} s", meanwhile)
        except Exception as error:
            trouble = f"{type(error).__name__}: {error}"
            if self._told.get(name) != trouble:
                log.warning("a dependency is away", name=name, exc_info=error)
            self._told[name] = trouble
            return Check(if_away, trouble, meanwhile)
        self._told.pop(name, None)
        return Check("ok")

    async def _ask_disk(self) -> Check:
        try:
            with trio.fail_after(self._probe_s):
                usage = await trio.to_thread.run_sync(
                    shutil.disk_usage, self._disk, abandon_on_cancel=True, limiter=self._disk_thread
                )
        except (trio.TooSlowError, OSError) as error:
            return Check("failed", f"{self._disk}: {error or 'no answer'}")
        return _check_free("disk", usage.free / usage.total)


def worst(statuses: Iterable[Status]) -> Status:
    """The worst of some statuses, "ok" of none."""
    return max(statuses, key=_SEVERITY.__getitem__, default="ok")


def judge_free(free: float) -> Status:
    """A share of free space, 0 to 1: under a tenth is degraded, under a fiftieth failed."""
    if free < 0.02:
        return "failed"
    return "degraded" if free < 0.10 else "ok"


def _check_free(what: str, free: float) -> Check:
    status = judge_free(free)
    return Check(status, None if status == "ok" else f"{free:.1%} of the {what} is free")


async def _ask_memory() -> Check:
    try:
        return _check_free("memory", free_memory(Path("/proc"), Path("/sys/fs/cgroup")))
    except (OSError, KeyError, ValueError) as error:
        return Check("degraded", f"memory can't be read: {error}")


def free_memory(proc: Path, cgroup: Path) -> float:
    """The share of memory that is free, of the machine or of the cgroup's limit, whichever is less."""
    machine = _amounts((proc / "meminfo").read_text().replace(":", ""))
    free = machine["MemAvailable"] / machine["MemTotal"]
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        # Cached files count as used there, though the kernel gives them back at once.
        used -= _amounts((cgroup / "memory.stat").read_text()).get("inactive_file", 0)
    except FileNotFoundError:
        return free  # No limit of our own, or cgroups of the first kind.
    return free if limit == "max" else min(free, 1 - used / int(limit))


def _amounts(table: str) -> dict[str, int]:
    rows = (line.split() for line in table.splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1}


def add_public_health(app: QuartTrio, checkup: Checkup, *, is_draining: Callable[[], bool] = lambda: False) -> None:
    """`/health`, `/health/ready`, `/health/live` on the public application: one word each.

    Ready is 503 while a promise can't be kept (failed) and while the server drains, so that a balancer looks elsewhere;
    live asks nothing, for a restart helps no dependency.
    """

    @app.get("/health")
    async def tell_health() -> Response:
        status = (await checkup.health()).status
        return response_of(answer(Word(status), 503 if status == "failed" else 200))

    _add_short_health(app, checkup, is_draining)


def _add_short_health(app: QuartTrio, checkup: Checkup, is_draining: Callable[[], bool]) -> None:
    @app.get("/health/ready")
    async def tell_readiness() -> Response:
        status = "failed" if is_draining() else (await checkup.health()).status
        return response_of(answer(Word(status), 503 if status == "failed" else 200))

    @app.get("/health/live")
    async def tell_life() -> Response:
        return response_of(answer(Word("ok")))


def operations_app(
    checkup: Checkup, metrics: Metrics, *, is_draining: Callable[[], bool] = lambda: False
) -> QuartTrio:
    """The application of the operations port: `/health` in full, the two short ones, `/metrics`."""
    app = new_app()

    @app.get("/metrics")
    async def tell_metrics() -> Response:
        return Response(metrics.text(), content_type=CONTENT_TYPE)

    @app.get("/health")
    async def tell_full_health() -> Response:
        health = await checkup.health()
        return response_of(answer(health, 503 if health.status == "failed" else 200))

    _add_short_health(app, checkup, is_draining)
    return app
