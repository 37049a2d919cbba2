"""A seed is a run: in the same process, in another one, under another order of hashes, line for line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.world import run_seed

SEEDS = (4, 11, 18, 25)
ROOT = Path(__file__).parents[2]
TELL = "import sys; from tests.simulation.world import run_seed; print(*run_seed(int(sys.argv[1])).history, sep='\\n')"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_run_twice_has_the_same_history(seed: int) -> None:
    first, second = run_seed(seed), run_seed(seed)
    assert len(first.history) > 50
    assert first.history == second.history


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_the_order_of_hashes_does_not_leak_into_a_history(hash_seed: str) -> None:
    told = subprocess.run(
        [sys.executable, "-c", TELL, str(SEEDS[0])],
        env={**os.environ, "PYTHONHASHSEED": hash_seed}, cwd=ROOT, capture_output=True, text=True, check=True, timeout=50,
    )  # fmt: skip
    assert told.stdout.splitlines() == run_seed(SEEDS[0]).history
