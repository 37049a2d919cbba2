"""A whole server inside the test, and people with devices who use it as clients do, over real sockets.

`alice = await server.register("alice")`, `phone = await alice.connect("phone")`, `await phone.say(conversation_id, "hello")`,
`await phone.expect("MESSAGE_RECEIVE", content="hello")`. Rule: no sleeping for luck: `roundtrip` (ping/pong) and `reached` are the
barriers, and every wait has a limit.
"""

from __future__ import annotations

import itertools
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import httpx
import msgspec
import trio
import trio_websocket

from uim import server as uim_server
from uim.chat.passwords import Passwords
from uim.cli.binding import admin_socket
from uim.config import Bind, JwtKey, Settings
from uim.errors import Cut

WAIT_S = 10.0
PASSWORD = "Wonderland-1865"

_numbers = itertools.count(1)


def settings_for(database_url: str, redis_url: str, **changed: Any) -> Settings:
    """Settings of a test's server: ports are chosen by the sockets, limits are off."""
    plain = Settings(
        bind=(Bind("127.0.0.1", 0),),
        database_url=database_url,
        redis_url=redis_url,
        jwt_keys=(JwtKey("test", secrets.token_bytes(32)),),
        tls_cert=None,
        tls_key=None,
        public_url=None,
        allowed_origins=(),
        operations_bind=Bind("127.0.0.1", 0),
        trusted_proxies=(),
        max_connections=10_000,
        devices_per_user=20,
        database_pool=10,
        messages_per_minute=0,
        messages_per_hour=0,
        requests_per_second=0,
        requests_per_minute=0,
        presence_grace_s=5,
        retention_days=0,
        log_level="INFO",
        log_file=None,
        log_format="json",
        least_app_version=None,
    )
    return replace(plain, **changed)


def _listening_socket() -> socket.socket:
    opened = socket.create_server(("127.0.0.1", 0), backlog=512)
    opened.setblocking(False)
    return opened


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Server]:
    """A server on ports of its own. Leaving drains it."""
    stop = trio.Event()
    scheme = "https" if settings.tls_cert else "http"
    with _listening_socket() as public, _listening_socket() as operations, admin_socket(settings.admin_socket) as admin:
        async with trio.open_nursery() as nursery:
            running = await nursery.start(
                partial(
                    uim_server.serve,
                    settings,
                    sockets=[public],
                    operations_sockets=[operations],
                    admin_socket=admin,
                    stop=stop,
                    passwords=Passwords(cost=4),
                )
            )
            url = f"{scheme}://127.0.0.1:{public.getsockname()[1]}"
            async with trio.open_nursery() as clients, httpx.AsyncClient(base_url=url, timeout=WAIT_S) as http:
                yield Server(running, url, f"http://127.0.0.1:{operations.getsockname()[1]}", http, clients, stop)
                clients.cancel_scope.cancel()
            stop.set()


@dataclass
class Server:
    """The server and what tests ask of it as a whole."""

    running: uim_server.Running
    url: str
    operations_url: str
    http: httpx.AsyncClient
    nursery: trio.Nursery
    stop: trio.Event

    @property
    def house(self) -> Any:
        return self.running.house

    async def polled(self) -> None:
        """The tailer has asked the database once more, from now on, and done what followed from that."""
        tailer, asked_at = self.house.tailer, trio.current_time()
        with trio.fail_after(WAIT_S):
            while tailer._polled_at < asked_at:
                await trio.sleep(0.01)

    async def register(self, name: str, device: str = "phone") -> Person:
        """A new account, signed in on one device. The name is made unique."""
        username = f"{name}_{next(_numbers)}"
        body = {"username": username, "email": f"{username}@example.com", "password": PASSWORD, "device_id": device}
        answer = await self.http.post("/api/auth/register", json=body)
        assert answer.status_code == 201, answer.text
        return Person(self, username, answer.json())

    async def login(self, username: str, device: str, password: str = PASSWORD) -> Person:
        body = {"username": username, "password": password, "device_id": device}
        answer = await self.http.post("/api/auth/login", json=body)
        assert answer.status_code == 200, answer.text
        return Person(self, username, answer.json())

    async def group(self, owner: Person, *others: Person, name: str = "friends") -> str:
        body = {"type": "group", "name": name, "participant_ids": [p.user_id for p in others]}
        return str((await owner.post("/api/conversations", body, expect=201))["conversation_id"])

    async def pair(self, one: Person, other: Person) -> str:
        body = {"type": "one_on_one", "participant_ids": [other.user_id]}
        return str((await one.post("/api/conversations", body, expect=201))["conversation_id"])


