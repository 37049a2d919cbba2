"""The rules of people and conversations: who is in what, from where to where, and what each has had delivered.

Rule: as in invariants.py: they hold in every snapshot.
"""

from __future__ import annotations

from typing import Final

from uim.model.conversation import MAX_MEMBERS
from uim.model.ids import MAX_MESSAGE_ID
from uim.store.invariants import CURSORS, HEAD, HORIZON, SEARCH, WATERMARKS, Invariant, Walk, in_range, in_stay
from uim.store.packing import BLOCK_ENTRIES

CONVERSATIONS: Final = Walk(
    "conversations",
    "conversations",
    "conversation_id",
    5_000,
    f"""e as materialized (
        select c.*, seats.users, seats.present, seats.owners, coalesce(unpacked.number, 0) as unpacked
        from conversations c
        cross join lateral (
            select coalesce(array_agg(p.user_id order by p.user_id), '{{}}') as users,
                count(*) filter (where p.left_at is null) as present,
                count(*) filter (where p.left_at is null and p.role = 'owner') as owners
            from conversation_participants p where p.conversation_id = c.conversation_id
        ) seats
        left join lateral (
            select count(*) as number from (
                select from messages m, search_position position where c.type <> 'self' and m.conversation_id = c.conversation_id
                    and m.message_id <= position.message_id
                    and m.message_id > greatest(position.horizon, coalesce((
                        select b.last_message_id from search_blocks b
                        where b.conversation_id = c.conversation_id order by b.last_message_id desc limit 1), 0))
                limit 100000
            ) waiting
        ) unpacked on true
        where {in_range('c.conversation_id')}
    )""",
    (
        Invariant(
            "a conversation of two is of its pair",
            "e.type = 'one_on_one' and (e.users <> e.pair or e.present <> 2 or e.created_by <> all(e.pair) or e.deleted_at is not null)",
            "concat('conversation ', e.conversation_id, ' has ', cardinality(e.users), ' participants, ', e.present, ' present', "
            "case when e.deleted_at is not null then ', and is deleted' end)",
        ),
        Invariant(
            "an account's own conversation is its own",
            "e.type = 'self' and (e.users <> array[e.created_by] or e.deleted_at is not null)",
            "concat('conversation ', e.conversation_id, ' of user ', e.created_by, "
            "case when e.deleted_at is not null then ', deleted' end)",
        ),
        Invariant(
            f"a living group has one owner and 1 to {MAX_MEMBERS} members",
            f"e.type = 'group' and e.deleted_at is null and (e.owners <> 1 or e.present > {MAX_MEMBERS})",
            "concat('conversation ', e.conversation_id, ': ', e.owners, ' owners, ', e.present, ' members')",
        ),
        Invariant(
            "nobody is in a group that is deleted",
            "e.type = 'group' and e.deleted_at is not null and e.present > 0",
            "concat('conversation ', e.conversation_id, ': ', e.present, ' members')",
        ),
        Invariant(
            "what is to be packed for search is packed",
            f"e.unpacked >= {BLOCK_ENTRIES}",
            "concat('conversation ', e.conversation_id, ': ', e.unpacked, ' entries in no block')",
            SEARCH,
        ),
    ),
)

USERS: Final = Walk(
    "users",
    "users",
    "user_id",
    10_000,
    f"e as materialized (select u.* from users u where {in_range('u.user_id')})",
    (
        Invariant(
            "every user has the conversation of their account",
            "not exists (select from conversations c where c.created_by = e.user_id and c.type = 'self')",
            "concat('user ', e.user_id)",
        ),
        Invariant(
            "who is gone can sign in no more, and is not told of",
            """e.deleted_at is not null and (e.email is not null or e.display_name is not null or e.password_hash <> '!'
                or exists (select from logins l where l.user_id = e.user_id and l.ended_at is null))""",
            "concat('user ', e.user_id)",
        ),
    ),
)

_WHOSE: Final = "'user ', e.user_id, ' in conversation ', e.conversation_id"

