"""The frames a client may say, each with a payload that is valid; and one device that says them and looks at what comes back.

Rule: a refused frame has exactly one answer, an ERROR with the ids that the frame gave; and a ping after it is answered.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args
from uuid import uuid4

import msgspec

from tests.house import Device, Frame
from tests.refusals.http import is_part
from tests.refusals.shapes import Schema
from tests.refusals.world import World
from uim.wire.frames import ClientFrame


@dataclass(frozen=True)
class FrameType:
    """One type that a client may send: the schemas of its own fields, and of its payload's."""

    name: str
    fields: Mapping[str, Schema]
    payload: Mapping[str, Schema]
    required: frozenset[str]
    known: Mapping[str, Schema]


def frame_types() -> list[FrameType]:
    """Every type that the codec knows."""
    kinds = get_args(ClientFrame)
    found = []
    for kind, schema in zip(kinds, msgspec.json.schema_components(kinds)[0], strict=True):
        known = msgspec.json.schema_components(kinds)[1]
        frame = known[schema["$ref"].rpartition("/")[2]]
        payload = known[frame["properties"]["payload"]["$ref"].rpartition("/")[2]]
        assert frame["additionalProperties"] is False and payload["additionalProperties"] is False
        own = {name: shape for name, shape in frame["properties"].items() if name not in ("type", "payload")}
        required = frozenset(payload["required"])
        found.append(FrameType(kind.__struct_config__.tag, own, payload["properties"], required, known))
    return found


def payload_of(name: str, world: World) -> dict[str, Any]:
    """A valid payload of that type, new each time. KeyError for a type that has no sample: give it one."""
    samples: dict[str, dict[str, Any]] = {
        "HEARTBEAT_PING": {},
        "MESSAGE_SEND": {
            "client_message_id": str(uuid4()),
            "conversation_id": world.group_id,
            "content": "hello",
            "message_type": "text",
            "metadata": {"tone": "warm"},
            "sender_id": world.alice.user_id,
        },
        "MESSAGE_ACK": {"status": "read", "conversation_id": world.group_id, "message_id": world.message_id},
        "TYPING_INDICATOR": {"conversation_id": world.group_id, "typing": True},
        "PRESENCE_UPDATE": {"availability": "busy", "status_text": "in a meeting"},
        "SYNC_REQUEST": {"last_sync_id": 0},
    }
    return samples[name]


def text_of(name: str, payload: Mapping[str, str], own: Mapping[str, str]) -> str:
    """The frame of fields that are JSON text already; `own` are those beside type and payload."""
    inner = ",".join(f"{json.dumps(key)}:{text}" for key, text in payload.items())
    outer = "".join(f",{json.dumps(key)}:{text}" for key, text in own.items())
    return f'{{"type":{json.dumps(name)},"payload":{{{inner}}}{outer}}}'


def texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: json.dumps(value) for name, value in values.items()}


def _is_push(frame: Frame, request_id: str | None) -> bool:
    if frame["type"] == "PRESENCE_UPDATE":
        return "request_id" not in frame
    if frame["type"] == "SYNC_BATCH":
        return frame.get("request_id") != request_id
    return frame["type"] in ("MESSAGE_RECEIVE", "CONVERSATION_UPDATE") or "receipts" in frame["payload"]


@dataclass
class Speaker:
    """One connection on which everything is tried."""

    device: Device
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    def new_request_id(self) -> str:
        return f"req-{next(self.numbers)}"

    async def answers_to(self, text: str, request_id: str | None) -> list[Frame]:
        """What came back before the answer to a ping that followed it. Fails if the connection has ended.

        Pushes are left out, and batches of an earlier SYNC_REQUEST that are still coming.
        """
        self.device.frames.clear()
        await self.device.send_text(text)
        await self.device.roundtrip()
        return [frame for frame in self.device.frames if not _is_push(frame, request_id)]

    async def fault(
        self, text: str, code: str, field: str | None, *, request_id: str | None, client_message_id: str | None = None
    ) -> str | None:
        """Whether this frame gets exactly that refusal, with these ids; None if it does."""
        return fault_of(
            await self.answers_to(text, request_id), code, field, request_id=request_id, client_message_id=client_message_id
        )  # fmt: skip


def fault_of(
    came: list[Frame], code: str, field: str | None, *, request_id: str | None, client_message_id: str | None = None
) -> str | None:
    """Whether these are exactly one ERROR of that code; with `field`, it must be that, or a part of it."""
    told = [frame for frame in came if frame["type"] == "ERROR"]
    if len(told) != 1 or len(came) != 1:
        return f"answered by {str(came)[:300]}"
    payload = told[0]["payload"]
    if payload["code"] != code or (field is not None and not is_part(payload.get("field", ""), field)):
        return f"{payload}, not {code} of {field}"
    if (told[0].get("request_id"), payload.get("client_message_id")) != (request_id, client_message_id):
        return f"gives back {told[0].get('request_id')} {payload.get('client_message_id')}: {payload}"
    if not payload["message"]:
        return "says nothing"
    return None
