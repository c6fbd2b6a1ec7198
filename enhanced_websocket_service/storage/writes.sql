-- Writes: of the journal's writer, of L0, and of the health log.

-- name: make_checkpoint
INSERT INTO journal_checkpoints (journal_id, segment, byte_offset, record, epoch)
VALUES ($1, 0, 0, 0, $2) ON CONFLICT (journal_id) DO NOTHING

-- name: checkpoint
SELECT segment, byte_offset, record FROM journal_checkpoints WHERE journal_id = $1

-- name: lock_checkpoint
-- Waits for a transaction of ours whose connection died: it may still be committing.
SELECT segment, byte_offset, record FROM journal_checkpoints WHERE journal_id = $1 FOR UPDATE

-- name: move_checkpoint
UPDATE journal_checkpoints
SET segment = $2, byte_offset = $3, record = $4, epoch = $5, updated_at = now()
WHERE journal_id = $1

-- name: insert_rejected
INSERT INTO rejected_ticks
    (symbol, time, price, bid, ask, source, received_at, reason, detail, raw)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)

-- name: insert_epoch
INSERT INTO tick_epochs (symbol, epoch, previous_epoch, previous_last_offset)
VALUES ($1, $2, $3, $4) ON CONFLICT (symbol, epoch) DO NOTHING

-- name: insert_bar_revision
INSERT INTO bar_revisions
    (symbol, interval_s, datetime, source, epoch, revision, status, open, high, low, close, volume,
     certificate, tick_offset, published_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8::float8::numeric, $9::float8::numeric, $10::float8::numeric,
    $11::float8::numeric, $12, $13::text::jsonb, $14, $15)
ON CONFLICT (symbol, interval_s, datetime, source, epoch, revision) DO NOTHING

-- name: upsert_live_bar
-- A later epoch, or a later revision in the same one, wins. The casts are ours, whatever types the table
-- has: PostgreSQL brings them into its columns.
INSERT INTO market_data AS old
    (symbol, datetime, open, high, low, close, volume, source, bar_epoch, bar_revision, bar_status,
     certificate, published_at)
VALUES ($1::text, $2::timestamptz, $3::float8::numeric, $4::float8::numeric, $5::float8::numeric,
    $6::float8::numeric, $7::bigint, $8::text, $9::bigint, $10::bigint, $11::text, $12::text::jsonb,
    $13::timestamptz)
ON CONFLICT (symbol, datetime, source) WHERE published_at IS NOT NULL DO UPDATE SET
    open = excluded.open, high = excluded.high, low = excluded.low, close = excluded.close,
    volume = excluded.volume, bar_epoch = excluded.bar_epoch, bar_revision = excluded.bar_revision,
    bar_status = excluded.bar_status, certificate = excluded.certificate,
    published_at = excluded.published_at, updated_at = now()
WHERE (coalesce(old.bar_epoch, -1), coalesce(old.bar_revision, -1))
    <= (excluded.bar_epoch, excluded.bar_revision)

-- name: bar_is_there
-- The first ten values of upsert_live_bar: whether the table holds that version, or a later one.
SELECT EXISTS (
    SELECT FROM market_data
    WHERE symbol = $1::text AND datetime = $2::timestamptz AND source = $8::text
        AND (bar_epoch, bar_revision) >= ($9::bigint, $10::bigint)
        AND ((bar_epoch, bar_revision) > ($9::bigint, $10::bigint)
            OR (open::float8, high::float8, low::float8, close::float8, volume::bigint)
                = ($3::float8, $4::float8, $5::float8, $6::float8, $7::bigint))
)

-- name: make_incoming_ticks
CREATE TEMPORARY TABLE IF NOT EXISTS incoming_ticks (
    -- in the types that are sent, on their way into a table that has others
    symbol VARCHAR(10), source TEXT, flags TEXT[], trading_session BOOLEAN, session_date DATE,
    time TIMESTAMPTZ, volume INTEGER, epoch BIGINT, tick_offset BIGINT, received_at TIMESTAMPTZ,
    last DECIMAL(12,6), bid DECIMAL(12,6), ask DECIMAL(12,6), spread DECIMAL(12,6)
) ON COMMIT DELETE ROWS

-- name: drop_known_ticks
-- What was stored before. Where triggers or children have the rows, no index would refuse them.
DELETE FROM incoming_ticks AS new USING realtime_market_data AS old
WHERE old.symbol = new.symbol AND old.epoch = new.epoch AND old.tick_offset = new.tick_offset

