-- Bars get a provenance, a history of revisions and one view that decides between sources.

-- NULL for rows that other programs wrote.
ALTER TABLE market_data ADD COLUMN IF NOT EXISTS bar_epoch BIGINT;
ALTER TABLE market_data ADD COLUMN IF NOT EXISTS bar_revision INTEGER;
ALTER TABLE market_data ADD COLUMN IF NOT EXISTS bar_status TEXT;
ALTER TABLE market_data ADD COLUMN IF NOT EXISTS certificate JSONB;
ALTER TABLE market_data ADD COLUMN IF NOT EXISTS published_at TIMESTAMPTZ;

-- Upserts need a unique index. A table made without the requirements' constraint may hold
-- duplicates that must stay; there the rows of this service (published_at is set) get their own.
DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_index i
        WHERE i.indrelid = 'market_data'::regclass AND i.indisunique AND i.indisvalid
          AND i.indpred IS NULL
          AND i.indnkeyatts = 3
          AND (SELECT array_agg(a.attname::text ORDER BY a.attname::text)
               FROM pg_attribute a
               WHERE a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey))
              = ARRAY['datetime', 'source', 'symbol']
    ) THEN
        CREATE UNIQUE INDEX ews_market_data_key ON market_data (symbol, datetime, source)
            WHERE published_at IS NOT NULL;
        CREATE INDEX ews_market_data_datetime ON market_data (symbol, datetime);
    END IF;
END
$$;

-- Whether prices of this source are invented.
CREATE FUNCTION ews_is_simulated(source TEXT) RETURNS BOOLEAN
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN coalesce(source = 'simulator' OR source LIKE 'simulator\_%', false);

-- Which source speaks for a slot that several have: the vendor, then other whole imports, then bars
-- made of its stream, then bars made of polled quotes.
CREATE FUNCTION ews_source_rank(source TEXT) RETURNS INTEGER
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE
        WHEN source IN ('twelvedata', 'simulator') THEN 0
        WHEN source LIKE '%\_websocket' THEN 2
        WHEN source LIKE '%\_rest' THEN 3
        ELSE 1
    END;

-- Every version of a bar that was ever published or replaced.
CREATE TABLE bar_revisions (
    id BIGSERIAL PRIMARY KEY,
    symbol TEXT NOT NULL,
    interval_s INTEGER NOT NULL,
    datetime TIMESTAMPTZ NOT NULL,
    source TEXT NOT NULL,
    epoch BIGINT NOT NULL,           -- 0: a vendor bar, not made of our ticks
    revision INTEGER NOT NULL,
    status TEXT NOT NULL,
    open DECIMAL(12,6) NOT NULL,
    high DECIMAL(12,6) NOT NULL,
    low DECIMAL(12,6) NOT NULL,
    close DECIMAL(12,6) NOT NULL,
    volume BIGINT NOT NULL,
    certificate JSONB,
    tick_offset BIGINT,              -- the last tick offset when it was published
    published_at TIMESTAMPTZ NOT NULL,
    recorded_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    UNIQUE (symbol, interval_s, datetime, source, epoch, revision)
);

-- What later examination says about a slot: how far live and vendor bars drifted, and why.
CREATE TABLE bar_grades (
    symbol TEXT NOT NULL,
    interval_s INTEGER NOT NULL,
    datetime TIMESTAMPTZ NOT NULL,
    grade TEXT NOT NULL,
    reason TEXT,
    drift JSONB,
    graded_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (symbol, interval_s, datetime)
);

-- One row a slot and world: simulated prices never stand in for real ones.
CREATE VIEW market_bars AS
SELECT DISTINCT ON (symbol, datetime, ews_is_simulated(source))
    symbol, datetime, open, high, low, close, coalesce(volume, 0) AS volume, source,
    ews_is_simulated(source) AS simulated,
    coalesce(bar_revision, 0) AS revision, coalesce(bar_status, 'closed') AS status,
    certificate, published_at, created_at, updated_at
FROM market_data
WHERE open IS NOT NULL AND high IS NOT NULL AND low IS NOT NULL AND close IS NOT NULL
ORDER BY symbol, datetime, ews_is_simulated(source), ews_source_rank(source),
    updated_at DESC NULLS LAST, id DESC;
