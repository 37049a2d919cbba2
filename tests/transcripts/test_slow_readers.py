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
from uim.live.sockets import FrameStream

pytestmark = pytest.mark.timeout(30)

ID = "i" * 50
# At least so much is a MESSAGE_ACK that gives back two such ids; as many at once as a user may have open.
ANSWER_BYTES = 300
OPEN_SENDS = 64


def ends_of(server: Server, user_id: str) -> tuple[Outbox, FrameStream]:
    """The server's end of this user's only connection: what waits for it, and the stream it leaves through."""
    (outbox,) = server.house.switchboard.of_user(UUID(user_id))
    return outbox, outbox.cut.__self__._stream


async def test_who_asks_and_never_reads_is_read_no_further_and_answered_once_it_reads(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    pair = await server.pair(alice, bob)
    phone = await alice.connect("phone")
    await phone.roundtrip()
    outbox, stream = ends_of(server, alice.user_id)
    number = MAX_BYTES * 3 // 2 // ANSWER_BYTES
    asked = [f"{ID}-{at}" for at in range(number)]

    async def ask() -> None:
        for request_id in asked:
            await phone.send("MESSAGE_SEND", request_id, conversation_id=pair, client_message_id=request_id, content="?")

    async with trio.open_nursery() as nursery:
        async with stream._lock:  # the socket takes nothing
            nursery.start_soon(ask)
            with trio.fail_after(20):
                while outbox.size <= MAX_BYTES:
                    await trio.lowlevel.checkpoint()
                while server.house.open_sends._busy:
                    await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert outbox.size <= MAX_BYTES + OPEN_SENDS * 2 * ANSWER_BYTES
        await phone.until(lambda: sum(frame["type"] == "MESSAGE_ACK" for frame in phone.frames) == number)
    assert [frame["request_id"] for frame in phone.frames if frame["type"] == "MESSAGE_ACK"] == asked
    assert outbox.size == 0
