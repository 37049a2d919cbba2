"""Devices and their connections, as clients that know the protocol alone; each keeps a ledger of what it has and was told.

A `Device` outlives its connections: it has a store, a cursor and an outbox, comes back after each tear and repeats what is not
settled. Rule: a client does what protocol.md tells clients to do, and is as slow, forgetful and rude as that allows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode
from uuid import UUID

import msgspec
import trio

from tests.simulation.laws import SKIP_TO, Text
from tests.simulation.pipes import End

if TYPE_CHECKING:
    from tests.simulation.world import World

Frame = dict[str, Any]
REPEAT_AFTER_S = 30.0
CLOSE_CODES_FINE = {1000, 1001, 1005, 1006, 1012, 1013, 4408, 4409}


@dataclass(eq=False)
class Device:
    """`start`: what it is owed lies above this; `excused`: and above this, by a skip. `life`: counts the loss of its store."""

    world: World
    user_id: UUID
    name: str
    token: str
    chance: Random
    had: set[int] = field(default_factory=set)
    ever: set[int] = field(default_factory=set)
    said: set[str] = field(default_factory=set)
    outbox: dict[str, Text] = field(default_factory=dict)
    cursor: int | None = None
    start: int = 0
    excused: int = 0
    life: int = 0
    bound_life: int = 0
    is_known: bool = False
    skipped_at: int = 0
    confirming: str = "at once"
    trusts: bool = False
    offline_until: float = 0.0
    connection: Connection | None = None
    last_to_arrive: Connection | None = None
    older: list[Connection] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def __str__(self) -> str:
        return f"{self.world.history.name(self.user_id)}.{self.name}"

    def note(self, what: str) -> None:
        self.world.history.note(str(self), what)

    # -- its life -----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Connect, and again whenever that ends, until the world is over."""
        async with trio.open_nursery() as connections:
            pause_s = 0.05
            while not self.world.over:
                if self.offline_until > trio.current_time():
                    await trio.sleep_until(self.offline_until)
                self.older = [each for each in (*self.older, self.connection) if each is not None and each.is_open]
                connection = self.connection = Connection(self, next(self._numbers))
                connections.start_soon(connection.run)
                await connection.superseded.wait()
                pause_s = 0.05 if connection.is_ready else min(2.0, pause_s * 2)
                await trio.sleep(pause_s * self.chance.random())

    def ask(self) -> int | None:
        """The last_sync_id to connect with; None to let the server's own record speak."""
        if self.bound_life != self.life:
            return 0
        if self.cursor is None:
            return 0 if self.chance.random() < 0.3 else None
        return self.cursor if self.chance.random() < 0.6 else None

    def lose_store(self) -> None:
        """All that was received is gone; what is still to be sent is kept. Whoever calls this tells the server at once.

        What is queued is still to be sent, for a device that trusts in it too: the connection that said it gets no more than the ack.
        """
        self.note("loses its store")
        self.had.clear()
        texts = self.world.observer.texts.values()
        queued = {text.client_id for text in texts if text.device is self and text.is_trusted and text.verdict == "open"}
        self.said = set(self.outbox) | queued
        self.start = self.excused = self.cursor = 0
        self.life += 1

    def not_replaced(self) -> list[Connection]:
        """Older ones that a server still holds, though the newest is ready; what fell silent cannot be told."""
        newest = self.connection
        if newest is None or not newest.is_ready or newest is not self.last_to_arrive:
            return []
        return [each for each in self.older if each.is_open and each.is_ready and not each.is_unreachable]

    def may_be_silent(self) -> bool:
        """Whether nothing but its own silence would keep it from confirming."""
        connection = self.connection
        return connection is not None and connection.asleep_until <= trio.current_time() and not connection.rewinding

    # -- what it does, now and then -------------------------------------------------------------------------------------------

    def say(self, times: int) -> None:
        conversation_id = self.chance.choice(self.world.conversations_of(self.user_id))
        for _ in range(times):
            client_id = f"{self}-{len(self.world.observer.texts) + 1}"
            padding = "." * self.chance.choice((0, 0, 20, 400, 2000))
            text = Text(client_id, self, conversation_id, f"text {client_id} {padding}")
            self.world.observer.texts[client_id] = self.outbox[client_id] = text
            if self.connection is not None:
                self.connection.send_text(text)

    def act(self, action: str) -> None:
        """One of the things that devices do. Does not await."""
        connection = self.connection
        if action == "say":
            self.say(self.chance.choice((1, 1, 2, 3, 8)))
        elif action == "mute":
            self.confirming = self.chance.choice(("at once", "late", "never"))
            self.note(f"confirms {self.confirming}")
            if connection is not None:
                connection.wake.set()
        elif action == "go offline":
            self.offline_until = trio.current_time() + self.chance.uniform(0.2, 6.0)
            self.note("goes offline")
            if connection is not None:
                connection.tear()
        elif action == "lose store":
            if connection is not None and connection.is_ready and not connection.rewinding and self.chance.random() < 0.5:
                self.lose_store()
                connection.rewind(0)
            else:
                if connection is not None:
                    connection.tear()
                self.lose_store()
                self.replace()
        elif connection is not None and connection.is_ready:
            connection.act(action)

    def replace(self) -> None:
        """A new connection while the old one, perhaps, is still there."""
        if self.connection is not None:
            self.note("connects once more")
            self.connection.superseded.set()


