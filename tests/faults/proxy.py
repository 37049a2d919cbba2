"""A proxy between the server under test and PostgreSQL or Redis, on which connections break and hang at will.

`async with postgres_proxy(database_url) as proxy:` gives `proxy.url`; then `cut`, `hang`, `refuse` and their ends, and `lose`,
for an answer that never arrives. Rule: what the proxy does is exact, never timed: a test says at which request the line breaks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

import trio

# How PostgreSQL ends each of its answers: ReadyForQuery, whatever its state.
READY_FOR_QUERY = b"Z\x00\x00\x00\x05"
PIECE_BYTES = 64 * 1024
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError)


@dataclass
class Loss:
    """An answer that will be lost: that to the first request for which `is_it` holds. `happened` is set once the line is cut."""

    is_it: Callable[[bytes], bool]
    carried_out: bool
    first_bytes: int = 0
    happened: trio.Event = field(default_factory=trio.Event)


@dataclass(eq=False)
class _Line:
    client: trio.abc.Stream
    server: trio.abc.Stream
    scope: trio.CancelScope
    loss: Loss | None = None
    swallowed: bytes = b""
    is_answered: bool = False


class Proxy:
    """Between any number of clients and one server on a Unix socket."""

    def __init__(self, server_path: str, whole_answer: bytes) -> None:
        self._server_path = server_path
        self._whole_answer = whole_answer
        self._lines: set[_Line] = set()
        self._losses: list[Loss] = []
        self._flows = trio.Event()
        self._flows.set()
        self._refuses = False
        self.accepted = 0
        self.url = ""

    # -- what goes wrong --------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Tear every connection that is open now."""
        for line in self._lines:
            line.scope.cancel()

    def refuse(self) -> None:
        """Tear every connection, and each new one as soon as it is made, until `accept`."""
        self._refuses = True
        self.cut()

    def accept(self) -> None:
        self._refuses = False

    def hang(self) -> None:
        """Not a byte passes any more, in either direction, and no connection is closed; until `flow`."""
        if self._flows.is_set():
            self._flows = trio.Event()

    def flow(self) -> None:
        self._flows.set()

    def lose(self, is_it: Callable[[bytes], bool] = bool, *, carried_out: bool, first_bytes: int = 0) -> Loss:
        """Cut the connection of the next request for which `is_it` holds.

        `carried_out`: the server gets the request and has given its whole answer, of which the client sees the `first_bytes`
        alone (by default none: a commit that nobody was told of). Else the server never gets the request.
        """
        loss = Loss(is_it, carried_out, first_bytes)
        self._losses.append(loss)
        return loss

    # -- the lines --------------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[int]) -> None:
        """Carry until cancelled. Started with the TCP port."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._carry, listeners)
            task_status.started(listeners[0].socket.getsockname()[1])

    async def _carry(self, client: trio.SocketStream) -> None:
        self.accepted += 1
        async with client:
            if self._refuses:
                return
            try:
                server = await trio.open_unix_socket(self._server_path)
            except OSError:
                return  # the server is away: whoever comes is torn, as where nobody listens
            async with server, trio.open_nursery() as nursery:
                line = _Line(client, server, nursery.cancel_scope)
                self._lines.add(line)
                nursery.start_soon(self._pass, line, client, self._request)
                nursery.start_soon(self._pass, line, server, self._answer)
        self._lines.discard(line)

    async def _pass(self, line: _Line, source: trio.abc.Stream, carry: Callable[[_Line, bytes], bool | bytes]) -> None:
        with suppress(*_GONE):
            while data := bytes(await source.receive_some(PIECE_BYTES)):
                await self._flows.wait()
                target = line.server if source is line.client else line.client
                if passes := carry(line, data):
                    await target.send_all(data if passes is True else passes)
                if line.loss is not None and line.is_answered:
                    line.loss.happened.set()
                    break
        line.scope.cancel()

    def _request(self, line: _Line, data: bytes) -> bool:
        for loss in self._losses:
            if loss.is_it(data):
                self._losses.remove(loss)
                if loss.carried_out:
                    line.loss = loss
                    return True
                loss.happened.set()
                line.scope.cancel()
                return False
        return True

    def _answer(self, line: _Line, data: bytes) -> bool | bytes:
        if line.loss is None:
            return True
        was = len(line.swallowed)
        line.swallowed += data
        line.is_answered = self._whole_answer in line.swallowed
        return data[: max(line.loss.first_bytes - was, 0)]


@asynccontextmanager
async def postgres_proxy(database_url: str) -> AsyncIterator[Proxy]:
    parts = urlsplit(database_url)
    folder = parse_qs(parts.query)["host"][0]
    async with _running(Proxy(f"{folder}/.s.PGSQL.5432", READY_FOR_QUERY)) as (proxy, port):
        proxy.url = f"postgresql://{parts.username}@127.0.0.1:{port}{parts.path}?sslmode=disable&gssencmode=disable"
        yield proxy


@asynccontextmanager
async def redis_proxy(redis_url: str) -> AsyncIterator[Proxy]:
    async with _running(Proxy(unquote(urlsplit(redis_url).path), b"\r\n")) as (proxy, port):
        proxy.url = f"redis://127.0.0.1:{port}/0"
        yield proxy


@asynccontextmanager
async def _running(proxy: Proxy) -> AsyncIterator[tuple[Proxy, int]]:
    async with trio.open_nursery() as nursery:
        port = await nursery.start(proxy.run)
        yield proxy, port
        nursery.cancel_scope.cancel()
