"""Read receipts where somebody hides them: on every way by which a read is told, off, and off and on again.

Each test looks at all of them at once: the receipt that comes live, the conversation's watermark, one message's status, the
counts in a page; and the last ones at whether the conversation counts as changed. One's own devices always know one's own reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.house import Device, Person, Server


@dataclass
class Scene:
    """alice writes, bob reads; each on a phone that is there, bob also on a tablet."""

    server: Server
    alice: Person
    bob: Person
    pair: str
    hers: Device
    his: Device
    his_tablet: Device

    async def write(self, content: str) -> int:
        """Alice's next message, delivered to bob before this returns."""
        message_id: int = (await self.hers.say(self.pair, content))["message_id"]
        await self.his.reached(message_id)
        await self.hers.expect(lambda f: _reaches(f, "delivered", message_id))
        return message_id

    async def read(self, message_id: int) -> None:
        """Bob reads up to there; stored when this returns."""
        await self.bob.post(f"/api/conversations/{self.pair}/read", {"message_id": message_id}, expect=204)
        await self.his_tablet.expect(lambda f: _reaches(f, "read", message_id))

    async def told_live(self) -> list[int]:
        """What alice's phone was told of bob's reads since the last time."""
        await self.hers.roundtrip()
        found = [frame for frame in self.hers.frames if frame["payload"].get("status") == "read"]
        self.hers.frames = [frame for frame in self.hers.frames if frame not in found]
        return [receipt["message_id"] for frame in found for receipt in frame["payload"]["receipts"]]

    async def watermark(self, viewer: Person, of: Person) -> int | None:
        conversation = await viewer.get(f"/api/conversations/{self.pair}")
        found: list[int | None] = [
            seat["last_read_message_id"] for seat in conversation["participants"] if seat["user_id"] == of.user_id
        ]
        return found[0]

    async def told(self, message_id: int) -> bool:
        """Whether alice is told, by one message's status and by the counts alike, that bob has read it."""
        path = f"/api/conversations/{self.pair}/messages"
        status = (await self.alice.get(f"{path}/{message_id}"))["delivery_status"]
        listed = {item["message_id"]: item["delivery_status"]["read_count"] for item in (await self.alice.get(path))["items"]}
        is_told = self.bob.user_id in status["read"]
        assert listed[message_id] == int(is_told)
        assert self.bob.user_id in status["delivered"]
        return is_told


def _reaches(frame: dict[str, Any], status: str, message_id: int) -> bool:
    payload = frame["payload"]
    if frame["type"] != "MESSAGE_ACK" or payload["status"] != status:
        return False
    return any(receipt["message_id"] >= message_id for receipt in payload["receipts"])


async def scene_on(server: Server) -> Scene:
    alice, bob = await server.register("alice"), await server.register("bob")
    pair = await server.pair(alice, bob)
    return Scene(server, alice, bob, pair, await alice.connect("phone"), await bob.connect("phone"), await bob.connect("tablet"))


async def show(person: Person, are_shown: bool) -> None:
    await person.call("PUT", "/api/users/me", {"settings": {"read_receipts": are_shown}}, expect=200)


async def test_shown_by_both_a_read_is_told_everywhere(server: Server) -> None:
    scene = await scene_on(server)
    one = await scene.write("one")
    assert (await scene.told(one), await scene.watermark(scene.alice, scene.bob)) == (False, 0)
    await scene.read(one)
    assert await scene.told_live() == [one]
    assert (await scene.told(one), await scene.watermark(scene.alice, scene.bob)) == (True, one)


async def test_hidden_by_the_reader_a_read_is_told_nowhere_but_to_their_own_devices(server: Server) -> None:
    scene = await scene_on(server)
    one = await scene.write("one")
    await show(scene.bob, False)
    await scene.read(one)
    assert await scene.told_live() == []
    assert (await scene.told(one), await scene.watermark(scene.alice, scene.bob)) == (False, None)
    assert await scene.watermark(scene.bob, scene.bob) == one
    conversation = await scene.bob.get(f"/api/conversations/{scene.pair}")
    assert (conversation["unread_count"], conversation["last_read_message_id"]) == (0, one)


