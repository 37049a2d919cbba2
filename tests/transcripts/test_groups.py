"""Groups and one-on-ones from outside: each verb over HTTP, its entries, and what every member's devices hear of it."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.house import Device, Person, Server


async def three(server: Server) -> tuple[Person, Person, Person, str]:
    ada, bob, cyd = [await server.register(name) for name in ("ada", "bob", "cyd")]
    return ada, bob, cyd, await server.group(ada, bob, cyd, name="Tea")


async def told(person: Person, group: str, *others: Person) -> list[str]:
    """The group's past as this member reads it: `ada: role_changed role=admin user_id=bob`."""
    names = {each.user_id: each.username.split("_")[0] for each in (person, *others)}
    page = await person.get(f"/api/conversations/{group}/messages?limit=100")
    return [_words(item, names) for item in page["items"]]


def _words(item: dict[str, Any], names: dict[str, str]) -> str:
    sender = names[item["sender_id"]]
    if item["message_type"] == "text":
        return f'{sender}: "{item["content"]}"'
    facts = {key: names.get(value, value) for key, value in sorted(item["metadata"].items()) if key != "event"}
    return " ".join([f"{sender}:", item["metadata"]["event"], *(f"{key}={value}" for key, value in facts.items())])


def problem(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


def roles(conversation: dict[str, Any], *people: Person) -> dict[str, str]:
    names = {each.user_id: each.username.split("_")[0] for each in people}
    return {names[seat["user_id"]]: seat["role"] for seat in conversation["participants"]}


async def removal(device: Device, group: str) -> None:
    await device.expect("CONVERSATION_UPDATE", conversation_id=group, removed=True)


BOTH = [
    "ada: created name=Tea type=group",
    "ada: participant_added role=member user_id=bob",
    "ada: participant_added role=member user_id=cyd",
]


async def test_a_new_group_is_the_same_past_for_all_its_founders(server: Server) -> None:
    ada, bob, cyd, tea = await three(server)
    for member in (ada, bob, cyd):
        assert await told(member, tea, ada, bob, cyd) == BOTH
        page = await member.get(f"/api/conversations/{tea}/messages")
        assert [item["seq"] for item in page["items"]] == [1, 2, 3] and page["next"] is None
        conversation = await member.get(f"/api/conversations/{tea}")
        assert (conversation["type"], conversation["name"], conversation["created_by"]) == ("group", "Tea", ada.user_id)
        assert roles(conversation, ada, bob, cyd) == {"ada": "owner", "bob": "member", "cyd": "member"}
        assert conversation["role"] == ("owner" if member is ada else "member")


async def test_a_group_made_while_away_comes_with_its_object_in_the_batch(server: Server) -> None:
    ada, bob, _, tea = await three(server)
    phone = await bob.open("phone", last_sync_id=0)
    batch = (await phone.expect("SYNC_BATCH"))["payload"]
    assert [entry["metadata"]["event"] for entry in batch["messages"]] == ["created", "participant_added", "participant_added"]
    assert [conversation["conversation_id"] for conversation in batch["conversations"]] == [tea]
    assert batch["conversations"][0]["role"] == "member"
    assert ada.user_id in {seat["user_id"] for seat in batch["conversations"][0]["participants"]}


async def test_bob_is_added_and_hears_only_from_then_on(server: Server) -> None:
    ada, bob, cyd, tea = await three(server)
    dan = await server.register("dan")
    phone = await dan.connect()
    await (await ada.connect()).say(tea, "before dan")
    added = await ada.post(f"/api/conversations/{tea}/participants", {"user_ids": [dan.user_id, bob.user_id]})
    assert roles(added, ada, bob, cyd, dan)["dan"] == "member"
    assert (await phone.expect("MESSAGE_RECEIVE"))["payload"]["metadata"] == {
        "event": "participant_added",
        "user_id": dan.user_id,
        "role": "member",
    }
    assert (await phone.expect("CONVERSATION_UPDATE"))["payload"]["conversation"]["conversation_id"] == tea
    assert await told(dan, tea, ada) == ["ada: participant_added role=member user_id=dan"]
    assert (await told(ada, tea, bob, cyd, dan)) == [
        *BOTH,
        'ada: "before dan"',
        "ada: participant_added role=member user_id=dan",
    ]


async def test_cyd_is_removed_keeps_that_entry_and_nothing_after(server: Server) -> None:
    ada, bob, cyd, tea = await three(server)
    phone = await cyd.connect()
    assert (await ada.call("DELETE", f"/api/conversations/{tea}/participants/{cyd.user_id}")).status_code == 204
    gone = (await phone.expect("MESSAGE_RECEIVE"))["payload"]
    assert gone["metadata"] == {"event": "participant_removed", "user_id": cyd.user_id}
    await removal(phone, tea)
    last = await (await bob.connect()).say(tea, "cyd is gone")
    await phone.reached(last["message_id"])
    assert phone.contents() == []
    for method, path, body in (
        ("GET", "", None),
        ("GET", "/messages", None),
        ("GET", f"/messages/{gone['message_id']}", None),
        ("POST", "/messages", {"client_message_id": "x", "content": "x"}),
        ("POST", "/read", {"message_id": 1}),
        ("PATCH", "", {"name": "x"}),
        ("DELETE", "", None),
        ("POST", "/participants", {"user_ids": [cyd.user_id]}),
    ):
        problem(await cyd.call(method, f"/api/conversations/{tea}{path}", body), 404, "not_found")
    # What was owed still comes by sync: another device of hers, from its beginning.
    tablet = await cyd.connect("tablet", last_sync_id=0)
    assert tablet.events() == ["created", "participant_added", "participant_added", "participant_removed"]


async def test_back_again_bob_does_not_see_what_was_said_in_between(server: Server) -> None:
    ada, bob, cyd, tea = await three(server)
    laptop = await ada.connect()
    await laptop.say(tea, "one")
    await bob.call("DELETE", f"/api/conversations/{tea}/participants/{bob.user_id}", expect=204)
    await laptop.say(tea, "two")
    await ada.post(f"/api/conversations/{tea}/participants", {"user_ids": [bob.user_id]})
    three_said = await laptop.say(tea, "three")
    assert await told(bob, tea, ada, cyd) == [
        *BOTH,
        'ada: "one"',
        "bob: participant_left user_id=bob",
        "ada: participant_added role=member user_id=bob",
        'ada: "three"',
    ]
    phone = await bob.connect(last_sync_id=0)
    await phone.reached(three_said["message_id"])
    assert phone.contents() == ["one", "three"]


async def test_an_owner_who_leaves_hands_over_before_and_the_last_one_turns_off_the_light(server: Server) -> None:
    ada, bob, cyd, tea = await three(server)
    path = f"/api/conversations/{tea}/participants"
    await ada.call("PATCH", f"{path}/{cyd.user_id}", {"role": "admin"}, expect=200)
    await ada.call("DELETE", f"{path}/{ada.user_id}", expect=204)
    assert (await told(bob, tea, ada, cyd))[3:] == [
        "ada: role_changed role=admin user_id=cyd",
        "ada: role_changed role=owner user_id=cyd",
        "ada: participant_left user_id=ada",
    ]
    await cyd.call("DELETE", f"{path}/{cyd.user_id}", expect=204)
    assert (await bob.get(f"/api/conversations/{tea}"))["role"] == "owner"
    await bob.call("DELETE", f"{path}/{bob.user_id}", expect=204)
    for member in (ada, bob, cyd):
        problem(await member.call("GET", f"/api/conversations/{tea}"), 404, "not_found")
        assert (await member.get("/api/conversations"))["items"] == []


async def test_ownership_is_given_away_and_nobody_else_can_give_it(server: Server) -> None:
    ada, bob, cyd, tea = await three(server)
    path = f"/api/conversations/{tea}/participants"
    problem(await bob.call("PATCH", f"{path}/{bob.user_id}", {"role": "owner"}), 403, "forbidden")
    problem(await ada.call("PATCH", f"{path}/{ada.user_id}", {"role": "member"}), 409, "conflict")
    problem(await ada.call("PATCH", f"{path}/{bob.user_id}", {"role": "king"}), 422, "validation_failed")
    problem(await ada.call("PATCH", f"{path}/{uuid4()}", {"role": "admin"}), 404, "not_found")
    given = (await ada.call("PATCH", f"{path}/{bob.user_id}", {"role": "owner"}, expect=200)).json()
    assert roles(given, ada, bob, cyd) == {"ada": "admin", "bob": "owner", "cyd": "member"}
    await bob.call("PATCH", f"{path}/{ada.user_id}", {"role": "admin"}, expect=200)
    assert (await told(cyd, tea, ada, bob))[3:] == [
        "ada: role_changed role=owner user_id=bob",
        "ada: role_changed role=admin user_id=ada",
    ]


async def test_admins_remove_members_and_no_more(server: Server) -> None:
    ada, bob, cyd, tea = await three(server)
    dan = await server.register("dan")
    path = f"/api/conversations/{tea}/participants"
    problem(await bob.call("POST", path, {"user_ids": [dan.user_id]}), 403, "forbidden")
    problem(await bob.call("DELETE", f"{path}/{cyd.user_id}"), 403, "forbidden")
    for admin in (bob, cyd):
        await ada.call("PATCH", f"{path}/{admin.user_id}", {"role": "admin"}, expect=200)
    await bob.call("POST", path, {"user_ids": [dan.user_id]}, expect=200)
    problem(await bob.call("DELETE", f"{path}/{cyd.user_id}"), 403, "forbidden")
    problem(await bob.call("DELETE", f"{path}/{ada.user_id}"), 403, "forbidden")
    problem(await bob.call("DELETE", f"/api/conversations/{tea}"), 403, "forbidden")
    await bob.call("DELETE", f"{path}/{dan.user_id}", expect=204)
    problem(await bob.call("DELETE", f"{path}/{dan.user_id}"), 404, "not_found")


async def test_a_new_name_is_one_entry_and_the_same_name_none(server: Server) -> None:
    ada, bob, cyd, tea = await three(server)
    phone = await bob.connect()
    problem(await bob.call("PATCH", f"/api/conversations/{tea}", {"name": "Bob's"}), 403, "forbidden")
    for _ in range(2):
        renamed = await ada.call("PATCH", f"/api/conversations/{tea}", {"name": "Coffee ☕"}, expect=200)
        assert renamed.json()["name"] == "Coffee ☕"
    assert await told(cyd, tea, ada, bob) == [*BOTH, "ada: renamed name=Coffee ☕"]
    update = await phone.expect("CONVERSATION_UPDATE")
    assert update["payload"]["conversation"]["name"] == "Coffee ☕"
    for name in ("", "x" * 256, "a\x00b", None, 7):
        problem(await ada.call("PATCH", f"/api/conversations/{tea}", {"name": name}), 422, "validation_failed")
    await ada.call("PATCH", f"/api/conversations/{tea}", {"name": "é" * 255}, expect=200)


async def test_a_deleted_group_is_gone_for_all_with_one_last_entry(server: Server) -> None:
    ada, bob, cyd, tea = await three(server)
    phones = [await member.connect() for member in (ada, bob, cyd)]
    await ada.call("DELETE", f"/api/conversations/{tea}", expect=204)
    for phone in phones:
        assert (await phone.expect("MESSAGE_RECEIVE"))["payload"]["metadata"] == {"event": "deleted"}
        await removal(phone, tea)
        answer = await phone.say(tea, "anybody?")
        assert (answer["type"], answer["code"]) == ("ERROR", "not_found")
    for member in (ada, bob, cyd):
        problem(await member.call("GET", f"/api/conversations/{tea}/messages"), 404, "not_found")
        assert (await member.get("/api/conversations"))["items"] == []


async def test_a_one_on_one_is_found_again_by_either_and_is_no_group(server: Server) -> None:
    ada, bob = await server.register("ada"), await server.register("bob")
    phone = await bob.connect()
    body = {"type": "one_on_one", "participant_ids": [bob.user_id]}
    made = await ada.post("/api/conversations", body, expect=201)
    assert (made["type"], made["name"], made["last_message"], made["unread_count"]) == ("one_on_one", None, None, 0)
    update = await phone.expect("CONVERSATION_UPDATE")
    assert update["payload"]["conversation"]["conversation_id"] == made["conversation_id"]
    back = {"type": "one_on_one", "participant_ids": [ada.user_id]}
    found = await bob.post("/api/conversations", back, expect=200)
    assert found["conversation_id"] == made["conversation_id"]
    path = f"/api/conversations/{made['conversation_id']}"
    for method, where, with_body in (
        ("PATCH", "", {"name": "us"}),
        ("POST", "/participants", {"user_ids": [str(uuid4())]}),
        ("PATCH", f"/participants/{bob.user_id}", {"role": "admin"}),
        ("DELETE", f"/participants/{ada.user_id}", None),
    ):
        problem(await ada.call(method, path + where, with_body), 409, "not_a_group")


async def test_a_one_on_one_hidden_by_ada_stays_bobs_and_returns_with_his_next_word(server: Server) -> None:
    ada, bob = await server.register("ada"), await server.register("bob")
    pair = await server.pair(ada, bob)
    tablet, phone = await ada.connect("tablet"), await bob.connect()
    said = await phone.say(pair, "hello")
    await ada.call("DELETE", f"/api/conversations/{pair}", expect=204)
    hidden = await tablet.expect(lambda frame: frame["payload"].get("message_type") == "account")
    assert hidden["payload"]["metadata"] == {"event": "hidden", "conversation_id": pair, "up_to": said["message_id"]}
    assert (await ada.get("/api/conversations"))["items"] == []
    (his,) = (await bob.get("/api/conversations"))["items"]
    assert his["conversation_id"] == pair
    await phone.say(pair, "are you there?")
    (hers,) = (await ada.get("/api/conversations"))["items"]
    assert (hers["conversation_id"], hers["unread_count"], hers["last_message"]["content"]) == (pair, 2, "are you there?")


async def test_a_client_that_repeats_making_a_group_gets_the_first(server: Server) -> None:
    ada, bob, cyd = [await server.register(name) for name in ("ada", "bob", "cyd")]
    body: dict[str, Any] = {
        "type": "group",
        "name": "Tea",
        "participant_ids": [bob.user_id, cyd.user_id],
        "client_conversation_id": str(uuid4()),
    }
    first = await ada.post("/api/conversations", body, expect=201)
    again = await ada.post("/api/conversations", {**body, "name": "Coffee"}, expect=200)
    assert (again["conversation_id"], again["name"]) == (first["conversation_id"], "Tea")


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "self"},
        {"type": "group", "name": None},
        {"type": "group", "name": ""},
        {"name": "for two?"},
        {"participant_ids": []},
        {"participant_ids": ["not an id"]},
        {"participant_ids": [str(uuid4()), str(uuid4())]},
        {"participant_ids": [str(uuid4())] * 51},
        {"client_conversation_id": "mine"},
        {"colour": "blue"},
    ],
)
async def test_a_conversation_of_a_wrong_shape_is_refused(server: Server, wrong: dict[str, Any]) -> None:
    ada = await server.register("ada")
    body = {"type": "one_on_one", "participant_ids": [str(uuid4())], **wrong}
    problem(await ada.call("POST", "/api/conversations", body), 422, "validation_failed")