-- name: insert_incoming_ticks
INSERT INTO realtime_market_data
    (symbol, source, flags, trading_session, session_date, time, volume, epoch, tick_offset,
     received_at, last, bid, ask, spread)
SELECT symbol, source, flags, trading_session, session_date, time, volume, epoch, tick_offset,
    received_at, last, bid, ask, spread
FROM incoming_ticks ORDER BY epoch, tick_offset

-- name: altered_ticks
-- How many of them are not in the table as they were written, and of the first: the columns that differ,
-- NULL when it is not there.
SELECT count(*) OVER () AS altered, new.symbol, new.epoch, new.tick_offset,
    CASE WHEN old.symbol IS NOT NULL THEN concat_ws(', ',
        CASE WHEN old.time IS DISTINCT FROM new.time THEN 'time' END,
        CASE WHEN old.last::float8 IS DISTINCT FROM new.last::float8 THEN 'last' END,
        CASE WHEN old.bid::float8 IS DISTINCT FROM new.bid::float8 THEN 'bid' END,
        CASE WHEN old.ask::float8 IS DISTINCT FROM new.ask::float8 THEN 'ask' END,
        CASE WHEN old.spread::float8 IS DISTINCT FROM new.spread::float8 THEN 'spread' END,
        CASE WHEN old.volume::float8 IS DISTINCT FROM new.volume::float8 THEN 'volume' END,
        CASE WHEN old.source::text IS DISTINCT FROM new.source THEN 'source' END,
        CASE WHEN old.received_at IS DISTINCT FROM new.received_at THEN 'received_at' END,
        CASE WHEN old.session_date IS DISTINCT FROM new.session_date THEN 'session_date' END,
        CASE WHEN old.trading_session IS DISTINCT FROM new.trading_session
            THEN 'trading_session' END,
        CASE WHEN old.flags::text[] IS DISTINCT FROM new.flags THEN 'flags' END
    ) END AS columns
FROM incoming_ticks AS new
LEFT JOIN realtime_market_data AS old
    ON old.symbol = new.symbol AND old.epoch = new.epoch AND old.tick_offset = new.tick_offset
WHERE (old.time, old.last::float8, old.bid::float8, old.ask::float8, old.spread::float8,
        old.volume::float8, old.source::text, old.received_at, old.session_date, old.trading_session,
        old.flags::text[])
    IS DISTINCT FROM (new.time, new.last::float8, new.bid::float8, new.ask::float8,
        new.spread::float8, new.volume::float8, new.source, new.received_at, new.session_date,
        new.trading_session, new.flags)
ORDER BY new.epoch, new.tick_offset LIMIT 1

-- name: empty_incoming_ticks
DELETE FROM incoming_ticks

-- name: make_incoming_bars
CREATE TEMPORARY TABLE incoming_bars (
    symbol VARCHAR(10) NOT NULL, datetime TIMESTAMPTZ NOT NULL, open DECIMAL(12,6) NOT NULL,
    high DECIMAL(12,6) NOT NULL, low DECIMAL(12,6) NOT NULL, close DECIMAL(12,6) NOT NULL,
    volume INTEGER NOT NULL, source VARCHAR(50) NOT NULL, bar_revision INTEGER NOT NULL,
    bar_status TEXT NOT NULL
) ON COMMIT DROP

-- name: keep_replaced_versions
-- What is about to change is kept as the version it was.
WITH replaced AS (
    SELECT old.* FROM market_data AS old
    JOIN incoming_bars AS new USING (symbol, datetime, source)
    WHERE (old.open, old.high, old.low, old.close, coalesce(old.volume, 0))
        IS DISTINCT FROM (new.open, new.high, new.low, new.close, new.volume)
        AND old.open IS NOT NULL AND old.high IS NOT NULL AND old.low IS NOT NULL
        AND old.close IS NOT NULL
    ORDER BY symbol, datetime, source FOR UPDATE OF old
)
INSERT INTO bar_revisions
    (symbol, interval_s, datetime, source, epoch, revision, status, open, high, low, close, volume,
     certificate, grade, published_at)
SELECT symbol, 300, datetime, source, coalesce(bar_epoch, 0), coalesce(bar_revision, 0),
    coalesce(bar_status, 'closed'), open, high, low, close, coalesce(volume, 0), certificate,
    grade, coalesce(published_at, created_at, now())
FROM replaced
ON CONFLICT (symbol, interval_s, datetime, source, epoch, revision) DO NOTHING

