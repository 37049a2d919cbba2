"""Text to frame: any text gives a frame or a refusal, never another exception.

`Malformed` is what counts towards 4400: not JSON, no object, without type or payload. Everything else that is wrong is an
ordinary refusal that never ends a connection. Rule: the good path decodes once; only a bad frame is looked at twice.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, NoReturn, get_args

import msgspec

from uim.errors import UIMError, invalid
from uim.wire.frames import ClientFrame

KNOWN_TYPES: Final = frozenset(kind.__struct_config__.tag for kind in get_args(ClientFrame))
# A name or a value as long as its frame must not come back in full, twice over.
MAX_TOLD_CHARS: Final = 200
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")
_FIELD: Final = re.compile(r" - at `\$\.?(?:payload\.?)?([^`]*)`$")
_NAMED: Final = re.compile(r"field `([^`]+)`")


class Malformed(Exception):
    """Text that is no frame at all; `request_id` where it is at least an object that has one."""

    def __init__(self, why: str, request_id: str | None = None) -> None:
        super().__init__(why)
        self.request_id = request_id


class Refused(Exception):
    """A frame that breaks a rule: the refusal, and what its answer should refer to."""

    def __init__(self, error: UIMError, request_id: str | None, client_message_id: str | None) -> None:
        super().__init__(str(error))
        self.error = error
        self.request_id = request_id
        self.client_message_id = client_message_id


def field_of(message: str) -> tuple[str, str | None]:
    """msgspec's complaint as (what is wrong, which field); the path without `$.` and `payload.`."""
    named = _NAMED.search(message)
    found = _FIELD.search(message)
    why = message[: found.start()] if found else message
    path = found.group(1) if found else ""
    parts = [part for part in (path, named.group(1) if named else "") if part]
    return why[:MAX_TOLD_CHARS], _sayable(".".join(parts)) or None


def _sayable(path: str) -> str:
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", path)[:MAX_TOLD_CHARS]


class Codec:
    """The decoder of client frames. One a process; it keeps no state between frames."""

    def __init__(self) -> None:
        self._decoder: msgspec.json.Decoder[ClientFrame] = msgspec.json.Decoder(ClientFrame)

    def decode(self, text: str) -> ClientFrame:
        """The frame, or Malformed, or Refused."""
        try:
            frame = self._decoder.decode(text)
        except (msgspec.MsgspecError, RecursionError, UnicodeError) as complaint:
            raise self._explained(text, str(complaint)) from None
        # The one text that every answer gives back, whatever the frame was.
        if frame.request_id is not None and "\0" in frame.request_id:
            raise self._explained(text, "must not contain NUL - at `$.request_id`")
        return frame

    def _explained(self, text: str, complaint: str) -> Malformed | Refused:
        try:
            # Python's own reading is wider than JSON in its constants, and narrower in its integers.
            shape = json.loads(text, parse_constant=_no_constant, parse_int=float)
            lone = _lone_surrogate(shape)
        except (ValueError, RecursionError):
            return Malformed("not JSON")
        if not isinstance(shape, dict):
            return Malformed("not an object")
        request_id = _clean(shape.get("request_id"))
        if not isinstance(shape.get("type"), str) or not isinstance(shape.get("payload"), dict):
            return Malformed("without a type or a payload", request_id)
        client_message_id = _clean(shape["payload"].get("client_message_id", shape["payload"].get("message_id")))
        return Refused(_refusal(shape, complaint, lone), request_id, client_message_id)


def _no_constant(word: str) -> NoReturn:
    raise ValueError(word)


def _refusal(shape: dict[str, Any], complaint: str, lone: str | None) -> UIMError:
    if shape["type"] not in KNOWN_TYPES:
        return UIMError("bad_request", "unknown frame type", field="type")
    if lone is not None:
        return invalid(_sayable(lone), "must not contain lone surrogates")
    why, field = field_of(complaint)
    return UIMError("validation_failed", why, field=field)


def _clean(value: object) -> str | None:
    """A client's id to give back, if it is one at all."""
    if isinstance(value, str) and 1 <= len(value) <= 64 and not _UNSTORABLE.search(value):
        return value
    return None


def _lone_surrogate(value: object, path: str = "") -> str | None:
    """The path of the first string that no UTF-8 can hold."""
    if isinstance(value, str):
        return path if _SURROGATE.search(value) else None
    if isinstance(value, dict):
        for key, part in value.items():
            # Only so much is told; a long key would be copied at each level below it.
            inner = path if key == "payload" and not path else f"{path}.{key}"[: MAX_TOLD_CHARS + 1].lstrip(".")
            found = (path or "payload") if _lone_surrogate(key) is not None else _lone_surrogate(part, inner)
            if found is not None:
                return found
    if isinstance(value, list):
        for part in value:
            if (found := _lone_surrogate(part, path)) is not None:
                return found
    return None
