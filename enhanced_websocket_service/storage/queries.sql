-- Reads. Prices leave as double precision: the nearest double of a DECIMAL(12,6) prints as the same
-- six decimals. Times leave as unix seconds. Every statement filters by the world ($4: simulated).

-- name: bars_now
-- One row a slot, as things stand. $1 symbol, $2 .. $3 labels (inclusive), $4 simulated, $5 source or
-- NULL for the one that speaks for the slot, $6 must be NULL.
SELECT DISTINCT ON (datetime)
    datetime, open, high, low, close, coalesce(volume, 0) AS volume,
    coalesce(source, 'unknown') AS source, coalesce(bar_revision, 0) AS revision,
    coalesce(bar_status, 'closed') AS status, certificate
FROM market_data
WHERE symbol = $1 AND datetime BETWEEN $2 AND $3 AND ews_is_simulated(source) = $4
    AND ($5::text IS NULL OR source = $5) AND $6::timestamptz IS NULL
    AND open IS NOT NULL AND high IS NOT NULL AND low IS NOT NULL AND close IS NOT NULL
ORDER BY datetime, ews_bar_rank(source, grade, certificate), updated_at DESC NULLS LAST, id DESC

-- name: bars_now_backwards
-- The same from the newest on: the order of the index, so that LIMIT ends the scan.
SELECT DISTINCT ON (datetime)
    datetime, open, high, low, close, coalesce(volume, 0) AS volume,
    coalesce(source, 'unknown') AS source, coalesce(bar_revision, 0) AS revision,
    coalesce(bar_status, 'closed') AS status, certificate
FROM market_data
WHERE symbol = $1 AND datetime BETWEEN $2 AND $3 AND ews_is_simulated(source) = $4
    AND ($5::text IS NULL OR source = $5) AND $6::timestamptz IS NULL
    AND open IS NOT NULL AND high IS NOT NULL AND low IS NOT NULL AND close IS NOT NULL
ORDER BY datetime DESC, ews_bar_rank(source, grade, certificate), updated_at DESC NULLS LAST, id DESC

-- name: bars_as_of
-- One row a slot as a consumer saw it at $6: of each source the version published last before, then
-- the source that spoke for the slot among those. A row without provenance counts from its creation.
SELECT DISTINCT ON (datetime)
    datetime, open, high, low, close, volume, source, revision, status, certificate
FROM (
    SELECT DISTINCT ON (datetime, source) *
    FROM (
        SELECT datetime, open, high, low, close, coalesce(volume, 0)::bigint AS volume,
            coalesce(source, 'unknown') AS source, coalesce(bar_epoch, 0) AS epoch,
            coalesce(bar_revision, 0) AS revision, coalesce(bar_status, 'closed') AS status,
            certificate, grade, coalesce(published_at, created_at, '-infinity') AS published_at
        FROM market_data
        WHERE symbol = $1 AND datetime BETWEEN $2 AND $3 AND ews_is_simulated(source) = $4
            AND ($5::text IS NULL OR source = $5)
            AND open IS NOT NULL AND high IS NOT NULL AND low IS NOT NULL AND close IS NOT NULL
        UNION ALL
        SELECT datetime, open, high, low, close, volume, source, epoch, revision, status,
            certificate, grade, published_at
        FROM bar_revisions
        WHERE symbol = $1 AND interval_s = 300 AND datetime BETWEEN $2 AND $3
            AND ews_is_simulated(source) = $4 AND ($5::text IS NULL OR source = $5)
    ) AS versions
    WHERE published_at <= $6::timestamptz
    ORDER BY datetime, source, published_at DESC, epoch DESC, revision DESC
) AS seen
ORDER BY datetime, ews_bar_rank(source, grade, certificate), source

-- name: bar_columns
extract(epoch FROM datetime)::bigint AS open_time, open::float8, high::float8, low::float8,
    close::float8, volume::bigint, source, revision, status, certificate::text

