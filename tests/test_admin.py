"""The admin socket and `uim tasks`: what an operator sees of a running server, and that asking never hurts it."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
import structlog
import trio

from tests.house import Server, serving
from tests.house import settings_for as house_settings
from tests.test_cli import environment, read_until, settings_for, started, uim
from uim.admin import door
from uim.admin.door import MAX_CONNECTIONS, Question
from uim.admin.tasks import Tree
from uim.cli.asking import NoAnswer, ask
from uim.cli.binding import BindError, admin_socket
from uim.config import SettingsError, read_operator_settings

WITHIN_S = 10.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "admin.sock"


# --- the socket's file ---


def test_the_socket_is_for_its_owner_alone_and_goes_with_its_server(path: Path) -> None:
    before = os.umask(0)
    try:
        with admin_socket(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert not path.exists()
    finally:
        os.umask(before)


def test_what_a_killed_server_left_is_taken_over(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with admin_socket(path) as made:
        assert made is not None
        with socket.socket(socket.AF_UNIX) as visitor:
            visitor.connect(str(path))


def test_what_is_anothers_is_left_alone(path: Path) -> None:
    path.write_text("mine")
    with pytest.raises(BindError, match="something else is there"), admin_socket(path):
        pytest.fail("taken over")
    assert path.read_text() == "mine"
    path.unlink()
    with admin_socket(path):
        with pytest.raises(BindError, match="another server answers there"), admin_socket(path):
            pytest.fail("taken over")
        assert path.exists()
        # One that has come since keeps its file.
        path.unlink()
        with socket.socket(socket.AF_UNIX) as newer:
            newer.bind(str(path))
    assert path.exists()


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BindError, match="No such file or directory"), admin_socket(tmp_path / "no" / "admin.sock"):
        pytest.fail("made")


# --- the door ---


@asynccontextmanager
async def a_door(path: Path, answers: door.Answers) -> AsyncIterator[None]:
    with admin_socket(path) as listening:
        assert listening is not None
        async with trio.open_nursery() as nursery:
            await nursery.start(door.serve, listening, answers)
            yield
            nursery.cancel_scope.cancel()


async def asked(path: Path, line: bytes) -> bytes:
    with trio.fail_after(WITHIN_S):
        async with await trio.open_unix_socket(str(path)) as stream:
            # A bound that is passed is answered before all has been sent.
            try:
                await stream.send_all(line)
            except trio.BrokenResourceError:
                return b""
            answer = b""
            try:
                async for piece in stream:
                    answer += piece
            except trio.BrokenResourceError:
                return answer
            return answer


TASKS = msgspec.json.encode(Question("tasks")) + b"\n"


async def echo(question: Question) -> object:
    return {"most": question.most}


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"what?\n",
        b"\xff\xfe\n",
        b'{"ask": "everything"}\n',
        b'{"ask": "tasks", "most": -1}\n',
        b'{"ask": "tasks", "more": 1}\n',
        b"[" * 10_000 + b"\n",
    ],
)
async def test_what_is_no_question_is_told_so(path: Path, line: bytes) -> None:
    async with a_door(path, {"tasks": echo}):
        assert json.loads(await asked(path, line))["error"].startswith("not understood")
        assert json.loads(await asked(path, TASKS)) == {"most": 20}


async def test_a_question_without_an_end_is_not_gathered_for_ever(path: Path) -> None:
    async with a_door(path, {"tasks": echo}):
        await asked(path, b"x" * 1_000_000)
        assert json.loads(await asked(path, TASKS)) == {"most": 20}


async def test_an_answer_that_fails_is_logged_and_the_next_is_given(path: Path) -> None:
    async def fail(question: Question) -> object:
        if question.most == 0:
            raise ExceptionGroup("bugs", [ValueError("a bug")])
        return {}

    async with a_door(path, {"tasks": fail}):
        with structlog.testing.capture_logs() as lines:
            assert await asked(path, msgspec.json.encode(Question("tasks", most=0)) + b"\n") == b""
        assert [line["log_level"] for line in lines] == ["error"]
        assert await asked(path, TASKS) == b"{}\n"


async def test_visitors_who_say_nothing_are_few_and_not_for_long(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "ASK_WITHIN_S", 0.5)
    async with a_door(path, {"tasks": echo}):
        silent = [await trio.open_unix_socket(str(path)) for _ in range(MAX_CONNECTIONS)]
        with pytest.raises(NoAnswer, match="says: too many questions at once"):
            await trio.to_thread.run_sync(ask, path, Question("tasks"), dict)
        with trio.fail_after(WITHIN_S):
            for visitor in silent:
                assert await visitor.receive_some() == b""
                await visitor.aclose()
        assert json.loads(await asked(path, TASKS)) == {"most": 20}


async def test_an_answer_that_is_too_long_is_not_sent(path: Path) -> None:
    async def long(question: Question) -> object:
        return {"all": "x" * door.MAX_ANSWER_BYTES}

    async with a_door(path, {"tasks": long}):
        assert "too long" in json.loads(await asked(path, TASKS))["error"]


# --- the tree ---


async def tasks_of(path: Path, **more: Any) -> Any:
    question = Question("tasks", **more)
    return msgspec.to_builtins(await trio.to_thread.run_sync(lambda: ask(path, question, Tree)))


def all_nodes(nodes: list[Any]) -> Iterator[Any]:
    for node in nodes:
        yield node
        yield from all_nodes(node.get("children", []))


@pytest.fixture
async def server(database_url: str, redis_url: str, path: Path) -> AsyncIterator[Server]:
    async with serving(house_settings(database_url, redis_url, admin_socket=path)) as running:
        yield running


async def test_a_connection_is_told_with_its_user_its_outbox_and_where_its_tasks_wait(server: Server, path: Path) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    phone = await alice.connect("phone")
    tablet = await bob.connect("tablet", confirms=False)
    conversation_id = await server.pair(alice, bob)
    await phone.send("MESSAGE_SEND", conversation_id=conversation_id, client_message_id="1", content="the secret text")
    await tablet.expect("MESSAGE_RECEIVE")
    told = await tasks_of(path)
    assert "the secret text" not in json.dumps(told)
    rooms = {node["name"]: node for node in all_nodes(told["rooms"])}
    for room in ("redis link", "log writer", "announcements", "profiles", "redelivery", "presence", "listener", "admin socket"):
        assert rooms[room]["age_s"] >= 0
    assert [name for name in rooms if name.startswith("uim.")] == [], "named by what they are"
    assert rooms["log writer"]["where"][0].startswith("uim/chat/writer.py:")
    assert " Writer." in rooms["log writer"]["where"][0]
    # Most to do first: bob's tablet has not confirmed.
    first = told["connections"][0]
    assert (first["username"], first["user_id"], first["device_id"]) == (bob.username, bob.user_id, "tablet")
    assert first["address"] == "127.0.0.1"
    assert (first["outbox"]["sent"], first["outbox"]["confirmed"], first["outbox"]["live"]) == (1, 0, True)
    # The page that it began with, and the message.
    assert first["outbox"]["unconfirmed"] == 2
    tree = first["tree"]
    assert tree["name"] == "inbound"
    assert {child["name"] for child in tree["children"]} == {"outbound", "heartbeat"}
    assert all(node["where"] and node["age_s"] > 0 for node in all_nodes([tree]))
    crowd = {each["name"]: each["tasks"] for each in told["waiting"]}
    assert (crowd["inbound"], crowd["outbound"]) == (2, 2)
    for who in (bob.username.upper(), bob.user_id):
        only = await tasks_of(path, user=who)
        assert [connection["device_id"] for connection in only["connections"]] == ["tablet"]
    assert len((await tasks_of(path, most=1))["connections"]) == 1
    await phone.roundtrip()


async def test_a_reader_that_takes_nothing_is_seen_waiting_to_be_written_to(server: Server, path: Path) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    conversation_id = await server.pair(alice, bob)
    await bob.connect("asleep")
    phone = await alice.connect("phone")
    (outbox,) = server.house.switchboard.of_user(UUID(bob.user_id))
    async with outbox.cut.__self__._stream._lock:  # the socket takes nothing
        for number in range(40):
            await phone.send("MESSAGE_SEND", conversation_id=conversation_id, client_message_id=str(number), content="x" * 9_000)
        with trio.fail_after(WITHIN_S):
            while outbox.live:
                await trio.sleep(0.005)
        (told,) = (await tasks_of(path, user=bob.username))["connections"]
    assert told["outbox"]["bytes"] > 256 * 1024
    assert told["outbox"]["live"] is False
    waits = {node["name"]: node["where"] for node in all_nodes([told["tree"]])}
    assert "FrameStream.send_all" in waits["outbound"][0], "it waits in the write, not for something to write"
    assert "Outbox.progress" in waits["catching up"][0], "until something is written or confirmed"


async def test_a_thousand_connections_are_walked_in_slices(server: Server, path: Path) -> None:
    people = [await server.register("one") for _ in range(3)]
    async with trio.open_nursery() as nursery:
        for person in people:
            for number in range(20):
                nursery.start_soon(person.connect, f"device {number}")
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        stream = await trio.open_unix_socket(str(path))
        async with stream:
            await stream.send_all(TASKS)
            nursery.start_soon(count_turns)
            while not (await stream.receive_some(1)):
                pytest.fail("no answer")
            during = turns
            nursery.cancel_scope.cancel()
    # 60 connections have some 240 tasks: ten slices, and between two of them everybody has a turn.
    assert during >= 10


# --- the command ---


def test_without_a_server_to_ask_it_is_wrong_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = uim("tasks")
    assert done.returncode == 2
    assert "UIM_ADMIN_SOCKET" in done.stderr
    with pytest.raises(SettingsError, match="UIM_ADMIN_SOCKET is too long"):
        read_operator_settings({"UIM_ADMIN_SOCKET": "x" * 200}, needs_database=False)


def test_a_server_that_is_not_there_is_one_sentence_and_exit_code_1(path: Path) -> None:
    done = uim("tasks", "--socket", str(path))
    assert (done.returncode, done.stderr) == (1, f"Error: no answer from {path}: no server runs there\n")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with pytest.raises(NoAnswer, match="no server runs there any more"):
        ask(path, Question("tasks"), Tree)


@dataclass
class ServerProcess:
    process: subprocess.Popen[str]
    url: str


@contextmanager
def a_server(database_url: str, redis_url: str, path: Path) -> Iterator[ServerProcess]:
    settings = settings_for(database_url, redis_url)
    settings |= {"UIM_BIND": "127.0.0.1:0", "UIM_OPERATIONS_BIND": "127.0.0.1:0", "UIM_ADMIN_SOCKET": str(path)}
    with started("serve", environ=environment(**settings)) as process:
        _, addresses = read_until(process, r'"message":"serving".*"addresses":(\[\[.*?\]\])')
        host, port = json.loads(addresses)[0]
        yield ServerProcess(process, f"http://{host}:{port}")


def test_a_real_server_shows_its_rooms_and_survives_a_kill(database_url: str, redis_url: str, path: Path) -> None:
    with a_server(database_url, redis_url, path) as running:
        done = uim("tasks", "--socket", str(path))
        assert (done.returncode, done.stderr) == (0, "")
        assert f"process {running.process.pid} at " in done.stdout
        assert "├─ log tailer" in done.stdout
        # One of several that is not there hides none of the others.
        done = uim("tasks", "--user", "nobody", "--socket", f"{path}.gone", "--socket", str(path))
        assert (done.returncode, done.stderr) == (1, f"Error: no answer from {path}.gone: no server runs there\n")
        assert f"process {running.process.pid} at " in done.stdout
        assert "no connection of 'nobody' here" in done.stdout
        running.process.kill()
        running.process.wait(10)
    assert path.exists()
    with a_server(database_url, redis_url, path) as running:
        told = json.loads(uim("tasks", "--json", settings={"UIM_ADMIN_SOCKET": str(path)}).stdout)
        assert told["process"] == running.process.pid
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(20) == 0
    assert not path.exists()
