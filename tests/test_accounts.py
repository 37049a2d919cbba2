"""Accounts and logins against a real database: what is stored, what the log says, who is let in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import trio
from psycopg import sql

from tests.sign_in_house import KEY, PASSWORD, SignInHouse, refusal_of, sign_in_house
from uim.chat.accounts import SignedIn
from uim.chat.passwords import FAILURES, Passwords
from uim.config import JwtKey
from uim.errors import UIMError
from uim.model.person import Device
from uim.store.postgres import Connection, Pool

NEW_PASSWORD = "Another horse 2"
WAITING_FOR_LOCKS = """select count(*) from pg_stat_activity
    where datname = current_database() and wait_event_type = 'Lock'"""


@pytest.fixture
async def house(database_url: str) -> AsyncIterator[SignInHouse]:
    async with sign_in_house(database_url) as made:
        yield made


async def all_of(*calls: Callable[[], Awaitable[Any]]) -> list[Any]:
    """What these calls, made at once, gave or refused."""
    outcomes: list[Any] = []

    async def one(call: Callable[[], Awaitable[Any]]) -> None:
        try:
            outcomes.append(await call())
        except UIMError as refusal:
            outcomes.append(refusal.code)

    async with trio.open_nursery() as nursery:
        for call in calls:
            nursery.start_soon(one, call)
    return outcomes


# -- registering ------------------------------------------------------------------------------------------------------


async def test_a_new_account_has_its_own_conversation_and_a_first_login_and_no_entry(house: SignInHouse) -> None:
    alice = await house.registered()
    caller = await house.caller(alice)
    assert (caller.user_id, caller.username, caller.device_id) == (alice.profile.user_id, "alice", "phone")
    seats = await house.execute(
        """select c.type, c.created_by, s.joined_message_id, s.left_message_id from conversations c
            join conversation_participants using (conversation_id) join participations s using (conversation_id)"""
    )
    assert seats == [("self", caller.user_id, 0, None)]
    assert house.entries == []


async def test_of_two_who_register_one_name_at_once_one_gets_it(house: SignInHouse) -> None:
    def as_(name: str, email: str) -> Callable[[], Awaitable[SignedIn]]:
        return lambda: house.accounts.register(
            username=name, email=email, password=PASSWORD, display_name=None, device=Device("d")
        )

    outcomes = await all_of(as_("alice", "a@example.com"), as_("ALICE", "b@example.com"))
    assert outcomes.count("username_taken") == 1 and sum(isinstance(one, SignedIn) for one in outcomes) == 1
    (taken,) = await house.execute("select email from users")
    assert (await refusal_of(as_("carol", taken[0].upper())())).code == "email_taken"
    assert await house.execute("select count(*) from logins") == [(1,)]


async def test_a_deleted_accounts_name_is_not_given_again_and_opens_nothing(house: SignInHouse) -> None:
    alice = await house.registered()
    await house.execute("update users set deleted_at = now()")
    assert (await refusal_of(house.registered())).code == "username_taken"
    assert (await refusal_of(house.entered())).code == "invalid_credentials"
    assert (await refusal_of(house.accounts.refresh(alice.refresh_token))).code == "invalid_refresh_token"
    assert (await refusal_of(house.caller(alice))).code == "session_ended"


# -- signing in -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["alice", "ALICE", "alice@example.com", "Alice@Example.COM"])
async def test_a_login_by_name_or_email_is_told_to_the_users_devices(house: SignInHouse, name: str) -> None:
    await house.registered()
    entered = await house.accounts.login(
        name=name, password=PASSWORD, device=Device("laptop", "Alice's laptop", "linux"), address="10.0.0.1"
    )
    (entry,) = house.entries
    assert entry.message_type == "account" and entry.sender_id == entered.profile.user_id
    assert entry.event == {
        "event": "login_added",
        "login_id": str(entered.login_id),
        "device_id": "laptop",
        "device_name": "Alice's laptop",
        "platform": "linux",
    }
    assert await house.execute("select created_by from conversations where conversation_id = %s", entry.conversation_id) == [
        (entry.sender_id,)
    ]


async def test_an_unknown_user_and_a_wrong_password_get_the_same_answer(house: SignInHouse) -> None:
    await house.registered()
    wrong = await refusal_of(house.entered(password="Wrong horse 1"))
    unknown = await refusal_of(house.entered(name="nobody", password="Wrong horse 1"))
    assert (wrong.code, wrong.status, wrong.message) == (unknown.code, unknown.status, unknown.message)
    assert wrong.code == "invalid_credentials" and wrong.status == 401


async def test_a_second_login_on_a_device_replaces_the_first(house: SignInHouse) -> None:
    first = await house.registered()
    await house.caller(first)
    second = await house.entered(device_id="phone")
    assert [(event["event"], event["login_id"]) for event in house.events] == [
        ("login_ended", str(first.login_id)),
        ("login_added", str(second.login_id)),
    ]
    assert house.events[0]["reason"] == "replaced" and house.cut == [first.login_id]
    assert (await refusal_of(house.caller(first))).code == "session_ended"
    assert (await house.caller(second)).login_id == second.login_id


async def test_many_logins_on_one_device_at_once_leave_one(house: SignInHouse) -> None:
    await house.registered()
    outcomes = await all_of(*[lambda: house.entered(device_id="phone")] * 6)
    assert all(isinstance(one, SignedIn) for one in outcomes)
    assert await house.execute("select count(*) from logins where ended_at is null") == [(1,)]


async def test_after_ten_wrong_passwords_the_right_one_has_to_wait_too(house: SignInHouse) -> None:
    await house.registered()
    for _ in range(FAILURES):
        assert (await refusal_of(house.entered(password="Wrong horse 1"))).code == "invalid_credentials"
    refusal = await refusal_of(house.entered())
    assert refusal.code == "too_many_attempts" and refusal.retry_after_s
    elsewhere = house.accounts.login(name="alice", password=PASSWORD, device=Device("x"), address="10.0.0.2")
    assert (await elsewhere).profile.username == "alice"


async def test_guessing_in_parallel_is_no_way_around_the_throttle(house: SignInHouse) -> None:
    await house.registered()
    outcomes = await all_of(*[lambda: house.entered(password="Wrong horse 1")] * 30)
    assert outcomes.count("invalid_credentials") == FAILURES
    assert outcomes.count("too_many_attempts") == 30 - FAILURES


# -- refreshing -------------------------------------------------------------------------------------------------------


async def test_a_refresh_moves_on_and_its_repeat_gives_the_same_successor(house: SignInHouse) -> None:
    first = await house.registered()
    second = await house.accounts.refresh(first.refresh_token)
    house.clock.now += 60
    again = await house.accounts.refresh(first.refresh_token)
    assert second.refresh_token == again.refresh_token != first.refresh_token
    assert (second.login_id, second.device_id) == (first.login_id, "phone")
    assert again.access_token != second.access_token
    third = await house.accounts.refresh(second.refresh_token)
    assert third.refresh_token not in (first.refresh_token, second.refresh_token)


async def test_refreshes_of_one_token_at_once_give_one_answer(house: SignInHouse) -> None:
    first = await house.registered()
    answers: list[str] = []

    async def refresh() -> None:
        answers.append((await house.accounts.refresh(first.refresh_token)).refresh_token)

    async with trio.open_nursery() as nursery, house.pool.transaction() as tx:
        await tx.execute("select from logins for update")
        nursery.start_soon(refresh)
        nursery.start_soon(refresh)
        while await house.execute(WAITING_FOR_LOCKS) != [(2,)]:
            await trio.sleep(0.01)
    assert len(answers) == 2 and len(set(answers)) == 1
    assert await house.execute("select generation from logins") == [(2,)]


async def test_the_old_token_is_good_until_thirty_seconds_after_the_new_pair_is_used(house: SignInHouse) -> None:
    first = await house.registered()
    second = await house.accounts.refresh(first.refresh_token)
    # A day without any use: the answer may never have come.
    await house.execute("update logins set last_used_at = now() - interval '1 day'")
    assert (await house.accounts.refresh(first.refresh_token)).refresh_token == second.refresh_token
    await house.caller(second)
    assert (await house.accounts.refresh(first.refresh_token)).refresh_token == second.refresh_token
    await house.execute("update logins set generation_used_at = generation_used_at - interval '31 seconds'")
    assert (await refusal_of(house.accounts.refresh(first.refresh_token))).code == "invalid_refresh_token"
    assert house.events == [{"event": "login_ended", "login_id": str(first.login_id), "reason": "reuse"}]
    assert house.cut == [first.login_id]
    assert (await refusal_of(house.accounts.refresh(second.refresh_token))).code == "invalid_refresh_token"
    assert (await refusal_of(house.caller(second))).code == "session_ended"


async def test_a_token_two_generations_old_ends_the_login_at_once(house: SignInHouse) -> None:
    first = await house.registered()
    second = await house.accounts.refresh(first.refresh_token)
    await house.accounts.refresh(second.refresh_token)
    assert (await refusal_of(house.accounts.refresh(first.refresh_token))).code == "invalid_refresh_token"
    assert await house.execute("select ended_reason from logins") == [("reuse",)]


async def test_garbage_and_another_logins_token_end_nothing(house: SignInHouse) -> None:
    first = await house.registered()
    text = first.refresh_token
    for garbage in ("", "x", "é" * 91, text[:-1], text + "A", ("B" if text[0] != "B" else "C") + text[1:], text[:60] + "A" * 31):
        assert (await refusal_of(house.accounts.refresh(garbage))).code == "invalid_refresh_token"
    assert (await house.accounts.refresh(text)).login_id == first.login_id


async def test_the_first_use_of_a_generation_is_noted_once(house: SignInHouse) -> None:
    first = await house.registered()
    await house.caller(first)
    noted = await house.execute("select generation_used_at, generation from logins")
    assert noted[0][0] is not None
    await house.caller(first)
    assert await house.execute("select generation_used_at, generation from logins") == noted
    second = await house.accounts.refresh(first.refresh_token)
    await house.caller(first)
    assert await house.execute("select generation_used_at, generation from logins") == [(None, 2)]
    await house.caller(second)
    assert (await house.execute("select generation_used_at is not null from logins")) == [(True,)]


async def test_a_process_that_sees_a_generation_later_does_not_note_its_use_again(house: SignInHouse, database_url: str) -> None:
    first = await house.registered()
    second = await house.accounts.refresh(first.refresh_token)
    async with sign_in_house(database_url) as other:
        await other.caller(first)
        await house.caller(second)
        await house.execute("update logins set generation_used_at = generation_used_at - interval '31 seconds'")
        await other.caller(second)
        assert (await refusal_of(other.accounts.refresh(first.refresh_token))).code == "invalid_refresh_token"


async def test_a_login_that_nobody_refreshed_for_seven_days_has_ended(house: SignInHouse) -> None:
    alice = await house.registered()
    await house.caller(alice)
    await house.execute("update logins set expires_at = now() - interval '1 second'")
    assert (await refusal_of(house.accounts.refresh(alice.refresh_token))).code == "invalid_refresh_token"
    assert await house.caller(alice)
    await house.hear_of_ended_logins()
    assert house.cut == [alice.login_id]
    assert (await refusal_of(house.caller(alice))).code == "session_ended"


# -- ending -----------------------------------------------------------------------------------------------------------


async def test_logout_ends_this_login_alone_and_twice_is_no_fault(house: SignInHouse) -> None:
    phone, laptop = await house.registered(), await house.entered()
    caller = await house.caller(phone)
    await house.accounts.logout(caller)
    await house.accounts.logout(caller)
    assert [event["event"] for event in house.events] == ["login_added", "login_ended"]
    assert house.events[1]["reason"] == "logout" and house.cut == [phone.login_id]
    assert (await house.caller(laptop)).device_id == "laptop"


async def test_only_ones_own_living_logins_can_be_revoked(house: SignInHouse) -> None:
    alice, bob = await house.registered(), await house.registered("bob")
    laptop = await house.entered()
    caller = await house.caller(alice)
    for nothing in (bob.login_id, uuid4()):
        assert (await refusal_of(house.accounts.revoke(caller, nothing))).code == "not_found"
    await house.accounts.revoke(caller, laptop.login_id)
    assert (await refusal_of(house.accounts.revoke(caller, laptop.login_id))).code == "not_found"
    assert [login.login_id for login in await house.accounts.logins_of(caller)] == [alice.login_id]
    assert await house.caller(bob)


async def test_a_new_password_ends_every_other_login(house: SignInHouse) -> None:
    phone, laptop, tablet = await house.registered(), await house.entered(), await house.entered(device_id="tablet")
    caller = await house.caller(phone)
    await house.accounts.change_password(caller, current=PASSWORD, new=NEW_PASSWORD, address="10.0.0.1")
    assert set(house.cut) == {laptop.login_id, tablet.login_id}
    assert [event["reason"] for event in house.events[2:]] == ["password", "password"]
    assert await house.caller(phone)
    assert (await refusal_of(house.entered())).code == "invalid_credentials"
    assert await house.entered(password=NEW_PASSWORD)


async def test_a_wrong_current_password_changes_nothing_and_is_403(house: SignInHouse) -> None:
    caller = await house.caller(await house.registered())
    changing = house.accounts.change_password(caller, current="Wrong horse 1", new=NEW_PASSWORD, address="10.0.0.1")
    refusal = await refusal_of(changing)
    assert (refusal.code, refusal.status) == ("invalid_credentials", 403)
    assert await house.entered()


class Slow(Passwords):
    """Passwords that, once a check has succeeded, let something happen before they tell."""

    def __init__(self, meanwhile: Callable[[], Awaitable[object]]) -> None:
        super().__init__(cost=4)
        self._meanwhile = meanwhile

    async def matches(self, password: str, stored: str | None) -> bool:
        matched = await super().matches(password, stored)
        await self._meanwhile()
        return matched


async def test_a_login_by_the_old_password_does_not_outlive_its_change(database_url: str) -> None:
    made: list[SignInHouse] = []

    async def change() -> None:
        await made[0].execute("update users set password_hash = 'another'")

    async with sign_in_house(database_url, passwords=Slow(change)) as house:
        made.append(house)
        await house.registered()
        assert (await refusal_of(house.entered())).code == "invalid_credentials"
        assert await house.execute("select count(*) from logins") == [(1,)]


# -- being let in -----------------------------------------------------------------------------------------------------


async def test_another_process_hears_of_an_ended_login(house: SignInHouse, database_url: str) -> None:
    alice = await house.registered()
    async with sign_in_house(database_url) as other:
        await other.caller(alice)
        await house.accounts.logout(await house.caller(alice))
        await other.hear_of_ended_logins()
        await other.hear_of_ended_logins()
        assert other.cut == [alice.login_id]
        assert (await refusal_of(other.caller(alice))).code == "session_ended"


class Late(Pool):
    """A pool whose answers come after something else has happened."""

    meanwhile: Callable[[], None] = staticmethod(lambda: None)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        async with super().connection() as tx:
            yield tx
        self.meanwhile()


async def test_a_login_that_ends_while_it_is_looked_up_is_not_let_in(database_url: str) -> None:
    late = Late(database_url, 2)
    async with sign_in_house(database_url, login_pool=late) as house:
        alice = await house.registered()
        late.meanwhile = lambda: house.logins.ended([alice.login_id])
        assert (await refusal_of(house.caller(alice))).code == "session_ended"
        late.meanwhile = lambda: None
        assert (await refusal_of(house.caller(alice))).code == "session_ended"
    late.close_idle()


class Counting(Late):
    lent = 0

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        self.lent += 1
        async with super().connection() as tx:
            yield tx


async def test_logins_that_are_looked_up_at_once_are_looked_up_together(database_url: str) -> None:
    counting = Counting(database_url, 2)
    async with sign_in_house(database_url, login_pool=counting) as house:
        people = [await house.registered(f"person{number}") for number in range(6)]
        for pair in people:
            await house.caller(pair)  # which notes that it is used
        house.logins.clear()
        counting.lent = 0
        async with trio.open_nursery() as nursery:
            for pair in people:
                nursery.start_soon(house.caller, pair)
        assert counting.lent == 1
        house.logins.clear()
        # Who was to ask for all is gone: another asks.
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as first:
                first.cancel()
                for pair in people[1:]:
                    nursery.start_soon(house.caller, pair)
                await house.caller(people[0])
        assert counting.lent <= 3
    counting.close_idle()


async def test_a_login_that_ends_while_its_use_is_noted_is_not_let_in(database_url: str) -> None:
    late = Late(database_url, 2)
    async with sign_in_house(database_url, login_pool=late) as house:
        alice = await house.registered()
        await house.caller(alice)
        second = await house.accounts.refresh(alice.refresh_token)
        late.meanwhile = lambda: house.logins.ended([alice.login_id])
        assert (await refusal_of(house.caller(second))).code == "session_ended"
    late.close_idle()


async def test_a_token_of_an_unknown_login_is_session_ended(house: SignInHouse) -> None:
    token = house.tokens.sign_access(user_id=UUID(int=1), username="ghost", login_id=UUID(int=2), generation=1)
    assert (await refusal_of(house.logins.authenticate(token))).code == "session_ended"


async def test_with_the_database_away_only_those_already_seen_are_let_in(
    house: SignInHouse, database_url: str, administration: psycopg.Connection[Any]
) -> None:
    alice, bob = await house.registered(), await house.registered("bob")
    await house.caller(alice)
    second = await house.accounts.refresh(alice.refresh_token)
    name = database_url.rpartition("/")[2].partition("?")[0]
    administration.execute(sql.SQL("alter database {} allow_connections false").format(sql.Identifier(name)))
    administration.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (name,))
    try:
        assert (await house.caller(alice)).username == "alice"
        assert (await house.caller(second)).username == "alice"
        assert (await refusal_of(house.caller(bob))).code == "unavailable"
        assert (await refusal_of(house.entered())).code == "unavailable"
        assert (await refusal_of(house.accounts.refresh(second.refresh_token))).code == "unavailable"
    finally:
        administration.execute(sql.SQL("alter database {} allow_connections true").format(sql.Identifier(name)))
    assert (await house.caller(bob)).username == "bob"


async def test_keys_change_without_signing_anybody_out(house: SignInHouse, database_url: str) -> None:
    alice = await house.registered()
    new = JwtKey("two", b"2" * 32)
    async with sign_in_house(database_url, keys=(new, KEY)) as both:
        assert await both.caller(alice)
        second = await both.accounts.refresh(alice.refresh_token)
    async with sign_in_house(database_url, keys=(new,)) as after:
        assert await after.caller(second)
        assert (await refusal_of(after.caller(alice))).code == "unauthorized"
