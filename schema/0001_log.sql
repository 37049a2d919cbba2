-- The first schema: people, conversations, the log, its readers. Read shared rules in README, "The promises".
-- Names are those of the specification (5.4); what differs from it stands in the README with its reason.

-- One row: the log's identity. Names of channels, streams and queues in Redis begin with it, so that two logs on one Redis never mix.
create table log_identity (
    only_row   boolean primary key default true check (only_row),
    log_id     uuid not null default gen_random_uuid(),
    horizon    bigint not null default 0          -- entries up to here may have been removed by retention
);
insert into log_identity default values;

-- An epoch begins where numbering was torn (a restore, a failover that lost its tail): ids go on at base; clients drop entries in (after, base).
create table log_epochs (
    epoch             integer primary key,
    base              bigint not null,
    after             bigint not null,
    system_identifier bigint not null,
    timeline          bigint not null,
    began_at          timestamptz not null default now()
);

create table users (
    user_id        uuid primary key default gen_random_uuid(),
    username       varchar(50) not null,
    email          varchar(255),
    password_hash  varchar(255) not null,
    display_name   varchar(100),
    avatar_url     text,
    status_text    varchar(140),
    availability   varchar(20) not null default 'available' check (availability in ('available', 'away', 'busy', 'invisible')),
    read_receipts  boolean not null default true,
    show_last_seen boolean not null default true,
    last_seen      timestamptz,
    created_at     timestamptz not null default now(),
    updated_at     timestamptz not null default now(),
    deleted_at     timestamptz
);
create unique index users_username on users (lower(username));
create unique index users_email on users (lower(email));
-- For search by prefix: the unique index serves LIKE only under the C collation.
create index users_username_prefix on users (lower(username) text_pattern_ops);
create index users_display_name_prefix on users (lower(display_name) text_pattern_ops);

-- A login is a signed-in device with its tokens. The refresh token is kept as a hash; its successor is derived with refresh_key.
create table logins (
    login_id              uuid primary key,
    user_id               uuid not null references users,
    device_id             varchar(64) not null,
    device_name           varchar(100),
    platform              varchar(20),
    generation            integer not null default 1,
    refresh_key           bytea not null,
    refresh_hash          bytea not null,
    previous_hash         bytea,
    generation_used_at    timestamptz,            -- when the newest generation's pair was first used
    created_at            timestamptz not null default now(),
    last_used_at          timestamptz not null default now(),
    expires_at            timestamptz not null,
    ended_at              timestamptz,
    ended_reason          varchar(20)
);
create index logins_user on logins (user_id) where ended_at is null;
create index logins_ended on logins (ended_at) where ended_at is not null;
create index logins_expiring on logins (expires_at) where ended_at is null;

create table friendships (
    user_id    uuid not null references users,
    friend_id  uuid not null references users,
    status     varchar(20) not null default 'pending' check (status in ('pending', 'accepted', 'rejected')),
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    primary key (user_id, friend_id),
    check (user_id <> friend_id)
);
create index friendships_friend on friendships (friend_id);

create table blocks (
    user_id    uuid not null references users,
    blocked_id uuid not null references users,
    created_at timestamptz not null default now(),
    primary key (user_id, blocked_id),
    check (user_id <> blocked_id)
);
create index blocks_blocked on blocks (blocked_id);
create index blocks_created on blocks (created_at);

create table conversations (
    conversation_id        uuid primary key,
    type                   varchar(20) not null check (type in ('one_on_one', 'group', 'self')),
    name                   varchar(255),
    created_by             uuid not null references users,
    client_conversation_id uuid,
    pair                   uuid[],
    created_at             timestamptz not null default now(),
    updated_at             timestamptz not null default now(),
    deleted_at             timestamptz,
    unique (created_by, client_conversation_id),
    check ((type = 'one_on_one') = (pair is not null)),
    check (pair is null or (cardinality(pair) = 2 and pair[1] < pair[2])),
    check ((type = 'group') = (name is not null))
);
create unique index conversations_pair on conversations (pair) where pair is not null;
create unique index conversations_self on conversations (created_by) where type = 'self';

