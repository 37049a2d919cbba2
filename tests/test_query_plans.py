"""What the queries on the log's hot paths read, on a log of 200,000 entries: by index alone, and no more than they give.

Also where it is the log of few conversations, one of which is silent: PostgreSQL then likes to look for its entries from the log's end.

PostgreSQL's own counters of the transaction say what was read; functions and prepared statements are counted like any other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from uuid import UUID, uuid4

import pytest

from tests.faults.desk import text
from uim.chat.appending import PLANS
from uim.store import conversations, cursors, epochs, history, listing, messages, receipts
from uim.store.postgres import BY_INDEX, Connection, connect

pytestmark = pytest.mark.timeout(60)

ENTRIES = 200_000
USERS = 400
GROUPS = 2_000  # so 100 entries each
FEW = 4
MEMBERS = 5
GROWING = ["messages", "receipts", "conversations", "conversation_participants", "participations", "users", "device_cursors"]
_GROUP = "md5('group' || {})::uuid"
_USER = "md5('user' || {})::uuid"



def _filling(groups: int, left: int = -1) -> str:
    """`left`: a group in which nothing was said in the log's second half."""
    group = _GROUP.format(f"case n % {groups} when {left} then ({left} + n / {ENTRIES // 2}) % {groups} else n % {groups} end")
    return f"""
    insert into users (user_id, username, password_hash)
        select {_USER.format("n")}, 'user' || n, '-' from generate_series(0, {USERS - 1}) n;
    insert into conversations (conversation_id, type, name, created_by)
        select {_GROUP.format("n")}, 'group', 'Tea', {_USER.format(0)} from generate_series(0, {groups - 1}) n;
    insert into conversation_participants (conversation_id, user_id)
        select {_GROUP.format("g")}, {_USER.format(f"(g + k) % {USERS}")}
        from generate_series(0, {groups - 1}) g, generate_series(0, {MEMBERS - 1}) k;
    insert into participations (conversation_id, user_id, joined_message_id)
        select conversation_id, user_id, 0 from conversation_participants;
    insert into messages (message_id, conversation_id, seq, sender_id, client_message_id, content_hash, content, created_at)
        select n, {group}, n,
            {_USER.format(f"(n % {groups} + n / {groups} % {MEMBERS}) % {USERS}")},
            'm' || n, '\\x00', 'hello', now() + n * interval '1 ms'
        from generate_series(1, {ENTRIES}) n;
    insert into receipts (conversation_id, user_id, kind, after, up_to, at)
        select {_GROUP.format(f"n % {groups}")}, {_USER.format(f"(n % {groups} + 1) % {USERS}")}, 'delivered',
            n - {groups}, n, now()
        from generate_series({groups} + 1, {ENTRIES}) n;
    """


# A group in which nothing but its founding was ever said, and that long ago.
_SILENT = f"""
    insert into conversations (conversation_id, type, name, created_by) values ({_GROUP.format(-1)}, 'group', 'Tea', {_USER.format(0)});
    insert into conversation_participants (conversation_id, user_id) values ({_GROUP.format(-1)}, {_USER.format(4)});
    insert into participations (conversation_id, user_id, joined_message_id) values ({_GROUP.format(-1)}, {_USER.format(4)}, 0);
    insert into messages (message_id, conversation_id, seq, sender_id, server_key, message_type, content, created_at)
        values (0, {_GROUP.format(-1)}, 1, {_USER.format(0)}, gen_random_uuid(), 'system', '', now() - interval '1 day');
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


async def fill(tx: Connection, filling: str) -> None:
    await epochs.settle(tx)
    tx.answer_within_s = 50
    await tx.execute((filling + "analyze").encode())


async def at(tx: Connection, *, user: int, group: int) -> Log:
    cursor = await tx.execute(f"select {_USER.format(user)}, {_GROUP.format(group)}")
    row = await cursor.fetchone()
    assert row is not None
    return Log(tx, row[0], row[1])


@pytest.fixture
async def pooled(database_url: str) -> AsyncIterator[Connection]:
    """As the pool's connections are."""
    async with await connect(database_url, name="test", settings=BY_INDEX) as tx:
        yield tx


