"""The statements that make a year of talk, in their order. archive.py runs them; `{name}` is filled in there.

Everything is drawn by hashing numbers, so a statement needs no state, PostgreSQL may run it in parallel, and the same numbers give the
same database. What is needed on the way stands in the schema `seeding`, which goes at the end. Rule: what comes out is what real use
would have left: `uim verify` finds nothing.
"""

from __future__ import annotations

from typing import Final

# `chance`: [0, 1) by a number and a salt, always the same.
FUNCTIONS: Final = (
    "drop schema if exists seeding cascade",
    "create schema seeding",
    """create function seeding.chance(n bigint, salt integer) returns float8 language sql immutable parallel safe as
        $$ select (hashint8extended(n, salt) & 4503599627370495)::float8 / 4503599627370496 $$""",
    "create function seeding.user_of(n bigint) returns uuid language sql immutable parallel safe as $$ select md5('user' || n)::uuid $$",
)

PEOPLE: Final = (
    """insert into users (user_id, username, email, password_hash, display_name, created_at, updated_at)
        select seeding.user_of(u), 'year_' || u, 'year_' || u || '@example.com', '{password_hash}', 'Person ' || u,
            now() - interval '{days} days', now() - interval '{days} days'
        from generate_series(0, {users} - 1) u""",
    """insert into conversations (conversation_id, type, created_by, created_at, updated_at)
        select md5('self' || u)::uuid, 'self', seeding.user_of(u), now() - interval '{days} days', now() - interval '{days} days'
        from generate_series(0, {users} - 1) u""",
    """insert into conversation_participants (conversation_id, user_id)
        select conversation_id, created_by from conversations where type = 'self'""",
    """insert into participations (conversation_id, user_id, joined_message_id)
        select conversation_id, created_by, 0 from conversations where type = 'self'""",
    """insert into device_cursors (user_id, device_id, last_synced_message_id)
        select seeding.user_of(u), 'phone', ({messages} * (1 - power(seeding.chance(u, 1), 8)))::bigint
        from generate_series(0, {users} - 1) u""",
)

# Talk number 0 is the busiest, and a group of as many as may be. The first three of a group are drawn evenly, so they are there; the
# others, and those of pairs, by how busy people are. A pair that is drawn twice is one.
TALKS: Final = (
    """create unlogged table seeding.drawn as
        select c, c % 5 = 0 as is_group, case when c % 5 = 0 then (
            select (array_agg(distinct d.u))[1:50] from (
                select (c * 7919 + k * 104729) % {users} as u from generate_series(0, 2) k
                union all select floor({users} * power(seeding.chance(c * 64 + k, 2), 1.5))::bigint
                    from generate_series(3, case when c = 0 then 80 else 3 + floor(44 * power(seeding.chance(c, 3), 3))::integer end) k
            ) d)
        else (
            select array[least(a, b), greatest(a, b)] from (
                select a, (a + 1 + floor(({users} - 1) * power(seeding.chance(c, 5), 1.5))::bigint) % {users} as b
                from (select floor({users} * power(seeding.chance(c, 4), 1.5))::bigint as a) one) both_of
        ) end as members
        from generate_series(0, {talks} - 1) c""",
    """create unlogged table seeding.talks as
        select row_number() over (order by d.c) - 1 as c, d.is_group, d.members, cardinality(d.members) as size,
            md5('talk' || d.c)::uuid as conversation_id
        from (select distinct on (is_group, case when is_group then c end, members) * from seeding.drawn
            order by is_group, case when is_group then c end, members, c) d""",
    "create unique index on seeding.talks (c)",
    "analyze seeding.talks",
)

# (n: the message_id, c: its talk, seq). Few talks are busy and many quiet: the busiest has some 4 in 100 of all that is said.
PLAN: Final = (
    """create unlogged table seeding.drawn_entries as
        select n, floor((select count(*) from seeding.talks) * power(seeding.chance(n, 6), 3.5))::integer as c
        from generate_series(1, {messages}::bigint) n""",
    "create unlogged table seeding.plan as select n, c, row_number() over (partition by c order by n)::integer as seq"
    " from seeding.drawn_entries",
    "create index on seeding.plan (n) include (c, seq)",
    "drop table seeding.drawn_entries",
    "vacuum analyze seeding.plan",
)

