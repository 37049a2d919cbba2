"""/ws asked for without a WebSocket: a problem like any other, from the front that would have upgraded.

Who is refused with an upgrade asked for is in test_sign_in.py and test_connection_life.py.
"""

from __future__ import annotations

from uuid import UUID

import httpx
import pytest

from loadtest.lines import upgrade_request
from tests.faults import raw
from tests.house import Server


@pytest.mark.parametrize("headers", [{}, {"Upgrade": "h2c", "Connection": "Upgrade"}, {"X-Upgrade": "websocket"}])
async def test_ws_without_an_upgrade_is_a_bad_request(server: Server, headers: dict[str, str]) -> None:
    alice = await server.register("alice")
    async with httpx.AsyncClient(base_url=server.url) as fresh:  # a connection's first request says which front it is for
        answer = await fresh.get("/ws?last_sync_id=0", headers={**alice.bearer, **headers})
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert (answer.json()["code"], answer.json()["status"]) == ("bad_request", 400)
    assert UUID(answer.headers["x-request-id"])
    assert answer.headers["cache-control"] == "no-store"
    assert server.house.switchboard.connections == 0
    await alice.connect("phone")


@pytest.mark.parametrize("odd", [(b"Host: ", b"Host: \xff"), (b"\r\n\r\n", b"\r\nSec-WebSocket-Protocol: \xff\r\n\r\n")])
async def test_an_upgrade_with_letters_that_have_no_meaning_there_is_a_bad_request(server: Server, odd: tuple[bytes, bytes]) -> None:
    alice = await server.register("alice")
    head = upgrade_request(alice.tokens["access_token"], "phone")
    async with raw.line(server, head.replace(*odd)) as peer:
        assert (await peer.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