@dataclass
class Person:
    """A signed-in user on one device."""

    server: Server
    username: str
    tokens: dict[str, Any]

    @property
    def user_id(self) -> str:
        return str(self.tokens["user"]["user_id"])

    @property
    def login_id(self) -> str:
        return str(self.tokens["login_id"])

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens['access_token']}"}

    async def call(self, method: str, path: str, body: object = None, *, expect: int | None = None) -> httpx.Response:
        """One request; with `expect`, its status must be that."""
        answer = await self.server.http.request(method, path, json=body, headers=self.bearer)
        assert expect is None or answer.status_code == expect, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer

    async def get(self, path: str, *, expect: int = 200) -> Any:
        return (await self.call("GET", path, expect=expect)).json()

    async def post(self, path: str, body: object = None, *, expect: int = 200) -> Any:
        answer = await self.call("POST", path, body, expect=expect)
        return answer.json() if answer.content else None

    async def connect(
        self, device: str | None = None, *, last_sync_id: int | None = None, confirms: bool = True, to: Server | None = None
    ) -> Device:
        """A WebSocket, up to SESSION_READY and live. `confirms`: whether it confirms what it gets, at once."""
        client = await self.open(device, last_sync_id=last_sync_id, confirms=confirms, to=to)
        await client.live()
        return client

    async def open(
        self, device: str | None = None, *, last_sync_id: int | None = None, confirms: bool = True, to: Server | None = None, **query: Any
    ) -> Device:
        """A WebSocket, up to SESSION_READY."""
        at = to or self.server
        asked = {"device_id": device, "last_sync_id": last_sync_id, **query}
        path = "/ws?" + urlencode({name: value for name, value in asked.items() if value is not None})
        client = Device(self, confirms)
        headers = [(name.encode(), value.encode()) for name, value in self.bearer.items()]
        with trio.fail_after(WAIT_S):
            await at.nursery.start(client.run, at.url.replace("http", "ws", 1) + path, headers)
            client.ready = (await client.expect("SESSION_READY"))["payload"]
        return client


Frame = dict[str, Any]


def _set_event() -> trio.Event:
    event = trio.Event()
    event.set()
    return event


