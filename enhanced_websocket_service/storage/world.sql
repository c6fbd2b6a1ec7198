-- To which world the database belongs. These run before the schema is up to date, so they ask for
-- nothing that a migration makes; `a_table` is replaced by a table's name.

-- name: readable_tables
-- A table of another program may be called as one of ours and have other columns.
SELECT name, EXISTS (
    SELECT FROM pg_attribute
    WHERE attrelid = to_regclass(name) AND attname = 'source' AND NOT attisdropped
) AS has_source
FROM unnest($1::text[]) AS name
WHERE coalesce(has_table_privilege(to_regclass(name), 'SELECT'), false)

-- name: marked_world
SELECT world FROM ews_world

-- name: mark_world
INSERT INTO ews_world (world) VALUES ($1) ON CONFLICT DO NOTHING

-- name: set_world
INSERT INTO ews_world (world) VALUES ($1)
ON CONFLICT (singleton) DO UPDATE SET world = excluded.world, since = now()

-- name: has_rows_of_world
-- $1: of the simulated world. Without a source: another program's, and so real.
SELECT EXISTS (
    SELECT FROM a_table
    WHERE coalesce(source = 'simulator' OR source LIKE 'simulator\_%', false) = $1
)

-- name: count_by_world
SELECT coalesce(source = 'simulator' OR source LIKE 'simulator\_%', false) AS simulated, count(*)
FROM a_table GROUP BY simulated

-- name: has_rows
SELECT EXISTS (SELECT FROM a_table)

-- name: patience
-- A million rows may take longer than any other read.
SET LOCAL statement_timeout = 0
