"""A client, step by step: each flow of protocol.md §4, as a client that follows the protocol goes through it.

`Store` is what such a client keeps between connections: its entries, its cursor, its outbox, its last read marks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from tests.house import Device, Person, Server
from tests.transcripts.test_sync import all_stored, batches, stored_cursor, two


@dataclass
class Store:
    """A client's own database, and the connection that fills it."""

    person: Person
    device: str
    entries: dict[int, dict[str, Any]] = field(default_factory=dict)
    conversations: dict[str, dict[str, Any]] = field(default_factory=dict)
    outbox: list[tuple[str, str, str]] = field(default_factory=list)
    reads: dict[str, int] = field(default_factory=dict)
    cursor: int = 0
    as_of: str | None = None
    now: Device | None = None

    async def come_online(self, to: Server | None = None) -> dict[str, Any]:
        """Connect with the stored cursor; batches, the list or its changes, the outbox again, the read marks again."""
        self.now = await self.person.open(self.device, last_sync_id=self.cursor, to=to)
        for page in await batches(self.now):
            for shown in page["payload"]["conversations"]:
                self.conversations[shown["conversation_id"]] = shown
        self.keep()
        await self.refresh()
        for conversation_id, content, client_id in list(self.outbox):
            await self.deliver(conversation_id, content, client_id)
        for conversation_id, message_id in self.reads.items():
            await self.now.send("MESSAGE_ACK", status="read", conversation_id=conversation_id, message_id=message_id)
        return self.now.ready

    async def refresh(self) -> None:
        """GET /api/conversations: the first time all of it, then what has changed."""
        path = "/api/conversations" if self.as_of is None else f"/api/conversations?changed_since={self.as_of}"
        page = await self.person.get(path)
        for shown in page["items"]:
            if shown.get("removed"):
                self.conversations.pop(shown["conversation_id"], None)
            else:
                self.conversations[shown["conversation_id"]] = shown
        self.as_of = page["as_of"]

    async def say(self, conversation_id: str, content: str) -> None:
        """Into the outbox first; out of it when the server says sent."""
        client_id = str(uuid4())
        self.outbox.append((conversation_id, content, client_id))
        if self.now is not None:
            await self.deliver(conversation_id, content, client_id)

    async def deliver(self, conversation_id: str, content: str, client_id: str) -> None:
        assert self.now is not None
        ack = await self.now.say(conversation_id, content, client_id)
        assert ack["status"] == "sent"
        self.outbox.remove((conversation_id, content, client_id))

    async def mark_read(self, conversation_id: str, message_id: int) -> None:
        self.reads[conversation_id] = message_id
        if self.now is not None:
            await self.now.send("MESSAGE_ACK", status="read", conversation_id=conversation_id, message_id=message_id)

    def keep(self) -> None:
        assert self.now is not None
        self.entries.update({entry["message_id"]: entry for entry in self.now.entries})
        self.cursor = max(self.cursor, self.now.cursor)

    async def go_offline(self) -> None:
        assert self.now is not None
        await self.now.roundtrip()
        self.keep()
        await self.now.leave()
        self.now = None

    def texts(self) -> list[str]:
        return [entry["content"] for _, entry in sorted(self.entries.items()) if entry["message_type"] == "text"]


async def test_a_first_start(server: Server) -> None:
    alice = await server.register("alice", device="phone")
    phone = Store(alice, "phone")
    ready = await phone.come_online()
    assert ready["protocol"] == 1
    assert (ready["last_sync_id"], ready["device_id"], ready["user_id"]) == (0, "phone", alice.user_id)
    assert ready["limits"]["batch"] == 100
    assert phone.conversations == {}
    bob = await server.register("bob")
    conversation_id = await server.pair(bob, alice)
    laptop = await bob.connect("laptop")
    said = await laptop.say(conversation_id, "welcome")
    assert phone.now is not None
    update = (await phone.now.expect("CONVERSATION_UPDATE"))["payload"]["conversation"]
    assert update["conversation_id"] == conversation_id
    await phone.now.reached(said["message_id"])
    await phone.go_offline()
    assert phone.texts() == ["welcome"]
    await all_stored(alice, conversation_id)
    assert await stored_cursor(server, alice, "phone") == phone.cursor


