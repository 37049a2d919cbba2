"""How the HTTP front answers: values as JSON, refusals as RFC 9457 problems.

Times go out as RFC 3339 in UTC with milliseconds. Rule: what a client is told about a failure is made here alone, from
a code and a text that were meant for it; a traceback or an exception's own words never are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final

import msgspec

from uim.errors import UIMError
from uim.model.ids import rfc3339


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


Headers = list[tuple[bytes, bytes]]
_JSON: Final = (b"content-type", b"application/json")
_PROBLEM_JSON: Final = (b"content-type", b"application/problem+json")
_NOT_PLAIN: Final = frozenset({datetime, dict, list, tuple})


class Answer(msgspec.Struct, frozen=True):
    """A whole answer. `headers`: names in lower case, in the order in which they are sent; without the length of the body."""

    status: int
    body: bytes
    headers: Headers


def to_json(value: object) -> bytes:
    """JSON of any model object; datetimes must know their zone (ValueError)."""
    return msgspec.json.encode(_with_plain_times(msgspec.to_builtins(value, builtin_types=(datetime,))))


def _with_plain_times(built: Any) -> Any:
    """msgspec writes microseconds and can't be told otherwise. In place: what is built is ours."""
    if isinstance(built, datetime):
        return _rfc3339(built)
    if isinstance(built, tuple):
        built = list(built)
    if isinstance(built, dict | list):
        for key, value in built.items() if isinstance(built, dict) else enumerate(built):
            if type(value) in _NOT_PLAIN:
                built[key] = _with_plain_times(value)
    return built


def _rfc3339(at: datetime) -> str:
    if at.tzinfo is None:
        raise ValueError("a time without its zone")
    return rfc3339(at)


def answer(value: object, status: int = 200) -> Answer:
    """A JSON answer; None has no body, and with the plain status becomes 204."""
    if value is None:
        return Answer(204 if status == 200 else status, b"", [])
    return json_answer(to_json(value), status)


def json_answer(encoded: bytes, status: int = 200) -> Answer:
    """An answer that is JSON already."""
    return Answer(status, encoded, [_JSON])


def problem(refusal: UIMError) -> Answer:
    """A refusal as the client is told it."""
    told = _problem(refusal.code, refusal.status, refusal.message, errors=_errors_of(refusal), retry_after_s=refusal.retry_after_s)
    if refusal.status == 401:
        told.headers.append((b"www-authenticate", b"Bearer"))
    return told


def plain_problem(code: str, status: int, detail: str, *headers: tuple[bytes, bytes]) -> Answer:
    """A problem that is no refusal of the rules: an unknown path, a bug."""
    told = _problem(code, status, detail)
    told.headers.extend(headers)
    return told


def _errors_of(refusal: UIMError) -> dict[str, str] | None:
    if isinstance(refusal, Invalid):
        return refusal.errors
    return {refusal.field: refusal.message} if refusal.field else None


def _problem(
    code: str,
    status: int,
    detail: str,
    *,
    errors: dict[str, str] | None = None,
    retry_after_s: float | None = None,
) -> Answer:
    body = Problem(
        "about:blank",
        HTTPStatus(status).phrase,
        status,
        detail,
        code,
        errors=errors,
        retry_after=None if retry_after_s is None else round(retry_after_s, 3),
    )
    told = Answer(status, msgspec.json.encode(body), [_PROBLEM_JSON])
    if retry_after_s is not None:
        # Whole seconds only (RFC 9110 10.2.3), and never early.
        told.headers.append((b"retry-after", b"%d" % max(1, math.ceil(retry_after_s))))
    return told
