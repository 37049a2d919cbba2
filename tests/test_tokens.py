"""Tokens: what we signed is read back, everything else is refused, and a refresh token is judged by its generation."""

from __future__ import annotations

import base64
import json
import secrets
import string
from uuid import UUID, uuid4

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uim.chat.tokens import (
    ACCESS_LIFE_S,
    LEEWAY_S,
    REPEAT_WITHIN_S,
    AccessClaims,
    Refreshing,
    RefreshState,
    RefreshToken,
    Tokens,
    judge_refresh,
    new_refresh,
    read_refresh,
)
from uim.config import JwtKey
from uim.errors import UIMError

NOW = 1_800_000_000.0
OLD, NEW = JwtKey("old", b"o" * 32), JwtKey("new", b"n" * 32)
USER, LOGIN = UUID(int=1), UUID(int=2)
KEY = b"k" * 32
FIRST = new_refresh(LOGIN, 1, KEY, b"s" * 32)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def signed(tokens: Tokens) -> str:
    return tokens.sign_access(user_id=USER, username="alice", login_id=LOGIN, generation=3)


def refused(tokens: Tokens, token: str) -> str:
    with pytest.raises(UIMError) as refusal:
        tokens.read_access(token)
    assert refusal.value.status == 401
    return refusal.value.code


def test_an_access_token_says_who_and_for_how_long() -> None:
    tokens = Tokens([NEW], Clock())
    token = signed(tokens)
    assert tokens.read_access(token) == AccessClaims(USER, "alice", LOGIN, 3, int(NOW), int(NOW) + 900)
    assert jwt.get_unverified_header(token) == {"alg": "HS256", "typ": "JWT", "kid": "new"}


def test_an_access_token_expires_after_its_life_and_leeway() -> None:
    clock = Clock()
    tokens = Tokens([NEW], clock)
    token = signed(tokens)
    clock.now = NOW + ACCESS_LIFE_S + LEEWAY_S - 0.01
    assert tokens.read_access(token).sid == LOGIN
    clock.now = NOW + ACCESS_LIFE_S + LEEWAY_S
    assert refused(tokens, token) == "token_expired"


def test_an_expired_token_with_a_wrong_signature_is_not_told_that_it_expired() -> None:
    clock = Clock()
    token = signed(Tokens([OLD], clock))
    clock.now = NOW + 10_000
    assert refused(Tokens([JwtKey("old", b"x" * 32)], clock), token) == "unauthorized"


def test_keys_rotate_the_first_signs_and_all_verify() -> None:
    before, both, after = Tokens([OLD], Clock()), Tokens([NEW, OLD], Clock()), Tokens([NEW], Clock())
    assert both.read_access(signed(before)).username == "alice"
    assert after.read_access(signed(both)).username == "alice"
    assert refused(after, signed(before)) == "unauthorized"


def payload(**changes: object) -> dict[str, object]:
    claims: dict[str, object] = {
        "user_id": str(USER), "username": "alice", "sid": str(LOGIN), "gen": 1, "iat": int(NOW), "exp": int(NOW) + 900,
    }  # fmt: skip
    return {name: value for name, value in (claims | changes).items() if value is not None}


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


FORGED = {
    "no algorithm": jwt.encode(payload(), "", algorithm="none", headers={"kid": "new"}),
    "another algorithm": jwt.encode(payload(), NEW.secret * 2, algorithm="HS512", headers={"kid": "new"}),
    "no kid": jwt.encode(payload(), NEW.secret, algorithm="HS256"),
    "unknown kid": jwt.encode(payload(), NEW.secret, algorithm="HS256", headers={"kid": "other"}),
    "kid of another key": jwt.encode(payload(), NEW.secret, algorithm="HS256", headers={"kid": "old"}),
    "kid that is no text": f"{part({'alg': 'HS256', 'kid': ['new']})}.{part(payload())}.AAAA",
    "no expiry": jwt.encode(payload(exp=None), NEW.secret, algorithm="HS256", headers={"kid": "new"}),
    "no login": jwt.encode(payload(sid=None), NEW.secret, algorithm="HS256", headers={"kid": "new"}),
    "a login that is no id": jwt.encode(payload(sid="x"), NEW.secret, algorithm="HS256", headers={"kid": "new"}),
    "a header nested deep": base64.urlsafe_b64encode(b"[" * 700).rstrip(b"=").decode() + ".e30.AAAA",
    "too long": "a" * 2_000,
    "nothing": "",
    "not ASCII": "é.é.é",
}


