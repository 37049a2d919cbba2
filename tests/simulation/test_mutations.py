"""The simulation notices what it is there to notice: each of our rules, broken in turn, breaks a law within a few seeds."""

from __future__ import annotations

import pytest

from tests.simulation.mutations import MUTATIONS, Mutation
from tests.simulation.world import run_seed

SEEDS = 100


@pytest.mark.timeout(180)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_broken_rule_breaks_a_law(mutation: Mutation) -> None:
    with mutation.put_in():
        for seed in range(mutation.first_seed, mutation.first_seed + SEEDS):
            broken = {each.law for each in run_seed(seed).broken}
            if broken:
                assert broken & mutation.laws, f"seed {seed} broke {broken}, where one of {set(mutation.laws)} was meant to break"
                return
    raise AssertionError(f"nobody noticed within {SEEDS} seeds: {mutation.name}")
