"""The life of connections: one a device, so many a user, signs of life, bugs, keys in Redis, TLS, and the drain."""

from __future__ import annotations

import gc
import itertools
import random
import signal
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import httpx
import msgspec
import psycopg
import pytest
import redis
import trio
import trio.testing
import trio_websocket
import trustme

from loadtest.frames import client_frame
from tests.faults import raw
from tests.house import Device, Person, Server, serving, settings_for
from tests.test_cli import environment, started
from tests.test_cli import settings_for as variables_for
from uim import listener
from uim.admission import Admission
from uim.chat.outbox import Outbox
from uim.cli.binding import address_of, listen
from uim.config import Bind
from uim.errors import Cut
from uim.live.arrivals import Arrivals
from uim.live.session import SILENCE_S, Session
from uim.live.sockets import ServerSocket
from uim.live.upgrade import WebSocketFront

pytestmark = pytest.mark.timeout(60)


async def until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not holds():
            await trio.sleep(0.005)


async def refused(person: Person, device: str) -> tuple[int, dict[str, Any]]:
    """The HTTP status and problem with which this device is not let in."""
    with pytest.raises(trio_websocket.ConnectionRejected) as rejected:
        await person.open(device)
    return rejected.value.status_code, msgspec.json.decode(rejected.value.body or b"")


# --- one connection a device ---