@pytest.mark.parametrize("token", FORGED.values(), ids=FORGED.keys())
def test_a_forged_access_token_is_unauthorized(token: str) -> None:
    assert refused(Tokens([NEW, OLD], Clock()), token) == "unauthorized"


@given(st.one_of(st.text(), st.from_regex(r"[\w-]+\.[\w-]+\.[\w-]*")))
def test_any_text_gives_claims_or_a_refusal(text: str) -> None:
    assert refused(Tokens([NEW], Clock()), text) == "unauthorized"


@given(st.binary(min_size=16, max_size=16), st.integers(1, 2**31), st.binary(min_size=32, max_size=32))
def test_a_refresh_token_is_read_as_it_was_made(login: bytes, generation: int, secret: bytes) -> None:
    token = new_refresh(UUID(bytes=login), generation, KEY, secret)
    assert read_refresh(token.text) == token
    assert token.is_genuine(KEY) and not token.is_genuine(secret)


def verdict_on(text: str, state: RefreshState) -> Refreshing | str:
    try:
        return judge_refresh(read_refresh(text), state)
    except UIMError as refusal:
        return refusal.code


def state_at(token: RefreshToken, *, before: RefreshToken | None = None, used_for_s: float | None = None) -> RefreshState:
    return RefreshState(token.generation, KEY, token.hash, None if before is None else before.hash, used_for_s)


@given(st.integers(0, 90), st.characters(codec="ascii"))
def test_a_refresh_token_with_any_other_character_is_refused_and_ends_nothing(place: int, character: str) -> None:
    text = FIRST.text[:place] + character + FIRST.text[place + 1 :]
    expected = Refreshing.ADVANCE if text == FIRST.text else None
    verdict = verdict_on(text, state_at(FIRST))
    assert verdict is expected or verdict in (Refreshing.GARBAGE, "invalid_refresh_token")


@pytest.mark.parametrize("last", sorted(set(string.ascii_letters + string.digits + "-_") - {FIRST.text[-1]}))
def test_the_spare_bits_of_the_last_character_are_no_second_way_to_write_a_token(last: str) -> None:
    assert verdict_on(FIRST.text[:-1] + last, state_at(FIRST)) in (Refreshing.GARBAGE, "invalid_refresh_token")


@given(st.one_of(st.text(), st.text(alphabet="ABCDabcd0123-_+/=", min_size=91, max_size=91)))
def test_any_text_as_a_refresh_token_is_refused_and_ends_nothing(text: str) -> None:
    assert verdict_on(text, state_at(FIRST)) in (Refreshing.GARBAGE, "invalid_refresh_token")


def test_a_successor_is_always_the_same_and_differs_from_every_other() -> None:
    second = FIRST.successor(KEY)
    assert second.text == read_refresh(FIRST.text).successor(KEY).text
    assert second.generation == 2 and second.is_genuine(KEY)
    assert len({FIRST.text, second.text, second.successor(KEY).text, FIRST.successor(b"other").text}) == 4


@pytest.mark.parametrize(
    ("used_for_s", "expected"),
    [
        (None, Refreshing.REPEAT),
        (0.0, Refreshing.REPEAT),
        (REPEAT_WITHIN_S - 0.1, Refreshing.REPEAT),
        (REPEAT_WITHIN_S, Refreshing.REUSE),
        (1e6, Refreshing.REUSE),
    ],
)
def test_the_token_before_repeats_until_thirty_seconds_after_the_first_use(
    used_for_s: float | None, expected: Refreshing
) -> None:
    state = state_at(FIRST.successor(KEY), before=FIRST, used_for_s=used_for_s)
    assert judge_refresh(FIRST, state) is expected


@given(st.integers(3, 40), st.data())
def test_of_all_generations_only_the_newest_two_are_good_and_older_ones_end_the_login(newest: int, data: st.DataObject) -> None:
    chain = [FIRST]
    while len(chain) < newest:
        chain.append(chain[-1].successor(KEY))
    state = state_at(chain[-1], before=chain[-2])
    presented = data.draw(st.sampled_from(chain))
    expected = {newest: Refreshing.ADVANCE, newest - 1: Refreshing.REPEAT}.get(presented.generation, Refreshing.REUSE)
    assert judge_refresh(presented, state) is expected


def test_a_genuine_token_from_after_a_restored_backup_is_refused_without_harm() -> None:
    assert judge_refresh(FIRST.successor(KEY), state_at(FIRST)) is Refreshing.GARBAGE


def test_another_logins_token_is_garbage() -> None:
    foreign = new_refresh(uuid4(), 1, secrets.token_bytes(32), secrets.token_bytes(32))
    assert judge_refresh(foreign, state_at(FIRST)) is Refreshing.GARBAGE
