"""The log's laws in SQL: numbers without gaps in commit order, one lock before every read, epochs, watermarks.

Rule: what a law forbids is tried for real: several connections at once, transactions that are rolled back, a time that goes back.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from uuid import UUID, uuid4

import psycopg
import pytest
import trio

from tests.faults.desk import text
from uim.model.message import Draft
from uim.store import epochs, messages, receipts
from uim.store.epochs import STEP, Epoch, Seen
from uim.store.postgres import Connection, connect
from uim.store.receipts import Advance

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
async def tx(database_url: str) -> AsyncIterator[Connection]:
    """A connection to a log whose first epoch has begun."""
    async with await connect(database_url, name="test") as connection:
        await epochs.settle(connection)
        yield connection


async def add_user(tx: Connection, name: str) -> UUID:
    user_id = uuid4()
    await tx.execute("insert into users (user_id, username, password_hash) values (%s, %s, '-')", (user_id, name))
    return user_id


async def add_group(tx: Connection, *members: UUID) -> UUID:
    """A group that its members have been in from before the log's beginning."""
    group = uuid4()
    await tx.execute(
        "insert into conversations (conversation_id, type, name, created_by) values (%s, 'group', 'Tea', %s)", (group, members[0])
    )
    for member in members:
        await tx.execute("insert into conversation_participants (conversation_id, user_id) values (%s, %s)", (group, member))
        await tx.execute(
            "insert into participations (conversation_id, user_id, joined_message_id) values (%s, %s, 0)", (group, member)
        )
    return group


async def say(tx: Connection, group: UUID, sender: UUID, count: int = 1) -> list[int]:
    """Append texts; their ids."""
    outcomes = await messages.append(tx, [text(group, sender) for _ in range(count)])
    return [outcome.message_id or 0 for outcome in outcomes]


async def rows(tx: Connection, query: str, *values: object) -> list[tuple[object, ...]]:
    return await (await tx.execute(query, values)).fetchall()


async def until_waiting_for_the_lock(tx: Connection, count: int = 1) -> None:
    with trio.fail_after(5):
        while await rows(tx, "select from pg_locks where locktype = 'advisory' and not granted offset %s", count - 1) == []:
            await trio.sleep(0.002)


# --- numbers ---


async def append_and_abort(database_url: str, seed: int, senders: Sequence[UUID], groups: Sequence[UUID]) -> None:
    """Batches, own entries and transactions that come to nothing, in a random order."""
    chance = random.Random(seed)
    async with await connect(database_url, name=f"writer {seed}") as tx:
        for _ in range(40):
            batch = [text(chance.choice(groups), chance.choice(senders)) for _ in range(chance.randint(1, 5))]
            kind = chance.choice(["batch", "own", "abort"])
            if kind == "batch":
                await messages.append(tx, batch)
                continue
            async with tx.transaction(force_rollback=kind == "abort"):
                await messages.append_own(
                    tx,
                    conversation_id=batch[0].conversation_id,
                    sender_id=batch[0].sender_id,
                    server_key=uuid4(),
                    message_type="system",
                    metadata='{"event":"renamed"}',
                )


async def test_ids_and_seqs_have_no_gaps_and_times_go_forward_under_four_writers(tx: Connection, database_url: str) -> None:
    senders = [await add_user(tx, f"user{n}") for n in range(4)]
    groups = [await add_group(tx, *senders) for _ in range(3)]
    async with trio.open_nursery() as nursery:
        for seed in range(4):
            nursery.start_soon(append_and_abort, database_url, seed, senders, groups)
    found = await rows(tx, "select message_id, conversation_id, seq, created_at from messages order by message_id")
    assert [row[0] for row in found] == list(range(1, len(found) + 1))
    assert len(found) > 200
    for group in groups:
        seqs = [row[2] for row in found if row[1] == group]
        assert seqs == list(range(1, len(seqs) + 1))
    times = [row[3] for row in found]
    assert times == sorted(times, key=str)


