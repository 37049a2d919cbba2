"""A PostgreSQL in memory: committed states one after the other, transactions, and connections that break.

Every call takes seeded time and may fail at three points: before it is carried out, after it (a commit whose answer is lost),
or by never being answered. Rule: one writer at a time, as under the log lock; a reader sees committed states alone; what is
done to a connection, or to the process that holds it, decides nothing about what was committed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from random import Random
from typing import Any, Protocol, TypeVar

import psycopg
import trio
from psycopg.pq import TransactionStatus

from tests.simulation.tables import Tables
from uim.store.postgres import USUAL, Deadlines, NoAnswer

T = TypeVar("T")

WALL_CLOCK_AT_START = 1_800_000_000.0
STATEMENT_TIMEOUT_S = 4.0
SLOW_TIMES = 400


class Killed(BaseException):
    """The process is dead: nothing of it runs on, not even its error handling."""


class Trouble(Protocol):
    """What may happen to a call. Each returns at once; `now` is what the faults are to do here."""

    def at(self, process: str, point: str) -> str: ...
    def is_dead(self, process: str) -> bool: ...
    def reach(self, process: str) -> str: ...


def wall_clock() -> float:
    return WALL_CLOCK_AT_START + trio.current_time()


def now() -> datetime:
    return datetime.fromtimestamp(wall_clock(), UTC)


class Database:
    """`on_commit(process, what, before, after)` hears of every new state, at the moment at which it is committed."""

    def __init__(self, chance: Random, trouble: Trouble, on_commit: Callable[[str, str, Tables, Tables], None]) -> None:
        self.tables = Tables()
        self.chance = chance
        self.trouble = trouble
        self.on_commit = on_commit
        self.pace_s = 0.002
        self._writing: Connection | None = None
        self._free = trio.Event()
        self._draining: Connection | None = None

    async def connect(self, process: str, name: str, deadlines: Deadlines = USUAL) -> Connection:
        """Raises psycopg.OperationalError where the process cannot reach it."""
        connection = Connection(self, process, name)
        connection.answer_within_s = deadlines.connect_s
        try:
            await connection.travel("connect")
        except NoAnswer:
            raise psycopg.OperationalError("no connection to the database") from None
        connection.answer_within_s = deadlines.answer_s
        return connection

    def take_turn(self, connection: Connection) -> bool:
        """A second lock, which nobody waits for; held to the transaction's end."""
        if self._draining is None:
            self._draining = connection
        return self._draining is connection

    async def lock(self, connection: Connection) -> Tables:
        """The right to write, and a copy to write to. A statement that waits too long for it fails."""
        if self._writing is not connection:
            with trio.move_on_after(STATEMENT_TIMEOUT_S) as patience:
                while self._writing is not None:
                    await self._free.wait()
            if patience.cancelled_caught:
                raise psycopg.errors.QueryCanceled("canceling statement due to statement timeout")
            self._writing = connection
            self._free = trio.Event()
        return self.tables.copy()

    def unlock(self, connection: Connection) -> None:
        if self._draining is connection:
            self._draining = None
        if self._writing is connection:
            self._writing = None
            self._free.set()

    def commit(self, connection: Connection, after: Tables, what: str) -> None:
        before, self.tables = self.tables, after
        self.on_commit(connection.process, what, before, after)


class Connection:
    """What our rooms see of psycopg's connection. `process`: whose it is."""

    def __init__(self, database: Database, process: str, name: str) -> None:
        self.database = database
        self.process = process
        self.name = name
        self.closed = False
        self.answer_within_s = USUAL.answer_s
        self.idle_since = 0.0
        self.pgconn = self
        self.transaction_status = TransactionStatus.IDLE
        self.began_at: datetime | None = None
        self._draft: Tables | None = None
        self._said: list[str] = []

    def finish(self) -> None:
        self.closed = True
        self.database.unlock(self)

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.finish()

    def looks_dead(self) -> bool:
        return self.closed or self.transaction_status != TransactionStatus.IDLE

    async def execute(self, statement: str, *args: Any, **kwargs: Any) -> None:
        assert statement == "select 1", f"the stand-in knows no SQL: {statement}"
        await self.ask("ping", lambda tables: None)

    # -- calls --------------------------------------------------------------------------------------------------------------

    async def ask(self, what: str, act: Callable[[Tables], T]) -> T:
        """A statement that reads."""
        await self.travel(what)
        answer = act(self._draft or self.database.tables)
        await self._answer(what)
        return answer

    async def change(self, what: str, act: Callable[[Tables], T]) -> T:
        """A statement that writes: in its own transaction, or in the one that is open."""
        is_alone = self.transaction_status == TransactionStatus.IDLE
        await self.travel(what)
        try:
            if is_alone:
                draft = await self.database.lock(self)
                answer = act(draft)
                self.database.commit(self, draft, what)
                self.database.unlock(self)
            else:
                if self._draft is None:
                    self._draft = await self.database.lock(self)
                answer = act(self._draft)
                self._said.append(what)
        except trio.Cancelled:
            self.finish()
            raise
        await self._answer(what)
        return answer

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """Committed at the end, rolled back on any exception."""
        self.began_at = await self.ask("begin", lambda tables: now())
        self.transaction_status = TransactionStatus.INTRANS
        self._draft, self._said = None, []
        try:
            yield
        except BaseException:
            self._end()
            raise
        if self.closed:
            self._end()
            raise psycopg.OperationalError("the connection is closed")
        try:
            await self.travel("commit")
            if self._draft is not None:
                self.database.commit(self, self._draft, " ".join(self._said))
        finally:
            self._end()
        await self._answer("commit")

    def _end(self) -> None:
        self._draft = self.began_at = None
        self.transaction_status = TransactionStatus.IDLE
        self.database.unlock(self)

    # -- the way there and back -----------------------------------------------------------------------------------------------

    async def travel(self, what: str) -> None:
        """The way there: returns when the server has the statement."""
        if self.closed:
            raise psycopg.OperationalError("the connection is closed")
        await self._pass(what, "before")

    async def _answer(self, what: str) -> None:
        """The way back. It may be cut: then nobody here knows what became of the statement."""
        await self._pass(what, "after")

    async def _pass(self, what: str, point: str) -> None:
        trouble = self.database.trouble
        happens = trouble.at(self.process, f"{point} {self.name} {what}")
        is_hung = False
        try:
            await trio.sleep(self.database.chance.random() * self.database.pace_s * (SLOW_TIMES if happens == "slow" else 1))
            if happens == "hang" or trouble.reach(self.process) == "hung":
                await trio.sleep(self.answer_within_s)
                is_hung = True
        except trio.Cancelled:
            self.finish()
            raise
        if trouble.is_dead(self.process):
            self._die()
        if happens == "kill":
            self._die()
        if is_hung:
            self.finish()
            raise NoAnswer("no answer from the database")
        if self.closed:
            raise psycopg.OperationalError("the connection is closed")
        if happens == "reset" or trouble.reach(self.process) == "refused":
            self._lost("server closed the connection unexpectedly")

    def _die(self) -> None:
        self.finish()
        raise Killed(self.process)

    def _lost(self, why: str) -> None:
        self.finish()
        raise psycopg.OperationalError(why)