SEATS: Final = Walk(
    "participants",
    "conversation_participants",
    "conversation_id",
    5_000,
    f"""e as materialized (
        select p.*, stays.number as stays, stays.open as open_stays, {HEAD} as head,
            case when p.last_delivered_message_id > 0 or p.last_read_message_id > 0
                then coalesce(newest_in_stays(p.conversation_id, p.user_id, {MAX_MESSAGE_ID}), 0) end as newest,
            coalesce((select r.up_to from receipts r where r.conversation_id = p.conversation_id and r.user_id = p.user_id
                and r.kind = 'delivered' order by r.up_to desc limit 1), 0) as told_delivered,
            coalesce((select r.up_to from receipts r where r.conversation_id = p.conversation_id and r.user_id = p.user_id
                and r.kind = 'read' order by r.up_to desc limit 1), 0) as told_read
        from conversation_participants p
        cross join lateral (
            select count(*) as number, count(*) filter (where s.left_message_id is null) as open
            from participations s where s.conversation_id = p.conversation_id and s.user_id = p.user_id
        ) stays
        where {in_range('p.conversation_id')}
    )""",
    (
        Invariant(
            "every participant has a user and a conversation",
            """not exists (select from users u where u.user_id = e.user_id)
                or not exists (select from conversations c where c.conversation_id = e.conversation_id)""",
            f"concat({_WHOSE})",
        ),
        Invariant("every participant has a stay", "e.stays = 0", f"concat({_WHOSE})"),
        Invariant(
            "who is in has one open stay, who is out has none",
            "e.stays > 0 and e.open_stays <> (e.left_at is null)::integer",
            f"concat({_WHOSE}, ': ', case when e.left_at is null then 'in' else 'out' end, ', ', e.open_stays, ' open stays')",
        ),
        Invariant(
            "nobody has had delivered what is not there",
            "e.last_delivered_message_id > e.newest",
            f"concat({_WHOSE}, ': delivered up to ', e.last_delivered_message_id, ', newest ', e.newest)",
            WATERMARKS,
        ),
        Invariant(
            "nobody has read what is not there",
            "e.last_read_message_id > e.newest",
            f"concat({_WHOSE}, ': read up to ', e.last_read_message_id, ', newest ', e.newest)",
            WATERMARKS,
        ),
        Invariant(
            "what was read was delivered",
            "e.last_read_message_id > e.last_delivered_message_id",
            f"concat({_WHOSE}, ': read up to ', e.last_read_message_id, ', delivered up to ', e.last_delivered_message_id)",
            WATERMARKS,
        ),
        Invariant(
            "watermarks are not below their receipts",
            "e.told_delivered > e.last_delivered_message_id or e.told_read > e.last_read_message_id",
            f"concat({_WHOSE}, ': delivered ', e.last_delivered_message_id, ', told ', e.told_delivered, '; read ', "
            "e.last_read_message_id, ', told ', e.told_read)",
            WATERMARKS,
        ),
        Invariant("nothing is hidden above the head", "e.hidden_up_to > e.head", f"concat({_WHOSE}, ': up to ', e.hidden_up_to)"),
    ),
)

_STAY: Final = f"{_WHOSE}, ' from ', e.joined_message_id, ' to ', coalesce(e.left_message_id::text, 'now')"

STAYS: Final = Walk(
    "stays",
    "participations",
    "conversation_id",
    5_000,
    f"""e as materialized (
        select s.*, c.type, lead(s.joined_message_id) over stays as next_joined,
            came.message_type as came_type, came.metadata->>'event' as came_event, came.metadata->>'user_id' as came_user,
            went.message_type as went_type, went.metadata->>'event' as went_event, went.metadata->>'user_id' as went_user
        from participations s
        left join conversations c on c.conversation_id = s.conversation_id
        left join messages came on came.message_id = s.joined_message_id and came.conversation_id = s.conversation_id
        left join messages went on went.message_id = s.left_message_id and went.conversation_id = s.conversation_id
        where {in_range('s.conversation_id')}
        window stays as (partition by s.conversation_id, s.user_id order by s.joined_message_id)
    )""",
    (
        Invariant(
            "every stay has its participant",
            """not exists (select from conversation_participants p
                where p.conversation_id = e.conversation_id and p.user_id = e.user_id) or e.type is null""",
            f"concat({_STAY})",
        ),
        Invariant(
            "stays of one user in one conversation do not overlap",
            f"coalesce(e.left_message_id, {MAX_MESSAGE_ID}) >= e.next_joined",
            f"concat({_STAY}, ', the next from ', e.next_joined)",
        ),
        Invariant(
            "a stay in a group begins with the entry that says so",
            f"""e.type = 'group' and e.joined_message_id > {HORIZON} and not coalesce(e.came_type = 'system' and (
                e.came_event = 'created' or e.came_event = 'participant_added' and e.came_user = e.user_id::text), false)
                or e.type = 'group' and e.joined_message_id = 0""",
            f"concat({_STAY})",
        ),
        Invariant(
            "a stay in a group ends with the entry that says so",
            f"""e.type = 'group' and e.left_message_id > {HORIZON} and not coalesce(e.went_type = 'system' and (e.went_event = 'deleted'
                or e.went_event in ('participant_left', 'participant_removed') and e.went_user = e.user_id::text), false)""",
            f"concat({_STAY})",
        ),
        Invariant(
            "a stay of two, or in one's own account, is from 0 and open",
            "e.type <> 'group' and (e.joined_message_id <> 0 or e.left_message_id is not null)",
            f"concat({_STAY})",
        ),
    ),
)

