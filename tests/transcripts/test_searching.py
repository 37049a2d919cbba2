"""Searching: what alice finds, at once and later, and what she never finds."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from tests.house import Person, Server

Item = dict[str, Any]


async def search(person: Person, q: str, **more: object) -> list[Item]:
    """All pages of a search, newest first."""
    found: list[Item] = []
    path = f"/api/messages/search?q={quote(q)}" + "".join(f"&{name}={value}" for name, value in more.items())
    cursor = ""
    while True:
        page = await person.get(path + cursor)
        found += page["items"]
        if page["next"] is None:
            return found
        cursor = f"&cursor={page['next']}"


async def contents(person: Person, q: str, **more: object) -> list[str]:
    return [item["message"]["content"] for item in await search(person, q, **more)]


def marked(item: Item) -> list[str]:
    """What the highlights cut out of the content."""
    return [item["message"]["content"][start:end] for start, end in item["highlights"]]


async def test_a_message_is_found_as_soon_as_it_is_sent(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    conversation_id = await server.pair(alice, bob)
    laptop = await alice.connect("laptop")
    ack = await laptop.say(conversation_id, "Meet me at the Lighthouse, the old lighthouse")
    for person in (alice, bob):
        (item,) = await search(person, "LIGHTHOUSE")
        message = item["message"]
        assert (message["message_id"], message["conversation_id"]) == (ack["message_id"], conversation_id)
        assert item["highlights"] == [[15, 25], [35, 45]]
        assert ("delivery_status" in message, "client_message_id" in message) == (person is alice, person is alice)


async def test_the_newest_come_first_over_all_conversations_and_pages_hold_each_once(server: Server) -> None:
    alice, bob, cyd = [await server.register(name) for name in ("alice", "bob", "cyd")]
    pair, group = await server.pair(alice, bob), await server.group(alice, bob, cyd)
    laptop = await alice.connect("laptop")
    for number in range(9):
        await laptop.say(group if number % 2 else pair, f"apple {number}")
        await laptop.say(group, f"pear {number}")
    wanted = [f"apple {number}" for number in reversed(range(9))]
    for limit in (1, 2, 3, 4, 9, 100):
        assert await contents(alice, "apple", limit=limit) == wanted
    assert await contents(cyd, "apple", limit=2) == [f"apple {number}" for number in (7, 5, 3, 1)]
    assert await contents(alice, "apple", conversation_id=pair, limit=2) == [f"apple {number}" for number in (8, 6, 4, 2, 0)]


@pytest.mark.parametrize(
    ("content", "q", "cut_out"),
    [
        ("今日の会議は東京で", "会議", ["会議"]),
        ("カタカナ と ひらがな", "ひら", ["ひら"]),
        ("안녕하세요", "하세", ["하세"]),
        ("Die STRASSE, die Straße", "straße", ["STRASSE", "Straße"]),
        ("in İstanbul and istanbul", "ISTANBUL", ["İstanbul", "istanbul"]),
        ("ＦＵＬＬ width", "full WIDTH", ["ＦＵＬＬ width"]),
        ("ΟΔΥΣΣΕΥΣ και οδυσσευς", "οδυσσευς", ["ΟΔΥΣΣΕΥΣ", "οδυσσευς"]),
        ("100% sure, a_b and a\\b", "0%", ["0%"]),
        ("100% sure, a_b and acb", "A_B", ["a_b"]),
        ("a 👩‍👩‍👧 family 👩‍👩‍👧", "👩‍👩‍👧", ["👩‍👩‍👧", "👩‍👩‍👧"]),
        ("two  spaces", "o  s", ["o  s"]),
        ("ananas", "  an ", ["an", "an"]),
        ("ß at the end of groß", "oss", ["oß"]),
    ],
)
async def test_any_language_is_found_by_substring_and_the_highlights_are_the_match(
    server: Server, content: str, q: str, cut_out: list[str]
) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    conversation_id = await server.pair(alice, bob)
    laptop = await alice.connect("laptop")
    await laptop.say(conversation_id, "something else")
    await laptop.say(conversation_id, content)
    (item,) = await search(bob, q)
    assert item["message"]["content"] == content
    assert marked(item) == cut_out
    assert await search(bob, q + "?") == []


async def test_what_is_deleted_or_hidden_is_found_no_more(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    conversation_id = await server.pair(alice, bob)
    laptop = await alice.connect("laptop")
    for_all = await laptop.say(conversation_id, "a secret for nobody")
    for_me = await laptop.say(conversation_id, "a secret that bob keeps")
    path = f"/api/conversations/{conversation_id}/messages"
    await alice.call("DELETE", f"{path}/{for_all['message_id']}?for=everyone", expect=204)
    await alice.call("DELETE", f"{path}/{for_me['message_id']}?for=me", expect=204)
    assert await contents(alice, "secret") == []
    assert await contents(bob, "secret") == ["a secret that bob keeps"]


async def test_one_finds_what_was_said_in_ones_stays_and_nothing_after_leaving(server: Server) -> None:
    alice, bob, cyd, dan = [await server.register(name) for name in ("alice", "bob", "cyd", "dan")]
    group = await server.group(alice, bob, cyd)
    laptop = await alice.connect("laptop")
    await laptop.say(group, "tea before dan")
    await alice.post(f"/api/conversations/{group}/participants", {"user_ids": [dan.user_id]})
    await laptop.say(group, "tea with dan")
    await alice.call("DELETE", f"/api/conversations/{group}/participants/{dan.user_id}", expect=204)
    await laptop.say(group, "tea behind dan")
    assert await contents(dan, "tea") == []
    await dan.get(f"/api/messages/search?q=tea&conversation_id={group}", expect=404)
    await alice.post(f"/api/conversations/{group}/participants", {"user_ids": [dan.user_id]})
    await laptop.say(group, "tea again")
    assert await contents(dan, "tea") == ["tea again", "tea with dan"]
    assert len(await contents(bob, "tea", conversation_id=group)) == 4


async def test_a_strangers_conversation_is_not_found_and_names_of_events_are_no_texts(server: Server) -> None:
    alice, bob, eve = [await server.register(name) for name in ("alice", "bob", "eve")]
    group = await server.group(alice, bob, eve, name="Mushrooms")
    pair = await server.pair(alice, bob)
    await (await alice.connect()).say(pair, "between us")
    assert await contents(eve, "between") == await contents(alice, "Mushrooms") == []
    await eve.get(f"/api/messages/search?q=between&conversation_id={pair}", expect=404)
    await eve.get(f"/api/messages/search?q=between&conversation_id={group[:-4]}0000", expect=404)


@pytest.mark.parametrize("query", ["", "q=a", "q=%20a%20%20", "q=", "q=ab&limit=0", "q=ab&limit=101", "q=ab&cursor=x",
                                   "q=ab&conversation_id=x", "q=a%00b", "q=i%CC%87", "q=ab&mode=x", "q=" + "a" * 201])
async def test_a_question_that_makes_no_sense_is_refused(server: Server, query: str) -> None:
    alice = await server.register("alice")
    answer = await alice.call("GET", f"/api/messages/search?{query}", expect=422)
    assert answer.json()["code"] == "validation_failed"
