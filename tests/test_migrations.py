"""The schema's history: in order, once, each whole or not at all; a database that does not match is left as it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import psycopg
import pytest
import trio

from uim.store import migrations, postgres
from uim.store.migrations import MigrationError, migrate, pending


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "0001_one.sql").write_text("create table one (id integer);\ninsert into one values (1);\n")
    (tmp_path / "0002_two.sql").write_text("create table two (id integer); -- 100 %s\n")
    (tmp_path / "current.sql").write_text("this is not a migration")
    return tmp_path


async def tables(url: str) -> set[str]:
    async with await postgres.connect(url, name="test") as tx:
        cursor = await tx.execute("select tablename from pg_tables where schemaname = 'public'")
        return {row[0] for row in await cursor.fetchall()}


async def pending_of(url: str, folder: Path) -> list[str]:
    async with await postgres.connect(url, name="test") as tx:
        return await pending(tx, folder=folder)


async def test_files_are_applied_in_order_and_once(empty_database_url: str, folder: Path) -> None:
    assert await pending_of(empty_database_url, folder) == ["0001_one", "0002_two"]
    assert await migrate(empty_database_url, folder=folder) == ["0001_one", "0002_two"]
    assert await migrate(empty_database_url, folder=folder) == []
    assert await pending_of(empty_database_url, folder) == []
    assert await tables(empty_database_url) == {"one", "two", "schema_migrations"}


async def test_two_at_once_apply_each_file_once(empty_database_url: str, folder: Path) -> None:
    applied: list[str] = []

    async def one() -> None:
        applied.extend(await migrate(empty_database_url, folder=folder))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(one)
    assert sorted(applied) == ["0001_one", "0002_two"]


async def test_a_failing_file_leaves_no_trace_and_keeps_those_before(empty_database_url: str, folder: Path) -> None:
    (folder / "0002_two.sql").write_text("create table two (id integer);\n\ncreate tabel three;\n")
    with pytest.raises(MigrationError, match=r"0002_two\.sql, line 3: syntax error"):
        await migrate(empty_database_url, folder=folder)
    assert await tables(empty_database_url) == {"one", "schema_migrations"}
    (folder / "0002_two.sql").write_text("create table two (id integer);")
    assert await migrate(empty_database_url, folder=folder) == ["0002_two"]


async def test_a_changed_file_is_refused(empty_database_url: str, folder: Path) -> None:
    await migrate(empty_database_url, folder=folder)
    (folder / "0001_one.sql").write_text("create table one (id bigint);")
    (folder / "0003_three.sql").write_text("create table three (id integer);")
    for look in (migrate(empty_database_url, folder=folder), pending_of(empty_database_url, folder)):
        with pytest.raises(MigrationError, match=r"0001_one\.sql is not the file that was applied"):
            await look
    assert "three" not in await tables(empty_database_url)


async def test_a_newer_database_is_refused(empty_database_url: str, folder: Path) -> None:
    await migrate(empty_database_url, folder=folder)
    (folder / "0002_two.sql").unlink()
    with pytest.raises(MigrationError, match=r"newer than this release.*0002_two"):
        await migrate(empty_database_url, folder=folder)


async def test_a_hole_in_the_record_is_refused(empty_database_url: str, folder: Path) -> None:
    await migrate(empty_database_url, folder=folder)
    async with await postgres.connect(empty_database_url, name="test") as tx:
        await tx.execute("delete from schema_migrations where version = 1")
    with pytest.raises(MigrationError, match="has a hole"):
        await migrate(empty_database_url, folder=folder)


async def test_a_lock_that_does_not_come_is_told(empty_database_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "LOCK_WITHIN", "50ms")
    with psycopg.connect(empty_database_url) as holder:
        holder.execute("select pg_advisory_xact_lock(%s)", [migrations.LOCK])
        with pytest.raises(MigrationError, match="holds it"):
            await migrate(empty_database_url, folder=folder)
    assert await migrate(empty_database_url, folder=folder) == ["0001_one", "0002_two"]


@pytest.mark.parametrize("names", [[], ["0002_two.sql"], ["0001_one.sql", "0001_uno.sql"], ["0001_one.sql", "0003_x.sql"]])
def test_a_folder_with_gaps_twins_or_nothing_is_refused(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_text("select 1;")
    with pytest.raises(MigrationError):
        migrations.read_migrations(tmp_path)


@pytest.mark.parametrize("texts", [0, 1])
async def test_a_log_is_analyzed_for_its_new_statistics_but_not_an_empty_one(empty_database_url: str, tmp_path: Path, texts: int) -> None:
    before = [path for path in migrations.schema_folder().glob("000*.sql") if path.name < "0008"]
    for path in before:
        shutil.copy(path, tmp_path)
    await migrate(empty_database_url, folder=tmp_path)
    async with await postgres.connect(empty_database_url, name="test") as tx:
        await tx.execute(
            """insert into messages (message_id, conversation_id, seq, sender_id, server_key, content, created_at)
                select 1, gen_random_uuid(), 1, gen_random_uuid(), gen_random_uuid(), '', now() from generate_series(1, %s)""",
            (texts,),
        )
        await migrate(empty_database_url)
        cursor = await tx.execute("select count(*) from pg_stats where tablename = 'messages' and attname = 'conversation_id'")
        assert await cursor.fetchone() == (texts,)
        cursor = await tx.execute("select reltuples from pg_class where relname = 'messages'")
        # Never looked at, which PostgreSQL takes for a table that will grow.
        assert texts or await cursor.fetchone() == (-1,)


def test_the_schema_of_this_release_is_found() -> None:
    assert migrations.read_migrations(migrations.schema_folder())[0].name == "0001_log"
