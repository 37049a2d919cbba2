"""The attacks, by name: what each says to the server, on how many lines and how fast.

`python -m loadtest.attacks` is the attacker's own process: it reads its orders as one line of JSON, attacks, and tells in
another what came of it and what it cost the attacker. Rule: every attack is bounded in lines, rate and time, and comes from one
address and one account with as many devices as an account may have; the next attack has others.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from loadtest.frames import client_frame, masked_text
from loadtest.lines import Attacker, Plan, upgrade_request

DEVICES: Final = 20
STRANGERS: Final = 50
# Above it counts as at it: an attack is measured without the catching up of its connections, unless that is the attack.
AT_THE_HEAD: Final = 2**53 - 1
TEXT: Final = 1
CONTINUATION: Final = 0
PING: Final = 9
MISPLACED: Final = "00000000-0000-4000-8000-000000000000"


class Orders(msgspec.Struct):
    """What an attacker's process is told."""

    attack: str
    url: str
    seconds: float
    token: str
    conversation_id: str
    source: str


class Attack(msgspec.Struct):
    what: str
    plan: Callable[[Orders], Plan]


def _frame(kind: str, request_id: str | None = None, **payload: Any) -> bytes:
    return masked_text(msgspec.json.encode({"type": kind, "request_id": request_id or "r", "payload": payload}))


def _sockets(orders: Orders, *, last_sync_id: int = AT_THE_HEAD, **plan: Any) -> Plan:
    def opening(number: int) -> bytes:
        return upgrade_request(orders.token, f"attack-{number % DEVICES}", last_sync_id=last_sync_id)

    return Plan(**{"lines": DEVICES, "is_websocket": True, "opening": opening, **plan})


def _always(unit: bytes) -> Callable[[int], bytes]:
    return lambda number: unit