async def test_ids_follow_the_commits(tx: Connection, database_url: str) -> None:
    """Whoever reads up to a number has all below it: a later number is not committed while an earlier one may still come."""
    alice = await add_user(tx, "alice")
    group = await add_group(tx, alice)
    async with await connect(database_url, name="first") as first, trio.open_nursery() as nursery, first.transaction():
        assert await say(first, group, alice) == [1]
        nursery.start_soon(say, tx, group, alice)
        async with await connect(database_url, name="look") as look:
            await until_waiting_for_the_lock(look)
            assert await messages.head(look) == 0, "the second waits for the first"
    assert await messages.head(tx) == 2


async def test_created_at_never_goes_back_even_if_the_clock_does(tx: Connection) -> None:
    alice = await add_user(tx, "alice")
    group = await add_group(tx, alice)
    await say(tx, group, alice)
    ahead = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    await tx.execute("update messages set created_at = %s", (ahead,))
    (outcome,) = await messages.append(tx, [text(group, alice)])
    assert outcome.created_at == ahead
    own = await messages.append_own(
        tx, conversation_id=group, sender_id=alice, server_key=uuid4(), message_type="system", metadata="{}"
    )
    assert own.created_at == ahead


async def strange_drafts(tx: Connection, chance: random.Random) -> list[Draft]:
    """Texts of every fate in a random order, some twice, some under a key that another has."""
    ann, ben, cem, dov, eve, fay = users = [await add_user(tx, f"user{n}") for n in range(6)]
    group, closed = await add_group(tx, ann, ben), await add_group(tx, ann, ben)
    await tx.execute("update conversations set deleted_at = now() where conversation_id = %s", (closed,))
    await tx.execute("update users set deleted_at = now() where user_id = any(%s)", ([eve, fay],))
    await tx.execute("insert into blocks (user_id, blocked_id) values (%s, %s)", (ann, dov))
    pairs = [await add_pair(tx, ann, other) for other in (ben, dov, eve)] + [await add_pair(tx, fay, ben), await add_pair(tx, cem, cem)]
    said = [text(group, ann), text(pairs[0], ben)]
    await messages.append(tx, said)
    drafts = [text(place, user) for place in (group, closed, *pairs, uuid4()) for user in users]
    drafts += [*said, replace(said[0], content="other")]
    chance.shuffle(drafts)
    for first in chance.sample(drafts, 20):
        # Elsewhere only where its sender may write: of what is refused anyway a batch tells the refusal, and one by one the conflict.
        is_free = first.sender_id in (ann, ben) and first.conversation_id in (group, pairs[0])
        elsewhere = chance.choice([group, pairs[0]]) if is_free else first.conversation_id
        again = replace(first, conversation_id=elsewhere, content=chance.choice(["hello", "other"]))
        drafts.insert(chance.randrange(len(drafts) + 1), again)
    return drafts


async def add_pair(tx: Connection, one: UUID, other: UUID) -> UUID:
    """The one-on-one of two users; a user's own notes if they are one and the same."""
    pair = uuid4()
    kind, both = ("self", None) if one == other else ("one_on_one", sorted([one, other]))
    await tx.execute(
        "insert into conversations (conversation_id, type, created_by, pair) values (%s, %s, %s, %s)", (pair, kind, one, both)
    )
    for user in {one, other}:
        await tx.execute("insert into conversation_participants (conversation_id, user_id) values (%s, %s)", (pair, user))
    return pair


@pytest.mark.parametrize("seed", range(4))
async def test_a_batch_says_of_each_text_what_is_said_when_it_comes_alone(tx: Connection, seed: int) -> None:
    drafts = await strange_drafts(tx, random.Random(seed))
    log = "select message_id, conversation_id, seq, sender_id, client_message_id, content, content_hash from messages order by 1"
    async with tx.transaction(force_rollback=True):
        together = [(o.verdict, o.message_id, o.seq) for o in await messages.append(tx, drafts)]
        log_together = await rows(tx, log)
    alone = [(o.verdict, o.message_id, o.seq) for draft in drafts for o in await messages.append(tx, [draft])]
    assert together == alone
    assert await rows(tx, log) == log_together
    assert {verdict for verdict, *_ in alone} == {"inserted", "duplicate", "conflict", "not_found", "forbidden", "blocked"}


