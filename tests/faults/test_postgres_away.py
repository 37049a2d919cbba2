"""A whole server while PostgreSQL is away: what goes on, what is refused and how soon, and what follows when it is back.

The database is refused, hangs, or is cut in the middle of a query, by the proxy; once it is really stopped, killed and halted.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial

import psycopg
import pytest
import trio
import trio_websocket

from tests.faults.proxy import Proxy, postgres_proxy
from tests.house import PASSWORD, Device, Person, Server, serving, settings_for
from uim.errors import Cut

pytestmark = pytest.mark.timeout(60)

WAIT_S = 15.0


@dataclass
class Scene:
    """alice on her laptop and bob on his phone, who have talked already; the server reaches its database by the proxy."""

    server: Server
    proxy: Proxy
    alice: Person
    bob: Person
    pair: str
    laptop: Device
    phone: Device

    def back(self) -> None:
        self.proxy.accept()
        self.proxy.flow()

    async def queued(self, device: Device, content: str, client_message_id: str) -> None:
        """Say something and be told "queued"."""
        await device.send("MESSAGE_SEND", conversation_id=self.pair, content=content, client_message_id=client_message_id)
        with trio.fail_after(WAIT_S):
            await device.until(lambda: any(_answers(frame, client_message_id) for frame in device.frames))
        answer = await device.expect(lambda frame: _answers(frame, client_message_id))
        assert answer["payload"].get("status") == "queued", answer

    async def sent(self, device: Device, client_message_id: str) -> int:
        ack = await device.expect("MESSAGE_ACK", status="sent", client_message_id=client_message_id)
        return int(ack["payload"]["message_id"])


def _answers(frame: dict[str, object], client_message_id: str) -> bool:
    payload = frame["payload"]
    assert isinstance(payload, dict)
    return payload.get("client_message_id") == client_message_id and frame["type"] in ("MESSAGE_ACK", "ERROR")


@pytest.fixture
async def scene(database_url: str, redis_url: str) -> AsyncIterator[Scene]:
    async with postgres_proxy(database_url) as proxy, serving(settings_for(proxy.url, redis_url)) as server:
        alice, bob = await server.register("alice"), await server.register("bob")
        pair = await server.pair(alice, bob)
        laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
        said = await laptop.say(pair, "before")
        await phone.reached(said["message_id"])
        yield Scene(server, proxy, alice, bob, pair, laptop, phone)
        proxy.accept()
        proxy.flow()


async def until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(WAIT_S):
        while not holds():
            await trio.sleep(0.01)


@pytest.mark.parametrize("fault", ["refuse", "hang"])
async def test_sends_are_queued_then_sent_in_order_and_everybody_stays_connected(scene: Scene, fault: str) -> None:
    getattr(scene.proxy, fault)()
    began_at = trio.current_time()
    await scene.queued(scene.laptop, "m0", "m0")
    assert trio.current_time() - began_at < 5 + 2, "noticed within 5 s, then on Redis's disk"
    for number in range(1, 100):
        await scene.laptop.send("MESSAGE_SEND", conversation_id=scene.pair, content=f"m{number}", client_message_id=f"m{number}")
    for number in range(1, 100):
        await scene.laptop.expect("MESSAGE_ACK", status="queued", client_message_id=f"m{number}")
    await scene.phone.roundtrip()
    assert scene.phone.contents() == ["before"]
    scene.back()
    ids = [await scene.sent(scene.laptop, f"m{number}") for number in range(100)]
    assert ids == sorted(ids)
    with trio.fail_after(WAIT_S):
        await scene.phone.until(lambda: len(scene.phone.contents()) == 101)
    assert scene.phone.contents() == ["before", *(f"m{number}" for number in range(100))]
    assert not scene.laptop.ended.is_set() and scene.laptop.contents() == []


async def test_cut_in_the_middle_of_queries_nothing_is_lost_and_nobody_notices(scene: Scene) -> None:
    for number in range(20):
        scene.proxy.cut()
        said = await scene.laptop.say(scene.pair, f"m{number}", f"m{number}")
        assert said["type"] == "MESSAGE_ACK"
    await scene.phone.reached(said["message_id"])
    assert scene.phone.contents() == ["before", *(f"m{number}" for number in range(20))]


@pytest.mark.parametrize("fault", ["refuse", "hang"])
async def test_http_is_refused_soon_with_a_time_to_come_back_and_a_post_is_queued(scene: Scene, fault: str) -> None:
    getattr(scene.proxy, fault)()
    scene.server.http.timeout = WAIT_S  # type: ignore[assignment]  # httpx takes a number here
    await scene.queued(scene.laptop, "by socket", "by socket")
    path = f"/api/conversations/{scene.pair}/messages"
    refresh = {"refresh_token": scene.bob.tokens["refresh_token"]}
    login = {"username": scene.bob.username, "password": PASSWORD, "device_id": "tablet"}
    await scene.alice.call("GET", path)  # whoever comes first may wait for the silence to be one
    began_at = trio.current_time()
    answers = [
        await scene.alice.call("GET", path, expect=503),
        await scene.server.http.post("/api/auth/refresh", json=refresh),
        await scene.server.http.post("/api/auth/login", json=login),
        await scene.alice.call("GET", "/api/conversations", expect=503),
    ]
    took_s = trio.current_time() - began_at
    for answer in answers:
        problem = answer.json()
        assert (answer.status_code, problem["code"]) == (503, "unavailable")
        assert problem["retry_after"] > 0 and int(answer.headers["Retry-After"]) > 0
    assert took_s < 8, took_s
    posted = await scene.alice.call("POST", path, {"client_message_id": "by http", "content": "by http"}, expect=202)
    assert posted.json() == {"status": "queued", "client_message_id": "by http"}
    assert (await scene.server.http.get("/health")).json() == {"status": "failed"}
    scene.back()
    with trio.fail_after(WAIT_S):
        while (answer := await scene.alice.call("POST", path, posted_body("by http"))).status_code != 200:
            assert answer.status_code == 202, answer.text
            await trio.sleep(0.05)
    assert answer.json()["duplicate"] is True
    await scene.phone.until(lambda: scene.phone.contents() == ["before", "by socket", "by http"])
    assert (await scene.server.http.post("/api/auth/refresh", json=refresh)).status_code == 200
    with trio.fail_after(WAIT_S):
        while (await scene.server.http.get("/health")).json() != {"status": "ok"}:
            await trio.sleep(0.1)


def posted_body(text: str) -> dict[str, str]:
    return {"client_message_id": text, "content": text}


async def test_typing_goes_on(scene: Scene) -> None:
    scene.proxy.refuse()
    await scene.laptop.send("TYPING_INDICATOR", conversation_id=scene.pair, typing=True)
    await scene.phone.expect("TYPING_INDICATOR", user_id=scene.alice.user_id, typing=True)
    await scene.laptop.send("TYPING_INDICATOR", conversation_id=scene.pair, typing=False)
    await scene.phone.expect("TYPING_INDICATOR", user_id=scene.alice.user_id, typing=False)


@pytest.mark.parametrize("is_seen", [True, False], ids=["a login seen before", "a login not seen yet"])
async def test_a_new_connection_waits_and_catches_up_when_the_database_is_back(scene: Scene, is_seen: bool) -> None:
    if not is_seen:
        scene.server.house.logins._living.clear()
    scene.proxy.refuse()
    await scene.queued(scene.laptop, "m0", "m0")
    tablet: list[Device] = []

    async def connect() -> None:
        tablet.append(await scene.bob.connect("tablet", last_sync_id=0))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(connect)
        await until(lambda: scene.server.house.switchboard.connections == 3)
        scene.back()
    await tablet[0].until(lambda: tablet[0].contents() == ["before", "m0"])


async def test_a_login_that_had_ended_waits_for_nothing(scene: Scene) -> None:
    on_tablet = await scene.server.login(scene.bob.username, "tablet")
    await scene.bob.call("DELETE", f"/api/auth/sessions/{on_tablet.login_id}", expect=204)
    # As a process that has not heard of it, for it began only just now.
    scene.server.house.logins._living.clear()
    scene.server.house.logins._ended.clear()
    scene.proxy.refuse()
    device = Device(on_tablet, True)
    url = f"{scene.server.url.replace('http', 'ws', 1)}/ws?device_id=tablet"
    headers = [(name.encode(), value.encode()) for name, value in on_tablet.bearer.items()]
    await scene.server.nursery.start(device.run, url, headers)
    await until(lambda: scene.server.house.switchboard.connections == 3)
    assert device.frames == []
    scene.back()
    await device.closing(Cut.LOGIN_ENDED)
    assert device.frames == []


async def test_by_its_token_alone_nobody_takes_the_place_of_a_device(scene: Scene) -> None:
    """Or whoever holds the token of a login that has ended could send its user's device away, which does not come back by itself."""
    on_tablet = await scene.server.login(scene.bob.username, "tablet")
    await scene.bob.call("DELETE", f"/api/auth/sessions/{on_tablet.login_id}", expect=204)
    # As a process that has not heard of it, for it began only just now.
    scene.server.house.logins._living.clear()
    scene.server.house.logins._ended.clear()
    scene.proxy.refuse()
    with pytest.raises(trio_websocket.ConnectionRejected) as refused:
        await on_tablet.open("phone", last_sync_id=0)
    assert refused.value.status_code == 503
    await scene.phone.roundtrip()
    # Its own device, with a token that this process knows, does.
    scene.back()
    with trio.fail_after(WAIT_S):
        # Whoever finds out whether the database is back may have asked a moment before.
        while (await scene.bob.call("GET", "/api/users/me")).status_code != 200:
            await trio.sleep(0.01)
    scene.proxy.refuse()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(scene.bob.connect, "phone", last_sync_id=0))
        await scene.phone.closing(Cut.REPLACED)
        scene.back()