async def test_a_devices_newest_connection_replaces_the_older(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    conversation_id = await server.pair(alice, bob)
    older = await alice.connect("phone")
    newer = await alice.connect("phone")
    assert await older.closing(Cut.REPLACED) == "replaced by another connection of this device"
    await (await bob.connect()).say(conversation_id, "hello")
    assert (await newer.expect("MESSAGE_RECEIVE"))["payload"]["content"] == "hello"
    assert older.contents() == []


async def test_of_connections_of_one_device_made_at_once_one_stays(server: Server) -> None:
    alice = await server.register("alice")
    for _ in range(5):
        devices: list[Device] = []

        async def connect(devices: list[Device] = devices) -> None:
            path = f"{server.url.replace('http', 'ws', 1)}/ws?device_id=phone"
            device = Device(alice, True)
            devices.append(device)
            await server.nursery.start(device.run, path, [(b"Authorization", alice.bearer["Authorization"].encode())])

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(connect)
        await until(lambda devices=devices: sum(device.ended.is_set() for device in devices) == 3)  # type: ignore[misc]  # bound for this round
        (left,) = [device for device in devices if not device.ended.is_set()]
        await left.live()
        await server.polled()  # what it has to say of this device's connections
        await left.roundtrip()
        assert {device.closed[0] for device in devices if device.closed} == {Cut.REPLACED.close_code}
        assert server.house.switchboard.connections == 1


async def test_who_is_replaced_while_the_database_keeps_it_waiting_does_not_come_back(server: Server, database_url: str) -> None:
    alice = await server.register("alice")
    await (await alice.connect("phone")).leave()
    async with server.house.pool.transaction() as tx, trio.open_nursery() as nursery:
        await tx.execute("select from device_cursors for update")
        path = f"{server.url.replace('http', 'ws', 1)}/ws?device_id=phone"
        headers = [(b"Authorization", alice.bearer["Authorization"].encode())]
        older, newer = Device(alice, True), Device(alice, True)
        await server.nursery.start(older.run, path, headers)
        await until(lambda: server.house.switchboard.connections == 1)
        await server.nursery.start(newer.run, path, headers)
        nursery.start_soon(older.closing, Cut.REPLACED)
    await newer.live()
    await server.polled()
    await newer.roundtrip()


async def test_who_says_close_is_gone_though_they_keep_the_line_open(server: Server) -> None:
    alice = await server.register("alice")
    async with raw.websocket(alice, "phone") as peer:
        await peer.until(b"SESSION_READY")
        (outbox,) = server.house.switchboard.all()
        await peer.say(client_frame(raw.CLOSE, (1000).to_bytes(2, "big")))
        assert await peer.until(b"\x88\x02\x03\xe8")
        # Sooner than the second for which the server waits for the end of a line.
        with trio.fail_after(0.5):
            await outbox.gone.wait()
        assert not await peer.to_the_end()


async def test_pings_are_answered_while_the_database_keeps_a_connection_waiting(server: Server) -> None:
    alice = await server.register("alice")
    await (await alice.connect("phone")).leave()
    async with server.house.pool.transaction() as tx, raw.websocket(alice, "phone") as peer:
        await tx.execute("select from device_cursors for update")
        await peer.say(client_frame(raw.PING, b"there?"))
        await peer.until(b"\x8a\x06there?")
        assert b"SESSION_READY" not in peer.received


async def test_a_connection_that_ended_leaves_nothing_for_the_collector(server: Server) -> None:
    alice = await server.register("alice")
    gc.collect()
    gc.disable()
    try:
        for torn in (False, True):
            phone = await alice.connect("phone")
            await phone.roundtrip()
            assert phone._ws is not None
            if torn:
                await trio.aclose_forcefully(phone._ws._stream)
            else:
                await phone.leave()
            await until(lambda: server.house.switchboard.connections == 0)
            await until(lambda: not any(isinstance(left, Session | Outbox | ServerSocket) for left in gc.get_objects()))
    finally:
        gc.enable()


# --- so many devices, so many connections ---


async def test_one_device_too_many_is_told_and_the_others_stay(database_url: str, redis_url: str) -> None:
    async with serving(settings_for(database_url, redis_url, devices_per_user=2)) as server:
        alice, bob = await server.register("alice"), await server.register("bob")
        phone, laptop = await alice.connect("phone"), await alice.connect("laptop")
        assert phone.ready["limits"]["devices"] == 2
        with pytest.raises(AssertionError, match=r"closed \(4429, 'too many devices'\)"):
            await alice.open("tablet")
        await bob.connect("tablet")
        again = await alice.connect("phone")  # its own place
        await phone.closing(Cut.REPLACED)
        await laptop.leave()
        await until(lambda: server.house.switchboard.connections == 2)
        await alice.connect("tablet")
        await again.roundtrip()


async def test_over_the_processs_bound_the_upgrade_is_503(database_url: str, redis_url: str) -> None:
    async with serving(settings_for(database_url, redis_url, max_connections=2)) as server:
        alice = await server.register("alice")
        phone = await alice.connect("phone")
        await alice.connect("laptop")
        status, problem = await refused(alice, "tablet")
        assert (status, problem["code"]) == (503, "unavailable") and 1 <= problem["retry_after"] <= 5
        assert told_ms(await closed_at_once(server.url, alice)) in range(1_000, 5_001)
        await phone.leave()
        await until(lambda: server.house.switchboard.connections == 1)
        await alice.connect("tablet")


async def closed_at_once(url: str, person: Person, code: int = 1013) -> str:
    """What a browser's page is told: its socket opens, and is closed with that code; gives the reason."""
    headers = [*person.bearer.items(), ("Origin", url)]
    async with trio_websocket.open_websocket_url(f"{url.replace('http', 'ws', 1)}/ws?device_id=tab", extra_headers=headers) as tab:
        with pytest.raises(trio_websocket.ConnectionClosed) as closed, trio.fail_after(10):
            await tab.get_message()
    assert closed.value.reason.code == code
    return str(closed.value.reason.reason)


def told_ms(reason: str) -> int:
    name, _, value = reason.partition("=")
    assert name == "retry_after_ms"
    return int(value)


@asynccontextmanager
async def front_of(server: Server, arrivals: Arrivals, is_draining: Callable[[], bool] = lambda: False) -> AsyncIterator[str]:
    """Another way into the same house, with an admission of its own; its URL."""
    front = WebSocketFront(server.house, arrivals=arrivals, on_signed_in=lambda *_: None, is_draining=is_draining)
    sockets = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        serve = partial(listener.serve, sockets, tls=None, http=front, websocket=front, admission=Admission())
        running: listener.Listener = await nursery.start(serve)
        yield f"http://127.0.0.1:{running.addresses[0][1]}"
        nursery.cancel_scope.cancel()


def way_in(**changed: Any) -> Arrivals:
    return Arrivals(**{"at_once": 1, "per_user": 20, "randomness": random.Random(1), **changed})


async def test_who_finds_no_turn_in_time_is_told_when_to_come_back(server: Server) -> None:
    alice = await server.register("alice")
    arrivals = way_in(wait_s=0.05)
    async with front_of(server, arrivals) as url:
        there = replace(server, url=url)
        with await arrivals.turn(UUID(alice.user_id)):
            with pytest.raises(trio_websocket.ConnectionRejected) as rejected:
                await alice.connect("phone", to=there)
            problem = msgspec.json.decode(rejected.value.body or b"")
            assert (rejected.value.status_code, problem["code"]) == (503, "unavailable") and 1 <= problem["retry_after"] <= 5
            assert told_ms(await closed_at_once(url, alice)) in range(1_000, 5_001)
        assert server.house.switchboard.connections == 0
        await alice.connect("phone", to=there)
        assert arrivals.sent_away == 2


async def test_who_waits_in_line_is_let_in_when_the_one_before_is_ready(server: Server) -> None:
    alice = await server.register("alice")
    arrivals = way_in()
    async with front_of(server, arrivals) as url, trio.open_nursery() as nursery:
        there = replace(server, url=url)
        async with server.house.pool.transaction() as tx:
            await tx.execute("lock table device_cursors")
            nursery.start_soon(partial(alice.connect, "phone", to=there))
            nursery.start_soon(partial(alice.connect, "laptop", to=there))
            await until(lambda: arrivals.waiting == 1 and server.house.switchboard.connections == 1)
    assert arrivals.waiting == arrivals.sent_away == 0


async def test_who_stands_in_line_when_the_server_stops_is_told_so_at_once(server: Server) -> None:
    alice = await server.register("alice")
    arrivals, stop = way_in(), trio.Event()
    async with front_of(server, arrivals, is_draining=stop.is_set) as url, trio.open_nursery() as nursery:
        reasons: list[str] = []

        async def wait_in_a_browser() -> None:
            reasons.append(await closed_at_once(url, alice, 1012))

        with await arrivals.turn(UUID(alice.user_id)):
            nursery.start_soon(wait_in_a_browser)
            await until(lambda: arrivals.waiting == 1)
            stop.set()
            arrivals.close()
            await until(lambda: len(reasons) == 1)
        assert told_ms(reasons[0]) in range(1_000, 5_001)


async def test_who_hangs_up_in_line_leaves_nothing_behind(server: Server) -> None:
    alice = await server.register("alice")
    arrivals = way_in()
    async with front_of(server, arrivals) as url:
        with await arrivals.turn(UUID(alice.user_id)):
            async with await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2])) as stream:
                bearer = f"Authorization: {alice.bearer['Authorization']}"
                asked = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + "A" * 22 + "=="
                await stream.send_all(f"GET /ws HTTP/1.1\r\nHost: x\r\n{asked}\r\n{bearer}\r\n\r\n".encode())
                await until(lambda: arrivals.waiting == 1)
        await alice.connect("phone", to=replace(server, url=url))
        await until(lambda: server.house.switchboard.connections == 1)


