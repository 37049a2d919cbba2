"""From what a request carries to its caller: a Bearer token, or the cookie with an Origin.

Both fronts sign in by this one door. Rule: a browser sends its cookies for any page that asks, so where a cookie speaks,
whatever may change something needs the Origin of a page that may; a Bearer token cannot be sent by accident.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Final

from uim.errors import UIMError, forbidden
from uim.model.person import Caller

ACCESS_COOKIE: Final = "uim_access"
REFRESH_COOKIE: Final = "uim_refresh"
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class Origins:
    """Which pages may act for a user who is signed in by cookie: those of `allowed`, else those of this server itself.

    `public_url` is the origin that browsers use, None: whatever the request says.
    """

    public_url: str | None
    allowed: tuple[str, ...] = ()

    def judge(self, *, scheme: str, host: str) -> Callable[[str], bool]:
        """The check for one request, by its own scheme (`http` or `https`) and Host header."""
        own = self.public_url or f"{scheme}://{host}"
        accepted = {origin.lower() for origin in self.allowed or (own,)}
        return lambda origin: origin.lower() in accepted

    def is_secure(self, scheme: str) -> bool:
        """Whether browsers reach this server by https, perhaps through a proxy."""
        return scheme == "https" or (self.public_url or "").startswith("https://")


def check_origin(origin: str | None, allowed: Callable[[str], bool]) -> None:
    """Raises UIMError `forbidden` unless the Origin header is there and allowed."""
    if origin is None or not allowed(origin):
        raise forbidden("signed in by cookie, this needs the Origin of an allowed page")


def cookie_value(header: str | None, name: str) -> str | None:
    """The first cookie of that name in a Cookie header; None if there is none, or an empty one."""
    return next((value for key, value in _cookies(header or "") if key == name and value), None)


def _cookies(header: str) -> Iterator[tuple[str, str]]:
    # The standard library's parser gives up on the whole header at one cookie that it finds odd.
    for part in header.split(";"):
        key, _, value = part.partition("=")
        yield key.strip(), value.strip().strip('"')


async def caller_of(
    authenticate: Callable[[str], Awaitable[Caller]],
    *,
    authorization: str | None,
    cookie: str | None,
    origin: str | None,
    method: str,
    allowed: Callable[[str], bool],
) -> Caller:
    """The caller of a request with these headers, by `authenticate`. Raises what that and `token_of` do."""
    token = token_of(authorization=authorization, cookie=cookie, origin=origin, method=method, allowed=allowed)
    return await authenticate(token)


def token_of(
    *, authorization: str | None, cookie: str | None, origin: str | None, method: str, allowed: Callable[[str], bool]
) -> str:
    """The access token of a request with these headers (`authorization`, `cookie` and `origin` as they came), not yet read.

    `method` decides whether a cookie needs an Origin: all but GET, HEAD, OPTIONS do. The socket, which is a GET that may
    do everything, gives "CONNECT"; and for its ?token= an `authorization` of "Bearer …". Raises UIMError `unauthorized` where
    there is no token, `forbidden` for a cookie from a wrong page.
    """
    if authorization is not None:
        return _bearer(authorization)
    token = cookie_value(cookie, ACCESS_COOKIE)
    if token is None:
        raise UIMError("unauthorized", "sign in first")
    if method not in SAFE_METHODS:
        check_origin(origin, allowed)
    return token


def _bearer(authorization: str) -> str:
    scheme, _, token = authorization.strip().partition(" ")
    if scheme.lower() != "bearer":
        raise UIMError("unauthorized", "Authorization should be Bearer and an access token")
    return token.strip()
