"""The bytes of the server's frames: valid JSON in valid WebSocket frames at every size, and content that survives unchanged.

Rule: what reads them is a client of another make (wsproto, and Python's json), never our own code.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from wsproto import ConnectionType
from wsproto.connection import Connection
from wsproto.events import TextMessage

from uim.errors import UIMError, invalid
from uim.model.ids import rfc3339
from uim.model.message import Entry
from uim.wire.frames import (
    check_metadata,
    check_text,
    error_frame,
    frame,
    message_object,
    message_receive,
    raw_frame,
    sync_batch_payload,
    websocket_text,
)

CONVERSATION = UUID(int=1)
SENDER = UUID(int=2)
AT = datetime(2026, 1, 5, 10, 0, 0, 123_999, UTC)
# The length field grows at 126 and at 65,536 bytes (RFC 6455 5.2).
SIZES = [0, 1, 124, 125, 126, 127, 128, 255, 256, 65_534, 65_535, 65_536, 65_537, 131_072, 256 * 1024]


def read_by_a_client(data: bytes) -> list[str]:
    """The texts in these bytes, as a client's library reads them; fails unless they end with a frame."""
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(data)
    texts, piece = [], ""
    for event in client.events():
        assert isinstance(event, TextMessage), event
        piece += event.data
        if event.message_finished:
            texts.append(piece)
            piece = ""
    assert piece == ""
    return texts


def said(data: bytes) -> dict[str, Any]:
    [text] = read_by_a_client(data)
    found: dict[str, Any] = json.loads(text)
    return found


def entry(
    content: str = "hi", metadata: str | None = None, client_message_id: str | None = "c1", *, deleted: bool = False
) -> Entry:
    return Entry(7, CONVERSATION, 3, SENDER, client_message_id, content, "text", metadata, AT, deleted)


@pytest.mark.parametrize("size", SIZES)
def test_frame_of_every_size_is_one_whole_text_frame(size: int) -> None:
    payload = b"x" * size
    data = websocket_text(payload)
    assert read_by_a_client(data) == [payload.decode()]
    assert read_by_a_client(data * 3) == [payload.decode()] * 3, "frames can be joined"
    head = len(data) - size
    assert head == (2 if size < 126 else 4 if size < 65_536 else 10)
    assert data[0] == 0x81 and data[1] < 0x80, "whole, text, no extension, not masked"


@given(st.integers(0, 300) | st.integers(65_500, 65_600))
def test_size_around_each_bound(size: int) -> None:
    assert read_by_a_client(websocket_text(b"y" * size)) == ["y" * size]


@given(st.text(max_size=300), st.none() | st.text(min_size=1, max_size=64))
def test_raw_frame_is_json_with_what_it_was_given(content: str, request_id: str | None) -> None:
    told = said(raw_frame("SOME_TYPE", json.dumps({"content": content}).encode(), request_id))
    assert told["type"] == "SOME_TYPE" and told["payload"] == {"content": content}
    assert told.get("request_id") == request_id and ("request_id" in told) is (request_id is not None)
    assert isinstance(told["timestamp"], int) and told["timestamp"] > 1_700_000_000_000
    assert told.keys() <= {"type", "timestamp", "request_id", "payload"}


@given(st.text(min_size=1, max_size=2_000), st.dictionaries(st.text(max_size=20), st.text(max_size=50), max_size=5))
def test_content_and_metadata_survive_unchanged(content: str, metadata: dict[str, str]) -> None:
    try:
        stored = check_metadata(metadata, "metadata")
    except UIMError as refusal:
        assert refusal.field == "metadata" and any("\0" in key + value for key, value in metadata.items())
        return
    one = entry(content, stored)
    told = said(message_receive(one, own=False))
    assert told["type"] == "MESSAGE_RECEIVE"
    assert told["payload"] == {
        "message_id": 7, "conversation_id": str(CONVERSATION), "seq": 3, "sender_id": str(SENDER), "content": content,
        "message_type": "text", "created_at": "2026-01-05T10:00:00.123Z", "metadata": metadata,
    }  # fmt: skip
    assert said(message_receive(one, own=True))["payload"] == {**told["payload"], "client_message_id": "c1"}


@given(st.text(min_size=1, max_size=64))
def test_senders_own_id_survives_and_is_told_to_no_other(client_message_id: str) -> None:
    one = entry(client_message_id=client_message_id)
    assert json.loads(message_object(one, own=True))["client_message_id"] == client_message_id
    assert "client_message_id" not in json.loads(message_object(one, own=False))


