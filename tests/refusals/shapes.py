"""What a field of the contract takes, and what is tried in its place.

`fits` judges a value by its JSON schema; `attempts` gives the values to try, each as JSON text, for Python's own values cannot
say all that JSON can (1e999, a thousand brackets). Rule: what is wrong with an attempt is decided here, by the contract's words
alone, and never by what the server says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

Schema = Mapping[str, Any]
Definitions = Mapping[str, Schema]

_UUID: Final = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}", re.IGNORECASE)
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:?\d\d)", re.IGNORECASE)
_LONG: Final = 20_000
_TYPES: Final[dict[str, type | tuple[type, ...]]] = {
    "null": type(None), "boolean": bool, "integer": int, "number": (int, float), "string": str, "array": list, "object": dict,
}  # fmt: skip


def fits(schema: Schema, value: Any, known: Definitions) -> bool:
    """Whether this value may stand where the schema is."""
    if "$ref" in schema:
        return fits(known[schema["$ref"].rpartition("/")[2]], value, known)
    if "anyOf" in schema:
        return any(fits(one, value, known) for one in schema["anyOf"])
    if "enum" in schema:
        return any(type(one) is type(value) and one == value for one in schema["enum"])
    if "type" not in schema:
        return True
    if not isinstance(value, _TYPES[schema["type"]]) or (isinstance(value, bool) and schema["type"] != "boolean"):
        return False
    return _is_within(schema, value) and _parts_fit(schema, value, known)


def _is_within(schema: Schema, value: Any) -> bool:
    if isinstance(value, str):
        shape = {"uuid": _UUID, "date-time": _TIME}.get(schema.get("format", ""))
        is_shaped = shape is None or shape.fullmatch(value) is not None
        return is_shaped and schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))
    if isinstance(value, int | float):
        return bool(schema.get("minimum", value) <= value <= schema.get("maximum", value))
    if isinstance(value, list):
        return bool(schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)))
    return True


def _parts_fit(schema: Schema, value: Any, known: Definitions) -> bool:
    if isinstance(value, list):
        return all(fits(schema.get("items", {}), item, known) for item in value)
    if isinstance(value, dict):
        fields, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        if not set(schema.get("required", [])) <= value.keys():
            return False
        of_others = others if isinstance(others, Mapping) else {}
        return all(fits(fields.get(key, of_others), item, known) for key, item in value.items()) and (
            others is not False or value.keys() <= fields.keys()
        )
    return True


def bounds_of(schema: Schema, word: str) -> int | None:
    """The schema's `maxLength`, say, wherever in its alternatives it stands."""
    found = [schema[word]] if word in schema else [bounds_of(one, word) for one in schema.get("anyOf", [])]
    return max((one for one in found if one is not None), default=None)


@dataclass(frozen=True)
class Attempt:
    """`text` is the JSON to send, None to leave the field out; `value` what the schema judges.

    `is_unsayable`: it holds a NUL or half of a surrogate pair, which no text may. `is_too_deep`: no JSON that anybody reads.
    `is_beyond`: a number that no float holds.
    """

    kind: str
    text: str | None
    value: Any = None
    is_unsayable: bool = False
    is_too_deep: bool = False
    is_beyond: bool = False


def attempts(schema: Schema, longest: int | None = None) -> Iterator[Attempt]:
    """Everything that is tried in the place of one field. `longest`: the rule for its text, where the schema has none."""
    yield Attempt("missing", None)
    for kind, value in _values(schema, longest):
        yield Attempt(kind, json.dumps(value), value)
    yield Attempt("huge float", "1e999", float("inf"), is_beyond=True)
    yield Attempt("integral float", "1.0", 1.0)
    yield Attempt("too deep", "[" * 5_000 + "]" * 5_000, is_too_deep=True)
    for kind, value in _unsayable():
        yield Attempt(kind, json.dumps(value), value, is_unsayable=True)


def _values(schema: Schema, longest: int | None) -> Iterator[tuple[str, Any]]:
    yield from (("null", None), ("true", True), ("zero", 0), ("negative", -1), ("float", 1.5), ("empty", ""), ("text", "text"))
    most = bounds_of(schema, "maxLength") or longest or _LONG
    yield "too long", "x" * (most + 1)
    yield from (("astral, too long", "\N{SLIGHTLY SMILING FACE}" * (most + 1)),) if most < _LONG else ()
    yield from (("2^53", 2**53), ("-2^63-1", -(2**63) - 1), ("huge", 10**40), ("digits", 10**4_000))
    yield from (("[]", []), ("[null]", [None]), ("[1]", [1]), ("['']", [""]), ("[[]]", [[]]), ("['x']", ["x"]))
    yield from (
        ("{}", {}),
        ("{'': ''}", {"": ""}),
        ("{'k': 1}", {"k": 1}),
        ("{'k': null}", {"k": None}),
        ("{'k': {}}", {"k": {}}),
    )
    yield "big object", {"k": "x" * 5_000}
    yield "many", [str(uuid4()) for _ in range((bounds_of(schema, "maxItems") or 200) + 1)]
    yield "nested", _nested(50)
    yield "an unknown id", str(uuid4())
    yield "an id with more", str(uuid4()) + " "
    yield "injection", "'; drop table users; --"
    yield "a time", "2026-01-05 10:00"


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": [value]}
    return value


def _unsayable() -> Iterator[tuple[str, Any]]:
    yield "NUL", "a\0b"
    yield "lone surrogate", "a\ud800b"
    yield "low surrogate", "\udc00"
    yield "NUL in a list", ["a\0"]
    yield "NUL in a key", {"a\0": "b"}
    yield "surrogate in a value", {"a": "\ud83d"}


def body_text(fields: Mapping[str, str]) -> str:
    """A JSON object of fields that are JSON text already."""
    return "{" + ",".join(f"{json.dumps(name)}:{text}" for name, text in fields.items()) + "}"