-- name: upsert_vendor_bars
-- $1 the clock's now. A bar whose values are as before stays the version it was; the same values may
-- become 'reconciled', which is not a new version. A new version is above every revision that the slot
-- has from anybody: a client may hold a live one.
INSERT INTO market_data AS old
    (symbol, datetime, open, high, low, close, volume, source, bar_revision, bar_status,
     published_at)
SELECT new.symbol, new.datetime, open, high, low, close, volume, source,
    greatest(bar_revision, known.revision + 1), bar_status, $1
FROM incoming_bars AS new
LEFT JOIN (
    SELECT symbol, datetime, simulated, max(revision) AS revision
    FROM (
        SELECT symbol, datetime, ews_is_simulated(old.source) AS simulated,
            old.bar_revision AS revision
        FROM market_data AS old JOIN incoming_bars AS new USING (symbol, datetime)
        UNION ALL
        SELECT new.symbol, datetime, ews_is_simulated(old.source), old.revision
        FROM bar_revisions AS old JOIN incoming_bars AS new USING (symbol, datetime)
        WHERE old.interval_s = 300
    ) AS versions
    GROUP BY symbol, datetime, simulated
) AS known ON known.symbol = new.symbol AND known.datetime = new.datetime
    AND known.simulated = ews_is_simulated(new.source)
ORDER BY new.symbol, new.datetime, source
ON CONFLICT (symbol, datetime, source) WHERE published_at IS NOT NULL DO UPDATE SET
    open = excluded.open, high = excluded.high, low = excluded.low, close = excluded.close,
    volume = excluded.volume, bar_status = excluded.bar_status, updated_at = now(),
    bar_revision = CASE
        WHEN (old.open, old.high, old.low, old.close, coalesce(old.volume, 0)) IS DISTINCT FROM
            (excluded.open, excluded.high, excluded.low, excluded.close, excluded.volume)
        THEN greatest(coalesce(old.bar_revision, 0) + 1, excluded.bar_revision)
        ELSE coalesce(old.bar_revision, excluded.bar_revision) END,
    published_at = CASE
        WHEN (old.open, old.high, old.low, old.close, coalesce(old.volume, 0)) IS DISTINCT FROM
            (excluded.open, excluded.high, excluded.low, excluded.close, excluded.volume)
        THEN excluded.published_at
        ELSE coalesce(old.published_at, old.created_at) END
WHERE (old.open, old.high, old.low, old.close, coalesce(old.volume, 0)) IS DISTINCT FROM
        (excluded.open, excluded.high, excluded.low, excluded.close, excluded.volume)
    OR (old.bar_status IS DISTINCT FROM excluded.bar_status
        AND old.bar_status IS DISTINCT FROM 'reconciled')

-- name: altered_bars
-- How many of the incoming bars the table does not hold as they were written.
SELECT count(*) FROM incoming_bars AS new
WHERE NOT EXISTS (
    SELECT FROM market_data AS old
    WHERE old.symbol = new.symbol AND old.datetime = new.datetime AND old.source = new.source
        AND (old.open::float8, old.high::float8, old.low::float8, old.close::float8,
            coalesce(old.volume, 0)::bigint)
            = (new.open::float8, new.high::float8, new.low::float8, new.close::float8, new.volume)
)

-- name: absent_bars
-- How many of the imported bars have no row: what was better stayed, but something is there.
SELECT count(*) FROM incoming_bars AS new
WHERE NOT EXISTS (
    SELECT FROM market_data AS old
    WHERE old.symbol = new.symbol AND old.datetime = new.datetime AND old.source = new.source
)

-- name: lock_import
-- Two imports of one source take turns: the second sees what the first wrote. $1 symbol, $2 source.
SELECT pg_advisory_xact_lock(hashtextextended('import ' || $1 || ' ' || $2, 0))

-- name: patience
-- A million rows may take longer than any read.
SET LOCAL statement_timeout = 0

-- name: make_imported_bars
CREATE TEMPORARY TABLE incoming_bars (
    symbol VARCHAR(10), datetime TIMESTAMPTZ, open DECIMAL(12,6), high DECIMAL(12,6),
    low DECIMAL(12,6), close DECIMAL(12,6), volume INTEGER, source TEXT, published_at TIMESTAMPTZ,
    grade TEXT
) ON COMMIT DROP

-- name: upsert_imported_bars
-- A bar whose values are as before stays the version it was; a worse one replaces nothing.
INSERT INTO market_data AS old
    (symbol, datetime, open, high, low, close, volume, source, published_at, grade)
