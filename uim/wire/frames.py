"""The frames of the WebSocket protocol: what a client may say, and how the server's answers are built.

A client's frame is one tagged Struct, so text becomes a checked frame in a single pass (codec.py). A server's frame is bytes,
made once however many connections get it. Rule: every check of outside text is here; what got past it is safe everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType

from uim.errors import UIMError, invalid
from uim.model.ids import MAX_MESSAGE_ID, rfc3339
from uim.model.message import DeliveryCounts, DeliveryStatus, Entry
from uim.model.person import MAX_STATUS_CHARS

MAX_CONTENT_CHARS: Final = 10_000
MAX_METADATA_BYTES: Final = 4_096
MAX_FRAME_IN_BYTES: Final = 128 * 1024
MAX_FRAME_OUT_BYTES: Final = 256 * 1024

Content = Annotated[str, Meta(min_length=1, max_length=MAX_CONTENT_CHARS)]
ClientId = Annotated[str, Meta(min_length=1, max_length=64)]
MessageId = Annotated[int, Meta(ge=0, le=MAX_MESSAGE_ID)]
Metadata = dict[str, str]


class _Payload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Nothing(_Payload, frozen=True):
    pass


class Send(_Payload, frozen=True):
    conversation_id: UUID
    content: Content
    client_message_id: ClientId | UnsetType = UNSET
    message_id: ClientId | UnsetType = UNSET  # the specification's name for the client's own id
    message_type: Literal["text"] = "text"
    metadata: Metadata | None = None
    sender_id: UUID | UnsetType = UNSET


class Ack(_Payload, frozen=True):
    status: Literal["delivered", "read"]
    message_id: MessageId
    conversation_id: UUID | UnsetType = UNSET


class TypingState(_Payload, frozen=True):
    conversation_id: UUID
    typing: bool


class PresenceChoice(_Payload, frozen=True):
    availability: Literal["available", "away", "busy", "invisible"]
    status_text: Annotated[str, Meta(max_length=MAX_STATUS_CHARS)] | UnsetType | None = UNSET


class SyncFrom(_Payload, frozen=True):
    last_sync_id: MessageId


class _Frame(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", kw_only=True):
    request_id: ClientId | None = None
    timestamp: Any = None  # a client's clock is not believed


class HeartbeatPing(_Frame, frozen=True, tag="HEARTBEAT_PING"):
    payload: Nothing


class MessageSend(_Frame, frozen=True, tag="MESSAGE_SEND"):
    payload: Send


class MessageAck(_Frame, frozen=True, tag="MESSAGE_ACK"):
    payload: Ack


class TypingIndicator(_Frame, frozen=True, tag="TYPING_INDICATOR"):
    payload: TypingState


class PresenceUpdate(_Frame, frozen=True, tag="PRESENCE_UPDATE"):
    payload: PresenceChoice


class SyncRequest(_Frame, frozen=True, tag="SYNC_REQUEST"):
    payload: SyncFrom


ClientFrame = HeartbeatPing | MessageSend | MessageAck | TypingIndicator | PresenceUpdate | SyncRequest


def check_text(text: str, field: str) -> str:
    """PostgreSQL's text cannot hold NUL. (Lone surrogates do not get past the JSON decoder.)"""
    if "\0" in text:
        raise invalid(field, "must not contain NUL")
    return text


def check_metadata(metadata: Metadata | None, field: str) -> str | None:
    """Metadata as canonical JSON text; None for none. Raises UIMError validation_failed."""
    if not metadata:
        return None
    encoded = msgspec.json.encode(metadata, order="deterministic")
    if len(encoded) > MAX_METADATA_BYTES:
        raise invalid(field, f"must be at most {MAX_METADATA_BYTES} bytes as JSON")
    if b"\\u0000" in encoded and any("\0" in part for pair in metadata.items() for part in pair):
        raise invalid(field, "must not contain NUL")
    return encoded.decode()


# -- what the server says -------------------------------------------------------------------------------------------------


class _Message(msgspec.Struct, omit_defaults=True):
    """The protocol's `message` as others see it; `deleted` stands there only where it is true."""

    message_id: int
    conversation_id: UUID
    seq: int
    sender_id: UUID
    content: str
    message_type: str
    created_at: str
    metadata: msgspec.Raw
    deleted: bool = False


_NO_METADATA: Final = msgspec.Raw(b"{}")


def _metadata(entry: Entry) -> msgspec.Raw:
    return msgspec.Raw(entry.metadata.encode()) if entry.metadata else _NO_METADATA


