"""Two processes on one database: what is said to one reaches those who are at the other, with Redis and without it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest
import trio

from tests.house import Device, Person, Server, serving, settings_for
from uim.errors import Cut

NOBODY_LISTENS = "redis://127.0.0.1:1/0"

pytestmark = pytest.mark.timeout(60)


@dataclass
class Two:
    """`here` registers and answers HTTP; `there` is the other process. `has_bus`: whether Redis is there."""

    here: Server
    there: Server
    has_bus: bool

    async def alice_here_and_bob_there(self) -> tuple[Person, Person, str, Device, Device]:
        alice, bob = await self.here.register("alice"), await self.here.register("bob")
        conversation_id = await self.here.pair(alice, bob)
        return alice, bob, conversation_id, await alice.connect("laptop"), await bob.connect("phone", to=self.there)


async def started(database_url: str, redis_url: str, *, has_bus: bool) -> tuple[AsyncExitStack, Two]:
    stack = AsyncExitStack()
    settings = settings_for(database_url, redis_url)  # the same keys: a token of one is good at the other
    here = await stack.enter_async_context(serving(settings))
    there = await stack.enter_async_context(serving(settings))
    with trio.fail_after(5):
        while has_bus and not (here.house.link.hears and there.house.link.hears):
            await trio.sleep(0.005)
    return stack, Two(here, there, has_bus)


@pytest.fixture(params=["with Redis", "without Redis"])
async def two(request: pytest.FixtureRequest, database_url: str, redis_url: str) -> AsyncIterator[Two]:
    has_bus = request.param == "with Redis"
    stack, made = await started(database_url, redis_url if has_bus else NOBODY_LISTENS, has_bus=has_bus)
    async with stack:
        yield made


@pytest.fixture
async def bused(database_url: str, redis_url: str) -> AsyncIterator[Two]:
    stack, made = await started(database_url, redis_url, has_bus=True)
    async with stack:
        yield made


async def until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not holds():
            await trio.sleep(0.005)


async def test_messages_reach_the_other_process_in_order_both_ways(two: Two) -> None:
    _, _, conversation_id, laptop, phone = await two.alice_here_and_bob_there()
    for number in range(10):
        await (laptop, phone)[number % 2].say(conversation_id, f"text {number}")
    last = await laptop.say(conversation_id, "last")
    await phone.reached(last["message_id"])
    await laptop.reached(last["message_id"])
    assert phone.contents() == [f"text {number}" for number in range(0, 10, 2)] + ["last"]
    assert laptop.contents() == [f"text {number}" for number in range(1, 10, 2)]


async def test_with_the_bus_a_message_does_not_wait_for_the_next_look_at_the_database(bused: Two) -> None:
    _, _, conversation_id, laptop, phone = await bused.alice_here_and_bob_there()
    await until(lambda: bused.here.house.bus._others_hear)
    delays = []
    for number in range(5):
        said_at = trio.current_time()
        await laptop.say(conversation_id, f"text {number}")
        await phone.expect("MESSAGE_RECEIVE", content=f"text {number}")
        delays.append(trio.current_time() - said_at)
    assert min(delays) < 0.1, f"the database is looked at every 0.5 s; these took {delays}"


async def test_two_writers_at_once_make_one_log(two: Two) -> None:
    alice, _, conversation_id, laptop, phone = await two.alice_here_and_bob_there()
    tablet = await alice.connect("tablet", to=two.there)

    async def say_all(device: Device, name: str) -> None:
        for number in range(30):
            await device.say(conversation_id, f"{name} {number}")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(say_all, laptop, "alice")
        nursery.start_soon(say_all, phone, "bob")
    last = await phone.say(conversation_id, "last")
    for device in (laptop, phone, tablet):
        await device.reached(last["message_id"])
        ids = [entry["message_id"] for entry in device.entries]
        assert ids == sorted(set(ids))
    seqs = [entry["seq"] for entry in tablet.entries if entry["message_type"] == "text"]
    assert seqs == list(range(1, 62))
    assert laptop.contents() == [*(f"bob {number}" for number in range(30)), "last"], "its own it has by their acks"
    assert phone.contents() == [f"alice {number}" for number in range(30)]


async def test_a_repeat_at_the_other_process_is_the_same_message(two: Two) -> None:
    alice, _, conversation_id, laptop, phone = await two.alice_here_and_bob_there()
    first = await laptop.say(conversation_id, "hello", "one")
    again = await (await alice.connect("tablet", to=two.there)).say(conversation_id, "hello", "one")
    assert (again["message_id"], again["duplicate"]) == (first["message_id"], True)
    await phone.reached(first["message_id"])
    assert phone.contents() == ["hello"]


async def test_delivered_and_read_reach_the_sender_and_own_reads_ones_other_devices(bused: Two) -> None:
    _, bob, conversation_id, laptop, phone = await bused.alice_here_and_bob_there()
    tablet = await bob.connect("tablet")
    said = await laptop.say(conversation_id, "hello")
    await phone.reached(said["message_id"])
    receipt = (await laptop.expect("MESSAGE_ACK", status="delivered", conversation_id=conversation_id))["payload"]["receipts"]
    assert [(r["user_id"], r["message_id"]) for r in receipt] == [(bob.user_id, said["message_id"])]
    await phone.send("MESSAGE_ACK", status="read", conversation_id=conversation_id, message_id=said["message_id"])
    receipt = (await laptop.expect("MESSAGE_ACK", status="read", conversation_id=conversation_id))["payload"]["receipts"]
    assert [(r["user_id"], r["message_id"]) for r in receipt] == [(bob.user_id, said["message_id"])]
    own = (await tablet.expect("MESSAGE_ACK", status="read", conversation_id=conversation_id))["payload"]
    assert own["unread_count"] == 0


async def test_without_the_bus_receipts_are_found_where_they_are_stored(database_url: str) -> None:
    stack, two = await started(database_url, NOBODY_LISTENS, has_bus=False)
    async with stack:
        alice, bob, conversation_id, laptop, phone = await two.alice_here_and_bob_there()
        said = await laptop.say(conversation_id, "hello")
        await phone.reached(said["message_id"])
        await bob.post(f"/api/conversations/{conversation_id}/read", {"message_id": said["message_id"]}, expect=204)
        message = await alice.get(f"/api/conversations/{conversation_id}/messages/{said['message_id']}")
        assert bob.user_id in message["delivery_status"]["delivered"]
        assert bob.user_id in message["delivery_status"]["read"]


async def test_a_group_made_and_changed_here_is_told_there(two: Two) -> None:
    alice, bob, _, laptop, phone = await two.alice_here_and_bob_there()
    cyd = await two.here.register("cyd")
    tablet = await cyd.connect("tablet", to=two.there)
    group_id = await two.here.group(alice, bob, cyd)
    for device in (laptop, phone, tablet):
        update = await device.expect(
            lambda frame: (
                frame["type"] == "CONVERSATION_UPDATE"
                and frame["payload"].get("conversation", {}).get("conversation_id") == group_id
            )
        )
        assert len(update["payload"]["conversation"]["participants"]) == 3
    await alice.call("DELETE", f"/api/conversations/{group_id}/participants/{cyd.user_id}", expect=204)
    await tablet.expect("CONVERSATION_UPDATE", conversation_id=group_id, removed=True)
    said = await laptop.say(group_id, "between us")
    await phone.reached(said["message_id"])
    await tablet.reached(said["message_id"])
    assert phone.contents() == ["between us"] and tablet.contents() == []
    assert tablet.events()[-1] == "participant_removed"
    refused = await tablet.say(group_id, "let me in")
    assert (refused["type"], refused["code"]) == ("ERROR", "not_found")


async def test_a_one_on_one_made_here_brings_its_first_message_there(two: Two) -> None:
    alice, bob = await two.here.register("alice"), await two.here.register("bob")
    phone = await bob.connect("phone", to=two.there)
    conversation_id = await two.here.pair(alice, bob)
    await (await alice.connect("laptop")).say(conversation_id, "hello")
    assert (await phone.expect("MESSAGE_RECEIVE"))["payload"]["conversation_id"] == conversation_id


async def test_a_login_revoked_here_is_cut_there_within_a_second(two: Two) -> None:
    alice = await two.here.register("alice")
    on_laptop = await two.here.login(alice.username, "laptop")
    laptop = await on_laptop.connect("laptop", to=two.there)
    await alice.call("DELETE", f"/api/auth/sessions/{on_laptop.login_id}", expect=204)
    with trio.fail_after(1):
        await laptop.closing(Cut.LOGIN_ENDED)
    two.here.http, was = two.there.http, two.here.http
    assert (await on_laptop.call("GET", "/api/users/me", expect=401)).json()["code"] == "session_ended"
    two.here.http = was


async def test_a_device_that_comes_to_the_other_process_is_replaced_here(two: Two) -> None:
    _, bob, conversation_id, laptop, phone = await two.alice_here_and_bob_there()
    newer = await bob.connect("phone")
    with trio.fail_after(1):
        await phone.closing(Cut.REPLACED)
    if two.has_bus:
        await two.there.house.link.call("PING")  # what the older had to say in leaving is said
        key = await two.here.house.link.call("GET", f"session:{bob.user_id}:phone")
        assert newer.ready["session_id"].encode() in key, "the older leaves the newer one's key alone"
    newest = await bob.connect("phone", to=two.there)
    with trio.fail_after(1):
        await newer.closing(Cut.REPLACED)
    said = await laptop.say(conversation_id, "hello")
    await newest.reached(said["message_id"])
    assert newest.contents() == ["hello"]


async def test_of_one_device_at_both_processes_at_once_one_stays(two: Two) -> None:
    alice = await two.here.register("alice")
    devices: list[Device] = []

    async def connect(server: Server) -> None:
        device = Device(alice, True)
        devices.append(device)
        url = f"{server.url.replace('http', 'ws', 1)}/ws?device_id=phone"
        await server.nursery.start(device.run, url, [(b"Authorization", alice.bearer["Authorization"].encode())])

    async with trio.open_nursery() as nursery:
        for server in (two.here, two.there) * 2:
            nursery.start_soon(connect, server)
    await until(lambda: sum(device.ended.is_set() for device in devices) == 3)
    for server in (two.here, two.there):
        await server.polled()
    (left,) = [device for device in devices if not device.ended.is_set()]
    await left.roundtrip()
    # Which of two came later may be too close to tell: then the one that opens last may come back.
    codes = {device.closed[0] for device in devices if device.closed}
    assert codes <= {Cut.REPLACED.close_code, Cut.GOING_AWAY.close_code}
    assert two.here.house.switchboard.connections + two.there.house.switchboard.connections == 1


async def test_a_connect_that_had_to_wait_does_not_replace_one_that_came_after_it(two: Two) -> None:
    alice = await two.here.register("alice")
    late = Device(alice, True)
    url = f"{two.here.url.replace('http', 'ws', 1)}/ws?device_id=phone&last_sync_id=0"
    async with AsyncExitStack() as busy:
        for _ in range(two.here.house.settings.database_pool):
            await busy.enter_async_context(two.here.house.pool.connection())
        await two.here.nursery.start(late.run, url, [(b"Authorization", alice.bearer["Authorization"].encode())])
        await until(lambda: two.here.house.switchboard.connections == 1)
        phone = await alice.connect("phone", to=two.there)
    await late.closing(Cut.GOING_AWAY)
    for server in (two.here, two.there):
        await server.polled()
    await phone.roundtrip()
    assert phone.closed is None


async def test_one_process_goes_and_its_devices_go_on_at_the_other(database_url: str, redis_url: str) -> None:
    settings = settings_for(database_url, redis_url)
    async with serving(settings) as here:
        alice, bob = await here.register("alice"), await here.register("bob")
        conversation_id = await here.pair(alice, bob)
        async with serving(settings) as there:
            phone = await bob.connect("phone", to=there)
            said = await (await alice.connect("laptop")).say(conversation_id, "first")
            await phone.reached(said["message_id"])
            there.stop.set()
            await phone.closing(Cut.RESTART)
        laptop = await alice.connect("laptop")
        await laptop.say(conversation_id, "second")
        again = await bob.connect("phone", last_sync_id=phone.cursor)
        assert again.contents() == ["second"]
