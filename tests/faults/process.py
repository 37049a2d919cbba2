"""One real server process that a test may kill, halt and start again on what it left.

`await process.start()` waits until it is ready; `kill()` is kill -9 of it and of every child, at once; `halt()` and `go_on()` are
SIGSTOP and SIGCONT. Rule: only processes that were started here are signalled, and none outlives the test: not after a
failure, and not after an exception that tore the event loop (then at the interpreter's exit).
"""

from __future__ import annotations

import signal
import subprocess
import time
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import trio

POLL_S = 0.02
# A machine on which everything else runs too; a process that is ready sooner is seen sooner.
READY_WITHIN_S = 60.0
GONE_WITHIN_S = 10.0
TAIL_LINES = 40


class Ended(Exception):
    """The process ended by itself; its last lines."""


class NotReady(Exception):
    """It did not become ready in time; its last lines."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """What is run. `is_ready(pid)` is asked until true; `before` is called right before each start."""

    name: str
    command: Sequence[str | Path]
    log: Path
    options: Mapping[str, Any]
    is_ready: Callable[[int], Awaitable[bool]]
    before: Callable[[], None] = lambda: None
    stop_signal: signal.Signals = signal.SIGTERM


class Process:
    """A program's process: one at a time, as often as wanted. `starts` counts them."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.starts = 0
        self._popen: subprocess.Popen[bytes] | None = None
        self._last_resort: weakref.finalize[..., Any] | None = None

    @property
    def name(self) -> str:
        return self.program.name

    @property
    def pid(self) -> int:
        assert self._popen is not None, f"{self.name} was never started"
        return self._popen.pid

    @property
    def is_alive(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        """As subprocess tells it: negative for a signal, None while it runs."""
        return None if self._popen is None else self._popen.poll()

    # -- beginning --------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start it and wait for nothing."""
        assert not self.is_alive, f"{self.name} runs already"
        self.program.before()
        with self.program.log.open("ab") as log:
            popen = subprocess.Popen(
                [str(part) for part in self.program.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **self.program.options,
            )
        self._popen = popen
        self._last_resort = weakref.finalize(self, _end, popen)
        self.starts += 1

    async def ready(self, within_s: float = READY_WITHIN_S) -> None:
        """Wait until it serves. Raises Ended if it ended meanwhile, NotReady."""
        with trio.move_on_after(within_s):
            while True:
                if not self.is_alive:
                    raise Ended(f"{self.name} ended with {self.exit_code}:\n{self.tail()}")
                if await self.program.is_ready(self.pid):
                    return
                await trio.sleep(POLL_S)
        raise NotReady(f"{self.name} was not ready within {within_s:g} s:\n{self.tail()}")

    async def start(self, within_s: float = READY_WITHIN_S) -> None:
        """Start it, on whatever its predecessor left, and wait until it serves."""
        self.begin()
        await self.ready(within_s)

    # -- ending -----------------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """kill -9 of it and of all its children, and wait until they are gone (milliseconds). Nothing if it has ended."""
        if self._popen is not None:
            _end(self._popen)
        if self._last_resort is not None:
            self._last_resort.detach()

    def halt(self) -> None:
        """SIGSTOP, to it and to its children: it holds its connections, and says nothing."""
        for process in _tree(self.pid):
            with suppress(psutil.NoSuchProcess):
                process.suspend()

    def go_on(self) -> None:
        for process in reversed(_tree(self.pid)):
            with suppress(psutil.NoSuchProcess):
                process.resume()

    async def stop(self, within_s: float = 20.0) -> None:
        """Ask it to stop, as its operator would, and wait; killed if it does not within that time (AssertionError)."""
        assert self._popen is not None
        self._popen.send_signal(self.program.stop_signal)
        with trio.move_on_after(within_s):
            while self.is_alive:
                await trio.sleep(POLL_S)
        was_slow = self.is_alive
        self.kill()
        assert not was_slow, f"{self.name} did not stop within {within_s:g} s:\n{self.tail()}"

    # -- looking ----------------------------------------------------------------------------------------------------------

    def tail(self, lines: int = TAIL_LINES) -> str:
        """The last lines that it, and its predecessors, said."""
        if not self.program.log.exists():
            return ""
        return "\n".join(self.program.log.read_text(errors="replace").splitlines()[-lines:])


def _tree(pid: int) -> list[psutil.Process]:
    """A process, halted, and all its children: halted first, or it would make one more while they are looked for."""
    try:
        parent = psutil.Process(pid)
        parent.suspend()
        # The signal is under way when suspend() returns; on another processor it may just be forking.
        deadline = time.monotonic() + GONE_WITHIN_S
        while parent.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
            assert time.monotonic() < deadline, f"process {pid} does not halt"
            time.sleep(0.0005)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _end(popen: subprocess.Popen[bytes]) -> None:
    if popen.poll() is not None:
        return
    tree = _tree(popen.pid)
    for process in tree:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    popen.wait(GONE_WITHIN_S)
    deadline = time.monotonic() + GONE_WITHIN_S
    while any(_is_there(process) for process in tree[1:]):
        assert time.monotonic() < deadline, f"children of process {popen.pid} do not end"
        time.sleep(0.002)


def _is_there(process: psutil.Process) -> bool:
    # An orphan that nobody reaps stays a zombie; it holds nothing any more.
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
