"""Messages taken back, for everyone and for oneself: what devices that are there hear, and what those that were away find."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import trio

from tests.house import Device, Person, Server, serving, settings_for


def problem(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


async def delete(person: Person, conversation_id: str, message_id: int, whom: str = "everyone") -> httpx.Response:
    return await person.call("DELETE", f"/api/conversations/{conversation_id}/messages/{message_id}?for={whom}")


async def history(person: Person, conversation_id: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = (await person.get(f"/api/conversations/{conversation_id}/messages?limit=100"))["items"]
    return items


async def seen(person: Person, conversation_id: str, message_id: int) -> dict[str, Any]:
    found: dict[str, Any] = await person.get(f"/api/conversations/{conversation_id}/messages/{message_id}")
    return found


async def conversation(person: Person, conversation_id: str) -> dict[str, Any]:
    found: dict[str, Any] = await person.get(f"/api/conversations/{conversation_id}")
    return found


async def fill(device: Device, conversation_id: str, *contents: str) -> list[dict[str, Any]]:
    return [await device.say(conversation_id, content) for content in contents]


def of_type(device: Device, kind: str) -> list[dict[str, Any]]:
    return [entry for entry in device.entries if entry.get("message_type") == kind]


# -- for everyone ---------------------------------------------------------------------------------------------------------


async def test_bobs_phone_hears_that_alice_took_it_back_and_his_tablet_finds_it_blank(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    pair = await server.pair(alice, bob)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    said = await laptop.say(pair, "a secret", "one", metadata={"tone": "low"})
    await phone.expect("MESSAGE_RECEIVE", content="a secret")
    assert (await delete(alice, pair, said["message_id"])).status_code == 204
    for device in (laptop, phone):
        told = (await device.expect("MESSAGE_RECEIVE", message_type="deletion"))["payload"]
        assert (told["sender_id"], told["content"]) == (alice.user_id, "")
        assert told["metadata"] == {"target_message_id": said["message_id"]}
        assert told["seq"] == said["seq"] + 1
    tablet = await bob.connect("tablet", last_sync_id=0)
    blank = tablet.entries[0]
    assert (blank["message_id"], blank["content"], blank["metadata"], blank["deleted"]) == (said["message_id"], "", {}, True)
    assert of_type(tablet, "deletion")[0]["metadata"] == {"target_message_id": said["message_id"]}
    for person in (alice, bob):
        assert [(item["content"], item.get("deleted")) for item in await history(person, pair)] == [("", True), ("", None)]
        last = (await conversation(person, pair))["last_message"]
        assert (last["message_id"], last["content"], last["deleted"]) == (said["message_id"], "", True)
        assert (await seen(person, pair, said["message_id"]))["content"] == ""
    assert (await conversation(bob, pair))["unread_count"] == 0


async def test_taking_back_again_makes_no_second_entry_and_a_repeated_send_stays_a_duplicate(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    pair = await server.pair(alice, bob)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    said = await laptop.say(pair, "once", "one")
    for _ in range(3):
        assert (await delete(alice, pair, said["message_id"])).status_code == 204
    again = await laptop.say(pair, "once", "one")
    assert (again["message_id"], again["duplicate"]) == (said["message_id"], True)
    other = await laptop.say(pair, "twice", "one")
    assert (other["type"], other["code"]) == ("ERROR", "conflict")
    last = await laptop.say(pair, "bye")
    assert last["seq"] == said["seq"] + 2
    await phone.reached(last["message_id"])
    assert len(of_type(phone, "deletion")) == 1
    assert [item["content"] for item in await history(bob, pair)] == ["", "", "bye"]


async def test_in_a_group_the_owner_and_admins_may_and_members_only_their_own(server: Server) -> None:
    ada, bob, cyd, dan = [await server.register(name) for name in ("ada", "bob", "cyd", "dan")]
    tea = await server.group(ada, bob, cyd, dan)
    assert (
        await ada.call("PATCH", f"/api/conversations/{tea}/participants/{bob.user_id}", {"role": "admin"})
    ).status_code == 200
    speakers = [await person.connect() for person in (ada, bob, cyd, dan)]
    by_ada, by_bob, by_cyd, by_dan = [(await device.say(tea, "word"))["message_id"] for device in speakers]
    problem(await delete(cyd, tea, by_dan), 403, "forbidden")
    problem(await delete(cyd, tea, by_ada), 403, "forbidden")
    assert (await delete(cyd, tea, by_cyd)).status_code == 204
    assert (await delete(bob, tea, by_ada)).status_code == 204
    assert (await delete(ada, tea, by_bob)).status_code == 204
    # What is blank already is judged all the same.
    problem(await delete(dan, tea, by_bob), 403, "forbidden")
    shown = {item["message_id"]: item.get("deleted", False) for item in await history(dan, tea)}
    assert [shown[message_id] for message_id in (by_ada, by_bob, by_cyd, by_dan)] == [True, True, True, False]


async def test_what_is_no_text_within_ones_stay_is_not_found(server: Server) -> None:
    ada, bob, cyd, dan = [await server.register(name) for name in ("ada", "bob", "cyd", "dan")]
    tea, pair = await server.group(ada, bob, cyd), await server.pair(ada, bob)
    phone = await ada.connect()
    early, elsewhere = (await phone.say(tea, "before dan"))["message_id"], (await phone.say(pair, "hello"))["message_id"]
    await ada.post(f"/api/conversations/{tea}/participants", {"user_ids": [dan.user_id]})
    created = (await history(ada, tea))[0]["message_id"]
    assert (await delete(ada, tea, early)).status_code == 204
    deletion = (await history(ada, tea))[-1]["message_id"]
    for whom in ("everyone", "me"):
        for person, message_id in ((dan, early), (ada, elsewhere), (ada, created), (ada, deletion), (ada, 2**53 - 1)):
            problem(await delete(person, tea, message_id, whom), 404, "not_found")
        problem(await delete(cyd, pair, elsewhere, whom), 404, "not_found")
        problem(await delete(ada, str(uuid4()), elsewhere, whom), 404, "not_found")
    await cyd.call("DELETE", f"/api/conversations/{tea}/participants/{cyd.user_id}", expect=204)
    problem(await delete(cyd, tea, early, "me"), 404, "not_found")
    problem(await delete(bob, pair, elsewhere), 403, "forbidden")


@pytest.mark.parametrize("query", ["", "?for=", "?for=you", "?for=me&for=me", "?for=me&x=1", "?whom=me"])
async def test_whom_it_is_deleted_for_must_be_said(server: Server, query: str) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    pair = await server.pair(alice, bob)
    said = await (await alice.connect()).say(pair, "hello")
    path = f"/api/conversations/{pair}/messages/{said['message_id']}{query}"
    problem(await alice.call("DELETE", path), 422, "validation_failed")


async def test_the_ring_forgets_it_too_with_every_encoding(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    pair = await server.pair(alice, bob)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    first, second, third = await fill(laptop, pair, "one", "two", "three")
    await phone.reached(third["message_id"])
    await delete(alice, pair, second["message_id"])
    await phone.expect("MESSAGE_RECEIVE", message_type="deletion")
    tailer = server.house.tailer
    kept = {entry.message_id: entry for entry in tailer.since(first["message_id"] - 1, UUID(bob.user_id))}
    assert [kept[ack["message_id"]].content for ack in (first, second, third)] == ["one", "", "three"]
    blank = kept[second["message_id"]]
    assert blank.deleted and blank.metadata is None
    assert (blank.others, blank.own, blank.live, blank.live_own) == (None, None, None, None)


async def test_another_process_forgets_it_within_a_second_redis_away(database_url: str) -> None:
    # Nobody listens there: the bus is silent, and the tailers read the log themselves.
    settings = settings_for(database_url, "redis://127.0.0.1:1")
    async with serving(settings) as here, serving(settings) as there:
        alice, bob = await here.register("alice"), await here.register("bob")
        pair = await here.pair(alice, bob)
        laptop, phone = await alice.connect("laptop"), await bob.connect("phone", to=there)
        said = await laptop.say(pair, "a secret")
        await phone.expect("MESSAGE_RECEIVE", content="a secret")
        await delete(alice, pair, said["message_id"])
        with trio.fail_after(1):
            await phone.expect("MESSAGE_RECEIVE", message_type="deletion")
        assert [entry.content for entry in there.house.tailer.since(0, UUID(bob.user_id)) or []][:1] == [""]


# -- for oneself ----------------------------------------------------------------------------------------------------------


async def test_hidden_by_bob_it_is_gone_from_all_his_readings_and_alices_sees_nothing(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    pair = await server.pair(alice, bob)
    laptop, phone, tablet = await alice.connect("laptop"), await bob.connect("phone"), await bob.connect("tablet")
    _, second = await fill(laptop, pair, "keep", "hide")
    assert (await conversation(bob, pair))["unread_count"] == 2
    for _ in range(2):
        assert (await delete(bob, pair, second["message_id"], "me")).status_code == 204
    for device in (phone, tablet):
        told = (await device.expect("MESSAGE_RECEIVE", message_type="account"))["payload"]
        event = {"event": "hidden", "conversation_id": pair, "message_id": second["message_id"]}
        assert (told["sender_id"], told["metadata"]) == (bob.user_id, event)
    place = {"message_id": second["message_id"], "conversation_id": pair, "seq": second["seq"], "hidden": True}
    items = await history(bob, pair)
    assert items[0]["content"] == "keep" and items[1] == place
    assert await seen(bob, pair, second["message_id"]) == place
    view = await conversation(bob, pair)
    assert (view["last_message"], view["unread_count"]) == (place, 1)
    listed = (await bob.get("/api/conversations"))["items"][0]
    assert (listed["last_message"], listed["unread_count"]) == (place, 1)
    synced = await bob.get("/api/sync?last_sync_id=0")
    assert place in synced["messages"] and "hide" not in str(synced)
    # One that was away gets it as a place, and then the entry that says why.
    new = await bob.connect("new", last_sync_id=0)
    assert new.entries[1] == place and len(of_type(new, "account")) == 1

    last = await laptop.say(pair, "bye")
    await laptop.reached(last["message_id"])
    assert laptop.entries == []
    assert [item["content"] for item in await history(alice, pair)] == ["keep", "hide", "bye"]
    assert (await conversation(alice, pair))["last_message"]["content"] == "bye"
    await phone.reached(last["message_id"])
    assert len(of_type(phone, "account")) == 1


async def test_alice_hides_her_own_and_her_list_tells_no_status_of_it(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    pair = await server.pair(alice, bob)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    said = await laptop.say(pair, "mine", "one")
    await phone.expect("MESSAGE_RECEIVE", content="mine")
    assert (await delete(alice, pair, said["message_id"], "me")).status_code == 204
    place = {"message_id": said["message_id"], "conversation_id": pair, "seq": said["seq"], "hidden": True}
    assert await history(alice, pair) == [place]
    assert await seen(alice, pair, said["message_id"]) == place
    assert (await laptop.say(pair, "mine", "one"))["duplicate"]
    # Then for everyone as well: one does not exclude the other.
    assert (await delete(alice, pair, said["message_id"])).status_code == 204
    assert (await delete(bob, pair, said["message_id"], "me")).status_code == 204
    assert (await history(alice, pair))[0] == place and (await history(bob, pair))[0] == place


async def test_a_page_keeps_no_hole_where_all_of_it_is_hidden(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    pair = await server.pair(alice, bob)
    acks = await fill(await alice.connect(), pair, *(str(number) for number in range(6)))
    for ack in acks[2:4]:
        await delete(bob, pair, ack["message_id"], "me")
    page = await bob.get(f"/api/conversations/{pair}/messages?before={acks[4]['message_id']}&limit=2")
    assert [(item["seq"], item.get("hidden")) for item in page["items"]] == [(3, True), (4, True)]
    older = await bob.get(f"/api/conversations/{pair}/messages?cursor={page['next']}&limit=2")
    assert [item["content"] for item in older["items"]] == ["0", "1"] and older["next"] is None