class Connection:
    """One WebSocket. `position`: all that the user may see up to here has come, or was sent by itself."""

    def __init__(self, device: Device, number: int) -> None:
        self.device = device
        self.number = number
        self.world = device.world
        self.observer = device.world.observer
        self.is_ready = False
        self.is_live = False
        self.is_open = True
        self.is_unreachable = False
        self.superseded = trio.Event()
        self.wake = trio.Event()
        self.position = 0
        self.seen: set[int] = set()
        self.lowest_in_batches = SKIP_TO
        self.sent_here: set[str] = set()
        self.rewinding: dict[str, int] = {}
        self.to_confirm = 0
        self.confirmed = self.confirmed_ever = 0
        self.asleep_until = 0.0
        self._life = device.life
        self._is_wiped = False
        self._end: End | None = None
        self._out: list[bytes] = []
        self._repeat_at = 0.0
        self._rewinds = 0

    def __str__(self) -> str:
        return f"{self.device}#{self.number}"

    def note(self, what: str) -> None:
        self.world.history.note(str(self), what)

    def arrived(self) -> None:
        """A server has its request. One that was sent earlier may arrive later."""
        self.device.last_to_arrive = self

    # -- the socket ---------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        try:
            with trio.move_on_after(20.0) as patience:
                found = await self.world.dial(self)
                if found is None or not await self._upgrade(found):
                    return
            if patience.cancelled_caught:
                self.note("gives up connecting")
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                await self._read()
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            self.note("is torn")
        finally:
            self.is_open = False
            self.superseded.set()
            if self._end is not None:
                self._end.close()

    async def _upgrade(self, end: End) -> bool:
        device = self.device
        self._end = end
        # No await from here to the request's way: what is asked is what the device has now.
        asked = device.ask()
        self._asked = asked
        query = urlencode({"device_id": device.name, **({} if asked is None else {"last_sync_id": asked})})
        head = (
            f"GET /ws?{query} HTTP/1.1\r\nHost: uim\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nAuthorization: Bearer {device.token}\r\n\r\n"
        )
        self._life = device.life
        self.note(f"connects, last_sync_id {asked}")
        await end.send_all(head.encode())
        received = b""
        while b"\r\n\r\n" not in received:
            more = await end.receive_some(4096)
            if not more:
                self.note("is hung up on")
                return False
            received += more
        head_bytes, _, self._received = received.partition(b"\r\n\r\n")
        status = int(head_bytes.split()[1])
        if status not in (101, 503):
            self.observer.breaks("BUG", f"{self} was answered {status}")
        return status == 101

    async def _read(self) -> None:
        assert self._end is not None
        while True:
            while (frame := self._next_frame()) is not None:
                opcode, payload = frame
                if opcode == 1:
                    self._take(msgspec.json.decode(payload))
                elif opcode == 8:
                    self._closed(payload)
                    return
                elif opcode == 9:
                    self._queue(_client_frame(10, payload))
            if self.asleep_until > trio.current_time():
                await trio.sleep_until(self.asleep_until)
            received = await self._end.receive_some()
            if not received:
                self.note("reads the end")
                return
            self._received += received

    def _next_frame(self) -> tuple[int, bytes] | None:
        data = self._received
        if len(data) < 2:
            return None
        size, at = data[1], 2
        if size > 125:
            at = 4 if size == 126 else 10
            size = int.from_bytes(data[2:at], "big")
        if len(data) < at + size or len(data) < at:
            return None
        self._received = data[at + size :]
        return data[0] & 0x0F, data[at : at + size]

    def _closed(self, payload: bytes) -> None:
        code = int.from_bytes(payload[:2], "big") if payload else 1005
        self.note(f"is closed: {code} {payload[2:].decode()}")
        if code == 4409 and self.device.last_to_arrive is self and not self.superseded.is_set():
            self.observer.breaks("NEWEST", f"{self} is its device's newest connection, and was told that it is replaced")
        if code not in CLOSE_CODES_FINE:
            self.observer.breaks("BUG", f"{self} was closed with {code}")

    async def _write(self) -> None:
        """What is queued; confirmations in their time; repeats of what is not settled."""
        assert self._end is not None
        while True:
            if not self._out:
                self.wake = trio.Event()
                with trio.move_on_after(self._pause_s()):
                    await self.wake.wait()
            if self.device.confirming == "late" and self.to_confirm > self.confirmed:
                await trio.sleep(0.25 * self.device.chance.random())
            self._confirm()
            if self.is_ready and trio.current_time() >= self._repeat_at:
                self._repeat()
            queued, self._out = self._out, []
            if queued:
                try:
                    await self._end.send_all(b"".join(queued))
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return

    def _pause_s(self) -> float:
        return max(0.001, self._repeat_at - trio.current_time()) if self.is_ready else 5.0

    def _queue(self, data: bytes) -> None:
        self._out.append(data)
        self.wake.set()

    def send(self, kind: str, request_id: str | None = None, **payload: Any) -> None:
        frame: Frame = {"type": kind, "payload": payload}
        if request_id is not None:
            frame["request_id"] = request_id
        self._queue(_client_frame(1, msgspec.json.encode(frame)))

    def tear(self) -> None:
        if self._end is not None:
            self._end.tear()

    # -- what it says ---------------------------------------------------------------------------------------------------------

    def act(self, action: str) -> None:
        device = self.device
        if action == "ping":
            self.send("HEARTBEAT_PING")
        elif action == "tear":
            self.note("tears its connection")
            self.tear()
        elif action == "fall silent":
            self.note("falls silent: a hole in the network")
            assert self._end is not None
            self._end.fall_silent()
            self.is_unreachable = True
            self.superseded.set()
        elif action == "leave":
            self.note("leaves")
            self._queue(_client_frame(8, (1000).to_bytes(2, "big")))
        elif action == "sleep":
            self.asleep_until = trio.current_time() + device.chance.uniform(0.5, 8.0)
            self.note("stops reading for a while")
        elif action == "replace":
            device.replace()
        elif action == "rewind" and not self.rewinding and device.bound_life == device.life:
            self.rewind(device.chance.randint(device.start, max(device.start, self.position)))
            if device.chance.random() < 0.4:
                device.act("mute")
        elif action == "skip" and not self.rewinding and device.bound_life == device.life:
            self.rewind(SKIP_TO)
        elif action == "read" and device.had:
            at = device.chance.choice(sorted(device.had))
            row = self.observer.tables.log[at]
            self.send("MESSAGE_ACK", status="read", conversation_id=row.conversation_id, message_id=at)

    def rewind(self, to: int) -> None:
        self._rewinds += 1
        request_id = f"rewind-{self._rewinds}"
        self.rewinding[request_id] = to
        self._is_wiped = self._is_wiped or self._life != self.device.life
        self._life = self.device.life
        self.to_confirm = 0
        self.note(f"SYNC_REQUEST {to}")
        self.send("SYNC_REQUEST", request_id, last_sync_id=to)

    def send_text(self, text: Text) -> None:
        if self.is_ready:
            text.tries += 1
            text.on.append(str(self))
            text.sent_at = trio.current_time()
            self.device.said.add(text.client_id)
            self.sent_here.add(text.client_id)
            self.note(f"says {text.client_id} in {self.world.history.name(text.conversation_id)}")
            self.send(
                "MESSAGE_SEND",
                client_message_id=text.client_id, conversation_id=text.conversation_id, content=text.content,
            )  # fmt: skip

    def _repeat(self) -> None:
        self._repeat_at = trio.current_time() + REPEAT_AFTER_S
        for text in list(self.device.outbox.values()):
            self.send_text(text)

    def _confirm(self) -> None:
        # One that has lost its store knows no position before the answer to its SYNC_REQUEST.
        if self.device.confirming == "never" or self.to_confirm <= self.confirmed or self._is_lost():
            return
        self.confirmed = self.to_confirm
        self.confirmed_ever = max(self.confirmed_ever, self.confirmed)
        self.send("MESSAGE_ACK", status="delivered", message_id=self.to_confirm)

    def _is_lost(self) -> bool:
        return self._life != self.device.life or self._is_wiped

    # -- what it hears --------------------------------------------------------------------------------------------------------

    def _take(self, frame: Frame) -> None:
        kind, payload = frame["type"], frame["payload"]
        if kind == "SESSION_READY":
            self._ready(payload)
        elif kind == "SYNC_BATCH":
            self._batch(payload, frame.get("request_id"))
        elif kind == "MESSAGE_RECEIVE":
            if not self.is_live:
                self.observer.breaks("ORDER", f"{self} got {payload['message_id']} live before it had caught up")
            self.note(f"gets {payload['message_id']}")
            if payload["message_id"] <= self.position:
                self.observer.breaks("ORDER", f"{self} got {payload['message_id']} live when it was at {self.position}")
            self._entry(payload)
            self._reached(self.position)
        elif kind == "HEARTBEAT_PONG":
            self.note(f"PONG {payload['last_sync_id']}")
            if not self.rewinding:
                self._complete(payload["last_sync_id"])
                self._reached(self.position)
        elif kind == "MESSAGE_ACK":
            self._told(payload)
        elif kind == "ERROR":
            self._refused(payload)

    def _ready(self, payload: Frame) -> None:
        self.is_ready = True
        self.position = payload["last_sync_id"]
        self.note(f"SESSION_READY at {self.position}, {payload['behind']} behind")
        if self.device.cursor is None:
            self.device.cursor = self.position
        if self._asked is None and self._life == self.device.life:
            self.device.cursor = max(self.device.cursor, self.position)
        self.wake.set()

    def _batch(self, payload: Frame, request_id: str | None) -> None:
        ids = [entry["message_id"] for entry in payload["messages"]]
        self.note(f"batch {_shown(ids)} to {payload['next_sync_id']}{' more' if payload['has_more'] else ' live'}"
                  f"{f' for {request_id}' if request_id else ''}")  # fmt: skip
        if request_id in self.rewinding:
            to = self.rewinding.pop(request_id)
            # Where a later connection of the device has skipped since, the answer to this one's is of before that.
            begins_at = ids[0] - 1 if ids else payload["next_sync_id"]
            self.position = min(self.device.skipped_at, begins_at) if to == SKIP_TO else to
            self.seen.clear()
            self._is_wiped = False
            self.confirmed = self.to_confirm = 0
        if ids != sorted(ids):
            self.observer.breaks("ORDER", f"{self} got a batch {ids}")
        self.lowest_in_batches = min([self.lowest_in_batches, *ids])
        for entry in payload["messages"]:
            self._entry(entry)
        self._complete(payload["next_sync_id"])
        self._reached(max(self.position, payload["next_sync_id"]))
        self.to_confirm = max(self.to_confirm, payload["next_sync_id"])
        # After a resend the same again: what comes once more is confirmed once more.
        self.confirmed = min(self.confirmed, payload["next_sync_id"] - 1)
        self.is_live = not payload["has_more"]
        self.wake.set()

    def _entry(self, entry: Frame) -> None:
        """An entry that came, in a batch or live."""
        at, device = entry["message_id"], self.device
        row = self.observer.tables.log.get(at)
        if row is None:
            self.observer.breaks("LEAK", f"{self} got {at}, which nobody has committed")
            return
        if at not in self.observer.visible(device.user_id, at - 1, at):
            self.observer.breaks("LEAK", f"{self} got {self.observer.row(row)} from outside its stays")
        if (entry["content"], entry["seq"], entry["conversation_id"]) != (row.content, row.seq, str(row.conversation_id)):
            self.observer.breaks("LOSS", f"{self} got {at} as {entry}, it is {row}")
        if at not in self.seen and row.client_message_id not in self.sent_here:
            if at <= self.position:
                self.observer.breaks("ORDER", f"{self} got {at} when it was at {self.position}")
            self._complete(at - 1)
        self.position = max(self.position, at)
        self.seen.add(at)
        if self._life == device.life:
            device.had.add(at)
        device.ever.add(at)
        self.to_confirm = max(self.to_confirm, at)
        self.confirmed = min(self.confirmed, at - 1)
        self.wake.set()

    def _complete(self, up_to: int) -> None:
        """Everything up to there has come, it is said."""
        if up_to <= self.position:
            return
        missing = [
            at
            for at in self.observer.visible(self.device.user_id, self.position, up_to)
            if at not in self.seen and self.observer.tables.log[at].client_message_id not in self.sent_here
        ]
        if missing:
            self.observer.breaks("GAP", f"{self} was told {up_to}, but it has not got {missing}")
        self.position = up_to

    def _reached(self, position: int) -> None:
        if not self._is_lost() and not self.rewinding and self.device.cursor is not None:
            self.device.cursor = max(self.device.cursor, position)

    def _told(self, payload: Frame) -> None:
        if payload["status"] == "sent":
            text = self.observer.texts[payload["client_message_id"]]
            self.note(f"is told that {text.client_id} is {payload['message_id']}{' again' if payload['duplicate'] else ''}")
            self.observer.told_sent(text, payload)
            self.device.outbox.pop(text.client_id, None)
        elif payload["status"] == "queued":
            self.note(f"is told that {payload['client_message_id']} is queued")
            self._queued(self.observer.texts[payload["client_message_id"]])
        else:
            self.observer.told_receipts(UUID(payload["conversation_id"]), payload["status"], payload["receipts"])

    def _queued(self, text: Text) -> None:
        """Half of the devices rely on that word: they would lose their outbox now, and nobody would repeat."""
        text.queued_at = text.queued_at or self.observer.tables.last_id
        if text.verdict == "open" and text.client_id in self.device.outbox and self.device.trusts:
            text.is_trusted = True
            del self.device.outbox[text.client_id]
        self.world.queued()

    def _refused(self, payload: Frame) -> None:
        code, client_id = payload["code"], payload.get("client_message_id")
        self.note(f"ERROR {code} {client_id or ''} {payload['message']}")
        if code == "unavailable":
            self._repeat_at = min(self._repeat_at, trio.current_time() + payload.get("retry_after", 2.0))
            self.wake.set()
        elif client_id is not None and code in ("not_found", "forbidden", "blocked"):
            text = self.observer.texts[client_id]
            if text.verdict == "open":
                text.verdict = "refused"
                text.is_trusted = False
            self.device.outbox.pop(client_id, None)
        elif code != "not_found":
            self.observer.breaks("BUG", f"{self} was told {payload}")


def _client_frame(opcode: int, payload: bytes) -> bytes:
    size = len(payload)
    head = bytes((0x80 | opcode,))
    if size < 126:
        return head + bytes((0x80 | size,)) + bytes(4) + payload
    if size < 65536:
        return head + b"\xfe" + size.to_bytes(2, "big") + bytes(4) + payload
    return head + b"\xff" + size.to_bytes(8, "big") + bytes(4) + payload


def _shown(ids: list[int]) -> str:
    return str(ids) if len(ids) < 4 else f"[{ids[0]} … {ids[-1]}, {len(ids)}]"
