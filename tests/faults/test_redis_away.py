"""Two servers while Redis is away: halted, killed, hanging, refusing, cut in the middle of its replies; and while both databases are.

The Valkey is the test's own. Messages, sync, receipts and sign-in go on; nobody is disconnected, and nobody waits for Redis; what
is lost meanwhile is told in /health, and comes back by itself.
"""

from __future__ import annotations

import os
import signal
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trio

from tests.faults.proxy import Proxy, postgres_proxy, redis_proxy
from tests.house import Device, Frame, Person, Server
from tests.processes import acquainted, at, processes
from tests.test_redis_link import valkey
from tests.transcripts.test_friends import befriend
from uim.errors import Cut
from uim.store.redis import ANSWER_WITHIN_S, LEAST_REST_S

pytestmark = pytest.mark.timeout(90)

WAIT_S = 20.0


@dataclass
class Scene:
    """alice's laptop is here, bob's phone there; they are friends and talk. Each server has a line of its own to Redis."""

    here: Server
    there: Server
    lines: list[Proxy]
    postgres: Proxy
    folder: Path
    valkey_pid: int
    alice: Person
    bob: Person
    pair: str
    laptop: Device
    phone: Device
    nursery: trio.Nursery
    _ends: list[Callable[[], Awaitable[None]]] = field(default_factory=list)

    async def say(self, content: str) -> dict[str, Any]:
        """From here to there, and its receipts back."""
        said = await self.laptop.say(self.pair, content)
        assert said["type"] == "MESSAGE_ACK", said
        await self.phone.reached(said["message_id"])
        await self.phone.send("MESSAGE_ACK", status="read", conversation_id=self.pair, message_id=said["message_id"])
        for status in ("delivered", "read"):
            await self.laptop.expect(_receipt(status, said["message_id"]))
        return said

    # -- what goes wrong ------------------------------------------------------------------------------------------------------

    async def halted(self) -> None:
        os.kill(self.valkey_pid, signal.SIGSTOP)

        async def end() -> None:
            os.kill(self.valkey_pid, signal.SIGCONT)

        self._ends.append(end)

    async def killed(self) -> None:
        os.kill(self.valkey_pid, signal.SIGKILL)
        self._ends.append(self._start_valkey_again)

    async def _start_valkey_again(self) -> None:
        self.valkey_pid = await self.nursery.start(_run_valkey, self.folder)

    async def hanging(self) -> None:
        for line in self.lines:
            line.hang()
        self._ends.append(self._let_through)

    async def refusing(self) -> None:
        for line in self.lines:
            line.refuse()
        self._ends.append(self._let_through)

    async def cut_in_mid_reply(self) -> None:
        """Every reply from now on ends after two bytes, on every line and each that is made in its place."""
        for line in self.lines:
            for _ in range(1_000):
                line.lose(carried_out=True, first_bytes=2)
        self._ends.append(self._let_through)

    async def _let_through(self) -> None:
        for line in self.lines:
            line.accept()
            line.flow()
            line._losses.clear()

    async def back(self) -> None:
        while self._ends:
            await self._ends.pop()()


def _receipt(status: str, message_id: int) -> Callable[[Frame], bool]:
    def reaches(frame: Frame) -> bool:
        payload = frame["payload"]
        return payload.get("status") == status and any(
            receipt["message_id"] >= message_id for receipt in payload.get("receipts", ())
        )

    return reaches


