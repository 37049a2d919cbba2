"""Query parameters, which are all text, as the values they stand for.

Both fronts read their queries here. Rule: a value is what was written. msgspec's lax reading, which we need for numbers, also
takes "null" for nothing, "1e1" for ten and a bare number for a time, and a client that sent those by mistake would never know.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import TypeVar

import msgspec

StructT = TypeVar("StructT", bound=msgspec.Struct)


def values_of(given: Mapping[str, str], type: type[StructT]) -> StructT:
    """The parameters as a `type`, whose fields are text, numbers, booleans, UUIDs or times.

    Raises msgspec.ValidationError, which ends in the parameter's path, for a value that is wrong and a name that is unknown.
    """
    found = msgspec.convert(given, type, strict=False)
    attributes = _attributes(type)
    for name, text in given.items():
        if not _is_as_written(text, getattr(found, attributes[name])):
            raise msgspec.ValidationError(f"Not a value of this parameter - at `$.{name}`")
    return found


@cache
def _attributes(type: type[msgspec.Struct]) -> dict[str, str]:
    return {field.encode_name: field.name for field in msgspec.structs.fields(type)}


def _is_as_written(text: str, value: object) -> bool:
    if isinstance(value, bool):
        return text in ("true", "false")
    if isinstance(value, int):
        return text == str(value)
    if isinstance(value, datetime):
        return text[4:5] == "-"
    return value is not None
