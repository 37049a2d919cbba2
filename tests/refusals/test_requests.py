"""Requests that are wrong as a whole: bodies that are no JSON, methods and paths that are not there, odd heads."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from tests.house import PASSWORD
from tests.refusals.contract import Endpoint, endpoints
from tests.refusals.http import JSON, Headers, Talk
from tests.refusals.shapes import body_text
from tests.refusals.test_fields import still_works, target_of, texts_of, told_of
from tests.refusals.world import Sample, World

pytestmark = pytest.mark.timeout(60)

MAX_BODY_BYTES = 128 * 1024
# A refusal gives back no more than this of what was sent.
MAX_REFUSAL_BYTES = 2_000

NOT_JSON = [
    b"{", b"x", b"{'a': 1}", b'{"a": 1,}', b'{"a": NaN}', b'{"a": Infinity}', b'{"a": 01}', b'{"a": "\x01"}', b'{"a": "\xff"}',
    b'{"a": "\xed\xa0\x80"}', b"\xff\xfe{\x00}\x00", b"\xef\xbb\xbf{}", b"{} {}", b'{"a": "\\x"}', b'{"a": "\\ud8"}', b" ",
    b"[" * 100_000, b'{"a":' * 20_000, b"\x00", b"// {}\n{}",
]  # fmt: skip
NO_OBJECT = [b"[]", b"null", b"true", b"1", b"1.5", b'"text"', b"[{}]"]


def padded(endpoint: Endpoint, sample: Sample, size: int) -> bytes:
    """The sample's body, with white space up to exactly that many bytes."""
    body = body_text(texts_of(sample)).encode()
    return body[:-1] + b" " * (size - len(body)) + b"}"


async def try_bodies(world: World, endpoint: Endpoint) -> AsyncIterator[tuple[str, str]]:
    sample = await endpoint.sample(world)
    target, valid = target_of(endpoint, sample), body_text(texts_of(sample)).encode()

    async def fault(body: bytes | None, status: int, code: str, headers: Headers = JSON) -> str | None:
        answer = await world.talk.ask(endpoint.method, target, headers, body, bearer=sample.bearer)
        return answer.fault(status, code)

    for body in NOT_JSON:
        if wrong := await fault(body, 400, "bad_request"):
            yield repr(body[:20]), wrong
    for body in NO_OBJECT:
        if wrong := await fault(body, 422, "validation_failed"):
            yield repr(body[:20]), wrong
    if endpoint.required:
        for empty in (b"", None):
            if wrong := await fault(empty, 400, "bad_request"):
                yield "no body", wrong
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonp",
        "",
        "json",
    ):
        if wrong := await fault(valid, 415, "unsupported_media_type", [("Content-Type", kind)]):
            yield kind, wrong
    if wrong := await fault(valid, 415, "unsupported_media_type", []):
        yield "no Content-Type", wrong
    for size in (MAX_BODY_BYTES + 1, 3 * MAX_BODY_BYTES):
        if wrong := await fault(padded(endpoint, sample, size), 413, "payload_too_large"):
            yield f"{size} bytes", wrong
    async for what, wrong in try_long_words(world, endpoint, sample, target):
        yield what, wrong


async def try_long_words(world: World, endpoint: Endpoint, sample: Sample, target: str) -> AsyncIterator[tuple[str, str]]:
    """A long mistake is not sent back in full: an answer twice the size of its request would serve others' floods."""
    long = "x" * 60_000
    for what, body in (
        ("a long name", {**(sample.body or {}), long: 1}),
        *((f"a long key of {field}", {**(sample.body or {}), field: {long: long}}) for field in endpoint.fields),
        *((f"a long {field}", {**(sample.body or {}), field: long}) for field in endpoint.fields),
        *((f"a long {field} in a list", {**(sample.body or {}), field: [long]}) for field in endpoint.fields),
    ):
        answer = await world.talk.send_json(endpoint.method, target, json.dumps(body), bearer=sample.bearer)
        if wrong := answer.fault_of_any():
            yield what, wrong
        elif len(answer.body) > MAX_REFUSAL_BYTES:
            yield what, f"is answered with {len(answer.body)} bytes"


