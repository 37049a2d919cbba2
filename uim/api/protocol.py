"""HTTP/1.1 as we speak it: Hypercorn's protocol without its ways out of it.

Hypercorn would by itself turn a request into a WebSocket or into HTTP/2, on the first request or any later one of a
connection; its WebSocket side inflates without a bound. Rule: what comes here is HTTP/1.1 and stays so, an Upgrade is
dropped before Hypercorn decides.
"""

from __future__ import annotations

from dataclasses import replace
from http import HTTPStatus
from typing import Final
from uuid import uuid4

import h11
import trio
from hypercorn.events import Closed, RawData
from hypercorn.protocol.events import Event, Response
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.typing import H11SendableEvent

from uim.api.answers import plain_problem
from uim.listener import MAX_FIELDS, MAX_HEAD_BYTES

# Longer than a stream's own goodbye, which is part of it.
RECYCLE_S: Final = 5.0
_UPGRADES: Final = frozenset({b"upgrade", b"http2-settings"})


class HttpOnly(H11Protocol):
    """Hypercorn's, for one connection."""

    _head = b""

    @property
    def is_between(self) -> bool:
        """Whether all that has come is answered."""
        its = self.connection
        return its.their_state is h11.IDLE and its.our_state is h11.IDLE and not its.trailing_data[0]

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
        told = plain_problem("bad_request", HTTPStatus(status_code).value, "this is no valid request")
        head = [(b"cache-control", b"no-store"), (b"x-request-id", str(uuid4()).encode())]
        length = [(b"content-length", b"%d" % len(told.body)), (b"connection", b"close")]
        await self._send_h11_event(h11.Response(status_code=told.status, headers=told.headers + head + length))
        await self._send_h11_event(h11.Data(data=told.body))
        await self._send_h11_event(h11.EndOfMessage())