-- name: select_bars_now
SELECT {bar_columns} FROM ({bars_now}) AS bars ORDER BY datetime LIMIT $7

-- name: select_newest_bars_now
SELECT {bar_columns} FROM ({bars_now_backwards}) AS bars ORDER BY datetime DESC LIMIT $7

-- name: select_bars_as_of
SELECT {bar_columns} FROM ({bars_as_of}) AS bars ORDER BY datetime LIMIT $7

-- name: select_newest_bars_as_of
SELECT {bar_columns} FROM ({bars_as_of}) AS bars ORDER BY datetime DESC LIMIT $7

-- name: compose
-- Longer bars out of 5-minute ones: $8 length, $9 zone of days, $10 now: only what has ended; $11 how long
-- before midnight a day begins.
-- The revision is the sum of its parts', so it grows whenever one of them changes.
SELECT datetime, (array_agg(open ORDER BY part))[1] AS open, max(high) AS high, min(low) AS low,
    (array_agg(close ORDER BY part DESC))[1] AS close, sum(volume) AS volume,
    string_agg(DISTINCT source, '+' ORDER BY source) AS source, sum(revision) AS revision,
    CASE WHEN bool_and(status = 'reconciled') THEN 'reconciled' ELSE 'closed' END AS status,
    NULL::jsonb AS certificate

-- name: bucket
SELECT CASE WHEN $8::interval = '1 day'
            THEN date_trunc('day', datetime + $11::interval, $9::text) - $11::interval
            ELSE date_bin($8::interval, datetime, 'epoch'::timestamptz) END AS datetime,
    datetime AS part, open, high, low, close, volume, source, revision, status

-- name: whole
-- Only buckets all of whose slots lie in $2 .. $3, and that have ended.
datetime >= $2 AND datetime + $8::interval - interval '5 minutes' <= $3::timestamptz
    AND datetime + $8::interval <= $10::timestamptz

-- name: compose_bars_now
SELECT {bar_columns} FROM (
    {compose} FROM ({bucket} FROM ({bars_now}) AS slots) AS parts
    WHERE {whole} GROUP BY datetime
) AS bars ORDER BY datetime LIMIT $7

-- name: compose_newest_bars_now
SELECT {bar_columns} FROM (
    {compose} FROM ({bucket} FROM ({bars_now}) AS slots) AS parts
    WHERE {whole} GROUP BY datetime
) AS bars ORDER BY datetime DESC LIMIT $7

-- name: compose_bars_as_of
SELECT {bar_columns} FROM (
    {compose} FROM ({bucket} FROM ({bars_as_of}) AS slots) AS parts
    WHERE {whole} GROUP BY datetime
) AS bars ORDER BY datetime LIMIT $7

-- name: compose_newest_bars_as_of
SELECT {bar_columns} FROM (
    {compose} FROM ({bucket} FROM ({bars_as_of}) AS slots) AS parts
    WHERE {whole} GROUP BY datetime
) AS bars ORDER BY datetime DESC LIMIT $7

-- name: minutes
-- Bars shorter than those stored, out of the same ticks that made them: neither future nor late ones.
SELECT bucket AS datetime,
    (array_agg(last ORDER BY time, epoch NULLS FIRST, tick_offset, id))[1] AS open,
    max(last) AS high, min(last) AS low,
    (array_agg(last ORDER BY time DESC, epoch DESC NULLS LAST, tick_offset DESC, id DESC))[1] AS close,
    sum(coalesce(volume, 0)) AS volume,
    (array_agg(coalesce(source, 'unknown') ORDER BY time, epoch NULLS FIRST, tick_offset, id))[1]
        AS source,
    0 AS revision, 'closed' AS status, NULL::jsonb AS certificate
