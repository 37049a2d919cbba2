-- What is looked for in one conversation is looked for by its own index, however few conversations there are.

-- The primary key gives the order of ids too. Where the statistics tell of few conversations, PostgreSQL hopes to meet the entries of one soon
-- on its way from the log's end; of one that is silent that way is the whole log. So it is to believe in ten entries each.
alter table messages alter column conversation_id set (n_distinct = -0.1);

-- Not of an empty log: it would be taken for one that stays empty, and the first plans, which are kept for a while, read all of it.
do $$
begin
    if exists (select from messages) then
        analyze messages (conversation_id);
    end if;
end $$;
