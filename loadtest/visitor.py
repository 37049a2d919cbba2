"""A device that comes, catches up, stays or goes, and comes again: what it was told is kept, so that what is lost can be said.

It goes on from the last entry that it stored, confirms as the protocol advises, and repeats what it sent and was not told the place
of. Rule: nothing here touches a socket or a clock; visits.py does.
"""

from __future__ import annotations

from array import array
from typing import Final

import msgspec

from loadtest.frames import Torn, masked_text
from loadtest.target import Broken

CONFIRM_ENTRIES: Final = 100
TIME_DIGITS: Final = 20
PING: Final = masked_text(b'{"type":"HEARTBEAT_PING","payload":{}}')


class _Entry(msgspec.Struct):
    """`client_message_id`: only its sender is told it."""

    message_id: int
    message_type: str
    content: str = ""
    client_message_id: str = ""


class _Payload(msgspec.Struct):
    status: str = ""
    message_id: int = 0
    message_type: str = ""
    content: str = ""
    client_message_id: str = ""
    code: str = ""
    message: str = ""
    messages: list[_Entry] = []
    next_sync_id: int = 0
    has_more: bool = False


class _Frame(msgspec.Struct):
    type: str
    payload: _Payload


_decode: Final = msgspec.json.Decoder(_Frame).decode


class Talk:
    """A conversation as the generator knows it. `acknowledged`: ids of its texts, as they were told to who said them."""

    __slots__ = ("acknowledged", "conversation_id")

    def __init__(self, conversation_id: str) -> None:
        self.conversation_id = conversation_id
        self.acknowledged: array[int] = array("q")


class Open:
    """A text that was sent and whose place is not known yet. `since_ns`: when it was due."""

    __slots__ = ("frame", "is_repeated", "since_ns", "talk")

    def __init__(self, talk: Talk, frame: bytes, since_ns: int) -> None:
        self.talk = talk
        self.frame = frame
        self.since_ns = since_ns
        self.is_repeated = False


class Visitor:
    """One device of one user.

    `source`: the address that it comes from, "" for whichever. `arrived`: texts in the order in which they came, own ones only
    where another connection had sent them; `repeats`: those not above the newest. `acknowledged`: its own, as acked. `arrivals_ns`,
    `acks_ns`: from when a text was due, while `is_measured`; not of what it had missed while it was away.
    """

    __slots__ = (
        "acknowledged",
        "acks_ns",
        "arrivals_ns",
        "arrived",
        "confirmed",
        "device_id",
        "has_come",
        "is_live",
        "is_measured",
        "opens",
        "position",
        "repeats",
        "said",
        "source",
        "token",
        "unconfirmed",
        "user_id",
    )

    def __init__(self, user_id: str, token: str, device_id: str, source: str = "") -> None:
        self.user_id = user_id
        self.token = token
        self.device_id = device_id
        self.source = source
        self.position = 0
        self.confirmed = 0
        self.unconfirmed = 0
        self.repeats = 0
        self.said = 0
        self.is_live = False
        self.has_come = False
        self.is_measured = False
        self.arrived: array[int] = array("q")
        self.acknowledged: array[int] = array("q")
        self.arrivals_ns: array[int] = array("q")
        self.acks_ns: array[int] = array("q")
        self.opens: dict[str, Open] = {}

    def say(self, talk: Talk, due_ns: int, text_bytes: int) -> bytes:
        self.said += 1
        client_id = f"{self.device_id}-{self.said}"
        text = b'{"type":"MESSAGE_SEND","payload":{"conversation_id":"%b","client_message_id":"%b","content":"%020d%b"}}' % (
            talk.conversation_id.encode(),
            client_id.encode(),
            due_ns,
            b"x" * (text_bytes - TIME_DIGITS),
        )
        self.opens[client_id] = Open(talk, masked_text(text), due_ns)
        return self.opens[client_id].frame

    def take(self, payloads: list[bytes], now_ns: int) -> bytes:
        """What the server said; what is answered at once. Raises Torn for what it should not say."""
        said = b""
        for payload in payloads:
            frame = _decode(payload)
            if frame.type == "MESSAGE_RECEIVE":
                self._receive(frame.payload, now_ns)
            elif frame.type == "SYNC_BATCH":
                said += self._take_page(frame.payload, now_ns)
            elif frame.type == "MESSAGE_ACK":
                self._take_ack(frame.payload, now_ns)
            elif frame.type == "ERROR":
                raise Torn(f"refused: {frame.payload.code}: {frame.payload.message}")
        return said + self.confirm() if self.unconfirmed >= CONFIRM_ENTRIES else said

    def confirm(self) -> bytes:
        self.unconfirmed = 0
        self.confirmed = self.position
        return masked_text(b'{"type":"MESSAGE_ACK","payload":{"status":"delivered","message_id":%d}}' % self.position)

    def leave(self) -> None:
        """Its connection has ended."""
        self.is_live = self.has_come = False
        self.unconfirmed = 0

    def _receive(self, said: _Payload, now_ns: int) -> None:
        # What is sent again comes in pages.
        if said.message_id <= self.position:
            raise Broken(f"message {said.message_id} came live after {self.position}: twice, or out of order")
        self._store(said, now_ns, is_timed=self.is_measured)
        self.unconfirmed += 1

    def _take_page(self, said: _Payload, now_ns: int) -> bytes:
        # Once it has come, pages bring what the server could not deliver live: the late ones.
        for entry in said.messages:
            self._store(entry, now_ns, is_timed=self.is_measured and self.has_come)
        self.position = max(self.position, said.next_sync_id)
        self.is_live = not said.has_more
        # At once: the server waits for it before it sends the fifth page.
        return self.confirm() + (self._repeated() if self.is_live and not self.has_come else b"")

    def _repeated(self) -> bytes:
        """Once a connection: a page may come later too, for what was confirmed late."""
        self.has_come = True
        for each in self.opens.values():
            each.is_repeated = True
        return b"".join(each.frame for each in self.opens.values())

    def _take_ack(self, said: _Payload, now_ns: int) -> None:
        if said.status != "sent":
            return
        done = self.opens.pop(said.client_message_id)
        done.talk.acknowledged.append(said.message_id)
        self.acknowledged.append(said.message_id)
        if self.is_measured and not done.is_repeated:
            self.acks_ns.append(now_ns - done.since_ns)

    def _store(self, entry: _Entry | _Payload, now_ns: int, *, is_timed: bool) -> None:
        if entry.message_id <= self.position:
            self.repeats += 1
            return
        self.position = entry.message_id
        if entry.message_type == "text":
            self.arrived.append(entry.message_id)
            if is_timed and not entry.client_message_id:
                self.arrivals_ns.append(now_ns - int(entry.content[:TIME_DIGITS]))
