"""Signed-in peers that flood, fragment, declare and nest: each is read at its pace, held in bounded memory or cut; others talk on."""

from __future__ import annotations

from collections import Counter
from typing import Any
from uuid import UUID

import msgspec
import pytest
import trio

from loadtest.frames import client_frame, masked_text
from tests.faults import raw
from tests.faults.conftest import Pair
from tests.faults.raw import CLOSE, CONTINUATION, PING, TEXT, close_code
from tests.house import Person, Server
from tests.test_http_front import Turns
from uim.errors import Cut
from uim.live.pacing import ACK, EARNED_PER_S, MOST_SAVED, PRICES, REFUSED
from uim.live.session import Session
from uim.live.sockets import EVENTS_IN_A_TURN, FrameStream
from uim.wire.frames import MAX_FRAME_IN_BYTES, HeartbeatPing, SyncRequest

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def eve(server: Server) -> Person:
    return await server.register("eve")


def session_of(server: Server, person: Person) -> Session:
    """The server's end of this person's only connection."""
    (outbox,) = (outbox for outbox in server.house.switchboard.all() if str(outbox.user_id) == person.user_id)
    session = outbox.cut.__self__
    assert isinstance(session, Session)
    return session


def frame(kind: str, request_id: str = "r", **payload: Any) -> bytes:
    return masked_text(msgspec.json.encode({"type": kind, "request_id": request_id, "payload": payload}))


# -- floods --------------------------------------------------------------------------------------------------------------


