"""Signing in over HTTP, as a client sees it: devices, tokens, cookies, people."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import httpx
import jwt
import pytest
import trio

from tests.http_house import client_of, is_problem
from tests.sign_in_house import PASSWORD, SignInHouse, sign_in_house
from uim.chat.callers import Origins
from uim.chat.people import SearchMark
from uim.wire.paging import cursor_of

ALICE = {"username": "alice", "email": "alice@example.com", "password": PASSWORD}


@asynccontextmanager
async def talking(database_url: str, origins: Origins | None = None) -> AsyncIterator[tuple[SignInHouse, httpx.AsyncClient]]:
    async with sign_in_house(database_url) as house, client_of(house.app(origins or Origins(None))) as client:
        yield house, client


def bearer(tokens: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {tokens['access_token']}"}


async def register(client: httpx.AsyncClient, name: str = "alice", **fields: Any) -> dict[str, Any]:
    body = {"username": name, "email": f"{name}@example.com", "password": PASSWORD} | fields
    answer = await client.post("/api/auth/register", json=body)
    assert answer.status_code == 201, answer.text
    tokens: dict[str, Any] = answer.json()
    return tokens


async def login(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await client.post("/api/auth/login", json={"username": "alice", "password": PASSWORD} | fields)
    assert answer.status_code == 200, answer.text
    tokens: dict[str, Any] = answer.json()
    return tokens


async def test_alice_registers_and_is_told_who_she_is(database_url: str) -> None:
    async with talking(database_url) as (_, client):
        tokens = await register(client, display_name="Alice A.", device_id="phone", device_name="Phone", platform="ios")
        assert tokens.keys() == {
            "access_token", "refresh_token", "token_type", "expires_in", "refresh_expires_in", "login_id", "device_id", "user",
        }  # fmt: skip
        assert (tokens["token_type"], tokens["expires_in"], tokens["refresh_expires_in"]) == ("Bearer", 900, 604_800)
        assert tokens["device_id"] == "phone"
        claims = jwt.decode(tokens["access_token"], options={"verify_signature": False})
        assert claims.keys() == {"user_id", "username", "sid", "gen", "iat", "exp"}
        assert (claims["sid"], claims["exp"] - claims["iat"]) == (tokens["login_id"], 900)
        me = (await client.get("/api/users/me", headers=bearer(tokens))).json()
        assert me == tokens["user"]
        assert me["email"] == "alice@example.com" and me["display_name"] == "Alice A."
        assert me["settings"] == {"read_receipts": True, "show_last_seen": True} and me["availability"] == "available"


async def test_every_fault_of_a_registration_is_told_at_once(database_url: str) -> None:
    async with talking(database_url) as (_, client):
        body = {"username": "a b", "email": "nowhere", "password": "short", "display_name": "", "platform": "x" * 21}
        told = is_problem(await client.post("/api/auth/register", json=body), 422, "validation_failed")
        assert told["errors"].keys() == body.keys()
        unknown = await client.post("/api/auth/register", json=ALICE | {"role": "admin"})
        assert is_problem(unknown, 422, "validation_failed")["errors"] == {"role": "is not known here"}
        await register(client)
        taken = await client.post("/api/auth/register", json=ALICE | {"username": "ALICE", "email": "other@example.com"})
        is_problem(taken, 409, "username_taken")
        is_problem(await client.post("/api/auth/register", json=ALICE | {"username": "alice2"}), 409, "email_taken")


async def test_alice_revokes_her_laptop_from_her_phone(database_url: str) -> None:
    async with talking(database_url) as (house, client):
        phone = await register(client, device_id="phone")
        laptop = await login(client, device_name="Laptop", platform="linux")
        bob = await register(client, "bob")
        listed = (await client.get("/api/auth/sessions", headers=bearer(phone))).json()
        assert listed["next"] is None
        seen = {item["login_id"]: (item["device_name"], item["platform"], item["current"]) for item in listed["items"]}
        assert seen == {phone["login_id"]: (None, None, True), laptop["login_id"]: ("Laptop", "linux", False)}

        path = f"/api/auth/sessions/{laptop['login_id']}"
        is_problem(await client.delete(path, headers=bearer(bob)), 404, "not_found")
        assert (await client.delete(path, headers=bearer(phone))).status_code == 204
        is_problem(await client.delete(path, headers=bearer(phone)), 404, "not_found")
        is_problem(await client.delete("/api/auth/sessions/laptop", headers=bearer(phone)), 404, "not_found")
        assert [str(login_id) for login_id in house.cut] == [laptop["login_id"]]
        is_problem(await client.get("/api/users/me", headers=bearer(laptop)), 401, "session_ended")
        refreshing = await client.post("/api/auth/refresh", json={"refresh_token": laptop["refresh_token"]})
        is_problem(refreshing, 401, "invalid_refresh_token")

        assert (await client.post("/api/auth/logout", headers=bearer(phone))).status_code == 204
        is_problem(await client.get("/api/users/me", headers=bearer(phone)), 401, "session_ended")


async def test_an_expired_token_is_told_and_refreshed_twice_with_one_outcome(database_url: str) -> None:
    async with talking(database_url) as (house, client):
        tokens = await register(client)
        house.clock.now += 903
        is_problem(await client.get("/api/users/me", headers=bearer(tokens)), 401, "token_expired")
        answers: list[dict[str, Any]] = []

        async def refresh() -> None:
            answer = await client.post("/api/auth/refresh", json={"refresh_token": tokens["refresh_token"]})
            assert answer.status_code == 200
            answers.append(answer.json())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(refresh)
            nursery.start_soon(refresh)
        assert answers[0]["refresh_token"] == answers[1]["refresh_token"] != tokens["refresh_token"]
        assert (await client.get("/api/users/me", headers=bearer(answers[0]))).status_code == 200

        await house.execute("update logins set generation_used_at = now() - interval '31 seconds'")
        late = await client.post("/api/auth/refresh", json={"refresh_token": tokens["refresh_token"]})
        is_problem(late, 401, "invalid_refresh_token")
        is_problem(await client.get("/api/users/me", headers=bearer(answers[0])), 401, "session_ended")


async def test_who_has_no_good_token_is_unauthorized(database_url: str) -> None:
    async with talking(database_url) as (_, client):
        tokens = await register(client)
        for headers in ({}, {"Authorization": "Basic YTpi"}, {"Authorization": "Bearer"}, {"Authorization": "Bearer x.y.z"}):
            answer = await client.get("/api/users/me", headers=headers)
            is_problem(answer, 401, "unauthorized")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        lower = {"authorization": f"bearer {tokens['access_token']}"}
        assert (await client.get("/api/users/me", headers=lower)).status_code == 200
        for body in ({}, {"refresh_token": "x"}, {"refresh_token": None}):
            is_problem(await client.post("/api/auth/refresh", json=body), 401, "invalid_refresh_token")


async def test_an_unknown_user_is_answered_like_a_wrong_password(database_url: str) -> None:
    async with talking(database_url) as (_, client):
        await register(client)
        attempts = [
            {"username": name, "password": "Wrong horse 1"} for name in ("alice", "nobody", "no@where.example", "\U0001f40e")
        ]
        answers = [await client.post("/api/auth/login", json=attempt) for attempt in attempts]
        bodies = [is_problem(answer, 401, "invalid_credentials") for answer in answers]
        assert all(body == bodies[0] for body in bodies)
        for _ in range(9):
            is_problem(await client.post("/api/auth/login", json=attempts[0]), 401, "invalid_credentials")
        stopped = await client.post("/api/auth/login", json=attempts[0])
        assert is_problem(stopped, 429, "too_many_attempts")["retry_after"] <= 6
        assert 1 <= int(stopped.headers["Retry-After"]) <= 6


async def test_alice_changes_her_password(database_url: str) -> None:
    async with talking(database_url) as (_, client):
        phone = await register(client, device_id="phone")
        laptop = await login(client)

        async def change(current: str, new: str) -> httpx.Response:
            body = {"current_password": current, "new_password": new}
            return await client.post("/api/auth/password", json=body, headers=bearer(phone))

        is_problem(await change("Wrong horse 1", "Another horse 2"), 403, "invalid_credentials")
        plain = is_problem(await change(PASSWORD, "password"), 422, "validation_failed")
        assert plain["errors"].keys() == {"new_password"}
        assert (await change(PASSWORD, "Another horse 2")).status_code == 204
        is_problem(await client.get("/api/users/me", headers=bearer(laptop)), 401, "session_ended")
        assert (await client.get("/api/users/me", headers=bearer(phone))).status_code == 200
        await login(client, password="Another horse 2")


# -- cookies ----------------------------------------------------------------------------------------------------------


def cookies_of(answer: httpx.Response) -> dict[str, str]:
    """Set-Cookie headers by the cookie's name."""
    return {line.partition("=")[0]: line for line in answer.headers.get_list("set-cookie")}


