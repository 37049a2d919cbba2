"""The codec of client frames: any text gives a frame, Malformed or Refused, never another exception; and what each is told.

Rule: `outcome` is the one way in; it also makes the ERROR frame that a client would get, which must itself be sayable and short.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args
from uuid import UUID

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from uim.wire.codec import KNOWN_TYPES, Codec, Malformed, Refused
from uim.wire.frames import ClientFrame, HeartbeatPing, MessageAck, MessageSend, SyncRequest, error_frame

CODEC = Codec()
SOMEWHERE = "01234567-89ab-cdef-0123-456789abcdef"
ID = UUID(SOMEWHERE)
MAX_ERROR_BYTES = 2_500


def outcome(text: str) -> ClientFrame | Malformed | Refused:
    try:
        return CODEC.decode(text)
    except Malformed as malformed:
        assert malformed.request_id is None or 1 <= len(malformed.request_id) <= 64
        return malformed
    except Refused as refused:
        told = error_frame(refused.error, request_id=refused.request_id, client_message_id=refused.client_message_id)
        assert len(told) <= MAX_ERROR_BYTES, "a refusal does not give its frame back in full"
        assert refused.error.code in ("bad_request", "validation_failed")
        return refused


PING = '{"type": "HEARTBEAT_PING", "payload": {}}'
SEND: dict[str, Any] = {"conversation_id": SOMEWHERE, "content": "hi", "client_message_id": "c1"}


def framed(kind: object, payload: object, **more: object) -> str:
    return json.dumps({"type": kind, "payload": payload, **more})


FRAMES: list[tuple[str, str, dict[str, Any]]] = [
    (PING, "HeartbeatPing", {"request_id": None}),
    ('{"payload":{},"type":"HEARTBEAT_PING"}', "HeartbeatPing", {}),
    (f" \n\t{PING}\r\n ", "HeartbeatPing", {}),
    (framed("HEARTBEAT_PING", {}, timestamp={"any": ["thing", None, 1.5]}), "HeartbeatPing", {}),
    (framed("HEARTBEAT_PING", {}, request_id="\N{FAMILY}\u200d x\n"), "HeartbeatPing", {"request_id": "\N{FAMILY}\u200d x\n"}),
    (framed("MESSAGE_SEND", SEND, request_id="r"), "MessageSend", {"request_id": "r"}),
    (framed("SYNC_REQUEST", {"last_sync_id": 2**53 - 1}, request_id="r"), "SyncRequest", {}),
]


@pytest.mark.parametrize(("text", "kind", "fields"), FRAMES, ids=range(len(FRAMES)))
def test_text_of_a_frame(text: str, kind: str, fields: dict[str, Any]) -> None:
    frame = outcome(text)
    assert type(frame).__name__ == kind
    assert {name: getattr(frame, name) for name in fields} == fields


def test_payloads_come_as_sent() -> None:
    content = "\ud83d\ude42 e\u0301 \N{ZERO WIDTH JOINER}\x01\x7f</script>'\"\\"
    sent = outcome(framed("MESSAGE_SEND", {**SEND, "content": content, "metadata": {"k\n": "v"}, "sender_id": SOMEWHERE}))
    assert isinstance(sent, MessageSend)
    assert sent.payload.conversation_id == ID and sent.payload.sender_id == ID
    assert sent.payload.content == content.encode("utf-16", "surrogatepass").decode("utf-16")
    assert sent.payload.metadata == {"k\n": "v"} and sent.payload.client_message_id == "c1"
    read = outcome(framed("MESSAGE_ACK", {"status": "read", "conversation_id": SOMEWHERE, "message_id": 7}))
    assert isinstance(read, MessageAck) and (read.payload.status, read.payload.message_id) == ("read", 7)


MALFORMED = [
    "", " ", "x", "{", "[]", "null", "1", '"text"', "true", "{}", "\ufeff" + PING, PING + "x", PING[:-1], PING + PING,
    '{"type":"HEARTBEAT_PING"}', '{"payload":{}}', framed(None, {}), framed(1, {}), framed([], {}), framed({}, {}),
    framed("HEARTBEAT_PING", None), framed("HEARTBEAT_PING", []), framed("HEARTBEAT_PING", "x"), framed("HEARTBEAT_PING", 1),
    framed("UNHEARD_OF", None), PING[:-1] + ",}", '{"type":"HEARTBEAT_PING","payload":{},"timestamp":NaN}',
    '{"type":"HEARTBEAT_PING","payload":{},"timestamp":-Infinity}', "{'type':'HEARTBEAT_PING','payload':{}}",
    '{"type":"HEARTBEAT_PING","payload":{},"request_id":"a\nb"}', "[" * 100_000, '{"a":' * 20_000, f"[{PING}]",
    '{"type":"HEARTBEAT_PING","payload":{},"timestamp":' + "[" * 60_000 + "]" * 60_000 + "}",
]  # fmt: skip


@pytest.mark.parametrize("text", MALFORMED, ids=lambda text: repr(text[:40]))
def test_text_that_is_no_frame(text: str) -> None:
    assert isinstance(outcome(text), Malformed)


def test_malformed_object_tells_its_request_id() -> None:
    for text, request_id in (
        (framed("HEARTBEAT_PING", None, request_id="r"), "r"),
        ('{"request_id":"r"}', "r"),
        ('{"request_id":1}', None),
        ('{"request_id":"' + "x" * 65 + '"}', None),
        ('{"request_id":"\\u0000"}', None),
        ("[]", None),
    ):
        malformed = outcome(text)
        assert isinstance(malformed, Malformed) and malformed.request_id == request_id


REFUSED: list[tuple[str, str, str | None]] = [
    (framed("UNHEARD_OF", {}), "bad_request", "type"),
    (framed("", {}), "bad_request", "type"),
    (framed("heartbeat_ping", {}), "bad_request", "type"),
    (framed("UNHEARD_OF\ud800", {}), "bad_request", "type"),
    (framed("MESSAGE_RECEIVE", {"content": "\ud800"}), "bad_request", "type"),
    (framed("HEARTBEAT_PING", {"x": 1}), "validation_failed", "x"),
    (framed("HEARTBEAT_PING", {}, x=1), "validation_failed", "x"),
    (framed("HEARTBEAT_PING", {}, request_id=1), "validation_failed", "request_id"),
    (framed("HEARTBEAT_PING", {}, request_id=""), "validation_failed", "request_id"),
    (framed("HEARTBEAT_PING", {}, request_id="x" * 65), "validation_failed", "request_id"),
    (framed("HEARTBEAT_PING", {}, request_id="a\0"), "validation_failed", "request_id"),
    (framed("HEARTBEAT_PING", {}, request_id="a\ud800"), "validation_failed", "request_id"),
    (framed("HEARTBEAT_PING", {}, timestamp=["\ud800"]), "validation_failed", "timestamp"),
    ('{"type":"HEARTBEAT_PING","payload":{},"timestamp":1e999}', "validation_failed", "timestamp"),
    ('{"type":"HEARTBEAT_PING","payload":{},"timestamp":' + "1" * 6_000 + "}", "validation_failed", "timestamp"),
    (framed("MESSAGE_SEND", {}), "validation_failed", "conversation_id"),
    (framed("MESSAGE_SEND", {**SEND, "content": "\ud83d"}), "validation_failed", "content"),
    (framed("MESSAGE_SEND", {**SEND, "content": "x" * 10_001}), "validation_failed", "content"),
    (framed("MESSAGE_SEND", {**SEND, "metadata": {"\ud800": "v"}}), "validation_failed", "metadata"),
    (framed("MESSAGE_SEND", {**SEND, "metadata": {"k": "\ud800"}}), "validation_failed", "metadata.k"),
    (framed("MESSAGE_SEND", {**SEND, "message_type": "system"}), "validation_failed", "message_type"),
    (framed("MESSAGE_SEND", {**SEND, "sender_id": "me"}), "validation_failed", "sender_id"),
    (framed("MESSAGE_ACK", {"status": "delivered", "message_id": 2**53}), "validation_failed", "message_id"),
    (framed("MESSAGE_ACK", {"status": "delivered", "message_id": 1.5}), "validation_failed", "message_id"),
    (framed("MESSAGE_ACK", {"status": "sent", "message_id": 1}), "validation_failed", "status"),
    (framed("SYNC_REQUEST", {"last_sync_id": -1}), "validation_failed", "last_sync_id"),
    (framed("SYNC_REQUEST", {"last_sync_id": "1"}), "validation_failed", "last_sync_id"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "code", "field"), REFUSED, ids=lambda value: repr(value)[:60])
def test_frame_that_breaks_a_rule(text: str, code: str, field: str | None) -> None:
    refused = outcome(text)
    assert isinstance(refused, Refused)
    assert (refused.error.code, refused.error.field) == (code, field)


def test_refusal_gives_back_the_ids_that_it_was_given() -> None:
    for payload, client_id in (
        ({"client_message_id": "c1"}, "c1"),
        ({"message_id": "m1"}, "m1"),
        ({"client_message_id": "c1", "message_id": "m1"}, "c1"),
        ({"client_message_id": "\N{FAMILY}\u200d\N{FAMILY}"}, "\N{FAMILY}\u200d\N{FAMILY}"),
        ({"client_message_id": 1}, None),
        ({"client_message_id": ""}, None),
        ({"client_message_id": "x" * 65}, None),
        ({"client_message_id": "\0"}, None),
        ({"client_message_id": "\ud800"}, None),
        ({"message_id": 7}, None),
    ):
        refused = outcome(framed("MESSAGE_SEND", payload, request_id="r"))
        assert isinstance(refused, Refused), payload
        assert (refused.request_id, refused.client_message_id) == ("r", client_id)


def test_long_mistakes_are_told_in_short() -> None:
    long = "x" * 100_000
    for text in (
        framed("HEARTBEAT_PING", {long: 1}),
        framed("HEARTBEAT_PING", {}, **{long: 1}),
        framed("MESSAGE_ACK", {"status": long, "message_id": 1}),
        framed("MESSAGE_SEND", {**SEND, "metadata": {long: 1}}),
        framed("MESSAGE_SEND", {**SEND, "metadata": {long: "\ud800"}}),
        framed(long, {}),
    ):
        assert isinstance(outcome(text), Refused)


def test_every_frame_type_is_known() -> None:
    assert {"HEARTBEAT_PING", "MESSAGE_SEND", "MESSAGE_ACK", "SYNC_REQUEST"} <= KNOWN_TYPES
    assert len(KNOWN_TYPES) == len(get_args(ClientFrame))


# -- any text ---------------------------------------------------------------------------------------------------------------

# Every code point, halves of surrogate pairs too.
ANY_TEXT = st.text(st.characters(), max_size=200) | st.text(st.integers(0, 0x10FFFF).map(chr), max_size=50)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT | st.sampled_from([SOMEWHERE, "read", 2**53, 7])
ANY_JSON = st.recursive(
    LEAVES, lambda parts: st.lists(parts, max_size=4) | st.dictionaries(ANY_TEXT, parts, max_size=4), max_leaves=12
)
VALID: list[dict[str, Any]] = [
    {"type": "HEARTBEAT_PING", "request_id": "r", "payload": {}},
    {
        "type": "MESSAGE_SEND",
        "request_id": "r",
        "timestamp": 1,
        "payload": {**SEND, "metadata": {"k": "v"}, "sender_id": SOMEWHERE},
    },
    {"type": "MESSAGE_ACK", "payload": {"status": "read", "conversation_id": SOMEWHERE, "message_id": 7}},
    {"type": "SYNC_REQUEST", "request_id": "r", "payload": {"last_sync_id": 7}},
]


@st.composite
def changed_frames(draw: st.DrawFn) -> str:
    """A valid frame with one or two of its values, or its names, replaced by anything."""
    frame = json.loads(json.dumps(draw(st.sampled_from(VALID))))
    for _ in range(draw(st.integers(1, 2))):
        place = frame if draw(st.booleans()) or not isinstance(frame.get("payload"), dict) else frame["payload"]
        name = draw(st.sampled_from([*place, "payload", "request_id", "metadata"]) | ANY_TEXT)
        place[name] = draw(ANY_JSON)
    return json.dumps(frame, ensure_ascii=draw(st.booleans()))


@st.composite
def damaged_frames(draw: st.DrawFn) -> str:
    """The text of a valid frame with a piece cut out and another put in."""
    text = json.dumps(draw(st.sampled_from(VALID)))
    start = draw(st.integers(0, len(text)))
    end = draw(st.integers(start, min(len(text), start + 20)))
    pieces = [
        '"',
        "\\",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\\ud800",
        "\\u0000",
        "1e999",
        "NaN",
        "-",
        '"payload":{}',
        '"type":1,',
        "\0",
    ]
    return text[:start] + draw(st.sampled_from(pieces) | ANY_TEXT) + text[end:]


@given(ANY_TEXT | ANY_JSON.map(json.dumps) | changed_frames() | damaged_frames())
@example("\ud800")
@example('"\ud800')
def test_any_text_gives_a_frame_or_is_malformed_or_refused(text: str) -> None:
    found = outcome(text)
    assert isinstance(found, HeartbeatPing | MessageSend | MessageAck | SyncRequest | Malformed | Refused)
    if not isinstance(found, Malformed | Refused):
        # What got past the codec can be said again, and means the same.
        again = outcome(msgspec.json.encode(found).decode())
        assert type(again) is type(found) and again.payload == found.payload


@given(damaged_frames() | ANY_JSON.map(json.dumps))
def test_malformed_is_only_what_is_no_object_with_a_type_and_a_payload(text: str) -> None:
    """Independently of the codec: a text that is such an object is never counted towards 4400."""

    def no_constant(word: str) -> None:
        raise ValueError(word)

    try:
        shape = json.loads(text, parse_constant=no_constant)
    except ValueError:
        shape = None
    is_frame = isinstance(shape, dict) and isinstance(shape.get("type"), str) and isinstance(shape.get("payload"), dict)
    assert isinstance(outcome(text), Malformed) is not is_frame


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_a_depth_that_is_just_read_but_not_walked_is_refused_like_any_other(opening: str, closing: str) -> None:
    """Each look at a bad frame goes as deep as it is nested, and the interpreter ends one of them a little earlier."""

    def decode_all() -> set[type]:
        depths = range(sys.getrecursionlimit() - 100, sys.getrecursionlimit() + 1)
        nested = (opening * depth + "1" + closing * depth for depth in depths)
        return {type(outcome('{"type":"MESSAGE_SEND","payload":{"content":5,"x":' + part + "}}")) for part in nested}

    with ThreadPoolExecutor(1) as thread:  # its stack is short, whatever runs the tests
        assert thread.submit(decode_all).result() == {Malformed, Refused}