# --- the lock is a statement of its own ---

# What log_append would be as one statement: its snapshot is taken before it waits for the lock.
ONE_STATEMENT = """
    insert into messages (message_id, conversation_id, seq, sender_id, client_message_id, content, created_at)
    select coalesce((select message_id from messages order by message_id desc limit 1), 0) + 1, %(group)s,
        coalesce((select seq from messages where conversation_id = %(group)s order by seq desc limit 1), 0) + 1,
        %(sender)s, %(client_id)s::text, 'hello', clock_timestamp()
    from (select log_lock() offset 0) locked
    where not exists (select from messages where sender_id = %(sender)s and client_message_id = %(client_id)s::text)"""


async def append_in_one_statement(tx: Connection, draft: Draft) -> str:
    values = {"group": draft.conversation_id, "sender": draft.sender_id, "client_id": draft.client_message_id}
    cursor = await tx.execute(ONE_STATEMENT, values)
    return "inserted" if cursor.rowcount else "duplicate"


async def append_by_function(tx: Connection, draft: Draft) -> str:
    (outcome,) = await messages.append(tx, [draft])
    return outcome.verdict


@pytest.mark.parametrize("is_repeat", [True, False])
async def test_who_has_waited_for_the_lock_sees_what_was_appended_meanwhile(
    tx: Connection, database_url: str, is_repeat: bool
) -> None:
    alice = await add_user(tx, "alice")
    group = await add_group(tx, alice)
    outcomes: list[str] = []

    async def second(append: object, draft: Draft) -> None:
        async with await connect(database_url, name="second") as other:
            try:
                outcomes.append(await (append_by_function if append == "function" else append_in_one_statement)(other, draft))
            except psycopg.errors.UniqueViolation:
                outcomes.append("violation")

    for way in ("function", "one statement"):
        draft = text(group, alice, f"{way} 1")
        async with trio.open_nursery() as nursery, tx.transaction():
            assert await append_by_function(tx, draft) == "inserted"
            nursery.start_soon(second, way, draft if is_repeat else text(group, alice, f"{way} 2"))
            async with await connect(database_url, name="look") as look:
                await until_waiting_for_the_lock(look)
    assert outcomes == ["duplicate" if is_repeat else "inserted", "violation"], "the second is the hole that the rule closes"


# --- cost ---


async def test_no_row_is_updated_per_append(tx: Connection) -> None:
    """A row that every append updates would pile up dead versions under a long snapshot."""
    alice, bob = await add_user(tx, "alice"), await add_user(tx, "bob")
    group = await add_group(tx, alice, bob)
    counters = "select relname, n_tup_upd + n_tup_del, n_dead_tup from pg_stat_user_tables order by relname"
    await tx.execute("select pg_stat_force_next_flush()")
    before = await rows(tx, counters)
    for number in range(1_000):
        await messages.append(tx, [text(group, (alice, bob)[number % 2])])
    await tx.execute("select pg_stat_force_next_flush()")
    assert await rows(tx, "select n_tup_ins from pg_stat_user_tables where relname = 'messages'") == [(1_000,)]
    assert await rows(tx, counters) == before


# --- epochs ---


async def test_the_first_epoch_begins_at_one(database_url: str) -> None:
    async with await connect(database_url, name="test") as tx:
        with pytest.raises(psycopg.errors.RaiseException, match="no epoch"):
            await messages.append(tx, [text(uuid4(), uuid4())])
        assert await epochs.settle(tx) == await epochs.settle(tx) == Epoch(1, 1, 0)