async def test_a_browser_signs_in_by_cookie_and_only_its_own_pages_may_act(database_url: str) -> None:
    async with talking(database_url) as (_, client):
        answer = await client.post("/api/auth/register", json=ALICE | {"cookie": True})
        assert answer.status_code == 201
        assert answer.json().keys() == {"token_type", "expires_in", "refresh_expires_in", "login_id", "device_id", "user"}
        cookies = cookies_of(answer)
        for line in cookies.values():
            assert "HttpOnly" in line and "SameSite=Strict" in line and "Secure" not in line and "Max-Age=604800" in line
        assert "Path=/;" in cookies["uim_access"] + ";" and "Path=/api/auth" in cookies["uim_refresh"]

        own = {"Origin": str(client.base_url).rstrip("/")}
        assert (await client.get("/api/users/me")).status_code == 200
        for origin in ({}, {"Origin": "https://evil.example"}, {"Origin": "null"}):
            is_problem(await client.post("/api/auth/logout", headers=origin), 403, "forbidden")
            is_problem(await client.post("/api/auth/refresh", headers=origin), 403, "forbidden")

        refreshed = await client.post("/api/auth/refresh", headers=own)
        assert refreshed.status_code == 200 and "access_token" not in refreshed.json()
        assert cookies_of(refreshed)["uim_refresh"] != cookies["uim_refresh"]
        gone = await client.post("/api/auth/logout", headers=own)
        assert gone.status_code == 204
        assert cookies_of(gone).keys() == cookies.keys() and all("Max-Age=0" in line for line in cookies_of(gone).values())
        assert not client.cookies
        is_problem(await client.get("/api/users/me"), 401, "unauthorized")


