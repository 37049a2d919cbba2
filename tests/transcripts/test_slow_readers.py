"""Clients that ask and do not read the answers: read no further, held in bounded memory, and answered in full later.

The outbox's own bounds are in test_outbox.py; here a real session stands before a socket that takes nothing.
"""

from __future__ import annotations

from uuid import UUID

import pytest
import trio
import trio.testing

from tests.house import Server
from uim.chat.outbox import MAX_BYTES, Outbox
from uim.live.pacing import PRICES
from uim.live.sockets import FrameStream
from uim.wire.frames import HeartbeatPing

pytestmark = pytest.mark.timeout(30)

PING_ID = "p" * 50
# At least so much is a PONG with such an id.
ANSWER_BYTES = 150


def ends_of(server: Server, user_id: str) -> tuple[Outbox, FrameStream]:
    """The server's end of this user's only connection: what waits for it, and the stream it leaves through."""
    (outbox,) = server.house.switchboard.of_user(UUID(user_id))
    return outbox, outbox.cut.__self__._stream


async def test_who_asks_and_never_reads_is_read_no_further_and_answered_once_it_reads(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRICES, HeartbeatPing, 0)  # so many would else take their time
    alice = await server.register("alice")
    phone = await alice.connect("phone")
    await phone.roundtrip()
    outbox, stream = ends_of(server, alice.user_id)
    number = MAX_BYTES * 3 // 2 // ANSWER_BYTES
    asked = [f"{PING_ID}-{at}" for at in range(number)]

    async def ask() -> None:
        for request_id in asked:
            await phone.send("HEARTBEAT_PING", request_id)

    async with trio.open_nursery() as nursery:
        async with stream._lock:  # the socket takes nothing
            nursery.start_soon(ask)
            with trio.fail_after(10):
                while outbox.size <= MAX_BYTES:
                    await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert outbox.size <= MAX_BYTES + 1_000
        await phone.until(lambda: sum(frame["type"] == "HEARTBEAT_PONG" for frame in phone.frames) == number)
    assert [frame["request_id"] for frame in phone.frames if frame["type"] == "HEARTBEAT_PONG"] == asked
    assert outbox.size == 0
