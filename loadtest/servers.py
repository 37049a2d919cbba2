"""What a run is pointed at, started for it alone: the whole server on fresh databases, or the databases alone, or an echo.

Rule: the server under load is a process of its own, as in production: `uim serve`, fsync and append-only file on, limits off.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import click
import trio

from loadtest.people import Api
from loadtest.target import Target
from uim.cli.binding import BACKLOG
from uim.cli.embedded import Servers, embedded_servers
from uim.store import migrations

STOP_WITHIN_S: Final = 20.0
LIMITS_OFF: Final = {
    "UIM_MESSAGES_PER_MINUTE": "0",
    "UIM_MESSAGES_PER_HOUR": "0",
    "UIM_REQUESTS_PER_SECOND": "0",
    "UIM_REQUESTS_PER_MINUTE": "0",
}


@contextmanager
def migrated_databases() -> Iterator[Servers]:
    """PostgreSQL and Valkey on a fresh folder, with the schema."""
    folder = Path(tempfile.mkdtemp(prefix="uim-load-"))
    # PostgreSQL has an account of its own when we are root, and has to reach its data.
    folder.chmod(0o755)
    try:
        with embedded_servers(folder / "data") as servers:
            trio.run(migrations.migrate, servers.database_url)
            yield servers
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def whole_server(settings: Mapping[str, str] = LIMITS_OFF, processes: int = 1) -> Iterator[Target]:
    """A server that is ready, on fresh databases, with those settings."""
    with migrated_databases() as servers, server_on(servers, settings, processes) as target:
        yield target


@contextmanager
def server_on(servers: Servers, settings: Mapping[str, str] = LIMITS_OFF, processes: int = 1) -> Iterator[Target]:
    """The same on databases that the run itself looks into."""
    secret = secrets.token_hex(32)
    given = dict(settings) | {
        "UIM_DATABASE_URL": servers.database_url,
        "UIM_REDIS_URL": servers.redis_url,
        "UIM_JWT_KEYS": f"load:{secret}",
        "UIM_LOG_LEVEL": "WARN",
    }
    with ExitStack() as running:

        def start(port: int = 0) -> Target:
            return replace(running.enter_context(_serving(given, port)), signing_key=("load", secret.encode()), restart=restart)

        def restart() -> Target:
            running.close()
            return start(target.port)

        target = start()
        yield replace(target, others=tuple(running.enter_context(_serving(given, 0)) for _ in range(processes - 1)))


@contextmanager
def _serving(settings: Mapping[str, str], port: int) -> Iterator[Target]:
    """`uim serve`, ready, on that port."""
    with _listening(port) as public, _listening() as operations:
        binds = {"UIM_BIND": f"fd://{public.fileno()}", "UIM_OPERATIONS_BIND": f"fd://{operations.fileno()}"}
        url, operations_url = (f"http://127.0.0.1:{each.getsockname()[1]}" for each in (public, operations))
        handed_over = (public.fileno(), operations.fileno())
        with _process(["-m", "uim", "serve"], dict(settings) | binds, handed_over) as pid:
            # Were it open here too, a client of a server that ended would wait instead of being refused.
            public.close()
            with closing(Api(url)) as api:
                api.call("GET", "/health/ready")
            click.echo(f"uim serve is process {pid}, at {url}", err=True)
            yield Target(url, pid, settings["UIM_DATABASE_URL"], operations_url)


@contextmanager
def bare_echo() -> Iterator[str]:
    """trio-websocket sending back what it gets, in a process of its own; its URL."""
    with _listening() as listening, _process(["-m", "loadtest.echoing", str(listening.fileno())], {}, (listening.fileno(),)):
        yield f"ws://127.0.0.1:{listening.getsockname()[1]}/"


def _listening(port: int = 0) -> socket.socket:
    return socket.create_server(("127.0.0.1", port), backlog=BACKLOG)


@contextmanager
def _process(arguments: list[str], settings: Mapping[str, str], handed_over: tuple[int, ...]) -> Iterator[int]:
    """This Python with those arguments; ended by SIGTERM at the end, whatever happens."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("UIM_")} | dict(settings)
    process = subprocess.Popen([sys.executable, *arguments], env=environ, pass_fds=handed_over, stdin=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
