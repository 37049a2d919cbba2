"""Accounts and their logins: registering, signing in, refreshing, ending, changing the password.

A login that begins or ends is an entry in its user's own `self` conversation, so that all their devices learn it; those verbs
go through the log's writer. Rule: the rules for names and passwords (model/person.py) were asked before; here is
judged only what the database alone knows.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID, uuid4

from uim.chat.appending import Append
from uim.chat.logins import Logins
from uim.chat.passwords import Passwords, Throttle
from uim.chat.tokens import (
    REFRESH_LIFE_S,
    SECRET_BYTES,
    Refreshing,
    RefreshState,
    RefreshToken,
    Tokens,
    invalid_refresh_token,
    judge_refresh,
    new_refresh,
    read_refresh,
)
from uim.chat.writer import Writer
from uim.errors import UIMError, not_found
from uim.model.person import Caller, Device, Profile, normal_email
from uim.store import logins as login_rows
from uim.store import people
from uim.store.logins import ListedLogin, RefreshRow
from uim.store.people import Credentials
from uim.store.postgres import Connection, Pool


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A login's new pair of tokens, and whose it is."""

    access_token: str
    refresh_token: str
    refresh_expires_in_s: int
    login_id: UUID
    device_id: str
    profile: Profile


@dataclass(frozen=True, slots=True)
class _NewLogin:
    """A login before it is stored: everything random about it, fixed before the first try."""

    login_id: UUID
    refresh_key: bytes
    token: RefreshToken

    @classmethod
    def drawn(cls) -> _NewLogin:
        login_id, refresh_key = uuid4(), secrets.token_bytes(32)
        return cls(login_id, refresh_key, new_refresh(login_id, 1, refresh_key, secrets.token_bytes(SECRET_BYTES)))


class Accounts:
    """The verbs on one's own account. Each raises UIMError `unavailable` while the database is away."""

    def __init__(
        self, *, pool: Pool, writer: Writer, passwords: Passwords, tokens: Tokens, logins: Logins, throttle: Throttle
    ) -> None:
        self._pool = pool
        self._writer = writer
        self._passwords = passwords
        self._tokens = tokens
        self._logins = logins
        self._throttle = throttle

    async def register(self, *, username: str, email: str, password: str, display_name: str | None, device: Device) -> SignedIn:
        """A new account with its first login. Raises UIMError `username_taken` or `email_taken`.

        Cancelled: it may have been made.
        """
        password_hash = await self._passwords.hash(password)
        new = _NewLogin.drawn()
        async with self._pool.transaction() as tx:
            user_id = await people.add_account(
                tx,
                username=username,
                email=normal_email(email),
                password_hash=password_hash,
                display_name=display_name,
                self_conversation_id=uuid4(),
            )
            await _store(tx, new, user_id, device)
            profile = await _profile(tx, user_id)
        return self._signed_in(new.token, device.device_id, profile, REFRESH_LIFE_S)

    async def login(self, *, name: str, password: str, device: Device, address: str) -> SignedIn:
        """A new login of the user with this username or email; it replaces one that lives on the same device.

        Raises UIMError `invalid_credentials`, alike for an unknown name and a wrong password, or `too_many_attempts`.
        """
        self._throttle.check(name, address)
        async with self._pool.connection() as tx:
            found = await people.credentials_of(tx, name)
        await self._verify(found, password, name, address)
        if found is None:
            raise _invalid_credentials()
        return await self._begin(found, device)

    async def _verify(self, found: Credentials | None, password: str, name: str, address: str) -> None:
        matches = await self._passwords.matches(password, None if found is None else found.password_hash)
        # Again, for many guesses may have been under way at once: past the tenth failure none is told its outcome.
        self._throttle.check(name, address)
        if not matches:
            self._throttle.failed(name, address)
            raise _invalid_credentials()
        self._throttle.succeeded(name, address)

    async def _begin(self, who: Credentials, device: Device) -> SignedIn:
        new = _NewLogin.drawn()

        async def act(tx: Connection, append: Append) -> tuple[Profile, list[UUID]]:
            # The password may have been changed, or the account deleted, while the hash was made.
            if not await people.lock_if_password_is(tx, user_id=who.user_id, password_hashes=[who.password_hash]):
                raise _invalid_credentials()
            replaced = await login_rows.living_on(tx, user_id=who.user_id, device_id=device.device_id)
            await _end(tx, append, who.user_id, replaced, "replaced")
            await _store(tx, new, who.user_id, device)
            await _tell_added(tx, append, who.user_id, new.login_id, device)
            return await _profile(tx, who.user_id), replaced

        profile, replaced = await self._writer.do(act, key=uuid4())
        self._logins.ended(replaced)
        return self._signed_in(new.token, device.device_id, profile, REFRESH_LIFE_S)

    async def refresh(self, text: str) -> SignedIn:
        """The pair that follows this refresh token: the same one for a repeat.

        Raises UIMError `invalid_refresh_token`; an old token of a living login ends that login.
        """
        token = read_refresh(text)
        async with self._pool.connection() as tx:
            row, verdict = await _judge(tx, token)
            successor = token.successor(row.refresh_key)
            while verdict is Refreshing.ADVANCE and not await login_rows.advance(
                tx, login_id=token.login_id, present_hash=token.hash, refresh_hash=successor.hash, life_s=REFRESH_LIFE_S
            ):
                # Another call with the same token was quicker: now it is a repeat. Or the login has ended.
                row, verdict = await _judge(tx, token)
        # No await on the writer while a connection is held.
        if verdict is Refreshing.REUSE:
            await self.end(row.profile.user_id, token.login_id, reason="reuse")
        if verdict in (Refreshing.REUSE, Refreshing.GARBAGE):
            raise invalid_refresh_token()
        life_s = REFRESH_LIFE_S if verdict is Refreshing.ADVANCE else int(row.expires_in_s)
        return self._signed_in(successor, row.device_id, row.profile, life_s)

    async def logins_of(self, caller: Caller) -> list[ListedLogin]:
        """The caller's living logins, the last used first."""
        async with self._pool.connection() as tx:
            return await login_rows.living_of(tx, caller.user_id)

    async def logout(self, caller: Caller) -> None:
        """End the caller's own login; nothing happens if it has ended meanwhile."""
        await self.end(caller.user_id, caller.login_id, reason="logout")

    async def revoke(self, caller: Caller, login_id: UUID) -> None:
        """End a login of the caller's. Raises UIMError `not_found` if it is not theirs, or lives no more."""
        if not await self.end(caller.user_id, login_id, reason="revoked"):
            raise not_found("no such login")

    async def end(self, user_id: UUID, login_id: UUID, *, reason: str) -> bool:
        """End this user's login; False, and nothing done, if there is no such living one.

        `reason` is told to the user's devices: logout, revoked, replaced, reuse, password.
        """

        async def act(tx: Connection, append: Append) -> list[UUID]:
            return await _end(tx, append, user_id, [login_id], reason)

        ended = await self._writer.do(act, key=uuid4())
        self._logins.ended(ended)
        return bool(ended)

    async def change_password(self, caller: Caller, *, current: str, new: str, address: str) -> None:
        """Set a new password; every other login of the caller ends.

        Raises UIMError `invalid_credentials` (403: the login itself is well) or `too_many_attempts`.
        """
        who = await self.check_password(caller, password=current, address=address)
        new_hash = await self._passwords.hash(new)

        async def act(tx: Connection, append: Append) -> list[UUID]:
            # Where nothing else ended there is no entry to find a lost commit by: the new hash itself tells it.
            if not await people.lock_if_password_is(tx, user_id=who.user_id, password_hashes=[who.password_hash, new_hash]):
                raise wrong_password()
            await people.set_password(tx, user_id=who.user_id, password_hash=new_hash)
            others = [login.login_id for login in await login_rows.living_of(tx, who.user_id)]
            return await _end(tx, append, who.user_id, [one for one in others if one != caller.login_id], "password")

        self._logins.ended(await self._writer.do(act, key=uuid4()))

    async def check_password(self, caller: Caller, *, password: str, address: str) -> Credentials:
        """Refuse with `invalid_credentials` (403) or `too_many_attempts` unless this is the caller's own password.

        What was checked against is returned, so that a verb can see under its lock whether that still holds.
        """
        self._throttle.check(caller.username, address)
        async with self._pool.connection() as tx:
            found = await people.credentials_by_id(tx, caller.user_id)
        try:
            await self._verify(found, password, caller.username, address)
        except UIMError as refusal:
            raise wrong_password() if refusal.code == "invalid_credentials" else refusal from None
        if found is None:
            raise wrong_password()
        return found

    def _signed_in(self, token: RefreshToken, device_id: str, profile: Profile, life_s: int) -> SignedIn:
        access_token = self._tokens.sign_access(
            user_id=profile.user_id,
            username=profile.username,
            login_id=token.login_id,
            generation=token.generation,
        )
        return SignedIn(access_token, token.text, life_s, token.login_id, device_id, profile)


