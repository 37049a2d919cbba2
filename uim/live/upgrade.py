"""From a stream that asked for /ws to a session: sign-in, the query, capacity, then the WebSocket.

Rule: whoever is not let in is told so before the upgrade, by an HTTP status and problem+json; ?token= is never logged.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Final
from uuid import uuid4

import msgspec
import trio
from trio_websocket import WebSocketRequest, wrap_server_stream

from uim.admission import Peer
from uim.chat.callers import caller_of
from uim.chat.house import House
from uim.errors import UIMError, unavailable
from uim.listener import ByteStream, refusal
from uim.live import handlers
from uim.live.hello import Hello, check_app_version, read_hello
from uim.live.session import Session
from uim.live.sockets import FrameStream
from uim.log import get_logger
from uim.model.person import Caller
from uim.wire.frames import MAX_FRAME_IN_BYTES

UPGRADE_WITHIN_S: Final = 10.0
SUBPROTOCOL: Final = "uim.v1"
RECEIVE_BYTES: Final = 16 * 1024

_UPGRADE: Final = re.compile(rb"\nupgrade:[ \t]*websocket", re.IGNORECASE)

log = get_logger(__name__)


class WebSocketFront:
    """The WebSocket front: called with (stream, peer), it serves that connection to its end."""

    def __init__(self, house: House, *, on_signed_in: Callable[[str, int], None], is_draining: Callable[[], bool]) -> None:
        self._house = house
        self._on_signed_in = on_signed_in
        self._is_draining = is_draining

    async def __call__(self, stream: trio.abc.Stream, peer: Peer) -> None:
        assert isinstance(stream, ByteStream)
        if not await _asks_to_upgrade(stream):
            await stream.send_all(refusal(HTTPStatus.BAD_REQUEST, "bad_request", "/ws is for WebSockets"))
            await stream.aclose()
            return
        framed = FrameStream(stream)
        async with trio.open_nursery() as nursery:
            session = None
            with trio.move_on_after(UPGRADE_WITHIN_S):
                request = await wrap_server_stream(
                    nursery, framed, message_queue_size=1, max_message_size=MAX_FRAME_IN_BYTES, receive_buffer_size=RECEIVE_BYTES
                )
                session = await self._admit(request, framed, peer)
            if session is not None:
                await session.run()
            else:
                await framed.aclose()
            nursery.cancel_scope.cancel()

    async def _admit(self, request: WebSocketRequest, framed: FrameStream, peer: Peer) -> Session | None:
        """The session, its socket open; or None, the refusal told."""
        try:
            hello, caller = await self._checked(request, peer)
        except UIMError as refusal:
            await _refuse(request, refusal)
            return None
        subprotocol = SUBPROTOCOL if SUBPROTOCOL in request.proposed_subprotocols else None
        ws = await request.accept(subprotocol=subprotocol)
        self._on_signed_in(peer.address, peer.port)
        return Session(
            self._house,
            ws,
            framed,
            caller=caller,
            hello=hello,
            client_info={
                "platform": hello.platform,
                "app_version": hello.app_version,
                "ip_address": peer.address,
                "user_agent": _header(request, b"user-agent"),
            },
            session_id=uuid4(),
            handle=handlers.handle,
        )

    async def _checked(self, request: WebSocketRequest, peer: Peer) -> tuple[Hello, Caller]:
        house = self._house
        hello = read_hello(request.path.partition("?")[2])
        check_app_version(hello, house.settings.least_app_version)
        host = request._event.host  # trio-websocket keeps Host out of `headers`, and says it nowhere else
        caller = await caller_of(
            house.logins.trust,
            authorization=f"Bearer {hello.token}" if hello.token is not None else _header(request, b"authorization"),
            cookie=_header(request, b"cookie"),
            origin=_header(request, b"origin"),
            method="CONNECT",
            allowed=house.origins.judge(scheme="https" if peer.tls else "http", host=host),
        )
        if not (hello.device_id or caller.device_id):
            raise unavailable()  # which device this is only the database knows
        if self._is_draining() or house.switchboard.connections >= house.settings.max_connections:
            raise UIMError("unavailable", "no more connections here just now", retry_after_s=5.0)
        return hello, caller


async def _asks_to_upgrade(stream: ByteStream) -> bool:
    """Whether the head, which the listener has read whole, asks for a WebSocket; its bytes come again."""
    head = await stream.receive_some()
    stream.unread(head)
    return _UPGRADE.search(head.partition(b"\r\n\r\n")[0]) is not None


def _header(request: WebSocketRequest, name: bytes) -> str | None:
    # Given twice, it is neither of the two: a proxy before us may have judged the other.
    values = [value.decode("latin-1") for key, value in request.headers if key.lower() == name]
    return ", ".join(values) if values else None


async def _refuse(request: WebSocketRequest, refusal: UIMError) -> None:
    problem = {
        "type": "about:blank",
        "title": HTTPStatus(refusal.status).phrase,
        "status": refusal.status,
        "detail": refusal.message,
        "code": refusal.code,
    }
    headers = [
        (b"Content-Type", b"application/problem+json"),
        (b"Cache-Control", b"no-store"),
        (b"X-Request-ID", str(uuid4()).encode()),
        (b"Connection", b"close"),
    ]
    if refusal.field is not None:
        problem["errors"] = {refusal.field: refusal.message}
    if refusal.status == 401:
        headers.append((b"WWW-Authenticate", b"Bearer"))
    if refusal.retry_after_s is not None:
        problem["retry_after"] = refusal.retry_after_s
        headers.append((b"Retry-After", str(max(1, round(refusal.retry_after_s))).encode()))
    await request.reject(refusal.status, extra_headers=headers, body=msgspec.json.encode(problem))
