"""How a connection introduces itself, and how the server answers: the upgrade's query, and SESSION_READY.

Rule: what is wrong with the query is refused before the upgrade, with the HTTP status and code that the API would use.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec

from uim import __version__
from uim.chat.house import House
from uim.chat.outbox import MAX_UNCONFIRMED, Outbox
from uim.errors import UIMError, invalid
from uim.model.ids import rfc3339
from uim.store.cursors import Opened
from uim.wire.codec import field_of
from uim.wire.frames import (
    MAX_CONTENT_CHARS,
    MAX_FRAME_IN_BYTES,
    MAX_METADATA_BYTES,
    ClientId,
    MessageId,
    check_text,
    frame,
)
from uim.wire.queries import values_of

FEATURES: Final = (
    "messages", "groups", "receipts", "sync", "friends", "blocks", "typing", "presence", "search",
    "deletion", "profiles", "export", "queued",
)  # fmt: skip


class Hello(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The query of GET /ws."""

    device_id: ClientId | None = None
    last_sync_id: MessageId | None = None
    platform: ClientId | None = None
    app_version: ClientId | None = None
    token: str | None = None


def read_hello(query: str) -> Hello:
    """The query string, checked. Raises UIMError validation_failed with the parameter named."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), errors="strict", max_num_fields=16)
    except (ValueError, UnicodeDecodeError):
        raise invalid("query", "is not a query string in UTF-8") from None
    given: dict[str, str] = {}
    for name, value in pairs:
        if name in given:
            raise invalid(name, "is given twice")
        given[name] = check_text(value, name)
    try:
        return values_of(given, Hello)
    except msgspec.ValidationError as wrong:
        why, field = field_of(str(wrong))
        raise invalid(field or "query", why) from None


def check_app_version(hello: Hello, least: str | None) -> None:
    """Raises UIMError upgrade_required for a version below the configured least."""
    if least is None or hello.app_version is None:
        return
    if _numbers(hello.app_version) < _numbers(least):
        raise UIMError("upgrade_required", f"this server needs app version {least} or newer")


def _numbers(version: str) -> list[int]:
    return [int(part) if part.isdecimal() else 0 for part in version.split(".")]


def session_ready(house: House, outbox: Outbox, opened: Opened, behind: int) -> bytes:
    """The first frame of a connection."""
    epoch = house.epochs.present
    settings = house.settings
    payload: dict[str, Any] = {
        "user_id": outbox.user_id,
        "login_id": outbox.login_id,
        "session_id": outbox.session_id,
        "device_id": outbox.device_id,
        "server_time": rfc3339(datetime.fromtimestamp(time.time(), UTC)),
        "protocol": 1,
        "server_version": __version__,
        "features": FEATURES,
        "epoch": {"number": epoch.number, "base": epoch.base, "after": epoch.after, "lost": epoch.lost},
        "last_sync_id": opened.at,
        "behind": behind,
        "heartbeat_interval": 30,
        "heartbeat_timeout": 90,
        "limits": {
            "content_chars": MAX_CONTENT_CHARS,
            "frame_bytes": MAX_FRAME_IN_BYTES,
            "batch": 100,
            "open_sends": 64,
            "unconfirmed": MAX_UNCONFIRMED,
            "metadata_bytes": MAX_METADATA_BYTES,
            "group": 50,
            "devices": settings.devices_per_user,
            "messages_per_minute": 0,
            "messages_per_hour": 0,
        },
    }
    return frame("SESSION_READY", payload)
