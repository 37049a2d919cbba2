"""PostgreSQL on Trio: the one connection class, and the pool.

psycopg's generators do no I/O of their own: they say "wait until readable". `Connection.wait` drives them with Trio's own
waiting, so a query costs no thread and no foreign loop. Rule: a connection on which anything was cancelled, timed out or torn
is thrown away, never handed on; what was in flight on it may or may not have happened.
"""

from __future__ import annotations

import select
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import UUID

import psycopg
import psycopg.conninfo
import trio
from psycopg import generators
from psycopg.adapt import Transformer
from psycopg.pq import ExecStatus, Format, TransactionStatus
from psycopg.rows import TupleRow
from psycopg.waiting import Ready, Wait

from uim.errors import unavailable
from uim.log import get_logger

CHECK_AFTER_IDLE_S: Final = 30.0
# Who has just answered is taken for alive: to look costs a twentieth of a short call. Whose process is ended within that time costs a
# refusal, as one that is ended just after a look does.
LOOK_AFTER_IDLE_S: Final = 0.01
CANCEL_WITHIN_S: Final = 1.0
# Once the server is known to be away: how long it may take to find out whether it is back.
ASK_WITHIN_S: Final = 1.0

# Index reads always. A plan may be made while the tables are still small, and is kept; and what PostgreSQL takes for the cost of a
# page that is in memory makes it read all conversations, or all users, for the few hundred of one person.
BY_INDEX: Final = {"enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off"}

DatabaseError = psycopg.Error
DatabaseAway = psycopg.OperationalError
# What a server or a network that goes away looks like; also a statement over its time-out, a server that takes no writes for
# now (a standby, or one whose disk is nearly full): no text is to blame for these.
ServerLost = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.ReadOnlySqlTransaction,
    # The server has hung up on a transaction in which we said nothing for 5 s: the loop was as long at something else.
    psycopg.errors.IdleInTransactionSessionTimeout,
)
# A server that is there, while our tables are not, or not for us: they are being restored, rights were taken away. Nor for these.
Unfit = (
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedFunction,
    psycopg.errors.InvalidSchemaName,
)
ConnectionLost = (*ServerLost, *Unfit)


log = get_logger(__name__)


class NoAnswer(psycopg.OperationalError):
    """The server took a statement and said nothing within the deadline; what became of it is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """How long the database may take: to let us in, to answer one statement, to become free in the pool."""

    connect_s: float = 5.0
    answer_s: float = 5.0
    acquire_s: float = 5.0


USUAL: Final = Deadlines()


async def _until(fd: int, wanted: Wait) -> Ready:
    if wanted == Wait.R:
        await trio.lowlevel.wait_readable(fd)
        return Ready.R
    if wanted == Wait.W:
        await trio.lowlevel.wait_writable(fd)
        return Ready.W
    ready = Ready.NONE

    async def one(wait: Any, state: Ready) -> None:
        nonlocal ready
        await wait(fd)
        ready |= state  # type: ignore[assignment]  # Ready is an IntEnum used as flags by psycopg itself
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, trio.lowlevel.wait_readable, Ready.R)
        nursery.start_soon(one, trio.lowlevel.wait_writable, Ready.W)
    return ready


async def _drive_connecting(gen: Generator[tuple[int, Wait], Ready, Any]) -> Any:
    try:
        fd, wanted = next(gen)
        while True:
            fd, wanted = gen.send(await _until(fd, wanted))
    except StopIteration as end:
        return end.value


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL with $1, $2, … for `Connection.call`; each is prepared under its name."""

    name: bytes
    sql: bytes


class _OneTask:
    """In place of psycopg's lock, which takes a turn of the loop a query: a connection is used by one task at a time."""

    def __init__(self) -> None:
        self._is_used = False

    async def __aenter__(self) -> None:
        if self._is_used:
            raise RuntimeError("two tasks use one connection")
        self._is_used = True

    async def __aexit__(self, *_: object) -> None:
        self._is_used = False


