"""Locust's people: a short run against a real server keeps every promise, and a run that does not is found out.

Rule: correctness only; nothing here is a figure.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from loadtest.locust_device import Account, Device, Report
from loadtest.locust_ledger import Ledger
from tests.house import serving, settings_for

ROOT = Path(__file__).parent.parent
LOCUSTFILE = ROOT / "loadtest" / "locustfile.py"
USERS = 5


async def run_locust(url: str, told: Path, *more: str) -> tuple[int, dict[str, Any], str]:
    """Its exit code, its figures by name, and what it printed."""
    asked = ["--host", url, "--headless", "--users", str(USERS), "--spawn-rate", str(USERS), "--run-time", "10s", "--json-file", str(told)]
    faster = ["--group-size", "3", "--wait-least", "0.05", "--wait-most", "0.3", "--away-most", "1", *more]
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--csv", str(told), *asked, *faster]
    with trio.fail_after(50):
        ran = await trio.run_process(command, cwd=ROOT, capture_stdout=True, stderr=subprocess.STDOUT, check=False)
    figures = {one["name"]: one for one in json.loads(told.with_suffix(".json").read_text())}
    return ran.returncode, figures, ran.stdout.decode()


async def test_five_people_chat_for_ten_seconds_and_nothing_fails(database_url: str, redis_url: str, tmp_path: Path) -> None:
    async with serving(settings_for(database_url, redis_url)) as server:
        code, figures, said = await run_locust(server.url, tmp_path / "told")
        async with server.house.pool.connection() as tx:
            stored = await (await tx.execute("select count(*) from messages where message_type = 'text'")).fetchone()
    assert code == 0, said
    assert [name for name, one in figures.items() if one["num_failures"]] == [], said
    done = {name: one["num_requests"] for name, one in figures.items()}
    assert done["send to ack"] == stored[0] > 0
    assert done["send to arrival"] > 0
    assert done["connect"] == done["catch-up"] >= USERS
    assert done["/api/conversations"] > 0
    # Names have no ids, or there would be a line for each conversation.
    assert len(figures) < 20
    assert "0 faults" in said
    assert "send to arrival" in (tmp_path / "told_stats.csv").read_text()


async def test_who_was_made_by_an_earlier_run_signs_in_again(database_url: str, redis_url: str, tmp_path: Path) -> None:
    async with serving(settings_for(database_url, redis_url)) as server:
        named = ("--accounts", "again", "--run-time", "2s")
        first, figures, said = await run_locust(server.url, tmp_path / "first", *named)
        second, others, said_too = await run_locust(server.url, tmp_path / "second", "--reuse", *named)
    assert (first, second) == (0, 0), said + said_too
    assert figures["/api/auth/register"]["num_requests"] == others["/api/auth/login"]["num_requests"] == USERS
    assert "/api/auth/register" not in others


async def test_a_run_in_which_nobody_signs_in_is_no_success(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--users", "1", "--run-time", "1s"]
    with trio.fail_after(50):
        # Without --host Locust itself stops each user before its first request, and finds nothing failed.
        ran = await trio.run_process(command, cwd=ROOT, capture_stdout=True, stderr=subprocess.STDOUT, check=False)
    assert ran.returncode == 1
    assert "nobody signed in" in ran.stdout.decode()


async def test_an_option_that_cannot_be_done_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--group-size", "60"]
    with trio.fail_after(50):
        ran = await trio.run_process(command, cwd=ROOT, capture_stdout=True, stderr=subprocess.STDOUT, check=False)
    assert ran.returncode == 2
    assert "60 is not from 3 to 50" in ran.stdout.decode()


# -- a promise that is broken ---------------------------------------------------------------------------------------------


def entry(seq: int, message_id: int, sender_id: str = "ann", content: str = "") -> dict[str, Any]:
    return {
        "conversation_id": "talk",
        "seq": seq,
        "message_id": message_id,
        "sender_id": sender_id,
        "message_type": "text",
        "content": content or f"@here {message_id} words",
    }


def ledger_of_a_pair(*, acknowledged: list[int]) -> Ledger:
    """Ann has said texts at these places; a text's message_id is ten times its seq."""
    ledger = Ledger()
    ledger.made("talk", ["ann", "bob"])
    for seq in acknowledged:
        ledger.sent("ann", "talk", seq, seq * 10, number=seq)
    return ledger