async def test_behind_https_cookies_are_secure_and_named_origins_may_act(database_url: str) -> None:
    origins = Origins("https://chat.example.org", ("https://app.example.org",))
    async with talking(database_url, origins) as (_, client):
        answer = await client.post("/api/auth/register", json=ALICE | {"cookie": True})
        cookies = cookies_of(answer)
        assert all("Secure" in line for line in cookies.values())
        # The test speaks http, so it carries the cookies itself.
        client.cookies.clear()
        carried = {"Cookie": "; ".join(line.partition(";")[0] for line in cookies.values())}
        other = {"Origin": "https://chat.example.org.evil.example"}
        is_problem(await client.post("/api/auth/logout", headers=carried | other), 403, "forbidden")
        app = {"Origin": "https://app.example.org"}
        assert (await client.post("/api/auth/logout", headers=carried | app)).status_code == 204


async def test_a_bearer_token_needs_no_origin_and_goes_before_a_cookie(database_url: str) -> None:
    async with talking(database_url) as (_, client):
        await client.post("/api/auth/register", json=ALICE | {"cookie": True})
        bob = await register(client, "bob")
        assert (await client.get("/api/users/me", headers=bearer(bob))).json()["username"] == "bob"
        assert (await client.post("/api/auth/logout", headers=bearer(bob))).status_code == 204