async def _run_valkey(folder: Path, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
    async with valkey(folder) as (_, pid):
        task_status.started(pid)
        try:
            await trio.sleep_forever()
        finally:
            os.kill(pid, signal.SIGCONT)  # halted, it would not hear that it is to end


@asynccontextmanager
async def scene_on(database_url: str, folder: Path) -> AsyncIterator[Scene]:
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        pid = await nursery.start(_run_valkey, folder)
        url = f"unix://{folder}/valkey.sock?db=0"
        lines = [await stack.enter_async_context(redis_proxy(url)) for _ in range(2)]
        postgres = await stack.enter_async_context(postgres_proxy(database_url))
        servers = await stack.enter_async_context(
            processes(2, postgres.url, *(line.url for line in lines), presence_grace_s=0.2)
        )
        await acquainted(servers)
        here, there = servers
        alice, bob = await here.register("alice"), await here.register("bob")
        await befriend(alice, bob)
        pair = await here.pair(alice, bob)
        laptop, phone = await alice.connect("laptop"), await bob.connect("phone", to=there)
        made = Scene(here, there, lines, postgres, folder, pid, alice, bob, pair, laptop, phone, nursery)
        await made.say("before")
        yield made
        await made.back()
        await stack.aclose()
        nursery.cancel_scope.cancel()


@pytest.fixture
async def scene(database_url: str, reachable_folder: Path) -> AsyncIterator[Scene]:
    async with scene_on(database_url, reachable_folder) as made:
        yield made


async def until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(WAIT_S):
        while not holds():
            await trio.sleep(0.02)


async def health(server: Server) -> dict[str, Any]:
    answer = (await server.http.get(f"{server.operations_url}/health")).json()
    return dict(answer)


async def becomes(server: Server, status: str) -> dict[str, Any]:
    """Redis's check, once the server calls itself that."""
    with trio.fail_after(WAIT_S):
        while (told := await health(server))["status"] != status:
            await trio.sleep(0.1)
    return dict(told["checks"]["redis"])


FAULTS = ("halted", "killed", "hanging", "refusing", "cut_in_mid_reply")


@pytest.mark.parametrize("fault", FAULTS)
async def test_without_redis_all_but_presence_and_typing_goes_on_and_what_is_lost_comes_back(scene: Scene, fault: str) -> None:
    accepted = sum(line.accepted for line in scene.lines)
    await getattr(scene, fault)()
    began_at = trio.current_time()
    await scene.say("at once")
    for server in (scene.here, scene.there):
        redis_check = await becomes(server, "degraded")
        assert "presence and typing" in redis_check["meanwhile"] and redis_check["error"]
        assert (await server.http.get("/health/ready")).status_code == 200
    # Sign-in, sync and history, a new connection, a revocation, a replaced device.
    on_tablet = await scene.there.login(scene.bob.username, "tablet")
    tablet = await on_tablet.connect("tablet", to=scene.here, last_sync_id=0)
    assert tablet.contents() == ["before", "at once"]
    assert (await scene.bob.get("/api/sync?last_sync_id=0"))["messages"]
    refreshed = await scene.here.http.post("/api/auth/refresh", json={"refresh_token": on_tablet.tokens["refresh_token"]})
    assert refreshed.status_code == 200
    await at(scene.bob, scene.there).call("DELETE", f"/api/auth/sessions/{on_tablet.login_id}", expect=204)
    await tablet.closing(Cut.LOGIN_ENDED)
    await scene.say("later")
    # Who leaves meanwhile is not known elsewhere ...
    desk = await scene.alice.connect("desk", to=scene.there)
    await scene.phone.leave()
    await desk.expect(lambda frame: is_told(frame, scene.bob, "offline"))
    assert (await scene.alice.get(f"/api/users/{scene.bob.user_id}/presence"))["status"] == "offline", "unknown is offline"
    away_for_s = trio.current_time() - began_at
    tries = sum(line.accepted for line in scene.lines) - accepted
    assert tries <= 2 * 2 * (3 + away_for_s / LEAST_REST_S), f"no storm: {tries} in {away_for_s:.1f} s"
    await scene.back()
    # ... and is told afresh when it can be: all of it in one frame.
    for server in (scene.here, scene.there):
        await becomes(server, "ok")
    await until_told_offline(scene)
    phone = await scene.bob.connect("phone", to=scene.there, last_sync_id=scene.phone.cursor)
    await scene.laptop.expect(lambda frame: is_told(frame, scene.bob, "online"))
    scene.phone = phone
    await acquainted([scene.here, scene.there])
    await scene.say("after")
    await phone.send("TYPING_INDICATOR", conversation_id=scene.pair, typing=True)
    await scene.laptop.expect("TYPING_INDICATOR", user_id=scene.bob.user_id, typing=True)
    assert not scene.laptop.ended.is_set() and not desk.ended.is_set(), "nobody was disconnected"


def is_told(frame: dict[str, Any], person: Person, status: str) -> bool:
    return frame["type"] == "PRESENCE_UPDATE" and any(
        (user["user_id"], user["status"]) == (person.user_id, status) for user in frame["payload"]["users"]
    )


async def until_told_offline(scene: Scene) -> None:
    """The last that alice's laptop has been told of bob is that he is not there."""

    def last_told() -> bool | None:
        told = None
        for frame in scene.laptop.frames:
            if frame["type"] == "PRESENCE_UPDATE":
                online = is_told(frame, scene.bob, "online")
                told = online if online or is_told(frame, scene.bob, "offline") or "snapshot" in frame["payload"] else told
        return told

    with trio.fail_after(WAIT_S):
        await scene.laptop.until(lambda: last_told() is False)


async def took_s(asked: Callable[[], Awaitable[object]], times: int) -> list[float]:
    """In seconds, sorted."""
    took = []
    for _ in range(times):
        began_at = trio.current_time()
        await asked()
        took.append(trio.current_time() - began_at)
    return sorted(took)


async def test_nobody_waits_for_a_redis_that_hangs(scene: Scene) -> None:
    async def send() -> None:
        said = await scene.laptop.say(scene.pair, "hello")
        assert said["type"] == "MESSAGE_ACK"

    async def get() -> None:
        await scene.alice.get("/api/friends")
        await scene.alice.get(f"/api/users/{scene.bob.user_id}/presence")

    async def both() -> dict[str, list[float]]:
        return {"send": await took_s(send, 60), "get": await took_s(get, 15)}

    healthy = await both()
    await scene.halted()
    hung = await both()
    assert scene.here.house.link.is_up is False or hung["get"][-1] < 2.0
    for what in ("send", "get"):
        figures = [f"{1000 * took[len(took) * share // 100]:.0f}" for took in (healthy[what], hung[what]) for share in (50, 99)]
        print(f"{what}: healthy p50 {figures[0]} p99 {figures[1]} ms, hung p50 {figures[2]} p99 {figures[3]} ms")
    # The link notices after ANSWER_WITHIN_S and more; a question of presence gives up long before that.
    assert hung["get"][-1] < 2 * 0.25 + 10 * healthy["get"][-1] + 0.5 < ANSWER_WITHIN_S + 5
    assert statistics.median(hung["send"]) < 2 * statistics.median(healthy["send"]) + 0.05


async def test_with_both_away_nothing_is_acknowledged_and_afterwards_nothing_is_doubled(scene: Scene) -> None:
    await scene.refusing()
    scene.postgres.refuse()
    ids = [str(uuid4()) for _ in range(5)]
    began_at = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_refused_over_http, scene)
        for number, client_id in enumerate(ids):
            await scene.laptop.send(
                "MESSAGE_SEND", conversation_id=scene.pair, content=f"away {number}", client_message_id=client_id
            )
        for client_id in ids:
            refused = (await scene.laptop.expect("ERROR", client_message_id=client_id))["payload"]
            assert refused["code"] == "unavailable"
    assert trio.current_time() - began_at < 8 + 2
    assert (await scene.here.http.get("/health")).json() == {"status": "failed"}
    assert scene.phone.contents() == ["before"]
    # One after the other: what is repeated between the two is queued, and then stored.
    await scene.back()
    await until(lambda: scene.here.house.link.is_up)
    await scene.laptop.send("MESSAGE_SEND", conversation_id=scene.pair, content="away 0", client_message_id=ids[0])
    await scene.laptop.expect("MESSAGE_ACK", status="queued", client_message_id=ids[0])
    scene.postgres.accept()
    await scene.laptop.expect("MESSAGE_ACK", status="sent", client_message_id=ids[0])
    for server in (scene.here, scene.there):
        await becomes(server, "ok")
    for number, client_id in enumerate(ids):
        said = await scene.laptop.say(scene.pair, f"away {number}", client_id)
        assert (said["type"], said.get("status")) == ("MESSAGE_ACK", "sent"), said
    last = await scene.say("after")
    await scene.phone.reached(last["message_id"])
    assert scene.phone.contents() == ["before", *(f"away {number}" for number in range(5)), "after"]
    assert not scene.laptop.ended.is_set() and not scene.phone.ended.is_set()


async def _refused_over_http(scene: Scene) -> None:
    scene.here.http.timeout = WAIT_S
    body = {"client_message_id": "by http", "content": "by http"}
    answer = await scene.alice.call("POST", f"/api/conversations/{scene.pair}/messages", body, expect=503)
    assert answer.json()["code"] == "unavailable"