async def test_hidden_by_the_sender_others_reads_are_not_told_to_them(server: Server) -> None:
    scene = await scene_on(server)
    one = await scene.write("one")
    await show(scene.alice, False)
    await scene.read(one)
    assert await scene.told_live() == []
    assert (await scene.told(one), await scene.watermark(scene.alice, scene.bob)) == (False, None)
    # Nor are hers told to bob, who shows his.
    answer = (await scene.his.say(scene.pair, "answer"))["message_id"]
    await scene.hers.reached(answer)
    await scene.alice.post(f"/api/conversations/{scene.pair}/read", {"message_id": answer}, expect=204)
    await scene.his.roundtrip()
    assert not [f for f in scene.his.frames if f["payload"].get("status") == "read" and "unread_count" not in f["payload"]]
    assert await scene.watermark(scene.bob, scene.alice) is None
    assert await scene.watermark(scene.alice, scene.alice) == answer


async def test_what_was_read_while_the_reader_hid_it_is_never_told_later(server: Server) -> None:
    scene = await scene_on(server)
    before, between = await scene.write("before"), await scene.write("between")
    await scene.read(before)
    assert await scene.told_live() == [before]
    await show(scene.bob, False)
    await scene.read(between)
    # Hidden, it hides what was told before as well; shown again, that comes back and nothing else.
    assert (await scene.told(before), await scene.told(between)) == (False, False)
    await show(scene.bob, True)
    assert (await scene.told(before), await scene.told(between)) == (True, False)
    assert await scene.watermark(scene.alice, scene.bob) == before
    after = await scene.write("after")
    await scene.read(after)
    frame_told = await scene.told_live()
    assert frame_told == [after]
    assert (await scene.told(between), await scene.told(after)) == (False, True)
    assert await scene.watermark(scene.alice, scene.bob) == after


async def test_the_interval_told_after_a_pause_begins_where_the_pause_ended(server: Server) -> None:
    scene = await scene_on(server)
    one, two, three = await scene.write("one"), await scene.write("two"), await scene.write("three")
    await show(scene.bob, False)
    await scene.read(two)
    await show(scene.bob, True)
    await scene.read(three)
    frame = await scene.hers.expect("MESSAGE_ACK", status="read")
    (receipt,) = frame["payload"]["receipts"]
    assert (receipt["user_id"], receipt["after"], receipt["message_id"]) == (scene.bob.user_id, two, three)
    assert [await scene.told(message_id) for message_id in (one, two, three)] == [False, False, True]


async def test_what_was_read_while_the_sender_hid_theirs_is_never_told_later(server: Server) -> None:
    scene = await scene_on(server)
    before, between = await scene.write("before"), await scene.write("between")
    await scene.read(before)
    await show(scene.alice, False)
    await scene.read(between)
    await show(scene.alice, True)
    assert await scene.told_live() == [before]
    assert (await scene.told(before), await scene.told(between)) == (True, False)
    assert await scene.watermark(scene.alice, scene.bob) == before
    after = await scene.write("after")
    await scene.read(after)
    assert await scene.told_live() == [after]
    assert (await scene.told(between), await scene.told(after)) == (False, True)
    assert await scene.watermark(scene.alice, scene.bob) == after


async def test_a_read_just_before_the_setting_changes_is_judged_by_the_setting_before(server: Server) -> None:
    scene = await scene_on(server)
    shown, hidden = await scene.write("shown"), await scene.write("hidden")
    # Over the socket reads are stored up to 50 ms later, and the setting changes at once.
    await scene.his.send("MESSAGE_ACK", status="read", conversation_id=scene.pair, message_id=shown)
    await scene.his.roundtrip()
    await show(scene.bob, False)
    await scene.his.send("MESSAGE_ACK", status="read", conversation_id=scene.pair, message_id=hidden)
    await scene.his.roundtrip()
    await show(scene.bob, True)
    await scene.his_tablet.expect(lambda f: _reaches(f, "read", hidden))
    assert await scene.told_live() == [shown]
    assert (await scene.told(shown), await scene.told(hidden)) == (True, False)


