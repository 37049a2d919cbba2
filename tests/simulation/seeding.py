"""Everything that chance decides in a run, decided by its seed: Trio's schedule, ids, masks, jitter, clocks.

Rule: what a run does follows from its seed and the code alone; neither hash order nor addresses nor the machine's clock tell.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import trio.testing
from trio._core import _run

from tests.simulation.database import WALL_CLOCK_AT_START


@contextmanager
def seeded(seed: str, clock: trio.testing.MockClock) -> Iterator[None]:
    """While inside, one run on `clock` is the same each time."""
    ids = random.Random(f"{seed} ids")
    was, scheduler = random.getstate(), _run._r.getstate()
    random.seed(f"{seed} random")
    _run._r.seed(f"{seed} schedule")
    with ExitStack() as stack:
        changed: list[tuple[Any, str, Any]] = [
            (_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
            (os, "urandom", ids.randbytes),
            (time, "time", lambda: WALL_CLOCK_AT_START + clock.current_time()),
            (time, "time_ns", lambda: int((WALL_CLOCK_AT_START + clock.current_time()) * 1e9)),
        ]
        for where, name, what in changed:
            stack.enter_context(patch.object(where, name, what))
        try:
            yield
        finally:
            random.setstate(was)
            _run._r.setstate(scheduler)