FROM (
    SELECT date_bin($8::interval, time, 'epoch'::timestamptz) AS bucket, *
    FROM realtime_market_data
    WHERE symbol = $1 AND time >= $2 AND time < $3::timestamptz + $8::interval
        AND ews_is_simulated(source) = $4 AND ($5::text IS NULL OR source = $5)
        AND ($6::timestamptz IS NULL OR received_at <= $6)
        AND trading_session AND last IS NOT NULL
        AND NOT coalesce(flags, '{}') && '{future,late}'
) AS ticks
WHERE bucket + $8::interval <= $9::timestamptz
GROUP BY bucket

-- name: select_minutes
SELECT {bar_columns} FROM ({minutes}) AS bars ORDER BY datetime LIMIT $7

-- name: select_newest_minutes
SELECT {bar_columns} FROM ({minutes}) AS bars ORDER BY datetime DESC LIMIT $7

-- name: last_bar
SELECT {bar_columns} FROM ({bars_now_backwards}) AS bars ORDER BY datetime DESC LIMIT 1

-- name: largest_move
-- The largest move between the closes of neighbouring bars. Near a power of ten it is a fault of the data.
SELECT max(abs(factor - 1)) AS move
FROM (
    SELECT close / before AS factor
    FROM (
        SELECT close::float8 AS close, lag(close::float8) OVER (ORDER BY datetime) AS before
        FROM market_data
        WHERE symbol = $1 AND ews_is_simulated(source) = $2 AND close > 0
    ) AS neighbours
    WHERE before IS NOT NULL
) AS factors
WHERE round(log(factor)) = 0 OR abs(log(factor) - round(log(factor))) > 0.1

-- name: slots_present
-- Slots with a bar, and who has a whole one: a bar with a hole in it, or a close alone, is not the market's.
SELECT extract(epoch FROM datetime)::bigint AS slot,
    coalesce(
        array_agg(DISTINCT coalesce(source, 'unknown'))
            FILTER (WHERE ews_grade(grade, certificate) IN ('whole', 'reconstructed')),
        '{}'
    ) AS sources
FROM market_data
WHERE symbol = $1 AND datetime BETWEEN $2 AND $3 AND ews_is_simulated(source) = $4
    AND open IS NOT NULL AND high IS NOT NULL AND low IS NOT NULL AND close IS NOT NULL
GROUP BY datetime ORDER BY datetime

-- name: tick_columns
symbol, epoch, tick_offset, extract(epoch FROM time)::bigint AS timestamp, last::float8,
    bid::float8, ask::float8, coalesce(volume, 0)::bigint AS volume, coalesce(source, 'unknown') AS source,
    extract(epoch FROM coalesce(received_at, time))::float8 AS received_at,
    coalesce(trading_session, true) AS trading_session, coalesce(flags, '{}') AS flags

-- name: ticks_after
-- By (epoch, offset); rows of other programs have none and cannot be paged through.
SELECT {tick_columns} FROM realtime_market_data
WHERE symbol = $1 AND time BETWEEN $2 AND $3 AND ews_is_simulated(source) = $4
    AND ($5::text IS NULL OR source = $5)
    AND ($6::timestamptz IS NULL OR received_at <= $6)
    AND (epoch, tick_offset) > ($7, $8) AND last IS NOT NULL
ORDER BY epoch, tick_offset LIMIT $9

-- name: newest_ticks
SELECT {tick_columns} FROM realtime_market_data
WHERE symbol = $1 AND time BETWEEN $2 AND $3 AND ews_is_simulated(source) = $4
    AND ($5::text IS NULL OR source = $5)
    AND ($6::timestamptz IS NULL OR received_at <= $6)
    AND epoch IS NOT NULL AND tick_offset IS NOT NULL AND last IS NOT NULL
ORDER BY epoch DESC, tick_offset DESC LIMIT $7

-- name: published_bars
-- What was published as bars, in the order of the stream: places $2:$3 .. $4:$5, the last one left out
-- where $6. $7 simulated, $8 what had been published then.
SELECT {bar_columns}, interval_s, epoch, tick_offset,
    extract(epoch FROM published_at)::float8 AS published_at
