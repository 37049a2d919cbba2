"""kill -9 of `uim serve`, of PostgreSQL and of Valkey under load: whatever was acknowledged is there, once, in everybody's order.

Sixty kills, twenty of each, in three plans, and at the end of each plan all processes at once. `python -m tests.faults --kills N`
makes more.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.faults.__main__ import main
from tests.faults.drains import Moment
from tests.faults.kills import ALL, DRAIN, KINDS, carry_out, plan
from tests.faults.world import SOURCE

KILLS = 20


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("seed", "processes"), [(1, 1), (2, 1), (3, 2)])
async def test_after_kills_everything_acknowledged_is_there_once_and_in_order(seed: int, processes: int) -> None:
    # Turned by one each time, so that of sixty kills each kind gets twenty.
    kinds = KINDS[seed % 3 :] + KINDS[: seed % 3]
    kills = [*plan(seed, KILLS, kinds, processes), *plan(seed, 1, [ALL])]
    verdict = await carry_out(kills, seed=seed, processes=processes)
    assert not verdict.faults, f"{verdict}\n{verdict.tails}"
    assert sum(verdict.kills.values()) == KILLS + 1
    assert verdict.counts["sent"] >= KILLS * 10, "they were struck under load"


@pytest.mark.timeout(180)
async def test_after_kills_in_the_middle_of_a_drain_nothing_is_lost_and_nothing_doubled() -> None:
    verdict = await carry_out(plan(1, 2 * len(Moment), [DRAIN]), seed=1)
    assert not verdict.faults, f"{verdict}\n{verdict.tails}"
    assert verdict.kills[DRAIN] == 2 * len(Moment)


@pytest.mark.timeout(180)
def test_a_server_whose_commits_are_not_yet_on_disk_when_it_acknowledges_is_found_out(tmp_path: Path) -> None:
    for folder in ("uim", "schema"):
        shutil.copytree(SOURCE / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    doctored = tmp_path / "uim" / "store" / "postgres.py"
    text = doctored.read_text()
    assert text.count('"synchronous_commit": "on"') == 1, "the line that is broken here was moved"
    doctored.write_text(text.replace('"synchronous_commit": "on"', '"synchronous_commit": "off"'))
    told = CliRunner().invoke(main, ["--kills", "14", "--seed", "1", "--what", "postgres", "--source", str(tmp_path)])
    assert told.exit_code == 1, told.output
    assert "LOST" in told.output and "\nVIOLATED\n" in told.output, told.output
    assert "again: python -m tests.faults --kills 14 --seed 1 --what postgres" in told.output


def test_what_cannot_be_killed_is_told() -> None:
    told = CliRunner().invoke(main, ["--what", "uim,mysql"])
    assert told.exit_code == 2
    assert "--what is one or more of uim, postgres, redis, all, drain" in told.output


def test_a_seed_makes_one_plan_and_another_seed_another() -> None:
    assert plan(1, 60) == plan(1, 60) != plan(2, 60)
    of_kind = [kill.what for kill in plan(1, 60, processes=2)]
    assert [of_kind.count(kind) for kind in KINDS] == [20, 20, 20]
    assert {kill.victim for kill in plan(1, 60, processes=2)} == {0, 1}
