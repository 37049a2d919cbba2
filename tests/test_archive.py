"""The year of talk that lookups are measured in: whole in the sense of `uim verify`, and shaped as talk is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from loadtest import archive
from loadtest.archive import Size
from loadtest.target import Missing
from uim.chat import verification
from uim.store.postgres import connect

MESSAGES = 20_000
USERS = 300


@pytest.fixture
async def seeded(database_url: str) -> AsyncIterator[str]:
    await trio.to_thread.run_sync(partial(archive.seed, database_url, Size(MESSAGES, USERS), lambda _what, _share: None))
    yield database_url


async def test_a_seeded_archive_has_nothing_wrong_and_the_shapes_of_talk(seeded: str) -> None:
    report = await verification.verify(seeded)
    assert [(found.invariant.name, found.examples) for found in report.findings if found.number] == []
    async with await connect(seeded, name="test") as tx:

        async def one(query: str) -> Any:
            row = await (await tx.execute(query.encode())).fetchone()
            assert row is not None
            return row[0]

        assert await one("select count(*) from messages") == MESSAGES
        assert await one("select count(*) from users") == USERS
        assert await one("select count(*) from search_blocks") > 0
        assert await one("select count(*) from receipts") > MESSAGES / 20
        assert await one("select extract(day from max(created_at) - min(created_at)) from messages") >= 360
        # Who came back, and who went for good.
        assert await one("select count(*) from (select from participations group by conversation_id, user_id having count(*) > 1) t") > 0
        assert await one("select count(*) from conversation_participants where left_at is not null") > 0
        # Few are busy: a tenth of the conversations has most of what was said.
        counts = "select count(*) as said from messages group by conversation_id order by said desc"
        assert await one(f"select sum(said) from (select * from ({counts}) c limit 11) t") > MESSAGES / 2
        assert await one("select count(*) from pg_namespace where nspname = 'seeding'") == 0


async def test_the_tables_have_the_indexes_that_they_had(database_url: str) -> None:
    async with await connect(database_url, name="test") as tx:
        query = """select indexname || indexdef from pg_indexes where schemaname = 'public' order by 1"""
        before = [row[0] for row in await (await tx.execute(query)).fetchall()]
        await trio.to_thread.run_sync(partial(archive.seed, database_url, Size(10_000, 100), lambda _what, _share: None))
        assert [row[0] for row in await (await tx.execute(query)).fetchall()] == before


def test_nothing_is_begun_for_which_the_disk_has_no_room(tmp_path: Path) -> None:
    enormous = Size(10**12, USERS)
    with pytest.raises(Missing, match=r"need 1,02\d,\d\d\d\.\d GiB of disk"), archive.kept(tmp_path / "data", enormous, print):
        pass
    assert list((tmp_path / "data").iterdir()) == []
