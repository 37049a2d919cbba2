"""A device as a good client is: a store, a cursor, an outbox, and one connection after the other.

It follows the protocol to the letter: its cursor moves by MESSAGE_RECEIVE, next_sync_id and PONG alone; it confirms; what it has
written is kept, and sent again under the same ids in the same order, until `sent` or a refusal (`queued` is not final); it comes
back as the close code says, with jitter. Rule: everything it hears goes into the ledger, and it judges nothing but what no
server may ever say.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

import msgspec
import trio

from tests.faults.accounts import SignedIn, Unanswered, entry_of
from tests.faults.ledger import Ledger, Text
from tests.faults.wire import Closed, Rejected, Wire, open_wire

CONNECT_WITHIN_S = 5.0
TICK_S = 0.05
CONFIRM_AFTER_S = 0.25
CONFIRM_ENTRIES = 100
PING_EVERY_S = 1.0
# A server that says nothing for so long, pings and all, is taken for dead.
SILENCE_S = 20.0
REPEAT_QUEUED_S = 30.0
OPEN_SENDS = 8
# The protocol says 0.5 to 30 s; nobody waits that long for a test.
MOST_BACKOFF_S = 1.0
COME_BACK = {1001, 1006, 1011, 1012, 1013, 4408}


class Device:
    """`run` is its life. `on_sent()` is called at each text that is acknowledged as sent, without awaiting."""

    def __init__(
        self,
        person: SignedIn,
        ledger: Ledger,
        ports: Sequence[int],
        rng: random.Random,
        *,
        on_sent: Callable[[], None],
        forgets_queued: bool = False,
    ) -> None:
        self.person = person
        self.name = f"{person.username}/{person.device_id}"
        self.outbox: dict[str, Text] = {}
        self.cursor = 0
        self.is_live = False
        self.connections = 0
        self._ledger = ledger
        self._ports = ports
        self._rng = rng
        self._on_sent = on_sent
        self._forgets_queued = forgets_queued
        self._written = 0
        self._attempts = 0
        self._epoch: object = None
        self._hang_up()

    def _hang_up(self) -> None:
        """Forget what belonged to a connection."""
        self.is_live = False
        self._frames: list[bytes] = []
        self._wake = trio.Event()
        self._said: set[str] = set()
        self._wait_until = 0.0
        self._queued_at = self._pinged_at = self._heard_at = trio.current_time()
        self._to_confirm = self._unconfirmed = 0
        self._unconfirmed_since = 0.0

    # -- what its user does -----------------------------------------------------------------------------------------------

    def write(self, conversation_id: str, words: str) -> None:
        """A text into the outbox; it goes out as soon as it can."""
        self._written += 1
        client_id = f"{self.name}-{self._written}"
        text = Text(client_id, conversation_id, self.person.user_id, self.name, self._written, f"{client_id}: {words}")
        self._ledger.wrote(text)
        self.outbox[client_id] = text
        self._speak()

    def ping(self) -> None:
        if self.is_live:
            self._pinged_at = trio.current_time()
            self._push("HEARTBEAT_PING", {})

    # -- one connection after the other -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled: connected, or on its way back."""
        while True:
            self._hang_up()
            await trio.sleep(await self._connection())

    async def _connection(self) -> float:
        """One connection, from its opening to its end; how long to wait before the next."""
        path = f"/ws?device_id={quote(self.person.device_id)}&last_sync_id={self.cursor}"
        try:
            with trio.fail_after(CONNECT_WITHIN_S):
                wire = await open_wire(self._rng.choice(self._ports), path, self.person.token)
        except Rejected as rejected:
            return await self._after_rejection(rejected)
        except (OSError, Closed, trio.TooSlowError):
            return self._backoff_s()
        self.connections += 1
        try:
            return self._after_close(await self._talk(wire))
        finally:
            await wire.hang_up()

    async def _talk(self, wire: Wire) -> Closed:
        self._heard_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, wire)
            nursery.start_soon(self._tick, nursery.cancel_scope)
            closed = await self._hear(wire)
            nursery.cancel_scope.cancel()
            return closed
        return Closed(1006, "silent")

    async def _hear(self, wire: Wire) -> Closed:
        while True:
            try:
                payloads = await wire.receive()
            except Closed as closed:
                return closed
            self._heard_at = trio.current_time()
            for payload in payloads:
                frame = msgspec.json.decode(payload)
                HEARD.get(frame["type"], Device._ignore)(self, frame["payload"])
            self._speak()

    async def _send(self, wire: Wire) -> None:
        while True:
            if not self._frames:
                self._wake = trio.Event()
                await self._wake.wait()
            frames, self._frames = self._frames, []
            await wire.send(frames)

    async def _tick(self, connection: trio.CancelScope) -> None:
        """Confirming, pinging, repeating what is queued; and giving up a server that says nothing."""
        while True:
            await trio.sleep(TICK_S)
            now = trio.current_time()
            if now - self._heard_at > SILENCE_S:
                connection.cancel()
            if self._unconfirmed and now - self._unconfirmed_since >= CONFIRM_AFTER_S:
                self._confirm()
            if now - self._pinged_at >= PING_EVERY_S:
                self.ping()
            if now - self._queued_at >= REPEAT_QUEUED_S:
                self._queued_at = now
                self._said -= {client_id for client_id, text in self.outbox.items() if text.state == "queued"}
            self._speak()

    # -- saying -----------------------------------------------------------------------------------------------------------

    def _push(self, kind: str, payload: dict[str, Any]) -> None:
        self._frames.append(msgspec.json.encode({"type": kind, "payload": payload}))
        self._wake.set()

    def _speak(self) -> None:
        """What is in the outbox and was not said on this connection, in order, while few are open."""
        if not self.is_live or trio.current_time() < self._wait_until:
            return
        still_open = sum(self.outbox[client_id].state == "open" for client_id in self._said)
        for client_id, text in self.outbox.items():
            if still_open >= OPEN_SENDS:
                return
            if client_id not in self._said:
                still_open += 1
                self._said.add(client_id)
                said = {"conversation_id": text.conversation_id, "client_message_id": client_id, "content": text.content}
                self._push("MESSAGE_SEND", said)

    def _confirm(self) -> None:
        self._push("MESSAGE_ACK", {"status": "delivered", "message_id": self._to_confirm})
        self._unconfirmed = 0

    def _owe(self, message_id: int, entries: int) -> None:
        if not self._unconfirmed:
            self._unconfirmed_since = trio.current_time()
        self._to_confirm = max(self._to_confirm, message_id)
        self._unconfirmed += entries
        if self._unconfirmed >= CONFIRM_ENTRIES:
            self._confirm()

    # -- hearing ----------------------------------------------------------------------------------------------------------

    def _ready(self, said: dict[str, Any]) -> None:
        if self._epoch is not None and said["epoch"] != self._epoch:
            self._ledger.note(f"{self.name}: another epoch: {self._epoch} became {said['epoch']}")
        self._epoch = said["epoch"]

    def _batch(self, said: dict[str, Any]) -> None:
        for message in said["messages"]:
            self._ledger.came(self.name, entry_of(message))
        if said.get("truncated"):
            self._ledger.note(f"{self.name}: a batch says that entries are gone")
        self.cursor = max(self.cursor, said["next_sync_id"])
        self._owe(said["next_sync_id"], CONFIRM_ENTRIES)
        self.is_live = not said["has_more"]
        if self.is_live:
            self._attempts = 0

    def _receive(self, message: dict[str, Any]) -> None:
        if not self.is_live:
            self._ledger.note(f"{self.name}: message {message['message_id']} came live before the last batch")
        self._ledger.came(self.name, entry_of(message))
        self.cursor = max(self.cursor, message["message_id"])
        self._owe(message["message_id"], 1)

    def _pong(self, said: dict[str, Any]) -> None:
        self.cursor = max(self.cursor, said["last_sync_id"])

    def _ack(self, said: dict[str, Any]) -> None:
        client_id = said.get("client_message_id")
        if said["status"] == "sent":
            self._ledger.sent(client_id, said["message_id"], said["seq"], duplicate=said["duplicate"])
            self._done_with(client_id)
            self._on_sent()
        elif said["status"] == "queued":
            self._ledger.queued(client_id)
            if self._forgets_queued and client_id in self.outbox:
                self.outbox[client_id].forgotten = True
                self._done_with(client_id)

    def _error(self, said: dict[str, Any]) -> None:
        client_id = said.get("client_message_id")
        if client_id is None:
            self._ledger.note(f"{self.name}: ERROR {said}")
        elif said["code"] == "unavailable":
            self._ledger.put_off(client_id)
            self._said.discard(client_id)
            self._wait_until = trio.current_time() + float(said.get("retry_after") or self._rng.uniform(0.1, 0.5))
        else:
            self._ledger.refused(client_id, said["code"])
            self._done_with(client_id)

    def _ignore(self, said: dict[str, Any]) -> None:
        """Receipts, presence, profiles, typing: not what is judged here."""

    def _done_with(self, client_id: str) -> None:
        self.outbox.pop(client_id, None)
        self._said.discard(client_id)

    # -- coming back ------------------------------------------------------------------------------------------------------

    def _backoff_s(self) -> float:
        """Full jitter."""
        self._attempts += 1
        return self._rng.uniform(0.0, min(MOST_BACKOFF_S, 0.1 * 2**self._attempts))

    def _after_close(self, closed: Closed) -> float:
        self._ledger.counts[f"closed {closed.code}"] += 1
        if closed.code == 1011 or closed.code not in COME_BACK:
            self._ledger.note(f"{self.name} was closed with {closed.code}: {closed.reason}")
        if closed.code in (1012, 1013) and closed.reason.startswith("retry_after_ms="):
            return int(closed.reason.partition("=")[2]) / 1000
        return self._backoff_s()

    async def _after_rejection(self, rejected: Rejected) -> float:
        """A client that is not let in asks who it is, and acts on the answer."""
        if rejected.status == 401:
            try:
                await self.person.call("GET", "/api/users/me")
            except Unanswered as lost:
                self._ledger.note(f"{self.name} may not come in any more: {rejected}; {lost}")
        elif rejected.status != 503:
            self._ledger.note(f"{self.name} was rejected: {rejected}")
        return self._backoff_s()


HEARD: dict[str, Callable[[Device, dict[str, Any]], None]] = {
    "SESSION_READY": Device._ready,
    "SYNC_BATCH": Device._batch,
    "MESSAGE_RECEIVE": Device._receive,
    "HEARTBEAT_PONG": Device._pong,
    "MESSAGE_ACK": Device._ack,
    "ERROR": Device._error,
}
