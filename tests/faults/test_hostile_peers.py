"""The attacks of `python -m loadtest.hostile` on a real `uim serve`: it holds its memory, and the pairs go on.

What each attack is refused or cut with is in test_hostile_frames.py and test_hostile_requests.py. Times are judged by the
benchmark on a quiet machine, not here.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from click.testing import CliRunner

from loadtest import hostile
from loadtest.attacks import ATTACKS
from loadtest.servers import server_on
from uim.cli.embedded import Servers

pytestmark = pytest.mark.timeout(120)

# Some of those that would grow something without end, had it no bound; a fraction of a second each.
GROWING = ["zero-window", "empty-fragments", "sends", "pipeline-unread"]
# A generous share for what Python keeps of each kind of work it does the first time; an unbounded flood is far above it.
MOST_MIB = 60


async def test_attacks_are_held_in_bounded_memory_while_pairs_talk(servers: Servers, database_url: str, redis_url: str) -> None:
    def attack() -> list[hostile.Finding]:
        with server_on(replace(servers, database_url=database_url, redis_url=redis_url)) as target:
            return list(hostile.measure(target, GROWING, pairs=2, turns=1, seconds=0.8))

    findings = await trio.to_thread.run_sync(attack)
    assert [finding.name for finding in findings] == GROWING
    for finding in findings:
        assert finding.during[0].times_ms, f"nothing arrived beside {finding.name}"
        assert finding.during[0].told["connected"] > 0, finding
        assert finding.peak_mib - finding.before_mib < MOST_MIB, finding


def test_every_attack_says_what_it_is_and_an_unknown_one_is_named() -> None:
    assert all(attack.what for attack in ATTACKS.values())
    refused = CliRunner().invoke(hostile.main, ["no-such-attack"])
    assert refused.exit_code == 2 and "no-such-attack" in refused.output


@pytest.mark.parametrize(("alone", "during", "verdict"), [(5.0, 99.0, "held"), (5.0, 101.0, "OVER"), (120.0, 130.0, "unclear")])
def test_over_100_ms_is_over_unless_the_machine_is_so_without(alone: float, during: float, verdict: str) -> None:
    def turn(ms: float) -> hostile.Turn:
        return hostile.Turn([ms] * 10, 0.5, {"answers": {}, "cut": 0, "per_s": 1, "own_share": 0})

    finding = hostile.Finding("x", [turn(alone)] * 3, [turn(1.0), turn(during), turn(during)], 1, 1, 1)
    assert finding.verdict.startswith(verdict)
