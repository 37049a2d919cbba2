"""Reading what a client sent: bodies, query parameters, ids in paths.

A request's shape is a msgspec Struct with forbid_unknown_fields; it is checked here once and trusted inside. Rule: any
bytes at all give a value or a refusal that names the field, never another exception.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl
from uuid import UUID

import msgspec

from uim.api.answers import Invalid
from uim.api.asking import Asking
from uim.errors import UIMError, not_found
from uim.wire.queries import StructT, values_of

T = TypeVar("T")

MAX_MESSAGE_ID: Final = 2**53 - 1
MAX_QUERY_FIELDS: Final = 32
# A name or a value as long as the request must not come back in full, twice over.
MAX_TOLD_CHARS: Final = 200
_MISPLACED: Final = re.compile(r"^(?P<why>.*?)(?: - at `(?:key in )?\$(?P<path>[^`]*)`)?$", re.DOTALL)
_NAMED: Final = re.compile(r"^Object (?P<what>missing required|contains unknown) field `(?P<name>[^`]*)`$", re.DOTALL)
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


async def read_body(asking: Asking, type: type[T]) -> T:
    """A request's JSON body as a `type`.

    Refuses: another Content-Type 415, no JSON 400, over the limit 413 (raised by the application's own bound), a field
    that is wrong, missing or unknown, or a text with NUL or a lone surrogate 422. The wait for the body ends at the
    application's BODY_TIMEOUT with 408.
    """
    body = await asking.read()
    if body and asking.media_type != "application/json":
        raise UIMError("unsupported_media_type", "send application/json")
    return parse_body(body, type)


def parse_body(body: bytes, type: type[T]) -> T:
    """The same for bytes at hand. No bytes are a `type` with all its defaults, 400 if it has a required field."""
    if not body:
        return _all_defaults(type)
    _refuse_bad_text(_parse_json(body))
    try:
        return msgspec.json.decode(body, type=type)
    except msgspec.ValidationError as error:
        raise Invalid(_field_errors(str(error))) from None


def _all_defaults(type: type[T]) -> T:
    try:
        return msgspec.convert({}, type)
    except msgspec.ValidationError:
        raise UIMError("bad_request", "the body is empty") from None


def _parse_json(body: bytes) -> Any:
    # Untyped first: a typed decoder stops at the first wrong field, and a body that is no JSON at all must be a 400.
    try:
        return msgspec.json.decode(body)
    except msgspec.ValidationError as error:
        raise Invalid(_field_errors(str(error))) from None
    except RecursionError:
        raise UIMError("bad_request", "nested too deep") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        # msgspec has one error for broken JSON and for a lone surrogate; the standard library lets the latter pass.
        _refuse_bad_text(_lenient_json(body))
        raise UIMError("bad_request", "the body is not JSON") from None


def _lenient_json(body: bytes) -> Any:
    try:
        return json.loads(body.decode())
    except (ValueError, RecursionError):
        raise UIMError("bad_request", "the body is not JSON") from None


def _refuse_bad_text(document: Any) -> None:
    errors = {}
    for path, text in _texts(document):
        if "\x00" in text:
            errors[_printable(path)] = "holds the character NUL"
        elif _SURROGATE.search(text):
            errors[_printable(path)] = "holds half of a surrogate pair"
    if errors:
        raise Invalid(errors)


def _texts(document: Any) -> Iterator[tuple[str, str]]:
    """Every text in the document, keys too, with its path. A stack, for documents may be deep."""
    waiting = [("", document)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, str):
            yield path, value
        elif isinstance(value, list):
            waiting.extend((f"{path}[{place}]", item) for place, item in enumerate(value))
        elif isinstance(value, dict):
            for key, item in value.items():
                below = f"{path}.{key}" if path else key
                yield below, key
                waiting.append((below, item))


def _printable(path: str) -> str:
    return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", path).replace("\x00", "\N{REPLACEMENT CHARACTER}")[:MAX_TOLD_CHARS]


def _field_errors(text: str) -> dict[str, str]:
    """msgspec's words, "Expected `str`, got `int` - at `$.x.y`", as {"x.y": "Expected `str`, got `int`"}."""
    found = _MISPLACED.match(text)
    if found is None:
        return {"": text[:MAX_TOLD_CHARS]}
    # "[...]" is msgspec's "somewhere", where it decodes without a type.
    path, why = (found["path"] or "").lstrip(".").replace("[...]", ""), found["why"]
    named = _NAMED.match(why)
    if named is None:
        return {_printable(path): why[:MAX_TOLD_CHARS]}
    name = f"{path}.{named['name']}" if path else named["name"]
    return {_printable(name): "is required" if named["what"] == "missing required" else "is not known here"}


def parse_query(query: bytes, type: type[StructT]) -> StructT:
    """Query parameters as a `type`; each at most once, none unknown, else 422."""
    fields: dict[str, str] = {}
    for name, value in _query_pairs(query):
        if name in fields:
            raise Invalid({_printable(name): "is given more than once"})
        fields[name] = value
    _refuse_bad_text(fields)
    try:
        return values_of(fields, type)
    except msgspec.ValidationError as error:
        raise Invalid(_field_errors(str(error))) from None


def _query_pairs(query: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(
            query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_QUERY_FIELDS
        )
    except UnicodeDecodeError:
        raise Invalid({"": "the query is not UTF-8"}) from None
    except ValueError:
        raise Invalid({"": f"at most {MAX_QUERY_FIELDS} parameters"}) from None


def path_id(text: str, name: str) -> UUID:
    """A UUID in a path. What is no id names nothing, so it is 404, as an unknown id is."""
    # UUID() alone would also take braces, "urn:uuid:" and missing hyphens: one resource, one address.
    try:
        found = UUID(text)
    except ValueError:
        raise not_found(f"no such {name.removesuffix('_id')}") from None
    if str(found) != text.lower():
        raise not_found(f"no such {name.removesuffix('_id')}")
    return found


def path_number(text: str, name: str) -> int:
    """A message_id in a path: 1 to 2^53 - 1, in decimal digits without leading zeros; else 404."""
    if re.fullmatch(r"[1-9][0-9]{0,15}", text) and int(text) <= MAX_MESSAGE_ID:
        return int(text)
    raise not_found(f"no such {name.removesuffix('_id')}")
