-- Search.
select;
