"""Each type of frame, each field of it and its payload, each kind of wrong value: one exact ERROR, and the connection stays."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

from tests.house import Frame
from tests.refusals.frames import FrameType, Speaker, fault_of, frame_types, payload_of, text_of, texts
from tests.refusals.shapes import Attempt, attempts, fits
from tests.refusals.world import World

pytestmark = pytest.mark.timeout(60)

Fault = tuple[str, str]


def is_allowed(schema: Any, attempt: Attempt, known: Any, *, is_required: bool) -> bool:
    if attempt.text is None:
        return not is_required
    return not attempt.is_beyond and not attempt.is_unsayable and fits(schema, attempt.value, known)


def id_given(payload: dict[str, str]) -> str | None:
    """The client's own id in this payload, if it is one: what an ERROR gives back."""
    found = json.loads(payload.get("client_message_id", payload.get("message_id", "null")))
    is_one = isinstance(found, str) and 1 <= len(found) <= 64 and not any(c == "\0" or "\ud800" <= c <= "\udfff" for c in found)
    return found if is_one else None


async def try_payload(world: World, speaker: Speaker, kind: FrameType) -> AsyncIterator[Fault]:
    for field, schema in kind.payload.items():
        for attempt in attempts(schema):
            if attempt.is_too_deep:
                continue  # No reader takes it for JSON: test_malformed.py.
            payload = {**texts(payload_of(kind.name, world)), field: attempt.text or ""}
            if attempt.text is None:
                del payload[field]
            request_id = speaker.new_request_id()
            text = text_of(kind.name, payload, {"request_id": json.dumps(request_id)})
            if is_allowed(schema, attempt, kind.known, is_required=field in kind.required):
                wrong = await fault_of_allowed(speaker, kind, text, request_id)
            else:
                wrong = await speaker.fault(
                    text,
                    "validation_failed",
                    None if attempt.is_beyond else field,
                    request_id=request_id,
                    client_message_id=id_given(payload),
                )
            if wrong:
                yield f"{field} {attempt.kind}", wrong


async def fault_of_allowed(speaker: Speaker, kind: FrameType, text: str, request_id: str) -> str | None:
    """What is well-formed is taken, or refused by a rule of the room's; a send is always answered."""
    came = await speaker.answers_to(text, request_id)
    if kind.name == "MESSAGE_SEND" and not came:
        came = [await speaker.device.expect(lambda frame: frame.get("request_id") == request_id)]
    errors = [frame for frame in came if frame["type"] == "ERROR"]
    for error in errors:
        if error["payload"]["code"] not in ("validation_failed", "not_found", "conflict") or error["request_id"] != request_id:
            return str(error)
    return f"{len(errors)} errors" if len(errors) > 1 else None


async def try_own_fields(world: World, speaker: Speaker, kind: FrameType) -> AsyncIterator[Fault]:
    """request_id and timestamp. A timestamp is ignored, whatever it is, as long as it is JSON of sayable text."""
    for field, schema in kind.fields.items():
        for attempt in attempts(schema):
            is_ignored = field == "timestamp" and not attempt.is_beyond and "surrogate" not in attempt.kind
            if attempt.is_too_deep or is_ignored or is_allowed(schema, attempt, kind.known, is_required=False):
                continue
            payload = texts(payload_of(kind.name, world))
            own = {"request_id": json.dumps("mine"), field: attempt.text or ""}
            request_id = "mine" if field != "request_id" else None
            wrong = await speaker.fault(
                text_of(kind.name, payload, own),
                "validation_failed",
                field,
                request_id=request_id,
                client_message_id=id_given(payload),
            )
            if wrong:
                yield f"{field} {attempt.kind}", wrong


async def try_whole(world: World, speaker: Speaker, kind: FrameType) -> AsyncIterator[Fault]:
    """Fields that nobody knows, inside and outside; and types that nobody knows."""
    payload, own = texts(payload_of(kind.name, world)), {"request_id": '"mine"'}
    ids = {"request_id": "mine", "client_message_id": id_given(payload)}
    strange = {"colour": '"red"'}
    for text in (text_of(kind.name, {**payload, **strange}, own), text_of(kind.name, payload, {**own, **strange})):
        if wrong := await speaker.fault(text, "validation_failed", "colour", **ids):
            yield "an unknown field", wrong
    for name in (kind.name.lower(), kind.name + " ", "", "SESSION_READY", "ERROR", "x" * 100_000, "\0", "é", "__class__"):
        if wrong := await speaker.fault(text_of(name, payload, own), "bad_request", "type", **ids):
            yield f"the type {name[:30]!r}", wrong


