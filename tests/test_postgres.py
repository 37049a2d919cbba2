"""PostgreSQL on Trio: the pool's order and bounds, and every way in which a connection stops being one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import UUID

import psycopg
import pytest
import structlog.testing
import trio
import trio.testing

from tests.faults.proxy import Proxy, postgres_proxy
from uim.errors import UIMError
from uim.store.binary import array, bigints, of_bigint, uuids
from uim.store.postgres import CHECK_AFTER_IDLE_S, Connection, Deadlines, Pool, Statement, connect

pytestmark = pytest.mark.timeout(30)
QUICK = Deadlines(connect_s=0.3, answer_s=0.3, acquire_s=0.3)


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    made = Pool(database_url, 2)
    yield made
    made.close_idle()


@pytest.fixture
async def proxy(database_url: str) -> AsyncIterator[Proxy]:
    async with postgres_proxy(database_url) as made:
        yield made


@pytest.fixture
async def look(database_url: str) -> AsyncIterator[Connection]:
    """A connection beside the pool's, to see with what the server sees."""
    async with await connect(database_url, name="look") as made:
        yield made


async def value(tx: Connection, query: str, *values: object) -> object:
    row = await (await tx.execute(query, values)).fetchone()
    assert row is not None
    return row[0]


async def pid_of(pool: Pool) -> object:
    async with pool.connection() as tx:
        return await value(tx, "select pg_backend_pid()")


async def running(look: Connection, query: str) -> bool:
    found = await look.execute(
        "select from pg_stat_activity where state = 'active' and query = %s and datname = current_database()", (query,)
    )
    return await found.fetchone() is not None


async def until_running(look: Connection, query: str, *, is_running: bool = True) -> None:
    with trio.fail_after(2):  # less than the pool's statement_timeout, which would end it too
        while await running(look, query) is not is_running:
            await trio.sleep(0.002)


# --- the pool ---


async def test_a_transaction_that_the_server_gave_up_is_a_connection_that_is_lost(pool: Pool) -> None:
    with pytest.raises(UIMError) as refused:
        async with pool.transaction() as tx:
            await tx.execute("set local idle_in_transaction_session_timeout = '20ms'")
            with trio.fail_after(5):
                await trio.lowlevel.wait_readable(tx.pgconn.socket)  # its farewell
            await tx.execute("select 1")
    assert refused.value.code == "unavailable"
    assert await pid_of(pool), "the next one is another connection"


async def test_the_last_used_is_lent_first(pool: Pool) -> None:
    async with pool.connection() as first, pool.connection() as second:
        last_back, first_back = await value(first, "select pg_backend_pid()"), await value(second, "select pg_backend_pid()")
    for _ in range(3):
        assert await pid_of(pool) == last_back
    async with pool.connection(), pool.connection() as other:
        assert await value(other, "select pg_backend_pid()") == first_back


async def test_waiters_are_served_in_order(database_url: str) -> None:
    pool = Pool(database_url, 1)
    served: list[int] = []

    async def wait(number: int) -> None:
        async with pool.connection() as tx:
            served.append(number)
            await tx.execute("select 1")

    async with trio.open_nursery() as nursery, pool.connection():
        for number in range(10):
            nursery.start_soon(wait, number)
            await trio.testing.wait_all_tasks_blocked()
        assert served == []
    assert served == list(range(10))
    pool.close_idle()


async def test_never_more_than_its_size_are_open(pool: Pool, look: Connection) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(pid_of, pool)
    count = "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'uim pool'"
    assert await value(look, count) == 2


async def test_who_waits_too_long_is_told_unavailable_and_takes_no_place(database_url: str) -> None:
    pool = Pool(database_url, 1, deadlines=QUICK)
    async with pool.connection():
        with pytest.raises(UIMError, match="busy") as refused:
            await pid_of(pool)
        with trio.move_on_after(0.05):
            await pid_of(pool)
    assert refused.value.code == "unavailable" and refused.value.retry_after_s
    assert await pid_of(pool)
    pool.close_idle()


