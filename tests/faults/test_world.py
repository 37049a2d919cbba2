"""The world of real processes: whatever is killed comes back on what it left, and nothing outlives its test."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator

import psutil
import pytest
import trio

from tests.faults.process import Ended
from tests.faults.world import World, answers, world

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def it() -> AsyncIterator[World]:
    async with world() as started:
        yield started
        print(started.tails())


async def test_each_is_killed_and_serves_again_on_what_it_left(it: World) -> None:
    (server,) = it.servers
    async with server.as_house() as house:
        alice, bob = await house.register("alice"), await house.register("bob")
        conversation_id = await house.pair(alice, bob)
        said = await (await alice.connect("laptop")).say(conversation_id, "before")
        pids = [process.pid for process in it.processes]
        for process in it.processes:
            process.kill()
            assert not process.is_alive and process.exit_code == -signal.SIGKILL
        assert not await answers(server.url, "/health/live")
        for process in reversed(it.processes):
            await process.start()
        assert set(pids).isdisjoint(process.pid for process in it.processes)
        phone = await bob.connect("phone", last_sync_id=0)
        await phone.reached(said["message_id"])
        assert phone.contents() == ["before"]
        assert (await (await alice.connect("laptop")).say(conversation_id, "after"))["type"] == "MESSAGE_ACK"


async def test_killing_postgresql_leaves_none_of_its_children_and_a_start_that_fails_tells_why(it: World) -> None:
    children = psutil.Process(it.postgres.pid).children(recursive=True)
    assert len(children) >= 5, "its writers and our connections"
    it.postgres.kill()
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    (server,) = it.servers
    server.process.kill()
    with pytest.raises(Ended, match=r"uim-1 ended with 1:(?s:.)*the database cannot be reached"):
        await server.process.start()


async def test_what_is_halted_answers_nothing_until_it_goes_on_and_what_is_asked_to_stop_drains(it: World) -> None:
    (server,) = it.servers
    server.process.halt()
    with trio.move_on_after(0.3) as waited:
        await answers(server.url, "/health/live")
    assert waited.cancelled_caught
    server.process.go_on()
    assert await answers(server.url, "/health/live")
    await server.process.stop()
    assert server.process.exit_code == 0
    assert '"stopped"' in server.process.tail()


async def test_two_servers_through_lines_that_hang_and_cut() -> None:
    async with world(processes=2, proxied=True) as it:
        one, other = it.servers
        assert one.postgres_line is not None and other.postgres_line is not None
        async with one.as_house() as here, other.as_house() as there:
            alice, bob = await here.register("alice"), await here.register("bob")
            conversation_id = await here.pair(alice, bob)
            laptop, phone = await alice.connect("laptop"), await bob.connect("phone", to=there)
            other.postgres_line.hang()
            said = await laptop.say(conversation_id, "one line hangs, the other does not")
            other.postgres_line.flow()
            await phone.reached(said["message_id"])
            one.postgres_line.cut()
            said = await laptop.say(conversation_id, "cut and made again")
            await phone.reached(said["message_id"])
            assert len(phone.contents()) == 2


async def test_nothing_outlives_a_world_that_failed() -> None:
    with pytest.raises(ExceptionGroup) as failed:
        async with world() as it:
            pids = [process.pid for process in it.processes]
            it.postgres.halt()
            raise RuntimeError("in the middle of a test")
    assert pytest.RaisesGroup(RuntimeError).matches(failed.value)
    assert "== uim-1 (runs):" in "".join(failed.value.exceptions[0].__notes__)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert not it.folder.exists()
