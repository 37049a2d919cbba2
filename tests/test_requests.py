"""What a client may send, and what it is told when it is wrong: bodies, queries, ids in paths; and how times go out."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.http_house import JSON, SEEN, SIGNED_IN, SOME_ID, Note, Page, client_of, exchange, house_app, is_problem, serving
from uim.api.answers import to_json
from uim.api.app import MAX_BODY_BYTES
from uim.api.requests import parse_body, parse_query, path_id, path_number
from uim.errors import UIMError

pytestmark = pytest.mark.timeout(30)


@pytest.mark.parametrize(
    ("body", "status", "errors"),
    [
        (b'{"text": "hi"}', 201, None),
        (b'{"text": "\\ud83d\\ude00 \xf0\x9f\x98\x80"}', 201, None),
        (b"", 400, None),
        (b"{", 400, None),
        (b'{"text": "a",}', 400, None),
        (b'{"text": "a"} and more', 400, None),
        (b'{"text": "\xff"}', 400, None),
        (b'{"text": "a\x00"}', 400, None),
        (b'{"text": 1, "tags": ', 400, None),
        (b'{"text": NaN}', 400, None),
        (b"[" * 100_000, 400, None),
        (b'{"text": "a", "tags": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", 400, None),
        (b"[]", 422, {""}),
        (b"null", 422, {""}),
        (b"{}", 422, {"text"}),
        (b'{"text": 1}', 422, {"text"}),
        (b'{"text": null}', 422, {"text"}),
        (b'{"text": "a", "tags": ["b", 3]}', 422, {"tags[1]"}),
        (b'{"text": "a", "colour": "red"}', 422, {"colour"}),
        (b'{"text": "a\\u0000"}', 422, {"text"}),
        (b'{"text": "a", "tags": ["b", "\\u0000"]}', 422, {"tags[1]"}),
        (b'{"text": "a", "metadata": {"k": "\\u0000"}}', 422, {"metadata.k"}),
        (b'{"text": "a", "metadata": {"k\\u0000": "v"}}', 422, {"metadata.k\N{REPLACEMENT CHARACTER}"}),
        (b'{"text": "\\ud800"}', 422, {"text"}),
        (b'{"text": "a", "metadata": {"k": "x\\udc00y and more"}}', 422, {"metadata.k"}),
        (b'{"text": "\\ud800\\ud800"}', 422, {"text"}),
        (b'{"text": "a", "tags": 1e999}', 422, {""}),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_body_gives_a_value_or_says_what_is_wrong(body: bytes, status: int, errors: set[str] | None) -> None:
    async with client_of(house_app()) as client:
        answer = await client.post("/api/notes", content=body, headers=JSON)
        if status == 201:
            assert answer.status_code == 201 and answer.json()["text"] == json.loads(body)["text"]
            return
        told = is_problem(answer, status, "bad_request" if status == 400 else "validation_failed")
        assert set(told.get("errors", {})) == (errors or set())


@given(st.binary(max_size=300) | st.text(max_size=50).map(lambda text: b'{"text": "%s"}' % text.encode()))
def test_any_bytes_give_a_value_or_a_refusal(body: bytes) -> None:
    for parse, type_ in ((parse_body, Note), (parse_query, Page)):
        try:
            assert isinstance(parse(body, type_), type_)
        except UIMError as refusal:
            assert refusal.code in ("bad_request", "validation_failed")


async def test_body_that_is_not_json_by_its_type_is_415() -> None:
    async with client_of(house_app()) as client:
        for headers in ({"Content-Type": "text/plain"}, {}):
            answer = await client.post("/api/notes", content=b'{"text": "a"}', headers=headers)
            is_problem(answer, 415, "unsupported_media_type")
        charset = {"Content-Type": "application/json; charset=utf-8"}
        assert (await client.post("/api/notes", content=b'{"text": "a"}', headers=charset)).status_code == 201


async def test_body_over_128_kib_is_413_with_its_length_told_or_in_chunks() -> None:
    def note_of(size: int) -> bytes:
        return b'{"text": "' + b"a" * (size - 12) + b'"}'

    async def in_chunks(body: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(body), 4096):
            yield body[start : start + 4096]

    async with client_of(house_app()) as client:
        most, over = note_of(MAX_BODY_BYTES), note_of(MAX_BODY_BYTES + 1)
        assert (await client.post("/api/notes", content=most, headers=JSON)).status_code == 201
        assert (await client.post("/api/notes", content=in_chunks(most), headers=JSON)).status_code == 201
        for body in (over, note_of(3 * MAX_BODY_BYTES)):
            is_problem(await client.post("/api/notes", content=body, headers=JSON), 413, "payload_too_large")
            chunked = await client.post("/api/notes", content=in_chunks(body), headers=JSON)
            is_problem(chunked, 413, "payload_too_large")
        assert (await client.delete("/api/notes")).status_code == 204, "the server lives"


async def test_body_by_drops_is_cut() -> None:
    async with serving(house_app(body_s=0.2)) as listener:
        head = b"POST /api/notes HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
        answer = await exchange(listener, head + b"{")
        assert answer.startswith(b"HTTP/1.1 408 ") and b'"code":"bad_request"' in answer


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("limit=", "limit"),
        ("limit=" + "9" * 5000, "limit"),
        ("limit=1&limit=2", "limit"),
        ("colour=red", "colour"),
        ("q=%00", "q"),
        ("q=%ff", ""),
        ("q=%ed%a0%80", ""),
        ("&".join(f"q{n}=" for n in range(100)), ""),
    ],
    ids=lambda value: value[:20],
)
async def test_bad_query_names_its_parameter(query: str, field: str) -> None:
    async with client_of(house_app()) as client:
        told = is_problem(await client.get(f"{SEEN}?{query}", headers=SIGNED_IN), 422, "validation_failed")
        assert list(told["errors"]) == [field]


async def test_handler_gets_caller_ids_and_query() -> None:
    async with client_of(house_app()) as client:
        answer = await client.get(f"{SEEN}?limit=3&q=%F0%9F%98%80", headers=SIGNED_IN)
        seen = {"user_id": str(SOME_ID), "message_id": 7, "limit": 3, "at": "2026-01-02T03:04:05.678Z"}
        assert answer.json() == seen and answer.headers["Content-Type"] == "application/json"
        told = is_problem(await client.get(SEEN), 401, "unauthorized")
        assert told["detail"] == "sign in"
        assert (await client.get(SEEN)).headers["WWW-Authenticate"] == "Bearer"
        is_problem(await client.get("/api/openapi.json?x=1"), 422, "validation_failed")


@pytest.mark.parametrize("text", ["x", "", str(SOME_ID)[:-1], "{" + str(SOME_ID) + "}", SOME_ID.hex, "\x00", "٣"])
def test_malformed_id_names_nothing(text: str) -> None:
    for read in (path_id, path_number):
        with pytest.raises(UIMError) as refusal:
            read(text, "user_id")
        assert refusal.value.code == "not_found"


@pytest.mark.parametrize("text", ["0", "-1", "007", "1.0", "9007199254740992", "9" * 5000])
def test_number_that_is_no_message_id_names_nothing(text: str) -> None:
    with pytest.raises(UIMError) as refusal:
        path_number(text, "message_id")
    assert refusal.value.code == "not_found"
    assert path_number("9007199254740991", "message_id") == 2**53 - 1
    assert path_id(str(SOME_ID).upper(), "user_id") == SOME_ID


def test_times_go_out_in_utc_with_milliseconds() -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, 999_999, timezone(timedelta(hours=2)))
    assert to_json([{"at": at}, (at,)]) == b'[{"at":"2026-01-02T01:04:05.999Z"},["2026-01-02T01:04:05.999Z"]]'
    with pytest.raises(ValueError, match="zone"):
        to_json(at.replace(tzinfo=None))
