-- A text that comes alone is appended by two short statements: to begin the long one, which is for batches, takes longer than all its work.

-- What becomes of a text: accepted, duplicate or conflict (with the place of the entry that has its key), or the code of its refusal.
-- Known repeats come before every refusal: who was told "sent" once is told so again.
-- One entry has the key, at most: the limit says it to the planner, who believes an empty log's statistics for as long as there are no others.
create function log_verdict(p_conversation uuid, p_sender uuid, p_client_id text, p_hash bytea)
returns table (verdict text, known_id bigint, known_seq bigint, known_at timestamptz) language sql stable as $$
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

-- Appends a batch of texts; a row out for each entry in: inserted, duplicate, conflict, or the code of its refusal.
-- The lock is a statement of its own, so that the snapshot of what follows is younger than the lock.
create or replace function log_append(
    p_conversations uuid[], p_senders uuid[], p_client_ids text[], p_hashes bytea[], p_contents text[], p_metadata text[]
) returns table (ord bigint, outcome text, message_id bigint, seq bigint, created_at timestamptz) language plpgsql volatile as $$
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
