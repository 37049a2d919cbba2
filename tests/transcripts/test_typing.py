"""Typing: shown to the members who are connected, and to nobody else; the timing itself is tried in tests/test_typing.py."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest
import trio

from tests.faults.proxy import postgres_proxy
from tests.house import Device, Server, serving, settings_for
from uim.store import people


async def types(device: Device, conversation_id: str, typing: bool = True, request_id: str | None = None) -> None:
    await device.send("TYPING_INDICATOR", request_id, conversation_id=conversation_id, typing=typing)


async def shown(device: Device, conversation_id: str, user_id: str, typing: bool) -> None:
    """The next indicator that comes is exactly this."""
    frame = await device.expect("TYPING_INDICATOR")
    assert frame["payload"] == {"conversation_id": conversation_id, "user_id": user_id, "typing": typing}
    assert "request_id" not in frame


async def nothing_shown(*devices: Device) -> None:
    for device in devices:
        await device.roundtrip()
        assert not [frame for frame in device.frames if frame["type"] in ("TYPING_INDICATOR", "ERROR")]


async def test_both_of_bobs_devices_see_alice_type_and_hers_do_not(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    pair = await server.pair(alice, bob)
    laptop, her_phone = await alice.connect("laptop"), await alice.connect("phone")
    phone, tablet = await bob.connect("phone"), await bob.connect("tablet")
    await types(laptop, pair)
    for device in (phone, tablet):
        await shown(device, pair, alice.user_id, True)
    # Repeats, from whichever of her devices, are kept back for 3 s; a stop is told at once, and once.
    await types(laptop, pair)
    await types(her_phone, pair)
    await her_phone.roundtrip()
    await types(laptop, pair, False)
    await types(laptop, pair, False)
    for device in (phone, tablet):
        await shown(device, pair, alice.user_id, False)
    await nothing_shown(laptop, her_phone, phone, tablet)


async def test_her_message_ends_it_after_it_has_come(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    pair = await server.pair(alice, bob)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    await types(laptop, pair)
    await shown(phone, pair, alice.user_id, True)
    await laptop.say(pair, "done")
    await shown(phone, pair, alice.user_id, False)
    assert phone.contents() == ["done"]


async def test_silence_ends_it_after_six_seconds(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    pair = await server.pair(alice, bob)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    await types(laptop, pair)
    await shown(phone, pair, alice.user_id, True)
    began = trio.current_time()
    await laptop.leave()
    await shown(phone, pair, alice.user_id, False)
    assert 5.5 < trio.current_time() - began < 7.5


async def test_a_device_that_was_away_learns_nothing_of_it(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    pair = await server.pair(alice, bob)
    laptop, tablet = await alice.connect("laptop"), await bob.connect("tablet")
    await tablet.leave()
    await types(laptop, pair)
    await laptop.roundtrip()
    back = await bob.connect("tablet", last_sync_id=tablet.cursor)
    await nothing_shown(back)
    assert (await bob.get(f"/api/conversations/{pair}/messages"))["items"] == []


async def test_a_group_sees_it_but_who_has_left_and_who_is_apart(server: Server) -> None:
    alice, bob, cyd, dan = [await server.register(name) for name in ("alice", "bob", "cyd", "dan")]
    group = await server.group(alice, bob, cyd, dan)
    devices = {person.username: await person.connect() for person in (alice, bob, cyd, dan)}
    await dan.call("DELETE", f"/api/conversations/{group}/participants/{dan.user_id}", expect=204)
    await devices[dan.username].expect("CONVERSATION_UPDATE", removed=True)
    await bob.call("PUT", f"/api/blocks/{alice.user_id}", expect=204)
    await devices[bob.username].expect("MESSAGE_RECEIVE", message_type="account")
    await types(devices[alice.username], group)
    await shown(devices[cyd.username], group, alice.user_id, True)
    await types(devices[bob.username], group)
    await shown(devices[cyd.username], group, bob.user_id, True)
    await nothing_shown(devices[bob.username], devices[dan.username], devices[alice.username])


async def test_a_block_ends_what_is_being_shown(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    pair = await server.pair(alice, bob)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    await types(laptop, pair)
    await shown(phone, pair, alice.user_id, True)
    await bob.call("PUT", f"/api/blocks/{alice.user_id}", expect=204)
    with trio.fail_after(1):
        await shown(phone, pair, alice.user_id, False)
    await types(phone, pair)
    await nothing_shown(laptop, phone)


async def test_every_refusal_of_typing(server: Server) -> None:
    alice, bob, eve = [await server.register(name) for name in ("alice", "bob", "eve")]
    pair = await server.pair(alice, bob)
    group = await server.group(alice, bob, eve)
    phone, hers = await bob.connect("phone"), await eve.connect("phone")
    await eve.call("DELETE", f"/api/conversations/{group}/participants/{eve.user_id}", expect=204)
    await hers.expect("CONVERSATION_UPDATE", removed=True)
    async with server.house.pool.connection() as tx:
        own = await people.self_conversation_of(tx, UUID(eve.user_id))
    for number, conversation_id in enumerate((pair, group, str(uuid4()), str(own), str(own))):
        await types(hers, conversation_id, request_id=f"r{number}")
        error = await hers.expect("ERROR")
        assert (error["payload"]["code"], error["request_id"]) == ("not_found", f"r{number}")
    wrongs = ({"typing": True}, {"conversation_id": pair}, {"conversation_id": pair, "typing": "yes"}, {"conversation_id": "x"})
    for wrong in wrongs:
        await hers.send("TYPING_INDICATOR", **wrong)
        assert (await hers.expect("ERROR"))["payload"]["code"] == "validation_failed"
    await nothing_shown(phone)


@pytest.fixture
async def elsewhere(database_url: str, redis_url: str, server: Server) -> AsyncIterator[Server]:
    settings = settings_for(database_url, redis_url, jwt_keys=server.house.settings.jwt_keys)
    async with serving(settings) as started:
        with trio.fail_after(5):
            # The first process asks once a second whether anybody listens.
            while not (server.house.bus._others_hear and started.house.link.hears):
                await trio.sleep(0.01)
        yield started


async def test_it_reaches_a_process_that_has_never_heard_of_the_conversation(server: Server, elsewhere: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    pair = await server.pair(alice, bob)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone", to=elsewhere)
    await types(laptop, pair)
    await shown(phone, pair, alice.user_id, True)
    await types(laptop, pair, False)
    await shown(phone, pair, alice.user_id, False)
    await types(phone, pair)
    await shown(laptop, pair, bob.user_id, True)
    await phone.say(pair, "done")
    await shown(laptop, pair, bob.user_id, False)


async def test_it_goes_on_while_the_database_is_away(database_url: str, redis_url: str) -> None:
    async with postgres_proxy(database_url) as proxy, serving(settings_for(proxy.url, redis_url)) as server:
        alice, bob = await server.register("alice"), await server.register("bob")
        pair, unknown = await server.pair(alice, bob), str(uuid4())
        laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
        said = await laptop.say(pair, "known from now on")
        await phone.reached(said["message_id"])
        proxy.refuse()
        await types(laptop, pair)
        await shown(phone, pair, alice.user_id, True)
        await types(laptop, unknown)
        error: dict[str, Any] = (await laptop.expect("ERROR"))["payload"]
        assert error["code"] == "unavailable" and error["retry_after"] > 0
        await types(laptop, pair, False)
        await shown(phone, pair, alice.user_id, False)
        proxy.accept()