-- A person's seat in one conversation. The row stays after leaving (left_at): its watermarks cover what was owed.
create table conversation_participants (
    conversation_id           uuid not null references conversations,
    user_id                   uuid not null references users,
    role                      varchar(20) not null default 'member' check (role in ('owner', 'admin', 'member')),
    joined_at                 timestamptz not null default now(),
    left_at                   timestamptz,
    last_delivered_message_id bigint not null default 0,
    last_delivered_at         timestamptz,
    last_read_message_id      bigint not null default 0,
    last_read_at              timestamptz,
    hidden_up_to              bigint,              -- a one-on-one hidden by this user until an entry above this id
    changed_at                timestamptz not null default now(),
    primary key (conversation_id, user_id)
) with (fillfactor = 70);
create index conversation_participants_user on conversation_participants (user_id, conversation_id);

-- Every stay of a user in a conversation, both ends included: the one place that says who sees which entry.
create table participations (
    conversation_id   uuid not null references conversations,
    user_id           uuid not null references users,
    joined_message_id bigint not null,
    left_message_id   bigint,
    primary key (conversation_id, user_id, joined_message_id),
    check (left_message_id >= joined_message_id)
);
create index participations_user on participations (user_id, conversation_id);

-- The log: gapless ids in commit order. No foreign keys here: log_append() itself has read the conversation, the seat and the user of each
-- entry under the lock, their rows are never deleted, and the keys' row locks would write to the hot conversation row at each append.
create table messages (
    message_id        bigint primary key,
    conversation_id   uuid not null,
    seq               bigint not null,
    sender_id         uuid not null,
    client_message_id varchar(64),
    server_key        uuid,
    content_hash      bytea,
    content           text not null,
    message_type      varchar(20) not null default 'text' check (message_type in ('text', 'system', 'deletion', 'account')),
    metadata          jsonb,
    created_at        timestamptz not null,
    deleted_at        timestamptz,
    unique (conversation_id, seq),
    unique (sender_id, client_message_id),
    check ((client_message_id is null) <> (server_key is null))
);
create unique index messages_server_key on messages (server_key) where server_key is not null;
create index messages_conversation on messages (conversation_id, message_id);

create table receipts (
    conversation_id uuid not null,
    user_id         uuid not null,
    kind            varchar(10) not null check (kind in ('delivered', 'read')),
    after           bigint not null,
    up_to           bigint not null,
    at              timestamptz not null,
    primary key (conversation_id, user_id, kind, up_to),
    check (after < up_to)
);

-- A device's place in the log. connection_no fences: only the newest connection of a device moves it.
create table device_cursors (
    user_id                uuid not null references users,
    device_id              varchar(64) not null,
    connection_no          bigint not null default 1,
    last_synced_message_id bigint not null default 0,
    connected_at           timestamptz not null default now(),
    updated_at             timestamptz not null default now(),
    primary key (user_id, device_id)
) with (fillfactor = 70);
create index device_cursors_connected on device_cursors (connected_at);


-- The key of the log's append lock, in one place.
create function log_lock() returns void language sql volatile as
$$ select pg_advisory_xact_lock(7308604897285272429) $$;

-- The next free id and the time not to go below. Call with the log lock held, as a statement of its own.
create function log_tail(out next_id bigint, out last_at timestamptz) language plpgsql volatile as $$
begin
    select m.message_id + 1, m.created_at into next_id, last_at from messages m order by m.message_id desc limit 1;
    select greatest(coalesce(next_id, 1), e.base) into next_id from log_epochs e order by e.epoch desc limit 1;
    if next_id is null then
        raise exception 'the log has no epoch yet';
    end if;
end $$;

-- Appends a batch of texts; a row out for each entry in: inserted, duplicate, conflict, or the code of its refusal.
-- The lock is a statement of its own, so that the snapshot of what follows is younger than the lock.
create function log_append(
    p_conversations uuid[], p_senders uuid[], p_client_ids text[], p_hashes bytea[], p_contents text[], p_metadata text[]
) returns table (ord bigint, outcome text, message_id bigint, seq bigint, created_at timestamptz) language plpgsql volatile as $$
#variable_conflict use_column
declare
    v_next bigint;
    v_at   timestamptz;
