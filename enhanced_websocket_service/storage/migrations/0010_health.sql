-- When an instance last proved that the database takes writes, while there was nothing to write: one row for
-- each journal, updated in place.
CREATE TABLE health_probes (
    journal_id UUID PRIMARY KEY,
    probed_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    probes BIGINT NOT NULL DEFAULT 1
);