async def test_receipts_wait_and_are_stored_and_told_when_the_database_is_back(scene: Scene) -> None:
    said = await scene.laptop.say(scene.pair, "hello")
    await scene.phone.reached(said["message_id"])
    scene.proxy.refuse()
    await scene.phone.send("MESSAGE_ACK", status="read", conversation_id=scene.pair, message_id=said["message_id"])
    await scene.phone.roundtrip()
    scene.back()
    receipt = await scene.laptop.expect("MESSAGE_ACK", status="read", conversation_id=scene.pair)
    assert receipt["payload"]["receipts"][-1]["message_id"] == said["message_id"]


async def test_what_the_drain_refuses_its_sender_is_told(scene: Scene, database_url: str) -> None:
    scene.proxy.refuse()
    await scene.queued(scene.phone, "late", "late")
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("insert into blocks (user_id, blocked_id) values (%s, %s)", (scene.alice.user_id, scene.bob.user_id))
    scene.back()
    refused = await scene.phone.expect("ERROR", client_message_id="late")
    assert refused["payload"]["code"] == "forbidden"
    await scene.laptop.roundtrip()
    assert scene.laptop.contents() == []


async def test_whom_the_server_knows_to_be_out_is_not_queued(scene: Scene, database_url: str, redis_url: str) -> None:
    cyd = await scene.server.register("cyd")
    group = await scene.server.group(scene.alice, scene.bob, cyd)
    on_desk = await cyd.connect("desk")
    await scene.alice.call("DELETE", f"/api/conversations/{group}/participants/{cyd.user_id}", expect=204)
    await on_desk.expect("CONVERSATION_UPDATE", conversation_id=group, removed=True)
    scene.proxy.refuse()
    refused = await on_desk.say(group, "late")
    assert (refused["type"], refused["code"]) == ("ERROR", "unavailable")