SELECT symbol, datetime, open, high, low, close, volume, source, published_at, grade
FROM incoming_bars ORDER BY symbol, datetime, source
ON CONFLICT (symbol, datetime, source) WHERE published_at IS NOT NULL DO UPDATE SET
    open = excluded.open, high = excluded.high, low = excluded.low, close = excluded.close,
    volume = excluded.volume, grade = excluded.grade, updated_at = now(),
    bar_revision = CASE
        WHEN (old.open, old.high, old.low, old.close, coalesce(old.volume, 0)) IS DISTINCT FROM
            (excluded.open, excluded.high, excluded.low, excluded.close, excluded.volume)
        THEN coalesce(old.bar_revision, 0) + 1 ELSE coalesce(old.bar_revision, 0) END,
    published_at = CASE
        WHEN (old.open, old.high, old.low, old.close, coalesce(old.volume, 0)) IS DISTINCT FROM
            (excluded.open, excluded.high, excluded.low, excluded.close, excluded.volume)
        THEN excluded.published_at ELSE coalesce(old.published_at, old.created_at) END
WHERE (old.open, old.high, old.low, old.close, coalesce(old.volume, 0), old.grade)
    IS DISTINCT FROM
    (excluded.open, excluded.high, excluded.low, excluded.close, excluded.volume, excluded.grade)
    AND ews_grade_rank(excluded.grade) <= ews_grade_rank(ews_grade(old.grade, old.certificate))

-- name: insert_health
INSERT INTO system_health (service_name, status, details, response_time_ms, error_message)
VALUES ('enhanced_websocket_service', $1::text, $2::text::jsonb, $3::integer, $4::text)

-- name: note_vendor_gaps
-- $1 symbol, $2 the vendor's source, $3 slots in unix seconds, $4 the clock's now.
INSERT INTO vendor_gaps AS old
    (symbol, interval_s, datetime, source, asked, first_asked_at, last_asked_at)
SELECT $1, 300, to_timestamp(slot), $2, 1, $4, $4 FROM unnest($3::bigint[]) AS slot ORDER BY slot
ON CONFLICT (symbol, interval_s, datetime, source) DO UPDATE SET
    asked = old.asked + 1, last_asked_at = excluded.last_asked_at

-- name: note_drift
INSERT INTO bar_drift (symbol, interval_s, datetime, vendor_source, live_source, live_revision,
    partial, open, high, low, close, measured_at)
VALUES ($1, 300, $2, $3, $4, $5, $6, $7::float8::numeric, $8::float8::numeric, $9::float8::numeric,
    $10::float8::numeric, $11)
ON CONFLICT (symbol, interval_s, datetime, vendor_source) DO UPDATE SET
    live_source = excluded.live_source, live_revision = excluded.live_revision,
    partial = excluded.partial, open = excluded.open, high = excluded.high, low = excluded.low,
    close = excluded.close, measured_at = excluded.measured_at

-- name: keep_seen_versions
-- Vendor bars that came without the journal are about to be replaced by journaled versions: $1 symbol,
-- $2 source, $3 slots in unix seconds. What was readable until now stays answerable by as_of.
INSERT INTO bar_revisions
    (symbol, interval_s, datetime, source, epoch, revision, status, open, high, low, close, volume,
     certificate, published_at)
SELECT symbol, 300, datetime, source, coalesce(bar_epoch, 0), coalesce(bar_revision, 0),
    coalesce(bar_status, 'closed'), open, high, low, close, coalesce(volume, 0), certificate,
    coalesce(published_at, created_at, now())
FROM market_data
WHERE symbol = $1 AND source = $2
    AND datetime IN (SELECT to_timestamp(slot) FROM unnest($3::bigint[]) AS slot)
    AND open IS NOT NULL AND high IS NOT NULL AND low IS NOT NULL AND close IS NOT NULL
ON CONFLICT (symbol, interval_s, datetime, source, epoch, revision) DO NOTHING

-- name: confirm_history
-- The vendor gave these bars again as they are: final, which is no new version.
UPDATE market_data SET bar_status = 'reconciled', updated_at = now()
WHERE symbol = $1 AND source = $2
    AND datetime IN (SELECT to_timestamp(slot) FROM unnest($3::bigint[]) AS slot)

-- name: note_probe
INSERT INTO health_probes AS old (journal_id) VALUES ($1)
ON CONFLICT (journal_id) DO UPDATE SET probed_at = now(), probes = old.probes + 1

-- name: probe_patience
-- $1, $2 milliseconds: the first is shorter, for the server to say that it was a lock.
SELECT set_config('lock_timeout', $1, true), set_config('statement_timeout', $2, true)
