"""A thousand devices, each in one task, as cheap as a client can be: Trio's sockets, frames by hand, one read for all that came.

Their people are made in the database, for a thousand registrations are a thousand slow password hashes; each device has a loopback
address of its own, for the server counts strangers by address. Rule: a device does what the protocol says a client does (stores,
confirms, comes back after the delay it was told or with full jitter) and keeps a ledger of what it was told: acks, closes, refusals.
"""

from __future__ import annotations

import random
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import msgspec
import psycopg
import trio

from loadtest.frames import Closed, Torn, masked_text, split
from uim.chat.tokens import Tokens
from uim.config import JwtKey

RECEIVE_BYTES = 64 * 1024
LEAST_WAIT_S, MOST_WAIT_S = 0.5, 30.0
# A masked closing frame (with a mask of zeros), whose payload is the code.
CLOSE_ANSWER = b"\x88\x82\0\0\0\0"
_numbers = count(1)


@dataclass(frozen=True)
class Member:
    user_id: UUID
    token: str
    conversation_id: UUID


def members_in(database_url: str, key: JwtKey, pairs: int, now: Callable[[], float]) -> list[Member]:
    """Twice as many people, signed in on one device each, every two of them (0 and 1, 2 and 3, …) in a one-on-one."""
    members = []
    with psycopg.connect(database_url) as tx:
        for _ in range(pairs):
            one, other = sorted((uuid4(), uuid4()))
            conversation_id = uuid4()
            names = {one: f"crowd_{next(_numbers)}", other: f"crowd_{next(_numbers)}"}
            logins = {one: uuid4(), other: uuid4()}
            for user_id, name in names.items():
                tx.execute("insert into users (user_id, username, password_hash) values (%s, %s, '-')", (user_id, name))
                tx.execute(
                    """insert into logins (login_id, user_id, device_id, refresh_key, refresh_hash, generation_used_at, expires_at)
                        values (%s, %s, 'phone', '', '', now(), now() + interval '7 days')""",
                    (logins[user_id], user_id),
                )
            tx.execute(
                "insert into conversations (conversation_id, type, created_by, pair) values (%s, 'one_on_one', %s, %s)",
                (conversation_id, one, [one, other]),
            )
            for user_id, name in names.items():
                seat = (conversation_id, user_id)
                tx.execute("insert into conversation_participants (conversation_id, user_id) values (%s, %s)", seat)
                tx.execute("insert into participations (conversation_id, user_id, joined_message_id) values (%s, %s, 0)", seat)
                token = Tokens((key,), now).sign_access(user_id=user_id, username=name, login_id=logins[user_id], generation=1)
                members.append(Member(user_id, token, conversation_id))
    return members


def addresses() -> Iterator[str]:
    """Loopback addresses, each once: 127.1.0.1 and on."""
    return (f"127.1.{number // 250}.{number % 250 + 1}" for number in count())


class Refused(Exception):
    """The server's HTTP answer to an upgrade."""

    def __init__(self, status: int, retry_after_s: float | None) -> None:
        super().__init__(f"refused with {status}")
        self.status = status
        self.retry_after_s = retry_after_s


def _set_event() -> trio.Event:
    event = trio.Event()
    event.set()
    return event


