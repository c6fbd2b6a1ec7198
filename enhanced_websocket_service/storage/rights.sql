-- What the service may and must be allowed to do.

-- name: needed_rights
-- $1 role, NULL for the one that asks; $2, $3 tables and privileges, pair by pair; $4 functions.
-- One row for each right; held is NULL where there is no such table. A table is the one on the search
-- path, or else one that is only out of sight because its schema may not be used.
WITH asked AS (
    SELECT coalesce($1::text, current_user)::name AS role
), place AS (
    SELECT oid, datname, pg_get_userbyid(datdba) AS owner FROM pg_database
    WHERE datname = current_database()
), needs AS (
    SELECT name, privilege, position,
        coalesce(to_regclass(quote_ident(name))::oid, (
            SELECT hidden.oid FROM pg_class AS hidden
            WHERE hidden.relname = name AND hidden.relkind IN ('r', 'p', 'v')
                AND NOT has_schema_privilege(hidden.relnamespace, 'USAGE')
            ORDER BY hidden.oid LIMIT 1
        )) AS oid
    FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS wanted(name, privilege, position)
), tables AS (
    SELECT needs.*, quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS object, c.relnamespace,
        pg_get_userbyid(c.relowner) AS owner
    FROM needs LEFT JOIN pg_class AS c USING (oid) LEFT JOIN pg_namespace AS n ON n.oid = relnamespace
), schemas AS (
    SELECT n.oid, n.nspname, pg_get_userbyid(n.nspowner) AS owner FROM pg_namespace AS n
    WHERE n.oid IN (SELECT relnamespace FROM tables)
), sequences AS (
    SELECT DISTINCT s.oid, format('%I.%I', n.nspname, s.relname) AS object,
        pg_get_userbyid(s.relowner) AS owner
    FROM tables AS t
    JOIN pg_attrdef AS value ON value.adrelid = t.oid
    JOIN pg_depend AS d ON d.classid = 'pg_attrdef'::regclass AND d.objid = value.oid
        AND d.refclassid = 'pg_class'::regclass
    JOIN pg_class AS s ON s.oid = d.refobjid AND s.relkind = 'S'
    JOIN pg_namespace AS n ON n.oid = s.relnamespace
    WHERE t.privilege = 'INSERT'
), functions AS (
    SELECT p.oid, format('%I.%I(%s)', s.nspname, p.proname, oidvectortypes(p.proargtypes)) AS object,
        pg_get_userbyid(p.proowner) AS owner
    FROM pg_proc AS p JOIN schemas AS s ON s.oid = p.pronamespace WHERE p.proname = ANY ($4::text[])
), rights AS (
    SELECT 1 AS rank, 0 AS position, 'DATABASE' AS kind, quote_ident(datname) AS object, privilege,
        has_database_privilege(role, oid, privilege) AS held, owner
    FROM place, asked, unnest(ARRAY['CONNECT', 'TEMPORARY']) AS privilege
    UNION ALL
    SELECT 2, 0, 'SCHEMA', quote_ident(nspname), 'USAGE', has_schema_privilege(role, oid, 'USAGE'), owner
    FROM schemas, asked
    UNION ALL
    -- A right on all columns may have been given column by column.
    SELECT 3, position, 'TABLE', coalesce(object, name), privilege,
        CASE WHEN privilege = 'DELETE' THEN has_table_privilege(role, oid, privilege)
            ELSE has_any_column_privilege(role, oid, privilege) END, owner
    FROM tables, asked
    UNION ALL
    SELECT 4, 0, 'SEQUENCE', object, 'USAGE', has_sequence_privilege(role, oid, 'USAGE, UPDATE'), owner
    FROM sequences, asked
    UNION ALL
    SELECT 5, 0, 'FUNCTION', object, 'EXECUTE', has_function_privilege(role, oid, 'EXECUTE'), owner
    FROM functions, asked
)
SELECT kind, object, privilege, held,
    -- The owner of the database by another name, which nobody can log in by.
    CASE WHEN rights.owner = 'pg_database_owner' THEN place.owner ELSE rights.owner END AS owner,
    role, quote_ident(role) AS quoted_role, quote_ident(datname) AS database
FROM rights, asked, place ORDER BY rank, rights.position, object, privilege DESC

-- name: role_exists
SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)

-- name: owners
-- Who can bring the schema up to date, where the role that asks may not: $1 the tables.
SELECT current_user AS role, quote_ident(current_database()) AS database,
    array_to_string(current_schemas(false), ', ') AS schemas,
    pg_get_userbyid(datdba) AS database_owner,
    current_schema() IS NOT NULL AND has_schema_privilege(current_schema(), 'CREATE') AS may_create,
    foreign_tables, table_owners
FROM pg_database, (
    SELECT coalesce(array_agg(DISTINCT pg_get_userbyid(relowner)::text), '{}') AS table_owners,
        coalesce(array_agg(relname::text ORDER BY relname), '{}') AS foreign_tables
    FROM pg_class
    WHERE oid IN (SELECT to_regclass(quote_ident(name)) FROM unnest($1::text[]) AS name)
        AND NOT pg_has_role(relowner, 'USAGE')
) AS of_others
WHERE datname = current_database()
