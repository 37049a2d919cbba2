"""Away and back: a device's cursor, pages, rewinds, slow readers, what is not confirmed.

Each transcript is a promise of protocol.md: at least once, in message_id order, nothing from outside one's stays.
"""

from __future__ import annotations

import itertools
from typing import Any
from uuid import UUID

import msgspec
import trio

from tests.house import Device, Person, Server
from uim.chat.outbox import MAX_BYTES, MAX_UNCONFIRMED
from uim.errors import Cut


async def stored_cursor(server: Server, person: Person, device: str) -> int | None:
    """Where the database has that device."""
    async with server.house.pool.connection() as tx:
        cursor = await tx.execute(
            "select last_synced_message_id from device_cursors where user_id = %s and device_id = %s", (person.user_id, device)
        )
        row = await cursor.fetchone()
    return row[0] if row is not None else None


async def all_stored(person: Person, conversation_id: str) -> None:
    """A barrier: every confirmation that the server has taken so far is in the database."""
    # Answered once a batch's receipts are stored; its cursors are by the time that the next batch is.
    for _ in range(2):
        await person.post(f"/api/conversations/{conversation_id}/read", {"message_id": 0}, expect=204)


async def batches(device: Device, **where: Any) -> list[dict[str, Any]]:
    """The SYNC_BATCH frames up to and with the one that ends in `has_more: false`."""
    came: list[dict[str, Any]] = []
    while not came or came[-1]["payload"]["has_more"]:
        came.append(await device.expect("SYNC_BATCH", **where))
    return came


def as_one(pages: list[dict[str, Any]]) -> dict[str, Any]:
    """Pages as if they were one: what the offline queue has comes in a page of its own."""
    payloads = [page["payload"] for page in pages]
    gathered = {name: [one for payload in payloads for one in payload[name]] for name in ("messages", "conversations")}
    return {**pages[-1], "payload": {**payloads[-1], **gathered}}


def ids(device: Device) -> list[int]:
    return [entry["message_id"] for entry in device.entries]


def is_ascending(numbers: list[int]) -> bool:
    return all(one < other for one, other in itertools.pairwise(numbers))


async def two(server: Server) -> tuple[Person, Person, str]:
    alice, bob = await server.register("alice"), await server.register("bob")
    return alice, bob, await server.pair(alice, bob)


# -- away and back --------------------------------------------------------------------------------------------------------


