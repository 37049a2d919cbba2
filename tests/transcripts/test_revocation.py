"""A login ends: its sockets close within a second, wherever they are, and the user's other devices are told."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
import trio
import trio_websocket

from tests.house import PASSWORD, Device, Server, serving, settings_for
from uim.errors import Cut

NOBODY_LISTENS = "redis://127.0.0.1:1/0"


async def told(device: Device, event: str) -> dict[str, str]:
    """The next account entry of that event, as it comes live."""
    frame = await device.expect(
        lambda f: f["type"] == "MESSAGE_RECEIVE" and (f["payload"]["metadata"] or {}).get("event") == event
    )
    assert frame["payload"]["message_type"] == "account" and frame["payload"]["content"] == ""
    metadata: dict[str, str] = frame["payload"]["metadata"]
    return metadata


async def ends_within_a_second(device: Device) -> None:
    with trio.fail_after(1):
        await device.closing(Cut.LOGIN_ENDED)


async def test_a_revoked_laptop_is_cut_at_once_and_the_phone_is_told(server: Server) -> None:
    alice = await server.register("alice", "phone")
    phone = await alice.connect("phone")
    on_laptop = await server.login(alice.username, "laptop")
    assert (await told(phone, "login_added"))["device_id"] == "laptop"
    laptop = await on_laptop.connect("laptop")

    await alice.call("DELETE", f"/api/auth/sessions/{on_laptop.login_id}", expect=204)
    await ends_within_a_second(laptop)
    assert await told(phone, "login_ended") == {"event": "login_ended", "login_id": on_laptop.login_id, "reason": "revoked"}
    await phone.roundtrip()
    assert (await on_laptop.call("GET", "/api/users/me", expect=401)).json()["code"] == "session_ended"
    with pytest.raises(trio_websocket.HandshakeError), trio.fail_after(5):
        async with trio_websocket.open_websocket_url(
            server.url.replace("http", "ws", 1) + "/ws",
            extra_headers=[(b"Authorization", on_laptop.bearer["Authorization"].encode())],
        ):
            raise AssertionError("a revoked login was let in")


async def test_a_new_password_cuts_every_other_login_and_keeps_this_one(server: Server) -> None:
    alice = await server.register("alice", "phone")
    on_laptop, on_tablet = await server.login(alice.username, "laptop"), await server.login(alice.username, "tablet")
    phone, laptop, tablet = await alice.connect("phone"), await on_laptop.connect("laptop"), await on_tablet.connect("tablet")
    await alice.post("/api/auth/password", {"current_password": PASSWORD, "new_password": "Looking-glass-1871"}, expect=204)
    await ends_within_a_second(laptop)
    await ends_within_a_second(tablet)
    await phone.roundtrip()


async def test_a_copied_refresh_token_cuts_the_thief_and_the_owner(server: Server) -> None:
    alice = await server.register("alice", "phone")
    stolen = alice.tokens["refresh_token"]
    for _ in range(2):
        alice.tokens |= await alice.post("/api/auth/refresh", {"refresh_token": alice.tokens["refresh_token"]})
    phone = await alice.connect("phone")
    await alice.post("/api/auth/refresh", {"refresh_token": stolen}, expect=401)
    await ends_within_a_second(phone)


@pytest.fixture
async def without_redis(database_url: str, server: Server) -> AsyncIterator[Server]:
    """A second process on the same database, which no bus reaches, and with the same keys."""
    settings = settings_for(database_url, NOBODY_LISTENS, jwt_keys=server.house.settings.jwt_keys)
    async with serving(settings) as started:
        yield started


async def test_a_logout_cuts_a_socket_of_another_process_without_redis(server: Server, without_redis: Server) -> None:
    alice = await server.register("alice", "phone")
    phone = await alice.connect("phone", to=without_redis)
    await alice.call("POST", "/api/auth/logout", expect=204)
    await ends_within_a_second(phone)


async def test_a_login_that_runs_out_is_cut_by_the_clock_alone(server: Server) -> None:
    alice = await server.register("alice", "phone")
    phone = await alice.connect("phone")
    async with server.house.pool.connection() as tx:
        await tx.execute("update logins set expires_at = now()")
    await ends_within_a_second(phone)


APP = "https://app.example.org"


async def cookie_of_a_new_user(server: Server) -> tuple[bytes, bytes]:
    async with httpx.AsyncClient(base_url=server.url) as browser:
        body = {"username": "cookie", "email": "cookie@example.com", "password": PASSWORD, "cookie": True}
        assert (await browser.post("/api/auth/register", json=body)).status_code == 201
        return b"Cookie", f"uim_access={browser.cookies['uim_access']}".encode()


async def first_words(server: Server, *headers: tuple[bytes, bytes]) -> str:
    """What the socket says first; raises HandshakeError if it does not open."""
    with trio.fail_after(5):
        async with trio_websocket.open_websocket_url(
            server.url.replace("http", "ws", 1) + "/ws", extra_headers=list(headers)
        ) as ws:
            return str(await ws.get_message())


async def test_a_page_needs_an_allowed_origin_to_open_the_socket_by_cookie(database_url: str, redis_url: str) -> None:
    async with serving(settings_for(database_url, redis_url, allowed_origins=(APP,))) as server:
        cookie = await cookie_of_a_new_user(server)
        for origins in ([], [(b"Origin", b"https://evil.example")], [(b"Origin", server.url.encode())]):
            with pytest.raises(trio_websocket.ConnectionRejected) as rejected:
                await first_words(server, cookie, *origins)
            assert rejected.value.status_code == 403
        assert '"SESSION_READY"' in await first_words(server, cookie, (b"Origin", APP.encode()))


async def test_the_servers_own_page_opens_the_socket_by_cookie(server: Server) -> None:
    cookie = await cookie_of_a_new_user(server)
    assert '"SESSION_READY"' in await first_words(server, cookie, (b"Origin", server.url.encode()))
