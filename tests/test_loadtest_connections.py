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
from loadtest.crowd import gather, source_of
from loadtest.frames import Torn
from loadtest.servers import server_on
from loadtest.target import Broken, Missing, Target
from loadtest.visitor import Talk, Visitor
from loadtest.visits import Visits
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


def test_a_visitor_counts_what_comes_twice_and_keeps_it_once() -> None:
    visitor = Visitor("u", "t", "load")
    visitor.take([_page(1, 2), _page(2, 3)], 0)
    assert list(visitor.arrived) == [1, 2, 3]
    assert visitor.repeats == 1


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
