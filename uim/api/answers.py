"""How the HTTP front answers: values as JSON, refusals as RFC 9457 problems.

Times go out as RFC 3339 in UTC with milliseconds. Rule: what a client is told about a failure is made here alone, from
a code and a text that were meant for it; a traceback or an exception's own words never are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from uuid import uuid4

import msgspec
from quart import Response

from uim.errors import UIMError


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """RFC 9457. Switch on `code`; `errors` names each field at fault by its path; `retry_after` is in seconds."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: dict[str, str] | None = None
    retry_after: float | None = None


class Invalid(UIMError):
    """A request with one or more fields at fault; `errors` maps each field's path to what is wrong with it."""

    def __init__(self, errors: Mapping[str, str]) -> None:
        field, why = next(iter(errors.items()))
        super().__init__("validation_failed", f"{field}: {why}" if field else why, field=field)
        self.errors = dict(errors)


def to_json(value: object) -> bytes:
    """JSON of any model object; datetimes must know their zone (ValueError)."""
    return msgspec.json.encode(_with_plain_times(msgspec.to_builtins(value, builtin_types=(datetime,))))


def _with_plain_times(value: Any) -> Any:
    # msgspec writes microseconds and can't be told otherwise.
    if isinstance(value, datetime):
        return _rfc3339(value)
    if isinstance(value, dict):
        return {key: _with_plain_times(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_plain_times(item) for item in value]
    return value


def _rfc3339(at: datetime) -> str:
    if at.tzinfo is None:
        raise ValueError("a time without its zone")
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def answer(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer; None has no body, and with the plain status becomes 204."""
    if value is None:
        empty = Response(b"", 204 if status == 200 else status, headers=dict(headers or {}))
        del empty.headers["Content-Type"]
        return empty
    return Response(to_json(value), status, headers=dict(headers or {}), content_type="application/json")


def problem(refusal: UIMError) -> Response:
    """A refusal as the client is told it."""
    errors = _errors_of(refusal)
    response = _problem_response(
        refusal.code, refusal.status, refusal.message, errors=errors, retry_after_s=refusal.retry_after_s
    )
    if refusal.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def plain_problem(code: str, status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """A problem that is no refusal of the rules: an unknown path, a bug."""
    response = _problem_response(code, status, detail)
    response.headers.update(dict(headers or {}))
    return response


def problem_bytes(code: str, status: int, detail: str) -> tuple[bytes, list[tuple[str, str]]]:
    """Body and headers of a problem told where there is no application, by the protocol itself."""
    headers = [
        ("content-type", "application/problem+json"),
        ("cache-control", "no-store"),
        ("x-request-id", str(uuid4())),
    ]
    return msgspec.json.encode(Problem("about:blank", HTTPStatus(status).phrase, status, detail, code)), headers


def _errors_of(refusal: UIMError) -> dict[str, str] | None:
    if isinstance(refusal, Invalid):
        return refusal.errors
    return {refusal.field: refusal.message} if refusal.field else None


def _problem_response(
    code: str,
    status: int,
    detail: str,
    *,
    errors: dict[str, str] | None = None,
    retry_after_s: float | None = None,
) -> Response:
    body = Problem(
        "about:blank",
        HTTPStatus(status).phrase,
        status,
        detail,
        code,
        errors=errors,
        retry_after=None if retry_after_s is None else round(retry_after_s, 3),
    )
    response = Response(msgspec.json.encode(body), status, content_type="application/problem+json")
    if retry_after_s is not None:
        # Whole seconds only (RFC 9110 10.2.3), and never early.
        response.headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
    return response
