"""Signing in over HTTP: the endpoints under /api/auth, and the cookies of browsers.

With `cookie: true` the tokens travel in HttpOnly cookies and never in a body, so that no script can read them. Rule: where a
cookie speaks, the Origin is checked first (chat/callers.py); a client that sends its tokens itself gets them in the body.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID, uuid4

import msgspec
from msgspec import UNSET, UnsetType
from werkzeug.http import dump_cookie

from uim.api.answers import Answer, Invalid, answer
from uim.api.asking import Asking
from uim.api.routes import Routes
from uim.chat.accounts import Accounts, SignedIn
from uim.chat.callers import ACCESS_COOKIE, REFRESH_COOKIE, Origins, caller_of, check_origin, cookie_value
from uim.chat.logins import Logins
from uim.chat.tokens import ACCESS_LIFE_S, REFRESH_LIFE_S, invalid_refresh_token
from uim.model.person import Caller, Device, Profile, faults_of
from uim.store.logins import ListedLogin

REFRESH_PATH: Final = "/api/auth"


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Register(_Body, frozen=True):
    username: str
    email: str
    password: str
    display_name: str | None = None
    device_id: str | None = None
    device_name: str | None = None
    platform: str | None = None
    cookie: bool = False


class Login(_Body, frozen=True):
    """`username` may be an email."""

    username: str
    password: str
    device_id: str | None = None
    device_name: str | None = None
    platform: str | None = None
    cookie: bool = False


class Refresh(_Body, frozen=True):
    """Without `refresh_token` the cookie is taken, and answered in kind."""

    refresh_token: str | None = None


class ChangePassword(_Body, frozen=True):
    current_password: str
    new_password: str


class TokensAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The two tokens are absent where they are in cookies. Lives are in seconds."""

    access_token: str | UnsetType = UNSET
    refresh_token: str | UnsetType = UNSET
    token_type: str = "Bearer"
    expires_in: int = ACCESS_LIFE_S
    refresh_expires_in: int
    login_id: UUID
    device_id: str
    user: Profile


class SessionItem(msgspec.Struct, frozen=True):
    """A login; `current` is the one that asks."""

    login_id: UUID
    device_id: str
    device_name: str | None
    platform: str | None
    created_at: datetime
    last_used_at: datetime
    current: bool


class SessionPage(msgspec.Struct, frozen=True):
    items: list[SessionItem]
    next: str | None = None


@dataclass(frozen=True, slots=True)
class SignInDoor:
    """How a request's caller is found: the living logins, and the pages that may act for one."""

    logins: Logins
    origins: Origins

    async def authenticate(self, asking: Asking) -> Caller:
        """The caller of a request, by Bearer token or cookie; raises what chat/callers.py says."""
        return await caller_of(
            self.logins.authenticate,
            authorization=asking.header(b"authorization"),
            cookie=asking.first(b"cookie"),
            origin=asking.header(b"origin"),
            method=asking.method,
            allowed=self.allowed(asking),
        )

    def allowed(self, asking: Asking) -> Callable[[str], bool]:
        return self.origins.judge(scheme=asking.scheme, host=asking.first(b"host") or "")


def add_accounts(
    routes: Routes,
    accounts: Accounts,
    door: SignInDoor,
    *,
    on_signed_in: Callable[[str, int, UUID], None] = lambda address, port, user_id: None,
) -> None:
    """Add the routes under /api/auth.

    `on_signed_in(address, port, user_id)` hears of each sign-in that needed no access token, by the address of the connection itself.
    """
    _add_sign_in(routes, accounts, door, on_signed_in)
    _add_sessions(routes, accounts)