async def test_every_hot_query_reads_by_index_and_little(pooled: Connection) -> None:
    await fill(pooled, _filling(GROUPS))
    log = await at(pooled, user=100, group=100)
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
            lambda tx: listing.listed(tx, user_id=alice, changed_since=None, below=None, limit=50),
            102 * own_groups,
        ),
        "a connect": (lambda tx: cursors.open_cursors(tx, [cursors.Opening(alice, "phone", None)]), 2),
        "what a skip delivers": (
            lambda tx: receipts.newest_between(tx, [(alice, ENTRIES - 500, ENTRIES)]), 2 * own_groups,
        ),
        "a receipt": (lambda tx: receipts.advance(tx, {(group, alice): (middle, middle)}), 240),
        "a verb's key": (lambda tx: messages.has_server_key(tx, uuid4()), 1),
    }  # fmt: skip
    await _check(log, reading)


@pytest.mark.parametrize("plan", ["force_custom_plan", "force_generic_plan"])
async def test_a_silent_conversation_among_few_busy_ones_is_not_looked_for_in_all_of_the_log(pooled: Connection, plan: str) -> None:
    await fill(pooled, _filling(FEW, left=3) + _SILENT)
    has_all = f"update conversation_participants set last_delivered_message_id = {ENTRIES // 2} where user_id = {_USER.format(4)}"
    await pooled.execute(has_all)
    await pooled.execute(f"set plan_cache_mode = {plan}")
    log = await at(pooled, user=4, group=-1)
    alice, silent = log.alice, log.group
    left, busy = [(await at(pooled, user=4, group=number)).group for number in (3, 2)]
    own_groups = FEW + 1
    await _check(
        log,
        {
            "history down": (lambda tx: history.entries_down(tx, user_id=alice, conversation_id=silent, below=2**40, limit=50), 1),
            "history up": (lambda tx: history.entries_up(tx, user_id=alice, conversation_id=silent, above=-1, limit=50), 1),
            "history of a busy one": (
                lambda tx: history.entries_down(tx, user_id=alice, conversation_id=busy, below=ENTRIES, limit=50), 50
            ),
            "history of one that was busy once": (
                lambda tx: history.entries_down(tx, user_id=alice, conversation_id=left, below=2**40, limit=50), 50
            ),
            "unread": (lambda tx: conversations.unread(tx, user_id=alice, conversation_ids=[silent]), 1),
            "a conversation": (lambda tx: conversations.views(tx, user_id=alice, conversation_ids=[silent]), 2),
            "a conversation in which much is unread": (
                lambda tx: conversations.views(tx, user_id=alice, conversation_ids=[busy]), 160
            ),
            "the list": (
                lambda tx: listing.listed(tx, user_id=alice, changed_since=None, below=None, limit=50), 102 * own_groups
            ),
            "a page near the head": (lambda tx: messages.page_after(tx, user_id=alice, after=ENTRIES - 500, limit=100), 600),
            "a page from the beginning": (lambda tx: messages.page_after(tx, user_id=alice, after=-1, limit=100), 8 * own_groups + 700),
            "how many are behind": (lambda tx: messages.count_after(tx, [(alice, ENTRIES - 500)], limit=10_000), 510),
            "what a skip delivers": (lambda tx: receipts.newest_between(tx, [(alice, -1, ENTRIES)]), 2 * own_groups),
            "a receipt": (lambda tx: receipts.advance(tx, {(silent, alice): (ENTRIES, ENTRIES)}), 20),
            "a receipt for nothing new": (lambda tx: receipts.advance(tx, {(left, alice): (ENTRIES, 0)}), 1),
        },
    )  # fmt: skip


@pytest.mark.parametrize("is_analyzed", [False, True])
async def test_appending_reads_by_index_even_if_its_plans_were_made_while_the_log_was_empty(
    database_url: str, is_analyzed: bool
) -> None:
    async with await connect(database_url, name="fill") as other, await connect(database_url, name="writer", settings=PLANS) as tx:
        await epochs.settle(tx)
        if is_analyzed:
            await other.execute("alter table messages set (autovacuum_enabled = false)")
            await other.execute("analyze messages")
        for size in (1, 2):
            for _ in range(8):
                await messages.append(tx, [text(uuid4(), uuid4()) for _ in range(size)])
        other.answer_within_s = 50
        await other.execute((_filling(GROUPS) + ("" if is_analyzed else "analyze")).encode())
        log = await at(tx, user=100, group=100)
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
