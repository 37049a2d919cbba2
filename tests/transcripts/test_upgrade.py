"""/ws asked for without a WebSocket: a problem like any other, from the front that would have upgraded.

Who is refused with an upgrade asked for is in test_sign_in.py and test_connection_life.py.
"""

from __future__ import annotations

from uuid import UUID

import httpx
import pytest

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
