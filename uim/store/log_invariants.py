"""The rules of the log: its ids, its times, what stands in it, its epochs, and what is packed of it for search.

Rule: as in invariants.py: they hold in every snapshot.
"""

from __future__ import annotations

from typing import Final

from uim.store.invariants import HEAD, HORIZON, POSITION, SEARCH, Invariant, Walk, in_range, in_stay

# An entry beside the one before it in the log, and the one before it in its conversation.
_ENTRIES: Final = f"""
    beside as materialized (
        select m.message_id, m.conversation_id, m.seq, m.sender_id, m.message_type, m.created_at, m.deleted_at,
            m.client_message_id is not null and m.content_hash is not null as is_from_client, m.content <> '' as has_content,
            case when m.message_type in ('system', 'deletion') then m.metadata end as event,
            coalesce(lag(m.message_id) over log, before.message_id) as previous_id,
            coalesce(lag(m.created_at) over log, before.created_at) as previous_at, lag(m.seq) over talk as seq_in_step
        from messages m
        left join lateral (
            select b.message_id, b.created_at from messages b where b.message_id <= %(after)s order by b.message_id desc limit 1
        ) before on true
        where {in_range('m.message_id')}
        window log as (order by m.message_id), talk as (partition by m.conversation_id order by m.message_id)
    ), e as materialized (
        select b.*, coalesce(b.seq_in_step, (
                select m.seq from messages m
                where m.conversation_id = b.conversation_id and m.message_id < b.message_id order by m.message_id desc limit 1
            ), case when {HORIZON} = 0 then 0 end) as previous_seq,
            b.message_id - coalesce(b.previous_id, {HORIZON}) - 1 - case
                when b.message_id > coalesce(b.previous_id, {HORIZON}) + 1 then coalesce((
                    select sum(greatest(0, least(b.message_id, p.base) - greatest(coalesce(b.previous_id, {HORIZON}), p.after) - 1))
                    from log_epochs p), 0)
                else 0 end as missing,
            case when b.message_type = 'system' then b.event->>'event' end as kind,
            case when b.event->>'target_message_id' ~ '^[0-9]{{{{1,18}}}}$' then (b.event->>'target_message_id')::bigint end as target
        from beside b
    )""".replace("{{", "{").replace("}}", "}")

LOG: Final = Walk(
    "messages",
    "messages",
    "message_id",
    20_000,
    _ENTRIES,
    (
        Invariant(
            "ids without gaps, but for those where an epoch begins",
            "e.missing > 0",
            "concat(e.missing, ' missing between ', coalesce(e.previous_id, 0), ' and ', e.message_id)",
        ),
        Invariant(
            "no entry in an epoch's gap",
            "exists (select from log_epochs p where e.message_id > p.after and e.message_id < p.base)",
            "concat('message ', e.message_id)",
        ),
        Invariant(
            "times never decrease along the log",
            "e.created_at < e.previous_at",
            "concat('message ', e.message_id, ' is older than ', e.previous_id)",
        ),
        Invariant(
            "seq is 1, 2, 3 … in each conversation",
            "e.seq <> e.previous_seq + 1",
            "concat('message ', e.message_id, ' has seq ', e.seq, ' after ', e.previous_seq, ' in conversation ', e.conversation_id)",
        ),
        Invariant(
            "every message has its conversation",
            "not exists (select from conversations c where c.conversation_id = e.conversation_id)",
            "concat('message ', e.message_id, ' in conversation ', e.conversation_id)",
        ),
        Invariant(
            "every message has its sender",
            "not exists (select from users u where u.user_id = e.sender_id)",
            "concat('message ', e.message_id, ' of user ', e.sender_id)",
        ),
        Invariant(
            "every message was sent in a stay of its sender",
            f"not {in_stay('e.conversation_id', 'e.sender_id', 'e.message_id')}",
            "concat('message ', e.message_id, ' of user ', e.sender_id, ' in conversation ', e.conversation_id)",
        ),
        Invariant(
            "texts, and no other entries, have a client's id and a hash",
            "e.is_from_client <> (e.message_type = 'text')",
            "concat('message ', e.message_id, ', ', e.message_type)",
        ),
        Invariant(
            "what was taken back has no content",
            "e.deleted_at is not null and e.has_content",
            "concat('message ', e.message_id)",
        ),
        Invariant(
            "what was not taken back says something",
            "e.message_type = 'text' and e.deleted_at is null and not e.has_content",
            "concat('message ', e.message_id)",
        ),
        Invariant(
            "every deletion has taken back a text of its conversation",
            """e.message_type = 'deletion' and not exists (
                select from messages t where t.message_id = e.target and t.conversation_id = e.conversation_id
                    and t.message_id < e.message_id and t.message_type = 'text' and t.deleted_at is not null)
                and coalesce(e.target > """ + HORIZON + ", true)",
            "concat('message ', e.message_id, ' of ', coalesce(e.target::text, 'nothing'))",
        ),
        Invariant(
            "who was added to a group is in it from there, or was before",
            """e.kind = 'participant_added' and not exists (
                select from participations s where s.conversation_id = e.conversation_id and s.user_id::text = e.event->>'user_id'
                    and s.joined_message_id <= e.message_id)""",
            "concat('message ', e.message_id, ' of user ', e.event->>'user_id', ' in conversation ', e.conversation_id)",
        ),
        Invariant(
            "who left a group, or was removed, was in it up to there",
            """e.kind in ('participant_left', 'participant_removed') and not exists (
                select from participations s where s.conversation_id = e.conversation_id and s.user_id::text = e.event->>'user_id'
                    and s.left_message_id = e.message_id)""",
            "concat('message ', e.message_id, ' of user ', e.event->>'user_id', ' in conversation ', e.conversation_id)",
        ),
    ),
)

