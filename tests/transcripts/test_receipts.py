"""Delivered and read: what senders are told, what one's own devices are told, what is stored, and what is kept to oneself."""

from __future__ import annotations

import itertools
from typing import Any
from uuid import UUID

import trio

from tests.house import Device, Person, Server
from tests.transcripts.test_sync import all_stored, stored_cursor, two


async def told(device: Device, status: str, up_to: int, *, by: Person | None = None) -> list[dict[str, Any]]:
    """The receipts of that kind (and that person) that came, up to one that reaches `up_to`."""
    came: list[dict[str, Any]] = []
    while not came or came[-1]["message_id"] < up_to:
        heard = (await device.expect("MESSAGE_ACK", status=status))["payload"]["receipts"]
        came.extend(receipt for receipt in heard if by is None or receipt["user_id"] == by.user_id)
    return came


async def run(server: Server, statement: str, *values: object) -> list[Any]:
    async with server.house.pool.connection() as tx:
        cursor = await tx.execute(statement, values)
        return list(await cursor.fetchall()) if cursor.description else []


async def status_of(person: Person, conversation_id: str, message_id: int) -> dict[str, Any]:
    answer = await person.get(f"/api/conversations/{conversation_id}/messages/{message_id}")
    status: dict[str, Any] = answer["delivery_status"]
    return status


async def read(person: Person, conversation_id: str, message_id: int) -> None:
    await person.post(f"/api/conversations/{conversation_id}/read", {"message_id": message_id}, expect=204)


async def unread(person: Person, conversation_id: str) -> int:
    return int((await person.get(f"/api/conversations/{conversation_id}"))["unread_count"])


async def trio_of(server: Server) -> tuple[Person, Person, Person, str]:
    alice, bob, cyd = [await server.register(name) for name in ("alice", "bob", "cyd")]
    return alice, bob, cyd, await server.group(alice, bob, cyd)


# -- delivered ------------------------------------------------------------------------------------------------------------


