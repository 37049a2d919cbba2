"""The year of talk that lookups are measured in: whole in the sense of `uim verify`, and shaped as talk is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from loadtest import archive, growth
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


def test_a_folder_with_other_data_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(Missing, match="not known to be whole"), archive.kept(tmp_path, Size(MESSAGES, USERS), print):
        pass
    (tmp_path / "made").write_text("another\n")
    with pytest.raises(Missing, match="has another archive"), archive.kept(tmp_path, Size(MESSAGES, USERS), print):
        pass


def test_growth_goes_by_tenths_and_from_the_smallest_to_the_largest() -> None:
    assert growth.sizes(10_000_000) == [10_000, 100_000, 1_000_000, 10_000_000]
    assert growth.sizes(10_000) == [10_000]
    took = {10_000: {"list newest": [1_000_000, 3_000_000, 2_000_000]}, 100_000: {"list newest": [5_000_000]}}
    assert growth._figures(took) == {
        "list_newest_at_10000_p50_ms": 2.0,
        "list_newest_at_100000_p50_ms": 5.0,
        "list_newest_growth_share": 2.5,
    }
