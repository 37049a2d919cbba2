"""Talking one-to-one and in groups: alice sends, bob's phone receives."""

from __future__ import annotations

from uuid import uuid4

from tests.house import Server


async def test_alice_sends_and_bobs_two_devices_receive(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    conversation_id = await server.pair(alice, bob)
    laptop, phone, tablet = await alice.connect("laptop"), await bob.connect("phone"), await bob.connect("tablet")
    ack = await laptop.say(conversation_id, "hello, bob \N{SLIGHTLY SMILING FACE}", metadata={"tone": "warm"})
    assert (ack["type"], ack["status"], ack["seq"], ack["duplicate"]) == ("MESSAGE_ACK", "sent", 1, False)
    for device in (phone, tablet):
        message = (await device.expect("MESSAGE_RECEIVE"))["payload"]
        assert message["message_id"] == ack["message_id"]
        assert message["content"] == "hello, bob \N{SLIGHTLY SMILING FACE}"
        assert message["metadata"] == {"tone": "warm"}
        assert message["sender_id"] == alice.user_id
        assert message["created_at"] == ack["created_at"]
        assert "client_message_id" not in message


async def test_the_sending_connection_has_the_ack_and_the_senders_other_device_the_message(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    conversation_id = await server.pair(alice, bob)
    laptop, phone = await alice.connect("laptop"), await alice.connect("phone")
    client_id = str(uuid4())
    ack = await laptop.say(conversation_id, "once", client_id)
    message = (await phone.expect("MESSAGE_RECEIVE"))["payload"]
    assert message["client_message_id"] == client_id
    await laptop.reached(ack["message_id"])
    assert laptop.entries == []


async def test_a_repeat_makes_one_message_and_other_content_is_a_conflict(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    conversation_id = await server.pair(alice, bob)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    first = await laptop.say(conversation_id, "hello", "one")
    again = await laptop.say(conversation_id, "hello", "one")
    assert (again["message_id"], again["seq"], again["duplicate"]) == (first["message_id"], first["seq"], True)
    other = await laptop.say(conversation_id, "something else", "one")
    assert (other["type"], other["code"], other["client_message_id"]) == ("ERROR", "conflict", "one")
    last = await laptop.say(conversation_id, "bye", "two")
    assert last["message_id"] == first["message_id"] + 1
    await phone.reached(last["message_id"])
    assert phone.contents() == ["hello", "bye"]


async def test_sixty_four_sends_at_once_keep_their_order(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    conversation_id = await server.pair(alice, bob)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    for number in range(200):
        await laptop.send(
            "MESSAGE_SEND", conversation_id=conversation_id, content=str(number), client_message_id=f"m{number}"
        )
    acks = [(await laptop.expect("MESSAGE_ACK", status="sent"))["payload"] for _ in range(200)]
    assert [ack["client_message_id"] for ack in acks] == [f"m{number}" for number in range(200)]
    await phone.reached(acks[-1]["message_id"])
    assert phone.contents() == [str(number) for number in range(200)]
    assert [entry["seq"] for entry in phone.entries] == list(range(1, 201))


async def test_a_group_of_three_all_hear_each_other(server: Server) -> None:
    people = [await server.register(name) for name in ("alice", "bob", "cyd")]
    devices = [await person.connect() for person in people]
    group_id = await server.group(people[0], *people[1:])
    for device in devices:
        update = (await device.expect("CONVERSATION_UPDATE"))["payload"]["conversation"]
        assert update["conversation_id"] == group_id
        assert len(update["participants"]) == 3
    for number, device in enumerate(devices):
        last = await device.say(group_id, f"hello from {number}")
    for number, device in enumerate(devices):
        await device.reached(last["message_id"])
        assert device.contents() == [f"hello from {other}" for other in range(3) if other != number]
        assert device.events()[0] == "created"


async def test_a_message_posted_over_http_reaches_sockets_and_its_senders_too(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    conversation_id = await server.pair(alice, bob)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    path = f"/api/conversations/{conversation_id}/messages"
    body = {"client_message_id": "http-1", "content": "by post"}
    first = await alice.post(path, body, expect=201)
    again = await alice.post(path, body, expect=200)
    assert again["message_id"] == first["message_id"]
    for device in (laptop, phone):
        assert (await device.expect("MESSAGE_RECEIVE"))["payload"]["content"] == "by post"
