"""What is no frame at all: told twice, closed at the third within 60 s; too big: closed at once; in pieces: as good as whole."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Message, Ping, Request, TextMessage

from tests.house import WAIT_S, Device
from tests.refusals.frames import Speaker
from tests.refusals.world import World
from uim.errors import Cut

pytestmark = pytest.mark.timeout(60)

MAX_FRAME_BYTES = 128 * 1024
PING = '{"type":"HEARTBEAT_PING","payload":{},"request_id":"r"}'

# With the request_id that the answer should give back.
NO_FRAMES: list[tuple[str | bytes, str | None]] = [
    ("", None), (" ", None), ("x", None), ("{", None), ("[]", None), ("null", None), ("1", None), ('"x"', None), ("{}", None),
    (PING + "x", None), (PING + PING, None), ("[" * 60_000, None), ('{"a":' * 20_000, None),
    ('{"type":"HEARTBEAT_PING","payload":{},"timestamp":NaN}', None),
    ('{"type":"HEARTBEAT_PING","payload":{},"timestamp":' + "[" * 5_000 + "]" * 5_000 + "}", None),
    ('{"type":"HEARTBEAT_PING"}', None), ('{"payload":{}}', None), ('{"request_id":"r"}', "r"),
    ('{"type":1,"payload":{},"request_id":"r"}', "r"), ('{"type":null,"payload":{},"request_id":"r"}', "r"),
    ('{"type":"MESSAGE_SEND","payload":[],"request_id":"r"}', "r"), ('{"type":"x","payload":null,"request_id":"r"}', "r"),
    (b"", None), (PING.encode(), None), (b"\xff\xfe", None),
]  # fmt: skip


async def say(device: Device, what: str | bytes) -> None:
    await (device.send_bytes(what) if isinstance(what, bytes) else device.send_text(what))


async def test_third_malformed_frame_closes_whatever_they_are(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    for what, request_id in NO_FRAMES:
        device = await world.alice.connect("laptop")
        for _ in range(2):
            await say(device, what)
            error = await device.expect("ERROR")
            assert error["payload"]["code"] == "bad_request", (what[:40], error)
            assert error.get("request_id") == request_id, (what[:40], error)
            await device.roundtrip()
        assert not any(frame["type"] == "ERROR" for frame in device.frames), "one answer each"
        await say(device, what)
        await device.closing(Cut.BAD_FRAMES)
    assert "Traceback" not in capsys.readouterr().out


async def test_validation_errors_and_unknown_types_never_count(world: World) -> None:
    speaker = Speaker(await world.alice.connect("laptop"))
    for _ in range(2):
        assert await speaker.fault("{", "bad_request", None, request_id=None) is None
    for number in range(20):
        unknown = json.dumps({"type": f"TYPE_{number}", "payload": {}, "request_id": "r"})
        assert await speaker.fault(unknown, "bad_request", "type", request_id="r") is None
        invalid = json.dumps({"type": "SYNC_REQUEST", "payload": {"last_sync_id": -number - 1}, "request_id": "r"})
        assert await speaker.fault(invalid, "validation_failed", "last_sync_id", request_id="r") is None
    await speaker.device.send_bytes(b"\0")
    await speaker.device.closing(Cut.BAD_FRAMES)
    assert (await world.alice.connect("laptop")).is_live, "and may come again"


# -- by hand ----------------------------------------------------------------------------------------------------------------


class ByHand:
    """A WebSocket client that can send what no good client would. `data` is what wsproto would say; `raw` is said as it is."""

    def __init__(self, stream: trio.SocketStream, ws: WSConnection) -> None:
        self._stream = stream
        self._ws = ws
        self._events: list[object] = []
        self._text = ""

    async def raw(self, data: bytes) -> None:
        # It may hang up while we are talking; what it said before is still to be read.
        with suppress(trio.BrokenResourceError):
            await self._stream.send_all(data)

    async def pieces(self, pieces: list[str | bytes]) -> None:
        """One message in that many frames, in one write."""
        kind: type[Message[Any]] = BytesMessage if isinstance(pieces[0], bytes) else TextMessage
        last = len(pieces) - 1
        await self.raw(b"".join(self._ws.send(kind(data=piece, message_finished=at == last)) for at, piece in enumerate(pieces)))

    async def next(self) -> object:
        """The next whole text, or the closing frame; other events are passed over. None: hung up without a word."""
        while True:
            while self._events:
                event = self._events.pop(0)
                if isinstance(event, TextMessage):
                    self._text += event.data
                    if event.message_finished:
                        whole, self._text = self._text, ""
                        return whole
                elif isinstance(event, CloseConnection | AcceptConnection):
                    return event
            received = bytes(await self._stream.receive_some())
            if not received:
                return None
            self._ws.receive_data(received)
            self._events += list(self._ws.events())

    async def until(self, kind: str) -> dict[str, object]:
        """The next frame of that type."""
        with trio.fail_after(WAIT_S):
            while isinstance(found := await self.next(), str):
                frame: dict[str, object] = json.loads(found)
                if frame["type"] == kind:
                    return frame
        raise AssertionError(f"{found} while waiting for {kind}")

    async def close_code(self) -> int | None:
        with trio.fail_after(WAIT_S):
            while isinstance(found := await self.next(), str):
                pass
        return int(found.code) if isinstance(found, CloseConnection) else None


@asynccontextmanager
async def by_hand(world: World) -> AsyncIterator[ByHand]:
    stream = await trio.open_tcp_stream(*world.server.running.addresses[0])
    ws = WSConnection(ConnectionType.CLIENT)
    async with stream:
        bearer = [(b"Authorization", b"Bearer " + world.bearer.encode())]
        await stream.send_all(ws.send(Request(host="x", target="/ws?device_id=hand", extra_headers=bearer)))
        client = ByHand(stream, ws)
        with trio.fail_after(WAIT_S):
            assert isinstance(await client.next(), AcceptConnection)
        await client.until("SYNC_BATCH")
        yield client


def padded(size: int, filler: str = "x") -> str:
    """A ping of exactly that many bytes of UTF-8, for one whose filler divides it."""
    head, tail = '{"type":"HEARTBEAT_PING","payload":{},"timestamp":"', '"}'
    room = size - len(head) - len(tail)
    wide = len(filler.encode())
    return head + "x" * (room % wide) + filler * (room // wide) + tail


async def test_frame_over_128_kib_of_bytes_closes(world: World) -> None:
    for filler in ("x", "é", "\u20ac", "\N{SLIGHTLY SMILING FACE}"):
        most, over = padded(MAX_FRAME_BYTES, filler), padded(MAX_FRAME_BYTES + 1, filler)
        assert len(most.encode()) == MAX_FRAME_BYTES and len(over.encode()) == MAX_FRAME_BYTES + 1
        async with by_hand(world) as client:
            await client.pieces([most])
            await client.until("HEARTBEAT_PONG")
            await client.pieces([over])
            assert await client.close_code() == 1009
        async with by_hand(world) as client:
            await client.pieces([over[at : at + 9_000] for at in range(0, len(over), 9_000)])
            assert await client.close_code() == 1009, "in pieces too"


async def test_much_too_big_frames_close_too_binary_and_endless(world: World) -> None:
    for pieces in ([b"x" * (MAX_FRAME_BYTES + 1)], ["x" * 400_000], ["x" * 1_000] * 400, [b"x" * 60_000] * 4):
        async with by_hand(world) as client:
            await client.pieces(list(pieces))
            assert await client.close_code() == 1009
    async with by_hand(world) as client:
        # Its head alone announces 2^40 bytes.
        await client.raw(b"\x81\xff" + (2**40).to_bytes(8, "big") + b"\0\0\0\0" + b"x" * 200_000)
        assert await client.close_code() == 1009


async def test_frames_in_pieces_are_as_good_as_whole(world: World) -> None:
    text = '{"type":"HEARTBEAT_PING","payload":{},"request_id":"\N{SLIGHTLY SMILING FACE}é"}'
    async with by_hand(world) as client:
        await client.pieces(list(text))
        assert (await client.until("HEARTBEAT_PONG"))["request_id"] == "\N{SLIGHTLY SMILING FACE}é"
        data, head = text.encode(), [b"\x01"] + [b"\x00"] * (len(text.encode()) - 2) + [b"\x80"]
        # Byte by byte, so that a character lies in two frames; a ping of the protocol's own between them.
        await client.raw(
            b"".join(first + b"\x81\0\0\0\0" + data[at : at + 1] + b"\x89\x80\0\0\0\0" for at, first in enumerate(head))
        )
        assert (await client.until("HEARTBEAT_PONG"))["request_id"] == "\N{SLIGHTLY SMILING FACE}é"
        await client.raw(client._ws.send(Ping(b"are you there")))
        await client.pieces(["", PING, ""])
        assert (await client.until("HEARTBEAT_PONG"))["request_id"] == "r"


# With the code that RFC 6455 has for it. Trio-websocket hangs up without saying it, which the client sees as 1006: also an end.
NO_WEBSOCKET = {
    "not UTF-8": (b"\x81\x82\0\0\0\0\xff\xfe", 1007),
    "half of a surrogate pair": (b"\x81\x83\0\0\0\0\xed\xa0\x80", 1007),
    "not masked": (b"\x81\x02{}", 1002),
    "an unknown opcode": (b"\x83\x80\0\0\0\0", 1002),
    "a reserved bit": (b"\xc1\x82\0\0\0\0{}", 1002),
    "nothing to continue": (b"\x80\x82\0\0\0\0{}", 1002),
    "a ping in pieces": (b"\x09\x80\0\0\0\0", 1002),
    "a big ping": (b"\x89\xfe\x00\x80\0\0\0\0" + b"x" * 128, 1002),
    "a text within a text": (b"\x01\x81\0\0\0\0{\x81\x81\0\0\0\0}", 1002),
    "half a close code": (b"\x88\x81\0\0\0\0\x03", 1002),
}


async def test_what_is_no_websocket_ends_that_connection_alone(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    other = await world.alice.connect("laptop")
    for what, (data, code) in NO_WEBSOCKET.items():
        async with by_hand(world) as client:
            await client.raw(data)
            assert await client.close_code() in (code, None), what
        await other.roundtrip()
    assert "Traceback" not in capsys.readouterr().out