@dataclass
class Device:
    """One connection, from the client's side. `entries` is its store, in the order they came; `cursor` as a client keeps it."""

    person: Person
    confirms: bool
    ready: dict[str, Any] = field(default_factory=dict)
    entries: list[dict[str, Any]] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    cursor: int = 0
    closed: tuple[int, str | None] | None = None
    ended: trio.Event = field(default_factory=trio.Event)
    _ws: trio_websocket.WebSocketConnection | None = None
    _news: trio.Event = field(default_factory=trio.Event)
    is_live: bool = False
    _reading: trio.Event = field(default_factory=_set_event)

    async def run(
        self, url: str, headers: list[tuple[bytes, bytes]], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async with trio_websocket.open_websocket_url(
            url, extra_headers=headers, max_message_size=2**20, message_queue_size=64, disconnect_timeout=1
        ) as ws:
            self._ws = ws
            task_status.started()
            try:
                while True:
                    await self._reading.wait()
                    self._take(msgspec.json.decode(await ws.get_message()))
                    if self.confirms and self._to_confirm is not None:
                        at, self._to_confirm = self._to_confirm, None
                        await self.send("MESSAGE_ACK", status="delivered", message_id=at)
            except trio_websocket.ConnectionClosed as closed:
                reason = closed.reason
                self.closed = (reason.code, reason.reason) if reason is not None else (1006, None)
            self.ended.set()
            self._news.set()

    _to_confirm: int | None = None

    def stop_reading(self) -> None:
        """Leave what comes in the socket, as a reader that is asleep does, until `read_on`."""
        if self._reading.is_set():
            self._reading = trio.Event()

    def read_on(self) -> None:
        self._reading.set()

    def _take(self, frame: Frame) -> None:
        payload = frame["payload"]
        if frame["type"] == "MESSAGE_RECEIVE":
            assert self.is_live, "no MESSAGE_RECEIVE before has_more: false"
            self._store(payload)
            self._to_confirm = payload["message_id"]
        elif frame["type"] == "SYNC_BATCH":
            for entry in payload["messages"]:
                self._store(entry)
            self.cursor = max(self.cursor, payload["next_sync_id"])
            self.is_live = not payload["has_more"]
            self._to_confirm = payload["next_sync_id"]
        elif frame["type"] == "HEARTBEAT_PONG":
            self.cursor = max(self.cursor, payload["last_sync_id"])
        self.frames.append(frame)
        self._news.set()

    def _store(self, entry: dict[str, Any]) -> None:
        self.entries.append(entry)
        self.cursor = max(self.cursor, entry["message_id"])

    # -- saying -----------------------------------------------------------------------------------------------------------

    async def send(self, kind: str, /, request_id: str | None = None, **payload: Any) -> None:
        frame: Frame = {"type": kind, "payload": payload}
        if request_id is not None:
            frame["request_id"] = request_id
        await self.send_text(msgspec.json.encode(frame).decode())

    async def send_text(self, text: str) -> None:
        assert self._ws is not None
        await self._ws.send_message(text)

    async def send_bytes(self, data: bytes) -> None:
        assert self._ws is not None
        await self._ws.send_message(data)

    async def say(self, conversation_id: str, content: str, client_message_id: str | None = None, **more: Any) -> dict[str, Any]:
        """Send a text and give the payload of its ack (or of its ERROR)."""
        client_id = client_message_id or str(uuid4())
        request_id = f"say-{next(_numbers)}"
        await self.send(
            "MESSAGE_SEND", request_id, conversation_id=conversation_id, content=content, client_message_id=client_id, **more
        )
        answer = await self.expect(lambda frame: frame.get("request_id") == request_id)
        return {"type": answer["type"], **answer["payload"]}

    async def say_many(self, conversation_id: str, contents: Sequence[str]) -> list[int]:
        """Send texts without waiting between them; their message_ids once all are committed."""
        wanted = {f"{uuid4()}": content for content in contents}
        acks: dict[str, int] = {}

        async def send_all() -> None:
            for client_id, content in wanted.items():
                await self.send("MESSAGE_SEND", conversation_id=conversation_id, content=content, client_message_id=client_id)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all)
            for _ in contents:
                ack = (await self.expect("MESSAGE_ACK", status="sent"))["payload"]
                acks[ack["client_message_id"]] = ack["message_id"]
        return [acks[client_id] for client_id in wanted]

    # -- waiting ----------------------------------------------------------------------------------------------------------

    async def expect(self, what: str | Callable[[Frame], bool], **fields: Any) -> Frame:
        """The next frame of that type (or that the function takes) whose payload has these fields; others stay waiting."""

        def fits(frame: Frame) -> bool:
            is_it = frame["type"] == what if isinstance(what, str) else what(frame)
            return is_it and all(frame["payload"].get(name) == value for name, value in fields.items())

        with trio.move_on_after(WAIT_S):
            while True:
                for at, frame in enumerate(self.frames):
                    if fits(frame):
                        return self.frames.pop(at)
                assert not self.ended.is_set(), f"closed {self.closed} while waiting for {what} {fields}: {self.frames}"
                self._news = trio.Event()
                await self._news.wait()
        raise AssertionError(f"no {what} {fields} came; there were {str(self.frames)[:2000]}")

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds that only arriving frames can change."""
        with trio.fail_after(WAIT_S):
            while not holds():
                self._news = trio.Event()
                await self._news.wait()

    async def live(self) -> None:
        await self.until(lambda: self.is_live)

    async def roundtrip(self) -> dict[str, Any]:
        """Ping, pong: everything the server said before has arrived. Gives the pong's payload."""
        request_id = f"ping-{next(_numbers)}"
        await self.send("HEARTBEAT_PING", request_id)
        payload: dict[str, Any] = (
            await self.expect(lambda frame: frame["type"] == "HEARTBEAT_PONG" and frame.get("request_id") == request_id)
        )["payload"]
        return payload

    async def reached(self, message_id: int) -> None:
        """Everything up to that entry which this device may see has arrived."""
        with trio.fail_after(WAIT_S):
            while (await self.roundtrip())["last_sync_id"] < message_id:
                await trio.lowlevel.checkpoint()

    async def closing(self, cut: Cut | int) -> str | None:
        """The connection ends with that close code; gives the reason."""
        with trio.fail_after(WAIT_S):
            await self.ended.wait()
        assert self.closed is not None
        assert self.closed[0] == (cut.close_code if isinstance(cut, Cut) else cut), self.closed
        return self.closed[1]

    async def leave(self) -> None:
        """Close from the client's side."""
        assert self._ws is not None
        await self._ws.aclose()
        with trio.fail_after(WAIT_S):
            await self.ended.wait()

    def contents(self) -> list[str]:
        return [entry["content"] for entry in self.entries if entry["message_type"] == "text"]

    def events(self) -> list[str]:
        """The events of the system entries that came, in order."""
        return [entry["metadata"]["event"] for entry in self.entries if entry["message_type"] == "system"]
