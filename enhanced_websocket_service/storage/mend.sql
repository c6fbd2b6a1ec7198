-- Epochs that none of ours can be, and what they become. $1 what epochs are lower than.

-- name: patience
SET LOCAL statement_timeout = 0

-- name: make_mended
-- The order stays; each is above every epoch that is one.
CREATE TEMPORARY TABLE mended_epochs ON COMMIT DROP AS
WITH known AS (
    SELECT epoch FROM realtime_market_data WHERE epoch IS NOT NULL
    UNION SELECT bar_epoch FROM market_data WHERE bar_epoch IS NOT NULL
    UNION SELECT epoch FROM bar_revisions
    UNION SELECT epoch FROM tick_epochs
    UNION SELECT previous_epoch FROM tick_epochs WHERE previous_epoch IS NOT NULL
    UNION SELECT epoch FROM epoch_fence
    UNION SELECT epoch FROM journal_checkpoints
)
SELECT epoch AS before, (SELECT coalesce(max(epoch) FILTER (WHERE epoch < {limit}), 0) FROM known)
    + row_number() OVER (ORDER BY epoch) AS after
FROM known WHERE epoch >= {limit}

-- name: limit
-- 2^53
9007199254740992

-- name: mended
SELECT before, after FROM mended_epochs ORDER BY before

-- name: mend_ticks
UPDATE realtime_market_data SET epoch = after FROM mended_epochs WHERE epoch = before

-- name: mend_bars
UPDATE market_data SET bar_epoch = after FROM mended_epochs WHERE bar_epoch = before

-- name: mend_revisions
UPDATE bar_revisions SET epoch = after FROM mended_epochs WHERE epoch = before

-- name: mend_previous
UPDATE tick_epochs SET previous_epoch = after FROM mended_epochs WHERE previous_epoch = before

-- name: mend_epochs
UPDATE tick_epochs SET epoch = after FROM mended_epochs WHERE epoch = before

-- name: mend_fence
-- Nobody holds it: its owner would have renewed it under the old number.
UPDATE epoch_fence SET epoch = after, lease_epoch = NULL, released_at = clock_timestamp()
FROM mended_epochs WHERE epoch = before

-- name: mend_checkpoints
UPDATE journal_checkpoints SET epoch = after FROM mended_epochs WHERE epoch = before

-- name: mend_health
UPDATE system_health SET details = jsonb_set(details::jsonb, ARRAY['epoch'], to_jsonb(after))
FROM mended_epochs
WHERE details ->> 'epoch' = before::text
