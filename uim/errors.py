"""Every refusal and every cut that a client can be told, declared once.

A refusal is expected: the caller is told a stable `code`. The two fronts map refusals once each (problem+json, ERROR
frame). A cut ends a connection: the range of its close code says whether to come back. Rule: clients switch on codes,
so a code, once here, never changes its meaning (protocol.md §2, §3).
"""

from __future__ import annotations

from enum import Enum
from typing import Final

STATUS_OF: Final[dict[str, int]] = {
    "bad_request": 400,
    "token_expired": 401,
    "session_ended": 401,
    "unauthorized": 401,
    "invalid_credentials": 401,
    "invalid_refresh_token": 401,
    "forbidden": 403,
    "blocked": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "conflict": 409,
    "username_taken": 409,
    "email_taken": 409,
    "not_a_group": 409,
    "group_full": 409,
    "payload_too_large": 413,
    "unsupported_media_type": 415,
    "validation_failed": 422,
    "upgrade_required": 426,
    "rate_limited": 429,
    "too_many_attempts": 429,
    "internal": 500,
    "unavailable": 503,
}


class UIMError(Exception):
    """A refusal: `code` for programs, `message` for people, `field` where one field is at fault.

    `status` is the HTTP status; it follows from the code unless one endpoint answers the same code otherwise.
    `retry_after_s` is set where coming back later helps.
    """

    def __init__(
        self,
        code: str,
        message: str = "",
        *,
        field: str | None = None,
        retry_after_s: float | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(message or code.replace("_", " "))
        self.code = code
        self.message = message or code.replace("_", " ")
        self.field = field
        self.retry_after_s = retry_after_s
        self.status = status if status is not None else STATUS_OF[code]


def not_found(what: str = "not found") -> UIMError:
    return UIMError("not_found", what)


def forbidden(why: str) -> UIMError:
    return UIMError("forbidden", why)


def invalid(field: str, why: str) -> UIMError:
    """A value that came from outside and breaks its rule; `field` is its JSON path without the leading `$.`."""
    return UIMError("validation_failed", why, field=field)


def unavailable(why: str = "the database is away", *, retry_after_s: float = 2.0) -> UIMError:
    return UIMError("unavailable", why, retry_after_s=retry_after_s)


class Cut(Enum):
    """Why the server ends a connection: (close code, reason). RFC 6455 7.4.2: 4000-4999 are ours."""

    GOING_AWAY = (1001, "going away")
    TOO_BIG = (1009, "frame over the limit")
    BUG = (1011, "internal error")
    RESTART = (1012, "restart")
    OVER_CAPACITY = (1013, "over capacity")
    BAD_FRAMES = (4400, "three frames that are not frames")
    LOGIN_ENDED = (4401, "login ended")
    SILENT = (4408, "no sign of life")
    UNCONFIRMED = (4408, "entries not confirmed")
    SLOW = (4408, "no progress in writing")
    REPLACED = (4409, "replaced by another connection of this device")
    TOO_MANY_DEVICES = (4429, "too many devices")

    @property
    def close_code(self) -> int:
        return self.value[0]

    @property
    def reason(self) -> str:
        return self.value[1]