async def test_a_transaction_is_committed_at_its_end_and_rolled_back_on_any_exception(pool: Pool, look: Connection) -> None:
    await look.execute("create table notes (note text)")
    async with pool.transaction() as tx:
        await tx.execute("insert into notes values ('kept')")
    for error in (ValueError, UIMError("forbidden")):
        with pytest.raises((ValueError, UIMError)):
            async with pool.transaction() as tx:
                await tx.execute("insert into notes values ('never')")
                raise error
    with trio.move_on_after(5) as scope:
        async with pool.transaction() as tx:
            await tx.execute("insert into notes values ('never')")
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert await value(look, "select array_agg(note) from notes") == ["kept"]


async def test_an_error_in_a_statement_is_its_callers_and_the_connection_goes_on(pool: Pool) -> None:
    pid = await pid_of(pool)
    with pytest.raises(psycopg.errors.DivisionByZero):
        async with pool.connection() as tx:
            await tx.execute("select 1 / 0")
    assert await pid_of(pool) == pid


SUM = Statement(b"sum", b"select sum(g), 'all' from unnest($1::bigint[]) g")
SEVEN = array(20, [(3).to_bytes(8, "big"), None, (4).to_bytes(8, "big")])


async def test_a_called_statement_is_prepared_once_and_again_after_a_rollback(look: Connection) -> None:
    for _ in range(2):
        found = await look.call(SUM, [SEVEN])
        assert (found.ntuples, found.get_value(0, 1)) == (1, b"all")
    assert await value(look, "select count(*) from pg_prepared_statements where name = 'sum'") == 1
    await look.execute("select 1", prepare=True)
    async with look.transaction(force_rollback=True):
        await look.execute("select 1")
    await look.execute("select 1")
    assert await value(look, "select count(*) from pg_prepared_statements where name = 'sum'") == 0
    assert (await look.call(SUM, [SEVEN])).get_value(0, 1) == b"all"


async def test_an_error_in_a_called_statement_is_its_callers_and_the_connection_goes_on(look: Connection) -> None:
    with pytest.raises(psycopg.errors.InvalidBinaryRepresentation):
        await look.call(SUM, [SEVEN[:-1] + b"too much"])
    assert (await look.call(SUM, [SEVEN])).get_value(0, 1) == b"all"


EVERY_TYPE = b"""select $1::bigint, $2::uuid[], $3::bigint[], null, true, 'text'::varchar(9), '\\x00ff'::bytea, 0.5::float8,
    timestamptz '2026-01-05 10:00:00.123456+02' from generate_series(1, $1::bigint)"""


async def test_rows_of_a_called_statement_are_read_as_those_of_a_cursor(look: Connection) -> None:
    ids = [UUID(int=0), UUID(int=2**128 - 1)]
    numbers = [0, 2**53 - 1, -1]
    cursor = psycopg.AsyncRawCursor(look)
    statement = Statement(b"every type", EVERY_TYPE)
    for count in (3, 0, 1):
        await cursor.execute(EVERY_TYPE, [count, ids, numbers], binary=True)
        expected = await cursor.fetchall()
        assert await look.rows(statement, [of_bigint(count), uuids(ids), bigints(numbers)]) == expected
        assert len(expected) == count
    assert expected[0][:3] == (1, ids, numbers)


async def test_a_called_statement_without_an_answer_ends_its_connection(proxy: Proxy) -> None:
    tx = await connect(proxy.url, name="call", deadlines=QUICK)
    await tx.call(SUM, [SEVEN])
    proxy.hang()
    with pytest.raises(psycopg.OperationalError, match="no answer"):
        await tx.call(SUM, [SEVEN])
    assert tx.closed


async def test_two_tasks_on_one_connection_are_a_bug_that_is_told(look: Connection) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(look.execute, "select pg_sleep(0.1)")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(RuntimeError, match="two tasks"):
            await look.execute("select 1")


async def test_a_table_that_is_not_there_makes_the_database_unavailable_and_its_operator_is_told_which(pool: Pool) -> None:
    with structlog.testing.capture_logs() as logged:
        for _ in range(3):
            with pytest.raises(UIMError, match="away"):
                async with pool.connection() as tx:
                    await tx.execute("select * from nowhere")
    assert [line["error"] for line in logged] == ['relation "nowhere" does not exist']


# --- connections that are no more ---


async def test_a_connection_that_the_server_closed_while_idle_is_not_handed_out(pool: Pool, look: Connection) -> None:
    pid = await pid_of(pool)
    await look.execute("select pg_terminate_backend(%s, 5000)", (pid,))
    assert await pid_of(pool) != pid


