"""Passwords, names and emails: their rules, their hashes, and the brake on guessing."""

from __future__ import annotations

import time
import unicodedata

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from uim.chat.passwords import FAILURES, Passwords, Throttle
from uim.errors import UIMError
from uim.model.person import check, email_fault, faults_of, normal_email, password_fault, username_fault

GOOD = "Sesam öffne 1"


@pytest.mark.parametrize(
    "password", ["Abcdefg1", "abcdef1!", "ABCDEF1!", "Abcdefg!", "Пароль12", "密码密码abcd12", "aA1" + "x" * 125]
)
def test_a_password_of_three_kinds_will_do(password: str) -> None:
    assert password_fault(password) is None


@pytest.mark.parametrize(
    "password", ["", "Abcdef1", "abcdefgh", "abcdefg1", "ABCDEFG1", "12345678!", "密码密码密码密码", "aA1" + "x" * 126]
)
def test_a_password_too_short_too_long_or_too_plain_is_refused(password: str) -> None:
    assert password_fault(password) is not None


@pytest.mark.parametrize("name", ["abc", "A_1", "_" * 50])
def test_a_username_of_letters_digits_and_underscores_will_do(name: str) -> None:
    assert username_fault(name) is None


@pytest.mark.parametrize("name", ["", "ab", "a" * 51, "a b c", "al-ice", "älice", "alice\n", "a@b", "١٢٣"])
def test_any_other_username_is_refused(name: str) -> None:
    assert username_fault(name) is not None


@pytest.mark.parametrize(
    ("given_", "stored"),
    [("Alice@EXAMPLE.com", "Alice@example.com"), ("a+b@x.test", "a+b@x.test"), ("ä@bücher.de", "ä@bücher.de")],
)
def test_an_email_is_stored_with_its_domain_in_small_letters(given_: str, stored: str) -> None:
    assert normal_email(given_) == stored


@given(st.text(max_size=300))
def test_any_text_is_an_email_or_has_a_fault_told_in_words(text: str) -> None:
    if (fault := email_fault(text)) is None:
        assert "@" in normal_email(text) and len(text) <= 255
    else:
        assert fault


def test_every_fault_is_told_by_its_field_and_absent_fields_have_none() -> None:
    fields = {"username": "x", "email": "x", "password": "x", "display_name": "", "device_id": "a" * 65, "platform": None}
    assert list(faults_of(fields)) == ["username", "email", "password", "display_name", "device_id"]
    assert faults_of({"device_id": "a\x00"}) and faults_of({"device_name": "\ud800"})
    with pytest.raises(UIMError) as refusal:
        check(fields)
    assert (refusal.value.code, refusal.value.field) == ("validation_failed", "username")


async def test_a_hash_knows_its_password_however_it_was_composed() -> None:
    passwords = Passwords(cost=4)
    stored = await passwords.hash(GOOD)
    assert await passwords.matches(unicodedata.normalize("NFD", GOOD), stored)
    assert not await passwords.matches(GOOD + "x", stored)
    assert not await passwords.matches(GOOD, None)


async def test_passwords_that_differ_only_past_72_bytes_or_after_nul_differ() -> None:
    passwords = Passwords(cost=4)
    stored = await passwords.hash("ä" * 100 + "1")
    assert not await passwords.matches("ä" * 100 + "2", stored)
    assert not await passwords.matches("Abc1\x00x", await passwords.hash("Abc1\x00y"))


async def test_the_stored_form_is_bcrypt_at_cost_ten() -> None:
    stored = await Passwords().hash(GOOD)
    assert stored.startswith("$2b$10$") and len(stored) == 60


async def test_an_unknown_user_costs_the_same_time_as_a_wrong_password() -> None:
    passwords = Passwords(cost=8)
    stored = await passwords.hash(GOOD)

    async def fastest_s(against: str | None) -> float:
        took = []
        for _ in range(5):
            began = time.perf_counter()
            assert not await passwords.matches("wrong", against)
            took.append(time.perf_counter() - began)
        return min(took)

    known, unknown = await fastest_s(stored), await fastest_s(None)
    assert 0.5 < known / unknown < 2


async def test_past_the_bound_of_the_line_a_hash_is_refused_and_those_in_line_are_served() -> None:
    passwords = Passwords(cost=4, threads=1, max_waiting=2)
    codes: list[str] = []

    async def hash_one() -> None:
        try:
            codes.append((await passwords.hash(GOOD))[:4])
        except UIMError as refusal:
            assert refusal.retry_after_s
            codes.append(refusal.code)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(hash_one)
    assert sorted(codes) == ["$2b$"] * 3 + ["unavailable"] * 2


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def is_stopped(throttle: Throttle, name: str = "alice", address: str = "10.0.0.1") -> float | None:
    try:
        throttle.check(name, address)
    except UIMError as refusal:
        assert (refusal.code, refusal.status) == ("too_many_attempts", 429)
        return refusal.retry_after_s
    return None


def test_after_ten_failures_a_name_rests_six_seconds_a_try() -> None:
    clock = Clock()
    throttle = Throttle(clock)
    for _ in range(FAILURES):
        assert is_stopped(throttle) is None
        throttle.failed("alice", "10.0.0.1")
    assert is_stopped(throttle) == pytest.approx(6.0)
    assert is_stopped(throttle, name="ALICE") is not None
    assert is_stopped(throttle, name="bob") is None and is_stopped(throttle, address="10.0.0.2") is None
    clock.now += 6.01
    assert is_stopped(throttle) is None
    throttle.failed("alice", "10.0.0.1")
    assert is_stopped(throttle) is not None


def test_a_success_wipes_the_failures_out() -> None:
    throttle = Throttle(Clock())
    for _ in range(FAILURES):
        throttle.failed("alice", "10.0.0.1")
    throttle.succeeded("Alice", "10.0.0.1")
    assert is_stopped(throttle) is None


def test_the_throttle_forgets_the_oldest_and_never_grows_past_its_bound() -> None:
    throttle = Throttle(Clock(), failures=1, max_remembered=3)
    for name in ("a", "b", "c", "d"):
        throttle.failed(name, "")
    assert [name for name in "abcd" if is_stopped(throttle, name, "") is not None] == ["b", "c", "d"]


@given(st.lists(st.floats(0, 100), max_size=40))
def test_nobody_fails_more_often_than_the_bucket_allows(pauses: list[float]) -> None:
    clock = Clock()
    throttle = Throttle(clock)
    failures = 0
    for pause in pauses:
        clock.now += pause
        if is_stopped(throttle) is None:
            throttle.failed("alice", "10.0.0.1")
            failures += 1
    assert failures <= FAILURES + sum(pauses) / 6 + 1
