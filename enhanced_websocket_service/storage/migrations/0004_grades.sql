-- What a bar is worth, beside the bar: a whole bar speaks for its slot before a poorer one, whatever
-- their sources. NULL: what the source implies (a live bar with a hole in it is partial, others whole).

ALTER TABLE market_data ADD COLUMN IF NOT EXISTS grade TEXT;
ALTER TABLE bar_revisions ADD COLUMN IF NOT EXISTS grade TEXT;

CREATE FUNCTION ews_grade(grade TEXT, certificate JSONB) RETURNS TEXT
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN coalesce(grade, CASE WHEN certificate @> '{"partial": true}' THEN 'partial' ELSE 'whole' END);

-- Best first. reconstructed: a part of it was derived. partial: taken while it formed. close_only: open,
-- high and low were lost. A grade this version does not know ranks last.
CREATE FUNCTION ews_grade_rank(grade TEXT) RETURNS INTEGER
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE grade
        WHEN 'whole' THEN 0 WHEN 'reconstructed' THEN 1 WHEN 'partial' THEN 2 WHEN 'close_only' THEN 3
        ELSE 4
    END;

-- Which bar speaks for a slot that several have: the better grade, then the better source.
CREATE FUNCTION ews_bar_rank(source TEXT, grade TEXT, certificate JSONB) RETURNS INTEGER
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN 10 * ews_grade_rank(ews_grade(grade, certificate)) + ews_source_rank(source);

CREATE OR REPLACE VIEW market_bars AS
SELECT DISTINCT ON (symbol, datetime, ews_is_simulated(source))
    symbol, datetime, open, high, low, close, coalesce(volume, 0) AS volume, source,
    ews_is_simulated(source) AS simulated,
    coalesce(bar_revision, 0) AS revision, coalesce(bar_status, 'closed') AS status,
    certificate, published_at, created_at, updated_at,
    ews_grade(grade, certificate) AS grade
FROM market_data
WHERE open IS NOT NULL AND high IS NOT NULL AND low IS NOT NULL AND close IS NOT NULL
ORDER BY symbol, datetime, ews_is_simulated(source), ews_bar_rank(source, grade, certificate),
    updated_at DESC NULLS LAST, id DESC;
