-- What is taken back: messages deleted for everyone or for oneself, and accounts that are gone.

-- Messages that a user has deleted for themselves alone: of each they keep only its place.
create table hidden_messages (
    user_id    uuid not null references users,
    message_id bigint not null,
    hidden_at  timestamptz not null default now(),
    primary key (user_id, message_id)
);

-- Names of deleted accounts, which are not given again. A hash, for the name itself goes with its account.
create table retired_usernames (
    name_hash  bytea primary key,
    retired_at timestamptz not null default now()
);

-- Of one name there is one hash, however it was written.
create function username_hash(p_username text) returns bytea language sql immutable as
$$ select sha256(convert_to(lower(p_username), 'UTF8')) $$;

-- Deletes a text for everyone: blanks its row and appends the entry that tells so, both or neither. All null, and nothing
-- done, if there is nothing left to blank. content_hash stays, so that a repeat of that send is still a duplicate.
create function log_delete(
    p_conversation uuid, p_target bigint, p_actor uuid, p_server_key uuid,
    out message_id bigint, out seq bigint, out created_at timestamptz
) language plpgsql volatile as $$
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