async def test_bob_comes_back_with_his_cursor_and_gets_what_was_said_meanwhile(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    first = await laptop.say(conversation_id, "before")
    await phone.reached(first["message_id"])
    await phone.leave()
    await laptop.say_many(conversation_id, ["one", "two", "three"])
    again = await bob.connect("phone", last_sync_id=phone.cursor)
    assert again.ready["last_sync_id"] == phone.cursor
    assert again.ready["behind"] == 3
    assert again.contents() == ["one", "two", "three"]
    assert [entry["seq"] for entry in again.entries] == [2, 3, 4]


async def test_without_a_cursor_of_its_own_a_device_goes_on_where_it_has_confirmed(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    first = await laptop.say(conversation_id, "confirmed")
    await phone.reached(first["message_id"])
    await all_stored(bob, conversation_id)
    await phone.leave()
    silent = await bob.connect("phone", confirms=False)
    assert silent.contents() == []
    second = await laptop.say(conversation_id, "not confirmed")
    await silent.reached(second["message_id"])
    await silent.leave()
    again = await bob.connect("phone")
    assert again.ready["last_sync_id"] == first["message_id"]
    assert again.contents() == ["not confirmed"]


async def test_a_users_first_device_starts_at_zero(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    await (await alice.connect("laptop")).say_many(conversation_id, ["one", "two"])
    phone = await bob.connect("phone")
    assert phone.ready["last_sync_id"] == 0
    assert phone.contents() == ["one", "two"]


async def test_a_new_device_starts_where_the_users_other_devices_have_confirmed(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    seen = await laptop.say_many(conversation_id, ["old", "older"])
    await phone.reached(seen[-1])
    await all_stored(bob, conversation_id)
    await phone.leave()
    await laptop.say(conversation_id, "new")
    tablet = await bob.connect("tablet")
    assert tablet.ready["last_sync_id"] == seen[-1]
    assert tablet.contents() == ["new"]
    page = await bob.get(f"/api/conversations/{conversation_id}/messages")
    assert [item["content"] for item in page["items"]] == ["old", "older", "new"]


async def test_a_cursor_above_the_head_counts_as_the_head(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    laptop = await alice.connect("laptop")
    last = await laptop.say(conversation_id, "known")
    phone = await bob.connect("phone", last_sync_id=2**50)
    assert phone.ready["last_sync_id"] == last["message_id"]
    assert phone.entries == []
    new = await laptop.say(conversation_id, "news")
    await phone.reached(new["message_id"])
    assert phone.contents() == ["news"]


async def test_own_messages_come_in_sync_like_all_others(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    await laptop.say(conversation_id, "mine", "my-id")
    await phone.say(conversation_id, "yours", "his-id")
    again = await alice.connect("laptop", last_sync_id=0)
    assert again.contents() == ["mine", "yours"]
    assert again.entries[-2]["client_message_id"] == "my-id"
    assert "client_message_id" not in again.entries[-1]
    await laptop.closing(Cut.REPLACED)


async def test_the_first_batch_of_one_who_missed_nothing_is_empty_and_its_confirmation_moves_the_cursor(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    phone = await bob.connect("phone")
    laptop = await alice.connect("laptop")
    cyd = await server.register("cyd")
    elsewhere = await laptop.say(await server.pair(alice, cyd), "not for bob")
    await phone.leave()
    again = await bob.open("phone", last_sync_id=phone.cursor)
    batch = as_one(await batches(again))
    assert batch["payload"]["messages"] == batch["payload"]["conversations"] == []
    assert batch["payload"]["next_sync_id"] >= elsewhere["message_id"]
    assert "request_id" not in batch
    await again.roundtrip()
    await all_stored(bob, conversation_id)
    stored = await stored_cursor(server, bob, "phone")
    assert stored is not None and stored >= elsewhere["message_id"]


async def test_a_quiet_devices_cursor_moves_by_its_pings(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    cyd = await server.register("cyd")
    other_id = await server.pair(alice, cyd)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    spoken = await laptop.say_many(other_id, ["not", "for", "bob"])
    await phone.reached(spoken[-1])
    assert phone.entries == []
    assert phone.cursor >= spoken[-1]
    await all_stored(bob, conversation_id)
    stored = await stored_cursor(server, bob, "phone")
    assert stored is not None and stored >= spoken[-1]


async def test_a_ping_moves_no_stored_cursor_past_what_is_not_confirmed(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    laptop = await alice.connect("laptop")
    phone = await bob.connect("phone", confirms=False)
    start = phone.cursor
    await phone.send("MESSAGE_ACK", status="delivered", message_id=start)
    said = await laptop.say(conversation_id, "hello?")
    await phone.reached(said["message_id"])
    assert phone.contents() == ["hello?"]
    await phone.leave()
    await all_stored(bob, conversation_id)
    assert await stored_cursor(server, bob, "phone") == start


# -- pages ----------------------------------------------------------------------------------------------------------------


async def test_pages_hold_a_hundred_entries_and_four_may_be_unconfirmed(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    laptop = await alice.connect("laptop")
    spoken = await laptop.say_many(conversation_id, [str(number) for number in range(610)])
    phone = await bob.open("phone", last_sync_id=spoken[0] - 1, confirms=False)
    pages = [(await phone.expect("SYNC_BATCH"))["payload"] for _ in range(4)]
    assert [len(page["messages"]) for page in pages] == [100] * 4
    assert all(page["has_more"] for page in pages)
    assert [page["next_sync_id"] for page in pages] == [spoken[at] for at in (99, 199, 299, 399)]
    for _ in range(3):
        assert (await phone.roundtrip())["last_sync_id"] == spoken[399]
    await phone.send("MESSAGE_ACK", status="delivered", message_id=pages[0]["next_sync_id"])
    fifth = (await phone.expect("SYNC_BATCH"))["payload"]
    assert fifth["next_sync_id"] == spoken[499]
    await phone.send("MESSAGE_ACK", status="delivered", message_id=fifth["next_sync_id"])
    rest = await batches(phone)
    assert len(rest[-1]["payload"]["messages"]) == 10
    assert phone.contents() == [str(number) for number in range(610)]


async def test_pages_end_at_128_kib(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    laptop = await alice.connect("laptop")
    long = "\N{GRINNING FACE}" * 10_000
    spoken = await laptop.say_many(conversation_id, [f"{number}{long[1:]}" for number in range(8)])
    phone = await bob.open("phone", last_sync_id=spoken[0] - 1)
    pages = await batches(phone)
    assert len(pages) == 3
    for page in pages:
        assert len(msgspec.json.encode(page)) <= 128 * 1024
    assert [content[0] for content in phone.contents()] == list("01234567")


async def test_talk_goes_on_while_bob_catches_up_and_nothing_is_missing_or_out_of_order(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    laptop = await alice.connect("laptop")
    before = await laptop.say_many(conversation_id, [str(number) for number in range(350)])
    meanwhile: list[int] = []

    async def talk_on() -> None:
        meanwhile.extend(await laptop.say_many(conversation_id, [str(number) for number in range(350, 700)]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk_on)
        phone = await bob.connect("phone", last_sync_id=0)
    await phone.reached(meanwhile[-1])
    assert [at for at in ids(phone) if at >= before[0]] == before + meanwhile
    assert is_ascending(ids(phone))


async def test_a_reader_that_sleeps_falls_back_to_pages_and_loses_nothing(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    await phone.roundtrip()
    (outbox,) = server.house.switchboard.of_user(UUID(bob.user_id))
    phone.stop_reading()
    body = "x" * 4_000
    spoken = await laptop.say_many(conversation_id, [f"{number} {body}" for number in range(2_000)])
    with trio.fail_after(5):
        while server.house.tailer.position < spoken[-1]:
            await trio.lowlevel.checkpoint()
    assert not outbox.live
    assert outbox.size <= MAX_BYTES + 2 * 128 * 1024
    assert len(outbox.unconfirmed) <= MAX_UNCONFIRMED
    phone.read_on()
    with trio.fail_after(30):
        while phone.cursor < spoken[-1]:
            await phone.roundtrip()
    came = [entry["content"].split()[0] for entry in phone.entries]
    assert list(dict.fromkeys(came)) == [str(number) for number in range(2_000)]


# -- conversations in batches ---------------------------------------------------------------------------------------------


async def test_a_group_made_and_renamed_while_away_comes_with_its_object_as_it_is_now(server: Server) -> None:
    alice, bob, cyd = [await server.register(name) for name in ("alice", "bob", "cyd")]
    phone = await bob.connect("phone")
    await phone.leave()
    group_id = await server.group(alice, bob, cyd, name="tea")
    await alice.call("PATCH", f"/api/conversations/{group_id}", {"name": "supper"}, expect=200)
    again = await bob.open("phone", last_sync_id=phone.cursor)
    page = as_one(await batches(again))
    assert again.events() == ["created", "participant_added", "participant_added", "renamed"]
    (shown,) = page["payload"]["conversations"]
    assert (shown["conversation_id"], shown["name"], shown["role"]) == (group_id, "supper", "member")
    assert len(shown["participants"]) == 3


async def test_texts_alone_bring_no_conversation_object(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    first = await laptop.say(conversation_id, "one")
    await phone.reached(first["message_id"])
    await phone.leave()
    await laptop.say(conversation_id, "two")
    again = await bob.open("phone", last_sync_id=phone.cursor)
    pages = await batches(again)  # perhaps one from the offline queue
    assert again.contents() == ["two"]
    assert all(page["payload"]["conversations"] == [] for page in pages)


async def test_a_one_on_ones_first_message_brings_its_object(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    phone = await bob.connect("phone")
    await phone.leave()
    conversation_id = await server.pair(alice, bob)
    await (await alice.connect("laptop")).say(conversation_id, "hello")
    again = await bob.open("phone", last_sync_id=phone.cursor)
    page = as_one(await batches(again))
    assert [shown["conversation_id"] for shown in page["payload"]["conversations"]] == [conversation_id]
    assert {member["user_id"] for member in page["payload"]["conversations"][0]["participants"]} == {alice.user_id, bob.user_id}


async def test_removed_while_away_one_gets_all_up_to_the_removal_and_then_nothing(server: Server) -> None:
    alice, bob, cyd = [await server.register(name) for name in ("alice", "bob", "cyd")]
    group_id = await server.group(alice, bob, cyd)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    await phone.reached(phone.cursor)
    await phone.leave()
    await laptop.say(group_id, "bob may read this")
    await alice.call("DELETE", f"/api/conversations/{group_id}/participants/{bob.user_id}", expect=204)
    secret = await laptop.say(group_id, "bob may not")
    again = await bob.open("phone", last_sync_id=phone.cursor)
    page = (await batches(again))[-1]  # before it perhaps one from the offline queue
    assert again.contents() == ["bob may read this"]
    assert again.entries[-1]["metadata"] == {"event": "participant_removed", "user_id": bob.user_id}
    assert page["payload"]["conversations"] == []
    assert page["payload"]["next_sync_id"] >= secret["message_id"]
    for path in ("", "/messages", f"/messages/{secret['message_id']}"):
        await bob.get(f"/api/conversations/{group_id}{path}", expect=404)


async def test_back_in_the_group_one_gets_both_stays_and_nothing_from_between(server: Server) -> None:
    alice, bob, cyd = [await server.register(name) for name in ("alice", "bob", "cyd")]
    group_id = await server.group(alice, bob, cyd)
    laptop = await alice.connect("laptop")
    await laptop.say(group_id, "first stay")
    await alice.call("DELETE", f"/api/conversations/{group_id}/participants/{bob.user_id}", expect=204)
    await laptop.say(group_id, "between")
    await alice.post(f"/api/conversations/{group_id}/participants", {"user_ids": [bob.user_id]})
    await laptop.say(group_id, "second stay")
    phone = await bob.connect("phone", last_sync_id=0)
    assert phone.contents() == ["first stay", "second stay"]
    assert phone.events() == [
        "created",
        "participant_added",
        "participant_added",
        "participant_removed",
        "participant_added",
    ]


# -- without a socket -----------------------------------------------------------------------------------------------------


async def test_sync_over_http_reads_the_log_after_a_cursor_and_confirms_nothing(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    spoken = await (await alice.connect("laptop")).say_many(conversation_id, ["one", "two", "three"])
    start = spoken[0] - 1
    page = await bob.get(f"/api/sync?last_sync_id={start}&limit=2")
    assert [entry["content"] for entry in page["messages"]] == ["one", "two"]
    assert (page["next_sync_id"], page["has_more"]) == (spoken[1], True)
    assert [shown["conversation_id"] for shown in page["conversations"]] == [conversation_id]
    rest = await bob.get(f"/api/sync?last_sync_id={page['next_sync_id']}")
    assert [entry["content"] for entry in rest["messages"]] == ["three"]
    assert rest["has_more"] is False
    assert await stored_cursor(server, bob, "phone") is None
    status = (await alice.get(f"/api/conversations/{conversation_id}/messages/{spoken[0]}"))["delivery_status"]
    assert status["delivered"] == {}


async def test_sync_over_http_with_a_device_confirms_for_that_device(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    laptop = await alice.connect("laptop")
    spoken = await laptop.say_many(conversation_id, ["one", "two", "three"])
    page = await bob.get("/api/sync?device_id=cron")
    assert [entry["content"] for entry in page["messages"]][-3:] == ["one", "two", "three"]
    again = await bob.get(f"/api/sync?device_id=cron&last_sync_id={spoken[1]}")
    assert [entry["content"] for entry in again["messages"]] == ["three"]
    assert await stored_cursor(server, bob, "cron") == spoken[1]
    told = (await laptop.expect("MESSAGE_ACK", status="delivered"))["payload"]
    assert [(receipt["user_id"], receipt["message_id"]) for receipt in told["receipts"]] == [(bob.user_id, spoken[1])]
    kept = await bob.get("/api/sync?device_id=cron")
    assert [entry["content"] for entry in kept["messages"]] == ["three"]
