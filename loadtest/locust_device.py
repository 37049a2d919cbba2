"""A user's device under Locust: a cursor, an outbox, and one WebSocket after the other, as the protocol wants it.

Everything is written by one greenlet of the connection's own, so that Locust may end a user at any moment without tearing a
frame. The client is websocket-client: plain blocking sockets, which gevent's monkey patching makes cheap. Rule: what the server
may not say is a failure; what it asks for (to wait, to come back later, to sign in again) is done.
"""

from __future__ import annotations

import json
import random
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

import gevent
import websocket
from gevent.queue import SimpleQueue

from loadtest.locust_ledger import Ledger

DEVICE_ID: Final = "locust"
CONNECT_WITHIN_S: Final = 30.0
PING_AFTER_S: Final = 25.0
CONFIRM_AFTER_S: Final = 0.25
CONFIRM_ENTRIES: Final = 100
REPEAT_QUEUED_S: Final = 30.0
# The server takes no more of one user.
OPEN_SENDS: Final = 64
MOST_BACKOFF_S: Final = 30.0
# The server goes away in order, and says so: nothing is wrong.
LAWFUL_CLOSES: Final = {1001, 1012, 1013}
GONE: Final = (OSError, websocket.WebSocketException)

# (name, milliseconds, length, what is wrong or None)
Report = Callable[[str, float, int, str | None], None]


# (clock, number, milliseconds ago or None)
Said = tuple[str, int, float | None]


@dataclass
class Text:
    """One text of ours until it is acknowledged. `number` is when it was said, in nanoseconds, so they ascend."""

    conversation_id: str
    content: str
    number: int


@dataclass(frozen=True)
class Account:
    """Whose device it is, and what its connection needs.

    `token()` is the present one, `renew(old)` is asked for another (None: whichever it is). `read(content)` says of a text by whose
    clock it was said, when (its number), and how many milliseconds ago (None: that was on another machine).
    """

    user_id: str
    url: str
    token: Callable[[], str]
    renew: Callable[[str | None], None]
    read: Callable[[str], Said | None]
    sslopt: dict[str, Any]


