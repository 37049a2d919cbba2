-- What processes have told each other lately, for those whom the bus did not reach.

-- Each process numbers its words from 1, and each word names the newest: who misses a number reads it here. Kept for two
-- minutes. A word of receipts is kept by the transaction that stores them, so that neither a kill nor a lost answer parts the two.
create table bus_words (
    process_id uuid not null,
    number     bigint not null,
    said_at    timestamptz not null default clock_timestamp(),
    word       bytea not null,
    primary key (process_id, number)
);
-- Written once, read seldom: packing it would cost more than its two minutes of room.
alter table bus_words alter column word set storage external;
create index bus_words_said on bus_words (said_at);
