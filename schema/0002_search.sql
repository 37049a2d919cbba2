-- Search: the texts of each conversation packed into blocks, behind the log and off its writer's path. A table that can be emptied
-- (with search_position at 0 and 0): it is filled again from the log.

-- A block is a run of one conversation's entries, some 64 of them: `folded` has their texts without regard to case, an empty one for
-- what is no text, in the order of message_ids. `signature` is a bit map of their words' pairs and triples of letters, which says of
-- most blocks that a word is not in them. So a word is looked for by reading 2 KB a block, and its text only where it may be.
create table search_blocks (
    conversation_id  uuid not null,
    first_message_id bigint not null,
    last_message_id  bigint not null,
    last_seq         bigint not null,
    newest_at        timestamptz not null,
    message_ids      bigint[] not null,
    signature        bytea not null,
    folded           text collate "C" not null,
    primary key (conversation_id, last_message_id)
);
-- The signature stays in the row, the text beside it and as it is: a look at signatures alone passes no text by, and one into a text
-- unpacks nothing.
alter table search_blocks alter column signature set storage plain;
alter table search_blocks alter column folded set storage external;
create index search_blocks_newest on search_blocks (newest_at);

-- One row, whose lock is the right to pack. Every conversation is packed up to message_id, but for its last few entries, which are
-- read from the log itself; what stands at or below horizon is too old to be found.
create table search_position (
    only_row   boolean primary key default true check (only_row),
    message_id bigint not null default 0,
    horizon    bigint not null default 0
);
insert into search_position default values;
