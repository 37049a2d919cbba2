"""The opaque marks at which a list of pages goes on.

A mark is a small Struct of the list's own, as JSON in base64url. Rule: whatever text comes back as a cursor gives such a
Struct or the refusal `validation_failed`; nothing in it is believed beyond its types, for anybody can make one.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta

from uim.errors import invalid

Mark = TypeVar("Mark", bound=msgspec.Struct)

DEFAULT_LIMIT: Final = 50
MAX_LIMIT: Final = 100

Limit = Annotated[int, Meta(ge=1, le=MAX_LIMIT)]
Cursor = Annotated[str, Meta(min_length=1, max_length=512)]


def cursor_of(mark: msgspec.Struct) -> str:
    """The mark as the text that a client gives back."""
    return base64.urlsafe_b64encode(msgspec.json.encode(mark)).rstrip(b"=").decode()


def mark_of(cursor: str, type: type[Mark]) -> Mark:
    """The mark in a client's cursor. Raises UIMError `validation_failed` for anything else."""
    try:
        text = base64.b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        return msgspec.json.decode(text, type=type)
    except (UnicodeError, binascii.Error, msgspec.MsgspecError, RecursionError):
        raise invalid("cursor", "is not a cursor of this list") from None
