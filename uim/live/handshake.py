"""The opening handshake of a WebSocket (RFC 6455, section 4.2): who asks in the plain form, as clients do, comes in without h11.

h11 was an eighth of a connect. Rule: what a request must have wsproto judges, whoever has read it; what is not of the plain form,
and every refusal, goes through h11.
"""

from __future__ import annotations

from typing import Final, cast

import h11
import wsproto
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import AcceptConnection, RejectConnection
from wsproto.handshake import H11Handshake
from wsproto.utilities import generate_accept_token

from uim.head import Head, head_of

# Such a request has a body, and h11 counts its bytes.
_HAS_BODY: Final = frozenset({b"content-length", b"transfer-encoding"})

_ACCEPTED: Final = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "


class Upgrading(wsproto.WSConnection):
    """The server's end until the handshake is over; then `connection` is the WebSocket."""

    def __init__(self) -> None:
        self.client = False
        self.handshake = Handshake()
        self.connection = None


class Handshake(H11Handshake):
    """wsproto's, but that a plain head is read and answered past h11."""

    def __init__(self) -> None:
        super().__init__(ConnectionType.SERVER)
        # The head, where h11 has not seen it.
        self._plain_head = b""

    def receive_data(self, data: bytes | None) -> None:
        head = head_of(data or b"")
        if head is None or not _is_plain(head):
            super().receive_data(data)
            return
        self._plain_head = data or b""
        self._events.append(self._process_connection_request(cast(h11.Request, head)))

    def _accept(self, event: AcceptConnection) -> bytes:
        request = self._initiating_request
        asks_more = bool(event.extensions or event.extra_headers)
        if not self._plain_head or request is None or asks_more or event.subprotocol not in (None, *request.subprotocols):
            self._let_h11_read()
            return super()._accept(event)
        fields = [_ACCEPTED, generate_accept_token(dict(request.extra_headers)[b"sec-websocket-key"])]
        if event.subprotocol is not None:
            fields += [b"\r\nSec-WebSocket-Protocol: ", event.subprotocol.encode("ascii")]
        self._connection = Connection(ConnectionType.SERVER)
        self._state = ConnectionState.OPEN
        return b"".join((*fields, b"\r\n\r\n"))

    def _reject(self, event: RejectConnection) -> bytes:
        self._let_h11_read()
        return super()._reject(event)

    def _let_h11_read(self) -> None:
        head, self._plain_head = self._plain_head, b""
        if head:
            self._h11_connection.receive_data(head)
            self._h11_connection.next_event()


def _is_plain(head: Head) -> bool:
    """An upgrade without a body, no field twice."""
    names = {name for name, _ in head.headers}
    return head.asks_for_upgrade and len(names) == len(head.headers) and b"host" in names and names.isdisjoint(_HAS_BODY)