async def test_after_a_restore_or_failover_no_number_is_used_again(tx: Connection) -> None:
    alice = await add_user(tx, "alice")
    group = await add_group(tx, alice)
    assert await say(tx, group, alice, 3) == [1, 2, 3]
    for number, changed in enumerate(("timeline = timeline - 1", "system_identifier = 7", "tables = '1/1'"), start=2):
        head = await messages.head(tx)
        await tx.execute(f"update log_epochs set {changed}")
        epoch = await epochs.settle(tx)
        assert (epoch.number, epoch.after) == (number, head) and epoch.base >= head + STEP
        assert await epochs.settle(tx) == await epochs.latest(tx) == epoch
        assert await say(tx, group, alice, 2) == [epoch.base, epoch.base + 1]
    assert await rows(tx, "select seq from messages order by seq") == [(n,) for n in range(1, 10)]


async def test_two_restores_do_not_share_numbers_even_if_nobody_remembers_the_first(tx: Connection) -> None:
    alice = await add_user(tx, "alice")
    group = await add_group(tx, alice)
    assert await say(tx, group, alice, 3) == [1, 2, 3]
    used: list[int] = []
    for _ in range(2):
        # As in the dump: one epoch, three entries.
        await tx.execute("delete from messages where message_id > 3")
        await tx.execute("delete from log_epochs where epoch > 1")
        await tx.execute("update log_epochs set system_identifier = 7")
        last = await epochs.settle(tx)
        assert (last.number, last.after, last.lost) == (2, 3, ((3, last.base),))
        used += await say(tx, group, alice, 500)
        # No restore is quicker: by then the clock is past the numbers that were used.
        await tx.execute("select pg_sleep(0.01)")
    assert len(set(used)) == 1_000 and max(used) < 2**53


async def test_of_every_lost_stretch_clients_are_told(tx: Connection) -> None:
    alice = await add_user(tx, "alice")
    group = await add_group(tx, alice)
    told: list[tuple[int, int]] = []
    for _ in range(3):
        head = (await say(tx, group, alice, 2))[-1]
        await tx.execute("update log_epochs set timeline = timeline + 1")
        epoch = await epochs.settle(tx)
        told.insert(0, (head, epoch.base))
    assert list(epoch.lost) == told


async def test_epochs_in_which_nothing_was_said_are_one_stretch(tx: Connection) -> None:
    alice = await add_user(tx, "alice")
    group = await add_group(tx, alice)
    assert await say(tx, group, alice, 3) == [1, 2, 3]
    for _ in range(3):
        await tx.execute("update log_epochs set timeline = timeline + 1")
        epoch = await epochs.settle(tx)
    assert [after for after, _ in epoch.lost] == [*(base - 1 for _, base in epoch.lost[1:]), 3]
    assert epoch.empty_above == 3 and await say(tx, group, alice) == [epoch.base]


async def test_a_log_that_ends_below_what_has_been_seen_of_it_begins_anew(tx: Connection) -> None:
    alice = await add_user(tx, "alice")
    group = await add_group(tx, alice)
    assert await say(tx, group, alice, 3) == [1, 2, 3]
    assert (await epochs.settle(tx, Seen(1, 3))).number == 1
    far = 2**50
    epoch = await epochs.settle(tx, Seen(4, far))
    assert (epoch.number, epoch.after) == (5, 3) and epoch.base >= far + STEP
    assert await epochs.settle(tx, Seen(5, epoch.base - 1)) == epoch


async def test_a_row_of_an_earlier_release_is_filled_in(tx: Connection) -> None:
    await tx.execute("update log_epochs set tables = null")
    assert (await epochs.settle(tx)).number == 1
    assert await rows(tx, "select count(*) from log_epochs where tables is null") == [(0,)]


async def test_a_log_that_lost_its_epochs_table_does_not_begin_anew(tx: Connection) -> None:
    alice = await add_user(tx, "alice")
    await say(tx, await add_group(tx, alice), alice, 4)
    await tx.execute("delete from log_epochs")
    epoch = await epochs.settle(tx)
    assert (epoch.number, epoch.after) == (1, 4) and epoch.base >= 4 + STEP


# --- watermarks ---


