"""A real `uim serve` whose PostgreSQL is really stopped, killed and halted, one after the other; then a kill in an outage."""

from __future__ import annotations

import pytest

from tests.faults.world import world

pytestmark = pytest.mark.timeout(120)


async def test_stopped_killed_or_halted_what_was_queued_is_there_once_and_in_order() -> None:
    async with world() as it:
        (server,) = it.servers
        async with server.as_house() as house:
            alice, bob = await house.register("alice"), await house.register("bob")
            pair = await house.pair(alice, bob)
            laptop, phone = await alice.connect("laptop"), await bob.connect("phone")
            said = [str((await laptop.say(pair, "first"))["client_message_id"])]
            # From its handing on this process knows the pair: into one that it does not know nothing is queued.
            await phone.expect("MESSAGE_RECEIVE")

            async def say_queued(*client_ids: str) -> None:
                for client_id in client_ids:
                    await laptop.send("MESSAGE_SEND", conversation_id=pair, content=client_id, client_message_id=client_id)
                for client_id in client_ids:
                    await laptop.expect("MESSAGE_ACK", status="queued", client_message_id=client_id)
                said.extend(client_ids)

            await it.postgres.stop()
            await say_queued("stopped 1", "stopped 2")
            await it.postgres.start()
            await laptop.expect("MESSAGE_ACK", status="sent", client_message_id="stopped 2")

            it.postgres.kill()
            await say_queued("killed 1", "killed 2")
            await it.postgres.start()
            await laptop.expect("MESSAGE_ACK", status="sent", client_message_id="killed 2")

            it.postgres.halt()
            await say_queued("halted 1", "halted 2")
            it.postgres.go_on()
            await laptop.expect("MESSAGE_ACK", status="sent", client_message_id="halted 2")
            await phone.until(lambda: len(phone.contents()) == 7)
            assert phone.contents() == ["first", *said[1:]]

            it.postgres.kill()
            await say_queued("left behind 1", "left behind 2")
            server.process.kill()
            await it.postgres.start()
            await server.process.start()
            page = await alice.get(f"/api/conversations/{pair}/messages")
            assert [item["client_message_id"] for item in page["items"]] == said
            again = await (await alice.connect("laptop")).say(pair, "left behind 1", "left behind 1")
            assert again["duplicate"] is True