begin
    perform log_lock();
    select t.next_id, greatest(t.last_at, clock_timestamp()) into v_next, v_at from log_tail() t;
    return query
    with given as materialized (
        select * from unnest(p_conversations, p_senders, p_client_ids, p_hashes, p_contents, p_metadata)
            with ordinality as g (conversation_id, sender_id, client_id, hash, content, metadata, ord)
    ), judged as materialized (
        -- Known repeats come before every refusal: who was told "sent" once is told so again.
        select g.*, known.message_id as known_id, known.seq as known_seq, known.created_at as known_at,
            case
                when known.message_id is not null then
                    case when known.conversation_id = g.conversation_id and known.content_hash = g.hash then 'duplicate' else 'conflict' end
                when p.user_id is null or p.left_at is not null or c.deleted_at is not null or c.type = 'self' then 'not_found'
                when sender.deleted_at is not null then 'forbidden'
                when c.type = 'group' then 'accepted'
                when exists (select from blocks b where b.user_id = g.sender_id and b.blocked_id = other.user_id) then 'blocked'
                when exists (select from blocks b where b.user_id = other.user_id and b.blocked_id = g.sender_id) then 'forbidden'
                when other.deleted_at is not null then 'forbidden'
                else 'accepted'
            end as verdict
        from given g
        left join messages known on known.sender_id = g.sender_id and known.client_message_id = g.client_id
        left join conversations c on c.conversation_id = g.conversation_id
        left join conversation_participants p on p.conversation_id = g.conversation_id and p.user_id = g.sender_id
        left join users sender on sender.user_id = g.sender_id
        left join users other on c.type = 'one_on_one' and other.user_id = case when c.pair[1] = g.sender_id then c.pair[2] else c.pair[1] end
    ), copies as (
        select j.*, row_number() over (partition by j.sender_id, j.client_id order by j.ord) as copy from judged j where j.verdict = 'accepted'
    ), firsts as materialized (
        select k.*, v_next - 1 + row_number() over (order by k.ord) as new_id,
            coalesce((select m.seq from messages m where m.conversation_id = k.conversation_id order by m.seq desc limit 1), 0)
                + row_number() over (partition by k.conversation_id order by k.ord) as new_seq
        from copies k where k.copy = 1
    ), inserted as (
        insert into messages (message_id, conversation_id, seq, sender_id, client_message_id, content_hash, content, metadata, created_at)
        select f.new_id, f.conversation_id, f.new_seq, f.sender_id, f.client_id, f.hash, f.content, f.metadata::jsonb, v_at from firsts f
    )
    select f.ord, 'inserted', f.new_id, f.new_seq, v_at from firsts f
    union all
    select k.ord, case when f.conversation_id = k.conversation_id and f.hash = k.hash then 'duplicate' else 'conflict' end, f.new_id, f.new_seq, v_at
        from copies k join firsts f on f.sender_id = k.sender_id and f.client_id = k.client_id where k.copy > 1
    union all
    select j.ord, j.verdict, j.known_id, j.known_seq, j.known_at from judged j where j.verdict <> 'accepted';
end $$;

-- Appends one entry of the server's own (system, deletion, account). Its key was fixed before the first try; the caller has looked for it.
create function log_append_own(
    p_conversation uuid, p_sender uuid, p_server_key uuid, p_type text, p_metadata text,
    out message_id bigint, out seq bigint, out created_at timestamptz
) language plpgsql volatile as $$
#variable_conflict use_column
begin
    perform log_lock();
    select t.next_id, greatest(t.last_at, clock_timestamp()) into message_id, created_at from log_tail() t;
    select coalesce((select m.seq from messages m where m.conversation_id = p_conversation order by m.seq desc limit 1), 0) + 1 into seq;
    insert into messages (message_id, conversation_id, seq, sender_id, server_key, content, message_type, metadata, created_at)
    values (message_id, p_conversation, seq, p_sender, p_server_key, '', p_type, p_metadata::jsonb, created_at);
end $$;

-- The newest entry of a conversation at or below an id that lies in a stay of that user; null if there is none.
create function newest_in_stays(p_conversation uuid, p_user uuid, p_up_to bigint) returns bigint language sql stable as $$
    select max(newest.message_id)
    from participations s
    cross join lateral (
        select m.message_id from messages m
        where m.conversation_id = s.conversation_id and m.message_id >= s.joined_message_id
            and m.message_id <= least(p_up_to, coalesce(s.left_message_id, p_up_to))
        order by m.message_id desc limit 1
    ) newest
    where s.conversation_id = p_conversation and s.user_id = p_user
