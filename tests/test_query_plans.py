"""What the queries on the log's hot paths read, on a log of 200,000 entries: by index alone, and no more than they give.

PostgreSQL's own counters of the transaction say what was read; functions and prepared statements are counted like any other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from uuid import UUID, uuid4

import pytest

from tests.faults.desk import text
from uim.chat.appending import PLANS
from uim.store import conversations, cursors, epochs, history, messages, receipts
from uim.store.postgres import BY_INDEX, Connection, connect

pytestmark = pytest.mark.timeout(60)

ENTRIES = 200_000
USERS = 400
GROUPS = 2_000  # so 100 entries each
MEMBERS = 5
GROWING = ["messages", "receipts", "conversations", "conversation_participants", "participations", "users", "device_cursors"]
_GROUP = "md5('group' || {})::uuid"
_USER = "md5('user' || {})::uuid"

_FILL = f"""
    insert into users (user_id, username, password_hash)
        select {_USER.format("n")}, 'user' || n, '-' from generate_series(0, {USERS - 1}) n;
    insert into conversations (conversation_id, type, name, created_by)
        select {_GROUP.format("n")}, 'group', 'Tea', {_USER.format(0)} from generate_series(0, {GROUPS - 1}) n;
    insert into conversation_participants (conversation_id, user_id)
        select {_GROUP.format("g")}, {_USER.format(f"(g + k) % {USERS}")}
        from generate_series(0, {GROUPS - 1}) g, generate_series(0, {MEMBERS - 1}) k;
    insert into participations (conversation_id, user_id, joined_message_id)
        select conversation_id, user_id, 0 from conversation_participants;
    insert into messages (message_id, conversation_id, seq, sender_id, client_message_id, content_hash, content, created_at)
        select n, {_GROUP.format(f"n % {GROUPS}")}, n / {GROUPS} + 1,
            {_USER.format(f"(n % {GROUPS} + n / {GROUPS} % {MEMBERS}) % {USERS}")},
            'm' || n, '\\x00', 'hello', now() + n * interval '1 ms'
        from generate_series(1, {ENTRIES}) n;
    insert into receipts (conversation_id, user_id, kind, after, up_to, at)
        select {_GROUP.format(f"n % {GROUPS}")}, {_USER.format(f"(n % {GROUPS} + 1) % {USERS}")}, 'delivered',
            n - {GROUPS}, n, now()
        from generate_series({GROUPS} + 1, {ENTRIES}) n;
    analyze;
"""


@dataclass(frozen=True)
class Log:
    tx: Connection
    alice: UUID
    group: UUID

    async def reads(self, act: Callable[[Connection], Awaitable[object]]) -> tuple[int, int, int]:
        """Sequential scans of what grows; of messages index scans, and rows fetched."""
        async with self.tx.transaction(force_rollback=True):
            before = await self._counters()
            await act(self.tx)
            after = await self._counters()
        return after[0] - before[0], after[1] - before[1], after[2] - before[2]

    async def _counters(self) -> tuple[int, int, int]:
        cursor = await self.tx.execute(
            """select sum(seq_scan)::integer, sum(idx_scan) filter (where relname = 'messages'),
                    sum(seq_tup_read + idx_tup_fetch) filter (where relname = 'messages')
                from pg_stat_xact_user_tables where relname = any(%s)""",
            (GROWING,),
        )
        row = await cursor.fetchone()
        assert row is not None
        return row[0], row[1], row[2]


async def fill(tx: Connection) -> None:
    await epochs.settle(tx)
    tx.answer_within_s = 50
    await tx.execute(_FILL.encode())


@pytest.fixture
async def log(database_url: str) -> AsyncIterator[Log]:
    """As the pool's connections are; the plans are made while the log is large."""
    async with await connect(database_url, name="test", settings=BY_INDEX) as tx:
        await fill(tx)
        cursor = await tx.execute(f"select {_USER.format(100)}, {_GROUP.format(100)}")
        row = await cursor.fetchone()
        assert row is not None
        yield Log(tx, row[0], row[1])