async def test_a_read_mark_is_stored_when_it_is_answered_and_told_to_the_sender(server: Server) -> None:
    ada, bob, cyd, tea = await three(server)
    laptop = await ada.connect()
    said = await laptop.say(tea, "hello")
    assert (await bob.get(f"/api/conversations/{tea}"))["unread_count"] == 1
    await bob.call("POST", f"/api/conversations/{tea}/read", {"message_id": said["message_id"] + 100}, expect=204)
    after = await bob.get(f"/api/conversations/{tea}")
    assert (after["unread_count"], after["last_read_message_id"]) == (0, said["message_id"])
    receipt = (await laptop.expect("MESSAGE_ACK", status="read"))["payload"]["receipts"][0]
    assert (receipt["user_id"], receipt["message_id"]) == (bob.user_id, said["message_id"])
    message = await ada.get(f"/api/conversations/{tea}/messages/{said['message_id']}")
    status = message["delivery_status"]
    assert status["read"].keys() == {bob.user_id} and cyd.user_id not in status["delivered"]
    assert status["sent"] <= min(status["delivered"][bob.user_id], status["read"][bob.user_id])


async def test_history_over_http_pages_from_any_place(server: Server) -> None:
    ada, bob = await server.register("ada"), await server.register("bob")
    pair = await server.pair(ada, bob)
    path = f"/api/conversations/{pair}/messages"
    ids = [
        (await ada.post(path, {"client_message_id": f"m{number}", "content": str(number)}, expect=201))["message_id"]
        for number in range(7)
    ]
    newest = await bob.get(f"{path}?limit=3")
    assert [item["message_id"] for item in newest["items"]] == ids[4:]
    older = await bob.get(f"{path}?limit=3&cursor={newest['next']}")
    assert [item["message_id"] for item in older["items"]] == ids[1:4]
    around = await bob.get(f"{path}?limit=3&around={ids[3]}")
    assert [item["message_id"] for item in around["items"]] == ids[2:5]
    newer = await bob.get(f"{path}?limit=3&cursor={around['next']}")
    assert [item["message_id"] for item in newer["items"]] == ids[5:] and newer["next"] is None
    for query in (
        "limit=0",
        "limit=101",
        "before=-1",
        "after=9007199254740992",
        "before=1&after=2",
        "cursor=x",
        "cursor=",
        "page=2",
    ):
        problem(await bob.call("GET", f"{path}?{query}"), 422, "validation_failed")


