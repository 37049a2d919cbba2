"""Devices under load: one that talks with a window of open sends, one that listens and confirms as the protocol advises.

Rule: what a device is told is kept (acks, arrivals), so that after a run it can be said that nothing acknowledged was lost,
doubled or out of order.
"""

from __future__ import annotations

from array import array
from collections import deque
from typing import Final

import msgspec

from loadtest.frames import Torn, masked_text
from loadtest.target import Broken

CONFIRM_ENTRIES: Final = 100
CONFIRM_AFTER_NS: Final = 250_000_000
# Leads each text: when it was sent, by this process's clock.
TIME_DIGITS: Final = 20
# What a MESSAGE_SEND has besides its text.
FRAME_AROUND_TEXT_BYTES: Final = 150


class _Receipt(msgspec.Struct):
    message_id: int


class _Entry(msgspec.Struct):
    """`client_message_id`: only its sender is told it."""

    message_id: int
    message_type: str
    content: str
    client_message_id: str = ""


class _Payload(msgspec.Struct):
    status: str = ""
    message_id: int = 0
    message_type: str = ""
    content: str = ""
    client_message_id: str = ""
    code: str = ""
    message: str = ""
    receipts: list[_Receipt] = []
    messages: list[_Entry] = []
    next_sync_id: int = 0
    has_more: bool = False


class _Frame(msgspec.Struct):
    type: str
    payload: _Payload


_decode: Final = msgspec.json.Decoder(_Frame).decode


class Listener:
    """A device that takes what comes and confirms once per 100 entries or 250 ms.

    `arrived`: message ids of others' texts in the order in which they came; what comes again in a page counts in `repeats`.
    `latencies_ns`: from send to arrival, while `is_measured`: of texts in pages too, for whom the server cannot keep up with it
    serves from its cursor, and those are the late ones.
    """

    def __init__(self) -> None:
        self.is_live = False
        self.is_measured = False
        self.arrived: array[int] = array("q")
        self.latencies_ns: array[int] = array("q")
        self.repeats = 0
        self._newest = 0
        self._position = 0
        self._unconfirmed = 0
        self._oldest_ns = 0

    def take(self, payloads: list[bytes], now_ns: int) -> bytes:
        for payload in payloads:
            self.hear(_decode(payload), now_ns)
        return self._confirm() if self._unconfirmed >= CONFIRM_ENTRIES else b""

    def hear(self, frame: _Frame, now_ns: int) -> None:
        """One frame; what it brings counts as unconfirmed."""
        said = frame.payload
        if frame.type == "MESSAGE_RECEIVE":
            # What is sent again comes in pages.
            if said.message_id <= self._newest:
                raise Broken(f"message {said.message_id} came live after {self._newest}: twice, or out of order")
            self._store(said, now_ns)
            self._owes(said.message_id, 1, now_ns)
        elif frame.type == "SYNC_BATCH":
            for entry in said.messages:
                self._store(entry, now_ns)
            self.is_live = not said.has_more
            # At once: the server waits for it before it sends the fifth page.
            self._owes(said.next_sync_id, CONFIRM_ENTRIES, now_ns)
        elif frame.type == "ERROR":
            raise Torn(f"refused: {said.code}: {said.message}")

    def time(self, message_id: int, took_ns: int) -> None:
        """A text has come, so long after it was sent or due."""
        self.latencies_ns.append(took_ns)

    def tick(self, now_ns: int) -> bytes:
        return self._confirm() if self._unconfirmed and now_ns - self._oldest_ns >= CONFIRM_AFTER_NS else b""

    def _store(self, entry: _Entry | _Payload, now_ns: int) -> None:
        if entry.message_id <= self._newest:
            self.repeats += 1
            return
        self._newest = entry.message_id
        # One's own has its ack; where others' texts are sent again, it comes among them.
        if entry.message_type == "text" and not entry.client_message_id:
            self.arrived.append(entry.message_id)
            if self.is_measured:
                self.time(entry.message_id, now_ns - int(entry.content[:TIME_DIGITS]))

    def _owes(self, message_id: int, entries: int, now_ns: int) -> None:
        if not self._unconfirmed:
            self._oldest_ns = now_ns
        self._unconfirmed += entries
        self._position = message_id

    def _confirm(self) -> bytes:
        self._unconfirmed = 0
        return masked_text(b'{"type":"MESSAGE_ACK","payload":{"status":"delivered","message_id":%d}}' % self._position)