async def test_in_a_group_each_senders_setting_counts_for_their_own_view(server: Server) -> None:
    alice, bob, cyd = [await server.register(name) for name in ("alice", "bob", "cyd")]
    group = await server.group(alice, bob, cyd)
    hers, his = await alice.connect("phone"), await cyd.connect("phone")
    one = (await hers.say(group, "from alice"))["message_id"]
    two = (await his.say(group, "from cyd"))["message_id"]
    await show(cyd, False)
    await bob.post(f"/api/conversations/{group}/read", {"message_id": two}, expect=204)
    assert (await hers.expect("MESSAGE_ACK", status="read"))["payload"]["receipts"][0]["message_id"] == two
    await his.roundtrip()
    assert not [frame for frame in his.frames if frame["payload"].get("status") == "read"]
    path = f"/api/conversations/{group}/messages"
    await show(cyd, True)
    assert list((await alice.get(f"{path}/{one}"))["delivery_status"]["read"]) == [bob.user_id]
    assert (await cyd.get(f"{path}/{two}"))["delivery_status"]["read"] == {}
    # The update that comes live is made for each viewer alike.
    await alice.call("PATCH", f"/api/conversations/{group}", {"name": "renamed"}, expect=200)
    for device, expected in ((hers, two), (his, 0)):
        update = await device.expect(lambda f: f["payload"].get("conversation", {}).get("name") == "renamed")
        seats = update["payload"]["conversation"]["participants"]
        marks = {seat["user_id"]: seat["last_read_message_id"] for seat in seats}
        assert marks[bob.user_id] == expected


async def test_a_read_that_is_not_told_changes_the_conversation_for_the_reader_alone(server: Server) -> None:
    scene = await scene_on(server)
    one = await scene.write("one")
    await show(scene.bob, False)
    await _age(scene)
    since = datetime.now(UTC) + timedelta(seconds=4)
    path = f"/api/conversations?changed_since={since:%Y-%m-%dT%H:%M:%S.%fZ}"
    assert ((await scene.alice.get(path))["items"], (await scene.bob.get(path))["items"]) == ([], [])
    await scene.read(one)
    assert (await scene.alice.get(path))["items"] == []
    assert [item["conversation_id"] for item in (await scene.bob.get(path))["items"]] == [scene.pair]
    await show(scene.bob, True)
    await _age(scene, but_reads=True)
    assert (await scene.alice.get(path))["items"] == []


async def test_a_read_that_is_told_changes_the_conversation_for_both(server: Server) -> None:
    scene = await scene_on(server)
    one = await scene.write("one")
    await _age(scene)
    since = datetime.now(UTC) + timedelta(seconds=4)
    path = f"/api/conversations?changed_since={since:%Y-%m-%dT%H:%M:%S.%fZ}"
    await scene.read(one)
    for person in (scene.alice, scene.bob):
        assert [item["conversation_id"] for item in (await person.get(path))["items"]] == [scene.pair]


async def _age(scene: Scene, *, but_reads: bool = False) -> None:
    """An hour passes for all that has happened; `but_reads`: for all but these."""
    statements = [
        "update messages set created_at = created_at - interval '1 hour'",
        "update conversations set updated_at = updated_at - interval '1 hour'",
        "update users set updated_at = updated_at - interval '1 hour'",
        "update conversation_participants set changed_at = changed_at - interval '1 hour'",
    ]
    if not but_reads:
        statements.append("update conversation_participants set last_read_at = last_read_at - interval '1 hour'")
    async with scene.server.house.pool.connection() as tx:
        for statement in statements:
            await tx.execute(statement)
