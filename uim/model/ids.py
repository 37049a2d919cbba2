"""Ids, and the times that stand beside them.

A message_id is a place in the one log: an integer, 1 … 2^53-1 (JSON's safe integers). Everything else is a UUID.
Rule: a time leaves this process as RFC 3339, UTC, milliseconds, and only through `rfc3339`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

MAX_MESSAGE_ID: Final = 2**53 - 1


def rfc3339(at: datetime) -> str:
    """`2026-01-05T10:00:00.123Z` for any aware time."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