async def still_works(world: World, speaker: Speaker, kind: FrameType) -> AsyncIterator[Fault]:
    request_id = speaker.new_request_id()
    text = text_of(kind.name, texts(payload_of(kind.name, world)), {"request_id": json.dumps(request_id), "timestamp": "[{}]"})
    came = await speaker.answers_to(text, request_id)
    if kind.name in ("MESSAGE_SEND", "SYNC_REQUEST") and not came:
        came = [await speaker.device.expect(lambda frame: frame.get("request_id") == request_id)]
    if any(frame["type"] == "ERROR" for frame in came):
        yield "a valid frame", str(came)
    await speaker.device.live()


async def test_every_field_of_every_frame(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    faults: list[str] = []
    for kind in frame_types():
        # A device for each, so that what a SYNC_REQUEST brings is not mistaken for an answer to another frame.
        speaker = Speaker(await world.alice.connect(kind.name.lower()))
        for trying in (try_payload, try_own_fields, try_whole, still_works):
            faults += [f"{kind.name}: {what}: {wrong}" async for what, wrong in trying(world, speaker, kind)]
    assert not faults, "\n" + "\n".join(faults)
    assert "Traceback" not in capsys.readouterr().out


async def test_rules_that_no_schema_tells(world: World) -> None:
    speaker = Speaker(await world.alice.connect("laptop"))
    send = {"client_message_id": "c1", "conversation_id": world.group_id, "content": "hello"}
    nowhere = str(uuid4())

    def without(name: str) -> dict[str, Any]:
        return {key: value for key, value in send.items() if key != name}

    cases: list[tuple[str, dict[str, Any], str, str | None, str | None]] = [
        ("MESSAGE_SEND", without("client_message_id"), "validation_failed", "client_message_id", None),
        ("MESSAGE_SEND", {**send, "message_id": "c2"}, "validation_failed", "message_id", "c1"),
        ("MESSAGE_SEND", {**without("client_message_id"), "message_id": "a\0"}, "validation_failed", "message_id", None),
        ("MESSAGE_SEND", {**send, "sender_id": world.bob.user_id}, "validation_failed", "sender_id", "c1"),
        ("MESSAGE_SEND", {**send, "metadata": {"k": "x" * 4_090}}, "validation_failed", "metadata", "c1"),
        ("MESSAGE_SEND", {**send, "message_type": "system"}, "validation_failed", "message_type", "c1"),
        ("MESSAGE_ACK", {"status": "read", "message_id": 1}, "validation_failed", "conversation_id", None),
        ("MESSAGE_ACK", {"status": "delivered", "message_id": 2**53 - 1}, "validation_failed", "message_id", None),
        ("MESSAGE_ACK", {"status": "read", "conversation_id": nowhere, "message_id": 1}, "not_found", None, None),
        ("TYPING_INDICATOR", {"conversation_id": nowhere, "typing": True}, "not_found", None, None),
        ("TYPING_INDICATOR", {"conversation_id": world.foreign_group_id, "typing": True}, "not_found", None, None),
        ("MESSAGE_ACK", {"status": "read", "conversation_id": world.foreign_group_id, "message_id": 1}, "not_found", None, None),
    ]  # fmt: skip
    for name, payload, code, field, client_id in cases:
        text = text_of(name, texts(payload), {"request_id": '"r"'})
        wrong = await speaker.fault(text, code, field, request_id="r", client_message_id=client_id)
        assert wrong is None, (name, payload, wrong)
    no_request = text_of("SYNC_REQUEST", {"last_sync_id": "0"}, {})
    assert await speaker.fault(no_request, "validation_failed", "request_id", request_id=None) is None


async def test_sends_are_judged_by_the_log_and_told_which(world: World) -> None:
    speaker = Speaker(await world.alice.connect("laptop"))
    device = speaker.device
    for conversation_id in (str(uuid4()), world.foreign_group_id, world.alice.user_id):
        told = await device.say(conversation_id, "hello", "mine")
        assert (told["type"], told["code"], told["client_message_id"]) == ("ERROR", "not_found", "mine")
        assert told["conversation_id"] == conversation_id
    assert (await device.say(world.group_id, "hello", "mine"))["status"] == "sent"
    told = await device.say(world.group_id, "something else", "mine")
    assert (told["type"], told["code"], told["conversation_id"]) == ("ERROR", "conflict", world.group_id)
    await device.roundtrip()


def test_a_fault_is_found_when_there_is_one() -> None:
    error = {"type": "ERROR", "request_id": "r", "payload": {"code": "conflict", "message": "no", "field": "a.b"}}
    assert fault_of([error], "conflict", "a", request_id="r") is None
    wrongs: list[tuple[list[Frame], str, str | None, str | None]] = [
        ([], "conflict", None, "r"),
        ([error, error], "conflict", None, "r"),
        ([error, {"type": "SYNC_BATCH", "payload": {}}], "conflict", None, "r"),
        ([error], "not_found", None, "r"),
        ([error], "conflict", "b", "r"),
        ([error], "conflict", "a", None),
    ]
    for came, code, field, request_id in wrongs:
        assert fault_of(came, code, field, request_id=request_id) is not None
