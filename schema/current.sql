-- The whole present schema, for reading: what the numbered files beside this one amount to (kept equal by a test).
SET check_function_bodies = false;

CREATE FUNCTION public.log_append(p_conversations uuid[], p_senders uuid[], p_client_ids text[], p_hashes bytea[], p_contents text[], p_metadata text[]) RETURNS TABLE(ord bigint, outcome text, message_id bigint, seq bigint, created_at timestamp with time zone)
    LANGUAGE plpgsql
    AS $$
#variable_conflict use_column
declare
    v_next bigint;
    v_at   timestamptz;
begin
    perform log_lock();
    select t.next_id, greatest(t.last_at, clock_timestamp()) into v_next, v_at from log_tail() t;
    if cardinality(p_conversations) = 1 then
        ord := 1;
        select v.verdict, v.known_id, v.known_seq, v.known_at into outcome, message_id, seq, created_at
            from log_verdict(p_conversations[1], p_senders[1], p_client_ids[1], p_hashes[1]) v;
        if outcome = 'accepted' then
            insert into messages as m
                (message_id, conversation_id, seq, sender_id, client_message_id, content_hash, content, metadata, created_at)
            values (v_next, p_conversations[1],
                coalesce((select l.seq from messages l where l.conversation_id = p_conversations[1] order by l.seq desc limit 1), 0) + 1,
                p_senders[1], p_client_ids[1], p_hashes[1], p_contents[1], p_metadata[1]::jsonb, v_at)
            returning 'inserted', m.message_id, m.seq, m.created_at into outcome, message_id, seq, created_at;
        end if;
        return next;
        return;
    end if;
    return query
    with given as materialized (
        select * from unnest(p_conversations, p_senders, p_client_ids, p_hashes, p_contents, p_metadata)
            with ordinality as g (conversation_id, sender_id, client_id, hash, content, metadata, ord)
    ), judged as materialized (
        select g.*, v.* from given g cross join lateral log_verdict(g.conversation_id, g.sender_id, g.client_id, g.hash) v
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

CREATE FUNCTION public.log_append_own(p_conversation uuid, p_sender uuid, p_server_key uuid, p_type text, p_metadata text, OUT message_id bigint, OUT seq bigint, OUT created_at timestamp with time zone) RETURNS record
    LANGUAGE plpgsql
    AS $$
#variable_conflict use_column
begin
    perform log_lock();
    select t.next_id, greatest(t.last_at, clock_timestamp()) into message_id, created_at from log_tail() t;
    select coalesce((select m.seq from messages m where m.conversation_id = p_conversation order by m.seq desc limit 1), 0) + 1 into seq;
    insert into messages (message_id, conversation_id, seq, sender_id, server_key, content, message_type, metadata, created_at)
    values (message_id, p_conversation, seq, p_sender, p_server_key, '', p_type, p_metadata::jsonb, created_at);
end $$;

CREATE FUNCTION public.log_delete(p_conversation uuid, p_target bigint, p_actor uuid, p_server_key uuid, OUT message_id bigint, OUT seq bigint, OUT created_at timestamp with time zone) RETURNS record
    LANGUAGE plpgsql
    AS $$
#variable_conflict use_column
begin
    perform log_lock();
    update messages m set content = '', metadata = null, deleted_at = clock_timestamp()
        where m.message_id = p_target and m.conversation_id = p_conversation and m.message_type = 'text' and m.deleted_at is null;
    if found then
        select e.message_id, e.seq, e.created_at into message_id, seq, created_at
        from log_append_own(p_conversation, p_actor, p_server_key, 'deletion',
            jsonb_build_object('target_message_id', p_target)::text) e;
    end if;
end $$;

CREATE FUNCTION public.log_lock() RETURNS void
    LANGUAGE sql
    AS $$ select pg_advisory_xact_lock(7308604897285272429) $$;

CREATE FUNCTION public.log_tail(OUT next_id bigint, OUT last_at timestamp with time zone) RETURNS record
    LANGUAGE plpgsql
    AS $$
begin
    select m.message_id + 1, m.created_at into next_id, last_at from messages m order by m.message_id desc limit 1;
    select greatest(coalesce(next_id, 1), e.base) into next_id from log_epochs e order by e.epoch desc limit 1;
    if next_id is null then
        raise exception 'the log has no epoch yet';
    end if;
end $$;

CREATE FUNCTION public.log_verdict(p_conversation uuid, p_sender uuid, p_client_id text, p_hash bytea) RETURNS TABLE(verdict text, known_id bigint, known_seq bigint, known_at timestamp with time zone)
    LANGUAGE sql STABLE
    AS $$
    select
        case
            when known.message_id is not null then
                case when known.conversation_id = p_conversation and known.content_hash = p_hash then 'duplicate' else 'conflict' end
            when p.user_id is null or p.left_at is not null or c.deleted_at is not null or c.type = 'self' then 'not_found'
            when sender.deleted_at is not null then 'forbidden'
            when c.type = 'group' then 'accepted'
            when exists (select from blocks b where b.user_id = p_sender and b.blocked_id = other.user_id) then 'blocked'
            when exists (select from blocks b where b.user_id = other.user_id and b.blocked_id = p_sender) then 'forbidden'
            when other.deleted_at is not null then 'forbidden'
            else 'accepted'
        end, known.message_id, known.seq, known.created_at
    from (select) as one
    left join lateral (
        select m.* from messages m where m.sender_id = p_sender and m.client_message_id = p_client_id limit 1
    ) known on true
    left join conversations c on c.conversation_id = p_conversation
    left join conversation_participants p on p.conversation_id = p_conversation and p.user_id = p_sender
    left join users sender on sender.user_id = p_sender
    left join users other on c.type = 'one_on_one' and other.user_id = case when c.pair[1] = p_sender then c.pair[2] else c.pair[1] end
$$;

CREATE FUNCTION public.newest_in_stays(p_conversation uuid, p_user uuid, p_up_to bigint) RETURNS bigint
    LANGUAGE sql STABLE
    AS $$
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

CREATE FUNCTION public.note_receipt_pause() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
begin
    if new.read_receipts then
        update receipt_pauses set ended_at = clock_timestamp() where user_id = new.user_id and ended_at is null;
    else
        insert into receipt_pauses (user_id, began_at) values (new.user_id, clock_timestamp());
    end if;
    return null;
end $$;

CREATE FUNCTION public.receipts_advance(p_conversations uuid[], p_users uuid[], p_delivered bigint[], p_read bigint[]) RETURNS TABLE(conversation_id uuid, user_id uuid, kind text, after bigint, up_to bigint, at timestamp with time zone, senders uuid[], told boolean)
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION public.receipts_paused(p_user uuid, p_at timestamp with time zone) RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
    select exists (
        select from receipt_pauses o
        where o.user_id = p_user and o.began_at <= p_at and (o.ended_at is null or o.ended_at > p_at)
    )
$$;

CREATE FUNCTION public.username_hash(p_username text) RETURNS bytea
    LANGUAGE sql IMMUTABLE
    AS $$ select sha256(convert_to(lower(p_username), 'UTF8')) $$;

CREATE TABLE public.blocks (
    user_id uuid NOT NULL,
    blocked_id uuid NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT blocks_check CHECK ((user_id <> blocked_id))
);

CREATE TABLE public.bus_words (
    process_id uuid NOT NULL,
    number bigint NOT NULL,
    said_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    word bytea NOT NULL
);
ALTER TABLE ONLY public.bus_words ALTER COLUMN word SET STORAGE EXTERNAL;

CREATE TABLE public.conversation_participants (
    conversation_id uuid NOT NULL,
    user_id uuid NOT NULL,
    role character varying(20) DEFAULT 'member'::character varying NOT NULL,
    joined_at timestamp with time zone DEFAULT now() NOT NULL,
    left_at timestamp with time zone,
    last_delivered_message_id bigint DEFAULT 0 NOT NULL,
    last_delivered_at timestamp with time zone,
    last_read_message_id bigint DEFAULT 0 NOT NULL,
    last_read_at timestamp with time zone,
    hidden_up_to bigint,
    changed_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT conversation_participants_role_check CHECK (((role)::text = ANY ((ARRAY['owner'::character varying, 'admin'::character varying, 'member'::character varying])::text[])))
)
WITH (fillfactor='70');

CREATE TABLE public.conversations (
    conversation_id uuid NOT NULL,
    type character varying(20) NOT NULL,
    name character varying(255),
    created_by uuid NOT NULL,
    client_conversation_id uuid,
    pair uuid[],
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    deleted_at timestamp with time zone,
    CONSTRAINT conversations_check CHECK ((((type)::text = 'one_on_one'::text) = (pair IS NOT NULL))),
    CONSTRAINT conversations_check1 CHECK ((((type)::text = 'group'::text) = (name IS NOT NULL))),
    CONSTRAINT conversations_pair_check CHECK (((pair IS NULL) OR ((cardinality(pair) = 2) AND (pair[1] < pair[2])))),
    CONSTRAINT conversations_type_check CHECK (((type)::text = ANY ((ARRAY['one_on_one'::character varying, 'group'::character varying, 'self'::character varying])::text[])))
);

CREATE TABLE public.device_cursors (
    user_id uuid NOT NULL,
    device_id character varying(64) NOT NULL,
    connection_no bigint DEFAULT 1 NOT NULL,
    last_synced_message_id bigint DEFAULT 0 NOT NULL,
    connected_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    session_id uuid,
    came_at timestamp with time zone
)
WITH (fillfactor='70');

CREATE TABLE public.friendships (
    user_id uuid NOT NULL,
    friend_id uuid NOT NULL,
    status character varying(20) DEFAULT 'pending'::character varying NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT friendships_check CHECK ((user_id <> friend_id)),
    CONSTRAINT friendships_status_check CHECK (((status)::text = ANY ((ARRAY['pending'::character varying, 'accepted'::character varying, 'rejected'::character varying])::text[])))
);

CREATE TABLE public.hidden_messages (
    user_id uuid NOT NULL,
    message_id bigint NOT NULL,
    hidden_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.log_epochs (
    epoch integer NOT NULL,
    base bigint NOT NULL,
    after bigint NOT NULL,
    system_identifier bigint NOT NULL,
    timeline bigint NOT NULL,
    began_at timestamp with time zone DEFAULT now() NOT NULL,
    tables text
);

CREATE TABLE public.log_identity (
    only_row boolean DEFAULT true NOT NULL,
    log_id uuid DEFAULT gen_random_uuid() NOT NULL,
    horizon bigint DEFAULT 0 NOT NULL,
    CONSTRAINT log_identity_only_row_check CHECK (only_row)
);

CREATE TABLE public.logins (
    login_id uuid NOT NULL,
    user_id uuid NOT NULL,
    device_id character varying(64) NOT NULL,
    device_name character varying(100),
    platform character varying(20),
    generation integer DEFAULT 1 NOT NULL,
    refresh_key bytea NOT NULL,
    refresh_hash bytea NOT NULL,
    previous_hash bytea,
    generation_used_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    last_used_at timestamp with time zone DEFAULT now() NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    ended_at timestamp with time zone,
    ended_reason character varying(20)
);

CREATE TABLE public.messages (
    message_id bigint NOT NULL,
    conversation_id uuid NOT NULL,
    seq bigint NOT NULL,
    sender_id uuid NOT NULL,
    client_message_id character varying(64),
    server_key uuid,
    content_hash bytea,
    content text NOT NULL,
    message_type character varying(20) DEFAULT 'text'::character varying NOT NULL,
    metadata jsonb,
    created_at timestamp with time zone NOT NULL,
    deleted_at timestamp with time zone,
    CONSTRAINT messages_check CHECK (((client_message_id IS NULL) <> (server_key IS NULL))),
    CONSTRAINT messages_message_type_check CHECK (((message_type)::text = ANY ((ARRAY['text'::character varying, 'system'::character varying, 'deletion'::character varying, 'account'::character varying])::text[])))
);
ALTER TABLE ONLY public.messages ALTER COLUMN conversation_id SET (n_distinct=-0.1);

CREATE TABLE public.participations (
    conversation_id uuid NOT NULL,
    user_id uuid NOT NULL,
    joined_message_id bigint NOT NULL,
    left_message_id bigint,
    CONSTRAINT participations_check CHECK ((left_message_id >= joined_message_id))
);

CREATE TABLE public.receipt_pauses (
    user_id uuid NOT NULL,
    began_at timestamp with time zone NOT NULL,
    ended_at timestamp with time zone
);

CREATE TABLE public.receipts (
    conversation_id uuid NOT NULL,
    user_id uuid NOT NULL,
    kind character varying(10) NOT NULL,
    after bigint NOT NULL,
    up_to bigint NOT NULL,
    at timestamp with time zone NOT NULL,
    CONSTRAINT receipts_check CHECK ((after < up_to)),
    CONSTRAINT receipts_kind_check CHECK (((kind)::text = ANY ((ARRAY['delivered'::character varying, 'read'::character varying])::text[])))
);

CREATE TABLE public.retired_usernames (
    name_hash bytea NOT NULL,
    retired_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.schema_migrations (
    version integer NOT NULL,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.search_blocks (
    conversation_id uuid NOT NULL,
    first_message_id bigint NOT NULL,
    last_message_id bigint NOT NULL,
    last_seq bigint NOT NULL,
    newest_at timestamp with time zone NOT NULL,
    message_ids bigint[] NOT NULL,
    signature bytea NOT NULL,
    folded text NOT NULL COLLATE pg_catalog."C"
);
ALTER TABLE ONLY public.search_blocks ALTER COLUMN signature SET STORAGE PLAIN;
ALTER TABLE ONLY public.search_blocks ALTER COLUMN folded SET STORAGE EXTERNAL;

CREATE TABLE public.search_position (
    only_row boolean DEFAULT true NOT NULL,
    message_id bigint DEFAULT 0 NOT NULL,
    horizon bigint DEFAULT 0 NOT NULL,
    CONSTRAINT search_position_only_row_check CHECK (only_row)
);

CREATE TABLE public.users (
    user_id uuid DEFAULT gen_random_uuid() NOT NULL,
    username character varying(50) NOT NULL,
    email character varying(255),
    password_hash character varying(255) NOT NULL,
    display_name character varying(100),
    avatar_url text,
    status_text character varying(140),
    availability character varying(20) DEFAULT 'available'::character varying NOT NULL,
    read_receipts boolean DEFAULT true NOT NULL,
    show_last_seen boolean DEFAULT true NOT NULL,
    last_seen timestamp with time zone,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    deleted_at timestamp with time zone,
    CONSTRAINT users_availability_check CHECK (((availability)::text = ANY ((ARRAY['available'::character varying, 'away'::character varying, 'busy'::character varying, 'invisible'::character varying])::text[])))
);

ALTER TABLE ONLY public.blocks
    ADD CONSTRAINT blocks_pkey PRIMARY KEY (user_id, blocked_id);

ALTER TABLE ONLY public.bus_words
    ADD CONSTRAINT bus_words_pkey PRIMARY KEY (process_id, number);

ALTER TABLE ONLY public.conversation_participants
    ADD CONSTRAINT conversation_participants_pkey PRIMARY KEY (conversation_id, user_id);

ALTER TABLE ONLY public.conversations
    ADD CONSTRAINT conversations_created_by_client_conversation_id_key UNIQUE (created_by, client_conversation_id);

ALTER TABLE ONLY public.conversations
    ADD CONSTRAINT conversations_pkey PRIMARY KEY (conversation_id);

ALTER TABLE ONLY public.device_cursors
    ADD CONSTRAINT device_cursors_pkey PRIMARY KEY (user_id, device_id);

ALTER TABLE ONLY public.friendships
    ADD CONSTRAINT friendships_pkey PRIMARY KEY (user_id, friend_id);

ALTER TABLE ONLY public.hidden_messages
    ADD CONSTRAINT hidden_messages_pkey PRIMARY KEY (user_id, message_id);

ALTER TABLE ONLY public.log_epochs
    ADD CONSTRAINT log_epochs_pkey PRIMARY KEY (epoch);

ALTER TABLE ONLY public.log_identity
    ADD CONSTRAINT log_identity_pkey PRIMARY KEY (only_row);

ALTER TABLE ONLY public.logins
    ADD CONSTRAINT logins_pkey PRIMARY KEY (login_id);

ALTER TABLE ONLY public.messages
    ADD CONSTRAINT messages_conversation_id_seq_key UNIQUE (conversation_id, seq);

ALTER TABLE ONLY public.messages
    ADD CONSTRAINT messages_pkey PRIMARY KEY (message_id);

ALTER TABLE ONLY public.messages
    ADD CONSTRAINT messages_sender_id_client_message_id_key UNIQUE (sender_id, client_message_id);

ALTER TABLE ONLY public.participations
    ADD CONSTRAINT participations_pkey PRIMARY KEY (conversation_id, user_id, joined_message_id);

ALTER TABLE ONLY public.receipt_pauses
    ADD CONSTRAINT receipt_pauses_pkey PRIMARY KEY (user_id, began_at);

ALTER TABLE ONLY public.receipts
    ADD CONSTRAINT receipts_pkey PRIMARY KEY (conversation_id, user_id, kind, up_to);

ALTER TABLE ONLY public.retired_usernames
    ADD CONSTRAINT retired_usernames_pkey PRIMARY KEY (name_hash);

ALTER TABLE ONLY public.schema_migrations
    ADD CONSTRAINT schema_migrations_pkey PRIMARY KEY (version);

ALTER TABLE ONLY public.search_blocks
    ADD CONSTRAINT search_blocks_pkey PRIMARY KEY (conversation_id, last_message_id);

ALTER TABLE ONLY public.search_position
    ADD CONSTRAINT search_position_pkey PRIMARY KEY (only_row);

ALTER TABLE ONLY public.users
    ADD CONSTRAINT users_pkey PRIMARY KEY (user_id);

CREATE INDEX blocks_blocked ON public.blocks USING btree (blocked_id);

CREATE INDEX blocks_created ON public.blocks USING btree (created_at);

CREATE INDEX bus_words_said ON public.bus_words USING btree (said_at);

CREATE INDEX conversation_participants_user ON public.conversation_participants USING btree (user_id, conversation_id);

CREATE UNIQUE INDEX conversations_pair ON public.conversations USING btree (pair) WHERE (pair IS NOT NULL);

CREATE UNIQUE INDEX conversations_self ON public.conversations USING btree (created_by) WHERE ((type)::text = 'self'::text);

CREATE INDEX device_cursors_connected ON public.device_cursors USING btree (connected_at);

CREATE INDEX friendships_friend ON public.friendships USING btree (friend_id);

CREATE UNIQUE INDEX friendships_pair ON public.friendships USING btree (LEAST(user_id, friend_id), GREATEST(user_id, friend_id));

CREATE INDEX logins_ended ON public.logins USING btree (ended_at) WHERE (ended_at IS NOT NULL);

CREATE INDEX logins_expiring ON public.logins USING btree (expires_at) WHERE (ended_at IS NULL);

CREATE INDEX logins_user ON public.logins USING btree (user_id) WHERE (ended_at IS NULL);

CREATE INDEX messages_conversation ON public.messages USING btree (conversation_id, message_id);

CREATE UNIQUE INDEX messages_server_key ON public.messages USING btree (server_key) WHERE (server_key IS NOT NULL);

CREATE INDEX participations_user ON public.participations USING btree (user_id, conversation_id);

CREATE INDEX search_blocks_newest ON public.search_blocks USING btree (newest_at);

CREATE INDEX users_display_name_prefix ON public.users USING btree (lower((display_name)::text) text_pattern_ops);

CREATE UNIQUE INDEX users_email ON public.users USING btree (lower((email)::text));

CREATE UNIQUE INDEX users_username ON public.users USING btree (lower((username)::text));

CREATE INDEX users_username_prefix ON public.users USING btree (lower((username)::text) text_pattern_ops);

CREATE TRIGGER users_receipt_pauses AFTER UPDATE OF read_receipts ON public.users FOR EACH ROW WHEN ((old.read_receipts IS DISTINCT FROM new.read_receipts)) EXECUTE FUNCTION public.note_receipt_pause();

ALTER TABLE ONLY public.blocks
    ADD CONSTRAINT blocks_blocked_id_fkey FOREIGN KEY (blocked_id) REFERENCES public.users(user_id);

ALTER TABLE ONLY public.blocks
    ADD CONSTRAINT blocks_user_id_fkey FOREIGN KEY (user_id) REFERENCES public.users(user_id);

ALTER TABLE ONLY public.conversation_participants
    ADD CONSTRAINT conversation_participants_conversation_id_fkey FOREIGN KEY (conversation_id) REFERENCES public.conversations(conversation_id);

ALTER TABLE ONLY public.conversation_participants
    ADD CONSTRAINT conversation_participants_user_id_fkey FOREIGN KEY (user_id) REFERENCES public.users(user_id);

ALTER TABLE ONLY public.conversations
    ADD CONSTRAINT conversations_created_by_fkey FOREIGN KEY (created_by) REFERENCES public.users(user_id);

ALTER TABLE ONLY public.device_cursors
    ADD CONSTRAINT device_cursors_user_id_fkey FOREIGN KEY (user_id) REFERENCES public.users(user_id);

ALTER TABLE ONLY public.friendships
    ADD CONSTRAINT friendships_friend_id_fkey FOREIGN KEY (friend_id) REFERENCES public.users(user_id);

ALTER TABLE ONLY public.friendships
    ADD CONSTRAINT friendships_user_id_fkey FOREIGN KEY (user_id) REFERENCES public.users(user_id);

ALTER TABLE ONLY public.hidden_messages
    ADD CONSTRAINT hidden_messages_user_id_fkey FOREIGN KEY (user_id) REFERENCES public.users(user_id);

ALTER TABLE ONLY public.logins
    ADD CONSTRAINT logins_user_id_fkey FOREIGN KEY (user_id) REFERENCES public.users(user_id);

ALTER TABLE ONLY public.participations
    ADD CONSTRAINT participations_conversation_id_fkey FOREIGN KEY (conversation_id) REFERENCES public.conversations(conversation_id);

ALTER TABLE ONLY public.participations
    ADD CONSTRAINT participations_user_id_fkey FOREIGN KEY (user_id) REFERENCES public.users(user_id);

ALTER TABLE ONLY public.receipt_pauses
    ADD CONSTRAINT receipt_pauses_user_id_fkey FOREIGN KEY (user_id) REFERENCES public.users(user_id);