# Whatever asks one of these rows for something would find nothing wrong where the row itself is missing.
RECORDS: Final = Walk(
    "releases of the schema",
    "schema_migrations",
    "version",
    1_000_000,
    f"""e as materialized (
        select (select count(*) from log_identity) as identities, (select count(*) from search_position) as positions,
            (select count(*) from log_epochs) as epochs, {HEAD} as head
    )""",
    (
        Invariant(
            "the log says who it is, in which epoch, and how far it is packed",
            "e.identities <> 1 or e.positions <> 1 or e.epochs = 0 and e.head > 0",
            "concat('rows: ', e.identities, ' in log_identity, ', e.epochs, ' in log_epochs, ', e.positions, ' in search_position')",
        ),
    ),
)

EPOCHS: Final = Walk(
    "epochs",
    "log_epochs",
    "epoch",
    1_000,
    f"""e as materialized (
        select p.*, lag(p.base) over (order by p.epoch) as previous_base, {HEAD} as head, {HORIZON} as horizon,
            position.message_id as packed, position.horizon as packed_horizon
        from log_epochs p, search_position position
    )""",
    (
        Invariant(
            "epochs begin one above the other",
            "e.base <= e.after or e.after < e.previous_base - 1",
            "concat('epoch ', e.epoch, ' begins at ', e.base, ' after ', e.after)",
        ),
        Invariant(
            "what is said to be removed by age is below the head",
            "e.horizon > e.head",
            "concat('horizon ', e.horizon, ', head ', e.head)",
        ),
        Invariant(
            "the log is not packed further than it goes",
            "e.packed > e.head or e.packed_horizon > e.packed",
            "concat('packed up to ', e.packed, ', too old up to ', e.packed_horizon, ', head ', e.head)",
            SEARCH,
        ),
    ),
)

SENDERS: Final = Walk(
    "client ids",
    "users",
    "user_id",
    10_000,
    f"""e as materialized (
        select m.sender_id, m.client_message_id, count(*) as copies, min(m.message_id) as first, max(m.message_id) as last
        from messages m where {in_range('m.sender_id')} and m.client_message_id is not null
        group by m.sender_id, m.client_message_id having count(*) > 1
    )""",
    (
        Invariant(
            "one message under one client id",
            "true",
            "concat(e.copies, ' messages of user ', e.sender_id, ' under one client id, ', e.first, ' to ', e.last)",
        ),
    ),
)

BLOCKS: Final = Walk(
    "search blocks",
    "search_blocks",
    "conversation_id",
    2_000,
    f"""e as materialized (
        select b.conversation_id, b.first_message_id, b.last_message_id, b.last_seq, b.message_ids, m.seq, {POSITION} as packed,
            b.last_seq - cardinality(b.message_ids) as before_seq, b.newest_at, m.created_at,
            lag(b.last_seq) over (partition by b.conversation_id order by b.last_message_id) as previous_seq
        from search_blocks b
        left join messages m on m.message_id = b.last_message_id and m.conversation_id = b.conversation_id
        where {in_range('b.conversation_id')}
    )""",
    (
        Invariant(
            "every search block is a run of its conversation",
            """e.message_ids[1] is distinct from e.first_message_id
                or e.message_ids[cardinality(e.message_ids)] is distinct from e.last_message_id
                or e.seq is distinct from e.last_seq or e.before_seq < 0 or e.last_message_id > e.packed
                or e.previous_seq <> e.before_seq or e.newest_at <> e.created_at""",
            "concat('conversation ', e.conversation_id, ', block ', e.first_message_id, ' to ', e.last_message_id)",
            SEARCH,
        ),
    ),
)
