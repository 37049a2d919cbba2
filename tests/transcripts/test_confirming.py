"""Confirming, and what is not confirmed: rewinds and skips, connections that are replaced, resends.

A cursor moves by confirmations of what this very connection was sent, and a rewind is durable at once.
"""

from __future__ import annotations

from uuid import UUID

import pytest
import trio

from tests.house import Server
from tests.transcripts.test_sync import all_stored, batches, ids, stored_cursor, two
from uim.errors import Cut
from uim.live import pacing
from uim.live.pacing import PRICES
from uim.wire.frames import SyncRequest

# -- rewind and skip ------------------------------------------------------------------------------------------------------


async def test_a_sync_request_rewinds_and_every_batch_carries_its_request_id(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    spoken = await laptop.say_many(conversation_id, [str(number) for number in range(250)])
    await phone.reached(spoken[-1])
    await phone.roundtrip()
    phone.frames.clear()
    phone.entries.clear()
    await phone.send("SYNC_REQUEST", "again", last_sync_id=spoken[0] - 1)
    pages = await batches(phone)
    assert {page["request_id"] for page in pages} == {"again"}
    assert [len(page["payload"]["messages"]) for page in pages] == [100, 100, 50]
    assert ids(phone) == spoken
    later = await laptop.say(conversation_id, "live again")
    await phone.reached(later["message_id"])
    received = await phone.expect("MESSAGE_RECEIVE", message_id=later["message_id"])
    assert "request_id" not in received


async def test_a_rewind_moves_the_stored_cursor_back_at_once(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    spoken = await laptop.say_many(conversation_id, ["one", "two"])
    await phone.reached(spoken[-1])
    await all_stored(bob, conversation_id)
    phone.confirms = False
    await phone.send("SYNC_REQUEST", "wiped", last_sync_id=0)
    await batches(phone, has_more=False)
    await phone.leave()
    await all_stored(bob, conversation_id)
    assert await stored_cursor(server, bob, "phone") == 0
    assert (await bob.connect("phone")).contents() == ["one", "two"]


async def test_an_older_connection_moves_no_cursor_of_a_device_that_lost_its_store(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    spoken = await laptop.say_many(conversation_id, ["one", "two"])
    await phone.reached(spoken[-1])
    (older,) = server.house.switchboard.of_user(UUID(bob.user_id))
    wiped = await bob.connect("phone", last_sync_id=0, confirms=False)
    await phone.closing(Cut.REPLACED)
    server.house.receipts.keep_cursor(older, spoken[-1])  # what it had confirmed, gathered but written late
    await all_stored(bob, conversation_id)
    assert await stored_cursor(server, bob, "phone") == 0
    await wiped.leave()
    assert (await bob.connect("phone")).contents() == ["one", "two"]


async def test_a_skip_to_the_head_counts_as_delivered(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    laptop = await alice.connect("laptop")
    phone = await bob.connect("phone", confirms=False)
    spoken = await laptop.say_many(conversation_id, ["one", "two", "three"])
    await phone.reached(spoken[-1])
    phone.entries.clear()
    phone.frames.clear()
    await phone.send("SYNC_REQUEST", "skip", last_sync_id=2**50)
    (page,) = await batches(phone)
    assert page["request_id"] == "skip"
    assert page["payload"]["messages"] == []
    told = (await laptop.expect("MESSAGE_ACK", status="delivered"))["payload"]
    assert told["receipts"][0]["user_id"] == bob.user_id
    assert told["receipts"][0]["message_id"] == spoken[-1]
    stored = await stored_cursor(server, bob, "phone")
    assert stored is not None and stored >= spoken[-1]


async def test_a_sync_request_without_a_request_id_is_refused_and_the_connection_goes_on(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    await phone.send("SYNC_REQUEST", last_sync_id=0)
    error = (await phone.expect("ERROR"))["payload"]
    assert (error["code"], error["field"]) == ("validation_failed", "request_id")
    said = await laptop.say(conversation_id, "still here?")
    await phone.reached(said["message_id"])
    assert phone.contents() == ["still here?"]


async def test_many_rewinds_at_once_never_take_the_connection_for_a_replaced_one(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRICES, SyncRequest, 0)
    alice, bob, conversation_id = await two(server)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    spoken = await laptop.say_many(conversation_id, ["one", "two", "three"])
    for number in range(150):
        # A cursor move under the number before is on its way while the next is being raised.
        await phone.send("MESSAGE_ACK", status="delivered", message_id=0)
        await phone.send("SYNC_REQUEST", f"r{number}", last_sync_id=spoken[0] - 1)
    await phone.expect(lambda frame: frame.get("request_id") == "r149" and not frame["payload"]["has_more"])
    await phone.reached(spoken[-1])
    assert phone.contents()[-3:] == ["one", "two", "three"]
    assert not phone.ended.is_set()


# -- confirming -----------------------------------------------------------------------------------------------------------


async def test_what_was_sent_may_be_confirmed_as_fast_as_it_comes(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    alice, bob, conversation_id = await two(server)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone", confirms=False)
    spoken = await laptop.say_many(conversation_id, [str(number) for number in range(20)])
    await phone.reached(spoken[-1])
    monkeypatch.setattr(pacing, "EARNED_PER_S", 0.1)
    monkeypatch.setattr(pacing, "MOST_SAVED", 0.5)
    with trio.fail_after(5):
        for message_id in spoken:
            await phone.send("MESSAGE_ACK", status="delivered", message_id=message_id)
        (outbox,) = server.house.switchboard.of_user(UUID(bob.user_id))
        while outbox.confirmed < spoken[-1]:
            await trio.sleep(0.01)


async def test_confirming_more_than_was_sent_is_refused_and_less_is_ignored(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    spoken = await laptop.say_many(conversation_id, ["one", "two", "three"])
    await phone.reached(spoken[-1])
    await phone.send("MESSAGE_ACK", "too-high", status="delivered", message_id=spoken[-1] + 1)
    error = await phone.expect("ERROR")
    assert (error["payload"]["code"], error["payload"]["field"], error["request_id"]) == (
        "validation_failed",
        "message_id",
        "too-high",
    )
    await phone.send("MESSAGE_ACK", status="delivered", message_id=spoken[0])
    await phone.roundtrip()
    await all_stored(bob, conversation_id)
    assert not any(frame["type"] == "ERROR" for frame in phone.frames)
    stored = await stored_cursor(server, bob, "phone")
    assert stored is not None and stored >= spoken[-1]


async def test_the_id_of_an_own_ack_cannot_be_confirmed_for_it_may_overtake_an_earlier_entry(server: Server) -> None:
    _, bob, conversation_id = await two(server)
    phone = await bob.connect("phone")
    ack = await phone.say(conversation_id, "mine")
    await phone.send("MESSAGE_ACK", status="delivered", message_id=ack["message_id"])
    assert (await phone.expect("ERROR"))["payload"]["code"] == "validation_failed"


async def test_the_position_that_a_pong_told_can_be_confirmed(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    elsewhere_id = await server.pair(alice, await server.register("cyd"))
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    await laptop.say(conversation_id, "for bob")
    not_his = await laptop.say(elsewhere_id, "not for bob")
    await phone.reached(not_his["message_id"])
    phone.frames.clear()
    await phone.send("MESSAGE_ACK", status="delivered", message_id=not_his["message_id"])
    await phone.roundtrip()
    assert not any(frame["type"] == "ERROR" for frame in phone.frames)
    await all_stored(bob, conversation_id)
    stored = await stored_cursor(server, bob, "phone")
    assert stored is not None and stored >= not_his["message_id"]
    later = await laptop.say(conversation_id, "goes on")
    await phone.reached(later["message_id"])
    assert phone.contents() == ["for bob", "goes on"]


async def test_what_was_told_before_a_rewind_is_not_confirmed_after_it_and_no_error_either(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    laptop = await alice.connect("laptop")
    phone = await bob.connect("phone", confirms=False)
    spoken = await laptop.say_many(conversation_id, [str(number) for number in range(450)])
    await phone.reached(spoken[-1])
    await phone.send("SYNC_REQUEST", "wiped", last_sync_id=0)
    await phone.send("MESSAGE_ACK", "stale", status="delivered", message_id=spoken[-1])
    await phone.send("MESSAGE_ACK", "never-sent", status="delivered", message_id=spoken[-1] + 1)
    error = await phone.expect("ERROR")
    assert (error["payload"]["code"], error["request_id"]) == ("validation_failed", "never-sent")
    assert not any(frame["type"] == "ERROR" for frame in phone.frames)
    await phone.leave()
    await all_stored(bob, conversation_id)
    assert await stored_cursor(server, bob, "phone") == 0


async def test_what_is_not_confirmed_is_sent_again_after_a_second(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    laptop = await alice.connect("laptop")
    phone = await bob.connect("phone", confirms=False)
    await phone.send("MESSAGE_ACK", status="delivered", message_id=phone.cursor)
    began = trio.current_time()
    said = await laptop.say(conversation_id, "do you hear me?")
    await phone.expect("MESSAGE_RECEIVE", message_id=said["message_id"])
    again = await phone.expect("SYNC_BATCH", next_sync_id=said["message_id"])
    waited_s = trio.current_time() - began
    assert [entry["content"] for entry in again["payload"]["messages"]] == ["do you hear me?"]
    assert 1.0 <= waited_s < 2.5
    await phone.send("MESSAGE_ACK", status="delivered", message_id=said["message_id"])
    told = (await laptop.expect("MESSAGE_ACK", status="delivered"))["payload"]
    assert told["receipts"][0]["message_id"] == said["message_id"]