def _get(orders: Orders, path: str, more: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: load\r\nAuthorization: Bearer {orders.token}\r\n{more}\r\n".encode("ascii")


def _requests(orders: Orders, request: bytes, **plan: Any) -> Plan:
    return Plan(**{"lines": 50, "opening": _always(b""), "unit": _always(request), **plan})


def _post_head(path: str, fields: str) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: load\r\nContent-Type: application/json\r\n{fields}\r\n".encode("ascii")


LOGIN: Final = "/api/auth/login"
CHUNKED: Final = "Transfer-Encoding: chunked\r\n"
GUESS: Final = b'{"username":"nobody_here","password":"Guess-1850"}'


def _send(orders: Orders) -> Callable[[int], bytes]:
    begun = time.time_ns()
    said = f'{{"type":"MESSAGE_SEND","payload":{{"conversation_id":"{orders.conversation_id}","content":"{"x" * 200}","client_message_id":"'
    return lambda number: masked_text(f'{said}{begun}-{number}"}}}}'.encode())


ATTACKS: Final[dict[str, Attack]] = {
    # -- sockets that have signed in -----------------------------------------------------------------------------------------
    "unconfirmed": Attack("takes pages and confirms nothing", lambda orders: _sockets(orders, last_sync_id=0)),
    "zero-window": Attack(
        "asks for pages and never reads, with the smallest window",
        lambda orders: _sockets(orders, unit=_always(_frame("SYNC_REQUEST", last_sync_id=0)), per_s=200, reads=False, window_bytes=1024),
    ),
    "ping-frames": Attack(
        "WebSocket PINGs of 125 bytes, answers unread",
        lambda orders: _sockets(orders, unit=_always(client_frame(PING, b"p" * 125)), per_s=20_000, reads=False),
    ),
    "ping-frames-read": Attack(
        "the same, empty, answers read", lambda orders: _sockets(orders, unit=_always(client_frame(PING)), per_s=20_000)
    ),
    "heartbeats": Attack("HEARTBEAT_PING", lambda orders: _sockets(orders, unit=_always(_frame("HEARTBEAT_PING")), per_s=10_000)),
    "empty-fragments": Attack(
        "a message of empty continuation frames, without end",
        lambda orders: _sockets(
            orders, first=client_frame(TEXT, b"{", fin=False), unit=_always(client_frame(CONTINUATION, fin=False)), per_s=50_000
        ),
    ),
    "byte-fragments": Attack(
        "texts in fragments of a byte, with PINGs between",
        lambda orders: _sockets(
            orders,
            unit=_always(
                client_frame(TEXT, b"{", fin=False)
                + (client_frame(CONTINUATION, b" ", fin=False) + client_frame(PING)) * 49
                + client_frame(CONTINUATION, b"}")
            ),
            per_s=300,
        ),
    ),
    "giant-frames": Attack(
        "frames of 1 MiB", lambda orders: _sockets(orders, unit=_always(client_frame(TEXT, b"x" * 2**20)), per_s=50)
    ),
    "declared-2^40": Attack(
        "a frame that says it has 2^40 bytes, and goes on",
        lambda orders: _sockets(
            orders, first=client_frame(TEXT, declared=2**40), unit=_always(b"x" * 4096), per_s=2_000
        ),
    ),
    "largest-frames": Attack(
        "frames of 128 KiB that are almost texts",
        lambda orders: _sockets(orders, unit=_always(_frame("MESSAGE_SEND", content=5, x="y" * 130_000)), per_s=200),
    ),
    "deep-json": Attack(
        "100,000 brackets, then a thousand inside a frame that is one",
        lambda orders: _sockets(
            orders,
            unit=lambda number: (
                masked_text(b"[" * 100_000)
                if number % 2
                else masked_text(b'{"type":"MESSAGE_SEND","payload":{"content":5,"x":' + b"[" * 900 + b"]" * 900 + b"}}")
            ),
            per_s=200,
        ),
    ),
    "protocol-errors": Attack(
        "reserved bits and opcodes, unmasked frames, closing frames of nonsense; comes back",
        lambda orders: _sockets(
            orders, unit=lambda number: (b"\xf1\x80abcd", b"\x8b\x80abcd", b"\x81\x01x", client_frame(8, b"\x00"))[number % 4], per_s=50
        ),
    ),
    "sends": Attack("MESSAGE_SEND as fast as they are taken", lambda orders: _sockets(orders, unit=_send(orders), per_s=10_000)),
    "syncs": Attack(
        "SYNC_REQUEST from the very beginning",
        lambda orders: _sockets(orders, unit=_always(_frame("SYNC_REQUEST", last_sync_id=0)), per_s=2_000),
    ),
    "typing": Attack(
        "TYPING_INDICATOR, on and off",
        lambda orders: _sockets(
            orders,
            unit=lambda number: _frame("TYPING_INDICATOR", conversation_id=orders.conversation_id, typing=bool(number % 2)),
            per_s=10_000,
        ),
    ),
    "typing-elsewhere": Attack(
        "TYPING_INDICATOR in conversations that are not one's own",
        lambda orders: _sockets(
            orders,
            unit=lambda number: _frame("TYPING_INDICATOR", conversation_id=f"{MISPLACED[:-12]}{number:012x}", typing=True),
            per_s=5_000,
        ),
    ),
    "acks": Attack(
        "MESSAGE_ACK of what is long confirmed, and of what was never sent",
        lambda orders: _sockets(
            orders, unit=lambda number: _frame("MESSAGE_ACK", status="delivered", message_id=1 + (number % 2) * 10**12), per_s=10_000
        ),
    ),
    "presences": Attack(
        "PRESENCE_UPDATE",
        lambda orders: _sockets(
            orders, unit=lambda number: _frame("PRESENCE_UPDATE", availability=("away", "busy")[number % 2]), per_s=2_000
        ),
    ),
    "comes-and-goes": Attack(
        "connects signed in, and leaves", lambda orders: _sockets(orders, last_sync_id=0, hold=False, per_s=50)
    ),
    # -- connections that have not --------------------------------------------------------------------------------------------
    "connects": Attack(
        "10,000 connects from one address", lambda orders: Plan(lines=4_000, opening=_always(b""), hold=False, per_s=2_000)
    ),
    "slow-heads": Attack(
        "heads, one byte a second",
        lambda orders: Plan(lines=STRANGERS, opening=_always(b"GET / HTTP/1.1\r\nX: "), unit=_always(b"x"), per_s=STRANGERS),
    ),
    "slow-bodies": Attack(
        "bodies, one byte a second",
        lambda orders: Plan(
            lines=STRANGERS, opening=_always(_post_head(LOGIN, "Content-Length: 100000\r\n")), unit=_always(b" "), per_s=STRANGERS
        ),
    ),
    "endless-bodies": Attack(
        "bodies without end",
        lambda orders: Plan(
            lines=STRANGERS, opening=_always(_post_head(LOGIN, CHUNKED)), unit=_always(b"1000\r\n" + b" " * 4096 + b"\r\n"), per_s=5_000
        ),
    ),
    "chunk-extensions": Attack(
        "bodies in chunks of a byte, each with an extension of 1,000",
        lambda orders: Plan(
            lines=STRANGERS, opening=_always(_post_head(LOGIN, CHUNKED)), unit=_always(b"1;" + b"e" * 1_000 + b"\r\n \r\n"), per_s=5_000
        ),
    ),
    "many-headers": Attack(
        "heads of 3,000 fields",
        lambda orders: _requests(orders, b"GET /api/nothing HTTP/1.1\r\nHost: x\r\n" + b"a:b\r\n" * 3_000 + b"\r\n", per_s=500),
    ),
    "stuck-upgrades": Attack(
        "upgrades that stall",
        lambda orders: Plan(
            lines=STRANGERS,
            opening=_always(b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"),
            unit=_always(b"X: y\r\n"),
            per_s=STRANGERS,
        ),
    ),
    "logins": Attack(
        "guesses at a password",
        lambda orders: _requests(
            orders,
            _post_head(LOGIN, f"Content-Length: {len(GUESS)}\r\n") + GUESS,
            per_s=500,
        ),
    ),
    # -- requests ------------------------------------------------------------------------------------------------------------
    "pipeline-unread": Attack(
        "requests one after the other, answers unread",
        lambda orders: _requests(orders, _get(orders, "/api/sync?last_sync_id=0"), per_s=2_000, reads=False, window_bytes=1024),
    ),
    "one-page": Attack(
        "the same long page again and again",
        lambda orders: _requests(orders, _get(orders, f"/api/conversations/{orders.conversation_id}/messages?limit=100"), per_s=2_000),
    ),
    "many-askers": Attack(
        "the same on 400 connections",
        lambda orders: _requests(orders, _get(orders, "/api/sync?last_sync_id=0"), lines=400, per_s=2_000),
    ),
}


def main() -> None:
    orders = msgspec.json.decode(sys.stdin.readline(), type=Orders)
    parts = urlsplit(orders.url)
    attacker = Attacker(parts.hostname or "", parts.port or 80, ATTACKS[orders.attack].plan(orders), source=orders.source)
    attacker.open()
    print("ready", flush=True)
    sys.stdin.readline()
    began_at, own_s = time.perf_counter(), time.process_time()
    attacker.run(orders.seconds)
    took_s, own_s = time.perf_counter() - began_at, time.process_time() - own_s
    came = attacker.outcome
    told = {"per_s": came.sent / took_s, "own_share": own_s / took_s, "connected": came.connected, "cut": came.cut, "answers": came.answers}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
