-- Reconciliation: what the vendor was asked for in vain, and how far live bars were from its own.

-- Slots that answers of the vendor lacked. A slot that came after all keeps its row: it is evidence.
CREATE TABLE vendor_gaps (
    symbol TEXT NOT NULL,
    interval_s INTEGER NOT NULL,
    datetime TIMESTAMPTZ NOT NULL,
    source TEXT NOT NULL,            -- the vendor's bars: twelvedata or simulator
    asked INTEGER NOT NULL,          -- answers that lacked it
    first_asked_at TIMESTAMPTZ NOT NULL,
    last_asked_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (symbol, interval_s, datetime, source)
);

-- Live minus vendor, by field, for each slot that both covered; replaced when the vendor revises.
CREATE TABLE bar_drift (
    symbol TEXT NOT NULL,
    interval_s INTEGER NOT NULL,
    datetime TIMESTAMPTZ NOT NULL,
    vendor_source TEXT NOT NULL,
    live_source TEXT NOT NULL,
    live_revision INTEGER NOT NULL,
    partial BOOLEAN NOT NULL,        -- the live bar was not collected for its whole time
    open DECIMAL(12,6) NOT NULL,
    high DECIMAL(12,6) NOT NULL,
    low DECIMAL(12,6) NOT NULL,
    close DECIMAL(12,6) NOT NULL,
    measured_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (symbol, interval_s, datetime, vendor_source)
);

-- system_health tells when the service was collecting, by the service's clock (details.at; created_at is
-- the machine's, which says nothing in virtual time). A table made otherwise has to do without.
DO $$
BEGIN
    IF EXISTS (
        SELECT FROM pg_attribute
        WHERE attrelid = 'system_health'::regclass AND attname = 'details'
          AND atttypid = 'jsonb'::regtype
    ) THEN
        CREATE INDEX ews_system_health_at ON system_health ((details ->> 'at') COLLATE "C")
            WHERE service_name = 'enhanced_websocket_service';
    END IF;
END
$$;
