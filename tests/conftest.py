"""The servers that every test runs on: a real PostgreSQL and a real Valkey, started once, and a database for each test.

Rule: no test sees what another has left: its database is a copy of a template that was migrated once, its Valkey is empty.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import hypothesis
import psycopg
import pytest
import redis
import trio
from psycopg import sql

from uim.cli.embedded import Servers, embedded_servers
from uim.store import migrations

# A machine under load is slow, which is no fault of the code under test; each test has its own limit.
hypothesis.settings.register_profile("uim", deadline=None)
hypothesis.settings.load_profile("uim")

# The simulation (tests/simulation): how many seeds a plain run takes, and one seed alone.
SEEDS = 20


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seeds", type=int, default=SEEDS, help="how many seeds the simulation runs")
    parser.addoption("--seed", type=int, default=None, help="the one seed that the simulation is to repeat")


TEMPLATE = "uim_template"
# Speed alone: nobody pulls the plug on a test. Durability itself is tested on a server of its own.
POSTGRES_SETTINGS = {"fsync": "off", "full_page_writes": "off", "max_connections": "300", "max_wal_size": "2GB"}


@contextmanager
def _reachable_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="uim-tests-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def reachable_folder() -> Iterator[Path]:
    """A temporary folder that PostgreSQL's own account can reach when we are root; pytest's tmp_path is closed to it."""
    with _reachable_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """PostgreSQL and Valkey for the whole run."""
    with (
        _reachable_folder() as folder,
        embedded_servers(folder / "data", postgres_settings=POSTGRES_SETTINGS) as started,
    ):
        yield started


def url_of(servers: Servers, database: str) -> str:
    return urlunsplit(urlsplit(servers.database_url)._replace(path=f"/{database}"))


@pytest.fixture(scope="session")
def administration(servers: Servers) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """A connection beside the tests' databases, on which these are made and dropped; with the template migrated."""
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(TEMPLATE)))
        trio.run(migrations.migrate, url_of(servers, TEMPLATE))
        yield connection


@pytest.fixture
def database_url(servers: Servers, administration: psycopg.Connection[tuple[object, ...]]) -> Iterator[str]:
    """A migrated database of this test's own, with a log identity of its own; dropped afterwards."""
    name = f"test_{os.urandom(6).hex()}"
    # Copying files takes 20 ms with fsync off, writing the copy to the log 90.
    administration.execute(
        sql.SQL("create database {} template {} strategy file_copy").format(sql.Identifier(name), sql.Identifier(TEMPLATE))
    )
    url = url_of(servers, name)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("update log_identity set log_id = gen_random_uuid()")
    yield url
    administration.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture
def empty_database_url(servers: Servers, administration: psycopg.Connection[tuple[object, ...]]) -> Iterator[str]:
    """A database without a schema; dropped afterwards."""
    name = f"test_{os.urandom(6).hex()}"
    administration.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    yield url_of(servers, name)
    administration.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture
def redis_url(servers: Servers) -> str:
    """The Valkey of this run, emptied."""
    with redis.Redis.from_url(servers.redis_url) as client:
        client.flushall()
    return servers.redis_url