async def test_a_message_posted_again_is_the_same_and_other_content_a_conflict(server: Server) -> None:
    ada, bob = await server.register("ada"), await server.register("bob")
    path = f"/api/conversations/{await server.pair(ada, bob)}/messages"
    body = {"client_message_id": "one", "content": "hello", "metadata": {"b": "2", "a": "é"}}
    first = await ada.post(path, body, expect=201)
    assert (first["duplicate"], first["client_message_id"], first["metadata"]) == (False, "one", {"a": "é", "b": "2"})
    again = await ada.post(path, {**body, "metadata": {"a": "é", "b": "2"}}, expect=200)
    assert again == {**first, "duplicate": True}
    problem(await ada.call("POST", path, {**body, "content": "other"}), 409, "conflict")
    stored = (await bob.get(path))["items"][0]
    assert (stored["message_id"], stored["content"], stored["metadata"]) == (first["message_id"], "hello", first["metadata"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"content": ""},
        {"content": "x" * 10_001},
        {"content": "a\x00b"},
        {"client_message_id": ""},
        {"client_message_id": "x" * 65},
        {"metadata": {"a": 1}},
        {"metadata": {"a": "x" * 4_096}},
        {"metadata": {"a": "\x00"}},
        {"metadata": []},
    ],
)
async def test_a_message_of_a_wrong_shape_is_refused(server: Server, wrong: dict[str, Any]) -> None:
    ada, bob = await server.register("ada"), await server.register("bob")
    path = f"/api/conversations/{await server.pair(ada, bob)}/messages"
    problem(await ada.call("POST", path, {"client_message_id": "one", "content": "x", **wrong}), 422, "validation_failed")
    assert (await ada.get(path))["items"] == []