class Device:
    """`come_back` and `leave` as often as wanted. `newest` has of each conversation the newest entry that came."""

    def __init__(self, account: Account, ledger: Ledger, report: Report) -> None:
        self.account = account
        self.cursor: int | None = None
        self.is_live = False
        self.outbox: dict[str, Text] = {}
        self.newest: dict[str, int] = {}
        self.groups: dict[str, bool] = {}
        self._ledger = ledger
        self._report = report
        # An account may live longer than a run, and its texts' ids are for ever.
        self._run = secrets.token_hex(8)
        self._life: gevent.Greenlet | None = None
        self._lines: SimpleQueue | None = None
        self._is_wanted = False
        self._attempts = 0
        self._epoch: object = None
        self._hang_up()

    # -- what its user does -----------------------------------------------------------------------------------------------

    def come_back(self) -> None:
        """Connect, and stay connected, in the background."""
        self._is_wanted = True
        if self._life is None or self._life.dead:
            self._life = gevent.spawn(self._live)

    def leave(self) -> None:
        """Close the connection in order; the device keeps its cursor and what it has to say."""
        self._is_wanted = False
        if self._lines is not None:
            self._has_left = True
            self._lines.put(None)

    def say(self, conversation_id: str, write: Callable[[int], str]) -> None:
        """A text, made by `write(now_ns)`, into the outbox; it goes out as soon as it can. Waits while too many are open."""
        while len(self.outbox) >= OPEN_SENDS:
            gevent.sleep(0.05)
        number = time.monotonic_ns()
        client_id = f"{self._run}-{number}"
        self.outbox[client_id] = Text(conversation_id, write(number), number)
        if self.is_live:
            self._send_text(client_id)

    def send(self, kind: str, **payload: Any) -> None:
        """A frame, if there is a connection to send it on."""
        if self._lines is not None:
            self._sent_at = time.monotonic()
            self._lines.put(json.dumps({"type": kind, "payload": payload}))

    def settle(self, until: float) -> str | None:
        """Be there until all that was said is answered and all that is stored has come, or until then; what is wrong."""
        self.come_back()
        while time.monotonic() < until:
            if self.is_live and not self.outbox and (self.cursor or 0) >= self._ledger.newest:
                return None
            if self.is_live:
                self.send("HEARTBEAT_PING")
            gevent.sleep(0.1)
        where = f"at {self.cursor} of {self._ledger.newest}" if self.is_live else "not live"
        return f"{self.account.user_id}: {len(self.outbox)} texts were never answered, and the device is {where}"

    # -- one connection after the other -----------------------------------------------------------------------------------

    def _live(self) -> None:
        while self._is_wanted:
            gevent.sleep(self._connection())

    def _hang_up(self) -> None:
        self.is_live = self._has_left = False
        self._to_confirm, self._owed = 0, 0
        self._came = 0
        self._began_at = self._sent_at = 0.0

    def _connection(self) -> float:
        """One connection, from its opening to its end; how long to wait before the next."""
        self._hang_up()
        self._began_at = time.perf_counter()
        token = self.account.token()
        try:
            ws = self._open(token)
        except websocket.WebSocketBadStatusException as rejected:
            return self._after_rejection(rejected, token)
        except GONE as error:
            self._tell("connect", f"{type(error).__name__}: {error}")
            return self._backoff_s()
        lines = self._lines = SimpleQueue()
        self._sent_at = time.monotonic()
        writer = gevent.spawn(_write, ws, lines)
        try:
            return self._after_close(*self._hear(ws))
        finally:
            self.is_live, self._lines = False, None
            writer.kill(block=False)
            ws.shutdown()

    def _open(self, token: str) -> websocket.WebSocket:
        asked = {"device_id": DEVICE_ID} | ({} if self.cursor is None else {"last_sync_id": self.cursor})
        ws = websocket.create_connection(
            f"{self.account.url.replace('http', 'ws', 1)}/ws?{urlencode(asked)}",
            timeout=CONNECT_WITHIN_S,
            header=[f"Authorization: Bearer {token}"],
            sslopt=self.account.sslopt,
            skip_utf8_validation=True,
        )
        ws.settimeout(PING_AFTER_S)
        return ws

    def _hear(self, ws: websocket.WebSocket) -> tuple[int, str]:
        """Until the end of the connection: its close code (1006: torn) and reason."""
        is_silent = False
        while True:
            try:
                kind, data = ws.recv_data()
            except websocket.WebSocketTimeoutException:
                if is_silent:
                    return 1006, "no answer to a ping"
                is_silent, kind, data = True, 0, b""
            except GONE as error:
                return 1006, f"{type(error).__name__}: {error}"
            if kind == websocket.ABNF.OPCODE_CLOSE:
                return int.from_bytes(data[:2]) if data else 1005, data[2:].decode(errors="replace")
            if kind == websocket.ABNF.OPCODE_TEXT:
                is_silent = False
                frame = json.loads(data)
                HEARD.get(frame["type"], Device._ignore)(self, frame["payload"])
            if is_silent or time.monotonic() - self._sent_at > PING_AFTER_S:
                self.send("HEARTBEAT_PING")

    # -- coming back ------------------------------------------------------------------------------------------------------

    def _backoff_s(self) -> float:
        """Full jitter."""
        self._attempts += 1
        return random.uniform(0.0, min(MOST_BACKOFF_S, 0.5 * 2**self._attempts))

    def _after_close(self, code: int, reason: str) -> float:
        if self._has_left and code == 1000:
            return 0.0
        is_lawful = code in LAWFUL_CLOSES
        self._tell(f"closed {code}", None if is_lawful else f"closed {code}: {reason}")
        if code == 4401:
            self.account.renew(None)
        if reason.startswith("retry_after_ms="):
            return int(reason.partition("=")[2]) / 1000
        return self._backoff_s()

    def _after_rejection(self, rejected: websocket.WebSocketBadStatusException, token: str) -> float:
        """HTTP's answer to the upgrade: an old token is renewed, and who is told to wait waits."""
        wait_s = (rejected.resp_headers or {}).get("retry-after")
        is_lawful = (rejected.status_code == 401 and not self._attempts) or wait_s is not None
        self._tell(f"connect ({rejected.status_code})", None if is_lawful else f"rejected with {rejected.status_code}")
        backoff_s = self._backoff_s()
        if rejected.status_code == 401:
            self.account.renew(token)
        return float(wait_s) if wait_s is not None else backoff_s

    def _tell(self, name: str, fault: str | None, length: int = 0) -> None:
        self._report(name, (time.perf_counter() - self._began_at) * 1000, length, fault)

    # -- hearing ----------------------------------------------------------------------------------------------------------

    def _ready(self, said: dict[str, Any]) -> None:
        self._tell("connect", None)
        if self._epoch is not None and said["epoch"] != self._epoch:
            self._ledger.note(f"{self.account.user_id}: another epoch: {self._epoch} became {said['epoch']}")
        self._epoch = said["epoch"]
        if self.cursor is None:
            self.cursor = said["last_sync_id"]

    def _batch(self, said: dict[str, Any]) -> None:
        for entry in said["messages"]:
            # Once live, pages bring what the server could not deliver live: the late ones. Before, what was missed.
            if self._store(entry) and self.is_live:
                self._time(entry)
        for conversation in said["conversations"]:
            self._conversation({"conversation": conversation})
        self._came += len(said["messages"])
        self.cursor = max(self.cursor or 0, said["next_sync_id"])
        self._to_confirm = self.cursor
        self._confirm()
        if not said["has_more"] and not self.is_live:
            self._tell("catch-up", None, self._came)
            self.is_live, self._attempts = True, 0
            for client_id in self.outbox:
                self._send_text(client_id)

    def _receive(self, entry: dict[str, Any]) -> None:
        if not self.is_live:
            self._ledger.note(f"{self.account.user_id}: message {entry['message_id']} came live before the last batch")
        if self._store(entry):
            self._time(entry)
        elif entry["sender_id"] != self.account.user_id and entry["message_type"] == "text":
            # What is sent again comes in pages.
            self._ledger.note(f"{self.account.user_id}: message {entry['message_id']} came live again")
        self.cursor = max(self.cursor or 0, entry["message_id"])
        self._owe(entry["message_id"])

    def _store(self, entry: dict[str, Any]) -> bool:
        conversation_id, user_id = entry["conversation_id"], self.account.user_id
        if entry["message_type"] == "account":
            return False
        if not self._ledger.came(user_id, conversation_id, entry["seq"], entry["message_id"]):
            return False
        self.newest[conversation_id] = max(self.newest.get(conversation_id, 0), entry["message_id"])
        if (said := self._said(entry)) is not None:
            self._ledger.heard(user_id, conversation_id, f"{entry['sender_id']}@{said[0]}", said[1])
        return True

    def _time(self, entry: dict[str, Any]) -> None:
        if (said := self._said(entry)) is not None and said[2] is not None:
            self._report("send to arrival", said[2], len(entry["content"]), None)

    def _said(self, entry: dict[str, Any]) -> Said | None:
        if entry["sender_id"] == self.account.user_id:
            return None
        return self.account.read(entry["content"])

    def _owe(self, message_id: int) -> None:
        if not self._owed:
            gevent.spawn_later(CONFIRM_AFTER_S, self._confirm)
        self._owed += 1
        self._to_confirm = max(self._to_confirm, message_id)
        if self._owed >= CONFIRM_ENTRIES:
            self._confirm()

    def _confirm(self) -> None:
        if self._to_confirm:
            self.send("MESSAGE_ACK", status="delivered", message_id=self._to_confirm)
        self._to_confirm, self._owed = 0, 0

    def _conversation(self, said: dict[str, Any]) -> None:
        if (conversation := said.get("conversation")) is not None:
            self.groups[conversation["conversation_id"]] = conversation["type"] == "group"

    def _pong(self, said: dict[str, Any]) -> None:
        self.cursor = max(self.cursor or 0, said["last_sync_id"])

    def _ack(self, said: dict[str, Any]) -> None:
        text = self.outbox.get(said.get("client_message_id", ""))
        if text is None or said["status"] not in ("sent", "queued"):
            return
        if said["status"] == "queued":
            self._ledger.judges_order = False
            gevent.spawn_later(REPEAT_QUEUED_S, self._send_text, said["client_message_id"])
            return
        del self.outbox[said["client_message_id"]]
        self._report("send to ack", (time.monotonic_ns() - text.number) / 1e6, len(text.content), None)
        self._ledger.sent(self.account.user_id, text.conversation_id, said["seq"], said["message_id"], text.number)

    def _error(self, said: dict[str, Any]) -> None:
        client_id, code = said.get("client_message_id"), said["code"]
        wait_s = said.get("retry_after")
        is_lawful = code == "rate_limited" and wait_s is not None
        self._report(f"ERROR {code}", 0.0, 0, None if is_lawful else f"ERROR {code}: {said['message']}")
        if client_id not in self.outbox:
            return
        if code in ("unavailable", "rate_limited"):
            self._ledger.judges_order = False
            gevent.spawn_later(float(wait_s or 1.0), self._send_text, client_id)
        else:
            del self.outbox[client_id]

    def _ignore(self, said: dict[str, Any]) -> None:
        """Presence, profiles, typing."""

    def _send_text(self, client_id: str) -> None:
        text = self.outbox.get(client_id)
        if text is not None:
            self.send("MESSAGE_SEND", client_message_id=client_id, conversation_id=text.conversation_id, content=text.content)


def _write(ws: websocket.WebSocket, lines: SimpleQueue) -> None:
    """What is to be said, in order; None closes. Its end is for who reads to notice."""
    try:
        while (line := lines.get()) is not None:
            ws.send(line)
        ws.send_close(1000)
    except GONE:
        pass


HEARD: Final[dict[str, Callable[[Device, dict[str, Any]], None]]] = {
    "SESSION_READY": Device._ready,
    "SYNC_BATCH": Device._batch,
    "MESSAGE_RECEIVE": Device._receive,
    "HEARTBEAT_PONG": Device._pong,
    "MESSAGE_ACK": Device._ack,
    "CONVERSATION_UPDATE": Device._conversation,
    "ERROR": Device._error,
}