# In a group with enough people and talk the last member goes and comes back, and the one before goes for good.
SHAPES: Final = (
    "create unlogged table seeding.totals as select c, count(*)::integer as total, min(n) as first_n, max(n) as last_n"
    " from seeding.plan group by c",
    """create unlogged table seeding.shapes as
        select t.c, t.is_group, t.members, t.size, t.conversation_id, o.total, o.first_n, o.last_n,
            o.total / 4 + 2 as left_seq, o.total / 2 + 3 as back_seq, 3 * o.total / 4 + 4 as gone_seq,
            t.is_group and t.size >= 5 and o.total >= 40 as is_restless
        from seeding.talks t join seeding.totals o using (c)
        union all select t.c, false, t.members, t.size, t.conversation_id, 0, 0, 0, 0, 0, 0, false from seeding.talks t
            where not t.is_group and not exists (select from seeding.totals o where o.c = t.c)""",
    """create unlogged table seeding.turns as
        select s.c, max(p.n) filter (where p.seq = s.left_seq) as left_n, max(p.n) filter (where p.seq = s.back_seq) as back_n,
            max(p.n) filter (where p.seq = s.gone_seq) as gone_n
        from seeding.shapes s join seeding.plan p on p.c = s.c and p.seq in (s.left_seq, s.back_seq, s.gone_seq)
        where s.is_restless group by s.c""",
    """create unlogged table seeding.rooms as select s.*, t.left_n, t.back_n, t.gone_n,
        array(select seeding.user_of(u) from unnest(s.members) with ordinality m (u, at) order by at) as users
        from seeding.shapes s left join seeding.turns t using (c)""",
    "create unique index on seeding.rooms (c)",
    "analyze seeding.rooms",
    """insert into conversations (conversation_id, type, name, created_by, pair, created_at, updated_at)
        select conversation_id, case when is_group then 'group' else 'one_on_one' end, case when is_group then 'Group ' || c end,
            users[1], case when not is_group then array(select u from unnest(users) u order by u) end,
            seeding.at(first_n), seeding.at(first_n)
        from seeding.rooms""",
)

AT: Final = """create function seeding.at(n bigint) returns timestamptz language sql immutable parallel safe as
    $$ select timestamptz '{began_at}' + n * interval '{step_us} microseconds' $$"""

# One stretch of the log. Who speaks is drawn, the first members of a group more often; who is away then has the owner speak instead.
# Two phrases, or one; each rare word four times in a row of ids every two thousand, as loadtest/search.py has them.
MESSAGES: Final = """
    insert into messages (message_id, conversation_id, seq, sender_id, client_message_id, server_key, content_hash, content,
        message_type, metadata, created_at)
    select s.n, s.conversation_id, s.seq, s.users[s.speaker], case when s.event is null then gen_random_uuid()::text end,
        case when s.event is not null then gen_random_uuid() end, case when s.event is null then decode(md5(s.n::text), 'hex') end,
        case when s.event is not null then '' when seeding.chance(s.n, 9) < 0.5 then one.phrase || needle.word
            else one.phrase || ' ' || other.phrase || needle.word end,
        case when s.event is null then 'text' else 'system' end,
        case s.event when 'created' then jsonb_build_object('event', 'created', 'name', 'Group ' || s.c, 'type', 'group')
            when 'participant_added' then jsonb_build_object('event', s.event, 'user_id', s.users[s.size], 'role', 'member')
            when 'participant_left' then jsonb_build_object('event', s.event, 'user_id', s.users[s.speaker]) end,
        seeding.at(s.n)
    from (
        select d.*, case
            when d.event in ('created', 'participant_added') then 1
            when d.event = 'participant_left' then case when d.seq = d.left_seq then d.size else d.size - 1 end
            when d.at = d.size and d.n between d.left_n and d.back_n then 1
            when d.at = d.size - 1 and d.n > d.gone_n then 1
            else d.at end as speaker
        from (
            select p.n, p.seq, r.*, 1 + floor(r.size * case when r.is_group then power(seeding.chance(p.n, 7), 2)
                    else seeding.chance(p.n, 7) end)::integer as at, case when not r.is_group then null when p.seq = 1 then 'created'
                when r.is_restless and p.seq in (r.left_seq, r.gone_seq) then 'participant_left'
                when r.is_restless and p.seq = r.back_seq then 'participant_added' end as event
            from seeding.plan p join seeding.rooms r using (c) where p.n > %(after)s and p.n <= %(end)s
        ) d
    ) s
    join seeding.phrases one on one.at = floor({phrases} * seeding.chance(s.n, 10))::integer
    join seeding.phrases other on other.at = floor({phrases} * seeding.chance(s.n, 11))::integer
    cross join lateral (select case when s.n %% 2000 < 4
        then ' ' || (array[{rare}])[(1 + (s.n / 2000) %% {rares})::integer] else '' end as word) needle
    order by s.n"""