async def test_bodies_that_are_no_json_of_this_type_or_size(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    faults: list[str] = []
    for endpoint in await endpoints(world):
        if endpoint.takes_body:
            faults += told_of(endpoint, [fault async for fault in try_bodies(world, endpoint)])
            faults += told_of(endpoint, [("afterwards", wrong) for wrong in await still_works(world, endpoint)])
    assert not faults, "\n" + "\n".join(faults)
    assert "Traceback" not in capsys.readouterr().out


async def test_body_of_exactly_128_kib_is_taken_and_keys_given_twice_count_once(world: World) -> None:
    for endpoint in await endpoints(world):
        if endpoint.takes_body:
            sample = await endpoint.sample(world)
            target, most = target_of(endpoint, sample), padded(endpoint, sample, MAX_BODY_BYTES)
            answer = await world.talk.ask(endpoint.method, target, JSON, most, bearer=sample.bearer)
            assert answer.status == endpoint.success, (endpoint.name, answer)
    rename = f"/api/conversations/{world.group_id}"
    answer = await world.talk.send_json("PATCH", rename, '{"name": "first", "name": "last"}', bearer=world.bearer)
    assert (answer.status, answer.json()["name"]) == (200, "last")
    answer = await world.talk.send_json("PATCH", rename, '{"name": "first", "name": 1}', bearer=world.bearer)
    assert answer.fault(422, "validation_failed", "name") is None


async def test_methods_that_are_not_there(world: World) -> None:
    faults: list[str] = []
    known: dict[str, set[str]] = {}
    found = await endpoints(world)
    for endpoint in found:
        known.setdefault(endpoint.template, set()).add(endpoint.method)
    for template, methods in known.items():
        sample = await next(one for one in found if one.template == template).sample(world)
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW", "CONNECT"} - methods:
            path = sample.path_of(template)
            # A path of another row may be meant: /api/users/{user_id} is /api/users/me's neighbour.
            answer = await world.talk.send_json(method, path, "{}", bearer=sample.bearer)
            if wrong := answer.fault(405, "method_not_allowed"):
                faults.append(f"{method} {template}: {wrong}")
            elif not methods <= set(answer.headers["allow"].split(", ")):
                faults.append(f"{method} {template}: Allow is {answer.headers['allow']}")
    assert not faults, "\n" + "\n".join(faults)


async def test_paths_that_are_not_there(world: World) -> None:
    paths = [
        "/", "/api", "/api/", "/api/nothing", "/api//users/me", "/api/users/me/", "/api/users/me/x", "/API/users/me",
        "/api/../api/users/me", "/api/users/me%2f", "/%", "/%zz", "/%ff", "/%00", "/x" * 4_000, "*",
        "/metrics", "/.env", "/wss",
    ]  # fmt: skip
    for path in paths:
        for bearer in (None, world.bearer):
            answer = await world.talk.ask("GET", path, bearer=bearer)
            assert answer.fault(404, "not_found") is None, (path, answer)
    assert (await world.talk.ask("GET", "/api/users/me", bearer=world.bearer)).status == 200


async def test_heads_that_are_odd(world: World) -> None:
    me = b"GET /api/users/me HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + world.bearer.encode() + b"\r\n"
    for head, status in (
        (b"GET /api/users/me HTTP/1.1\r\n\r\n", 400),
        (me + b"No-Colon\r\n\r\n", 400),
        (me + b"Bad Name: x\r\n\r\n", 400),
        (me + b"X: a\x00b\r\n\r\n", 400),
        (me + b"Content-Length: -1\r\n\r\n", 400),
        (me + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (me + b"Content-Length: " + b"9" * 400 + b"\r\n\r\n", 400),
        (b"GET /api/users/ me HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /api/users/m\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (me + b"X: " + b"y" * 17_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"y" * 17_000 + b" HTTP/1.1\r\n\r\n", 431),
    ):
        talk = Talk(world.server.url)
        answer = await talk.say(head)
        await talk.hang_up()
        assert answer.fault(status, "bad_request") is None, (head[-60:], answer)
        assert (await world.talk.ask("GET", "/api/users/me", bearer=world.bearer)).status == 200, "the server lives"


async def test_names_are_refused_by_their_rules(world: World) -> None:
    """Rules that no JSON schema tells."""
    ok = {"username": "somebody", "email": "somebody@example.com", "password": PASSWORD}
    for field, values in {
        "username": ["ab", "a" * 51, "a b", "a-b", "é" * 5, "a\n", "\N{CYRILLIC SMALL LETTER A}bc", "a@b"],
        "email": [
            "x",
            "x@",
            "@x",
            "a b@example.com",
            "a@b@c",
            "a@example.com\n",
            "a@" + "b" * 64 + ".com",
            "x" * 250 + "@example.com",
            "a@[::1",
        ],
        "password": ["short1A", "x" * 129, "alllowercase", "lowerandUPPER", "12345678", "A1a" * 60, " " * 12],
        "device_id": ["", "x" * 65],
    }.items():
        for value in values:
            answer = await world.talk.send_json("POST", "/api/auth/register", json.dumps({**ok, field: value}))
            assert answer.fault(422, "validation_failed", field) is None, (field, value, answer)
    several = await world.talk.send_json(
        "POST", "/api/auth/register", json.dumps({"username": "a", "email": "b", "password": "c"})
    )
    assert several.json()["errors"].keys() == ok.keys(), "all faults at once"
