"""One HTTP/1.1 connection: Hypercorn's protocol under our own rules.

Hypercorn would by itself turn a request into a WebSocket or into HTTP/2, on the first request or any later one of a
connection; its WebSocket side inflates without a bound. Rule: what comes here is HTTP/1.1 and stays so, an Upgrade is
dropped before Hypercorn decides. This file alone touches Hypercorn's private names; tests/test_http_front.py tells
when a release of Hypercorn moves them.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace
from http import HTTPStatus
from math import inf
from typing import Any, Final, cast

import h11
import hypercorn.events
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, RawData, Updated
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.events import Event, Response
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState, H11SendableEvent
from hypercorn.utils import wrap_app

from uim.admission import Peer
from uim.api.answers import problem_bytes
from uim.api.calls import Calls
from uim.listener import ByteStream

MAX_HEAD_BYTES: Final = 16 * 1024
MAX_FIELDS: Final = 100
# Longer than a stream's own goodbye, which is part of it.
RECYCLE_S: Final = 5.0
RECEIVE_BYTES: Final = 64 * 1024
MOST_REQUESTS: Final = 1_000_000
# An answer that takes longer is watched: its client may have gone.
WATCHED_AFTER_S: Final = 1.0
MAX_AHEAD_BYTES: Final = 64 * 1024
_UPGRADES: Final = frozenset({b"upgrade", b"http2-settings"})


class HttpFront:
    """The HTTP front of one application: called with (stream, peer), it serves that connection to its end.

    The application's lifespan is not run: nothing here starts or ends with the application but what its owner opened.
    Cancelled, it hangs up at once, even in the middle of an answer.
    """

    def __init__(self, app: ASGIFramework, *, keep_alive_s: float = 15.0) -> None:
        self._config = _config(keep_alive_s)
        self._app = wrap_app(_one_at_a_time(app), 0, "asgi")
        self._context = WorkerContext(None)
        self._connections: set[_Connection] = set()

    async def __call__(self, stream: trio.abc.Stream, peer: Peer) -> None:
        assert isinstance(stream, ByteStream)
        async with trio.open_nursery() as nursery:
            connection = _Connection(self._app, self._config, self._context, stream, peer)
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


class _Connection(TCPServer):
    """One connection: its requests one after the other, and beside them a watch on a client that may have gone."""

    def __init__(self, app: Any, config: Config, context: WorkerContext, stream: ByteStream, peer: Peer) -> None:
        # Hypercorn's annotation names the one stream it makes itself; it uses what every Stream has.
        super().__init__(app, config, context, cast(Any, {}), cast("trio.SSLStream[trio.SocketStream]", stream))
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
                # It has ProtocolWrapper's two methods, without the ways over to HTTP/2.
                self.protocol = cast(ProtocolWrapper, self._http_only(calls))
                await self._read_on(calls)
                calls.end()
        finally:
            await self._close()

    def finish(self) -> None:
        """The server stops: end now, if there is nothing to answer."""
        if self._idle_until < inf:
            self._reading.cancel()

    def _http_only(self, calls: Calls) -> _HttpOnly:
        client = (self._peer.address, self._peer.port)
        state = ConnectionState({})
        return _HttpOnly(self.app, self.config, self.context, calls, state, self._peer.tls, client, None, self.protocol_send)

    async def _read_on(self, calls: Calls) -> None:
        # Begun while the server stops, it has one request to answer.
        if self.context.terminated.is_set():
            self._idle_until = inf
        data = await self._received()
        while data:
            self._watching.deadline = trio.current_time() + WATCHED_AFTER_S
            self._is_answering = True
            with trio.CancelScope() as self._answering:
                await self.protocol.handle(RawData(data))
            self._is_answering = False
            self._watching.deadline = inf
            if self._answering.cancelled_caught:
                break
            calls.begin()
            data = await self._received()
        await self.protocol.handle(Closed())

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
            return await self._bytes.receive_some(RECEIVE_BYTES)
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


class _HttpOnly(H11Protocol):
    _head = b""

    async def _check_protocol(self, event: h11.Request) -> None:
        """Hypercorn goes over to HTTP/2 here; we never do."""

    async def _create_stream(self, request: h11.Request) -> None:
        # h11 bounds a head that is not there yet; one that comes whole in one read may be larger.
        size = sum(len(name) + len(value) + 4 for name, value in request.headers)
        if size > MAX_HEAD_BYTES or len(request.headers) > MAX_FIELDS:
            await self._send_error_response(431)
            await self.send(Closed())
            return
        # Two lengths: a proxy before us may have believed the other one, and would take what follows for another's request.
        if {b"content-length", b"transfer-encoding"} <= {name for name, _ in request.headers}:
            await self._send_error_response(400)
            await self.send(Closed())
            return
        if not _UPGRADES.isdisjoint(name for name, _ in request.headers):
            headers = [(name, value) for name, value in request.headers if name not in _UPGRADES]
            request = h11.Request(
                method=request.method, target=request.target, headers=headers, http_version=request.http_version
            )
        await super()._create_stream(request)

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        """As Hypercorn's, but a head waits for what follows it, and an end without bytes is no write: one answer, one write."""
        try:
            data = self.connection.send(event) or b""
        except h11.LocalProtocolError:
            if self.connection.their_state is not h11.ERROR:
                raise
            return
        if isinstance(event, h11.Response):
            self._head = data
        elif data := self._head + data:
            self._head = b""
            await self.send(RawData(data=data))

    async def stream_send(self, event: Event) -> None:
        # Answered before the body was read, the connection ends after it: say so, or the client sends its next request
        # into the end.
        if isinstance(event, Response) and self.connection.their_state is h11.SEND_BODY:
            event = replace(event, headers=[*event.headers, (b"connection", b"close")])
        await super().stream_send(event)

    async def _maybe_recycle(self) -> None:
        # Quart cancels the task that runs this at its first wait, for the first thing done here tells Quart that the
        # request is over. Unshielded, the connection would have no idle deadline, and a last answer would be torn.
        with trio.move_on_after(RECYCLE_S, shield=True) as patience:
            await super()._maybe_recycle()
        if patience.cancelled_caught:
            with trio.move_on_after(RECYCLE_S, shield=True):
                await self.send(Closed())

    async def _send_error_response(self, status_code: int) -> None:
        """What h11 could not read: told as every other refusal is."""
        status = HTTPStatus(status_code)
        body, headers = problem_bytes("bad_request", status.value, "this is no valid request")
        fields = [*headers, ("content-length", str(len(body))), ("connection", "close")]
        await self._send_h11_event(h11.Response(status_code=status_code, headers=fields))
        await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())


