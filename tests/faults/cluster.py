"""A PostgreSQL whose past can be brought back: from a dump, from a copy of its files, by a standby that is promoted.

`kept = await cluster.keep()` remembers what is there, `await kept.bring_back()` makes it so again, by the same means as an
operator would, with servers connected. Rule: everything is done by PostgreSQL's own programs, on folders of this test alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg
import trio

from tests.faults.process import Process
from tests.faults.world import _postgres_program
from uim.cli import embedded
from uim.store import migrations
from uim.store.postgres import connect

# Nobody pulls the plug; and what is stopped cleanly is whole.
SETTINGS = {"fsync": "off", "full_page_writes": "off", "max_connections": "60", "wal_level": "replica"}
AROUND_S = 30.0


@dataclass(frozen=True)
class Kept:
    bring_back: Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Cluster:
    folder: Path
    programs: embedded._Programs
    postgres: Process
    url: str
    administration_url: str

    def _run(self, program: str, *arguments: str) -> None:
        command = [self.programs.postgresql_bin / program, *arguments]
        subprocess.run(command, check=True, timeout=AROUND_S, capture_output=True)

    async def _execute(self, *statements: str) -> None:
        async with await connect(self.administration_url, name="test") as connection:
            for statement in statements:
                await connection.execute(statement)

    # -- three ways back --------------------------------------------------------------------------------------------------

    async def keep_dump(self) -> Kept:
        file = self.folder / "dump"
        await trio.to_thread.run_sync(self._run, "pg_dump", "--format=custom", f"--file={file}", self.url)

        async def bring_back() -> None:
            await self._execute("create database restored")
            into = self.url.replace(f"/{embedded.DATABASE}?", "/restored?")
            await trio.to_thread.run_sync(self._run, "pg_restore", f"--dbname={into}", str(file))
            await self._execute(
                f"drop database {embedded.DATABASE} with (force)", f"alter database restored rename to {embedded.DATABASE}"
            )

        return Kept(bring_back)

    async def keep_files(self) -> Kept:
        copy = await self._copy()

        async def bring_back() -> None:
            await self.postgres.stop()
            await trio.to_thread.run_sync(self._put_back, copy)
            await self.postgres.start()

        return Kept(bring_back)

    async def keep_standby(self) -> Kept:
        """A standby that has not heard of what came since; the servers may meet it before it is promoted."""
        copy = await self._copy()

        async def bring_back() -> None:
            await self.postgres.stop()
            await trio.to_thread.run_sync(self._put_back, copy)
            await self.promote()

        return Kept(bring_back)

    async def switch_over(self) -> None:
        """The same data on a new timeline: a failover that loses nothing."""
        await self.postgres.stop()
        await self.promote()

    async def promote(self) -> None:
        (self.folder / "postgres" / "standby.signal").touch()
        _own_like(self.folder / "postgres" / "standby.signal", self.folder / "postgres")
        self.postgres.begin()
        with trio.fail_after(AROUND_S):
            while True:
                try:
                    await trio.to_thread.run_sync(self._ask_to_promote)
                    break
                except psycopg.OperationalError:
                    await trio.sleep(0.05)
            await self.postgres.ready()

    def _ask_to_promote(self) -> None:
        with psycopg.connect(self.administration_url, autocommit=True) as connection:
            connection.execute("select pg_promote(wait => false)")

    async def _copy(self) -> Path:
        copy = self.folder / "copy"
        await self.postgres.stop()
        await trio.to_thread.run_sync(_copy_tree, self.folder / "postgres", copy)
        await self.postgres.start()
        return copy

    def _put_back(self, copy: Path) -> None:
        shutil.rmtree(self.folder / "postgres")
        _copy_tree(copy, self.folder / "postgres")




def _copy_tree(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", source, target], check=True, timeout=AROUND_S)


def _own_like(file: Path, like: Path) -> None:
    owner = like.stat()
    os.chown(file, owner.st_uid, owner.st_gid)


@contextmanager
def initialised(folder: Path) -> Iterator[Path]:
    """A folder with a cluster in it, not running: to be copied for each test."""
    folder.chmod(0o755)
    programs = embedded._find_programs()
    account = embedded._postgresql_account(programs)
    embedded._make_folder(folder, account)
    embedded._make_cluster(folder / "postgres", programs, account, is_synced=False)
    yield folder / "postgres"


def _cluster(folder: Path, initial: Path) -> Cluster:
    programs = embedded._find_programs()
    account = embedded._postgresql_account(programs)
    embedded._make_folder(folder, account)
    _copy_tree(initial, folder / "postgres")
    sockets = folder / "run"
    sockets.mkdir(mode=0o700)
    embedded._give(sockets, account)
    host = quote(str(sockets), safe="")
    postgres = Process(_postgres_program(folder, sockets, programs, account, SETTINGS))
    urls = [f"postgresql://{embedded.DATABASE}@/{database}?host={host}" for database in (embedded.DATABASE, "postgres")]
    return Cluster(folder, programs, postgres, *urls)


@asynccontextmanager
async def cluster_on(folder: Path, initial: Path) -> AsyncIterator[Cluster]:
    """A cluster of this test's own, running and migrated."""
    cluster = await trio.to_thread.run_sync(_cluster, folder, initial)
    try:
        await cluster.postgres.start()
        await migrations.migrate(cluster.url)
        yield cluster
    finally:
        cluster.postgres.kill()
