"""The load generator's visitors: they come, are sent away, torn and come again, and what they did not get is told."""

from __future__ import annotations

import os
import socket
import threading
from array import array
from contextlib import suppress

import pytest
import trio

from loadtest import idle, reconnect
from loadtest import town as town_run
from loadtest.crowd import gather, source_of
from loadtest.frames import Torn
from loadtest.growing import Growing, Look, slope
from loadtest.http_calls import Lines, request
from loadtest.result import Result
from loadtest.servers import server_on
from loadtest.target import Broken, Missing, Target
from loadtest.townsfolk import Town, Tune
from loadtest.visitor import Talk, Visitor
from loadtest.visits import SECOND_NS, Visits
from tests.house import serving, settings_for
from uim.cli.embedded import Servers


def _page(*message_ids: int, has_more: bool = False) -> bytes:
    entries = ",".join(f'{{"message_id":{each},"message_type":"text"}}' for each in message_ids)
    position, more = message_ids[-1] if message_ids else 0, str(has_more).lower()
    said = f'{{"type":"SYNC_BATCH","payload":{{"messages":[{entries}],"next_sync_id":{position},"has_more":{more}}}}}'
    return said.encode()


def test_a_visitor_repeats_what_it_was_told_no_place_of_and_nothing_else() -> None:
    visitor, talk = Visitor("u", "t", "load"), Talk("c")
    first, second = visitor.say(talk, 1, 20), visitor.say(talk, 2, 20)
    sent = b'{"type":"MESSAGE_ACK","payload":{"status":"sent","client_message_id":"load-1","message_id":7}}'
    assert visitor.take([sent], 3) == b""
    visitor.leave()
    answered = visitor.take([_page(5, has_more=True), _page(6)], 4)
    assert answered.endswith(second)
    assert first not in answered
    assert list(talk.acknowledged) == [7]
    assert visitor.is_live
    assert visitor.position == 6
    assert second not in visitor.take([_page(6)], 5), "a page that comes again on the same connection"


def test_a_visitor_counts_what_comes_twice_and_keeps_it_once() -> None:
    visitor = Visitor("u", "t", "load")
    visitor.take([_page(1, 2), _page(2, 3)], 0)
    assert list(visitor.arrived) == [1, 2, 3]
    assert visitor.repeats == 1


@pytest.mark.parametrize("again", [1, 2])
def test_what_comes_live_twice_or_out_of_order_breaks_a_visitors_promise(again: int) -> None:
    live = '{"type":"MESSAGE_RECEIVE","payload":{"message_id":%d,"message_type":"text"}}'
    visitor = Visitor("u", "t", "load")
    visitor.take([_page(1), (live % 2).encode()], 0)
    with pytest.raises(Broken, match=f"message {again} came live after 2"):
        visitor.take([(live % again).encode()], 0)


def test_a_visitor_times_what_came_late_in_a_page_and_not_what_it_missed_while_away() -> None:
    def page(message_id: int) -> bytes:
        entry = f'{{"message_id":{message_id},"message_type":"text","content":"{100:020d}"}}'
        return f'{{"type":"SYNC_BATCH","payload":{{"messages":[{entry}],"next_sync_id":{message_id},"has_more":false}}}}'.encode()

    visitor = Visitor("u", "t", "load")
    visitor.is_measured = True
    visitor.take([page(1)], 500)
    assert list(visitor.arrivals_ns) == []
    visitor.take([page(2)], 700)
    assert list(visitor.arrivals_ns) == [600]
    visitor.leave()
    visitor.take([page(3)], 900)
    assert list(visitor.arrivals_ns) == [600]


