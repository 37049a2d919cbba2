"""The load generator: its frames are frames, its runs talk to a real server, and it says so when a promise was broken."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from array import array
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote

import pytest
import trio
import trustme
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from wsproto.frame_protocol import FrameProtocol, Opcode

from loadtest import __main__ as commands
from loadtest import append, director, frames, group, pairs, plot, promises, result, specification, verification
from loadtest.crew import Lasts, Metronome
from loadtest.devices import Listener, Talker
from loadtest.latencies import Latencies
from loadtest.people import Member
from loadtest.plan import Heard, Party, Plan
from loadtest.result import Report, Result
from loadtest.sockets import Connection
from loadtest.specification import Verdict
from loadtest.suite import Place, run
from loadtest.target import Broken, Missing, Target
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
    key = server.house.settings.jwt_keys[0]
    target = Target(server.url, os.getpid(), server.house.settings.database_url, server.operations_url, (key.kid, key.secret))
    return await trio.to_thread.run_sync(workload.run, target, parameters)


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
async def test_a_workload_runs_for_two_seconds_and_keeps_every_promise(
    workload: Workload[Any], database_url: str, redis_url: str, tmp_path: Path
) -> None:
    async with serving(settings_for(database_url, redis_url)) as server:
        told = await _run(server, workload, workload.brief)
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


async def test_a_server_elsewhere_is_reached_by_tls_and_counted_by_sync(
    database_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    # What generators, processes of their own, trust too.
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    settings = settings_for(database_url, redis_url, tls_cert=tmp_path / "cert.pem", tls_key=tmp_path / "key.pem")
    parameters = pairs.Parameters(pairs=2, seconds=0.5, text_bytes=10_000)
    async with serving(settings) as server:
        told = await trio.to_thread.run_sync(pairs.run, Target(server.url), parameters)
    assert told.figures["acknowledged"] == told.figures["stored"] > 0
    assert "server_share" not in told.figures


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


def test_a_run_whose_generator_cannot_go_on_says_why() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed_soon:
        target = Target(f"http://127.0.0.1:{closed_soon.getsockname()[1]}")
    parties = [Party("c", [Member("u", "t"), Member("v", "t")], talkers=1)]
    with pytest.raises(Broken, match="ConnectionRefusedError"):
        director.perform("w1", target, parties, Plan("w1", 1.0, 200, window=1), pairs.Parameters())


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


# -- what is written ------------------------------------------------------------------------------------------------------


def _result(workload: str, figures: dict[str, float], **parameters: float) -> Result:
    arrivals = {"arrival": Latencies(Counter({1_500: 90, 20_000: 10}))}
    seconds = result.timeline({0: Counter({1_500: 90}), 2: Counter({20_000: 10})})
    return Result(workload, dict(parameters), figures, arrivals, seconds)


def test_histograms_of_several_processes_are_added() -> None:
    one, other = Latencies(Counter({1_000: 98})), Latencies(Counter({50_000: 2}))
    one.add(Latencies.decode(other.encode()))
    assert one.count == 100
    assert one.percentile_ms(50) == pytest.approx(1.0, rel=0.001)
    assert one.percentile_ms(99) == one.max_ms == pytest.approx(50.0, rel=0.001)


def test_a_metronome_that_was_held_up_dates_every_text_by_when_it_was_due() -> None:
    talker = Talker("c", "t", window=0, text_bytes=20)
    beat = Metronome([(cast(Connection, None), talker)], interval_ns=10, begins_at_ns=100)
    beat.ends_at_ns = 140
    said = [frame for _, frame in beat.due(135)] + [frame for _, frame in beat.due(500)]
    assert [int(frame[-23:-3]) for frame in said] == [100, 110, 120, 130]
    assert list(beat.late_ns) == [35, 25, 15, 5]
    assert beat.next_due_ns() > 500


def test_a_plot_shows_a_few_times_and_says_where_there_is_nothing_to_show() -> None:
    left, right = Figure().subplots(1, 2)
    plot._draw_timeline(left, [], "live")
    assert not left.axison
    plot._draw_distribution(right, {"live after 1000": Latencies(Counter({20_000: 4, 90_000: 1}))})
    assert len(right.lines[0].get_xdata()) > 1


def test_a_text_counts_when_it_has_come_to_the_last_member() -> None:
    lasts = Lasts(listeners=2)
    for message_id, took_ns in ((1, 10), (2, 5), (1, 30), (2, 7)):
        lasts.note(message_id, took_ns)
    assert list(lasts.times_ns) == [30, 7]


def test_what_comes_in_a_page_because_the_server_was_held_up_is_timed_too() -> None:
    listener = Listener()
    entry = f'{{"message_id":%d,"message_type":"text","content":"{100:020d}xx"}}'
    page = '{"type":"SYNC_BATCH","payload":{"messages":[%s],"next_sync_id":%d,"has_more":false}}'
    listener.take([(page % (entry % 1, 1)).encode()], 500)
    listener.is_measured = True
    live = '{"type":"MESSAGE_RECEIVE","payload":%s}' % (entry % 2)
    listener.take([live.encode(), (page % (f"{entry % 2},{entry % 3}", 3)).encode()], 900)
    assert list(listener.latencies_ns) == [800, 800]
    assert (list(listener.arrived), listener.repeats) == ([1, 2, 3], 1)


def _frame(kind: str, **payload: Any) -> bytes:
    return json.dumps({"type": kind, "payload": payload}).encode()


def _text(message_id: int, sent_ns: int = 0, **more: str) -> dict[str, Any]:
    return {"message_id": message_id, "message_type": "text", "content": f"{sent_ns:020d}"} | more


def test_ones_own_text_is_no_arrival_though_it_is_sent_again_with_others() -> None:
    talker = Talker("c", "t", window=0, text_bytes=20)
    talker.is_measured = True
    page = _frame("SYNC_BATCH", messages=[_text(1, client_message_id="t-1"), _text(2)], next_sync_id=2, has_more=False)
    talker.take([page], now_ns=100)
    assert (list(talker.arrived), len(talker.latencies_ns)) == ([2], 1)


@pytest.mark.parametrize("again", [1, 2])
def test_what_comes_live_twice_or_out_of_order_breaks_a_promise(again: int) -> None:
    with pytest.raises(Broken, match=f"message {again} came live after 2"):
        Listener().take([_frame("MESSAGE_RECEIVE", **_text(number)) for number in (2, again)], now_ns=0)


URLS = ["ws://one/ws", "ws://two/ws"]


def test_seats_of_a_party_stay_together_where_there_are_parties_enough() -> None:
    parties = [Party(f"c{number}", [Member("u", "t")] * 4, talkers=1) for number in range(3)]
    plan = Plan("p", 1.0, 200, window=1)
    assert [[seat.party for seat in share] for share in director._divided(parties, plan, 2, URLS)] == [[0] * 4 + [2] * 4, [1] * 4]
    assert [len(share) for share in director._divided(parties[:1], plan, 2, URLS)] == [2, 2]
    together = replace(plan, is_last_timed=True)
    assert [len(share) for share in director._divided(parties[:1], together, 2, URLS)] == [4]


def test_devices_connect_to_the_processes_of_a_server_in_turn() -> None:
    party = Party("c", [Member("u", "t")] * 4, talkers=1)
    (seats,) = director._divided([party], Plan("p", 1.0, 200, window=1), 1, URLS)
    assert [seat.websocket_url for seat in seats] == URLS * 2


@pytest.mark.timeout(90)
def test_a_server_of_two_processes_is_started_and_keeps_every_promise(tmp_path: Path) -> None:
    file = tmp_path / "w1.json"
    asked = ["w1", "--processes", "2", "--pairs", "2", "--seconds", "1", "--json", str(file)]
    ran = CliRunner().invoke(commands.main, asked)
    assert ran.exit_code == 0, ran.output
    assert json.loads(file.read_text())["results"][0]["figures"]["stored_share"] == 1


def test_a_figure_that_is_missed_fails_and_one_that_was_not_measured_does_not_pass() -> None:
    findings = {
        (each.demand.section, each.demand.words): each.verdict
        for each in specification.judge([_result("w2", {"at_100_p50_ms": 3.0, "at_100_p95_ms": 700.0})])
    }
    assert findings["14.2", "delivery P50 < 200 ms"] is Verdict.PASS
    assert findings["14.2", "delivery P95 < 500 ms"] is Verdict.FAIL
    assert findings["14.2", "delivery P99 < 1 s"] is Verdict.NOT_MEASURED
    assert findings["1.2", "99 % availability"] is Verdict.NOT_MEASURED


def test_what_the_specification_asks_for_is_looked_for_in_workloads_that_are_there() -> None:
    known = {workload.name for workload in WORKLOADS}
    assert {source.workload for demand in specification.DEMANDS for source in demand.sources} <= known
    assert all(demand.sources or demand.reason for demand in specification.DEMANDS)


def test_all_writes_what_was_found_and_fails_where_a_figure_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(p95_ms: float) -> Workload[Any]:
        return replace(named("w2"), run=lambda _target, _parameters: _result("w2", {"at_100_p95_ms": p95_ms}))

    asked = ["all", "--only", "w2", "--url", "http://nowhere", "--results", str(tmp_path / "new" / "told")]
    monkeypatch.setattr(commands, "WORKLOADS", (found(700.0),))
    ran = CliRunner().invoke(commands.main, asked)
    assert ran.exit_code == 1
    assert "3 figures missed" in ran.output
    page = (tmp_path / "new" / "told.md").read_text()
    assert "| 14.2 | delivery P95 < 500 ms | 700 ms (w2) | FAIL |" in page
    assert len(page.split("## The specification's figures")[1].splitlines()) == len(specification.DEMANDS) + 4
    monkeypatch.setattr(commands, "WORKLOADS", (found(7.0),))
    assert CliRunner().invoke(commands.main, asked).exit_code == 0
    assert [each.workload for each in result.read(tmp_path / "new" / "told.json").results] == ["w2"]


def test_a_workload_that_fails_is_told_and_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(_target: Target, _parameters: Any) -> Result:
        raise Broken("2 acknowledged texts are not stored")

    good = replace(named("w3"), run=lambda _target, _parameters: _result("w3", {"arrived_per_s": 1.0}, members=50))
    monkeypatch.setattr(commands, "WORKLOADS", (replace(named("w1"), run=breaks), good))
    ran = CliRunner().invoke(commands.main, ["all", "--url", "http://nowhere", "--results", str(tmp_path / "told")])
    assert ran.exit_code == 1
    page = (tmp_path / "told.md").read_text()
    assert "- w1: Broken: 2 acknowledged texts are not stored" in page
    assert "| 1.2 | up to 50 participants per group | 50 (w3) | PASS |" in page


def test_two_files_stand_side_by_side_and_other_work_is_told(tmp_path: Path) -> None:
    files = [tmp_path / "one.json", tmp_path / "other.json"]
    for file, rate, pairs_of in zip(files, (2_000.0, 3_000.0), (50, 40), strict=True):
        result.write(Report({}, [_result("w1", {"acknowledged_per_s": rate}, pairs=pairs_of)]), file)
    ran = CliRunner().invoke(commands.main, ["compare", *map(str, files)])
    assert ran.exit_code == 0, ran.output
    assert "acknowledged per s  2,000   3,000            1.50" in ran.output
    assert "NOT THE SAME WORK" in ran.output


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (["w1", "--url", "127.0.0.1:8080"], "is not http://HOST"),
        (["w1", "--url", "ws://127.0.0.1:8080"], "is not http://HOST"),
        (["w1", "--url", "http://127.0.0.1:99999"], "is not http://HOST"),
        (["w1", "--url", "http://127.0.0.1:8080/api"], "is not http://HOST"),
        (["all", "--url", "http://"], "is not http://HOST"),
        (["w1", "--url", "http://nowhere", "--processes", "2"], "--processes"),
        (["w1", "--seconds", "nan"], "no finite number"),
        (["w2", "--rates", "100,-5"], "above 0"),
        (["w2", "--rates", ""], "above 0"),
        (["w5", "--missed", "many"], "above 0"),
        (["w4", "--steps", "0"], "above 0"),
        (["w1", "--json", "/nowhere/told.json"], "cannot be written"),
        (["soak", "--plot", "/nowhere/told.png"], "cannot be written"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_started(
    asked: list[str], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "run", lambda *_args, **_more: pytest.fail("it was started"))
    ran = CliRunner().invoke(commands.main, asked)
    assert ran.exit_code == 2, ran.output
    assert why in ran.output


def test_who_does_not_answer_is_named_and_more_talkers_than_members_are_refused() -> None:
    nowhere, groups = Place("http://127.0.0.1:1"), next(each for each in WORKLOADS if each.name == "w3")
    with pytest.raises(Broken, match=r"^http://127\.0\.0\.1:1: .*refused"):
        run(groups, groups.brief, nowhere, with_ceilings=False)
    with pytest.raises(Missing, match="7 who talk, in a group of 6"):
        run(groups, replace(groups.brief, senders=7), nowhere, with_ceilings=False)


def test_files_without_a_workload_in_common_are_no_comparison(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("one.json", "other.json")]
    for file, workload in zip(files, ("w1", "w3"), strict=True):
        result.write(Report({}, [_result(workload, {})]), file)
    ran = CliRunner().invoke(commands.main, ["compare", *map(str, files)])
    assert (ran.exit_code, "no workload is in both of them" in ran.output) == (1, True), ran.output


@pytest.mark.parametrize("damaged", ["", "AAAA", "HISTF\u20ac", Latencies(Counter({7: 3})).encode()[:-8], "x" * 60])
def test_a_damaged_histogram_is_told_in_words(damaged: str, tmp_path: Path) -> None:
    file = tmp_path / "one.json"
    result.write(Report({}, [_result("w1", {})]), file)
    told = json.loads(file.read_text())
    told["results"][0]["latencies"] = {"arrival": damaged}
    file.write_text(json.dumps(told))
    ran = CliRunner().invoke(commands.main, ["compare", str(file), str(file)])
    assert (ran.exit_code, "is no file of results" in ran.output) == (2, True), ran.output


def test_a_run_that_is_ended_by_sigterm_leaves_no_server_and_no_data() -> None:
    command = [sys.executable, "-m", "loadtest", "w1", "--pairs", "1", "--seconds", "60"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        server = int(said.split("process ")[1].split(",")[0])
        environ = Path(f"/proc/{server}/environ").read_text()
        data = Path(unquote(environ.partition("host=")[2].partition("\0")[0]))
        assert data.exists()
        process.terminate()
        assert process.wait(40) == 128 + signal.SIGTERM
    assert not Path(f"/proc/{server}").exists()
    assert not data.exists()


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_results_are_drawn(ending: str, tmp_path: Path) -> None:
    file, drawn = tmp_path / "one.json", tmp_path / f"one.{ending}"
    result.write(Report({}, [_result("w1", {}), Result("w4", {}, {"memory_kb": 1.0})]), file)
    ran = CliRunner().invoke(commands.main, ["plot", str(file), str(drawn)])
    assert ran.exit_code == 0, ran.output
    assert drawn.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml")
    assert CliRunner().invoke(commands.main, ["plot", str(file), str(tmp_path / "one.what")]).exit_code == 1
