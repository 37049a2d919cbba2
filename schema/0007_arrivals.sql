-- Which connection opened a device's cursor last, and when that connection came.

-- A connect may wait long for the database, and its device may have come again meanwhile, by another process. Whoever came
-- earlier is too late then: opening after all, it would replace the connection that the device uses.
alter table device_cursors add column session_id uuid, add column came_at timestamptz;
