"""One HTTP/1.1 connection: its reading, its writing, its deadlines, and who it is answered by.

Rule: one task reads a connection and answers it; beside it only a watch, on a client that may have gone while an answer takes
long. This file and protocol.py alone touch Hypercorn's private names; tests/test_http_front.py tells when a release moves them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from math import inf
from time import time
from typing import Any, Final, cast

import hypercorn.events
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, RawData, Updated
from hypercorn.protocol import ProtocolWrapper
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState
from hypercorn.utils import wrap_app

from uim.admission import Peer
from uim.api.asking import Asking
from uim.api.calls import Calls
from uim.api.direct import Direct, Found
from uim.api.exchange import App
from uim.api.protocol import HttpOnly
from uim.api.whole import Whole, piece_of, whole_of
from uim.listener import MAX_HEAD_BYTES, ByteStream

RECEIVE_BYTES: Final = 64 * 1024
MOST_REQUESTS: Final = 1_000_000
# An answer that takes longer is watched: its client may have gone.
WATCHED_AFTER_S: Final = 1.0
MAX_AHEAD_BYTES: Final = 64 * 1024


class HttpFront:
    """The HTTP front of one application: called with (stream, peer), it serves that connection to its end.

    `wall_s`: the time of day in seconds since 1970, for the date of an answer.

    The application's lifespan is not run: nothing here starts or ends with the application but what its owner opened.
    Cancelled, it hangs up at once, even in the middle of an answer.
    """

    def __init__(self, app: ASGIFramework, *, keep_alive_s: float = 15.0, wall_s: Callable[[], float] = time) -> None:
        self._wall_s = wall_s
        self._config = _config(keep_alive_s)
        self._app = wrap_app(_one_at_a_time(app), 0, "asgi")
        self._direct = app.direct if isinstance(app, App) else None
        self._context = WorkerContext(None)
        self._connections: set[_Connection] = set()

    async def __call__(self, stream: trio.abc.Stream, peer: Peer) -> None:
        assert isinstance(stream, ByteStream)
        async with trio.open_nursery() as nursery:
            connection = _Connection(self._app, self._direct, self._config, self._context, stream, peer, self._wall_s)
            self._connections.add(connection)
            nursery.start_soon(connection.watch)
            try:
                await connection.run()
            finally:
                self._connections.discard(connection)
            nursery.cancel_scope.cancel()

    async def finish(self) -> None:
        """Let each connection end after the answer it is giving; idle ones end now. For a server that stops."""
        await self._context.terminated.set()
        for connection in self._connections:
            connection.finish()


def _one_at_a_time(app: ASGIFramework) -> ASGIFramework:
    """The application, one request of which begins in a turn of the loop.

    To begin is half a millisecond without an await. Were all of a crowd to begin in one turn, whoever else has something to do,
    as every socket has, would wait for the whole crowd at each of its steps.
    """
    begins = trio.Lock()

    async def begin(scope: Any, receive: Any, send: Any) -> None:
        async with begins:
            pass  # the lock is handed on in this turn, and its next owner runs in the next
        await cast(Any, app)(scope, receive, send)

    return cast(ASGIFramework, begin)


def _config(keep_alive_s: float) -> Config:
    config = Config()
    config.h11_max_incomplete_size = MAX_HEAD_BYTES
    # From the end of one answer to the end of the next head: this also cuts who sends a head by drops.
    config.keep_alive_timeout = keep_alive_s
    # A connection that is made anew costs us more than one that goes on; Hypercorn would end it after a thousand requests.
    config.keep_alive_max_requests = MOST_REQUESTS
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    return config


def _asked(direct: Direct, data: bytes) -> tuple[Whole, Found] | None:
    """The request and its route, if these bytes are one that is answered directly."""
    whole = whole_of(data)
    if whole is None or len(whole.body) > direct.max_body_bytes or (found := direct.find(whole.method, whole.path)) is None:
        return None
    return whole, found


class _Connection(TCPServer):
    """One connection: its requests one after the other, and beside them a watch on a client that may have gone."""

    def __init__(
        self,
        app: Any,
        direct: Direct | None,
        config: Config,
        context: WorkerContext,
        stream: ByteStream,
        peer: Peer,
        wall_s: Callable[[], float],
    ) -> None:
        # Hypercorn's annotation names the one stream it makes itself; it uses what every Stream has.
        super().__init__(app, config, context, cast(Any, {}), cast("trio.SSLStream[trio.SocketStream]", stream))
        self._direct = direct
        self._wall_s = wall_s
        self._bytes = stream
        self._peer = peer
        # Until when the end of the next head has to be there; after it, and until it is answered, for ever.
        self._idle_until = trio.current_time() + config.keep_alive_timeout
        self._reading, self._answering, self._watching = trio.CancelScope(), trio.CancelScope(), trio.CancelScope()
        self._is_answering = False
        # What the watch has read, and the sign that it reads no more.
        self._ahead = b""
        self._watched: trio.Event | None = None

    async def run(self) -> None:
        try:
            calls = Calls()
            async with calls:
                http = self._http_only(calls)
                # It has ProtocolWrapper's two methods, without the ways over to HTTP/2.
                self.protocol = cast(ProtocolWrapper, http)
                await self._read_on(http, calls)
                calls.end()
        finally:
            await self._close()

    def finish(self) -> None:
        """The server stops: end now, if there is nothing to answer."""
        if self._idle_until < inf:
            self._reading.cancel()

    def _http_only(self, calls: Calls) -> HttpOnly:
        client = (self._peer.address, self._peer.port)
        state = ConnectionState({})
        return HttpOnly(self.app, self.config, self.context, calls, state, self._peer.tls, client, None, self.protocol_send)

    async def _read_on(self, http: HttpOnly, calls: Calls) -> None:
        # Begun while the server stops, it has one request to answer.
        if self.context.terminated.is_set():
            self._idle_until = inf
        data = await self._received()
        while data and await self._goes_on_after(data, http):
            calls.begin()
            data = await self._received()
        await http.handle(Closed())

    async def _goes_on_after(self, data: bytes, http: HttpOnly) -> bool:
        """Answer what has come, as far as it can be; whether the connection goes on."""
        goes_on = True
        self._watching.deadline = trio.current_time() + WATCHED_AFTER_S
        self._is_answering = True
        with trio.CancelScope() as self._answering:
            if self._direct is not None and http.is_between and (asked := _asked(self._direct, data)) is not None:
                goes_on = await self._answer(self._direct, *asked)
            else:
                await http.handle(RawData(data))
        self._is_answering = False
        self._watching.deadline = inf
        return goes_on and not self._answering.cancelled_caught

    async def _answer(self, direct: Direct, whole: Whole, found: Found) -> bool:
        """The short way past Hypercorn and Quart; whether the connection goes on."""
        self._idle_until = inf
        scheme, client = "https" if self._peer.tls else "http", (self._peer.address, self._peer.port)
        answer = await direct.answer(found, Asking(whole.method, scheme, whole.path, whole.query, client, whole.headers, whole.read))
        await self.protocol_send(RawData(piece_of(answer, now_s=self._wall_s(), goes_on=whole.goes_on)))
        self._idle_until = trio.current_time() + self.config.keep_alive_timeout
        return whole.goes_on and not self.context.terminated.is_set()

    async def _received(self) -> bytes:
        """The next bytes; none at the end, or where too little has come for too long."""
        if self._watched is not None:
            if not self._watched.is_set():
                self._watching.cancel()
                await self._watched.wait()
            self._watched = None
        ahead, self._ahead = self._ahead, b""
        if ahead:
            return ahead
        with trio.CancelScope(deadline=self._idle_until) as self._reading, suppress(trio.ClosedResourceError, trio.BrokenResourceError):
            return await self._bytes.receive_some(RECEIVE_BYTES, waits_first=True)
        return b""

    async def protocol_send(self, event: hypercorn.events.Event) -> None:
        if isinstance(event, Updated):
            self._idle_until = trio.current_time() + self.config.keep_alive_timeout if event.idle else inf
            self._reading.deadline = self._idle_until
        elif isinstance(event, RawData) and not self.send_lock.locked():
            sent = self._bytes.send_now(event.data)
            if sent < len(event.data):
                await super().protocol_send(RawData(event.data[sent:]))
        else:
            await super().protocol_send(event)

    # -- the watch --------------------------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Where an answer takes long, cancel it if its client goes.

        Cancelled, it hangs up: Hypercorn shields its writes, and a client that reads nothing would hold up the server's end.
        """
        try:
            while True:
                with self._watching:
                    await trio.sleep_forever()
                self._watching = trio.CancelScope()
                # Over just now, the answer is followed by reading, and only one task may read a socket.
                if not self._is_answering:
                    continue
                self._watched = trio.Event()
                with self._watching:
                    await self._read_ahead()
                self._watching = trio.CancelScope()
                self._watched.set()
        finally:
            await trio.aclose_forcefully(self._bytes)

    async def _read_ahead(self) -> None:
        while len(self._ahead) < MAX_AHEAD_BYTES:
            try:
                data = await self._bytes.receive_some(RECEIVE_BYTES)
            except (trio.ClosedResourceError, trio.BrokenResourceError):
                data = b""
            if not data:
                await self.protocol.handle(Closed())
                self._answering.cancel()
                return
            self._ahead += data
        await trio.sleep_forever()