async def test_a_login_that_ends_between_its_check_and_its_registration_is_cut(server: Server) -> None:
    """The socket was accepted for a living login; the news of its end found nobody registered yet."""
    alice = await server.register("alice")

    asked = itertools.count(1)

    def end_login() -> bool:
        if next(asked) == 2:  # the last question before the socket is opened
            server.house.logins.ended([UUID(alice.login_id)])
        return False

    async with front_of(server, way_in(), is_draining=end_login) as url, trio.open_nursery() as nursery:
        device = Device(alice, True)
        headers = [(b"Authorization", alice.bearer["Authorization"].encode())]
        await nursery.start(device.run, f"{url.replace('http', 'ws', 1)}/ws", headers)
        await device.closing(Cut.LOGIN_ENDED)


class _AfterEveryStep(trio.abc.Instrument):
    """Does something after every step of any task; keeps what went wrong, for Trio would only log it."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act
        self.failures: list[Exception] = []

    def after_task_step(self, task: object) -> None:
        try:
            self._act()
        except Exception as failure:
            self.failures.append(failure)


async def test_an_entry_that_finds_no_room_while_a_connection_ends_harms_nobody(server: Server) -> None:
    """Its tasks have ended, and it has not had its turn to say so: whoever sends it back to catching up must not fail."""
    alice = await server.register("alice")
    phone = await alice.connect("phone")
    (outbox,) = server.house.switchboard.all()
    session = outbox.catch_up.__self__
    tried = []

    def fall_back_at_the_end() -> None:
        if not outbox.closed and not session._nursery.child_tasks:
            tried.append(True)
            outbox.fall_back()

    instrument = _AfterEveryStep(fall_back_at_the_end)
    trio.lowlevel.add_instrument(instrument)
    await phone.leave()
    await until(lambda: outbox.closed)
    trio.lowlevel.remove_instrument(instrument)
    assert tried and not instrument.failures


# --- signs of life ---


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Runs as fast as the real one, and can be set forward."""
    return trio.testing.MockClock(rate=1.0)


