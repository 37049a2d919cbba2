"""`verify`: how long `uim verify` takes for a log of a million messages, and how much memory.

The log is made whole by a few statements, as real use would have left it: groups of four with their members, texts, receipts,
watermarks, cursors; then it is packed for search as the server packs it. Rule: a figure counts only if nothing wrong was found.
"""

from __future__ import annotations

import resource
import time
from typing import Final

import psycopg
import trio

from uim.chat import indexer, verification
from uim.store import epochs
from uim.store.postgres import connect

GROUPS: Final = 1_000
USERS: Final = 2_000
RECEIPTS_A_SEAT: Final = 50

# The id of a user or group is its number, so that every statement knows it.
_SEED: Final = (
    "create function pg_temp.user_of(n bigint) returns uuid language sql as $$ select ('1' || lpad(to_hex(n), 31, '0'))::uuid $$",
    "create function pg_temp.group_of(n bigint) returns uuid language sql as $$ select ('2' || lpad(to_hex(n), 31, '0'))::uuid $$",
    """insert into users (user_id, username, password_hash)
        select pg_temp.user_of(n), 'load_' || n, '' from generate_series(1, {users}) n""",
    "insert into conversations (conversation_id, type, created_by) select gen_random_uuid(), 'self', user_id from users",
    "insert into conversation_participants (conversation_id, user_id) select conversation_id, created_by from conversations",
    """insert into participations (conversation_id, user_id, joined_message_id)
        select conversation_id, created_by, 0 from conversations""",
    """insert into conversations (conversation_id, type, name, created_by)
        select pg_temp.group_of(g), 'group', 'load', pg_temp.user_of(1 + g % {users}) from generate_series(1, {groups}) g""",
    """insert into conversation_participants (conversation_id, user_id, role)
        select pg_temp.group_of(g), pg_temp.user_of(1 + (g + k * 7) % {users}), case k when 0 then 'owner' else 'member' end
        from generate_series(1, {groups}) g, generate_series(0, 3) k""",
    """insert into participations (conversation_id, user_id, joined_message_id)
        select pg_temp.group_of(g), pg_temp.user_of(1 + (g + k * 7) % {users}), g
        from generate_series(1, {groups}) g, generate_series(0, 3) k""",
    """insert into messages (message_id, conversation_id, seq, sender_id, server_key, content, message_type, metadata, created_at)
        select g, pg_temp.group_of(g), 1, pg_temp.user_of(1 + g % {users}), gen_random_uuid(), '', 'system',
            '{{"event": "created"}}', now() - interval '25 days' from generate_series(1, {groups}) g""",
    """insert into messages (message_id, conversation_id, seq, sender_id, client_message_id, content_hash, content, created_at)
        select n, pg_temp.group_of(1 + (n - 1) % {groups}), 1 + (n - 1) / {groups},
            pg_temp.user_of(1 + (1 + (n - 1) % {groups} + (n / {groups} % 4) * 7) % {users}), 'c' || n, '\\x00',
            md5(n::text) || ' ' || md5((n * 7)::text) || ' and so on', now() - interval '25 days' + n * interval '1 second'
        from generate_series({groups} + 1, {messages}) n""",
    """insert into receipts (conversation_id, user_id, kind, after, up_to, at)
        select p.conversation_id, p.user_id, 'delivered', p.joined_message_id + (r - 1) * {groups}::bigint,
            p.joined_message_id + r * {groups}::bigint, now()
        from participations p, generate_series(1, least({receipts}, {messages} / {groups} - 1)) r where p.joined_message_id > 0""",
    """update conversation_participants p set last_delivered_message_id = r.up_to, last_delivered_at = now()
        from (select conversation_id, user_id, max(up_to) as up_to from receipts group by 1, 2) r
        where p.conversation_id = r.conversation_id and p.user_id = r.user_id""",
    """insert into device_cursors (user_id, device_id, last_synced_message_id)
        select user_id, 'phone', {messages} from users""",
)


def seed(database_url: str, *, messages: int) -> None:
    """Write the log. Takes about a minute for a million."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        for statement in _SEED:
            text = statement.format(users=USERS, groups=GROUPS, messages=messages, receipts=RECEIPTS_A_SEAT)
            connection.execute(text.encode())
        connection.execute("vacuum analyze")


def measure(database_url: str, *, messages: int) -> dict[str, float]:
    """Seed, pack, verify: seconds, messages a second, own processor time and memory."""
    seed(database_url, messages=messages)
    return trio.run(_measure, database_url, messages)


async def _measure(database_url: str, messages: int) -> dict[str, float]:
    async with await connect(database_url, name="load") as tx:
        # As a server does at its start, for a log without an epoch is wrong.
        await epochs.settle(tx)
        while await indexer.step(tx):
            await trio.lowlevel.checkpoint()
        await tx.execute("vacuum analyze search_blocks")
    before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began_at, processor_at = time.perf_counter(), time.process_time()
    report = await verification.verify(database_url)
    took_s = time.perf_counter() - began_at
    wrong = [finding.invariant.name for finding in report.findings if finding.number]
    if wrong:
        raise AssertionError(f"found what is not wrong: {wrong}")
    return {
        "seconds": took_s,
        "messages_per_s": messages / took_s,
        "own_processor_s": time.process_time() - processor_at,
        "more_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before_mb,
    }
