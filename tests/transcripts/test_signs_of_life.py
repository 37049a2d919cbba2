"""What would tell of somebody who does not want to be seen: receipts across a block, devices of a deleted account."""

from __future__ import annotations

from uuid import UUID

from tests.house import PASSWORD, Server
from tests.transcripts.test_blocking import block, unblock
from uim.errors import UIMError
from uim.store import cursors


async def test_across_a_block_no_receipt_is_told_and_none_comes_out_later(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    conversation_id = await server.pair(alice, bob)
    laptop = await alice.connect("laptop")
    before = await laptop.say(conversation_id, "are you there?")
    await block(bob, alice)
    phone = await bob.connect("phone", last_sync_id=0)
    await phone.send("MESSAGE_ACK", status="read", conversation_id=conversation_id, message_id=before["message_id"])
    # Bob's own device hears of the read: so it is stored, and whatever is told has been told.
    tablet = await bob.connect("tablet")
    await bob.post(f"/api/conversations/{conversation_id}/read", {"message_id": before["message_id"]}, expect=204)
    await tablet.roundtrip()
    await laptop.roundtrip()
    assert [frame for frame in laptop.frames if frame["type"] == "MESSAGE_ACK"] == []
    path = f"/api/conversations/{conversation_id}/messages/{before['message_id']}"
    assert (await alice.get(path))["delivery_status"]["delivered"] == {}
    assert (await alice.get(path))["delivery_status"]["read"] == {}
    await unblock(bob, alice)
    after = await laptop.say(conversation_id, "and now?")
    receipts = (await laptop.expect("MESSAGE_ACK", status="delivered"))["payload"]["receipts"]
    assert [(receipt["after"], receipt["message_id"]) for receipt in receipts] == [(before["message_id"], after["message_id"])]
    assert (await alice.get(path))["delivery_status"]["delivered"] == {}


async def test_a_deleted_account_leaves_no_device_behind(server: Server) -> None:
    alice = await server.register("alice")
    phone = await alice.connect("phone")
    await alice.call("DELETE", "/api/users/me", {"current_password": PASSWORD}, expect=204)
    await phone.closing(4401)
    async with server.house.pool.transaction() as tx:
        (why,) = await cursors.open_cursors(tx, [cursors.Opening(UUID(alice.user_id), "phone", None)])
    assert isinstance(why, UIMError) and why.code == "session_ended"