def short(advances: list[Advance]) -> list[tuple[str, int, int, int]]:
    """(kind, after, up to, how many senders are told)."""
    return sorted((a.kind, a.after, a.up_to, len(a.senders)) for a in advances)


async def test_watermarks_move_forward_only_and_to_entries_of_their_conversation(tx: Connection) -> None:
    alice, bob = await add_user(tx, "alice"), await add_user(tx, "bob")
    tea, coffee = await add_group(tx, alice, bob), await add_group(tx, alice, bob)
    advance = partial(receipts.advance, tx)
    await say(tx, tea, alice, 3)
    await say(tx, coffee, alice, 2)
    assert short(await advance({(tea, bob): (2, 0)})) == [("delivered", 0, 2, 1)]
    assert short(await advance({(tea, bob): (1, 0)})) == [], "not back"
    assert short(await advance({(tea, bob): (2, 0)})) == [], "not twice"
    assert short(await advance({(tea, bob): (9_999, 0)})) == [("delivered", 2, 3, 1)], "clamped to its newest entry"
    assert short(await advance({(coffee, bob): (3, 0)})) == [], "its first entry is above"
    assert short(await advance({(coffee, bob): (0, 5)})) == [("delivered", 0, 5, 1), ("read", 0, 5, 1)], "a read delivers"
    assert short(await advance({(tea, bob): (0, 1), (coffee, bob): (5, 5)})) == [("read", 0, 1, 1)]
    assert short(await advance({(tea, alice): (3, 3)})) == [("delivered", 0, 3, 0), ("read", 0, 3, 0)], "nobody waits for those"
    assert await advance({(uuid4(), bob): (5, 5), (tea, uuid4()): (5, 5)}) == []
    assert await advance({}) == []


async def test_newest_in_stays_keeps_to_the_stays(tx: Connection) -> None:
    alice, bob = await add_user(tx, "alice"), await add_user(tx, "bob")
    group = await add_group(tx, alice, bob)
    await say(tx, group, alice, 10)
    await tx.execute("delete from participations where user_id = %s", (bob,))
    stays: list[tuple[int, int | None]] = [(2, 3), (6, 6), (8, None)]
    for joined, left in stays:
        await tx.execute("insert into participations values (%s, %s, %s, %s)", (group, bob, joined, left))
    found = [(await rows(tx, "select newest_in_stays(%s, %s, %s)", group, bob, at))[0][0] for at in range(13)]
    assert found == [None, None, 2, 3, 3, 3, 6, 6, 8, 9, 10, 10, 10]
    assert short(await receipts.advance(tx, {(group, bob): (7, 0)})) == [("delivered", 1, 3, 1), ("delivered", 5, 6, 1)]
    assert short(await receipts.advance(tx, {(group, bob): (99, 0)})) == [("delivered", 7, 10, 1)]
    intervals = await rows(tx, "select after, up_to from receipts where kind = 'delivered' order by after")
    assert all(earlier[1] <= later[0] for earlier, later in pairwise(intervals)), "they lie end to end"  # type: ignore[operator]


async def test_receipts_given_in_any_order_do_not_lock_each_other_out(tx: Connection, database_url: str) -> None:
    """Two devices' batches, or two processes': the rows are locked sorted, or each could wait for the other."""
    alice, bob = await add_user(tx, "alice"), await add_user(tx, "bob")
    groups = [await add_group(tx, alice, bob) for _ in range(30)]
    for _ in range(20):
        await messages.append(tx, [text(group, alice) for group in groups])

    # Row by row in the order given, as on a large table.
    plans = {"enable_hashjoin": "off", "enable_mergejoin": "off", "enable_seqscan": "off"}

    async def advance(order: list[UUID]) -> None:
        async with await connect(database_url, name="receipts", settings=plans) as other:
            for mark in range(1, 601, 15):
                await receipts.advance(other, {(group, user): (mark, mark) for group in order for user in (alice, bob)})

    async with trio.open_nursery() as nursery:
        for turn in range(4):
            nursery.start_soon(advance, groups[:: -1 if turn % 2 else 1])
