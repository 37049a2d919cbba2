-- Friends, and what a user who hides read receipts is not told later either.

-- Of two people there is one row, whoever asked. Its status `rejected` is a request to somebody who blocks its sender: the
-- sender sees it as pending, the other one never.
create unique index friendships_pair on friendships (least(user_id, friend_id), greatest(user_id, friend_id));

-- When a user hid read receipts. What others read in that time is not told to this user, even after they are shown again.
create table receipt_pauses (
    user_id  uuid not null references users,
    began_at timestamptz not null,
    ended_at timestamptz,
    primary key (user_id, began_at)
);
insert into receipt_pauses (user_id, began_at) select user_id, '-infinity' from users where not read_receipts;

-- A trigger, so that whatever changes the setting is noted with it.
create function note_receipt_pause() returns trigger language plpgsql as $$
begin
    if new.read_receipts then
        update receipt_pauses set ended_at = clock_timestamp() where user_id = new.user_id and ended_at is null;
    else
        insert into receipt_pauses (user_id, began_at) values (new.user_id, clock_timestamp());
    end if;
    return null;
end $$;
create trigger users_receipt_pauses after update of read_receipts on users
    for each row when (old.read_receipts is distinct from new.read_receipts) execute function note_receipt_pause();

-- Whether a user hid read receipts at that time.
create function receipts_paused(p_user uuid, p_at timestamptz) returns boolean language sql stable as $$
    select exists (
        select from receipt_pauses o
        where o.user_id = p_user and o.began_at <= p_at and (o.ended_at is null or o.ended_at > p_at)
    )
$$;