$$;

-- Moves delivered and read watermarks forward, each clamped to an entry of that conversation; tells what moved, and whose texts it covers.
-- A read also delivers. While a user hides read receipts no read row is written, and none is told.
create function receipts_advance(p_conversations uuid[], p_users uuid[], p_delivered bigint[], p_read bigint[])
returns table (conversation_id uuid, user_id uuid, kind text, after bigint, up_to bigint, at timestamptz, senders uuid[], told boolean)
language plpgsql volatile as $$
#variable_conflict use_column
declare
    -- One time for the row that is kept and the receipt that is told.
    v_at timestamptz := clock_timestamp();
begin
    return query
    with given as materialized (
        select g.conversation_id, g.user_id,
            newest_in_stays(g.conversation_id, g.user_id, greatest(g.delivered, g.read)) as delivered,
            newest_in_stays(g.conversation_id, g.user_id, g.read) as read
        from unnest(p_conversations, p_users, p_delivered, p_read) as g (conversation_id, user_id, delivered, read)
    ), before as materialized (
        select p.conversation_id, p.user_id, p.last_delivered_message_id as was_delivered, p.last_read_message_id as was_read, g.delivered, g.read
        from given g
        join conversation_participants p on p.conversation_id = g.conversation_id and p.user_id = g.user_id
        where g.delivered > p.last_delivered_message_id or g.read > p.last_read_message_id
        order by p.conversation_id, p.user_id
        for update of p
    ), moved as (
        update conversation_participants p set
            last_delivered_message_id = greatest(p.last_delivered_message_id, b.delivered),
            last_delivered_at = case when b.delivered > p.last_delivered_message_id then v_at else p.last_delivered_at end,
            last_read_message_id = greatest(p.last_read_message_id, b.read),
            last_read_at = case when b.read > p.last_read_message_id then v_at else p.last_read_at end,
            -- Not by a read alone: in changed_since others would see that there was one, told or not.
            changed_at = case when b.delivered > p.last_delivered_message_id then v_at else p.changed_at end
        from before b where p.conversation_id = b.conversation_id and p.user_id = b.user_id
        returning b.*
    ), advances as materialized (
        -- An interval for each stay that it reaches into: what was said in between was never delivered.
        select m.conversation_id, m.user_id, k.kind, greatest(k.was, s.joined_message_id - 1) as after,
            least(k.reached, coalesce(s.left_message_id, k.reached)) as up_to,
            -- Across a block a receipt would be a sign of life: it is neither told nor kept, so it does not come out later either.
            k.told and not exists (
                select from conversations c
                join blocks b on (b.user_id = c.pair[1] and b.blocked_id = c.pair[2]) or (b.user_id = c.pair[2] and b.blocked_id = c.pair[1])
                where c.conversation_id = m.conversation_id and c.type = 'one_on_one') as told
        from moved m
        join users u on u.user_id = m.user_id
        cross join lateral (values ('delivered', m.was_delivered, m.delivered, true), ('read', m.was_read, m.read, u.read_receipts))
            as k (kind, was, reached, told)
        join participations s on s.conversation_id = m.conversation_id and s.user_id = m.user_id
            and s.joined_message_id <= k.reached and coalesce(s.left_message_id, k.reached) > k.was
        where k.reached > k.was
    ), kept as (
        insert into receipts (conversation_id, user_id, kind, after, up_to, at)
        select a.conversation_id, a.user_id, a.kind, a.after, a.up_to, v_at from advances a where a.told
        on conflict do nothing
    )
    select a.conversation_id, a.user_id, a.kind, a.after, a.up_to, v_at,
        -- Who is out of the conversation hears of it no more; read receipts obey both users' settings.
        array(select sent.sender_id
              from (select distinct m.sender_id from messages m
                    where m.conversation_id = a.conversation_id and m.message_id > a.after and m.message_id <= a.up_to
                      and m.message_type = 'text' and m.sender_id <> a.user_id and a.told) sent
              join conversation_participants p
                  on p.conversation_id = a.conversation_id and p.user_id = sent.sender_id and p.left_at is null
              join users u on u.user_id = sent.sender_id and (a.kind = 'delivered' or u.read_receipts)),
        a.told
    from advances a;
end $$;
