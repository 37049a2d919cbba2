"""From a stream that asked for /ws to a session: sign-in, the query, capacity, then the WebSocket.

Rule: whoever is not let in is told so before the upgrade, by an HTTP status and problem+json; ?token= is never logged. Who is
signed in and finds no room is told when to come back in a way that is seen: a browser shows its page no status of an upgrade
that failed, so it is let in to read a close code.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack, suppress
from http import HTTPStatus
from typing import Final
from uuid import UUID, uuid4

import msgspec
import trio
from trio_websocket import ConnectionClosed, WebSocketRequest

from uim.admission import Peer
from uim.chat.callers import token_of
from uim.chat.house import House
from uim.chat.tokens import AccessClaims
from uim.errors import Cut, UIMError, unavailable
from uim.listener import ByteStream, refusal
from uim.live import handlers
from uim.live.arrivals import WAIT_S, Arrivals, OverCapacity
from uim.live.hello import Hello, check_app_version, read_hello
from uim.live.session import Session
from uim.live.sockets import FrameStream, ServerSocket
from uim.log import get_logger

# From the whole head on. After the wait in line, the database has ten seconds to say who it is.
UPGRADE_WITHIN_S: Final = WAIT_S + 10.0
GOODBYE_S: Final = 3.0
SUBPROTOCOL: Final = "uim.v1"

_UPGRADE: Final = re.compile(rb"\nupgrade:[ \t]*websocket", re.IGNORECASE)

log = get_logger(__name__)


class WebSocketFront:
    """The WebSocket front: called with (stream, peer), it serves that connection to its end."""

    def __init__(
        self, house: House, *, arrivals: Arrivals, on_signed_in: Callable[[str, int, UUID], None], is_draining: Callable[[], bool]
    ) -> None:
        self._house = house
        self._arrivals = arrivals
        self._on_signed_in = on_signed_in
        self._is_draining = is_draining

    async def __call__(self, stream: trio.abc.Stream, peer: Peer) -> None:
        assert isinstance(stream, ByteStream)
        # The head, which the listener has read whole.
        if not _UPGRADE.search(stream.unread_bytes.partition(b"\r\n\r\n")[0]):
            await stream.send_all(refusal(HTTPStatus.BAD_REQUEST, "bad_request", "/ws is for WebSockets"))
            await stream.aclose()
            return
        framed = FrameStream(stream)
        session = None
        # Who hangs up meanwhile is told nothing.
        with trio.move_on_after(UPGRADE_WITHIN_S), suppress(ConnectionClosed):
            ws = ServerSocket(framed)
            head, stream.unread_bytes = stream.unread_bytes, b""
            request = await ws.requested(head)
            del head  # or it would be held as long as the connection
            session = await self._admit(request, ws, framed, peer) if request is not None else None
            del request
        if session is None:
            await framed.aclose()
            return
        if self._is_draining():
            session.cut(Cut.RESTART)  # the walk of the drain may have been over before
        await session.run()

    async def _admit(self, request: WebSocketRequest, ws: ServerSocket, framed: FrameStream, peer: Peer) -> Session | None:
        """The session, its socket open; or None, the refusal told."""
        try:
            hello, claims = self._introduced(request, peer)
            # A token that we have signed is proof enough to wait in line: else all who come back at once would be strangers.
            self._on_signed_in(peer.address, peer.port, claims.user_id)
            self._check_often(claims.user_id)
            return await self._in_turn(request, ws, framed, peer, hello, claims)
        except UIMError as refusal:
            await _refuse(request, refusal)
        except OverCapacity:
            await self._send_away(request, ws)
        return None

    def _introduced(self, request: WebSocketRequest, peer: Peer) -> tuple[Hello, AccessClaims]:
        """What can be said of a newcomer without the database."""
        house = self._house
        hello = read_hello(request.path.partition("?")[2])
        check_app_version(hello, house.settings.least_app_version)
        host = request._event.host  # trio-websocket keeps Host out of `headers`, and says it nowhere else
        token = token_of(
            authorization=f"Bearer {hello.token}" if hello.token is not None else _header(request, b"authorization"),
            cookie=_header(request, b"cookie"),
            origin=_header(request, b"origin"),
            method="CONNECT",
            allowed=house.origins.judge(scheme="https" if peer.tls else "http", host=host),
        )
        return hello, house.logins.claims(token)

    async def _in_turn(
        self, request: WebSocketRequest, ws: ServerSocket, framed: FrameStream, peer: Peer, hello: Hello, claims: AccessClaims
    ) -> Session:
        """A session that has its turn to open. Raises OverCapacity, and UIMError if the login has ended."""
        self._check_room()
        came_at = trio.current_time()
        with ExitStack() as unless_let_in:
            turn = unless_let_in.enter_context(await self._arrivals.turn(claims.user_id))
            caller = await self._house.logins.trust(claims)
            device_id = hello.device_id or caller.device_id
            if not device_id:
                raise unavailable()  # which device this is only the database knows
            if not caller.device_id and self._house.switchboard.is_connected(claims.user_id, device_id):
                raise unavailable()  # by its token alone nobody takes another's place: its login may have ended
            self._check_room()
            await request.accept(subprotocol=_subprotocol(request))
            ws.forget_handshake()
            unless_let_in.pop_all()
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
            came_at=came_at,
            arrivals=self._arrivals,
            turn=turn,
            handle=handlers.handle,
        )

    def _check_often(self, user_id: UUID) -> None:
        if wait_s := self._house.openings.spend(user_id):
            raise UIMError("rate_limited", "this user connects too often", retry_after_s=wait_s)

    def _check_room(self) -> None:
        if self._is_draining() or self._house.switchboard.connections >= self._house.settings.max_connections:
            raise OverCapacity

    async def _send_away(self, request: WebSocketRequest, ws: ServerSocket) -> None:
        if _header(request, b"origin") is None:
            come_back_in_s = self._arrivals.comes_back_in_s()
            await _refuse(request, UIMError("unavailable", "no more connections here just now", retry_after_s=come_back_in_s))
            return
        await request.accept(subprotocol=_subprotocol(request))
        with trio.move_on_after(GOODBYE_S):
            cut = Cut.RESTART if self._is_draining() else Cut.OVER_CAPACITY
            await ws.close(cut.close_code, self._arrivals.words())


def _subprotocol(request: WebSocketRequest) -> str | None:
    return SUBPROTOCOL if SUBPROTOCOL in request.proposed_subprotocols else None


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
        problem["retry_after"] = round(refusal.retry_after_s, 1)
        headers.append((b"Retry-After", str(max(1, round(refusal.retry_after_s))).encode()))
    await request.reject(refusal.status, extra_headers=headers, body=msgspec.json.encode(problem))
