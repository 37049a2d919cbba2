"""The head of an HTTP/1.1 request in its plain form, read by httptools (Node's llhttp) in a twentieth of the time that h11 takes.

Rule: in doubt a head is not plain. What is read here h11 reads alike (tests/test_whole.py, tests/test_handshake.py); the rest is
left to h11.
"""

from __future__ import annotations

import httptools

from uim.listener import MAX_FIELDS, MAX_HEAD_BYTES


class Head:
    """`headers`: names in lower case, values without the blanks around them. `asks_for_upgrade`: or, as CONNECT does, for a tunnel."""

    __slots__ = ("asks_for_upgrade", "headers", "is_read", "method", "target")

    def __init__(self) -> None:
        self.method = self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.is_read = self.asks_for_upgrade = False

    # What httptools calls while it reads.

    def on_url(self, target: bytes) -> None:
        self.target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self.is_read = True


def head_of(data: bytes) -> Head | None:
    """The head that these bytes are, from the first to the last; None if it is not of the plain form."""
    if len(data) > MAX_HEAD_BYTES or data.find(b"\r\n\r\n") != len(data) - 4:
        return None
    head = Head()
    parser = httptools.HttpRequestParser(head)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        head.asks_for_upgrade = True
    except httptools.HttpParserError:
        return None
    head.method = parser.get_method()
    # llhttp forgives blanks about the target, and lines before the first.
    is_plain = data.startswith(b"%b %b HTTP/1.1\r\n" % (head.method, head.target))
    return head if head.is_read and is_plain and head.target.isascii() and len(head.headers) <= MAX_FIELDS else None
