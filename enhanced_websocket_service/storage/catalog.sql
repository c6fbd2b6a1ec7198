-- What PostgreSQL's catalog says of the tables that the service writes to. Only definitions: nothing here
-- changes with the rows, with statistics or with the partitions that come and go.

-- name: tables
-- $1 names. One row for each that means something on the search path.
SELECT named.name, jsonb_build_object(
    'name', named.name,
    'schema', n.nspname,
    'shown', format('%I.%I', n.nspname, c.relname),
    'kind', c.relkind,
    'persistence', c.relpersistence,
    'is_partition', c.relispartition,
    'owned', pg_has_role(c.relowner, 'USAGE'),
    'owner', pg_get_userbyid(c.relowner),
    'row_security', row_security_active(c.oid),
    'columns', (
        SELECT coalesce(jsonb_agg(jsonb_build_object(
            'name', a.attname, 'type', format_type(a.atttypid, NULL),
            'shown', format_type(a.atttypid, a.atttypmod), 'modifier', a.atttypmod,
            'not_null', a.attnotnull, 'default', a.atthasdef AND a.attgenerated = '',
            'identity', a.attidentity <> '', 'generated', a.attgenerated
        ) ORDER BY a.attnum), '[]')
        FROM pg_attribute AS a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    ),
    'uniques', (
        SELECT coalesce(jsonb_agg(jsonb_build_object(
            'name', x.relname, 'constraint', k.conname,
            'columns', ARRAY(
                SELECT coalesce(a.attname::text, '(an expression)')
                FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS key(number, place)
                LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = key.number
                WHERE key.place <= i.indnkeyatts ORDER BY key.place
            ),
            'predicate', pg_get_expr(i.indpred, i.indrelid),
            'immediate', i.indimmediate, 'valid', i.indisvalid,
            'shown', format('%I.%I', n.nspname, x.relname)
        ) ORDER BY x.relname), '[]')
        FROM pg_index AS i JOIN pg_class AS x ON x.oid = i.indexrelid
        LEFT JOIN pg_constraint AS k ON k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x')
            AND k.conrelid = c.oid
        WHERE i.indrelid = c.oid AND (i.indisunique OR i.indisexclusion)
    ),
    'triggers', (
        SELECT coalesce(jsonb_agg(DISTINCT t.tgname), '[]') FROM pg_trigger AS t
        WHERE t.tgrelid IN (SELECT c.oid UNION SELECT relid FROM pg_partition_tree(c.oid))
            AND NOT t.tgisinternal AND t.tgenabled IN ('O', 'A') AND t.tgtype & 4 <> 0
    ),
    'update_triggers', (
        SELECT coalesce(jsonb_agg(t.tgname ORDER BY t.tgname), '[]') FROM pg_trigger AS t
        WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgenabled IN ('O', 'A')
            AND t.tgtype & 16 <> 0
    ),
    'rules', (
        SELECT coalesce(jsonb_agg(quote_ident(r.rulename) ORDER BY r.rulename), '[]') FROM pg_rewrite AS r
        WHERE r.ev_class = c.oid AND r.ev_type IN ('2', '3') AND r.ev_enabled IN ('O', 'A')
    ),
    'partition_key', (
        SELECT coalesce(jsonb_agg(DISTINCT coalesce(a.attname, '(an expression)')), '[]')
        FROM pg_partition_tree(c.oid) AS part
        JOIN pg_partitioned_table AS p ON p.partrelid = part.relid
        CROSS JOIN unnest(p.partattrs::int2[]) AS number
        LEFT JOIN pg_attribute AS a ON a.attrelid = p.partrelid AND a.attnum = number AND number > 0
    )
) AS document
FROM unnest($1::text[]) AS named(name)
JOIN pg_class AS c ON c.oid = to_regclass(quote_ident(named.name))
JOIN pg_namespace AS n ON n.oid = c.relnamespace

-- name: fingerprint
-- $1 as above. Asked in a transaction that has written to the tables: until its end nobody can alter them.
-- It is asked for every batch: versions of catalog rows, not what they say.
SELECT md5(coalesce(string_agg(concat_ws(' ', c.oid, c.relkind, c.relpersistence, c.relrowsecurity,
        c.relforcerowsecurity, columns.versions, triggers.versions, uniques.versions, rules.versions),
    ',' ORDER BY c.oid), ''))