def _answering(*answers: bytes) -> socket.socket:
    """A server that gives each connection the next of these answers to its head, and keeps it open."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        kept = []
        for answer in answers:
            connection, _ = listening.accept()
            connection.recv(4096)
            connection.sendall(answer)
            kept.append(connection)
        with suppress(ConnectionResetError):
            kept[-1].recv(4096)

    threading.Thread(target=serve, daemon=True).start()
    return listening


def _frame(payload: bytes) -> bytes:
    return bytes((0x81, len(payload))) + payload if len(payload) < 126 else b"\x81\x7e" + len(payload).to_bytes(2, "big") + payload


UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"


def test_who_is_sent_away_comes_back_when_told_to_and_is_counted() -> None:
    away = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n"
    goodbye = b"\x88\x13" + (1013).to_bytes(2, "big") + b"retry_after_ms=20"
    listening = _answering(away, UPGRADED + goodbye, UPGRADED + _frame(_page()))
    with listening:
        visits = Visits(f"ws://127.0.0.1:{listening.getsockname()[1]}/ws", at_once=1)
        visits.come([Visitor("u", "t", "load")])
        assert visits.run(5.0, lambda: visits.live == 1)
        visits.close()
    assert visits.sent_away == 2
    assert len(visits.lives_ns) == 1


def test_any_other_refusal_ends_the_run() -> None:
    listening = _answering(b"HTTP/1.1 401 Unauthorized\r\n\r\n")
    with listening:
        visits = Visits(f"ws://127.0.0.1:{listening.getsockname()[1]}/ws", at_once=1)
        visits.come([Visitor("u", "t", "load")])
        with pytest.raises(Torn, match=r"no upgrade: HTTP/1\.1 401"):
            visits.run(5.0, lambda: False)
        visits.close()


def test_everybody_on_this_machine_has_an_address_and_nobody_elsewhere() -> None:
    here = Target("http://127.0.0.1:8080")
    assert len({source_of(here, number) for number in range(70_000)}) == 70_000
    assert source_of(here, 65_536) == "127.2.0.0"
    assert source_of(Target("https://chat.example.com"), 1) == ""


def test_more_connections_than_files_are_not_begun() -> None:
    with pytest.raises(Missing, match="open files"):
        idle.run(Target("http://127.0.0.1:1"), idle.Parameters(connections=10_000_000))


def test_a_text_that_did_not_come_back_with_its_reader_gives_no_figures() -> None:
    one, other, talk = Visitor("u", "t", "load"), Visitor("v", "t", "load"), Talk("c")
    talk.acknowledged = array("q", [1, 2])
    other.arrived = array("q", [1])
    with pytest.raises(Broken, match="said 2 texts, 1 arrived"):
        reconnect._Storm(Visits("ws://127.0.0.1:1/ws", at_once=1), [one, other], [(one, other, talk)]).check()


async def test_who_registers_can_be_renewed_and_who_is_made_as_rows_can_sign_in(database_url: str, redis_url: str) -> None:
    async with serving(settings_for(database_url, redis_url)) as server:
        key = server.house.settings.jwt_keys[0]
        for target in (
            Target(server.url),
            Target(server.url, os.getpid(), server.house.settings.database_url, signing_key=(key.kid, key.secret)),
        ):
            crowd = await trio.to_thread.run_sync(gather, target, 2)
            token = await trio.to_thread.run_sync(crowd.renew, crowd.members[1])
            me = await server.http.get("/api/users/me", headers={"Authorization": f"Bearer {token}"})
            assert me.json()["user_id"] == crowd.members[1].user_id
            await server.login(me.json()["username"], "other", "Load-test-1815")


@pytest.mark.timeout(60)
def test_all_come_back_after_a_restart_and_have_everything(database_url: str, redis_url: str) -> None:
    with server_on(Servers(database_url, redis_url, 0, 0)) as target:
        told = reconnect.run(target, reconnect.Parameters(connections=20, rounds=1, talkers=3)).figures
    assert told["restart_all_live_s"] > 0
    assert told["texts"] == 6


async def test_people_with_several_devices_each_come_back_and_each_pair_hears_its_own_texts(database_url: str, redis_url: str) -> None:
    async with serving(settings_for(database_url, redis_url)) as server:
        parameters = reconnect.Parameters(connections=15, rounds=2, talkers=3)
        told = await trio.to_thread.run_sync(reconnect.run, Target(server.url), parameters)
    # Three people have fifteen devices: one pair, and two texts of it.
    assert told.figures["texts"] == 2


# -- a town, and what it holds --------------------------------------------------------------------------------------------


def test_a_burst_comes_last_in_its_time_and_what_was_acknowledged_is_told_by_it() -> None:
    tune = Tune(rate=10.0, burst_rate=20.0, burst_s=1.0, burst_every_s=3.0)
    tune.begin(0)
    due_ns = list(tune.due(3 * SECOND_NS - 1))
    assert len([at for at in due_ns if at < 2 * SECOND_NS]) == 20
    assert len([at for at in due_ns if at >= 2 * SECOND_NS]) == 20
    assert tune.turns_in_s(SECOND_NS // 2) == 1.5
    assert tune.turns_in_s(5 * SECOND_NS) == 1.0
    tune.note(2 * SECOND_NS, 20)
    tune.note(3 * SECOND_NS, 38)
    assert tune.figures() == {"acknowledged_per_s": 10.0, "burst_acknowledged_per_s": 18.0}


def test_growth_is_the_slope_of_all_that_was_seen_after_the_warm_up() -> None:
    growing = Growing(Target("http://nowhere"))
    growing.looks = [Look(at_s, {"memory_kb": value}) for at_s, value in [(0, 10.0), (60, 100.0), (120, 103.0), (180, 104.0)]]
    assert growing.figures(60) == {"memory_kb": 104.0, "memory_kb_per_minute": pytest.approx(2.0)}
    assert slope([(1.0, 1.0)]) is None


@pytest.mark.parametrize(
    ("arrived", "stored", "why"),
    [([2], [1, 2, 3], "got 1 texts where 2 were said"), ([3, 2], [1, 2, 3], "not in order"), ([2, 3], [1, 2], "are stored")],
)
def test_a_town_where_a_text_is_lost_gives_no_figures(
    arrived: list[int], stored: list[int], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other, talk = Visitor("u", "t", "load"), Visitor("v", "t", "load"), Talk("c")
    talk.acknowledged, one.acknowledged = array("q", [2, 3, 1]), array("q", [2, 3])
    other.acknowledged, other.arrived = array("q", [1]), array("q", arrived)
    one.arrived = array("q", [1, 2])  # a text of its own that came again is no fault
    town = Town(Target("http://nowhere", database_url="there"), [], [], Visits("ws://127.0.0.1:1/ws", at_once=1), 20)
    town.people, town.pair_of, town.group_of, town.talks = [one, other], {one: talk, other: talk}, {one: talk, other: talk}, {"c": talk}
    monkeypatch.setattr(town, "_rows", lambda database_url: {"c": stored})
    with pytest.raises(Broken, match=why):
        town.check()


def test_a_soak_that_grows_is_broken_and_a_short_one_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    grown = Result("soak", {}, {"memory_kb_per_minute": 500.0, "tasks_per_minute": 0.0})
    monkeypatch.setattr(town_run._Run, "__init__", lambda *_: None)
    monkeypatch.setattr(town_run._Run, "whole", lambda *_: grown)
    assert town_run.run_soak(Target(""), town_run.SoakParameters(minutes=5.0)) is grown
    with pytest.raises(Broken, match="grows: memory kb per minute 500"):
        town_run.run_soak(Target(""), town_run.SoakParameters(minutes=20.0))


# -- HTTP by hand ---------------------------------------------------------------------------------------------------------


def test_an_answer_is_read_whole_however_it_is_cut() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel"
    listening = _answering(answer)
    heard: list[bytes] = []
    with listening:
        lines = Lines(f"http://127.0.0.1:{listening.getsockname()[1]}", [""])
        [line] = lines.all
        line.ask, line.hear = lambda: request("GET", "/"), heard.append
        line.send()
        while not line.received:
            assert not line.read()
        line.received += b"l"
        assert not line.is_whole()
        line.received += b"o"
        assert line.is_whole()
        lines.close()


def test_an_answer_that_is_no_success_ends_the_run() -> None:
    listening = _answering(b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n")
    with listening:
        lines = Lines(f"http://127.0.0.1:{listening.getsockname()[1]}", [""])
        lines.all[0].ask = lambda: request("GET", "/")
        with pytest.raises(Torn, match="429"):
            lines.once()
        lines.close()