@dataclass
class Phone:
    """One device that stays connected until its task is cancelled.

    `closes`: code, reason and time of each closing frame; `troubles`: connects and connections that ended otherwise, by kind;
    `waits_s`: what it was told to wait. `acked`: by client id the message_id that the server gave.
    """

    port: int
    address: str
    member: Member
    from_browser: bool = False
    position: int = 0
    is_live: bool = False
    ready_at: float = 0.0
    live_at: float = 0.0
    acked: dict[str, int] = field(default_factory=dict)
    received: list[int] = field(default_factory=list)
    closes: list[tuple[int, str, float]] = field(default_factory=list)
    troubles: Counter[str] = field(default_factory=Counter)
    waits_s: list[float] = field(default_factory=list)
    connects: int = 0
    said: int = 0
    queued: int = 0
    _unacked: str = ""
    _repeats: int = 0
    _sock: trio.socket.SocketType | None = None
    _awake: trio.Event = field(default_factory=_set_event)
    _sending: trio.Lock = field(default_factory=trio.Lock)

    async def stay(self) -> None:
        """Connect, and come back whenever the connection ends, as the protocol says."""
        failures = 0
        while True:
            told_s = await self._once()
            if self.is_live:
                failures = 0
            self.is_live = False
            self.waits_s += [told_s] if told_s is not None else []
            jitter_s = random.uniform(0, min(MOST_WAIT_S, LEAST_WAIT_S * 2**failures))
            failures += 1
            await trio.sleep(told_s if told_s is not None else jitter_s)

    async def _once(self) -> float | None:
        """One connection, to its end; what the server says to wait after it."""
        self.connects += 1
        try:
            await self._connection()
        except Closed as closed:
            self._take_all(closed.last_words)
            self.closes.append((closed.code, closed.reason, trio.current_time()))
            name, _, value = closed.reason.partition("=")
            return int(value) / 1000 if name == "retry_after_ms" else None
        except Refused as refused:
            self.troubles[str(refused.status)] += 1
            return refused.retry_after_s
        except (OSError, Torn) as trouble:
            self.troubles[type(trouble).__name__] += 1
        finally:
            self._sock = None
        return None

    async def _connection(self) -> None:
        with trio.socket.socket() as sock:
            await sock.bind((self.address, 0))
            await sock.connect(("127.0.0.1", self.port))
            received = await self._upgrade(sock)
            self._sock = sock
            while True:
                try:
                    payloads, received = split(received)
                except Closed as closed:
                    await self._send_all(sock, CLOSE_ANSWER + closed.code.to_bytes(2, "big"))
                    raise
                position = self.position
                self._take_all(payloads)
                if self.position > position:
                    await self._say("MESSAGE_ACK", status="delivered", message_id=self.position)
                await self._awake.wait()
                data = await sock.recv(RECEIVE_BYTES)
                if not data:
                    raise Torn("hung up")
                received += data

    async def _upgrade(self, sock: trio.socket.SocketType) -> bytes:
        key = b64encode(random.randbytes(16)).decode()
        origin = f"Origin: http://127.0.0.1:{self.port}\r\n" if self.from_browser else ""
        await self._send_all(
            sock,
            f"GET /ws?last_sync_id={self.position} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nConnection: Upgrade\r\n"
            f"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n{origin}"
            f"Authorization: Bearer {self.member.token}\r\n\r\n".encode(),
        )
        received = b""
        while b"\r\n\r\n" not in received:
            data = await sock.recv(RECEIVE_BYTES)
            if not data:
                raise Torn("hung up before an answer")
            received += data
        head, _, rest = received.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        if status != 101:
            waits = [line.partition(b":")[2] for line in head.lower().split(b"\r\n") if line.startswith(b"retry-after:")]
            raise Refused(status, float(waits[0]) if waits else None)
        return rest

    # -- what it hears ----------------------------------------------------------------------------------------------------

    def _take_all(self, payloads: list[bytes]) -> None:
        for payload in payloads:
            frame = msgspec.json.decode(payload)
            self._take(frame["type"], frame["payload"])

    def _take(self, kind: str, said: dict[str, Any]) -> None:
        if kind == "SESSION_READY":
            self.ready_at = trio.current_time()
        elif kind == "SYNC_BATCH":
            self.received += [entry["message_id"] for entry in said["messages"] if entry["message_type"] == "text"]
            self.position = max(self.position, said["next_sync_id"])
            if not said["has_more"]:
                self.is_live, self.live_at = True, trio.current_time()
        elif kind == "MESSAGE_RECEIVE":
            self.received.append(said["message_id"])
            self.position = max(self.position, said["message_id"])
        elif kind == "MESSAGE_ACK" and said["status"] == "sent":
            self.acked[said["client_message_id"]] = said["message_id"]
            self._unacked = ""
        elif kind == "MESSAGE_ACK" and said["status"] == "queued":
            self.queued += 1
        elif kind == "ERROR":
            self.troubles[said["code"]] += 1
            self._repeats += 1

    # -- what it says -----------------------------------------------------------------------------------------------------

    async def talk(self, enough: trio.Event, *, pause_s: float = 0.05) -> None:
        """Say one text after the other, each once the last one is acked, until there is enough and all are.

        A text that was not acked is repeated, with its id, after each reconnect and each ERROR.
        """
        tried = (0, 0)
        while True:
            await trio.sleep(pause_s)
            if not self._unacked and enough.is_set():
                return
            if self._sock is None or not self.is_live or (self._unacked and tried == (self.connects, self._repeats)):
                continue
            if not self._unacked:
                self._unacked = str(uuid4())
            tried = (self.connects, self._repeats)
            with suppress(OSError):
                await self.say_text("under load", self._unacked)

    async def say_text(self, content: str, client_message_id: str | None = None) -> None:
        """One text, whatever becomes of it."""
        client_id = client_message_id or str(uuid4())
        await self._say(
            "MESSAGE_SEND", conversation_id=self.member.conversation_id, client_message_id=client_id, content=content
        )
        self.said += 1

    async def fall_asleep(self) -> None:
        """Read nothing more; what has come until now has been taken."""
        self._awake = trio.Event()
        await trio.lowlevel.checkpoint()

    async def _say(self, kind: str, **payload: Any) -> None:
        assert self._sock is not None
        await self._send_all(self._sock, masked_text(msgspec.json.encode({"type": kind, "payload": payload})))

    async def _send_all(self, sock: trio.socket.SocketType, data: bytes) -> None:
        async with self._sending:
            while data:
                data = data[await sock.send(data) :]
