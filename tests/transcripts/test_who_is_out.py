"""Who is out of a group: told so once, and nothing of it from then on, however the news of it cross.

The removal itself and what an ex-member may still read are in test_groups.py; here is what others' doings would tell them.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
import trio

from tests.house import Server
from tests.transcripts.test_receipts import read, told, trio_of
from uim.chat import announcements
from uim.store import conversations
from uim.store.postgres import Connection


class HeldReading:
    """In place of the reading of a conversation's object: the first one keeps what it has read until let go."""

    def __init__(self) -> None:
        self.has_read = trio.Event()
        self.let_go = trio.Event()

    async def views_of(self, tx: Connection, *, conversation_id: UUID, user_ids: list[UUID]) -> dict[UUID, Any]:
        views = await conversations.views_of(tx, conversation_id=conversation_id, user_ids=user_ids)
        self.has_read.set()
        await self.let_go.wait()
        return views


async def test_an_object_read_before_a_removal_does_not_follow_it(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    alice, bob, cyd, group_id = await trio_of(server)
    phone, tablet = await bob.connect("phone"), await cyd.connect("tablet")
    for device in (phone, tablet):
        await device.roundtrip()
    held = HeldReading()
    monkeypatch.setattr(announcements, "conversations", SimpleNamespace(views_of=held.views_of))
    await alice.call("PATCH", f"/api/conversations/{group_id}", {"name": "Coffee"}, expect=200)
    with trio.fail_after(5):
        await held.has_read.wait()
    await alice.call("DELETE", f"/api/conversations/{group_id}/participants/{bob.user_id}", expect=204)
    await phone.expect("CONVERSATION_UPDATE", conversation_id=group_id, removed=True)
    phone.frames.clear()
    held.let_go.set()
    # Of the same reading: when it has come to her, it would have come to him.
    update = await tablet.expect("CONVERSATION_UPDATE")
    assert update["payload"]["conversation"]["name"] == "Coffee"
    assert {seat["user_id"] for seat in update["payload"]["conversation"]["participants"]} >= {bob.user_id}
    await phone.roundtrip()
    assert not [frame for frame in phone.frames if frame["type"] == "CONVERSATION_UPDATE"]


async def test_an_ex_member_is_told_no_receipts(server: Server) -> None:
    alice, bob, cyd, group_id = await trio_of(server)
    laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
    first = await phone.say(group_id, "from bob, who will be out")
    second = await laptop.say(group_id, "from alice")
    await alice.call("DELETE", f"/api/conversations/{group_id}/participants/{bob.user_id}", expect=204)
    await cyd.connect("phone", last_sync_id=0)
    await read(cyd, group_id, second["message_id"])
    await told(laptop, "delivered", second["message_id"], by=cyd)
    await told(laptop, "read", second["message_id"], by=cyd)
    # Told in the same step, had he been told: what he hears next comes after it.
    await phone.roundtrip()
    receipts = [frame["payload"]["receipts"] for frame in phone.frames if "receipts" in frame["payload"]]
    assert {receipt["user_id"] for some in receipts for receipt in some} <= {alice.user_id}
    # Back again he is a member like any other.
    await alice.post(f"/api/conversations/{group_id}/participants", {"user_ids": [bob.user_id]})
    third = await phone.say(group_id, "from bob, who is back")
    assert third["message_id"] > first["message_id"]
    await read(cyd, group_id, third["message_id"])
    assert (await told(phone, "read", third["message_id"], by=cyd))[-1]["user_id"] == cyd.user_id