async def test_other_cookies_do_not_hide_ours(database_url: str) -> None:
    async with talking(database_url) as (_, client):
        tokens = await register(client)
        for cookie in ('a="b; uim_access={}', "bad[name]=1;uim_access={};x", 'uim_access="{}"'):
            headers = {"Cookie": cookie.format(tokens["access_token"])}
            assert (await client.get("/api/users/me", headers=headers)).status_code == 200
        is_problem(await client.get("/api/users/me", headers={"Cookie": "uim_access="}), 401, "unauthorized")


# -- people -----------------------------------------------------------------------------------------------------------


async def test_people_are_found_by_the_beginning_of_their_names_page_by_page(database_url: str) -> None:
    async with talking(database_url) as (house, client):
        alice = bearer(await register(client, display_name="Zoë"))
        for name in ("bob_1", "bobx1", "BOB_2", "carol"):
            await register(client, name, display_name="Bob_ the other" if name == "carol" else None)

        async def found(**query: Any) -> list[str]:
            names, cursor = [], None
            while True:
                more: dict[str, Any] = {"cursor": cursor} if cursor else {}
                page = (await client.get("/api/users", params=query | more, headers=alice)).json()
                names += [item["username"] for item in page["items"]]
                if (cursor := page["next"]) is None:
                    return names

        assert await found(query="bob") == await found(query="BOB", limit=1) == ["bob_1", "BOB_2", "bobx1", "carol"]
        assert await found(query="bob_", limit=2) == ["bob_1", "BOB_2", "carol"]
        assert await found(query="zoë") == await found(query="ZOË") == ["alice"]
        assert await found(query="%") == await found(query="\\") == []
        await house.execute("update users set deleted_at = now() where username = 'bobx1'")
        assert await found(query="bob", limit=3) == ["bob_1", "BOB_2", "carol"]


async def test_people_are_read_by_id_and_a_block_leaves_only_the_names(database_url: str) -> None:
    async with talking(database_url) as (house, client):
        alice, bob = await register(client), await register(client, "bob", display_name="Bob")
        alice_id, bob_id = alice["user"]["user_id"], bob["user"]["user_id"]
        await house.execute("update users set status_text = 'here', avatar_url = 'https://x.example/a.png'")
        seen = (await client.get(f"/api/users/{bob_id}", headers=bearer(alice))).json()
        assert seen.keys() == {"user_id", "username", "display_name", "avatar_url", "status_text", "updated_at"}
        assert (seen["display_name"], seen["status_text"]) == ("Bob", "here")

        ids = ",".join([bob_id, str(uuid4()), alice_id, bob_id])
        page = (await client.get("/api/users", params={"ids": ids}, headers=bearer(alice))).json()
        assert [item["user_id"] for item in page["items"]] == [bob_id, alice_id] and page["next"] is None
        assert page["items"][0] == seen

        await house.execute("insert into blocks (user_id, blocked_id) values (%s, %s)", alice_id, bob_id)
        for asking, other in ((alice, bob_id), (bob, alice_id)):
            across = (await client.get(f"/api/users/{other}", headers=bearer(asking))).json()
            assert (across["avatar_url"], across["status_text"]) == (None, None) and across["username"]
        for missing in (str(uuid4()), "me2"):
            is_problem(await client.get(f"/api/users/{missing}", headers=bearer(alice)), 404, "not_found")
        await house.execute("update users set deleted_at = now() where user_id = %s", bob_id)
        is_problem(await client.get(f"/api/users/{bob_id}", headers=bearer(alice)), 404, "not_found")


@pytest.mark.parametrize(
    "query",
    ["", "query=", "query=a&ids=x", "ids=x", "ids=", "query=a&limit=0", "query=a&limit=101", "query=a&cursor=x", "query=%00",
     f"query=a&cursor={cursor_of(SearchMark(chr(0)))}", "ids=" + ",".join([str(uuid4())] * 101), "query=" + "a" * 101, "name=a"],
)  # fmt: skip
async def test_a_search_that_makes_no_sense_is_refused(database_url: str, query: str) -> None:
    async with talking(database_url) as (_, client):
        headers = bearer(await register(client))
        is_problem(await client.get(f"/api/users?{query}", headers=headers), 422, "validation_failed")
