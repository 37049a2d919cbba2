"""`uim trace`: what became of a message, told by the database and by the servers that had it, in the words of the command."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
import trio

from tests.house import Person, Server, serving, settings_for
from tests.test_admin import a_server
from tests.test_cli import uim
from uim.chat.outbox import KEPT_TIMES, Outbox
from uim.cli import trace as command
from uim.cli.trace import Asked

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
SECRET = "nobody but the two shall read this"


@pytest.fixture
async def server(database_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Server]:
    settings = settings_for(database_url, redis_url, admin_socket=tmp_path / "admin.sock")
    async with serving(settings) as running:
        yield running


async def traced(server: Server, message_id: int, *more: Path) -> str:
    """What the command prints."""
    settings = server.house.settings
    found = await command._look_up(settings.database_url, message_id)
    asked: list[Asked] = []
    for path in (settings.admin_socket, *more):
        asked.append(await trio.to_thread.run_sync(command._ask, path, message_id, found.members))
    plain = json.dumps(command._plain({"stored": found, "processes": asked}))
    said = "\n".join(command._lines(message_id, found, asked))
    assert SECRET not in said + plain
    return said


def of_device(said: str, device: str) -> str:
    """The lines of one device, those of its connections below it."""
    lines = said.split(f"  device {device}: ")[1].splitlines()
    own = [lines[0]]
    for line in lines[1:]:
        if not line.startswith("    "):
            break
        own.append(line)
    return "\n".join(own)


def holds(pattern: str, said: str) -> None:
    assert re.search(pattern.replace("TIME", TIME), said, re.MULTILINE), said


def outbox_of(server: Server, person: Person, device: str) -> Any:
    return next(outbox for outbox in server.house.switchboard.of_user(UUID(person.user_id)) if outbox.device_id == device)


async def confirmed(outbox: Outbox, message_id: int) -> None:
    with trio.fail_after(10):
        while outbox.confirmed < message_id:
            await trio.sleep(0.005)


async def test_each_device_is_told_with_its_times_or_the_reason(server: Server) -> None:
    alice, bob, cyd, dan = [await server.register(name) for name in ("alice", "bob", "cyd", "dan")]
    group = await server.group(alice, bob, cyd, dan)
    phone, laptop = await alice.connect("phone"), await alice.connect("laptop")
    tablet = await bob.connect("tablet")
    deaf = await cyd.connect("deaf", confirms=False)
    gone = await bob.connect("gone")
    await gone.leave()
    sent = await phone.say(group, SECRET, "my id")
    message_id = sent["message_id"]
    for device in (laptop, tablet, deaf):
        await device.expect("MESSAGE_RECEIVE", message_id=message_id)
    await confirmed(outbox_of(server, bob, "tablet"), message_id)
    await confirmed(outbox_of(server, alice, "laptop"), message_id)
    await server.house.receipts.settled()
    said = await traced(server, message_id)
    holds(rf"^message {message_id}: text, seq 5 of the group {group}$", said)
    holds(rf"^  from {alice.username} \({alice.user_id}\)$", said)
    holds(r"^  under the client id 'my id'$", said)
    holds(rf"^  committed {re.escape(sent['created_at'])}$", said)
    holds(r"^  accepted TIME over WebSocket session [0-9a-f-]{36}, device phone$", said)
    holds(r"^  handed on TIME to those connected here$", said)
    holds(rf"^{bob.username} \({bob.user_id}\): a member from 1 on\n  delivered TIME\n  not read", said)
    holds(rf"^{cyd.username} .*\n  not delivered\n  not read$", said)
    holds(r"^    sent it over this connection, and has the ack instead$", of_device(said, "phone"))
    holds(rf"^cursor at {message_id}, past it; connection 1 since TIME.*\n    written TIME\n    confirmed TIME$", of_device(said, "tablet"))
    holds(r"    written TIME\n    confirmed TIME$", of_device(said, "laptop"))
    holds(r"    written TIME\n    not confirmed: waited for since \S+ s, confirmed up to 0$", of_device(said, "deaf"))
    holds(r"before it.*\n    not connected to the server asked: it gets it at its next connect$", of_device(said, "gone"))
    holds(rf"^{dan.username} (.*\n)+  no device of theirs has ever connected$", said)
    times = [re.search(f"{what} ({TIME})", said) for what in ("accepted", "committed", "handed on")]
    accepted, committed, handed_on = [found[1] for found in times if found]
    assert accepted <= handed_on
    assert abs(_seconds(committed) - _seconds(handed_on)) < 30
    # One who came with it in hand, and one who was not there yet.
    await gone.leave()
    back = await bob.connect("gone", last_sync_id=message_id)
    await server.group(alice, bob, cyd, name="another")
    newer = await cyd.connect("newer", last_sync_id=0)
    said = await traced(server, message_id)
    holds(rf"    had everything up to {message_id} when it connected$", of_device(said, "gone"))
    holds(r"    written TIME\n    confirmed TIME$", of_device(said, "newer"))
    await back.roundtrip()
    await newer.roundtrip()


def _seconds(at: str) -> float:
    hours, minutes, seconds = at[11:-1].split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


async def test_resends_full_outboxes_and_what_waits_are_told(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    pair = await server.pair(alice, bob)
    phone = await alice.connect("phone")
    deaf = await bob.connect("deaf", confirms=False)
    first = (await phone.say(pair, SECRET))["message_id"]
    await deaf.expect("MESSAGE_RECEIVE", message_id=first)
    outbox = outbox_of(server, bob, "deaf")
    outbox.send_again()
    await deaf.expect("SYNC_BATCH", next_sync_id=first)
    said = of_device(await traced(server, first), "deaf")
    holds(r"    written TIME\n    written again TIME\n    not confirmed after 1 resends: waited for", said)
    async with outbox.cut.__self__._stream._lock:  # the socket takes nothing
        second = (await phone.say(pair, SECRET))["message_id"]
        with trio.fail_after(10):
            while outbox.sent < second:
                await trio.sleep(0.005)
        said = of_device(await traced(server, second), "deaf")
        holds(r"    not written yet: \d+ bytes wait for this connection to take them$", said)
        last = (await phone.say_many(pair, [SECRET * 250] * 40))[-1]
        with trio.fail_after(10):
            while outbox.live:
                await trio.sleep(0.005)
        said = of_device(await traced(server, last), "deaf")
        holds(r"    catching up: at \d+, confirmed up to 0; its outbox was full at TIME, and it went back to catching up", said)


async def test_over_http_and_by_the_server_itself(server: Server) -> None:
    alice, bob, cyd = [await server.register(name) for name in ("alice", "bob", "cyd")]
    group = await server.group(alice, bob, cyd, name=SECRET)
    await cyd.connect("phone")
    said = await traced(server, 1)
    holds(r"^message 1: system \(created\), seq 1 of the group", said)
    holds(r"^  accepted TIME by a request, as an entry of the server's own$", said)
    path = f"/api/conversations/{group}/messages"
    message_id = (await alice.post(path, {"client_message_id": "1", "content": SECRET}, expect=201))["message_id"]
    with trio.fail_after(10):
        while server.house.tailer.position < message_id:
            await trio.sleep(0.005)
    holds(r"^  accepted TIME over HTTP$", await traced(server, message_id))
    # What is kept is bounded: of an older entry only the order is known.
    server.house.tailer.ring.clear()
    holds(r"^  accepted and handed on: not known any more, it began after it$", await traced(server, message_id))


async def test_what_its_members_did_with_it_is_told(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    pair = await server.pair(alice, bob)
    phone, tablet = await alice.connect("phone"), await bob.connect("tablet")
    ids = [(await phone.say(pair, SECRET))["message_id"] for _ in range(2)]
    await tablet.expect("MESSAGE_RECEIVE", message_id=ids[1])
    await confirmed(outbox_of(server, bob, "tablet"), ids[1])
    await bob.post(f"/api/conversations/{pair}/read", {"message_id": ids[0]}, expect=204)
    await bob.call("PUT", "/api/users/me", {"settings": {"read_receipts": False}}, expect=200)
    await bob.post(f"/api/conversations/{pair}/read", {"message_id": ids[1]}, expect=204)
    await bob.call("DELETE", f"/api/conversations/{pair}/messages/{ids[0]}?for=me", expect=204)
    await alice.call("DELETE", f"/api/conversations/{pair}/messages/{ids[1]}?for=everyone", expect=204)
    await bob.call("PUT", f"/api/blocks/{alice.user_id}", expect=204)
    said = await traced(server, ids[0])
    holds(rf"^{bob.username} blocks {alice.username} since TIME$", said)
    holds(r"^  has deleted it for themselves\n  delivered TIME\n  read TIME; they hide read receipts$", said)
    said = await traced(server, ids[1])
    holds(r"^  taken back TIME$", said)
    holds(rf"^  read \(up to {ids[1]}\), with no receipt told: hidden then.*; they hide read receipts$", said)


async def test_of_a_busy_connection_only_the_last_times_are_kept(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    pair = await server.pair(alice, bob)
    phone, tablet = await alice.connect("phone"), await bob.connect("tablet")
    outbox = outbox_of(server, bob, "tablet")
    ids = []
    for _ in range(KEPT_TIMES + 8):
        ids.append((await phone.say(pair, SECRET))["message_id"])
        await confirmed(outbox, ids[-1])
    assert len(outbox.writes) == len(outbox.confirmations) == KEPT_TIMES
    said = of_device(await traced(server, ids[0]), "tablet")
    holds(r"    written before TIME, the oldest write that is kept\n    confirmed before TIME, the oldest", said)
    holds(r"    written TIME\n    confirmed TIME$", of_device(await traced(server, ids[-1]), "tablet"))
    await tablet.roundtrip()


async def test_an_id_that_is_not_there_is_told_why(server: Server, tmp_path: Path) -> None:
    url = server.house.settings.database_url
    alice, bob, cyd = [await server.register(name) for name in ("alice", "bob", "cyd")]
    await server.group(alice, bob, cyd)
    assert await traced(server, 7) == "message 7 is not there: the newest is 3"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("update messages set message_id = 100 where message_id = 3")
        assert await traced(server, 50) == "message 50 is not there: it is missing from the log: see `uim verify`"
        connection.execute("insert into log_epochs values (7, 100, 2, 1, 1)")
        assert "lies in the gap after 2 where epoch 7 begins at 100" in await traced(server, 50)
        connection.execute("delete from messages where message_id = 1; update log_identity set horizon = 1")
    assert await traced(server, 1) == "message 1 is not there: entries up to 1 were removed by age"
    said = await traced(server, 100, tmp_path / "nobody.sock")
    assert "nobody.sock: no server runs there; what only that server knows is missing here" in said


async def test_of_several_processes_each_tells_what_it_knows(database_url: str, redis_url: str, tmp_path: Path) -> None:
    paths = tmp_path / "one.sock", tmp_path / "other.sock"
    first, second = [settings_for(database_url, redis_url, admin_socket=path) for path in paths]
    second = replace(second, jwt_keys=first.jwt_keys)
    async with serving(first) as one, serving(second) as other:
        alice, bob = await one.register("alice"), await one.register("bob")
        pair = await one.pair(alice, bob)
        phone, tablet = await alice.connect("phone"), await bob.connect("tablet", to=other)
        message_id = (await phone.say(pair, SECRET))["message_id"]
        await tablet.expect("MESSAGE_RECEIVE", message_id=message_id)
        await confirmed(outbox_of(other, bob, "tablet"), message_id)
        said = await traced(one, message_id, paths[1])
        holds(r"one\.sock:\n  accepted TIME over WebSocket session \S+, device phone\n  handed on TIME", said)
        holds(r"other\.sock:\n  accepted elsewhere: by another process, .*\n  handed on TIME", said)
        holds(r"    written TIME \(process \d+\)\n    confirmed TIME \(process \d+\)$", of_device(said, "tablet"))


# --- the command, and servers of its own ---


def call(url: str, path: str, body: object, token: str | None = None) -> Any:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    with urllib.request.urlopen(urllib.request.Request(url + path, json.dumps(body).encode(), headers), timeout=10) as answer:
        return json.load(answer)


def test_a_real_server_and_the_command(database_url: str, redis_url: str, tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    settings = {"UIM_DATABASE_URL": database_url, "UIM_ADMIN_SOCKET": str(path)}
    with a_server(database_url, redis_url, path) as running:
        url = running.url
        one, other = [
            call(url, "/api/auth/register", {"username": name, "email": f"{name}@example.com", "password": "Wonderland-1865"})
            for name in ("one", "other")
        ]
        token = one["access_token"]
        pair = call(url, "/api/conversations", {"type": "one_on_one", "participant_ids": [other["user"]["user_id"]]}, token)
        message = {"client_message_id": "1", "content": SECRET}
        call(url, f"/api/conversations/{pair['conversation_id']}/messages", message, token)
        done = uim("trace", "1", "--json", settings=settings)
        assert (done.returncode, done.stderr) == (0, "")
        assert SECRET not in done.stdout
        told = json.loads(done.stdout)
        assert re.fullmatch(TIME, told["stored"]["entry"]["created_at"])
        (answer,) = told["processes"]
        assert (answer["answer"]["process"], answer["answer"]["accepted_over"]) == (running.process.pid, "http")
    gone = uim("trace", "1", settings=settings)
    assert gone.returncode == 1
    assert "  committed " in gone.stdout, "what is stored is told all the same"
    assert "what only that server knows is missing here" in gone.stdout


def test_without_a_database_it_is_wrong_use() -> None:
    done = uim("trace", "7")
    assert done.returncode == 2
    assert "UIM_DATABASE_URL is missing" in done.stderr

