"""`uim serve` as systemd runs it: its sockets are bound here, outlive it, and are handed over to each new process.

`service = Service(settings, folder)`, then `begin`, `ready`, `terminate`, `ended`. Rule: how long something took is judged without
the time for which a busy machine kept the process, or this one, from running (`starved_s`).
"""

from __future__ import annotations

import os
import resource
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import trio

from tests.faults.process import Process, Program
from tests.faults.world import LIMITS_OFF, answers
from tests.systemd import handing_over
from tests.test_cli import environment
from uim.cli.binding import BACKLOG

OPEN_FILES = 8_192
ANSWERED_WITHIN_S = 20.0


def allow_open_files() -> None:
    """This process's limit, and that of the processes it starts, up to what a thousand sockets need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < OPEN_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES, hard), hard))


def starved_s(pid: int) -> float:
    """How long a process's main thread has been ready to run while others ran instead."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except FileNotFoundError:
        return 0.0


async def ask(port: int, path: str, token: str | None = None) -> str:
    """One GET, its whole answer, head and all; what came of it if the connection is torn."""
    bearer = f"Authorization: Bearer {token}\r\n" if token else ""
    answer = b""
    with trio.fail_after(ANSWERED_WITHIN_S):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: uim\r\nConnection: close\r\n{bearer}\r\n".encode())
            with suppress(trio.BrokenResourceError):
                async for piece in stream:
                    answer += piece
    return answer.decode()


class Service:
    """One service, at most one process at a time. `public` may be closed by a test: then nobody holds the port but the process.

    `starved_at_the_end_s`: for how long the last process could not run after it was told to end.
    """

    def __init__(self, settings: Mapping[str, str], folder: Path) -> None:
        self.public = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        self._operations = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.public.getsockname()[1])
        self.starved_at_the_end_s = 0.0
        self.operations_url = f"http://127.0.0.1:{self._operations.getsockname()[1]}"
        binds = {"UIM_BIND": "fd://public", "UIM_OPERATIONS_BIND": "fd://operations"}
        sockets = {"public": self.public, "operations": self._operations}
        self.process = Process(
            Program(
                name="uim",
                command=handing_over(sockets, "serve"),
                log=folder / "uim.log",
                options={
                    "env": environment(**LIMITS_OFF, **settings, **binds),
                    "pass_fds": tuple(opened.fileno() for opened in sockets.values()),
                },
                is_ready=self._is_ready,
            )
        )

    async def _is_ready(self, _pid: int) -> bool:
        return await answers(self.operations_url, "/health/ready")

    async def ask_operations(self, path: str) -> str:
        return await ask(int(self._operations.getsockname()[1]), path)

    def terminate(self) -> None:
        os.kill(self.process.pid, signal.SIGTERM)

    async def ended(self, within_s: float) -> float:
        """Wait until the process has ended, with exit code 0; seconds, but for those it could not run."""
        began_at, starved_before_s = trio.current_time(), starved_s(self.process.pid)
        starved_last_s = starved_before_s
        with trio.move_on_after(within_s):
            while self.process.is_alive:
                starved_last_s = max(starved_last_s, starved_s(self.process.pid))
                await trio.sleep(0.02)
        assert self.process.exit_code == 0, f"{self.process.exit_code}: {self.process.tail()}"
        self.starved_at_the_end_s = starved_last_s - starved_before_s
        return trio.current_time() - began_at - self.starved_at_the_end_s


@contextmanager
def service(settings: Mapping[str, str], folder: Path) -> Iterator[Service]:
    """Not yet started; killed at the end, if it still runs."""
    made = Service(settings, folder)
    try:
        yield made
    finally:
        made.process.kill()
        made.public.close()
        made._operations.close()