async def test_after_an_hour_everything_goes_on_where_it_stood(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    phone, laptop = Store(bob, "phone"), await alice.connect("laptop")
    await phone.come_online()
    first = await laptop.say(conversation_id, "before")
    assert phone.now is not None
    await phone.now.reached(first["message_id"])
    await phone.go_offline()
    # An hour in a tunnel: alice writes, bob writes into his outbox and reads what he has.
    spoken = await laptop.say_many(conversation_id, ["are you there?", "hello?"])
    await alice.call("PUT", "/api/users/me", {"display_name": "Alice in Wonderland"}, expect=200)
    await phone.say(conversation_id, "in a tunnel")
    await phone.mark_read(conversation_id, first["message_id"])
    ready = await phone.come_online()
    assert ready["behind"] >= 2
    assert phone.texts() == ["before", "are you there?", "hello?"]
    assert phone.outbox == []
    names = {member["display_name"] for member in phone.conversations[conversation_id]["participants"]}
    assert "Alice in Wonderland" in names
    said = await laptop.expect("MESSAGE_RECEIVE", content="in a tunnel")
    assert said["payload"]["message_id"] > spoken[-1]
    receipt = (await laptop.expect("MESSAGE_ACK", status="read"))["payload"]["receipts"][0]
    assert (receipt["user_id"], receipt["message_id"]) == (bob.user_id, first["message_id"])


async def test_a_send_whose_answer_was_lost_is_repeated_at_the_next_connect_and_stands_once(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    phone, laptop = Store(bob, "phone"), await alice.connect("laptop")
    await phone.come_online()
    assert phone.now is not None
    client_id = str(uuid4())
    phone.outbox.append((conversation_id, "did you get this?", client_id))
    phone.now.stop_reading()
    await phone.now.send(
        "MESSAGE_SEND", conversation_id=conversation_id, content="did you get this?", client_message_id=client_id
    )
    first = (await laptop.expect("MESSAGE_RECEIVE"))["payload"]
    phone.now.read_on()
    await phone.now.leave()  # the ack is never looked at
    phone.now = None
    await phone.come_online()
    assert phone.outbox == []
    after = await laptop.say(conversation_id, "yes")
    await laptop.reached(after["message_id"])
    page = await alice.get(f"/api/conversations/{conversation_id}/messages")
    assert [item["content"] for item in page["items"]] == ["did you get this?", "yes"]
    assert page["items"][0]["message_id"] == first["message_id"]
    assert phone.texts().count("did you get this?") == 1


async def test_a_group_made_while_away_comes_with_its_entries_and_its_object(server: Server) -> None:
    alice, bob, cyd = [await server.register(name) for name in ("alice", "bob", "cyd")]
    phone = Store(bob, "phone")
    await phone.come_online()
    await phone.go_offline()
    group_id = await server.group(alice, bob, cyd, name="tea")
    await (await alice.connect("laptop")).say(group_id, "at five")
    phone.now = await bob.open("phone", last_sync_id=phone.cursor)
    (page,) = await batches(phone.now)
    events = [entry["metadata"].get("event", entry["message_type"]) for entry in page["payload"]["messages"]]
    assert events == ["created", "participant_added", "participant_added", "text"]
    assert page["payload"]["messages"][0]["seq"] == 1
    (shown,) = page["payload"]["conversations"]
    assert (shown["conversation_id"], shown["name"]) == (group_id, "tea")
    assert shown["last_message"]["content"] == "at five"


async def test_removed_while_away(server: Server) -> None:
    alice, bob, cyd = [await server.register(name) for name in ("alice", "bob", "cyd")]
    group_id = await server.group(alice, bob, cyd)
    phone, laptop = Store(bob, "phone"), await alice.connect("laptop")
    await phone.come_online()
    assert group_id in phone.conversations
    await phone.go_offline()
    await laptop.say(group_id, "the last that bob may read")
    await alice.call("DELETE", f"/api/conversations/{group_id}/participants/{bob.user_id}", expect=204)
    await laptop.say(group_id, "he does not hear this")
    await phone.come_online()
    assert phone.texts() == ["the last that bob may read"]
    assert list(phone.entries.values())[-1]["metadata"]["event"] == "participant_removed"
    assert group_id not in phone.conversations
    await bob.get(f"/api/conversations/{group_id}", expect=404)
    await bob.get(f"/api/conversations/{group_id}/messages", expect=404)
    assert phone.now is not None
    refused = await phone.now.say(group_id, "let me in")
    assert (refused["type"], refused["code"]) == ("ERROR", "not_found")


async def test_two_devices_have_a_cursor_each_and_hear_of_each_other(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    laptop = await alice.connect("laptop")
    phone, tablet = Store(bob, "phone"), Store(bob, "tablet")
    await phone.come_online()
    await tablet.come_online()
    assert phone.now is not None and tablet.now is not None
    said = await laptop.say(conversation_id, "to both")
    await phone.now.reached(said["message_id"])
    await tablet.now.reached(said["message_id"])
    await tablet.go_offline()
    await phone.say(conversation_id, "from the phone")
    last = await laptop.say(conversation_id, "only the phone is there")
    await phone.now.reached(last["message_id"])
    await phone.mark_read(conversation_id, last["message_id"])
    await phone.now.roundtrip()
    await all_stored(bob, conversation_id)
    assert await stored_cursor(server, bob, "tablet") == tablet.cursor
    await tablet.come_online()
    assert tablet.texts() == ["to both", "from the phone", "only the phone is there"]
    assert tablet.conversations[conversation_id]["unread_count"] == 0
    assert tablet.now is not None
    await tablet.say(conversation_id, "from the tablet")
    assert (await phone.now.expect("MESSAGE_RECEIVE", content="from the tablet"))["payload"]["client_message_id"]
    again = await laptop.say(conversation_id, "read this on the tablet")
    await tablet.now.reached(again["message_id"])
    await tablet.mark_read(conversation_id, again["message_id"])
    own = await phone.now.expect(
        lambda frame: (
            frame["type"] == "MESSAGE_ACK"
            and frame["payload"]["status"] == "read"
            and frame["payload"]["receipts"][0]["message_id"] == again["message_id"]
        )
    )
    assert own["payload"]["unread_count"] == 0


async def test_a_new_phone_starts_where_the_old_one_has_confirmed_and_pages_back(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    laptop, old = await alice.connect("laptop"), Store(bob, "old phone")
    await old.come_online()
    assert old.now is not None
    spoken = await laptop.say_many(conversation_id, [str(number) for number in range(60)])
    await old.now.reached(spoken[-1])
    await old.go_offline()
    await all_stored(bob, conversation_id)
    new = await server.login(bob.username, "new phone")
    later = await laptop.say(conversation_id, "for the new phone")
    device = await new.connect()
    assert device.ready["device_id"] == "new phone"
    assert device.ready["last_sync_id"] == old.cursor
    assert device.contents() == ["for the new phone"]
    older: list[str] = []
    path = f"/api/conversations/{conversation_id}/messages?before={later['message_id']}"
    page = await new.get(path)
    older = [item["content"] for item in page["items"]]
    while page["next"] is not None:
        page = await new.get(f"/api/conversations/{conversation_id}/messages?cursor={page['next']}")
        older = [item["content"] for item in page["items"]] + older
    assert older == [str(number) for number in range(60)]


async def test_a_device_that_lost_its_store_begins_again_at_zero(server: Server) -> None:
    alice, bob, conversation_id = await two(server)
    laptop, phone = await alice.connect("laptop"), Store(bob, "phone")
    await phone.come_online()
    assert phone.now is not None
    spoken = await laptop.say_many(conversation_id, ["one", "two", "three"])
    await phone.now.reached(spoken[-1])
    await phone.go_offline()
    wiped = Store(bob, "phone")
    ready = await wiped.come_online()
    assert ready["last_sync_id"] == 0
    assert wiped.texts() == ["one", "two", "three"]
    assert conversation_id in wiped.conversations