FROM unnest($1::text[]) AS named(name)
JOIN pg_class AS c ON c.oid = to_regclass(quote_ident(named.name))
CROSS JOIN LATERAL (SELECT string_agg(concat(attnum, ':', xmin), ',' ORDER BY attnum) AS versions
    FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0) AS columns
CROSS JOIN LATERAL (SELECT string_agg(concat(oid, ':', xmin), ',' ORDER BY oid) AS versions
    FROM pg_trigger
    WHERE tgrelid = c.oid OR c.relkind = 'p' AND tgrelid IN (SELECT relid FROM pg_partition_tree(c.oid))
) AS triggers
CROSS JOIN LATERAL (SELECT string_agg(concat(indexrelid, ':', xmin), ',' ORDER BY indexrelid) AS versions
    FROM pg_index WHERE indrelid = c.oid) AS uniques
CROSS JOIN LATERAL (SELECT string_agg(concat(oid, ':', xmin), ',' ORDER BY oid) AS versions
    FROM pg_rewrite WHERE ev_class = c.oid) AS rules

-- name: place
-- Where a new table would be made, and for whom.
SELECT current_schema()::text AS schema, quote_ident(current_database()) AS database,
    quote_ident(current_user) AS role

-- name: taken
-- $1 names. What has one of them already where a new table, view, index or function would be made.
SELECT c.relname::text AS name, c.relkind::text AS kind, format('%I.%I', n.nspname, c.relname) AS shown
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = current_schema() AND c.relname = ANY ($1::text[])
UNION ALL
SELECT t.typname::text, 'type', format('%I.%I', n.nspname, t.typname)
FROM pg_type AS t JOIN pg_namespace AS n ON n.oid = t.typnamespace
WHERE n.nspname = current_schema() AND t.typname = ANY ($1::text[]) AND t.typrelid = 0
UNION ALL
SELECT p.proname::text, 'function',
    format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid))
FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
WHERE n.nspname = current_schema() AND p.proname = ANY ($1::text[])
ORDER BY name, kind

-- name: id_columns
-- $1 tables with a numeric id. How much of its numbers is used, and how large the table is.
SELECT c.relname::text AS name, format('%I.%I', n.nspname, c.relname) AS shown,
    format_type(a.atttypid, NULL) AS type, a.attidentity <> '' AS identity,
    pg_has_role(c.relowner, 'USAGE') AS owned, pg_get_userbyid(c.relowner) AS owner,
    s.seqrelid::regclass::text AS sequence, format_type(s.seqtypid, NULL) AS sequence_type,
    CASE WHEN has_sequence_privilege(s.seqrelid, 'SELECT, USAGE')
        THEN coalesce(pg_sequence_last_value(s.seqrelid), 0) ELSE 0 END AS used,
    (SELECT coalesce(sum(pg_total_relation_size(part.relid)), pg_total_relation_size(c.oid))::bigint
     FROM pg_partition_tree(c.oid) AS part) AS bytes
FROM unnest($1::text[]) AS named(name)
JOIN pg_class AS c ON c.oid = to_regclass(quote_ident(named.name))
JOIN pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'id' AND NOT a.attisdropped
LEFT JOIN pg_sequence AS s
    ON s.seqrelid = to_regclass(pg_get_serial_sequence(format('%I.%I', n.nspname, c.relname), 'id'))
WHERE c.relkind IN ('r', 'p')

-- name: widen_id
-- Our own view sorts by id; it is the same before and after. `a_table` and `its_view` are replaced.
DO $$
DECLARE
    ours CONSTANT text := coalesce(pg_get_viewdef(to_regclass('its_view')), '');
BEGIN
    IF ours <> '' THEN
        EXECUTE 'CREATE OR REPLACE VIEW its_view AS '
            || regexp_replace(ours, ',\s+(\w+\.)?id DESC', '');
    END IF;
    ALTER TABLE a_table ALTER COLUMN id TYPE BIGINT;
    IF ours <> '' THEN
        EXECUTE 'CREATE OR REPLACE VIEW its_view AS ' || ours;
    END IF;
END
$$
