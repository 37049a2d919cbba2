"""The stream beneath trio-websocket: whole frames, one writer at a time.

trio-websocket writes its handshake, pongs and closing frames; we write joined data frames ourselves, past it, for one write
instead of one per frame. Rule: both go through the same lock, so a frame is never cut by another; a write that was cancelled
half-way has torn the stream, and then only hanging up is left (style.md, idiom 9).
"""

from __future__ import annotations

import trio

from uim.listener import ByteStream


class FrameStream(trio.abc.Stream):
    """Wraps the listener's stream for one WebSocket."""

    def __init__(self, beneath: ByteStream) -> None:
        self._beneath = beneath
        self._lock = trio.StrictFIFOLock()
        self.torn = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write whole frames. Cancelled in mid-write, the stream is torn; `torn` tells whether it was."""
        async with self._lock:
            if self.torn:
                raise trio.BrokenResourceError("an earlier write was cut")
            # Cancelled before the first byte, nothing is torn. No await from here to the socket's own look at that.
            await trio.lowlevel.checkpoint_if_cancelled()
            self.torn = True
            await self._beneath.send_all(data)
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