async def test_the_longest_message_of_the_widest_characters_passes(server: Server) -> None:
    ada, bob = await server.register("ada"), await server.register("bob")
    path = f"/api/conversations/{await server.pair(ada, bob)}/messages"
    content = "\N{GRINNING FACE}" * 10_000
    await ada.post(path, {"client_message_id": "one", "content": content}, expect=201)
    assert (await bob.get(path))["items"][0]["content"] == content


async def test_the_list_over_http_and_what_changed_since(server: Server) -> None:
    ada, bob, cyd, tea = await three(server)
    pair = await server.pair(ada, bob)
    page = await ada.get("/api/conversations?limit=1")
    assert [item["conversation_id"] for item in page["items"]] == [pair]
    rest = await ada.get(f"/api/conversations?limit=1&cursor={page['next']}")
    assert [item["conversation_id"] for item in rest["items"]] == [tea] and rest["next"] is None
    await cyd.call("DELETE", f"/api/conversations/{tea}/participants/{cyd.user_id}", expect=204)
    changed = await cyd.get(f"/api/conversations?changed_since={page['as_of']}")
    assert changed["items"] == [{"conversation_id": tea, "removed": True}]
    assert changed["as_of"] > page["as_of"]
    for wrong in ("yesterday", "2026-01-01T00:00:00", ""):
        problem(await ada.call("GET", f"/api/conversations?changed_since={wrong}"), 422, "validation_failed")


async def test_the_contract_tells_every_endpoint_of_conversations(server: Server) -> None:
    contract = (await server.http.get("/api/openapi.json")).json()
    schemas = contract["components"]["schemas"]
    for path, methods in {
        "/api/conversations": {"get", "post"},
        "/api/conversations/{conversation_id}": {"get", "patch", "delete"},
        "/api/conversations/{conversation_id}/participants": {"post"},
        "/api/conversations/{conversation_id}/participants/{user_id}": {"patch", "delete"},
        "/api/conversations/{conversation_id}/messages": {"get", "post"},
        "/api/conversations/{conversation_id}/messages/{message_id}": {"get"},
        "/api/conversations/{conversation_id}/read": {"post"},
    }.items():
        assert methods <= contract["paths"][path].keys()
    assert {"ConversationView", "ListedMessage", "TrackedMessage", "PostedMessage", "Participant"} <= schemas.keys()
    assert schemas["ListedMessage"]["properties"].keys() >= {"client_message_id", "delivery_status", "deleted"}
