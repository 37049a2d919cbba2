"""The world that every group of refusals is tried in: one server for each test, and people who know each other, or don't."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.house import serving, settings_for
from tests.refusals.world import World, new_world


@pytest.fixture
async def world(database_url: str, redis_url: str) -> AsyncIterator[World]:
    async with serving(settings_for(database_url, redis_url)) as server:
        yield await new_world(server)
