"""The world that every group of refusals is tried in: one server for each test, and people who know each other, or don't."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.house import serving, settings_for
from tests.refusals.world import World, new_world
from uim.live.pacing import PRICES


@pytest.fixture
async def world(database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    # Hundreds of frames that are refused would else be read ten a second.
    for module in ("uim.live.handlers", "uim.live.session"):
        monkeypatch.setattr(f"{module}.REFUSED", 0.0)
    for kind in PRICES:
        monkeypatch.setitem(PRICES, kind, 0.0)
    async with serving(settings_for(database_url, redis_url)) as server:
        yield await new_world(server)