FROM bar_revisions
WHERE symbol = $1 AND tick_offset IS NOT NULL AND (epoch, tick_offset) >= ($2::bigint, $3::bigint)
    AND (epoch, tick_offset) <= ($4::bigint, $5::bigint)
    AND NOT ($6::boolean AND (epoch, tick_offset) = ($4::bigint, $5::bigint))
    AND ews_is_simulated(source) = $7 AND published_at <= $8::timestamptz
ORDER BY epoch, tick_offset, id

-- name: first_tick_at
-- The first place among the ticks stamped in the minute that begins with the first stamp at or after
-- $2: stamps may go back a little where offsets never do. $3 simulated, $4 received by then.
WITH first AS (
    SELECT time FROM realtime_market_data
    WHERE symbol = $1 AND time >= $2 AND ews_is_simulated(source) = $3 AND received_at <= $4
        AND tick_offset IS NOT NULL AND last IS NOT NULL
    ORDER BY time LIMIT 1
)
SELECT epoch, tick_offset FROM realtime_market_data
WHERE symbol = $1 AND time >= $2 AND time < (SELECT time + interval '1 minute' FROM first)
    AND ews_is_simulated(source) = $3 AND received_at <= $4
    AND tick_offset IS NOT NULL AND last IS NOT NULL
ORDER BY epoch, tick_offset LIMIT 1

-- name: epochs_after
SELECT epoch, previous_epoch, previous_last_offset FROM tick_epochs
WHERE symbol = $1 AND epoch > $2 ORDER BY epoch

-- name: highest_epoch
-- $1 what epochs are lower than; the second: the highest that is not.
SELECT coalesce(max(epoch) FILTER (WHERE epoch < $1), 0), max(epoch) FILTER (WHERE epoch >= $1) FROM (
    SELECT epoch FROM epoch_fence UNION ALL SELECT epoch FROM tick_epochs
    UNION ALL SELECT epoch FROM journal_checkpoints
) AS known

-- name: slot_rows
-- Every source's bar of each slot, the one that speaks for it first.
SELECT extract(epoch FROM datetime)::bigint AS slot, coalesce(source, 'unknown') AS source,
    open::float8, high::float8, low::float8, close::float8, coalesce(volume, 0)::bigint AS volume,
    coalesce(bar_revision, 0) AS revision, coalesce(bar_status, 'closed') AS status,
    bar_epoch IS NOT NULL AS published,
    coalesce(extract(epoch FROM published_at), 0)::float8 AS seen_at,
    coalesce((certificate ->> 'partial')::boolean, false) AS partial,
    CASE WHEN jsonb_typeof(certificate -> 'ticks') = 'object' THEN
        (SELECT count(*) > 1 FROM jsonb_object_keys(certificate -> 'ticks')) ELSE false END AS mixed,
    ews_grade(grade, certificate) AS grade
FROM market_data
WHERE symbol = $1 AND datetime BETWEEN $2 AND $3 AND ews_is_simulated(source) = $4
    AND open IS NOT NULL AND high IS NOT NULL AND low IS NOT NULL AND close IS NOT NULL
ORDER BY slot, ews_bar_rank(source, grade, certificate), updated_at DESC NULLS LAST, id DESC

-- name: slot_revisions
SELECT extract(epoch FROM datetime)::bigint AS slot, max(revision) AS revision
FROM bar_revisions
WHERE symbol = $1 AND interval_s = 300 AND datetime BETWEEN $2 AND $3
    AND ews_is_simulated(source) = $4
GROUP BY datetime

-- name: vendor_gaps
-- $4 the source of the vendor's bars.
SELECT extract(epoch FROM datetime)::bigint AS slot, asked,
    extract(epoch FROM last_asked_at)::float8 AS last_asked_at