class Connection(psycopg.AsyncConnection[TupleRow]):
    """A psycopg connection whose waiting is Trio's. Made by `connect`; used by one task at a time.

    Cancelled in mid-query, it asks the server to cancel, then closes itself. No answer within `answer_within_s`: closes
    itself and raises OperationalError, so that a hung database is noticed by whoever waits for it.
    """

    answer_within_s: float = USUAL.answer_s
    idle_since: float = 0.0

    def __init__(self, pgconn: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(pgconn, *args, **kwargs)
        self.lock = _OneTask()  # type: ignore[assignment]  # used only as `async with`; asyncio's would not wait on Trio
        self._called: set[bytes] = set()
        self._reader = Transformer.from_context(self)

    async def wait(self, gen: Any, interval: float = 0.0, timeout: float | None = None) -> Any:
        fd = self.pgconn.socket
        try:
            wanted = next(gen)
            with trio.move_on_after(self.answer_within_s):
                while True:
                    wanted = gen.send(await _until(fd, wanted))
        except StopIteration as end:
            return end.value
        except trio.Cancelled:
            with trio.move_on_after(CANCEL_WITHIN_S, shield=True):
                await self._ask_to_cancel()
            self.pgconn.finish()
            raise
        except OSError as lost:
            self.pgconn.finish()
            raise psycopg.OperationalError("connection socket closed") from lost
        self.pgconn.finish()
        raise NoAnswer(f"no answer from the database within {self.answer_within_s} s")

    async def call(
        self, statement: Statement, parameters: Sequence[bytes | None], meanwhile: Callable[[], None] | None = None
    ) -> Any:
        """Run a statement by libpq alone, without a cursor: for what runs most often (store/binary.py has its values).

        Parameters and result are binary; returns the PGresult. Prepared at its first call on this connection. Errors, deadline and
        cancelling are those of `execute`. `meanwhile` is called once the statement is on its way.
        """
        async with self.lock:
            if statement.name not in self._called:
                self.pgconn.send_prepare(statement.name, statement.sql)
                await self._result()
                self._called.add(statement.name)
            self.pgconn.send_query_prepared(statement.name, parameters, [Format.BINARY] * len(parameters), Format.BINARY)
            if meanwhile is not None:
                meanwhile()
            return await self._result()

    async def rows(self, statement: Statement, parameters: Sequence[bytes | None]) -> list[TupleRow]:
        """What a `call` gives, its values as psycopg reads them: without the cursor, which is a third of a query's price."""
        result = await self.call(statement, parameters)
        self._reader.set_pgresult(result, format=Format.BINARY)
        return self._reader.load_rows(0, result.ntuples, tuple)

    def _deallocate(self, name: bytes | None) -> Any:
        # psycopg forgets all that is prepared, ours too, after a rollback.
        if name is None:
            self._called.clear()
        return super()._deallocate(name)

    async def _result(self) -> Any:
        results = await self.wait(generators.execute(self.pgconn))
        # After the rows there may be an error still, of the commit: then they tell of nothing.
        if results[-1].status == ExecStatus.FATAL_ERROR:
            raise psycopg.errors.error_from_result(results[-1])
        return results[0]

    async def _ask_to_cancel(self) -> None:
        if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
            try:
                await _drive_connecting(self._cancel_gen())
            except (psycopg.Error, OSError):
                return  # the connection is closed next; the server notices that instead

    def looks_dead(self) -> bool:
        """True if the connection is closed, in a transaction, or has bytes waiting that nobody asked for (a farewell)."""
        if self.closed or self.pgconn.transaction_status != TransactionStatus.IDLE:
            return True
        poll = select.poll()
        poll.register(self.pgconn.socket, select.POLLIN)
        return bool(poll.poll(0))


async def connect(
    url: str, *, name: str, settings: dict[str, str] | None = None, deadlines: Deadlines = USUAL
) -> Connection:
    """A new connection in autocommit, named `name` in pg_stat_activity, with server settings for this session.

    Raises psycopg.OperationalError when the server cannot be reached within the deadline.
    """
    parameters = psycopg.conninfo.conninfo_to_dict(url)
    wanted = {"timezone": "UTC", "idle_in_transaction_session_timeout": "5s", "synchronous_commit": "on", **(settings or {})}
    options = " ".join(f"-c {key}={value}" for key, value in wanted.items())
    parameters["options"] = f"{parameters.get('options') or ''} {options}".strip()
    parameters.setdefault("application_name", f"uim {name}")
    parameters.setdefault("tcp_user_timeout", "10000")
    # A standby is no place for us, and one that is just being promoted is away until it is.
    parameters.setdefault("target_session_attrs", "read-write")
    # Resolving a name may block; the blocking variant in a thread, for asyncio's own would need its loop.
    attempts = await trio.to_thread.run_sync(psycopg.conninfo.conninfo_attempts, parameters, abandon_on_cancel=True)
    failure: psycopg.Error | None = None
    for attempt in attempts:
        try:
            with trio.fail_after(deadlines.connect_s):
                made: Connection = await _drive_connecting(Connection._connect_gen(psycopg.conninfo.make_conninfo("", **attempt)))
        except psycopg.Error as error:
            failure = error
        except trio.TooSlowError:
            failure = psycopg.OperationalError(f"no connection to the database within {deadlines.connect_s} s")
        else:
            made._autocommit = True
            made.answer_within_s = deadlines.answer_s
            made.prepare_threshold = 2
            return made
    assert failure is not None
    raise failure


class Pool:
    """At most `size` connections, lent one at a time: the last used first, waiters in order.

    `connection()` and `transaction()` turn a lost connection into the refusal `unavailable`. Once the server could not be
    reached, or gave no answer, everybody is refused at once but the one who finds out whether it is back.
    """

    def __init__(
        self, url: str, size: int, *, statement_timeout_s: float = 4.0, deadlines: Deadlines = USUAL
    ) -> None:
        self._url = url
        self._deadlines = deadlines
        self._slots = trio.Semaphore(size)
        self._idle: list[Connection] = []
        self._is_away = self._is_asking = False
        self._unfit = ""
        self._settings = {**BY_INDEX, "statement_timeout": f"{int(statement_timeout_s * 1000)}"}

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection in autocommit: each statement is its own transaction. Raises UIMError `unavailable`."""
        if self._is_away and self._is_asking:
            raise unavailable()
        await self._take_slot()
        try:
            async with self._lent() as lent:
                yield lent
        except ConnectionLost as lost:
            self.close_idle()
            if isinstance(lost, NoAnswer):
                self._is_away = True
            if isinstance(lost, Unfit):
                self._note_unfit(in_short(lost))
            raise unavailable() from lost
        finally:
            self._slots.release()

    async def _take_slot(self) -> None:
        try:
            self._slots.acquire_nowait()
        except trio.WouldBlock:
            with trio.move_on_after(self._deadlines.acquire_s) as waited:
                await self._slots.acquire()
            if waited.cancelled_caught:
                raise unavailable("the database is busy") from None

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection inside one transaction: committed at the end, rolled back on any exception."""
        async with self.connection() as lent, lent.transaction():
            yield lent

    @asynccontextmanager
    async def _lent(self) -> AsyncIterator[Connection]:
        connection = await self._take()
        try:
            yield connection
        finally:
            if connection.closed or connection.pgconn.transaction_status != TransactionStatus.IDLE:
                connection.pgconn.finish()
            else:
                connection.idle_since = trio.current_time()
                self._idle.append(connection)

    async def _take(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            idle_s = trio.current_time() - connection.idle_since
            if idle_s > LOOK_AFTER_IDLE_S and connection.looks_dead():
                connection.pgconn.finish()
                continue
            if idle_s > CHECK_AFTER_IDLE_S:
                try:
                    await connection.execute("select 1")
                except NoAnswer:
                    raise
                except ConnectionLost:
                    connection.pgconn.finish()
                    continue
            return connection
        return await self._connect()

    async def _connect(self) -> Connection:
        if not self._is_away:
            return await self._made(self._deadlines)
        if self._is_asking:
            raise DatabaseAway("somebody else finds out whether the database is back")
        self._is_asking = True
        try:
            made = await self._made(replace(self._deadlines, connect_s=min(self._deadlines.connect_s, ASK_WITHIN_S)))
        finally:
            self._is_asking = False
        self._is_away = False
        return made

    async def _made(self, deadlines: Deadlines) -> Connection:
        try:
            return await connect(self._url, name="pool", settings=self._settings, deadlines=deadlines)
        except ConnectionLost:
            self._is_away = True
            raise

    def close_idle(self) -> None:
        """Close what is not lent: after an outage their other ends are gone."""
        while self._idle:
            self._idle.pop().pgconn.finish()

    def _note_unfit(self, why: str) -> None:
        """Told once until it changes: callers hear no more than that the database is away."""
        if why != self._unfit:
            log.error("the database is not as it must be", error=why, alert=True)
        self._unfit = why

    async def probe(self) -> None:
        """One round trip; raises UIMError `unavailable`."""
        async with self.connection() as tx:
            await tx.execute("select 1")


def array_text(items: Iterable[UUID | float | None]) -> str:
    """An array for a parameter with a cast (`%s::bigint[]`), as text: psycopg takes ten times as long for a list."""
    return "{" + ",".join(["null" if item is None else str(item) for item in items]) + "}"


def in_short(error: DatabaseError) -> str:
    """What the server said, without its details: these quote the row, and what people write belongs into no log."""
    return error.diag.message_primary or str(error).partition("\n")[0]


def says_away(error: Exception) -> bool:
    """True for an error after which another try may succeed: the connection is lost, the server is busy or going down.

    False where a living server refuses this very statement: psycopg calls a broken limit (54…) or a wrong state (55…, but
    for a lock that was not to be had) operational too, yet the same statement would fail for ever.
    """
    if not isinstance(error, ConnectionLost):
        return False
    state = getattr(error, "sqlstate", None) or ""
    return state == "55P03" or state[:2] not in ("54", "55")
