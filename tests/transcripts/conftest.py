"""The server that transcripts talk to, one for each test, on a database of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.house import Server, serving, settings_for


@pytest.fixture
async def server(database_url: str, redis_url: str) -> AsyncIterator[Server]:
    async with serving(settings_for(database_url, redis_url)) as started:
        yield started