def test_message_is_encoded_once_for_each_kind_of_reader() -> None:
    one = entry()
    for own in (True, False):
        assert message_object(one, own=own) is message_object(one, own=own)
        assert message_receive(one, own=own) is message_receive(one, own=own)
    systems = entry(client_message_id=None)
    assert message_object(systems, own=True) is message_object(systems, own=False)
    assert message_receive(systems, own=True) is message_receive(systems, own=False)
    assert json.loads(message_object(entry("", deleted=True), own=True))["deleted"] is True
    assert "deleted" not in json.loads(message_object(one, own=True))


@given(
    st.lists(st.text(max_size=100), max_size=5),
    st.lists(st.text(max_size=100), max_size=3),
    st.integers(0, 2**53 - 1),
    st.booleans(),
    st.booleans(),
)
def test_sync_batch_joins_encoded_objects(
    contents: list[str], names: list[str], next_sync_id: int, has_more: bool, truncated: bool
) -> None:
    messages = [message_object(entry(content), own=True) for content in contents]
    conversations = [json.dumps({"name": name}).encode() for name in names]
    payload = sync_batch_payload(messages, conversations, next_sync_id=next_sync_id, has_more=has_more, truncated=truncated)
    told = said(raw_frame("SYNC_BATCH", payload))["payload"]
    assert [message["content"] for message in told["messages"]] == contents
    assert [conversation["name"] for conversation in told["conversations"]] == names
    assert (told["next_sync_id"], told["has_more"], told.get("truncated", False)) == (next_sync_id, has_more, truncated)
    assert ("truncated" in told) is truncated


def test_error_tells_what_it_refers_to_and_nothing_empty() -> None:
    bare = said(error_frame(UIMError("unavailable")))
    assert (bare["type"], bare["payload"]) == ("ERROR", {"code": "unavailable", "message": "unavailable"})
    refusal = UIMError("rate_limited", "slower", retry_after_s=1.5)
    full = said(error_frame(refusal, request_id="r", client_message_id="c1", conversation_id=CONVERSATION))
    assert full["request_id"] == "r"
    assert full["payload"] == {
        "code": "rate_limited", "message": "slower", "retry_after": 1.5, "client_message_id": "c1",
        "conversation_id": str(CONVERSATION),
    }  # fmt: skip
    assert said(error_frame(invalid("content", "is too long")))["payload"]["field"] == "content"
    assert said(frame("X", {"at": CONVERSATION}))["payload"] == {"at": str(CONVERSATION)}


@pytest.mark.parametrize(
    ("metadata", "is_fine"),
    [
        ({"k": "v"}, True),
        ({"k": "x" * 4_088}, True),
        ({"k": "x" * 4_089}, False),
        ({"k": "\N{SLIGHTLY SMILING FACE}" * 1_022}, True),
        ({"k": "\N{SLIGHTLY SMILING FACE}" * 1_023}, False),
        ({"k": '"' * 2_044}, True),
        ({"k": '"' * 2_045}, False),
        ({"k": "\0"}, False),
        ({"\0": "v"}, False),
        ({"k": "\\u0000"}, True),
        ({"": ""}, True),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_metadata_has_at_most_4096_bytes_as_json_and_no_nul(metadata: dict[str, str], is_fine: bool) -> None:
    if is_fine:
        assert json.loads(check_metadata(metadata, "metadata") or "") == metadata
        return
    with pytest.raises(UIMError) as refusal:
        check_metadata(metadata, "metadata")
    assert (refusal.value.code, refusal.value.field) == ("validation_failed", "metadata")


def test_metadata_that_says_the_same_is_stored_alike() -> None:
    assert (
        check_metadata({"b": "2", "a": "1"}, "metadata")
        == check_metadata({"a": "1", "b": "2"}, "metadata")
        == '{"a":"1","b":"2"}'
    )
    assert check_metadata(None, "metadata") is None and check_metadata({}, "metadata") is None


def test_nul_is_refused_in_a_text_by_name() -> None:
    assert check_text("a\N{SYMBOL FOR NULL}b", "content") == "a\N{SYMBOL FOR NULL}b"
    with pytest.raises(UIMError) as refusal:
        check_text("a\0b", "content")
    assert (refusal.value.code, refusal.value.field) == ("validation_failed", "content")


@settings(max_examples=500)
@given(
    st.datetimes(timezones=st.just(UTC))
    # Elsewhere the first day and the last may lie beyond what there is in UTC.
    | st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30), timezones=st.timezones())
)
@example(datetime(2026, 1, 5, 10, tzinfo=UTC))
@example(datetime(2026, 1, 5, 10, 0, 0, 999_999, tzinfo=UTC))
@example(datetime(1, 1, 2, 0, 0, 0, 1, tzinfo=UTC))
@example(datetime(2026, 1, 5, 10, tzinfo=timezone(timedelta(hours=-5, minutes=-30))))
def test_a_time_is_written_in_utc_with_milliseconds_cut_off(at: datetime) -> None:
    assert rfc3339(at) == at.astimezone(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