class Talker(Listener):
    """A device that keeps `window` sends open in one conversation until `stop`: each ack lets the next one go.

    `acknowledged`: message ids of its own texts, as acked. `delivered_up_to`: the newest of them that a receipt covers.
    `acks_ns`: from send to ack, while `is_measured`. With a window of 0 it speaks only when it is told to (`say`).
    """

    def __init__(self, conversation_id: str, name: str, *, window: int, text_bytes: int) -> None:
        super().__init__()
        self.acknowledged: array[int] = array("q")
        self.acks_ns: array[int] = array("q")
        self.delivered_up_to = 0
        self._window = window
        self._number = 0
        # Times of those that are not acked; acks come in the order of sending.
        self._open: deque[int] = deque()
        self._is_talking = False
        # Two gaps are left to fill: the client's own id, and the time that leads the content.
        self._text = (
            b'{"type":"MESSAGE_SEND","payload":{"conversation_id":"%b","client_message_id":"%b-%%08d","content":"%%020d%b"}}'
            % (conversation_id.encode(), name.encode(), b"x" * (text_bytes - TIME_DIGITS))
        )

    def talk(self) -> None:
        """Begin at the next tick."""
        self._is_talking = True

    def stop(self) -> None:
        self._is_talking = False

    def is_done(self) -> bool:
        """Whether all that was sent is acked, and told as delivered to somebody."""
        return not self._open and (not self.acknowledged or self.delivered_up_to >= self.acknowledged[-1])

    def take(self, payloads: list[bytes], now_ns: int) -> bytes:
        said = super().take(payloads, now_ns)
        return said + self._talk_on(now_ns)

    def tick(self, now_ns: int) -> bytes:
        return super().tick(now_ns) + self._talk_on(now_ns)

    def hear(self, frame: _Frame, now_ns: int) -> None:
        if frame.type != "MESSAGE_ACK":
            super().hear(frame, now_ns)
        elif frame.payload.status == "sent":
            self.acknowledged.append(frame.payload.message_id)
            sent_ns = self._open.popleft()
            if self.is_measured:
                self.acks_ns.append(now_ns - sent_ns)
        elif frame.payload.status == "delivered":
            newest = max(receipt.message_id for receipt in frame.payload.receipts)
            self.delivered_up_to = max(self.delivered_up_to, newest)

    def say(self, now_ns: int) -> bytes:
        """One text, of that time: that of sending, or when it was due."""
        self._open.append(now_ns)
        self._number += 1
        return masked_text(self._text % (self._number, now_ns))

    def _talk_on(self, now_ns: int) -> bytes:
        said = b""
        while self._is_talking and len(self._open) < self._window:
            said += self.say(now_ns)
        return said


class Echoed:
    """Frames as large as a talker's, to a server that only sends them back; each that comes lets the next one go."""

    def __init__(self, *, window: int, text_bytes: int) -> None:
        self.echoes = 0
        self._window = window
        self._has_begun = False
        self._frame = masked_text(b"x" * (text_bytes + FRAME_AROUND_TEXT_BYTES))

    def take(self, payloads: list[bytes], now_ns: int) -> bytes:
        self.echoes += len(payloads)
        return self._frame * len(payloads)

    def tick(self, now_ns: int) -> bytes:
        if self._has_begun:
            return b""
        self._has_begun = True
        return self._frame * self._window
