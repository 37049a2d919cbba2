"""The load generator: its frames are frames, its runs talk to a real server, and it says so when a promise was broken."""

from __future__ import annotations

import json
import os
from array import array
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from wsproto.frame_protocol import FrameProtocol, Opcode

from loadtest import __main__ as commands
from loadtest import append, frames, group, pairs, promises, result, verification
from loadtest.plan import Heard
from loadtest.result import Result
from loadtest.target import Broken, Target
from loadtest.workloads import WORKLOADS, Workload
from tests.house import Server, serving, settings_for
from uim.wire.frames import websocket_text

SIZES = [0, 1, 125, 126, 65535, 65536]


@pytest.mark.parametrize("size", SIZES)
def test_a_server_reads_our_frames(size: int) -> None:
    protocol = FrameProtocol(client=False, extensions=[])
    protocol.receive_bytes(frames.masked_text(b"x" * size))
    read = list(protocol.received_frames())
    assert "".join(str(frame.payload) for frame in read) == "x" * size
    assert {frame.opcode for frame in read} == {Opcode.TEXT}
    assert read[-1].message_finished


@given(st.lists(st.sampled_from(SIZES), max_size=4), st.data())
def test_frames_come_whole_however_they_are_cut(sizes: list[int], data: st.DataObject) -> None:
    said = [b"y" * size for size in sizes]
    stream = b"".join(map(websocket_text, said))
    cut = data.draw(st.integers(0, len(stream)))
    first, rest = frames.split(stream[:cut])
    second, rest = frames.split(rest + stream[cut:])
    assert first + second == said
    assert rest == b""


def test_a_closing_frame_ends_the_run() -> None:
    with pytest.raises(frames.Torn, match="closed 4401: login ended"):
        frames.split(b"\x88\x0d" + (4401).to_bytes(2, "big") + b"login ended")


async def _run(server: Server, workload: Workload[Any], parameters: Any) -> Result:
    # The generator blocks, as befits it; here it has a thread, and the server under load is this process.
    target = Target(server.url, os.getpid(), server.house.settings.database_url)
    return await trio.to_thread.run_sync(workload.run, target, parameters)


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
async def test_a_workload_runs_for_two_seconds_and_keeps_every_promise(
    workload: Workload[Any], database_url: str, redis_url: str, tmp_path: Path
) -> None:
    async with serving(settings_for(database_url, redis_url)) as server:
        told = await _run(server, workload, workload.brief)
    assert told.workload == workload.name
    assert told.figures
    file = tmp_path / "told.json"
    result.write(result.Report({}, [told]), file)
    [again] = result.read(file).results
    assert again.figures == told.figures
    assert again.timeline == told.timeline
    assert {name: each.figures() for name, each in again.latencies.items()} == {
        name: each.figures() for name, each in told.latencies.items()
    }


async def test_pairs_talk_and_everything_acknowledged_is_stored(database_url: str, redis_url: str) -> None:
    async with serving(settings_for(database_url, redis_url)) as server:
        told = (await _run(server, named("w1"), pairs.Parameters(pairs=2, seconds=0.3))).figures
    assert told["acknowledged"] == told["stored"] > 0
    assert told["acknowledged_per_s"] > 0
    assert 0 < told["p50_ms"] <= told["p95_ms"] <= told["p99_ms"] <= told["max_ms"]
    assert told["server_us_per_arrival"] > 0


async def test_a_group_hears_each_text_but_its_own(database_url: str, redis_url: str) -> None:
    async with serving(settings_for(database_url, redis_url)) as server:
        told = (await _run(server, named("w3"), group.Parameters(members=5, senders=2, window=2, seconds=0.3))).figures
    assert told["acknowledged"] == told["stored"] > 0
    assert told["arrived_per_s"] > told["acknowledged_per_s"]


def named(name: str) -> Workload[Any]:
    return next(workload for workload in WORKLOADS if workload.name == name)


def _heard(*, acknowledged: list[int], arrived: list[int]) -> list[Heard]:
    """What a pair's talker and listener were told."""
    return [Heard(0, array("q", acknowledged), array("q"), 0), Heard(0, array("q"), array("q", arrived), 0)]


@pytest.mark.parametrize(
    ("acknowledged", "arrived", "stored", "why"),
    [
        ([1, 2], [1, 2], [1], "1 acknowledged texts are not stored"),
        ([1], [1, 2], [1, 2], "1 are stored and were never acknowledged"),
        ([1, 2], [1], [1, 2], "got 1 texts of 2"),
        ([1, 2], [2, 1], [1, 2], "not in order"),
        ([1, 2], [1, 2], [2, 1], "out of order"),
    ],
)
def test_a_broken_promise_gives_no_figures(acknowledged: list[int], arrived: list[int], stored: list[int], why: str) -> None:
    with pytest.raises(Broken, match=why):
        promises.check_party(_heard(acknowledged=acknowledged, arrived=arrived), stored)


def test_texts_are_appended_by_log_append_alone(database_url: str) -> None:
    measured = append.measure(database_url, seconds=0.05, text_bytes=200)
    assert list(measured) == [f"batches of {size}" for size in append.BATCHES]
    assert min(measured.values()) > 0


def test_echo_tells_its_figures_in_a_table_and_as_json(tmp_path: Path) -> None:
    file = tmp_path / "echo.json"
    ran = CliRunner().invoke(commands.main, ["echo", "--pairs", "2", "--seconds", "0.2", "--json", str(file)])
    assert ran.exit_code == 0, ran.output
    assert "echoes per s" in ran.output
    [told] = json.loads(file.read_text())["results"]
    assert told["workload"] == "echo"
    assert told["figures"]["echoes_per_s"] > 0


async def test_a_log_that_is_made_to_be_verified_has_nothing_wrong(database_url: str) -> None:
    figures = await trio.to_thread.run_sync(partial(verification.measure, database_url, messages=10_000))
    assert figures["messages_per_s"] > 0
