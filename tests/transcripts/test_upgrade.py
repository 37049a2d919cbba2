"""/ws asked for without a WebSocket: a problem like any other, from the front that would have upgraded.

Who is refused with an upgrade asked for is in test_sign_in.py and test_connection_life.py.
"""

from __future__ import annotations

import socket
import struct
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import pytest
import trio

from tests.house import Server
from uim import listener


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


async def test_who_leaves_while_being_signed_in_is_no_failure(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    alice = await server.register("alice")
    failures: list[str] = []
    monkeypatch.setattr(listener.log, "exception", lambda event, **fields: failures.append(event), raising=False)
    url = urlsplit(server.url)
    assert url.hostname is not None and url.port is not None
    head = (
        f"GET /ws?device_id=phone HTTP/1.1\r\nHost: {url.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        f"Authorization: {alice.bearer['Authorization']}\r\n\r\n"
    )
    for _ in range(20):
        stream = await trio.open_tcp_stream(url.hostname, url.port)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await stream.send_all(head.encode())
        await stream.aclose()
    await alice.connect("phone")
    with trio.fail_after(10):
        while server.house.switchboard.connections > 1:
            await trio.sleep(0.01)
    assert failures == []
