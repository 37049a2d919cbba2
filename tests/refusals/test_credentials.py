"""Tokens, cookies and the Authorization header in every wrong form."""

from __future__ import annotations

import base64
import json
import time
from typing import Any
from uuid import uuid4

import jwt
import pytest

from tests.refusals.http import Answer, Headers
from tests.refusals.world import World

pytestmark = pytest.mark.timeout(60)

ME = "/api/users/me"


def claims_of(world: World, **changed: Any) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(world.bearer, options={"verify_signature": False})
    return {**claims, **changed}


def signed(world: World, claims: dict[str, Any], *, headers: dict[str, Any] | None = None) -> str:
    key = world.server.house.settings.jwt_keys[0]
    return jwt.encode(claims, key.secret, algorithm="HS256", headers={"kid": key.kid} if headers is None else headers)


def raw_token(header: object, claims: object, signature: bytes = b"") -> str:
    parts = [json.dumps(header).encode(), json.dumps(claims).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def forged_tokens(world: World) -> dict[str, str]:
    """Texts that are no token of ours, each by one thing."""
    claims, (head, body, seal) = claims_of(world), world.bearer.split(".")
    return {
        "garbage": "garbage",
        "dots": "..",
        "not base64": "!.!.!",
        "another key": jwt.encode(claims, b"x" * 32, algorithm="HS256", headers={"kid": "test"}),
        "no kid": signed(world, claims, headers={}),
        "unknown kid": signed(world, claims, headers={"kid": "other"}),
        "kid that is no text": raw_token({"alg": "HS256", "kid": ["test"]}, claims, b"x" * 32),
        "alg none": raw_token({"alg": "none", "kid": "test"}, claims),
        "alg none, in capitals": raw_token({"alg": "NONE", "kid": "test"}, claims),
        "alg none, with a seal": raw_token({"alg": "none", "kid": "test"}, claims, b"x" * 32),
        "another algorithm": raw_token({"alg": "HS512", "kid": "test"}, claims, b"x" * 64),
        "no algorithm": raw_token({"kid": "test"}, claims, b"x" * 32),
        "an algorithm that is no text": raw_token({"alg": 1, "kid": "test"}, claims, b"x" * 32),
        "header that is no object": raw_token([1], claims, b"x" * 32),
        "header too deep": ".".join((base64.urlsafe_b64encode(b"[" * 500).decode(), body, seal)),
        "no seal": f"{head}.{body}.",
        "two parts": f"{head}.{body}",
        "four parts": f"{world.bearer}.{seal}",
        "another's seal": f"{head}.{body}.{world.eve.tokens['access_token'].split('.')[2]}",
        "other claims under the seal": f"{head}.{world.eve.tokens['access_token'].split('.')[1]}.{seal}",
        "cut": world.bearer[:-1],
        "too long": world.bearer + "x" * 5_000,
        "a refresh token": world.alice.tokens["refresh_token"],
        "claims that are no object": signed_text(world, [1]),
        "no claims": signed(world, {}),
        "user_id that is none": signed(world, {**claims, "user_id": "alice"}),
        "sid that is none": signed(world, {**claims, "sid": 1}),
        "no exp": signed(world, {name: value for name, value in claims.items() if name != "exp"}),
        "exp that is no number": signed_text(world, {**claims, "exp": "tomorrow"}),
        "nbf to come": signed(world, {**claims, "nbf": int(time.time()) + 3_600}),
    }


def signed_text(world: World, claims: object) -> str:
    """A token under our own seal whose claims PyJWT would not write."""
    key = world.server.house.settings.jwt_keys[0]
    return jwt.api_jws.encode(json.dumps(claims).encode(), key.secret, algorithm="HS256", headers={"kid": key.kid})


async def ask(world: World, *headers: tuple[str, str], method: str = "GET", path: str = ME) -> Answer:
    return await world.talk.ask(method, path, list(headers))


async def test_forged_tokens_are_unauthorized_in_header_and_cookie(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    faults = []
    for what, token in forged_tokens(world).items():
        in_header = await ask(world, ("Authorization", f"Bearer {token}"))
        in_cookie = await ask(world, ("Cookie", f"uim_access={token}"))
        for answer in (in_header, in_cookie):
            if wrong := answer.fault(401, "unauthorized"):
                faults.append(f"{what}: {wrong}")
            elif answer.headers.get("www-authenticate") != "Bearer":
                faults.append(f"{what}: no WWW-Authenticate")
    assert not faults, "\n" + "\n".join(faults)
    assert (await world.talk.ask("GET", ME, bearer=world.bearer)).status == 200
    assert "Traceback" not in capsys.readouterr().out


async def test_expired_and_ended_have_codes_of_their_own(world: World) -> None:
    past = int(time.time()) - 3_600
    expired = signed(world, claims_of(world, iat=past - 900, exp=past))
    assert (await world.talk.ask("GET", ME, bearer=expired)).fault(401, "token_expired") is None
    nobodys = signed(world, claims_of(world, sid=str(uuid4())))
    assert (await world.talk.ask("GET", ME, bearer=nobodys)).fault(401, "session_ended") is None
    leaving = await world.server.login(world.alice.username, "leaving")
    await leaving.call("POST", "/api/auth/logout", expect=204)
    ended = await world.talk.ask("GET", ME, bearer=leaving.tokens["access_token"])
    assert ended.fault(401, "session_ended") is None


async def test_authorization_in_odd_forms(world: World) -> None:
    good = f"Bearer {world.bearer}"
    cases: dict[str, Headers] = {
        "Bearer alone": [("Authorization", "Bearer")],
        "Bearer and a space": [("Authorization", "Bearer ")],
        "empty": [("Authorization", "")],
        "Basic": [("Authorization", "Basic " + base64.b64encode(b"alice:secret").decode())],
        "Digest": [("Authorization", 'Digest username="alice"')],
        "the token alone": [("Authorization", world.bearer)],
        "Bearer in one word": [("Authorization", f"Bearer{world.bearer}")],
        "two tokens": [("Authorization", f"{good} {world.bearer}")],
        "with a comma": [("Authorization", f"{good}, {good}")],
        "quoted": [("Authorization", f'Bearer "{world.bearer}"')],
        "not ASCII": [("Authorization", "Bearer é")],
        "two headers": [("Authorization", good), ("Authorization", good)],
        "two headers, the second wrong": [("Authorization", good), ("Authorization", "Bearer x")],
        "two headers, the first wrong": [("Authorization", "Bearer x"), ("Authorization", good)],
        "wrong beside a good cookie": [("Authorization", "Bearer x"), ("Cookie", f"uim_access={world.bearer}")],
        "another header": [("X-Authorization", good)],
    }
    faults = [
        f"{what}: {wrong}" for what, case in cases.items() if (wrong := (await ask(world, *case)).fault(401, "unauthorized"))
    ]
    assert not faults, "\n" + "\n".join(faults)
    for fine in (f"bearer {world.bearer}", f"BEARER   {world.bearer}  "):
        assert (await ask(world, ("Authorization", fine))).status == 200, fine


async def test_cookie_changes_things_only_for_an_allowed_page(world: World) -> None:
    cookie, rename = ("Cookie", f"a=b; uim_access={world.bearer}; c"), f"/api/conversations/{world.group_id}"
    assert (await ask(world, cookie)).status == 200, "a safe method needs no Origin"
    own = "http://x"
    strangers = (None, "null", "", "http://evil.example", "http://x.evil.example", "https://x", "http://x:1")
    for origin, status in (*((stranger, 403) for stranger in strangers), ("HTTP://X", 200), (own, 200)):
        headers: Headers = [cookie, ("Content-Type", "application/json")]
        if origin is not None:
            headers.append(("Origin", origin))
        answer = await world.talk.ask("PATCH", rename, headers, b'{"name": "by cookie"}')
        assert answer.status == status, (origin, answer)
        assert status == 200 or answer.fault(403, "forbidden") is None
    two = await world.talk.send_json("PATCH", rename, "{}", headers=[cookie, ("Origin", own), ("Origin", "http://evil.example")])
    assert two.fault(403, "forbidden") is None, "two Origins are none"
    for odd in ("", ";;;", "uim_access", "uim_access=", "=x", "UIM_ACCESS=" + world.bearer, "uim_access=" + "x" * 9_000, "é=ü"):
        assert (await ask(world, ("Cookie", odd))).fault(401, "unauthorized") is None, odd


async def test_refresh_tokens_in_every_wrong_form(world: World) -> None:
    good = world.dora.tokens["refresh_token"]
    other = world.eve.tokens["refresh_token"]
    changed = (good[:-1], good + "x", good[:-1] + ("A" if good[-1] != "A" else "B"), good.swapcase(), " " + good)
    mixed = (good[:30] + other[30:], other[:30] + good[30:])
    for token in ("", "x", "é" * 91, "=" * 91, "-" * 91, world.bearer, *changed, *mixed):
        answer = await world.talk.send_json("POST", "/api/auth/refresh", json.dumps({"refresh_token": token}))
        assert answer.fault(401, "invalid_refresh_token") is None, (token, answer)
    for body in (None, "{}", '{"refresh_token": null}'):
        answer = await world.talk.send_json("POST", "/api/auth/refresh", body)
        assert answer.fault(401, "invalid_refresh_token") is None, (body, answer)
    by_cookie = await world.talk.ask("POST", "/api/auth/refresh", [("Cookie", f"uim_refresh={good}")])
    assert by_cookie.fault(403, "forbidden") is None, "a cookie needs an Origin"
    answer = await world.talk.send_json("POST", "/api/auth/refresh", json.dumps({"refresh_token": good}))
    assert answer.status == 200, "garbage has ended nothing"
