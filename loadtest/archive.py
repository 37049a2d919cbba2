"""A year of talk in a fresh database: millions of messages in a few minutes, by PostgreSQL's own hand.

10,000 people in pairs and groups, few of which are busy; stays that end and begin again; receipts and watermarks; texts in ten
languages; what search looks through is packed as the server packs it. The big tables are filled without their indexes, by two
connections, and these are made afterwards. Rule: nothing is begun for which the disk has no room.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
import trio

from loadtest import archive_sql
from loadtest.people import PASSWORD
from loadtest.phrases import Phrases, phrases
from loadtest.target import Missing
from uim.chat import indexer
from uim.chat.passwords import Passwords
from uim.cli.embedded import Servers, embedded_servers
from uim.store import epochs, migrations, packing
from uim.store.postgres import connect
from uim.store.search import DAYS as SEARCH_DAYS

DAYS: Final = 365
PHRASES: Final = 20_000
MESSAGES_A_TALK: Final = 180
LEAST_TALKS: Final = 60
CHUNK: Final = 250_000
AT_ONCE: Final = 2
# Tables and indexes take some 700 bytes a message in the end; while they are made, what sorts them and the log of writes as well.
BYTES_A_MESSAGE: Final = 1_100
BYTES_BESIDE: Final = 2 * 2**30
# For a server that is started to be filled and nothing else: what is lost with it is made again.
POSTGRES_SETTINGS: Final = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "30min",
    "autovacuum": "off",
    "shared_buffers": "512MB",
}
_SESSION: Final = "set work_mem = '256MB'; set maintenance_work_mem = '512MB'; set jit = off; set client_min_messages = 'warning'"

# (what is being done, which share of the whole is done by then)
Tell = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Size:
    messages: int
    users: int

    @property
    def talks(self) -> int:
        """As many as make a year's talk of that length, but no more than so many people have."""
        return max(LEAST_TALKS, min(self.messages // MESSAGES_A_TALK, 11 * self.users // 2))


@contextmanager
def kept(folder: Path, size: Size, tell: Tell) -> Iterator[Servers]:
    """Databases with that archive, as `uim dev` runs them; made in the folder, if it is not there yet. Raises Missing."""
    folder.mkdir(parents=True, exist_ok=True)
    # PostgreSQL has an account of its own when we are root, and has to reach its data.
    folder.chmod(0o755)
    made = folder / "made"
    if not made.exists():
        if (folder / "data").exists():
            raise Missing(f"{folder / 'data'} is not known to be whole: remove it, or keep the archive elsewhere")
        tell(_room(folder, size.messages), 0.0)
        with embedded_servers(folder / "data", postgres_settings=POSTGRES_SETTINGS) as servers:
            trio.run(migrations.migrate, servers.database_url)
            seed(servers.database_url, size, tell)
        made.write_text(f"{size}\n")
    elif made.read_text().strip() != str(size):
        raise Missing(f"{folder} has another archive: {made.read_text().strip()}")
    with embedded_servers(folder / "data") as servers:
        yield servers


def _room(folder: Path, messages: int) -> str:
    """A sentence about what the disk has and the archive takes. Raises Missing."""
    needed, free = messages * BYTES_A_MESSAGE + BYTES_BESIDE, shutil.disk_usage(folder).free
    told = f"{messages:,} messages need {needed / 2**30:,.1f} GiB of disk while they are made; {folder} has {free / 2**30:.1f}"
    if free < needed:
        raise Missing(told)
    return told


def seed(database_url: str, size: Size, tell: Tell) -> Phrases:
    """Fill a database that has the schema and nobody in it. What is said in it, to ask for."""
    said = phrases(PHRASES)
    trio.run(_settle, database_url)
    given = _given(size, said)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(_SESSION)
        _run(connection, (*archive_sql.FUNCTIONS, archive_sql.AT, *archive_sql.PEOPLE), given)
        _load_phrases(connection, said)
        tell("who talks with whom, and when", 0.01)
        _run(connection, archive_sql.TALKS + archive_sql.PLAN + archive_sql.SHAPES, given)
        with _without_indexes(connection, "messages", "receipts", tell=tell, done=(0.45, 0.65)):
            _write_messages(database_url, size, archive_sql.MESSAGES.format(**given), tell)
            tell("receipts", 0.4)
            _run(connection, archive_sql.RECEIPTS, given)
        tell("seats and stays", 0.65)
        _run(connection, archive_sql.SEATS, given)
        connection.execute(archive_sql.POSITION.format(**given))
        connection.execute("drop schema seeding cascade")
        tell("vacuum and analyze", 0.7)
        connection.execute("vacuum analyze")
    trio.run(_pack, database_url, tell)
    tell("done", 1.0)
    return said


async def _settle(database_url: str) -> None:
    """The log's first epoch, as a server begins it."""
    async with await connect(database_url, name="load") as tx:
        await epochs.settle(tx)


def _given(size: Size, said: Phrases) -> dict[str, Any]:
    rare = said.spoken.rare
    began_at = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(time.time() - DAYS * 86_400))
    return {
        "messages": size.messages,
        "users": size.users,
        "talks": size.talks,
        "days": DAYS,
        "search_days": SEARCH_DAYS,
        "phrases": PHRASES,
        "began_at": began_at,
        "step_us": DAYS * 86_400_000_000 // size.messages,
        "rare": ", ".join(f"'{word}'" for word in rare),
        "rares": len(rare),
        # Cheap to verify, for a few hundred people sign in before anything is measured.
        "password_hash": trio.run(Passwords(cost=4).hash, PASSWORD),
    }


def _run(connection: psycopg.Connection[Any], statements: tuple[str, ...], given: dict[str, Any]) -> None:
    for statement in statements:
        # A function's body has braces of its own only where nothing is filled in.
        connection.execute(statement.format(**given).encode())


def _load_phrases(connection: psycopg.Connection[Any], said: Phrases) -> None:
    connection.execute("create unlogged table seeding.phrases (at integer primary key, phrase text)")
    with connection.cursor().copy("copy seeding.phrases (at, phrase) from stdin") as copy:
        for at, phrase in enumerate(said.sentences):
            copy.write_row((at, phrase))
    connection.execute("vacuum analyze seeding.phrases")


def _write_messages(database_url: str, size: Size, statement: str, tell: Tell) -> None:
    starts = range(0, size.messages, CHUNK)
    written = 0

    def write(after: int) -> None:
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(_SESSION)
            connection.execute(statement.encode(), {"after": after, "end": min(after + CHUNK, size.messages)})

    with ThreadPoolExecutor(AT_ONCE) as threads:
        for _ in threads.map(write, starts):
            written += 1
            tell("messages", 0.05 + 0.35 * written / len(starts))


@contextmanager
def _without_indexes(
    connection: psycopg.Connection[Any], *tables: str, tell: Tell, done: tuple[float, float]
) -> Iterator[None]:
    """Inside, the tables have no indexes; afterwards those that they had."""
    dropped, made = _indexes_of(connection, tables)
    for statement in dropped:
        connection.execute(statement.encode())
    yield
    for number, statement in enumerate(made):
        tell(f"index {number + 1} of {len(made)}", done[0] + (done[1] - done[0]) * number / len(made))
        connection.execute(statement.encode())


def _indexes_of(connection: psycopg.Connection[Any], tables: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The statements that drop the tables' indexes and the constraints that rest on them, and those that make them again."""
    cursor = connection.execute(
        """select i.indexrelid::regclass::text, i.indrelid::regclass::text, pg_get_indexdef(i.indexrelid), c.conname,
                pg_get_constraintdef(c.oid)
            from pg_index i left join pg_constraint c on c.conindid = i.indexrelid and c.contype in ('p', 'u')
            where i.indrelid = any(%s::regclass[]) order by i.indexrelid""",
        (list(tables),),
    )
    dropped, made = [], []
    for index, table, definition, constraint, rule in cursor.fetchall():
        dropped.append(f"alter table {table} drop constraint {constraint}" if constraint else f"drop index {index}")
        made.append(f"alter table {table} add constraint {constraint} {rule}" if constraint else definition)
    return dropped, made


async def _pack(database_url: str, tell: Tell) -> None:
    """What search looks through, as the server packs it; the statement's time is not bounded here."""
    async with await connect(database_url, name="load") as tx:
        cursor = await tx.execute("select max(m.message_id), p.message_id from messages m, search_position p group by p.message_id")
        row = await cursor.fetchone()
        assert row is not None
        head, began = row
        while await indexer.step(tx):
            at = await packing.take_position(tx)
            if at is not None:
                tell("packing for search", 0.8 + 0.2 * (at.message_id - began) / max(1, head - began))
        await tx.execute("vacuum analyze search_blocks")
