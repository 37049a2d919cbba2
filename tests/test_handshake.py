"""An upgrade is read and answered past h11 only as wsproto with h11 does it: whatever the bytes, the two never differ."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import cast

import pytest
import wsproto
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from wsproto.connection import ConnectionType
from wsproto.events import AcceptConnection, Event, RejectConnection, RejectData, Request
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from tests.test_whole import NAMES, VALUES, fields, mostly, starts
from uim.listener import MAX_FIELDS, MAX_HEAD_BYTES
from uim.live.handshake import Upgrading

pytestmark = pytest.mark.timeout(60)

KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
VERSION = b"Sec-WebSocket-Version: 13\r\n"
ASKS = b"Host: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + KEY + VERSION
HEAD = b"GET /ws?device_id=x HTTP/1.1\r\n" + ASKS

# What the server may say to it.
ANSWERS: dict[str, list[Event]] = {
    "accepts": [AcceptConnection()],
    "accepts a protocol": [AcceptConnection(subprotocol="uim.v1")],
    "accepts with a field": [AcceptConnection(extra_headers=[(b"X", b"y")])],
    "refuses": [RejectConnection(status_code=401, headers=[(b"Content-Length", b"2"), (b"Connection", b"close")], has_body=True),
                RejectData(data=b"no")],
    "refuses without a word": [RejectConnection(status_code=503)],
}  # fmt: skip


def conversed(make: Callable[[], wsproto.WSConnection], head: bytes, answer: list[Event]) -> SimpleNamespace:
    """What the server's end makes of a head, says, and makes of a frame after that."""
    server = make()
    seen = SimpleNamespace(asked=[], fault=None, said=[], heard=[])
    try:
        server.receive_data(head)
    except (RemoteProtocolError, UnicodeError) as fault:
        seen.fault = str(fault)
        if isinstance(fault, RemoteProtocolError) and fault.event_hint:
            seen.said.append(server.send(fault.event_hint))
        seen.state = server.state
        return seen
    seen.asked = list(server.events())
    for each in answer if seen.asked else []:
        try:
            seen.said.append(server.send(each))
        except LocalProtocolError:
            seen.said.append(None)
    if server.connection is not None:
        server.receive_data(b"\x81\x81aaaa\x09")
        seen.heard = list(server.events())
    seen.state = server.state
    return seen


def is_past_h11(head: bytes) -> bool:
    server = Upgrading()
    server.receive_data(head)
    return bool(server.handshake._plain_head)  # type: ignore[attr-defined]  # wsproto calls it an H11Handshake


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=list(ANSWERS))
@pytest.mark.parametrize(
    "head",
    [
        HEAD + b"\r\n",
        HEAD + b"Sec-WebSocket-Protocol: uim.v1, chat\r\n\r\n",
        HEAD + b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\nX: caf\xc3\xa9\r\n\r\n",
        HEAD.replace(b"Connection: Upgrade", b"Connection: keep-alive, Upgrade").replace(b"websocket\r\n", b"WebSocket\r\n") + b"\r\n",
    ],
)
def test_an_upgrade_of_the_plain_form_is_read_and_answered_alike(head: bytes, answer: list[Event]) -> None:
    assert is_past_h11(head)
    ours = check(head, answer)
    assert isinstance(ours.asked[0], Request) and all(ours.said) == (answer != ANSWERS["accepts a protocol"] or b"uim.v1" in head)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        HEAD,
        HEAD + b"\r\n\x81\x81aaaa\x09",
        HEAD + b"\r\n\x81\r\n\r\n",
        HEAD + b"\n",
        HEAD + b"Content-Length: 2\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
        HEAD + KEY + b"\r\n",
        HEAD + b"X: 1\r\nX: 2\r\n\r\n",
        HEAD + b"X: a\r\n b\r\n\r\n",
        HEAD.replace(b"Host: x\r\n", b"") + b"\r\n",
        HEAD.replace(b"1.1", b"1.0") + b"\r\n",
        HEAD.replace(b"Connection: Upgrade", b"Connection: close") + b"\r\n",
        HEAD + b"X: y\r\n" * MAX_FIELDS + b"\r\n",
        HEAD + b"X: " + b"y" * MAX_HEAD_BYTES + b"\r\n\r\n",
    ],
    ids=lambda head: repr(head[-40:]),
)
def test_everything_else_is_left_to_h11(head: bytes) -> None:
    with suppress(RemoteProtocolError):
        assert not is_past_h11(head)
    check(head, ANSWERS["accepts"])


def check(head: bytes, answer: list[Event]) -> SimpleNamespace:
    ours = conversed(Upgrading, head, answer)
    assert ours == conversed(lambda: wsproto.WSConnection(ConnectionType.SERVER), head, answer)
    return ours


ASKED = [b"Host", b"Connection", b"Upgrade", b"Sec-WebSocket-Key", b"Sec-WebSocket-Version", b"Sec-WebSocket-Protocol", *NAMES]
ASKED_VALUES = [b"x", b"Upgrade", b"websocket", b"dGhlIHNhbXBsZSBub25jZQ==", b"13", b"12", b"uim.v1", b"h2c", b"\xc3\xa9.x", *VALUES]
odd_fields = fields | st.tuples(st.sampled_from(ASKED), st.just(b": "), st.sampled_from(ASKED_VALUES), st.just(b"\r\n")).map(b"".join)
usual = st.permutations(ASKS.splitlines(keepends=True)).map(b"".join)
# Of the usual fields some leave one out, some have one more.
less = st.permutations(ASKS.splitlines(keepends=True)).map(lambda lines: b"".join(lines[1:]))
more = st.lists(odd_fields, max_size=2).map(b"".join)
heads = st.tuples(mostly([b"GET /ws HTTP/1.1\r\n"]) | starts, usual | usual | less, more, mostly([b"\r\n", b"\n", b""])).map(b"".join)


@settings(max_examples=1500, deadline=None)
@given(heads, st.sampled_from(list(ANSWERS.values())))
@example(HEAD.replace(b"Host: x", b"Host: \xff") + b"\r\n", ANSWERS["accepts"])
@example(HEAD.replace(b"websocket\r\n", b"h2c\r\n") + b"\r\n", ANSWERS["accepts"])
@example(HEAD.replace(b"GET", b"POST") + b"\r\n", ANSWERS["accepts"])
@example(HEAD.replace(b"13\r\n", b"8\r\n") + b"\r\n", ANSWERS["accepts"])
@example(HEAD.replace(KEY, b"") + b"\r\n", ANSWERS["accepts"])
def test_whatever_comes_is_read_and_answered_alike(head: bytes, answer: list[Event]) -> None:
    is_read = bool(check(head, cast(list[Event], answer)).asked)
    event(("read past h11" if is_past_h11(head) else "read by h11") if is_read else "refused")
