-- A dump that is restored into the server that it came from has that server's identity and timeline, yet an older head: told by
-- its tables, which are new ones. Null where an earlier release wrote the row: the next connection of a writer fills it in.
alter table log_epochs add column tables text;
