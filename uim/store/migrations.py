"""The schema's history: schema/NNNN_name.sql, applied in order, each once, each in its own transaction.

What was applied is recorded with a checksum in schema_migrations. Rule: a released file is never edited; a database that
does not match the files (a changed file, one this release does not know, a gap) is refused and left as it is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection

from uim.store import postgres

# The advisory lock's number: "uim migr" in ASCII, so that it meets no other program's.
LOCK: Final = 0x75696D206D696772
# Another `uim migrate` may be at work; a table may be held by the running server. Then: refused, and told.
LOCK_WITHIN: Final = "60s"
# An index over a large table takes its time; past this, somebody should look.
MIGRATION_WITHIN_S: Final = 3600.0

Connection = AsyncConnection[Any]


class MigrationError(Exception):
    """Why the database was not brought up to date; one sentence for the operator."""


@dataclass(frozen=True, slots=True)
class Migration:
    version: int
    name: str
    sql: str
    checksum: str


def schema_folder() -> Path:
    """Where the SQL files are: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "schema"
    return inside if inside.is_dir() else package.parent / "schema"


def read_migrations(folder: Path) -> list[Migration]:
    """The migrations in `folder`, by number. Raises MigrationError for a missing folder or a number used twice."""
    migrations = [_read(path) for path in sorted(folder.glob("*.sql")) if re.match(r"\d{4}_", path.name)]
    if not migrations:
        raise MigrationError(f"no schema files (NNNN_name.sql) in {folder}")
    for expected, migration in enumerate(migrations, start=1):
        if migration.version != expected:
            raise MigrationError(f"{migration.name}.sql should have number {expected:04d}: numbers have no gaps or twins")
    return migrations


def _read(path: Path) -> Migration:
    content = path.read_bytes()
    return Migration(int(path.name[:4]), path.stem, content.decode(), hashlib.sha256(content).hexdigest())


async def migrate(database_url: str, *, folder: Path | None = None) -> list[str]:
    """Apply what is not yet applied; the names of what was, in order (empty: it was up to date).

    Raises MigrationError; the files before the failed one stay applied, the failed one leaves no trace. Raises
    psycopg.OperationalError if the database cannot be reached. Cancelled: the file in work is rolled back.
    """
    migrations = read_migrations(folder or schema_folder())
    applied: list[str] = []
    async with await postgres.connect(database_url, name="migrate", settings={"statement_timeout": "0"}) as tx:
        tx.answer_within_s = MIGRATION_WITHIN_S
        while (name := await _apply_next(tx, migrations)) is not None:
            applied.append(name)
    return applied


async def pending(tx: Connection, *, folder: Path | None = None) -> list[str]:
    """The names of migrations not yet applied. Raises MigrationError for a database that does not match the files."""
    migrations = read_migrations(folder or schema_folder())
    found = await (await tx.execute("select to_regclass('schema_migrations') is not null")).fetchone()
    recorded = await _recorded(tx) if found is not None and found[0] else {}
    return [migration.name for migration in _unapplied(migrations, recorded)]


async def _apply_next(tx: Connection, migrations: Sequence[Migration]) -> str | None:
    try:
        async with tx.transaction():
            await tx.execute(f"set local lock_timeout = '{LOCK_WITHIN}'")
            # Held until the transaction's end; a second migrator then sees what the first has recorded.
            await tx.execute("select pg_advisory_xact_lock(%s)", [LOCK])
            await tx.execute(
                "create table if not exists schema_migrations (version integer primary key, name text not null,"
                " checksum text not null, applied_at timestamptz not null default now())"
            )
            unapplied = _unapplied(migrations, await _recorded(tx))
            if not unapplied:
                return None
            await _apply(tx, unapplied[0])
            return unapplied[0].name
    except psycopg.errors.LockNotAvailable as busy:
        raise MigrationError(
            f"waited {LOCK_WITHIN} for a lock: another `uim migrate`, or a long transaction, holds it; try again"
        ) from busy


async def _apply(tx: Connection, migration: Migration) -> None:
    try:
        # Without parameters psycopg sends a file of many statements as it is.
        await tx.execute(migration.sql.encode())
    except psycopg.errors.LockNotAvailable:
        raise
    except psycopg.Error as error:
        if isinstance(error, postgres.ServerLost):
            raise
        raise MigrationError(f"{migration.name}.sql{_line_of(error, migration)}: {str(error).splitlines()[0]}") from error
    await tx.execute(
        "insert into schema_migrations (version, name, checksum) values (%s, %s, %s)",
        [migration.version, migration.name, migration.checksum],
    )


def _line_of(error: psycopg.Error, migration: Migration) -> str:
    position = error.diag.statement_position
    return f", line {migration.sql.count(chr(10), 0, int(position)) + 1}" if position else ""


async def _recorded(tx: Connection) -> dict[int, tuple[str, str]]:
    rows = await (await tx.execute("select version, name, checksum from schema_migrations")).fetchall()
    return {version: (name, checksum) for version, name, checksum in rows}


def _unapplied(migrations: Sequence[Migration], recorded: dict[int, tuple[str, str]]) -> list[Migration]:
    known = {migration.version: migration for migration in migrations}
    if newer := [name for version, (name, _) in sorted(recorded.items()) if version not in known]:
        raise MigrationError(
            f"the database is newer than this release of uim: it has {', '.join(newer)}; install the newer release"
        )
    for version, (name, checksum) in sorted(recorded.items()):
        if known[version].checksum != checksum:
            raise MigrationError(
                f"{known[version].name}.sql is not the file that was applied (as {name}): "
                "a released schema file is never edited; restore it and add a new one"
            )
    unapplied = [migration for migration in migrations if migration.version not in recorded]
    if recorded and unapplied and unapplied[0].version < max(recorded):
        raise MigrationError(f"{unapplied[0].name}.sql was never applied, but later ones were: the record has a hole")
    return unapplied
