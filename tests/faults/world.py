"""A world of real processes on loopback: a PostgreSQL, a Valkey, and as many `uim serve` as wanted, each of which may be killed.

`async with world(processes=2) as it:` gives `it.postgres`, `it.valkey` and `it.servers`, all ready; each has `kill`, `halt`,
`go_on`, `stop`, `start` (tests/faults/process.py). With `proxied=True` each server reaches the databases through two proxies of
its own (`server.postgres_line`, `server.redis_line`), which hang and cut. Rule: durable as in production (fsync, append-only
file); a server keeps its ports, and its databases' folders, over every restart; whatever happened, everything is ended at the end.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx
import trio

from tests import house
from tests.faults.process import NotReady, Process, Program
from tests.faults.proxy import Proxy, postgres_proxy, redis_proxy
from uim.cli import embedded
from uim.cli.child import ENVIRONMENT, Account
from uim.store import migrations

SOURCE = Path(__file__).parents[2]
ASKED_WITHIN_S = 5.0
VERIFIED_WITHIN_S = 60.0
LIMITS_OFF = {
    "UIM_MESSAGES_PER_MINUTE": "0",
    "UIM_MESSAGES_PER_HOUR": "0",
    "UIM_REQUESTS_PER_SECOND": "0",
    "UIM_REQUESTS_PER_MINUTE": "0",
}


@dataclass(eq=False)
class Server:
    """One `uim serve`. `postgres_line` and `redis_line` lead it to the databases, where the world is proxied."""

    process: Process
    url: str
    operations_url: str
    postgres_line: Proxy | None = None
    redis_line: Proxy | None = None

    @property
    def ws_url(self) -> str:
        return self.url.replace("http", "ws", 1) + "/ws"

    async def is_ready(self) -> bool:
        """Whether /health/ready says so, and answers at all."""
        return await answers(self.url, "/health/ready")

    @asynccontextmanager
    async def as_house(self) -> AsyncIterator[house.Server]:
        """For the people and devices of tests/house.py; what looks into the server's own rooms is not there."""
        async with trio.open_nursery() as clients, httpx.AsyncClient(base_url=self.url, timeout=house.WAIT_S) as http:
            yield house.Server(None, self.url, self.operations_url, http, clients, trio.Event())  # type: ignore[arg-type]  # no rooms
            clients.cancel_scope.cancel()


@dataclass(eq=False)
class World:
    """The processes. `database_url` and `redis_url` lead to the databases directly."""

    postgres: Process
    valkey: Process
    database_url: str
    redis_url: str
    folder: Path
    proxied: bool
    settings: Mapping[str, str]
    source: Path
    nursery: trio.Nursery
    servers: list[Server] = field(default_factory=list)
    _ports: list[socket.socket] = field(default_factory=list)

    @property
    def processes(self) -> list[Process]:
        return [*(server.process for server in self.servers), self.postgres, self.valkey]

    async def add_server(self, *, is_started: bool = True) -> Server:
        """One more `uim serve`, at ports of its own; it needs to know of no other."""
        postgres_line = redis_line = None
        database_url, redis_url = self.database_url, self.redis_url
        if self.proxied:
            postgres_line = await self.nursery.start(_proxy, postgres_proxy, database_url)
            redis_line = await self.nursery.start(_proxy, redis_proxy, redis_url)
            database_url, redis_url = postgres_line.url, redis_line.url
        port, operations_port = self._reserve(), self._reserve()
        environ = {name: value for name, value in os.environ.items() if not name.startswith("UIM_")}
        settings = LIMITS_OFF | {
            "UIM_BIND": f"127.0.0.1:{port}",
            "UIM_OPERATIONS_BIND": f"127.0.0.1:{operations_port}",
            "UIM_DATABASE_URL": database_url,
            "UIM_REDIS_URL": redis_url,
            **self.settings,
        }
        name = f"uim-{len(self.servers) + 1}"
        url = f"http://127.0.0.1:{port}"

        async def is_ready(_pid: int) -> bool:
            return await answers(url, "/health/ready")

        process = Process(
            Program(
                name=name,
                # From `source`: a copy in which something was changed is run as it stands there.
                command=[sys.executable, "-m", "uim", "serve"],
                log=self.folder / f"{name}.log",
                options={"env": environ | settings, "cwd": self.source},
                is_ready=is_ready,
            )
        )
        server = Server(process, url, f"http://127.0.0.1:{operations_port}", postgres_line, redis_line)
        self.servers.append(server)
        if is_started:
            await process.start()
        return server

    def _reserve(self) -> int:
        """A free port that stays the world's: bound here too, never listened on, so that whoever comes while its server is
        away is refused, and nobody else is given it."""
        kept = socket.socket()
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", 0))
        self._ports.append(kept)
        return int(kept.getsockname()[1])

    async def ready(self, within_s: float = 30.0) -> None:
        """Every server that runs says that it is ready, which needs PostgreSQL. Raises NotReady."""
        with trio.move_on_after(within_s):
            while not all([await server.is_ready() for server in self.servers if server.process.is_alive]):
                await trio.sleep(0.02)
            return
        raise NotReady(f"not every server was ready within {within_s:g} s")

    async def verify(self) -> list[str]:
        """What `uim verify` finds wrong in the database, in its words."""
        environ = {"PATH": os.environ["PATH"], "UIM_DATABASE_URL": self.database_url}
        command = [sys.executable, "-m", "uim", "verify"]
        with trio.fail_after(VERIFIED_WITHIN_S):
            ran = await trio.run_process(
                command, env=environ, cwd=self.source, capture_stdout=True, stderr=subprocess.STDOUT, check=False
            )
        return [f"uim verify: {ran.returncode}\n{ran.stdout.decode()}"] if ran.returncode else []

    def errors(self) -> Counter[str]:
        """What the servers have logged as errors, by message; and tracebacks that no log took."""
        found: Counter[str] = Counter()
        for server in self.servers:
            for line in server.process.program.log.read_text(errors="replace").splitlines():
                if line.startswith("{") and line.endswith("}") and '"level":"ERROR"' in line:  # a killed one may break off
                    found[str(json.loads(line)["message"])] += 1
                elif line.startswith("Traceback"):
                    found[line] += 1
        return found

    def tails(self, lines: int = 40) -> str:
        """The last lines of every process's log: what a failing test tells."""
        return "\n".join(f"== {process.name} ({_state(process)}):\n{process.tail(lines)}" for process in self.processes)

    def end(self) -> None:
        """Kill all that runs, at once."""
        for process in self.processes:
            process.kill()
        for kept in self._ports:
            kept.close()