async def _store(tx: Connection, new: _NewLogin, user_id: UUID, device: Device) -> None:
    await login_rows.add(
        tx,
        login_id=new.login_id,
        user_id=user_id,
        device=device,
        refresh_key=new.refresh_key,
        refresh_hash=new.token.hash,
        life_s=REFRESH_LIFE_S,
    )


async def _tell_added(tx: Connection, append: Append, user_id: UUID, login_id: UUID, device: Device) -> None:
    event: dict[str, object] = {"event": "login_added", "login_id": str(login_id), "device_id": device.device_id}
    # Metadata is text to text: what the device did not say is absent.
    event |= {name: text for name, text in (("device_name", device.device_name), ("platform", device.platform)) if text}
    own = await people.self_conversation_of(tx, user_id)
    await append(conversation_id=own, sender_id=user_id, message_type="account", event=event)


async def _end(tx: Connection, append: Append, user_id: UUID, login_ids: Iterable[UUID], reason: str) -> list[UUID]:
    """End those that live, with an entry for each."""
    ended = await login_rows.end(tx, user_id=user_id, login_ids=list(login_ids), reason=reason)
    if ended:
        own = await people.self_conversation_of(tx, user_id)
        for login_id in ended:
            event = {"event": "login_ended", "login_id": str(login_id), "reason": reason}
            await append(conversation_id=own, sender_id=user_id, message_type="account", event=event)
    return ended


async def _profile(tx: Connection, user_id: UUID) -> Profile:
    profile = await people.profile_of(tx, user_id)
    assert profile is not None
    return profile


async def _judge(tx: Connection, token: RefreshToken) -> tuple[RefreshRow, Refreshing]:
    """The login of a refresh token, and what the token calls for. Raises `invalid_refresh_token` if that login lives no more."""
    row = await login_rows.refreshing(tx, token.login_id)
    if row is None:
        raise invalid_refresh_token()
    state = RefreshState(row.generation, row.refresh_key, row.refresh_hash, row.previous_hash, row.used_for_s)
    return row, judge_refresh(token, state)


def _invalid_credentials() -> UIMError:
    return UIMError("invalid_credentials", "wrong username or password")


def wrong_password() -> UIMError:
    """403, where `invalid_credentials` is else 401: the login that asks is well."""
    return UIMError("invalid_credentials", "wrong password", field="current_password", status=403)
