"""Every endpoint, every field of its body, query and path, every kind of wrong value: before and after sign-in.

Rule: an attempt that breaks the contract gets that one refusal which names its field; one that keeps it succeeds, or is refused
with a code that the contract tells for this endpoint. All that goes wrong on one endpoint is told at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from urllib.parse import quote, urlencode

import pytest

from tests.refusals.contract import Endpoint, all_endpoints, endpoints
from tests.refusals.http import Answer, is_part
from tests.refusals.shapes import Attempt, attempts, body_text, bounds_of, fits
from tests.refusals.world import SAMPLES, Sample, World

pytestmark = pytest.mark.timeout(120)

Fault = tuple[str, str]


def target_of(endpoint: Endpoint, sample: Sample, **query: str) -> str:
    asked = {**sample.query, **query}
    return sample.path_of(endpoint.template) + (f"?{urlencode(asked)}" if asked else "")


def texts_of(sample: Sample) -> dict[str, str]:
    return {name: json.dumps(value) for name, value in (sample.body or {}).items()}


async def send(world: World, endpoint: Endpoint, sample: Sample, texts: dict[str, str] | None, *, bearer: str | None) -> Answer:
    body = body_text(texts) if texts is not None else None
    return await world.talk.send_json(endpoint.method, target_of(endpoint, sample), body, bearer=bearer)


async def still_works(world: World, endpoint: Endpoint) -> list[str]:
    """The valid request, afresh: its documented success."""
    sample = await endpoint.sample(world)
    answer = await send(world, endpoint, sample, texts_of(sample) if endpoint.takes_body else None, bearer=sample.bearer)
    wrong = answer.fault_of_any()
    if wrong is None and answer.status != endpoint.success:
        wrong = f"{answer.status}, not {endpoint.success}: {answer.body[:200]!r}"
    return [f"a valid request: {wrong}"] if wrong else []


def told_of(endpoint: Endpoint, faults: list[Fault]) -> list[str]:
    return [f"{endpoint.name}: {what}: {wrong}" for what, wrong in faults]


async def test_every_endpoint_has_a_valid_sample(world: World) -> None:
    """Or it would not be tried: give a new endpoint its sample in world.py."""
    assert {one.name for one in await all_endpoints(world)} - SAMPLES.keys() == set()


# -- bodies -----------------------------------------------------------------------------------------------------------------


def is_allowed(endpoint: Endpoint, sample: Sample, field: str, attempt: Attempt) -> bool:
    if attempt.text is None:
        return field not in endpoint.required
    if attempt.is_beyond or attempt.is_unsayable or not fits(endpoint.fields[field], attempt.value, endpoint.known):
        return False
    least, most = sample.longest.get(field, (0, 1_000_000))
    return not isinstance(attempt.value, str) or least <= len(attempt.value) <= most


def fault_of_attempt(endpoint: Endpoint, sample: Sample, field: str, attempt: Attempt, answer: Answer) -> str | None:
    if attempt.is_too_deep:
        return answer.fault(400, "bad_request")
    if attempt.is_beyond:
        return answer.fault(422, "validation_failed")
    if not is_allowed(endpoint, sample, field, attempt):
        return answer.fault(422, "validation_failed", field)
    return fault_of_allowed(sample, answer)


def fault_of_allowed(sample: Sample, answer: Answer) -> str | None:
    if (wrong := answer.fault_of_any()) is not None:
        return wrong
    if answer.status < 300 or answer.code in sample.told or answer.code == "validation_failed":
        return None
    return f"{answer.status} {answer.code} is not told for it: {answer.body[:200]!r}"


async def try_bodies(world: World, endpoint: Endpoint) -> AsyncIterator[Fault]:
    shared = await endpoint.sample(world)
    texts = texts_of(shared)
    for field, schema in endpoint.fields.items():
        for attempt in attempts(schema, shared.longest.get(field, (0, None))[1]):
            is_fine = not attempt.is_too_deep and is_allowed(endpoint, shared, field, attempt)
            sample = await endpoint.sample(world) if is_fine else shared
            changed = {**(texts_of(sample) if is_fine else texts), field: attempt.text or ""}
            if attempt.text is None:
                del changed[field]
            answer = await send(world, endpoint, sample, changed, bearer=sample.bearer)
            if wrong := fault_of_attempt(endpoint, sample, field, attempt, answer):
                yield f"{field} {attempt.kind}", wrong
    answer = await send(world, endpoint, shared, {**texts, "colour": '"red"'}, bearer=shared.bearer)
    if wrong := answer.fault(422, "validation_failed", "colour"):
        yield "an unknown field", wrong


async def test_every_field_of_every_body(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    faults: list[str] = []
    tried = [one for one in await endpoints(world) if one.takes_body]
    assert len(tried) > 5
    for endpoint in tried:
        faults += told_of(endpoint, [fault async for fault in try_bodies(world, endpoint)])
        faults += told_of(endpoint, [("afterwards", wrong) for wrong in await still_works(world, endpoint)])
    assert not faults, "\n" + "\n".join(faults)
    assert "Traceback" not in capsys.readouterr().out


# -- queries ----------------------------------------------------------------------------------------------------------------

TEXTS = [
    "", "x", "0", "-1", "+1", "1.0", "1.5", "1e1", "007", "101", "9007199254740992", "9" * 5_000, "1e999", "NaN", "null", "None",
    "true", "[]", "{}", "%", "%zz", "a,b", "a b", "2026-01-05", "2026-01-05T10:00:00Z", "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999999Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "eyJ4Ijox", "W10", "bnVsbA",
    "x" * 101, "x" * 600, "٣", "é", "\U0001f642",
]  # fmt: skip
# As they stand in the target: no text of Unicode gives them.
RAW = ["%00", "a%00b", "%ff", "%ed%a0%80", "%c0%80"]


def fits_query(endpoint: Endpoint, field: str, text: str) -> bool | None:
    """Whether this text is a value of the parameter; None where the contract leaves it open (a rule of the room's own)."""
    schema = endpoint.query[field]
    kinds = {one.get("type") for one in schema.get("anyOf", [schema])}
    if kinds <= {"integer", "null"}:
        return bool(re.fullmatch(r"0|-?[1-9][0-9]*", text)) and len(text) < 30 and fits(schema, int(text), endpoint.known)
    if not fits(schema, text, endpoint.known):
        return False
    return None


async def try_query(world: World, endpoint: Endpoint) -> AsyncIterator[Fault]:
    sample = await endpoint.sample(world)
    path = sample.path_of(endpoint.template)
    for field in endpoint.query:
        others = {name: value for name, value in sample.query.items() if name != field}
        for text in TEXTS:
            answer = await world.talk.ask(endpoint.method, f"{path}?{urlencode({**others, field: text})}", bearer=sample.bearer)
            may = fits_query(endpoint, field, text)
            wrong = answer.fault(422, "validation_failed", field) if may is False else fault_of_allowed(sample, answer)
            if wrong:
                yield f"{field}={text[:40]}", wrong
        for raw in RAW:
            answer = await world.talk.ask(endpoint.method, f"{path}?{field}={raw}", bearer=sample.bearer)
            if wrong := answer.fault(422, "validation_failed"):
                yield f"{field}={raw}", wrong
        answer = await world.talk.ask(endpoint.method, f"{path}?{field}=1&{field}=1", bearer=sample.bearer)
        if wrong := answer.fault(422, "validation_failed", field):
            yield f"{field} twice", wrong


async def try_any_query(world: World, endpoint: Endpoint) -> AsyncIterator[Fault]:
    """Parameters that this endpoint does not know, which is every one for most."""
    sample = await endpoint.sample(world)
    target = target_of(endpoint, sample)
    joint = "&" if "?" in target else "?"
    for extra, field in (("colour=red", "colour"), ("colour", "colour"), ("x%00=1", None), ("%ff=1", None), ("a=1&" * 40, None)):
        body = body_text(texts_of(sample)) if endpoint.takes_body else None
        answer = await world.talk.send_json(endpoint.method, target + joint + extra, body, bearer=sample.bearer)
        if wrong := answer.fault(422, "validation_failed", field):
            yield f"?{extra[:20]}", wrong


async def test_every_parameter_of_every_query(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    faults: list[str] = []
    for endpoint in await endpoints(world):
        faults += told_of(endpoint, [fault async for fault in try_query(world, endpoint)])
        faults += told_of(endpoint, [fault async for fault in try_any_query(world, endpoint)])
        faults += told_of(endpoint, [("afterwards", wrong) for wrong in await still_works(world, endpoint)])
    assert not faults, "\n" + "\n".join(faults)
    assert "Traceback" not in capsys.readouterr().out


# -- paths ------------------------------------------------------------------------------------------------------------------

IDS = [
    "x", "0", "-1", "1.5", "007", "9007199254740992", "9" * 5_000, "null", "x" * 5_000, "%00", "%ff", "%ed%a0%80", "%", "%zz",
    "..", ".", "a%2Fb", "%2e%2e", "'", "{}", "٣", "00000000-0000-0000-0000-00000000000", "0000000000000000000000000000000g",
    "00000000000000000000000000000000", "{00000000-0000-0000-0000-000000000000}", "9007199254740991",
    "urn:uuid:00000000-0000-0000-0000-000000000000", "00000000-0000-0000-0000-000000000000",
    "ffffffff-ffff-ffff-ffff-ffffffffffff",
]  # fmt: skip


async def try_path(world: World, endpoint: Endpoint) -> AsyncIterator[Fault]:
    sample = await endpoint.sample(world)
    body = body_text(texts_of(sample)) if endpoint.takes_body else None
    for place in sample.places:
        for text in [*(one if "%" in one else quote(one, safe="") for one in IDS), sample.foreign[place]]:
            target = target_of(endpoint, replace(sample, places={**sample.places, place: text}))
            answer = await world.talk.send_json(endpoint.method, target, body, bearer=sample.bearer)
            if wrong := answer.fault(404, "not_found"):
                yield f"{place} {text[:40]}", wrong
    assert sample.foreign.keys() == sample.places.keys(), f"{endpoint.name}: every id of the path has a foreign one"


async def test_every_id_of_every_path(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    faults: list[str] = []
    for endpoint in await endpoints(world):
        faults += told_of(endpoint, [fault async for fault in try_path(world, endpoint)])
        faults += told_of(endpoint, [("afterwards", wrong) for wrong in await still_works(world, endpoint)])
    assert not faults, "\n" + "\n".join(faults)
    assert "Traceback" not in capsys.readouterr().out


# -- before sign-in ---------------------------------------------------------------------------------------------------------


async def try_unsigned(world: World, endpoint: Endpoint) -> AsyncIterator[Fault]:
    """Nobody is told anything about a body, a parameter or an id before who they are."""
    sample = await endpoint.sample(world)
    valid = target_of(endpoint, sample)
    bodies = [body_text(texts_of(sample)), "{", "[]", "{}", '{"colour": "red"}', None] if endpoint.takes_body else [None]
    strange = dict.fromkeys(sample.places, "x")
    paths = [valid, endpoint.template.format(**{**sample.places, **sample.foreign}), endpoint.template.format(**strange)]
    joint = "&" if "?" in valid else "?"
    for target in [*paths, f"{valid}{joint}colour=red", f"{valid}{joint}x=%ff"]:
        for body in bodies:
            answer = await world.talk.send_json(endpoint.method, target, body)
            if wrong := answer.fault(401, "unauthorized"):
                yield f"{target[:60]} {body}", wrong
            elif answer.headers.get("www-authenticate") != "Bearer":
                yield target, "no WWW-Authenticate"


async def test_before_sign_in_every_endpoint_says_unauthorized(world: World) -> None:
    found = await endpoints(world)
    open_to_all = {one.name for one in found if not one.needs_sign_in}
    assert open_to_all == {"POST /api/auth/register", "POST /api/auth/login", "POST /api/auth/refresh", "GET /api/openapi.json"}
    faults: list[str] = []
    for endpoint in found:
        if endpoint.needs_sign_in:
            faults += told_of(endpoint, [fault async for fault in try_unsigned(world, endpoint)])
            faults += told_of(endpoint, [("afterwards", wrong) for wrong in await still_works(world, endpoint)])
    assert not faults, "\n" + "\n".join(faults)


def test_the_judge_of_attempts_knows_its_own_kinds() -> None:
    number = {"type": "integer", "minimum": 0, "maximum": 9}
    assert fits(number, 9, {}) and not any(fits(number, value, {}) for value in (10, -1, True, 1.0, "1", None))
    either = {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]}
    assert fits(either, None, {}) and fits(either, "abc", {}) and not fits(either, "abcd", {})
    assert bounds_of(either, "maxLength") == 3
    assert is_part("a.b", "a") and is_part("a[0]", "a") and not is_part("ab", "a")
