"""WebSocket frames by hand, from the client's side (RFC 6455 5.2): masked text out, unmasked frames in.

Rule: only what a load needs; a server that says anything else than whole text frames ends the run.
"""

from __future__ import annotations

from typing import Final

TEXT: Final = 0x81
PONG: Final = 0x8A
CLOSE: Final = 0x88
# A mask of zeros leaves the payload as it is and is a mask all the same: the server unmasks it like any other.
MASK: Final = b"\0\0\0\0"


class Torn(Exception):
    """The server closed the connection, or said what no client expects."""


class Closed(Torn):
    """The server's closing frame, with the payloads of the text frames that came right before it."""

    def __init__(self, code: int, reason: str, last_words: list[bytes]) -> None:
        super().__init__(f"closed {code}: {reason}")
        self.code = code
        self.reason = reason
        self.last_words = last_words


def masked_text(payload: bytes) -> bytes:
    """One text frame of a client."""
    size = len(payload)
    if size < 126:
        head = bytes((TEXT, 0x80 | size))
    elif size < 65536:
        head = bytes((TEXT, 0x80 | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((TEXT, 0x80 | 127)) + size.to_bytes(8, "big")
    return head + MASK + payload


def client_frame(opcode: int, payload: bytes = b"", *, fin: bool = True, declared: int | None = None) -> bytes:
    """Any masked frame, also one that no client should send: unfinished, or with another length than it has."""
    size = len(payload) if declared is None else declared
    if size < 126:
        length = bytes((0x80 | size,))
    elif size < 65536:
        length = bytes((0x80 | 126,)) + size.to_bytes(2, "big")
    else:
        length = bytes((0x80 | 127,)) + size.to_bytes(8, "big")
    return bytes(((0x80 if fin else 0) | opcode,)) + length + MASK + payload


def split(data: bytes) -> tuple[list[bytes], bytes]:
    """The payloads of the whole text frames in `data`, and the rest that waits for more. Raises Closed on a closing frame."""
    payloads: list[bytes] = []
    at, end = 0, len(data)
    while end - at >= 2:
        size, start = data[at + 1], at + 2
        if size == 126:
            size, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
        elif size == 127:
            size, start = int.from_bytes(data[at + 2 : at + 10], "big"), at + 10
        if start + size > end:
            break
        if data[at] == TEXT:
            payloads.append(data[start : start + size])
        elif data[at] == CLOSE:
            payload = data[start : start + size]
            raise Closed(int.from_bytes(payload[:2], "big"), payload[2:].decode(errors="replace"), payloads)
        elif data[at] != PONG:
            raise Torn(f"a frame that begins with {data[at]:#x}")
        at = start + size
    return payloads, data[at:]
