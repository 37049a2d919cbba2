"""HTTP/1.1 as we speak it: Hypercorn's protocol without its ways out of it, and with a short way through it.

Hypercorn would by itself turn a request into a WebSocket or into HTTP/2, on the first request or any later one of a
connection; its WebSocket side inflates without a bound. Rule: what comes here is HTTP/1.1 and stays so, an Upgrade is
dropped before Hypercorn decides.
"""

from __future__ import annotations

from dataclasses import replace
from http import HTTPStatus
from typing import Final, cast
from uuid import uuid4

import h11
import trio
from hypercorn.events import Closed, RawData
from hypercorn.protocol.events import Body, EndBody, Event, Response
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.typing import H11SendableEvent

from uim.api.answers import Answer, plain_problem
from uim.api.asking import Asking
from uim.api.direct import Direct, Found

MAX_HEAD_BYTES: Final = 16 * 1024
MAX_FIELDS: Final = 100
# Longer than a stream's own goodbye, which is part of it.
RECYCLE_S: Final = 5.0
_UPGRADES: Final = frozenset({b"upgrade", b"http2-settings"})


class HttpOnly(H11Protocol):
    """`direct`: what is answered without the application, if anything."""

    direct: Direct | None = None
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
        if self.direct is not None and (found := self._found(self.direct, request)) is not None:
            # Hypercorn's annotation names the streams it makes itself; it uses what this has.
            self.stream = cast(HTTPStream, _Whole(self, self.direct, found, request))
            self.keep_alive_requests += 1
            return
        await super()._create_stream(request)

    def _found(self, direct: Direct, request: h11.Request) -> Found | None:
        """Its route, if it is one that is answered directly, and all of its body is at hand."""
        path = request.target.partition(b"?")[0]
        if not path.isascii() or (found := direct.find(request.method.decode("ascii"), path.decode("ascii"))) is None:
            return None
        body_bytes = 0
        for name, value in request.headers:
            if name == b"content-length":
                body_bytes = int(value)
            elif name == b"transfer-encoding":
                return None
        is_at_hand = body_bytes <= min(len(self.connection.trailing_data[0]), direct.max_body_bytes)
        return found if is_at_hand else None

    async def give(self, answer: Answer) -> None:
        """The whole answer to the request that was last read."""
        headers = answer.headers + self.config.response_headers("h11")
        if self.keep_alive_requests >= self.config.keep_alive_max_requests:
            headers.append((b"connection", b"close"))
        await self._send_h11_event(h11.Response(status_code=answer.status, headers=headers))
        if answer.body:
            await self._send_h11_event(h11.Data(data=answer.body))
        await self._send_h11_event(h11.EndOfMessage())
        await super()._maybe_recycle()

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
        told = plain_problem("bad_request", HTTPStatus(status_code).value, "this is no valid request")
        head = [(b"cache-control", b"no-store"), (b"x-request-id", str(uuid4()).encode())]
        length = [(b"content-length", b"%d" % len(told.body)), (b"connection", b"close")]
        await self._send_h11_event(h11.Response(status_code=told.status, headers=told.headers + head + length))
        await self._send_h11_event(h11.Data(data=told.body))
        await self._send_h11_event(h11.EndOfMessage())


class _Whole:
    """In the role of Hypercorn's stream: a request all of which is at hand, and its answer."""

    idle = False

    def __init__(self, protocol: HttpOnly, direct: Direct, found: Found, request: h11.Request) -> None:
        self._protocol = protocol
        self._direct = direct
        self._found = found
        self._request = request
        self._body = b""

    async def handle(self, event: Event) -> None:
        if isinstance(event, Body):
            self._body += event.data
        elif isinstance(event, EndBody):
            await self._protocol.give(await self._direct.answer(self._found, self._asking()))

    def _asking(self) -> Asking:
        path, _, query = self._request.target.partition(b"?")
        return Asking(
            self._request.method.decode("ascii"),
            "https" if self._protocol.ssl else "http",
            path.decode("ascii"),
            query,
            self._protocol.client,
            list(self._request.headers),
            self._read,
        )

    async def _read(self) -> bytes:
        return self._body
