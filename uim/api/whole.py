"""A request that has come whole and alone in one piece, as nearly all of ours do, and its answer as one piece.

h11 and Hypercorn's events around it cost a quarter of a page of history. Rule: in doubt a request is not whole. What is read here
h11 reads alike (tests/test_whole.py); the rest is left to h11.
"""

from __future__ import annotations

from email.utils import formatdate
from functools import lru_cache
from typing import Final

import msgspec

from uim.api.answers import Answer
from uim.head import head_of

# Who sends one of these wants more than an answer, or sends a body in another way.
_ASKS_MORE: Final = frozenset({b"transfer-encoding", b"upgrade", b"http2-settings", b"expect"})
_ONCE: Final = frozenset({b"host", b"content-length", b"connection"})
_GOES_ON: Final = {b"keep-alive": True, b"close": False}


class Whole(msgspec.Struct, frozen=True):
    """One request. `path`: as it stands in the request, before the query; `headers`: names in lower case, values without the blanks
    around them; `goes_on`: whether the connection goes on after the answer.
    """

    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    goes_on: bool

    async def read(self) -> bytes:
        """The body, as who answers asks for it."""
        return self.body


def whole_of(data: bytes) -> Whole | None:
    """The request that these bytes are, from the first to the last; None if they are more or less, or one that asks for more."""
    end = data.find(b"\r\n\r\n") + 4
    head = head_of(data[:end])
    if head is None or head.asks_for_upgrade:
        return None
    goes_on = _goes_on(head.headers, len(data) - end)
    if goes_on is None:
        return None
    path, _, query = head.target.partition(b"?")
    return Whole(head.method.decode("ascii"), path.decode("ascii"), query, head.headers, data[end:], goes_on)


def _goes_on(fields: list[tuple[bytes, bytes]], body_bytes: int) -> bool | None:
    """Whether the connection does; None if a field asks for more than an answer, or tells of another body than the one that came."""
    told: dict[bytes, bytes] = {}
    for name, value in fields:
        if name in _ASKS_MORE:
            return None
        if name in _ONCE:
            if name in told:
                return None
            told[name] = value
    if b"host" not in told or told.get(b"content-length", b"0") != b"%d" % body_bytes:
        return None
    return _GOES_ON.get(told.get(b"connection", b"keep-alive").lower())


def piece_of(answer: Answer, *, now_s: float, goes_on: bool) -> bytes:
    """A whole answer as HTTP/1.1; `now_s` is in seconds since 1970."""
    fields = [b"%b: %b\r\n" % field for field in answer.headers]
    end = b"\r\n" if goes_on else b"Connection: close\r\n\r\n"
    return b"".join((b"HTTP/1.1 %d \r\n" % answer.status, *fields, _date_line(int(now_s)), end, answer.body))


@lru_cache(maxsize=1)
def _date_line(second: int) -> bytes:
    return b"date: %b\r\n" % formatdate(second, usegmt=True).encode("ascii")
