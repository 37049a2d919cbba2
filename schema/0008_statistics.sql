-- What is looked for in one conversation is looked for by its own index, however few conversations there are.

-- The primary key gives the order of ids too. Where the statistics tell of few conversations, PostgreSQL hopes to meet the entries of one soon
-- on its way from the log's end; of one that is silent that way is the whole log. So it is to believe in ten entries each.
alter table messages alter column conversation_id set (n_distinct = -0.1);
analyze messages (conversation_id);