def _state(process: Process) -> str:
    return "runs" if process.is_alive else f"ended, {process.exit_code}"


@asynccontextmanager
async def world(
    *,
    processes: int = 1,
    proxied: bool = False,
    settings: Mapping[str, str] | None = None,
    postgres_settings: Mapping[str, str] | None = None,
    source: Path = SOURCE,
) -> AsyncIterator[World]:
    """All of it, ready. `settings`: UIM_* of every server; `source`: where the package `uim` stands that is run."""
    given = {"UIM_JWT_KEYS": f"world:{secrets.token_hex(32)}", "UIM_LOG_LEVEL": "INFO", **(settings or {})}
    folder = Path(tempfile.mkdtemp(prefix="uim-world-"))
    try:
        databases = await trio.to_thread.run_sync(_databases, folder, dict(postgres_settings or {}))
        async with trio.open_nursery() as nursery:
            it = World(*databases, folder, proxied, given, source, nursery)
            try:
                await it.postgres.start()
                await it.valkey.start()
                await migrations.migrate(it.database_url)
                for _ in range(processes):
                    await it.add_server(is_started=False)
                for server in it.servers:
                    server.process.begin()
                for server in it.servers:
                    await server.process.ready()
                yield it
            except Exception as failure:
                failure.add_note(it.tails())
                raise
            finally:
                # No await: not even a cancellation comes between. Their folder goes too, so nothing is asked to be kept.
                it.end()
                nursery.cancel_scope.cancel()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _databases(folder: Path, postgres_settings: Mapping[str, str]) -> tuple[Process, Process, str, str]:
    """The two, not yet started, on folders that are made."""
    # PostgreSQL has an account of its own when we are root, and has to reach its data.
    folder.chmod(0o755)
    programs = embedded._find_programs()
    account = embedded._postgresql_account(programs)
    embedded._make_folder(folder, account)
    embedded._make_cluster(folder / "postgres", programs, account, is_synced=True)
    sockets = folder / "run"
    sockets.mkdir(mode=0o700)
    embedded._give(sockets, account)
    valkey_path = embedded._valkey_socket(sockets)
    database_url = f"postgresql://{embedded.DATABASE}@/{embedded.DATABASE}?host={quote(str(sockets), safe='')}"
    redis_url = f"unix://{quote(str(valkey_path))}?db=0"
    postgres = Process(_postgres_program(folder, sockets, programs, account, postgres_settings))
    return postgres, Process(_valkey_program(folder, valkey_path, programs)), database_url, redis_url


def _postgres_program(
    folder: Path, sockets: Path, programs: embedded._Programs, account: Account | None, settings: Mapping[str, str]
) -> Program:
    file = embedded._PostmasterFile(folder / "postgres")

    async def is_ready(pid: int) -> bool:
        return file.is_ready(pid)

    user = {} if account is None else {"user": account.uid, "group": account.gid, "extra_groups": []}
    return Program(
        name="postgres",
        command=embedded._postgresql_command(folder / "postgres", sockets, programs, settings),
        log=folder / "postgres.log",
        options={"env": ENVIRONMENT, "cwd": "/", **user},
        is_ready=is_ready,
        stop_signal=embedded.STOP_POSTGRESQL.steps[0][0],
    )


def _valkey_program(folder: Path, path: Path, programs: embedded._Programs) -> Program:
    async def is_ready(_pid: int) -> bool:
        return embedded._answers(path)

    return Program(
        name="valkey",
        command=embedded._valkey_command(folder / "valkey", folder / "valkey" / "valkey.pid", path, programs),
        log=folder / "valkey.log",
        options={"env": ENVIRONMENT, "cwd": "/"},
        is_ready=is_ready,
        # What a killed one left would look like a server that is ready.
        before=lambda: path.unlink(missing_ok=True),
    )


async def _proxy(made: object, url: str, *, task_status: trio.TaskStatus[Proxy] = trio.TASK_STATUS_IGNORED) -> None:
    async with made(url) as proxy:  # type: ignore[operator]  # postgres_proxy or redis_proxy
        task_status.started(proxy)
        await trio.sleep_forever()


async def answers(url: str, path: str) -> bool:
    """Whether one GET there is answered with 200. False where nobody listens, or nobody answers."""
    parts = urlsplit(url)
    assert parts.hostname is not None and parts.port is not None
    with trio.move_on_after(ASKED_WITHIN_S):
        try:
            async with await trio.open_tcp_stream(parts.hostname, parts.port) as stream:
                await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode())
                return (await stream.receive_some(16)).startswith(b"HTTP/1.1 200")
        except (OSError, trio.BrokenResourceError):
            return False
    return False
