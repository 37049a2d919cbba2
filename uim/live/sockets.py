"""The stream beneath trio-websocket, whole frames, one writer at a time; and trio-websocket under our own rules.

trio-websocket writes its handshake, pongs and closing frames; we write joined data frames ourselves, past it, for one write
instead of one per frame. Rule: both go through the same lock, so a frame is never cut by another; a write that was cancelled
half-way has torn the stream, and then only hanging up is left (style.md, idiom 9). This file alone overrides private names of
trio-websocket; tests/faults/test_hostile_frames.py tells when a release moves them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import trio
import wsproto.events
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest
from wsproto.connection import ConnectionState
from wsproto.events import RejectConnection, Request
from wsproto.utilities import RemoteProtocolError

from uim.listener import ByteStream
from uim.live.handshake import Upgrading
from uim.live.pacing import SCRAP, SMALL_PIECE_CHARS, Pace
from uim.wire.frames import MAX_FRAME_IN_BYTES

RECEIVE_BYTES: Final = 16 * 1024
EVENTS_IN_A_TURN: Final = 16
# We send no PING, so whatever PONG comes is of none.
_NO_PINGS: Final[OrderedDict[bytes, trio.Event]] = OrderedDict()
_OVER: Final = frozenset({ConnectionState.LOCAL_CLOSING, ConnectionState.CLOSED})


class FrameStream(trio.abc.Stream):
    """Wraps the listener's stream for one WebSocket."""

    def __init__(self, beneath: ByteStream) -> None:
        self._beneath = beneath
        self._lock = trio.StrictFIFOLock()
        self.torn = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write whole frames. Cancelled in mid-write, the stream is torn; `torn` tells whether it was.

        What the kernel takes at once is written without a checkpoint, as most is.
        """
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()
        try:
            await self._write(data)
        finally:
            self._lock.release()

    async def _write(self, data: bytes | bytearray | memoryview) -> None:
        if self.torn:
            raise trio.BrokenResourceError("an earlier write was cut")
        sent = self._beneath.send_now(data)
        if sent == len(data):
            return
        if not sent:
            # Cancelled before the first byte, nothing is torn. No await from here to the socket's own look at that.
            await trio.lowlevel.checkpoint_if_cancelled()
        self.torn = True
        await self._beneath.send_all(memoryview(data)[sent:])
        self.torn = False

    async def wait_send_all_might_not_block(self) -> None:
        await self._beneath.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await self._beneath.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._beneath.aclose()

    def hang_up(self) -> None:
        """Close the socket now, without a word."""
        self._beneath.hang_up()


class _NoChannel:
    """In place of trio-websocket's channel: messages are handed on by the task that reads them."""

    @staticmethod
    async def aclose() -> None:
        return


class _NoSign:
    """In place of an event for which nobody waits."""

    @staticmethod
    def set() -> None:
        return


class _Events(list[wsproto.events.Event]):
    """In place of wsproto's deque, which takes 760 bytes for the one event that it holds now and then."""

    __slots__ = ()

    def popleft(self) -> wsproto.events.Event:
        return self.pop(0)


Message = str | bytes
Hear = Callable[[Message], Awaitable[None]]


async def _discard(message: Message) -> None:
    """A message that comes after our last word."""