async def test_delivered_is_told_to_the_sender_at_once(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    await phone.roundtrip()
    for content in ("warm", "timed"):
        began = trio.current_time()
        ack = await laptop.say(conversation_id, content)
        (receipt,) = await told(laptop, "delivered", ack["message_id"])
        took_s = trio.current_time() - began
    assert took_s < 0.5
    assert (receipt["user_id"], receipt["message_id"]) == (bob.user_id, ack["message_id"])
    assert receipt["at"] >= ack["created_at"]
    assert receipt["after"] == ack["message_id"] - 1


async def test_receipts_are_intervals_that_lie_end_to_end(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    last = 0
    receipts = []
    for _ in range(4):
        last = (await laptop.say_many(conversation_id, ["x"] * 7))[-1]
        receipts += await told(laptop, "delivered", last)
    assert receipts[-1]["message_id"] == last
    for one, other in itertools.pairwise(receipts):
        assert one["after"] < one["message_id"] == other["after"]
    await phone.roundtrip()


async def test_delivered_is_told_to_every_sender_in_a_group_and_to_all_of_their_devices(server: Server) -> None:
    alice, bob, cyd, group_id = await trio_of(server)
    laptop, tablet = await alice.connect("laptop"), await alice.connect("tablet")
    phone = await bob.connect("phone")
    first = await laptop.say(group_id, "from alice")
    second = await phone.say(group_id, "from bob")
    listener = await cyd.connect("phone", last_sync_id=0)
    for device in (laptop, tablet, phone):
        by_cyd = await told(device, "delivered", second["message_id"], by=cyd)
        assert by_cyd[-1]["message_id"] == second["message_id"]
        assert by_cyd[0]["after"] < first["message_id"]
    await listener.roundtrip()


async def test_one_who_only_listens_is_told_nothing(server: Server) -> None:
    alice, bob, cyd, group_id = await trio_of(server)
    laptop, phone, quiet = await alice.connect("laptop"), await bob.connect("phone"), await cyd.connect("phone")
    ack = await laptop.say(group_id, "hello")
    await read(bob, group_id, ack["message_id"])
    await told(laptop, "read", ack["message_id"])
    await phone.roundtrip()
    await quiet.roundtrip()
    assert not [frame for frame in quiet.frames if frame["type"] == "MESSAGE_ACK"]


async def test_what_is_confirmed_while_the_sender_is_away_stands_in_the_status_of_the_message(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    laptop = await alice.connect("laptop")
    ack = await laptop.say(conversation_id, "hello")
    assert await status_of(alice, conversation_id, ack["message_id"]) == {"sent": ack["created_at"], "delivered": {}, "read": {}}
    await laptop.leave()
    phone = await bob.connect("phone")
    await phone.roundtrip()
    await all_stored(bob, conversation_id)
    status = await status_of(alice, conversation_id, ack["message_id"])
    assert list(status["delivered"]) == [bob.user_id]
    assert status["delivered"][bob.user_id] >= ack["created_at"]
    assert status["read"] == {}


async def test_connecting_with_a_cursor_confirms_up_to_it(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    laptop = await alice.connect("laptop")
    spoken = await laptop.say_many(conversation_id, ["one", "two", "three"])
    phone = await bob.connect("phone", last_sync_id=spoken[1], confirms=False)
    (receipt,) = await told(laptop, "delivered", spoken[1])
    assert receipt["message_id"] == spoken[1]
    assert phone.contents() == ["three"]


# -- read -----------------------------------------------------------------------------------------------------------------


async def test_read_is_told_to_the_sender_and_to_ones_own_other_devices_with_the_unread_count(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    laptop, phone, tablet = await alice.connect("laptop"), await bob.connect("phone"), await bob.connect("tablet")
    spoken = await laptop.say_many(conversation_id, ["one", "two", "three"])
    await phone.reached(spoken[-1])
    await phone.send("MESSAGE_ACK", status="read", conversation_id=conversation_id, message_id=spoken[1])
    (receipt,) = await told(laptop, "read", spoken[1])
    assert (receipt["user_id"], receipt["message_id"]) == (bob.user_id, spoken[1])
    own = (await tablet.expect("MESSAGE_ACK", status="read"))["payload"]
    assert (own["conversation_id"], own["unread_count"]) == (conversation_id, 1)
    assert own["receipts"][0]["user_id"] == bob.user_id
    status = await status_of(alice, conversation_id, spoken[0])
    assert list(status["read"]) == [bob.user_id]
    assert (await status_of(alice, conversation_id, spoken[2]))["read"] == {}


async def test_a_read_also_delivers(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    laptop = await alice.connect("laptop")
    ack = await laptop.say(conversation_id, "hello")
    await read(bob, conversation_id, ack["message_id"])
    assert (await told(laptop, "delivered", ack["message_id"]))[-1]["user_id"] == bob.user_id
    assert (await told(laptop, "read", ack["message_id"]))[-1]["user_id"] == bob.user_id
    status = await status_of(alice, conversation_id, ack["message_id"])
    assert list(status["delivered"]) == list(status["read"]) == [bob.user_id]


async def test_lists_count_how_many_received_and_read_ones_own_messages(server: Server) -> None:
    alice, bob, cyd, group_id = await trio_of(server)
    laptop = await alice.connect("laptop")
    first = await laptop.say(group_id, "one")
    second = await laptop.say(group_id, "two")
    await read(bob, group_id, first["message_id"])
    phone = await cyd.connect("phone", last_sync_id=0)
    await phone.roundtrip()
    await all_stored(cyd, group_id)
    items = (await alice.get(f"/api/conversations/{group_id}/messages"))["items"]
    counts = {
        item["message_id"]: (item["delivery_status"]["delivered_count"], item["delivery_status"]["read_count"])
        for item in items
        if "delivery_status" in item
    }
    assert counts == {first["message_id"]: (2, 1), second["message_id"]: (1, 0)}
    others = (await bob.get(f"/api/conversations/{group_id}/messages"))["items"]
    assert not any("delivery_status" in item for item in others)


async def test_who_hides_read_receipts_delivers_but_does_not_tell_that_they_read(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    await run(server, "update users set read_receipts = false where user_id = %s", bob.user_id)
    laptop, tablet = await alice.connect("laptop"), await bob.connect("tablet")
    ack = await laptop.say(conversation_id, "hello")
    await read(bob, conversation_id, ack["message_id"])
    await told(laptop, "delivered", ack["message_id"])
    own = (await tablet.expect("MESSAGE_ACK", status="read"))["payload"]
    assert own["unread_count"] == 0
    await laptop.roundtrip()
    assert not [f for f in laptop.frames if f["type"] == "MESSAGE_ACK" and f["payload"]["status"] == "read"]
    assert await run(server, "select 1 from receipts where kind = 'read'") == []
    assert (await status_of(alice, conversation_id, ack["message_id"]))["read"] == {}
    (shown,) = [
        member
        for member in (await alice.get(f"/api/conversations/{conversation_id}"))["participants"]
        if member["user_id"] == bob.user_id
    ]
    assert shown["last_read_message_id"] is None
    assert shown["last_delivered_message_id"] == ack["message_id"]
    # What was read while hidden stays hidden.
    await run(server, "update users set read_receipts = true where user_id = %s", bob.user_id)
    assert (await status_of(alice, conversation_id, ack["message_id"]))["read"] == {}


async def test_who_hides_read_receipts_is_not_told_of_others_reads_either(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    await run(server, "update users set read_receipts = false where user_id = %s", alice.user_id)
    laptop = await alice.connect("laptop")
    ack = await laptop.say(conversation_id, "hello")
    await read(bob, conversation_id, ack["message_id"])
    await told(laptop, "delivered", ack["message_id"])
    await laptop.roundtrip()
    assert not [f for f in laptop.frames if f["type"] == "MESSAGE_ACK" and f["payload"]["status"] == "read"]
    assert (await status_of(alice, conversation_id, ack["message_id"]))["read"] == {}


# -- unread ---------------------------------------------------------------------------------------------------------------


async def test_unread_counts_others_texts_above_the_mark_up_to_a_hundred(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    spoken = await laptop.say_many(conversation_id, [str(number) for number in range(3)])
    await phone.say(conversation_id, "my own does not count")
    assert await unread(bob, conversation_id) == 3
    assert await unread(alice, conversation_id) == 1
    await read(bob, conversation_id, spoken[1])
    assert await unread(bob, conversation_id) == 1
    more = await laptop.say_many(conversation_id, [str(number) for number in range(120)])
    assert await unread(bob, conversation_id) == 100
    await read(bob, conversation_id, more[-50])
    assert await unread(bob, conversation_id) == 49
    await read(bob, conversation_id, more[-1])
    assert await unread(bob, conversation_id) == 0


async def test_unread_counts_only_texts_of_ones_own_stays(server: Server) -> None:
    alice, bob, cyd, group_id = await trio_of(server)
    laptop = await alice.connect("laptop")
    await laptop.say(group_id, "in his first stay")
    await alice.call("DELETE", f"/api/conversations/{group_id}/participants/{bob.user_id}", expect=204)
    await laptop.say_many(group_id, ["not", "for", "him"])
    await alice.post(f"/api/conversations/{group_id}/participants", {"user_ids": [bob.user_id]})
    last = await laptop.say(group_id, "in his second stay")
    assert await unread(bob, group_id) == 2
    assert await unread(cyd, group_id) == 5
    await read(bob, group_id, last["message_id"])
    assert await unread(bob, group_id) == 0


# -- watermarks -----------------------------------------------------------------------------------------------------------


async def test_watermarks_only_move_forward_and_stop_at_the_conversations_newest_entry(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    cyd = await server.register("cyd")
    elsewhere_id = await server.pair(alice, cyd)
    laptop = await alice.connect("laptop")
    spoken = await laptop.say_many(conversation_id, ["one", "two", "three"])
    await laptop.say_many(elsewhere_id, ["later", "entries", "elsewhere"])
    await read(bob, conversation_id, 2**53 - 1)
    await read(bob, conversation_id, spoken[0])
    ((delivered, seen),) = await run(
        server,
        "select last_delivered_message_id, last_read_message_id from conversation_participants"
        " where conversation_id = %s and user_id = %s",
        conversation_id,
        bob.user_id,
    )
    assert (delivered, seen) == (spoken[-1], spoken[-1])
    receipts = await told(laptop, "read", spoken[-1])
    assert [receipt["message_id"] for receipt in receipts] == [spoken[-1]]
    rows = await run(server, "select after, up_to from receipts where user_id = %s and kind = 'read'", bob.user_id)
    assert len(rows) == 1 and rows[0][1] == spoken[-1]


async def test_a_read_mark_between_two_entries_is_taken_as_the_one_below(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    cyd = await server.register("cyd")
    elsewhere_id = await server.pair(alice, cyd)
    laptop = await alice.connect("laptop")
    here = await laptop.say(conversation_id, "here")
    elsewhere = await laptop.say(elsewhere_id, "elsewhere")
    await laptop.say(conversation_id, "here again")
    await read(bob, conversation_id, elsewhere["message_id"])
    assert (await told(laptop, "read", here["message_id"]))[-1]["message_id"] == here["message_id"]
    assert await unread(bob, conversation_id) == 1


async def test_a_conversation_that_is_not_ones_own_cannot_be_marked(server: Server) -> None:
    alice, _bob, conversation_id = await two(server)
    cyd = await server.register("cyd")
    ack = await (await alice.connect("laptop")).say(conversation_id, "hello")
    await cyd.post(f"/api/conversations/{conversation_id}/read", {"message_id": ack["message_id"]}, expect=404)
    phone = await cyd.connect("phone")
    await phone.send("MESSAGE_ACK", "r1", status="read", conversation_id=conversation_id, message_id=ack["message_id"])
    error = await phone.expect("ERROR")
    assert (error["payload"]["code"], error["request_id"]) == ("not_found", "r1")
    # Nor the one of one's own account, which does not exist over HTTP either.
    ((own,),) = await run(server, "select conversation_id from conversations where type = 'self' and created_by = %s", cyd.user_id)
    await cyd.post(f"/api/conversations/{own}/read", {"message_id": ack["message_id"]}, expect=404)
    await phone.send("MESSAGE_ACK", "r2", status="read", conversation_id=str(own), message_id=ack["message_id"])
    error = await phone.expect("ERROR")
    assert (error["payload"]["code"], error["request_id"]) == ("not_found", "r2")
    assert await run(server, "select 1 from receipts where user_id = %s", cyd.user_id) == []


async def test_what_an_ex_member_was_still_owed_counts_as_delivered_and_nothing_later_does(server: Server) -> None:
    alice, bob, _, group_id = await trio_of(server)
    laptop = await alice.connect("laptop")
    inside = await laptop.say(group_id, "bob is still here")
    await alice.call("DELETE", f"/api/conversations/{group_id}/participants/{bob.user_id}", expect=204)
    outside = await laptop.say(group_id, "bob has gone")
    phone = await bob.connect("phone", last_sync_id=0)
    assert phone.contents() == ["bob is still here"]
    receipts = await told(laptop, "delivered", inside["message_id"])
    assert receipts[-1]["user_id"] == bob.user_id
    assert receipts[-1]["message_id"] < outside["message_id"]
    assert list((await status_of(alice, group_id, inside["message_id"]))["delivered"]) == [bob.user_id]
    assert (await status_of(alice, group_id, outside["message_id"]))["delivered"] == {}


async def test_what_was_said_between_two_stays_is_not_delivered_by_what_came_after(server: Server) -> None:
    alice, bob, _, group_id = await trio_of(server)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    await alice.call("DELETE", f"/api/conversations/{group_id}/participants/{bob.user_id}", expect=204)
    between = await laptop.say(group_id, "between")
    await alice.post(f"/api/conversations/{group_id}/participants", {"user_ids": [bob.user_id]})
    after = await laptop.say(group_id, "after")
    await phone.reached(after["message_id"])
    await told(laptop, "delivered", after["message_id"])
    assert (await status_of(alice, group_id, between["message_id"]))["delivered"] == {}
    assert list((await status_of(alice, group_id, after["message_id"]))["delivered"]) == [bob.user_id]


# -- what a kill takes ----------------------------------------------------------------------------------------------------


async def test_receipts_that_a_kill_took_come_again_by_redelivery(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    await all_stored(bob, conversation_id)
    before = await stored_cursor(server, bob, "phone")
    # The row of bob's cursor is held: the batch stores its receipts and then hangs before its cursors; what is gathered
    # behind it is in memory alone, as at the moment of a kill.
    async with server.house.pool.transaction() as tx:
        await tx.execute("select from device_cursors where user_id = %s for update", (bob.user_id,))
        first = await laptop.say(conversation_id, "stored before the kill")
        await told_in_database(server, bob, first["message_id"])
        second = await laptop.say(conversation_id, "only gathered")
        await phone.reached(second["message_id"])
        await phone.roundtrip()
        server.house.receipts._marks.clear()
        server.house.receipts._moves.clear()
    await all_stored(bob, conversation_id)
    assert first["message_id"] > (before or 0)
    status = await status_of(alice, conversation_id, second["message_id"])
    assert status["delivered"] == {}
    phone.confirms = False
    outbox = next(iter(server.house.switchboard.of_user(UUID(bob.user_id))))
    outbox.connection_no = 0  # killed: the connection's end does not keep its position
    await phone.leave()
    again = await bob.connect("phone")
    assert again.contents() == ["only gathered"]
    assert (await told(laptop, "delivered", second["message_id"]))[-1]["user_id"] == bob.user_id


async def told_in_database(server: Server, person: Person, up_to: int) -> None:
    with trio.fail_after(5):
        while not await run(
            server, "select 1 from receipts where user_id = %s and kind = 'delivered' and up_to >= %s", person.user_id, up_to
        ):
            await trio.sleep(0.005)


async def test_a_batch_stores_its_receipts_before_its_cursors(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    await all_stored(bob, conversation_id)
    before = await stored_cursor(server, bob, "phone")
    async with server.house.pool.transaction() as tx:
        await tx.execute(
            "select from conversation_participants where conversation_id = %s and user_id = %s for update",
            (conversation_id, bob.user_id),
        )
        ack = await laptop.say(conversation_id, "hello")
        await phone.reached(ack["message_id"])
        await phone.roundtrip()
        await waits_for_a_lock(server)
        assert await stored_cursor(server, bob, "phone") == before
    await all_stored(bob, conversation_id)
    stored = await stored_cursor(server, bob, "phone")
    assert stored is not None and stored >= ack["message_id"]


async def waits_for_a_lock(server: Server) -> None:
    """A barrier: some statement on this database stands before a row that another holds."""
    with trio.fail_after(5):
        while not await run(
            server, "select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        ):
            await trio.sleep(0.005)