# Intervals of 8 entries in pairs and of 32 in groups, and one to the end. Most have read all, some are a little behind, a few far;
# what is delivered reaches further. Those who come and go give none.
RECEIPTS: Final = (
    """create unlogged table seeding.bounds as
        select r.c, b.step, b.up_to, coalesce(lag(b.up_to) over (partition by r.c order by b.step),
            case when r.is_group then r.first_n - 1 else 0 end) as after
        from (select p.c, ceil(p.seq::float8 / case when s.is_group then 32 else 8 end)::integer as step, max(p.n) as up_to
            from seeding.plan p join seeding.rooms s using (c)
            where p.seq % case when s.is_group then 32 else 8 end = 0 or p.seq = s.total group by 1, 2) b
        join seeding.rooms r using (c)""",
    """create unlogged table seeding.seats as
        select r.c, r.conversation_id, m.user_id, m.at, r.is_group, r.first_n,
            case when r.is_restless and m.at = r.size then 'back' when r.is_restless and m.at = r.size - 1 then 'gone' else 'there' end
                as stay, steps.number as steps,
            case when d.luck < 0.7 then 0 when d.luck < 0.95 then floor(1 + 8 * d.far)::integer else (steps.number * d.far)::integer end
                as unread, case when d.luck < 0.9 then 0 else floor(steps.number * d.far / 2)::integer end as undelivered
        from seeding.rooms r
        cross join lateral unnest(r.users) with ordinality m (user_id, at)
        cross join lateral (select seeding.chance(r.c * 64 + m.at, 12) as luck, seeding.chance(r.c * 64 + m.at, 13) as far) d
        cross join lateral (select ceil(r.total::float8 / case when r.is_group then 32 else 8 end)::integer as number) steps""",
    "analyze seeding.bounds, seeding.seats",
    """insert into receipts (conversation_id, user_id, kind, after, up_to, at)
        select s.conversation_id, s.user_id, k.kind, b.after, b.up_to, seeding.at(b.up_to) + interval '40 seconds'
        from seeding.seats s join seeding.bounds b using (c)
        join (values ('delivered'), ('read')) k (kind)
            on b.step <= s.steps - case when k.kind = 'read' then greatest(s.unread, s.undelivered) else s.undelivered end
        where s.stay = 'there'""",
)

SEATS: Final = (
    """insert into conversation_participants (conversation_id, user_id, role, joined_at, left_at, last_delivered_message_id,
            last_delivered_at, last_read_message_id, last_read_at, changed_at)
        select s.conversation_id, s.user_id, case when s.at = 1 and s.is_group then 'owner' else 'member' end, seeding.at(s.first_n),
            case when s.stay = 'gone' then seeding.at(r.gone_n) end, coalesce(d.up_to, 0), seeding.at(d.up_to), coalesce(e.up_to, 0),
            seeding.at(e.up_to), seeding.at(case s.stay when 'gone' then r.gone_n when 'back' then r.back_n else s.first_n end)
        from seeding.seats s join seeding.rooms r using (c)
        left join seeding.bounds d on d.c = s.c and s.stay = 'there' and d.step = s.steps - s.undelivered
        left join seeding.bounds e on e.c = s.c and s.stay = 'there' and e.step = s.steps - greatest(s.unread, s.undelivered)""",
    """insert into participations (conversation_id, user_id, joined_message_id, left_message_id)
        select s.conversation_id, s.user_id, case when s.is_group then s.first_n else 0 end,
            case s.stay when 'gone' then r.gone_n when 'back' then r.left_n end
        from seeding.seats s join seeding.rooms r using (c)
        union all select s.conversation_id, s.user_id, r.back_n, null from seeding.seats s join seeding.rooms r using (c)
            where s.stay = 'back'""",
)

# What is older than search looks is never packed: the indexer, had it been there all the year, would have dropped it by now.
POSITION: Final = """update search_position set (message_id, horizon) = (select old.id, old.id from (
    select coalesce(max(message_id), 0) as id from messages where created_at < now() - interval '{search_days} days') old)"""