class ServerSocket(WebSocketConnection):
    """The server's end of one WebSocket. What a client may send without end, and what is no message yet, is read at a pace.

    `requested` takes the whole head; `read`, in a task of its owner, gives the messages; `close` says the last word.
    """

    def __init__(self, stream: FrameStream) -> None:
        super().__init__(
            stream,
            Upgrading(),
            max_message_size=MAX_FRAME_IN_BYTES,
            receive_buffer_size=RECEIVE_BYTES,
        )
        self.pace = Pace()
        self._hear: Hear = _discard
        # What nobody will use, a tenth of a quiet connection's memory.
        self._send_channel = self._recv_channel = cast(Any, _NoChannel)
        self._stream_lock = cast(Any, None)  # FrameStream has one
        self._connection_proposal = None
        self._open_handshake = self._for_testing_peer_closed_connection = cast(Any, _NoSign)
        self._pings = _NO_PINGS

    async def requested(self, head: bytes) -> WebSocketRequest | None:
        """What these bytes ask for, a head and whatever came with it; None if that is no upgrade, which the client has been told."""
        try:
            self._wsproto.receive_data(head)
        except (RemoteProtocolError, UnicodeError) as fault:
            await self._send(getattr(fault, "event_hint", None) or RejectConnection())
            await self._close_stream()
            return None
        return next((WebSocketRequest(self, event) for event in self._wsproto.events() if isinstance(event, Request)), None)

    def forget_handshake(self) -> None:
        """The upgrade is over: what parsed it, some 3 KB, is asked nothing any more."""
        if (connection := self._wsproto.connection) is not None:
            connection._events = cast(Any, _Events(connection._events))
            self._wsproto = cast(Any, connection)

    async def read(self, hear: Hear) -> None:
        """Give each message to `hear`, the next when it has returned, until the peer has gone or is sent away.

        As trio-websocket's reader task does, but in its caller's: a message changes no task. Cancelled, it may be called again.
        """
        self._hear = hear
        try:
            while self._reader_running and await self._take_events():
                data = await self._received()
                if not data:
                    return
                try:
                    self._wsproto.receive_data(data)
                except RemoteProtocolError as fault:
                    if fault.event_hint:
                        await self._send(fault.event_hint)
                    await self._close_stream()
        except ConnectionClosed:
            return
        finally:
            self._hear = _discard

    async def _take_events(self) -> bool:
        """False once nothing more is to be read."""
        for number, event in enumerate(self._wsproto.events(), start=1):
            if handler := _HANDLERS.get(type(event)):
                await handler(self, event)
            if not number % EVENTS_IN_A_TURN:
                await trio.lowlevel.checkpoint()  # one read may hold thousands of PINGs, and to answer does not wait
        return self._reader_running

    async def _received(self) -> bytes:
        """The next bytes; none, and the socket is as good as closed, where the peer has gone."""
        try:
            data = bytes(await self._stream.receive_some(RECEIVE_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        if not data and self._wsproto.state is not ConnectionState.CLOSED:
            await self._abort_web_socket()
        return data

    async def close(self, code: int, reason: str) -> None:
        """The closing handshake: our closing frame, and reading until the peer's. Cancelled, it hangs up."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.read, _discard)
            await self.aclose(code, reason)
            nursery.cancel_scope.cancel()

    async def _close_stream(self) -> None:
        """The end of reading. The stream is closed by its owner, after the session has ended: to close may take a second."""
        self._reader_running = False

    async def _handle_close_connection_event(self, event: wsproto.events.CloseConnection) -> None:
        if self._wsproto.state is ConnectionState.OPEN:
            await self._send(event)  # it is not the peer's, but of what cannot be read: who sent that is told (RFC 6455, 7.1.7)
        await super()._handle_close_connection_event(event)

    async def _handle_ping_event(self, event: wsproto.events.Ping) -> None:
        await self.pace.spend(SCRAP)
        await super()._handle_ping_event(event)

    async def _handle_pong_event(self, event: wsproto.events.Pong) -> None:
        await self.pace.spend(SCRAP)
        await super()._handle_pong_event(event)

    async def _handle_message_event(self, event: wsproto.events.BytesMessage | wsproto.events.TextMessage) -> None:
        if self._wsproto.state in _OVER:
            return  # a client that sends on: it would be told again and again that it sends too much
        if not event.message_finished and len(event.data) < SMALL_PIECE_CHARS:
            await self.pace.spend(SCRAP)
        if self._message_size + len(event.data) > self._max_message_size:
            await super()._handle_message_event(event)  # tells the client, and ends the reading
            return
        self._message_size += len(event.data)
        self._message_parts.append(cast(Message, event.data))
        if event.message_finished:
            parts, self._message_parts, self._message_size = self._message_parts, [], 0
            await self._hear(_joined(parts))

    async def _send(self, event: wsproto.events.Event) -> None:
        # After our closing frame nothing is said: the base class would answer a PING even then, which is an error.
        if self._wsproto.state in _OVER:
            return
        try:
            await self._stream.send_all(self._wsproto.send(event))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await self._abort_web_socket()
            raise ConnectionClosed(self._close_reason) from None


def _joined(parts: list[bytes | str]) -> Message:
    if isinstance(parts[0], str):
        return "".join(cast(list[str], parts))
    return b"".join(cast(list[bytes], parts))


_HANDLERS: Final[dict[type[wsproto.events.Event], Callable[[ServerSocket, Any], Awaitable[None]]]] = {
    wsproto.events.BytesMessage: ServerSocket._handle_message_event,
    wsproto.events.TextMessage: ServerSocket._handle_message_event,
    wsproto.events.CloseConnection: ServerSocket._handle_close_connection_event,
    wsproto.events.Ping: ServerSocket._handle_ping_event,
    wsproto.events.Pong: ServerSocket._handle_pong_event,
}
