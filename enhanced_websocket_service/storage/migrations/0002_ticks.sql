-- Ticks get an identity (symbol, epoch, offset); what was refused gets a table of its own.

-- NULL for rows that other programs wrote: their ticks have no number, and NULLs never collide in
-- the unique index below, so it can be built over any existing rows.
ALTER TABLE realtime_market_data ADD COLUMN IF NOT EXISTS epoch BIGINT;
ALTER TABLE realtime_market_data ADD COLUMN IF NOT EXISTS tick_offset BIGINT;
ALTER TABLE realtime_market_data ADD COLUMN IF NOT EXISTS received_at TIMESTAMPTZ;
ALTER TABLE realtime_market_data ADD COLUMN IF NOT EXISTS flags TEXT[];

-- The name that UNIQUE(symbol, epoch, tick_offset) gives by itself: a database that has the
-- constraint already does not get a second index.
CREATE UNIQUE INDEX IF NOT EXISTS realtime_market_data_symbol_epoch_tick_offset_key
    ON realtime_market_data (symbol, epoch, tick_offset);
CREATE INDEX IF NOT EXISTS ews_realtime_market_data_time ON realtime_market_data (symbol, time);

-- Every quote that did not become a tick, and every record that no table could hold
-- (reason 'unstorable', the record as JSON in raw). Columns as wide as they come: nothing may be
-- refused here.
CREATE TABLE rejected_ticks (
    id BIGSERIAL PRIMARY KEY,
    symbol TEXT,
    time TIMESTAMPTZ,
    price DOUBLE PRECISION,
    bid DOUBLE PRECISION,
    ask DOUBLE PRECISION,
    source TEXT,
    received_at TIMESTAMPTZ,
    reason TEXT NOT NULL,
    detail TEXT,
    raw TEXT,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE INDEX rejected_ticks_received_at ON rejected_ticks (received_at);

-- How far each journal has been stored; moved in the transaction that stores the records.
CREATE TABLE journal_checkpoints (
    journal_id UUID PRIMARY KEY,
    segment BIGINT NOT NULL,
    byte_offset BIGINT NOT NULL,
    record BIGINT NOT NULL,
    epoch BIGINT NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

-- The highest epoch that may write each symbol. Writers share-lock the row, a new instance updates
-- it: after that no older one can commit.
CREATE TABLE epoch_fence (
    symbol TEXT PRIMARY KEY,
    epoch BIGINT NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

-- The epochs that ever began: where one ended is known from the one after it.
CREATE TABLE tick_epochs (
    symbol TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    previous_epoch BIGINT,
    previous_last_offset BIGINT,
    recorded_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (symbol, epoch)
);
