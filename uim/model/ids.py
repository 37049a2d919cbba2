"""Ids, and the times that stand beside them.

A message_id is a place in the one log: an integer, 1 … 2^53-1 (JSON's safe integers). Everything else is a UUID.
Rule: a time leaves this process as RFC 3339, UTC, milliseconds, and only through `rfc3339`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import msgspec

MAX_MESSAGE_ID: Final = 2**53 - 1


# Datetime's own way, and strftime's, take five times as long.
_encode: Final = msgspec.json.Encoder().encode


def rfc3339(at: datetime) -> str:
    """`2026-01-05T10:00:00.123Z` for any aware time."""
    # Quoted; with microseconds, if there are any.
    text = _encode(at if at.tzinfo is UTC else at.astimezone(UTC)).decode()
    return text[1:24] + "Z" if len(text) > 24 else text[1:20] + ".000Z"
