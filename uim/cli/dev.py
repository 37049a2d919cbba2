"""`uim dev`: everything on this machine with one command: databases, schema, secrets, server.

The ports are taken first (a port in use is told before a database starts), then the databases, then the server; they go
in reverse. Rule: Ctrl-C at any moment leaves no process behind and no half-made folder.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import click
import trio

from uim import server
from uim.cli.binding import address_of, admin_socket, listen
from uim.cli.check import tls_fault
from uim.cli.demo import Demo
from uim.cli.embedded import Servers, embedded_servers
from uim.cli.failing import WrongSettings, log_or_exit, settings_or_exit, told
from uim.config import MOST_SOCKET_PATH_BYTES, Bind, JwtKey, Settings, process_environ
from uim.store import migrations

ADMIN_SOCKET: Final = "admin.sock"
HOST: Final = "127.0.0.1"
OURS: Final = ("UIM_BIND", "UIM_DATABASE_URL", "UIM_REDIS_URL")
EXAMPLE = """\b
Example:
  uim dev --port 8080 --data ./uim-data --demo
"""


@click.command(
    help="Run UIM on this machine: PostgreSQL, Valkey, secrets and all. Data stays between runs. Other UIM_* settings "
    f"are honoured.\n\n{EXAMPLE}"
)
@click.option("--port", type=click.IntRange(0, 65534), default=8080, show_default=True, help="0: a free one.")
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("uim-data"),
    show_default=True,
    help="The folder of the databases and secrets.",
)
@click.option("--demo", is_flag=True, help="Add users ada, bob and cyd, and conversations of theirs.")
def dev(port: int, data: Path, demo: bool) -> None:
    data = data.absolute()
    with _one_interrupt(), ExitStack() as stack:
        settings = _settings(process_environ(), port)
        sockets = _listen(stack, settings.bind)
        operations_sockets = _listen(stack, (_operations_bind(settings, sockets[0], port),))
        settings = replace(settings, bind=(address_of(sockets[0]),), operations_bind=address_of(operations_sockets[0]))
        log_or_exit(settings)
        servers = told(lambda: stack.enter_context(embedded_servers(data)))
        # Entered last, so left first: from then on nothing interrupts the stopping of the databases.
        stack.enter_context(_uninterrupted_ending())
        settings = _with_admin_socket(_with_servers(settings, servers, data), data)
        admin = told(lambda: stack.enter_context(admin_socket(settings.admin_socket)))
        told(lambda: trio.run(migrations.migrate, settings.database_url))
        examples = Demo(_url(settings)) if demo else None
        if examples is not None:
            stack.callback(examples.join)
        server.run(
            settings,
            sockets=sockets,
            operations_sockets=operations_sockets,
            admin_socket=admin,
            on_ready=lambda: _announce(settings, data, examples),
        )


@contextmanager
def _one_interrupt() -> Iterator[None]:
    """SIGTERM does what Ctrl-C does; until the server has taken both over, either ends the command, exit code 0."""
    # Set, for whoever starts us in the background of a script has it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # By way of SIGINT, for Trio makes that one safe wherever it strikes.
    former = signal.signal(signal.SIGTERM, lambda _number, _frame: signal.raise_signal(signal.SIGINT))
    try:
        yield
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
    finally:
        signal.signal(signal.SIGTERM, former)


@contextmanager
def _uninterrupted_ending() -> Iterator[None]:
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _settings(environ: dict[str, str], port: int) -> Settings:
    """The settings with stand-ins for what is known only once the databases run."""
    given = {name: value for name, value in environ.items() if name.removesuffix("_FILE") not in OURS}
    given |= {"UIM_BIND": str(Bind(HOST, port)), "UIM_DATABASE_URL": "postgresql://", "UIM_REDIS_URL": "unix://"}
    stand_ins = {
        "UIM_JWT_KEYS": f"{_STAND_IN.kid}:{_STAND_IN.secret.decode()}",
        "UIM_OPERATIONS_BIND": str(_BESIDE),
        "UIM_LOG_FORMAT": "console",
    }
    given |= {name: value for name, value in stand_ins.items() if not (given.get(name) or given.get(f"{name}_FILE"))}
    settings = settings_or_exit(given)
    if fault := tls_fault(settings):
        raise WrongSettings(fault)
    return settings


_STAND_IN: Final = JwtKey("stand-in", b"-" * 32)
_BESIDE: Final = Bind(HOST, 0)


def _operations_bind(settings: Settings, public: socket.socket, port: int) -> Bind:
    beside = port != 0 and settings.operations_bind == _BESIDE
    return Bind(HOST, address_of(public).port + 1) if beside else settings.operations_bind


def _listen(stack: ExitStack, binds: tuple[Bind, ...]) -> list[socket.socket]:
    sockets = told(lambda: listen(binds))
    for opened in sockets:
        stack.enter_context(opened)
    return sockets


def _with_servers(settings: Settings, servers: Servers, data: Path) -> Settings:
    keys = (_kept_key(data / "jwt_key"),) if settings.jwt_keys == (_STAND_IN,) else settings.jwt_keys
    return replace(settings, database_url=servers.database_url, redis_url=servers.redis_url, jwt_keys=keys)


def _with_admin_socket(settings: Settings, data: Path) -> Settings:
    """In the data folder, unless one is set; a folder whose name is too long for a socket goes without."""
    path = data / ADMIN_SOCKET
    if settings.admin_socket is not None or len(os.fsencode(path)) > MOST_SOCKET_PATH_BYTES:
        return settings
    return replace(settings, admin_socket=path)


def _kept_key(path: Path) -> JwtKey:
    """The signing key of this data folder, made at its first use, readable by its owner alone."""
    if not path.exists():
        aside = path.with_suffix(".unfinished")
        aside.unlink(missing_ok=True)
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        aside.rename(path)
    return JwtKey("dev", path.read_text().strip().encode())


def _url(settings: Settings) -> str:
    return f"{'https' if settings.tls_cert else 'http'}://{settings.bind[0]}"


def _announce(settings: Settings, data: Path, demo: Demo | None) -> None:
    url = _url(settings)
    curl = f"curl -s{'k' if settings.tls_cert else ''}"
    json = "-H 'Content-Type: application/json'"
    token = """python3 -c 'import json, sys; print(json.load(sys.stdin)["access_token"])'"""
    password = "Wonderland-1865"
    alice = f'{{"username": "alice", "email": "alice@example.com", "password": "{password}"}}'
    click.echo(f"""
UIM is ready: {url}
(health and metrics: http://{settings.operations_bind}, data: {data}, admin socket: {settings.admin_socket or "none"})

Try it from another terminal:
  {curl} {url}/api/auth/register {json} -d '{alice}'; echo
  TOKEN=$({curl} {url}/api/auth/login {json} -d '{{"username": "alice", "password": "{password}"}}' | {token})
  {curl} {url}/api/users/me -H "Authorization: Bearer $TOKEN"; echo

Ctrl-C stops it.""")
    sys.stdout.flush()
    if demo is not None:
        demo.start()
