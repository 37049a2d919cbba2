"""The stream beneath trio-websocket, whole frames, one writer at a time; and trio-websocket under our own rules.

trio-websocket writes its handshake, pongs and closing frames; we write joined data frames ourselves, past it, for one write
instead of one per frame. Rule: both go through the same lock, so a frame is never cut by another; a write that was cancelled
half-way has torn the stream, and then only hanging up is left (style.md, idiom 9). This file alone overrides private names of
trio-websocket; tests/faults/test_hostile_frames.py tells when a release moves them.
"""

from __future__ import annotations

from typing import Final, cast

import trio
import wsproto.events
from trio_websocket import WebSocketConnection, WebSocketRequest
from wsproto.connection import ConnectionState, ConnectionType
from wsproto.handshake import H11Handshake

from uim.listener import ByteStream
from uim.live.pacing import SCRAP, SMALL_PIECE_CHARS, Pace
from uim.wire.frames import MAX_FRAME_IN_BYTES

RECEIVE_BYTES: Final = 16 * 1024
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


class _Over:
    """In place of a handshake that is over: it has no events."""

    @staticmethod
    def events() -> tuple[()]:
        return ()


class ServerSocket(WebSocketConnection):
    """The server's end of one WebSocket. What a client may send without end, and what is no message yet, is read at a pace."""

    def __init__(self, stream: FrameStream) -> None:
        super().__init__(
            stream,
            wsproto.WSConnection(ConnectionType.SERVER),
            message_queue_size=1,
            max_message_size=MAX_FRAME_IN_BYTES,
            receive_buffer_size=RECEIVE_BYTES,
        )
        self.pace = Pace()

    async def requested(self, nursery: trio.Nursery) -> WebSocketRequest:
        """Read on, in that nursery, until the socket has gone; returns once the upgrade is asked for."""
        nursery.start_soon(self._reader_task)
        return await self._get_request()

    def forget_handshake(self) -> None:
        """The upgrade is over: what parsed it, some 3 KB, is asked nothing any more."""
        self._wsproto.handshake = cast(H11Handshake, _Over)

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
        await super()._handle_message_event(event)

    async def _send(self, event: wsproto.events.Event) -> None:
        # After our closing frame nothing is said: the base class would answer a PING even then, which is an error.
        if self._wsproto.state not in _OVER:
            await super()._send(event)