async def test_every_hot_query_reads_by_index_and_little(log: Log, database_url: str) -> None:
    alice, group = log.alice, log.group
    own_groups = GROUPS * MEMBERS // USERS
    middle = ENTRIES // 2
    reading: dict[str, tuple[Callable[[Connection], Awaitable[object]], int]] = {
        "head": (messages.head, 1),
        "a page near the head": (lambda tx: messages.page_after(tx, user_id=alice, after=ENTRIES - 500, limit=100), 400),
        # Of each conversation a few ids are looked at: that is the price of one cursor for all of them.
        "a page from the beginning": (lambda tx: messages.page_after(tx, user_id=alice, after=0, limit=100), 8 * own_groups + 300),
        "how many are behind": (lambda tx: messages.count_after(tx, [(alice, ENTRIES - 500)], limit=10_000), 60),
        "how many are far behind": (lambda tx: messages.count_after(tx, [(alice, 0)], limit=10_000), 101 * own_groups),
        "the tailer's read": (lambda tx: messages.entries_after(tx, ENTRIES - 10, 1_000), 20),
        "history down": (lambda tx: history.entries_down(tx, user_id=alice, conversation_id=group, below=middle, limit=50), 50),
        "history up": (lambda tx: history.entries_up(tx, user_id=alice, conversation_id=group, above=middle, limit=50), 50),
        "one entry": (lambda tx: history.entry(tx, user_id=alice, conversation_id=group, message_id=100 + middle), 1),
        "unread": (lambda tx: conversations.unread(tx, user_id=alice, conversation_ids=[group]), 110),
        "a conversation": (lambda tx: conversations.views(tx, user_id=alice, conversation_ids=[group]), 120),
        "the list": (
            lambda tx: conversations.listed(tx, user_id=alice, changed_since=None, below=None, limit=50),
            2 * own_groups,
        ),
        "a connect": (lambda tx: cursors.open_cursors(tx, [cursors.Opening(alice, "phone", None)]), 2),
        "what a skip delivers": (
            lambda tx: receipts.newest_between(tx, [(alice, ENTRIES - 500, ENTRIES)]), 2 * own_groups,
        ),
        "a receipt": (lambda tx: receipts.advance(tx, {(group, alice): (middle, middle)}), 240),
        "a verb's key": (lambda tx: messages.has_server_key(tx, uuid4()), 1),
    }  # fmt: skip
    await _check(log, reading)


async def test_appending_reads_by_index_even_if_its_plans_were_made_while_the_log_was_empty(database_url: str) -> None:
    async with await connect(database_url, name="writer", settings=PLANS) as tx:
        await epochs.settle(tx)
        for _ in range(8):
            await messages.append(tx, [text(uuid4(), uuid4())])
        async with await connect(database_url, name="fill") as other:
            await fill(other)
        cursor = await tx.execute(f"select {_USER.format(100)}, {_GROUP.format(100)}")
        row = await cursor.fetchone()
        assert row is not None
        log = Log(tx, row[0], row[1])
        batch = [text(log.group, log.alice) for _ in range(64)]

        async def own(tx: Connection) -> None:
            await messages.append_own(
                tx, conversation_id=log.group, sender_id=log.alice, server_key=uuid4(), message_type="system", metadata="{}"
            )

        await _check(
            log,
            {
                "one text": (lambda tx: messages.append(tx, batch[:1]), 3),
                "64 texts": (lambda tx: messages.append(tx, batch), 3 * 64),
                "an own entry": (own, 3),
            },
        )


async def _check(log: Log, reading: dict[str, tuple[Callable[[Connection], Awaitable[object]], int]]) -> None:
    faults = []
    for what, (act, most) in reading.items():
        await log.reads(act)  # the first read also sets hint bits and plans
        scans, index_scans, fetched = await log.reads(act)
        if scans or not index_scans or fetched > most:
            faults.append(f"{what}: {scans} sequential scans, {index_scans} index scans, {fetched} rows (most {most})")
    assert not faults, "\n".join(faults)