def _add_sign_in(
    routes: Routes,
    accounts: Accounts,
    door: SignInDoor,
    on_signed_in: Callable[[str, int, UUID], None],
) -> None:
    async def signed_in(asking: Asking, signing_in: Awaitable[SignedIn], status: int, *, by_cookie: bool) -> Answer:
        done = await signing_in
        if asking.client is not None:
            on_signed_in(*asking.client, done.profile.user_id)
        if by_cookie:
            return _in_cookies(done, status, secure=door.origins.is_secure(asking.scheme))
        return _in_body(done, status)

    @routes.route(
        "POST", "/api/auth/register", asking=True, body=Register, answers=TokensAnswer, status=201, signed_in=False,
        summary="A new account, signed in on this device",
    )  # fmt: skip
    async def register(asking: Asking, body: Register) -> Answer:
        _check(
            username=body.username, email=body.email, password=body.password, display_name=body.display_name,
            device_id=body.device_id, device_name=body.device_name, platform=body.platform,
        )  # fmt: skip
        registering = accounts.register(
            username=body.username, email=body.email, password=body.password, display_name=body.display_name,
            device=_device(body),
        )  # fmt: skip
        return await signed_in(asking, registering, 201, by_cookie=body.cookie)

    @routes.route(
        "POST", "/api/auth/login", asking=True, body=Login, answers=TokensAnswer, signed_in=False,
        summary="Sign in; a login that lives on the same device is replaced",
    )  # fmt: skip
    async def login(asking: Asking, body: Login) -> Answer:
        _check(device_id=body.device_id, device_name=body.device_name, platform=body.platform)
        entering = accounts.login(
            name=body.username,
            password=body.password,
            device=_device(body),
            address=asking.address,
        )
        return await signed_in(asking, entering, 200, by_cookie=body.cookie)

    @routes.route(
        "POST", "/api/auth/refresh", asking=True, body=Refresh, answers=TokensAnswer, signed_in=False,
        summary="The next pair of tokens; a repeat gets the same refresh token",
    )  # fmt: skip
    async def refresh(asking: Asking, body: Refresh) -> Answer:
        by_cookie = body.refresh_token is None
        token = cookie_value(asking.first(b"cookie"), REFRESH_COOKIE) if by_cookie else body.refresh_token
        if token is None:
            raise invalid_refresh_token()
        if by_cookie:
            check_origin(asking.header(b"origin"), door.allowed(asking))
        return await signed_in(asking, accounts.refresh(token), 200, by_cookie=by_cookie)

    @routes.route("POST", "/api/auth/logout", asking=True, summary="End this login")
    async def logout(caller: Caller, asking: Asking) -> Answer:
        await accounts.logout(caller)
        response = answer(None)
        _set_cookies(response, "", "", secure=door.origins.is_secure(asking.scheme), life_s=0)
        return response


def _add_sessions(routes: Routes, accounts: Accounts) -> None:
    @routes.route("GET", "/api/auth/sessions", answers=SessionPage, summary="One's logins, the last used first")
    async def list_sessions(caller: Caller) -> SessionPage:
        return SessionPage([_session(login, caller) for login in await accounts.logins_of(caller)])

    @routes.route("DELETE", "/api/auth/sessions/{login_id}", summary="End one of one's logins")
    async def revoke_session(caller: Caller, login_id: UUID) -> None:
        await accounts.revoke(caller, login_id)

    @routes.route("POST", "/api/auth/password", asking=True, body=ChangePassword, summary="A new password; all other logins end")
    async def change_password(caller: Caller, asking: Asking, body: ChangePassword) -> None:
        _check(new_password=body.new_password)
        await accounts.change_password(
            caller, current=body.current_password, new=body.new_password, address=asking.address
        )


def _check(**fields: str | None) -> None:
    if faults := faults_of(fields):
        raise Invalid(faults)


def _device(body: Register | Login) -> Device:
    return Device(body.device_id or str(uuid4()), body.device_name, body.platform)


def _session(login: ListedLogin, caller: Caller) -> SessionItem:
    return SessionItem(
        login.login_id, login.device_id, login.device_name, login.platform, login.created_at, login.last_used_at,
        current=login.login_id == caller.login_id,
    )  # fmt: skip


def _in_body(done: SignedIn, status: int) -> Answer:
    told = TokensAnswer(
        access_token=done.access_token,
        refresh_token=done.refresh_token,
        refresh_expires_in=done.refresh_expires_in_s,
        login_id=done.login_id,
        device_id=done.device_id,
        user=done.profile,
    )
    return answer(told, status)


def _in_cookies(done: SignedIn, status: int, *, secure: bool) -> Answer:
    told = TokensAnswer(
        refresh_expires_in=done.refresh_expires_in_s,
        login_id=done.login_id,
        device_id=done.device_id,
        user=done.profile,
    )
    response = answer(told, status)
    _set_cookies(response, done.access_token, done.refresh_token, secure=secure, life_s=REFRESH_LIFE_S)
    return response


def _set_cookies(told: Answer, access: str, refresh: str, *, secure: bool, life_s: int) -> None:
    # The access cookie outlives its token, so that a browser is told `token_expired` and knows to refresh.
    for name, value, path in ((ACCESS_COOKIE, access, "/"), (REFRESH_COOKIE, refresh, REFRESH_PATH)):
        cookie = dump_cookie(name, value, max_age=life_s, path=path, secure=secure, httponly=True, samesite="Strict")
        told.headers.append((b"set-cookie", cookie.encode("latin-1")))