async def test_pings_that_come_in_one_read_are_answered_over_several_turns(
    server: Server, eve: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = Turns()
    answered: Counter[int] = Counter()
    send_all = FrameStream.send_all

    async def counted(stream: FrameStream, data: bytes | bytearray | memoryview) -> None:
        answered[turns.number] += bytes(data).startswith(b"\x8a")
        await send_all(stream, data)

    async with raw.websocket(eve, "x") as peer:
        await peer.until(b"SESSION_READY")
        monkeypatch.setattr(FrameStream, "send_all", counted)
        trio.lowlevel.add_instrument(turns)
        try:
            await peer.say(client_frame(PING, b"p") * 100 + client_frame(PING, b"the end"))
            await peer.until(b"the end")
        finally:
            trio.lowlevel.remove_instrument(turns)
    assert answered.total() == 101 and max(answered.values()) <= EVENTS_IN_A_TURN


async def test_a_flood_of_pings_unread_is_read_no_further_than_its_pace(server: Server, pair: Pair, eve: Person) -> None:
    async with raw.websocket(eve, "x", window_bytes=2048) as peer:
        await peer.until(b"SESSION_READY")
        began = trio.current_time()
        unit = client_frame(PING, b"p" * 125) * 500
        said = await peer.pour(unit, 200)
        assert said < 200, "13 MB of PINGs were taken as fast as they came"
        await pair.talks()
        session = session_of(server, eve)
        paid = MOST_SAVED + (trio.current_time() - began) * EARNED_PER_S
        # What was read off the socket and is no frame yet is one read at most.
        assert len(session._ws._wsproto._proto._frame_decoder.buffer) <= 2 * 16 * 1024
        assert session.outbox.size < 1_000
        assert paid < said * 500, "the flood outran what a connection may save up"


@pytest.mark.parametrize(("opcode", "said", "code"), [(3, b"", 1002), (TEXT, b"\xff", 1007), (PING, b"p" * 126, 1002)])
async def test_who_sends_what_is_no_frame_is_told_so(eve: Person, opcode: int, said: bytes, code: int) -> None:
    async with raw.websocket(eve, "x") as peer:
        await peer.until(b"SESSION_READY")
        await peer.say(client_frame(opcode, said))
        assert close_code(await peer.to_the_end()) == code


async def test_control_frames_come_at_a_hundred_a_second_once_the_savings_are_spent(pair: Pair, eve: Person) -> None:
    async with raw.websocket(eve, "x") as peer:
        await peer.until(b"SESSION_READY")
        number = int(MOST_SAVED + EARNED_PER_S)
        began = trio.current_time()
        await peer.say(client_frame(PING) * (number - 1) + client_frame(PING, b"the last"))
        await peer.until(b"\x8a\x08the last")
        assert trio.current_time() - began >= 0.9
        await pair.talks(1)


@pytest.mark.parametrize(
    ("kind", "payload", "price"),
    [
        ("HEARTBEAT_PING", {}, PRICES[HeartbeatPing]),
        ("SYNC_REQUEST", {"last_sync_id": 0}, PRICES[SyncRequest]),
        ("PRESENCE_UPDATE", {"availability": "busy"}, 100),
        ("MESSAGE_ACK", {"status": "delivered", "message_id": 10**12}, REFUSED),
        ("MESSAGE_ACK", {"status": "delivered", "message_id": 1}, ACK),
        ("NO_SUCH_TYPE", {}, REFUSED),
    ],
)
async def test_frames_are_read_at_their_price(pair: Pair, eve: Person, kind: str, payload: dict[str, Any], price: float) -> None:
    number = int(MOST_SAVED / price)
    async with raw.websocket(eve, "x") as peer:
        await peer.until(b"SESSION_READY")
        began = trio.current_time()
        for at in range(number + int(EARNED_PER_S // price) + 1):
            await peer.say(frame(kind, f"{kind}-{at}", **payload))
        await peer.say(frame("HEARTBEAT_PING", "the-last"))
        await pair.talks(1)
        await peer.until(b'"the-last"')
        assert trio.current_time() - began >= 0.8


async def test_sends_of_one_user_on_all_devices_leave_room_in_the_line_for_others(server: Server, pair: Pair, eve: Person) -> None:
    mallory = await server.register("mallory")
    conversation_id = await server.pair(eve, mallory)
    most = 0
    async with trio.open_nursery() as nursery:

        async def flood(device: str) -> None:
            async with raw.websocket(eve, device) as peer:
                nursery.start_soon(peer.to_the_end, 60)
                for at in range(10_000):
                    said = {"conversation_id": conversation_id, "client_message_id": f"{device}-{at}", "content": "x" * 200}
                    await peer.say(frame("MESSAGE_SEND", **said))

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, server.house.writer.waiting)
                await trio.lowlevel.checkpoint()

        for number in range(5):
            nursery.start_soon(flood, f"device-{number}")
        nursery.start_soon(watch)
        await pair.talks(10)
        nursery.cancel_scope.cancel()
    assert 0 < most <= 64 + 1, "more of one user's sends were in line than a user may have open"


# -- what never becomes a message ------------------------------------------------------------------------------------------


async def test_empty_fragments_without_end_are_not_gathered_without_end(server: Server, pair: Pair, eve: Person) -> None:
    async with raw.websocket(eve, "x") as peer:
        await peer.until(b"SESSION_READY")
        began = trio.current_time()
        await peer.say(client_frame(TEXT, b"{", fin=False))
        await peer.pour(client_frame(CONTINUATION, fin=False) * 1_000, 300)
        await pair.talks()
        gathered = len(session_of(server, eve)._ws._message_parts)
        assert 0 < gathered <= MOST_SAVED + (trio.current_time() - began + 1) * EARNED_PER_S


async def test_a_text_in_pieces_with_control_frames_between_is_one_text(eve: Person) -> None:
    async with raw.websocket(eve, "x") as peer:
        await peer.until(b"SESSION_READY")
        text = b'{"type":"HEARTBEAT_PING","request_id":"in-pieces","payload":{}}'
        pieces = [client_frame(CONTINUATION, bytes([byte]), fin=False) + client_frame(PING, b"between") for byte in text[1:]]
        await peer.say(client_frame(TEXT, text[:1], fin=False) + b"".join(pieces) + client_frame(CONTINUATION))
        assert b"HEARTBEAT_PONG" in await peer.until(b'"in-pieces"')


@pytest.mark.parametrize(
    ("first", "unit"),
    [
        (b"", client_frame(TEXT, b"x" * 2**20)),
        (client_frame(TEXT, declared=2**40), b"x" * 65_536),
        (client_frame(TEXT, b"x" * 100_000, fin=False), client_frame(CONTINUATION, b"x" * 1_000, fin=False)),
    ],
    ids=["a mebibyte", "2^40 declared", "in fragments"],
)
async def test_too_much_for_one_message_is_1009_and_told_once(
    server: Server, pair: Pair, eve: Person, first: bytes, unit: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    async with raw.websocket(eve, "x") as peer, trio.open_nursery() as nursery:
        await peer.until(b"SESSION_READY")
        session = session_of(server, eve)
        await peer.say(first)
        nursery.start_soon(peer.pour, unit, 200)
        assert close_code(await peer.to_the_end()) == 1009
        assert sum(map(len, session._ws._message_parts)) <= MAX_FRAME_IN_BYTES
    await pair.talks(1)
    assert "a connection failed" not in capsys.readouterr().out


async def test_a_message_too_large_ends_without_a_reset_that_could_overtake_the_reason(pair: Pair, eve: Person) -> None:
    async with raw.websocket(eve, "x") as peer:
        await peer.until(b"SESSION_READY")
        await peer.say(client_frame(TEXT, b"x" * 2**19))
        assert close_code(await peer.to_the_end()) == 1009
        assert not peer.was_reset


async def test_who_goes_on_after_our_closing_frame_is_no_bug_of_ours(
    server: Server, pair: Pair, eve: Person, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    async with raw.websocket(eve, "x") as peer:
        await peer.until(b"SESSION_READY")
        session_of(server, eve).cut(Cut.RESTART)
        await peer.until(b"retry_after_ms=")
        await peer.pour(client_frame(PING) + frame("HEARTBEAT_PING") + client_frame(TEXT, b"x" * 2**18) + b"\xff" * 20, 20)
        await peer.to_the_end()
    assert "a connection failed" not in capsys.readouterr().out
    await pair.talks(1)


@pytest.mark.parametrize(
    "said",
    [
        b"\xc1\x80abcd",
        b"\xb1\x80abcd",
        b"\x83\x80abcd",
        b"\x8f\x80abcd",
        b"\x81\x01x",
        b"\x09\x80abcd",
        b"\x89\xfe\x01\x00abcd" + b"p" * 256,
        b"\x81\xfe\x00\x01abcdx",
        b"\x81\xff" + b"\xff" * 8 + b"abcd",
        client_frame(CONTINUATION, b"x"),
        client_frame(TEXT, b"x", fin=False) + client_frame(TEXT, b"y"),
        client_frame(TEXT, b"\xff"),
        client_frame(CLOSE, b"\x00"),
        client_frame(CLOSE, (0).to_bytes(2, "big")),
        client_frame(CLOSE, (1006).to_bytes(2, "big")),
        client_frame(CLOSE, (65535).to_bytes(2, "big")),
        client_frame(CLOSE, (1000).to_bytes(2, "big") + b"\xff"),
        client_frame(CLOSE, (1000).to_bytes(2, "big") + b"x" * 123),
    ],
    ids=lambda said: said[:12].hex(),
)
async def test_what_the_protocol_forbids_ends_the_connection_and_nothing_else(
    server: Server, pair: Pair, eve: Person, said: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    async with raw.websocket(eve, "x") as peer:
        await peer.until(b"SESSION_READY")
        capsys.readouterr()
        await peer.say(said)
        await peer.to_the_end()
    with trio.fail_after(5):
        while server.house.switchboard.is_here(UUID(eve.user_id)):
            await trio.sleep(0.01)
    assert "a connection failed" not in capsys.readouterr().out
    await pair.talks(1)


# -- depth -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
async def test_however_deep_a_frame_is_it_is_refused_and_never_a_bug(pair: Pair, eve: Person, opening: str, closing: str) -> None:
    async with raw.websocket(eve, "x") as peer:
        await peer.until(b"SESSION_READY")
        session = session_of(pair.one.person.server, eve)
        for depth in (100, 500, *range(860, 1000, 10), 5_000, 20_000):
            nested = opening * depth + "1" + closing * depth
            await peer.say(masked_text(b'{"type":"MESSAGE_SEND","payload":{"content":5,"x":%b}}' % nested.encode()))
            # Three that are no frames would end it, and each refusal is paid for.
            session._malformed_at.clear()
            session.pace._saved = MOST_SAVED
            await peer.until(b'"code":')
        session._malformed_at.clear()
        await peer.say(masked_text(b"[" * 100_000) + frame("HEARTBEAT_PING", "alive"))
        await peer.until(b'"alive"')
    await pair.talks(1)