def _message(entry: Entry) -> _Message:
    return _Message(
        entry.message_id,
        entry.conversation_id,
        entry.seq,
        entry.sender_id,
        entry.content,
        entry.message_type,
        rfc3339(entry.created_at),
        _metadata(entry),
        entry.deleted,
    )


class TrackedMessage(_Message, omit_defaults=True):
    """A `message` as one user sees it; of their own ones with what has become of them, where that was asked for."""

    client_message_id: str | None = None
    delivery_status: DeliveryCounts | DeliveryStatus | None = None


def tracked_message(entry: Entry, *, own: bool, status: DeliveryCounts | DeliveryStatus | None) -> TrackedMessage:
    """For pages, which are encoded as a whole: in half the time of as many objects that are joined."""
    return TrackedMessage(
        entry.message_id,
        entry.conversation_id,
        entry.seq,
        entry.sender_id,
        entry.content,
        entry.message_type,
        rfc3339(entry.created_at) if status is None else status.sent,
        _metadata(entry),
        entry.deleted,
        entry.client_message_id if own else None,
        status,
    )


def message_object(entry: Entry, *, own: bool) -> bytes:
    """The protocol's `message`, encoded once and kept with the entry; `own`: as its sender sees it."""
    if not own or entry.client_message_id is None:
        if entry.others is None:
            entry.others = msgspec.json.encode(_message(entry))
        return entry.others
    if entry.own is None:
        client_id = msgspec.json.encode(entry.client_message_id)
        entry.own = message_object(entry, own=False)[:-1] + b',"client_message_id":' + client_id + b"}"
    return entry.own


def hidden_object(entry: Entry) -> bytes:
    """A message for the one who has deleted it for themselves: its place alone, so that no page has a hole."""
    place = {"message_id": entry.message_id, "conversation_id": entry.conversation_id, "seq": entry.seq, "hidden": True}
    return msgspec.json.encode(place)


def websocket_text(payload: bytes) -> bytes:
    """One unmasked, unfragmented WebSocket text frame (RFC 6455 5.2): what a server sends is alike for every client."""
    size = len(payload)
    if size < 126:
        return b"\x81" + bytes((size,)) + payload
    if size < 65536:
        return b"\x81\x7e" + size.to_bytes(2, "big") + payload
    return b"\x81\x7f" + size.to_bytes(8, "big") + payload


def _now_ms() -> bytes:
    return b"%d" % (time.time_ns() // 1_000_000)


def raw_frame(kind: str, payload: bytes, request_id: str | None = None) -> bytes:
    """A server frame around an encoded payload, ready for the socket."""
    head = b'{"type":"' + kind.encode() + b'","timestamp":' + _now_ms()
    if request_id is not None:
        head += b',"request_id":' + msgspec.json.encode(request_id)
    return websocket_text(head + b',"payload":' + payload + b"}")


def frame(kind: str, payload: object, request_id: str | None = None) -> bytes:
    """A server frame around a payload that msgspec can encode."""
    return raw_frame(kind, msgspec.json.encode(payload), request_id)


def message_receive(entry: Entry, *, own: bool) -> bytes:
    """MESSAGE_RECEIVE of an entry: made once for its sender's devices and once for all others."""
    if own and entry.client_message_id is not None:
        if entry.live_own is None:
            entry.live_own = raw_frame("MESSAGE_RECEIVE", message_object(entry, own=True))
        return entry.live_own
    if entry.live is None:
        entry.live = raw_frame("MESSAGE_RECEIVE", message_object(entry, own=False))
    return entry.live


def sync_batch_payload(
    messages: Sequence[bytes], conversations: Sequence[bytes], *, next_sync_id: int, has_more: bool, truncated: bool = False
) -> bytes:
    """The payload of SYNC_BATCH (and the answer of GET /api/sync) from encoded objects."""
    return b"".join(
        (
            b'{"messages":[',
            b",".join(messages),
            b'],"conversations":[',
            b",".join(conversations),
            b'],"next_sync_id":%d,"has_more":%s' % (next_sync_id, b"true" if has_more else b"false"),
            b',"truncated":true}' if truncated else b"}",
        )
    )


def error_frame(
    error: UIMError, *, request_id: str | None = None, client_message_id: str | None = None, conversation_id: UUID | None = None
) -> bytes:
    """ERROR: the refusal, and what it refers to."""
    payload: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.field is not None:
        payload["field"] = error.field
    if error.retry_after_s is not None:
        payload["retry_after"] = error.retry_after_s
    if client_message_id is not None:
        payload["client_message_id"] = client_message_id
    if conversation_id is not None:
        payload["conversation_id"] = conversation_id
    return frame("ERROR", payload, request_id)
