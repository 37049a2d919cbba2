"""Each seed is a world with its own troubles; in each of them every law holds."""

from __future__ import annotations

import pytest

from tests.simulation.world import run_seed


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    one = metafunc.config.getoption("--seed")
    seeds = range(metafunc.config.getoption("--seeds")) if one is None else [one]
    metafunc.parametrize("seed", seeds)


def test_no_law_is_broken_whatever_goes_wrong(seed: int) -> None:
    result = run_seed(seed)
    assert not result.broken, result.told()