# -- what is derived, or follows ------------------------------------------------------------------------------------------

RECEIPTS: Final = Walk(
    "receipts",
    "receipts",
    "conversation_id",
    10_000,
    f"""e as materialized (
        select r.*, lag(r.up_to) over (partition by r.conversation_id, r.user_id, r.kind order by r.up_to) as previous
        from receipts r where {in_range('r.conversation_id')}
    )""",
    (
        Invariant(
            "receipts do not overlap",
            "e.after < e.previous",
            f"concat({_WHOSE}, ': ', e.kind, ' after ', e.after, ', where an earlier one reaches ', e.previous)",
        ),
        Invariant(
            "every receipt reaches an entry of its conversation, within a stay",
            f"""e.up_to > {HORIZON} and not exists (
                    select from messages m where m.message_id = e.up_to and m.conversation_id = e.conversation_id)
                or not exists (select from participations s where s.conversation_id = e.conversation_id and s.user_id = e.user_id
                    and greatest(s.joined_message_id - 1, 0) <= e.after
                    and coalesce(s.left_message_id, {MAX_MESSAGE_ID}) >= e.up_to)""",
            f"concat({_WHOSE}, ': ', e.kind, ' after ', e.after, ' up to ', e.up_to)",
        ),
    ),
)

DEVICES: Final = Walk(
    "cursors",
    "device_cursors",
    "user_id",
    10_000,
    f"""e as materialized (
        select d.*, {HEAD} as head from device_cursors d where {in_range('d.user_id')}
    )""",
    (
        Invariant(
            "no device has what is not there",
            "e.last_synced_message_id > e.head",
            "concat('user ', e.user_id, ', device ', e.device_id, ': up to ', e.last_synced_message_id, ', head ', e.head)",
            CURSORS,
        ),
    ),
)

# A request to somebody who blocks its sender is `rejected`: kept back, and no friendship.
FRIENDS: Final = Walk(
    "friendships",
    "friendships",
    "user_id",
    10_000,
    f"e as materialized (select f.* from friendships f where {in_range('f.user_id')})",
    (
        Invariant(
            "no block stands between friends, or one who asked and who was asked",
            """e.status <> 'rejected' and exists (select from blocks b where (b.user_id, b.blocked_id) = (e.user_id, e.friend_id)
                or (b.user_id, b.blocked_id) = (e.friend_id, e.user_id))""",
            "concat('users ', e.user_id, ' and ', e.friend_id)",
        ),
    ),
)

HIDDEN: Final = Walk(
    "hidden messages",
    "hidden_messages",
    "user_id",
    10_000,
    f"""e as materialized (
        select h.*, m.conversation_id, m.message_type from hidden_messages h left join messages m on m.message_id = h.message_id
        where {in_range('h.user_id')}
    )""",
    (
        Invariant(
            "what a user has hidden is a text that they may see",
            f"""e.message_id > {HORIZON} and (e.message_type is distinct from 'text'
                or not {in_stay("e.conversation_id", "e.user_id", "e.message_id")})""",
            "concat('user ', e.user_id, ', message ', e.message_id)",
        ),
    ),
)