def phone_of_bob(ledger: Ledger, report: Report = lambda *_told: None) -> Device:
    """His device, which the test tells what came, each text a second after it was said."""

    def read(content: str) -> tuple[str, int, float]:
        return "here", int(content.split()[1]), 1_000.0

    account = Account("bob", "http://nowhere", lambda: "", lambda _old: None, read, {})
    phone = Device(account, ledger, report)
    phone._batch({"messages": [], "conversations": [], "next_sync_id": 0, "has_more": False})
    return phone


def test_who_gets_everything_in_order_has_no_fault() -> None:
    ledger = ledger_of_a_pair(acknowledged=[1, 2, 4])
    ledger.sent("bob", "talk", 3, 30, number=1)
    phone = phone_of_bob(ledger)
    for seq in (1, 2, 4):
        phone._receive(entry(seq, seq * 10))
    # A repeat, and one's own by sync.
    phone._batch({"messages": [entry(2, 20), entry(3, 30, "bob")], "conversations": [], "next_sync_id": 40, "has_more": False})
    ledger.came("ann", "talk", 3, 30)
    assert ledger.faults(["ann", "bob"]) == []


@pytest.mark.parametrize(
    ("came", "why"),
    [
        ([], "LOST: talk has acknowledged texts 1 to 3, of which came none"),
        ([1, 3], "LOST: seq 2 of talk never came, 3 did"),
        ([1, 2], "LOST: talk has acknowledged texts 1 to 3, of which came 1 to 2"),
        ([2, 3], "LOST: talk has acknowledged texts 1 to 3, of which came 2 to 3"),
        ([1, 3, 2], "message 20 came for the first time after 30"),
        ([1, 2, 2, 3], "message 20 came live again"),
    ],
)
def test_a_text_that_is_lost_or_out_of_order_is_noticed(came: list[int], why: str) -> None:
    ledger = ledger_of_a_pair(acknowledged=[1, 2, 3])
    phone = phone_of_bob(ledger)
    for seq in came:
        phone._receive(entry(seq, seq * 10))
    assert why in "; ".join(ledger.faults(["ann", "bob"]))


def test_a_text_that_stands_twice_is_noticed() -> None:
    ledger = ledger_of_a_pair(acknowledged=[1])
    phone = phone_of_bob(ledger)
    phone._receive(entry(1, 10))
    phone._receive(entry(2, 20, content="@here 10 words"))
    assert "text 10 of ann@here came after text 10" in "; ".join(ledger.faults(["bob"]))


def test_what_comes_live_before_the_last_batch_is_noticed() -> None:
    ledger = ledger_of_a_pair(acknowledged=[])
    phone = phone_of_bob(ledger)
    phone.is_live = False
    phone._receive(entry(1, 10))
    assert "came live before the last batch" in "; ".join(ledger.faults(["bob"]))


def test_what_comes_in_a_page_to_one_who_is_live_is_timed_and_what_was_missed_is_not() -> None:
    told: list[tuple[str, float]] = []
    phone = phone_of_bob(ledger_of_a_pair(acknowledged=[]), lambda name, ms, length, fault: told.append((name, ms)))
    page = {"conversations": [], "has_more": False}
    phone.is_live = False
    phone._batch(page | {"messages": [entry(1, 10)], "next_sync_id": 10})
    phone._batch(page | {"messages": [entry(2, 20)], "next_sync_id": 20})
    phone._receive(entry(3, 30))
    assert [each for each in told if each[0] == "send to arrival"] == [("send to arrival", 1_000.0)] * 2