FROM vendor_gaps
WHERE symbol = $1 AND interval_s = 300 AND datetime BETWEEN $2 AND $3 AND source = $4

-- name: drift
-- $4 the source of the vendor's bars. Means and differing over bars collected for their whole time.
SELECT count(*) AS bars, count(*) FILTER (WHERE partial) AS partial,
    count(*) FILTER (WHERE NOT partial AND (open, high, low, close) <> (0, 0, 0, 0)) AS differing,
    (avg(abs(open)) FILTER (WHERE NOT partial))::float8 AS mean_open,
    (avg(abs(high)) FILTER (WHERE NOT partial))::float8 AS mean_high,
    (avg(abs(low)) FILTER (WHERE NOT partial))::float8 AS mean_low,
    (avg(abs(close)) FILTER (WHERE NOT partial))::float8 AS mean_close,
    (max(abs(open)) FILTER (WHERE NOT partial))::float8 AS max_open,
    (max(abs(high)) FILTER (WHERE NOT partial))::float8 AS max_high,
    (max(abs(low)) FILTER (WHERE NOT partial))::float8 AS max_low,
    (max(abs(close)) FILTER (WHERE NOT partial))::float8 AS max_close
FROM bar_drift
WHERE symbol = $1 AND interval_s = 300 AND datetime BETWEEN $2 AND $3 AND vendor_source = $4

-- name: health_marks
-- What the service said of itself at $1 .. $2: ISO 8601 in the service's own offset, compared as text.
SELECT details ->> 'at' AS at, status, error_message, details ->> 'reason' AS reason,
    coalesce(details ->> 'epoch', '0')::bigint AS epoch, details ->> 'dead' AS dead,
    details ->> 'symbols' AS symbols
FROM system_health
WHERE service_name = 'enhanced_websocket_service'
    AND (details ->> 'at') COLLATE "C" BETWEEN $1 AND $2
ORDER BY (details ->> 'at') COLLATE "C", id

-- name: bars_to_compare
-- For an import ($5 its source): the best bar of the others for each slot, and the import's own.
SELECT DISTINCT ON (datetime, own)
    extract(epoch FROM datetime)::bigint AS slot, open::float8, high::float8, low::float8,
    close::float8, ews_grade(grade, certificate) AS grade,
    ews_bar_rank(source, grade, certificate) AS rank, own
FROM (SELECT *, source IS NOT DISTINCT FROM $5 AS own FROM market_data) AS bars
WHERE symbol = $1 AND datetime BETWEEN $2 AND $3 AND ews_is_simulated(source) = $4
    AND open IS NOT NULL AND high IS NOT NULL AND low IS NOT NULL AND close IS NOT NULL
ORDER BY datetime, own, rank, updated_at DESC NULLS LAST, id DESC

-- name: has_bars_of
SELECT EXISTS (SELECT FROM market_data WHERE symbol = $1 AND source = $2)

-- name: foreign_triggers
-- Triggers of the database's owner that a new row would set off, also where the table has partitions.
SELECT tgname::text FROM pg_trigger
WHERE tgrelid IN (
        SELECT to_regclass('realtime_market_data')
        UNION ALL SELECT relid FROM pg_partition_tree(to_regclass('realtime_market_data'))
    )
    AND NOT tgisinternal AND tgenabled <> 'D' AND tgtype & 4 = 4
ORDER BY 1

-- name: blockers
-- Who holds what the server's process $1 waits for.
SELECT blocker.pid, blocker.usename::text AS role, blocker.application_name AS program, blocker.state,
    (SELECT string_agg(DISTINCT coalesce(relation::regclass::text, locktype), ', ')
        FROM pg_locks WHERE pid = $1 AND NOT granted) AS wanted
FROM unnest(pg_blocking_pids($1)) AS pid JOIN pg_stat_activity AS blocker USING (pid) ORDER BY 1