async def test_any_frame_is_a_sign_of_life_and_silence_ends_the_connection(clock: trio.testing.MockClock, server: Server) -> None:
    alice = await server.register("alice")
    talker, silent = await alice.connect("laptop"), await alice.connect("phone")
    await silent.roundtrip()  # its confirmation has been heard
    for text in ('{"type":"HEARTBEAT_PING","payload":{}}', '{"type":"NO_SUCH_TYPE","payload":{}}', "not even JSON"):
        clock.jump(SILENCE_S / 3 - 1)
        await talker.send_text(text)
        await talker.expect(lambda frame: frame["type"] in ("HEARTBEAT_PONG", "ERROR"))
        assert not silent.ended.is_set()
    clock.jump(3)
    assert await silent.closing(Cut.SILENT) == "no sign of life"
    await talker.roundtrip()
    clock.jump(SILENCE_S + 1)
    await talker.closing(4408)
    await until(lambda: server.house.switchboard.connections == 0)


async def test_ping_is_answered_with_the_servers_time_and_position(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    conversation_id = await server.pair(alice, bob)
    phone, laptop = await bob.connect("phone"), await alice.connect("laptop")
    assert (phone.ready["heartbeat_interval"], phone.ready["heartbeat_timeout"]) == (30, SILENCE_S)
    said = await laptop.say(conversation_id, "hello")
    await phone.reached(said["message_id"])
    pong = await phone.roundtrip()
    assert pong["last_sync_id"] == said["message_id"]
    assert pong["server_time"].endswith("Z")


async def test_a_bug_ends_its_connection_with_1011_and_the_server_lives(server: Server, database_url: str) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    conversation_id = await server.pair(alice, bob)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    with psycopg.connect(database_url, autocommit=True) as database:
        # What no code expects: a column is gone. (Without its table the database would count as away.)
        database.execute("alter table participations rename column left_message_id to mislaid")
        await phone.send("MESSAGE_ACK", status="read", conversation_id=str(UUID(int=1)), message_id=1)
        assert await phone.closing(Cut.BUG) == "internal error"
        database.execute("alter table participations rename column mislaid to left_message_id")
    again = await bob.connect("phone")
    await laptop.say(conversation_id, "still here?")
    assert (await again.expect("MESSAGE_RECEIVE"))["payload"]["content"] == "still here?"


# --- keys in Redis ---


async def test_session_keys_tell_of_connections_and_go_with_them(server: Server, redis_url: str) -> None:
    alice = await server.register("alice")
    phone = await alice.open("phone", platform="ios", app_version="1.2")
    key, index = f"session:{alice.user_id}:phone", f"sessions:{alice.user_id}"
    with redis.Redis.from_url(redis_url) as client:

        def held() -> dict[str, Any]:
            return cast(dict[str, Any], msgspec.json.decode(cast(bytes, client.get(key) or b"{}")))

        await until(lambda: client.exists(index) == 1)
        session = held()
        assert session.keys() == {
            "session_id", "user_id", "device_id", "connected_at", "last_heartbeat", "client_info", "process",
        }  # fmt: skip
        assert (session["session_id"], session["user_id"], session["device_id"]) == (
            phone.ready["session_id"],
            alice.user_id,
            "phone",
        )
        told = session["client_info"]
        assert (told["platform"], told["app_version"], told["ip_address"]) == ("ios", "1.2", "127.0.0.1")
        assert told["user_agent"] is None, "trio-websocket gives none"
        assert client.smembers(index) == {b"phone"}

        client.expire(key, 5)
        await phone.roundtrip()
        await until(lambda: cast(int, client.ttl(key)) > 80 and cast(int, client.ttl(index)) > 80)
        assert held()["last_heartbeat"] >= session["last_heartbeat"]
        assert held()["connected_at"] == session["connected_at"]

        newer = await alice.connect("phone")
        await phone.closing(Cut.REPLACED)
        await server.house.link.call("PING")  # what the older had to say in leaving is said
        assert held()["session_id"] == newer.ready["session_id"], "the older leaves the newer one's key alone"
        assert client.smembers(index) == {b"phone"}

        laptop = await alice.connect("laptop")
        await newer.leave()
        await until(lambda: not client.exists(key))
        assert client.smembers(index) == {b"laptop"}
        await laptop.leave()
        await until(lambda: not client.exists(index))


# --- TLS ---


async def test_https_and_wss_share_the_port_and_speak_tls_1_2_and_1_3_alone(database_url: str, redis_url: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    with (tmp_path / "cert.pem").open("wb") as chain:
        chain.writelines(pem.bytes() for pem in certificate.cert_chain_pems)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    settings = settings_for(database_url, redis_url, tls_cert=tmp_path / "cert.pem", tls_key=tmp_path / "key.pem")
    async with serving(settings) as server, httpx.AsyncClient(base_url=server.url, verify=trust) as http:
        server.http = http
        alice = await server.register("alice")
        headers = [(b"Authorization", alice.bearer["Authorization"].encode())]
        async with trio_websocket.open_websocket_url(
            server.url.replace("https", "wss") + "/ws", ssl_context=trust, extra_headers=headers
        ) as ws:
            ready = msgspec.json.decode(await ws.get_message())
            assert (ready["type"], ready["payload"]["user_id"]) == ("SESSION_READY", alice.user_id)
        port = server.url.rpartition(":")[2]
        for option, is_spoken in (("-tls1_2", True), ("-tls1_3", True), ("-tls1_1", False)):
            command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", option, "-cipher", "ALL:@SECLEVEL=0"]
            done = await trio.run_process(command, stdin=b"", capture_stdout=True, stderr=subprocess.STDOUT, check=False)
            assert (b"Cipher is (NONE)" not in done.stdout) is is_spoken, done.stdout.decode()


# --- the drain ---


async def keep_saying(device: Device, conversation_id: str, acked: dict[str, int], enough: Callable[[], object]) -> None:
    """Send one text after the other until the connection ends; notes what was acknowledged."""
    number = 0
    while not device.ended.is_set():
        client_id = f"{device.person.username}-{number}"
        number += 1
        try:
            answer = await device.say(conversation_id, "under load", client_id)
        except trio_websocket.ConnectionClosed:
            return
        except AssertionError:
            assert device.ended.is_set()
            return
        if answer["type"] == "MESSAGE_ACK":
            acked[client_id] = answer["message_id"]
            enough()


def texts_stored(database_url: str) -> dict[str, int]:
    """By client id the message_id of every text."""
    with psycopg.connect(database_url) as database:
        rows = database.execute("select client_message_id, message_id from messages where message_type = 'text'")
        return {str(row[0]): int(row[1]) for row in rows}


async def test_a_drain_under_load_tells_everybody_and_loses_nothing_acknowledged(database_url: str, redis_url: str) -> None:
    acked: dict[str, int] = {}
    under_way = trio.Event()
    async with serving(settings_for(database_url, redis_url)) as server:
        people = [await server.register(f"user{number}") for number in range(10)]
        devices: list[Device] = []

        async def connect(person: Person, number: int) -> None:
            devices.append(await person.connect(f"device{number}"))

        async with trio.open_nursery() as nursery:
            for person in people:
                for number in range(10):
                    nursery.start_soon(connect, person, number)
        assert server.house.switchboard.connections == 100
        for one, other in zip(people[::2], people[1::2], strict=True):
            conversation_id = await server.pair(one, other)
            for person in (one, other):
                talker = next(device for device in devices if device.person is person)
                enough = lambda: under_way.set() if len(acked) > 100 else None  # noqa: E731
                server.nursery.start_soon(keep_saying, talker, conversation_id, acked, enough)
        with trio.fail_after(20):
            await under_way.wait()
        started_at = trio.current_time()
        server.stop.set()
        for device in devices:
            reason = await device.closing(Cut.RESTART)
            assert reason is not None and reason.startswith("retry_after_ms=")
            assert 0 < int(reason.partition("=")[2]) <= 5_000
    assert trio.current_time() - started_at < 10
    found = await trio.to_thread.run_sync(texts_stored, database_url)
    assert len(acked) > 100
    assert {client_id: found.get(client_id) for client_id in acked} == acked


async def test_while_draining_nobody_new_is_let_in(server: Server) -> None:
    alice = await server.register("alice")
    server.stop.set()
    with pytest.raises((trio_websocket.HandshakeError, OSError)):
        await alice.open("phone")


@asynccontextmanager
async def program(database_url: str, redis_url: str) -> AsyncIterator[tuple[subprocess.Popen[str], Server]]:
    """`uim serve` as a process of its own, and a way to talk to it."""
    (public,), (operations,) = listen([Bind("127.0.0.1", 0)]), listen([Bind("127.0.0.1", 0)])
    with public, operations:
        binds = {"UIM_BIND": f"fd://{public.fileno()}", "UIM_OPERATIONS_BIND": f"fd://{operations.fileno()}"}
        environ = environment(**variables_for(database_url, redis_url), **binds)
        with started("serve", environ=environ, fds=(public.fileno(), operations.fileno())) as process:
            url = f"http://{address_of(public)}"
            async with trio.open_nursery() as nursery, httpx.AsyncClient(base_url=url, timeout=20) as http:
                while True:
                    try:
                        await http.get("/health")
                        break
                    except httpx.TransportError:
                        assert process.poll() is None, process.communicate()[0]
                yield process, Server(cast(Any, None), url, "", http, nursery, trio.Event())
                nursery.cancel_scope.cancel()


async def test_sigterm_ends_the_program_with_0_within_10_seconds_and_its_clients_are_told(database_url: str, redis_url: str) -> None:
    async with program(database_url, redis_url) as (process, server):
        alice, bob = await server.register("alice"), await server.register("bob")
        conversation_id = await server.pair(alice, bob)
        laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
        acked: dict[str, int] = {}
        under_way = trio.Event()
        server.nursery.start_soon(keep_saying, laptop, conversation_id, acked, under_way.set)
        with trio.fail_after(10):
            await under_way.wait()
        process.send_signal(signal.SIGTERM)
        for device in (laptop, phone):
            await device.closing(Cut.RESTART)
        assert await trio.to_thread.run_sync(process.wait, 10) == 0
    found = await trio.to_thread.run_sync(texts_stored, database_url)
    assert {client_id: found.get(client_id) for client_id in acked} == acked