async def test_a_connection_closed_in_mid_query_is_unavailable_and_the_next_one_is_new(pool: Pool, look: Connection) -> None:
    pid = await pid_of(pool)

    async def close() -> None:
        await until_running(look, "select pg_sleep(20)")
        await look.execute("select pg_terminate_backend(%s)", (pid,))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(close)
        with pytest.raises(UIMError, match="away"):
            async with pool.connection() as tx:
                await tx.execute("select pg_sleep(20)")
    assert await pid_of(pool) != pid


async def test_cancelled_in_mid_query_it_cancels_on_the_server_and_is_thrown_away(pool: Pool, look: Connection) -> None:
    pid = await pid_of(pool)
    async with trio.open_nursery() as nursery:

        async def sleep() -> None:
            async with pool.connection() as tx:
                await tx.execute("select pg_sleep(20)")

        nursery.start_soon(sleep)
        await until_running(look, "select pg_sleep(20)")
        nursery.cancel_scope.cancel()
    await until_running(look, "select pg_sleep(20)", is_running=False)
    assert await pid_of(pool) != pid


async def test_a_statement_over_its_time_is_ended_by_the_server(database_url: str) -> None:
    pool = Pool(database_url, 1, statement_timeout_s=0.1)
    with pytest.raises(UIMError, match="away"):
        async with pool.connection() as tx:
            await tx.execute("select pg_sleep(20)")
    assert await pid_of(pool)
    pool.close_idle()


async def test_a_hung_server_is_unavailable_within_the_deadline(proxy: Proxy) -> None:
    pool = Pool(proxy.url, 1, deadlines=QUICK)
    pid = await pid_of(pool)
    proxy.hang()
    for _ in range(2):  # first in mid-answer, then in connecting
        started = trio.current_time()
        with pytest.raises(UIMError, match="away"):
            await pid_of(pool)
        assert 0.3 <= trio.current_time() - started < 2
    proxy.flow()
    assert await pid_of(pool) != pid
    pool.close_idle()


async def test_a_server_that_is_not_there_is_unavailable(proxy: Proxy) -> None:
    pool = Pool(proxy.url, 1, deadlines=QUICK)
    proxy.refuse()
    with pytest.raises(UIMError, match="away"):
        await pool.probe()
    proxy.accept()
    await pool.probe()
    pool.close_idle()
    with pytest.raises(psycopg.OperationalError):
        await connect("postgresql://nobody@127.0.0.1:1/none", name="test")


async def test_after_long_idleness_a_connection_is_asked_before_it_is_lent(proxy: Proxy) -> None:
    pool = Pool(proxy.url, 1, deadlines=QUICK)
    async with pool.connection() as tx:
        pid = await value(tx, "select pg_backend_pid()")
        lent = tx
    lent.idle_since -= CHECK_AFTER_IDLE_S + 1
    assert await pid_of(pool) == pid, "it is well"
    lent.idle_since -= CHECK_AFTER_IDLE_S + 1
    loss = proxy.lose(lambda request: b"select 1" in request, carried_out=False)
    assert await pid_of(pool) != pid, "the line was dead, and no caller heard of it"
    assert loss.happened.is_set()
    pool.close_idle()


# --- the wire ---


async def test_big_parameters_and_big_results_pass_both_ways_at_once(proxy: Proxy) -> None:
    """More than a socket's buffer: while we write, the server already answers, and both have to be waited for."""
    big = "x" * 1_000_000
    async with await connect(proxy.url, name="test") as tx:
        assert await value(tx, "select %s || repeat('y', 1000000)", big) == big + "y" * 1_000_000
        async with tx.cursor() as cursor:
            await cursor.executemany("select %s", [(big,), (big,)], returning=True)
            assert len((await cursor.fetchone() or [""])[0]) == 1_000_000


async def test_a_connection_has_the_settings_that_the_log_relies_on(database_url: str) -> None:
    async with await connect(database_url, name="test", settings={"statement_timeout": "1234"}) as tx:
        wanted = {
            "synchronous_commit": "on",
            "idle_in_transaction_session_timeout": "5s",
            "statement_timeout": "1234ms",
            "transaction_isolation": "read committed",
            "TimeZone": "UTC",
            "application_name": "uim test",
        }
        assert {name: await value(tx, "select current_setting(%s)", name) for name in wanted} == wanted
        assert tx.autocommit
