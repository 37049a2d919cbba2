"""GET /ws with a wrong query or without a login: refused before the upgrade, by status and problem, and never half open."""

from __future__ import annotations

from urllib.parse import quote

import pytest
import trio

from tests.house import WAIT_S
from tests.refusals.http import Answer, Headers, read_answer
from tests.refusals.test_credentials import claims_of, forged_tokens, signed
from tests.refusals.world import World

pytestmark = pytest.mark.timeout(60)

UPGRADE: Headers = [
    ("Host", "x"), ("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
]  # fmt: skip


async def knock(world: World, query: str, *headers: tuple[str, str], upgrade: Headers = UPGRADE, method: str = "GET") -> Answer:
    """The answer to one upgrade; an accepted one is left at once."""
    async with await trio.open_tcp_stream(*world.server.running.addresses[0]) as stream:
        lines = "".join(f"{name}: {value}\r\n" for name, value in [*upgrade, *headers])
        with trio.fail_after(WAIT_S):
            await stream.send_all(f"{method} /ws{query} HTTP/1.1\r\n{lines}\r\n".encode("latin-1"))
            return await read_answer(stream)


def bearer(world: World) -> tuple[str, str]:
    return "Authorization", f"Bearer {world.bearer}"


BAD_QUERIES = [
    ("device_id=", "device_id"), ("device_id=" + "x" * 65, "device_id"), ("device_id=%00", "device_id"),
    ("device_id=a&device_id=a", "device_id"), ("last_sync_id=", "last_sync_id"), ("last_sync_id=x", "last_sync_id"),
    ("last_sync_id=-1", "last_sync_id"), ("last_sync_id=1.5", "last_sync_id"), ("last_sync_id=1.0", "last_sync_id"),
    ("last_sync_id=null", "last_sync_id"), ("last_sync_id=9007199254740992", "last_sync_id"),
    ("last_sync_id=" + "9" * 5_000, "last_sync_id"), ("last_sync_id=1&last_sync_id=2", "last_sync_id"), ("platform=", "platform"),
    ("platform=" + "x" * 65, "platform"), ("app_version=", "app_version"), ("app_version=" + "1" * 65, "app_version"),
    ("colour=red", "colour"), ("x" * 5_000 + "=1", "x" * 200), ("token=a&token=b", "token"), ("device_id=%ff", "query"),
    ("device_id=%ed%a0%80", "query"), ("device_id", "query"), ("&".join(f"a{n}=" for n in range(50)), "query"),
]  # fmt: skip


async def test_query_that_is_wrong_is_422_and_names_its_parameter(world: World) -> None:
    faults = []
    for query, field in BAD_QUERIES:
        answer = await knock(world, f"?{query}", bearer(world))
        if wrong := answer.fault(422, "validation_failed", field):
            faults.append(f"{query[:40]}: {wrong}")
        elif answer.headers["connection"].lower() != "close" or len(answer.body) > 1_000:
            faults.append(f"{query[:40]}: {answer}")
    assert not faults, "\n" + "\n".join(faults)


async def test_queries_that_are_fine_are_let_in(world: World) -> None:
    for query in ("", "?", "?device_id=x", "?device_id=a%20b%F0%9F%98%80", "?last_sync_id=0", "?last_sync_id=9007199254740991",
                  "?platform=web&app_version=1.2.3", "?device_id=" + "x" * 64):  # fmt: skip
        assert (await knock(world, query, bearer(world))).status == 101, query


async def test_forged_tokens_are_401_in_header_query_and_cookie(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    faults = []
    own = ("Origin", "http://x")
    for what, token in {"empty": "", **forged_tokens(world)}.items():
        for where, answer in (
            ("header", await knock(world, "", ("Authorization", f"Bearer {token}"))),
            ("query", await knock(world, f"?token={quote(token)}")),
            ("query beside a good header", await knock(world, f"?token={quote(token)}", bearer(world))),
            ("cookie", await knock(world, "", ("Cookie", f"uim_access={token}"), own)),
        ):
            if wrong := answer.fault(401, "unauthorized"):
                faults.append(f"{what} in {where}: {wrong}")
            elif answer.headers.get("www-authenticate") != "Bearer":
                faults.append(f"{what} in {where}: no WWW-Authenticate")
    assert not faults, "\n" + "\n".join(faults)
    logged = capsys.readouterr().out
    assert "Traceback" not in logged and "token=" not in logged


async def test_nobody_expired_and_ended_are_told_apart(world: World) -> None:
    for headers in (
        (),
        (("Authorization", ""),),
        (("Authorization", "Bearer"),),
        (("Authorization", "Basic YTpi"),),
        (bearer(world),) * 2,
    ):
        assert (await knock(world, "", *headers)).fault(401, "unauthorized") is None, headers
    expired = signed(world, claims_of(world, iat=0, exp=900))
    leaving = await world.server.login(world.alice.username, "leaving")
    await leaving.call("POST", "/api/auth/logout", expect=204)
    for token, code in ((expired, "token_expired"), (leaving.tokens["access_token"], "session_ended")):
        assert (await knock(world, f"?token={token}")).fault(401, code) is None
        assert (await knock(world, "", ("Authorization", f"Bearer {token}"))).fault(401, code) is None
        assert (await knock(world, "", ("Cookie", f"uim_access={token}"), ("Origin", "http://x"))).fault(401, code) is None
    assert (await knock(world, f"?token={world.bearer}")).status == 101


async def test_cookie_opens_the_socket_for_an_allowed_page_alone(world: World) -> None:
    cookie = ("Cookie", f"uim_access={world.bearer}")
    assert (await knock(world, "", cookie)).fault(403, "forbidden") is None
    for origin in ("null", "", "http://evil.example", "https://x", "http://x.evil.example", "http://x:81", "x"):
        assert (await knock(world, "", cookie, ("Origin", origin))).fault(403, "forbidden") is None, origin
    two = await knock(world, "", cookie, ("Origin", "http://x"), ("Origin", "http://evil.example"))
    assert two.fault(403, "forbidden") is None
    assert (await knock(world, "", cookie, ("Origin", "http://x"))).status == 101
    assert (await knock(world, "", bearer(world), ("Origin", "http://evil.example"))).status == 101, "a token is no accident"


def without(name: str) -> Headers:
    return [(key, value) for key, value in UPGRADE if key != name]


NO_UPGRADES: dict[str, tuple[Headers, str]] = {
    "a plain GET": ([("Host", "x")], "GET"),
    "no Upgrade": (without("Upgrade"), "GET"),
    "no Connection": (without("Connection"), "GET"),
    "no key": (without("Sec-WebSocket-Key"), "GET"),
    "no version": (without("Sec-WebSocket-Version"), "GET"),
    "an old version": ([*without("Sec-WebSocket-Version"), ("Sec-WebSocket-Version", "8")], "GET"),
    "h2c": ([*without("Upgrade"), ("Upgrade", "h2c")], "GET"),
    "POST": (UPGRADE, "POST"),
    "no Host": (without("Host"), "GET"),
}


async def test_what_is_no_upgrade_is_refused_and_the_server_lives(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    for what, (upgrade, method) in NO_UPGRADES.items():
        answer = await knock(world, "", bearer(world), upgrade=upgrade, method=method)
        assert 400 <= answer.status < 500, (what, answer)
        assert (await knock(world, "", bearer(world))).status == 101
    assert "Traceback" not in capsys.readouterr().out
