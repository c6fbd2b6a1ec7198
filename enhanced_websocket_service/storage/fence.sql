-- The fence: who may collect, and whose transactions are stored.

-- name: fence_rows
-- $1 symbols, $2 our journal. collects: an older release, which has no heartbeat, was collecting with this
-- epoch a moment ago, as its rows in system_health and its checkpoint tell.
SELECT f.symbol, f.epoch, f.owner, f.owner_name AS name, f.lease_epoch,
    extract(epoch FROM f.claimed_at)::float8 AS claimed_at,
    extract(epoch FROM f.heartbeat_at)::float8 AS heartbeat_at,
    f.released_at IS NOT NULL AS released,
    extract(epoch FROM f.updated_at)::float8 AS updated_at,
    extract(epoch FROM clock_timestamp())::float8 AS now,
    EXISTS (
        SELECT FROM journal_checkpoints AS c WHERE c.journal_id = $2 AND c.epoch = f.epoch
    ) AS stored_here,
    CASE WHEN f.lease_epoch IS NOT DISTINCT FROM f.epoch THEN NULL ELSE (
        SELECT h.status FROM (
            SELECT id, service_name, status, details, created_at FROM system_health
            ORDER BY id DESC LIMIT 1000
        ) AS h
        WHERE h.service_name = 'enhanced_websocket_service'
            AND h.details ->> 'epoch' = f.epoch::text
            AND h.created_at > now() - interval '150 seconds'
        ORDER BY h.id DESC LIMIT 1
    ) END AS last_state,
    CASE WHEN f.lease_epoch IS NOT DISTINCT FROM f.epoch THEN false ELSE EXISTS (
        SELECT FROM journal_checkpoints AS c
        WHERE c.epoch = f.epoch AND c.updated_at > now() - interval '30 seconds'
    ) END AS stores
FROM epoch_fence AS f WHERE f.symbol = ANY ($1::text[]) ORDER BY f.symbol

-- name: make_fence
INSERT INTO epoch_fence (symbol, epoch)
SELECT symbol, 0 FROM unnest($1::text[]) AS symbol ORDER BY symbol
ON CONFLICT (symbol) DO NOTHING

-- name: lock_fence
-- Waits for transactions of the owner before: after that none of them can commit.
SELECT symbol FROM epoch_fence WHERE symbol = ANY ($1::text[]) ORDER BY symbol FOR UPDATE

-- name: claim_fence
-- $1 symbols, $2 epoch, $3 owner, $4 its name.
UPDATE epoch_fence SET epoch = $2, lease_epoch = $2, owner = $3, owner_name = $4,
    claimed_at = clock_timestamp(), heartbeat_at = clock_timestamp(), released_at = NULL,
    updated_at = clock_timestamp()
WHERE symbol = ANY ($1::text[])

-- name: renew_fence
-- $1 symbols, $2 epoch, $3 owner. Changes those that are still ours.
UPDATE epoch_fence SET heartbeat_at = clock_timestamp()
WHERE symbol = ANY ($1::text[]) AND epoch = $2 AND lease_epoch = $2 AND owner = $3
    AND released_at IS NULL

-- name: release_fence
-- $1 symbols, $2 epoch, $3 owner.
UPDATE epoch_fence SET released_at = clock_timestamp()
WHERE symbol = ANY ($1::text[]) AND epoch = $2 AND lease_epoch = $2 AND owner = $3

-- name: check_fence
-- $1 symbols. Locked so that nobody claims while this transaction commits; heartbeats may go on.
SELECT symbol, epoch, owner, owner_name AS name, lease_epoch FROM epoch_fence
WHERE symbol = ANY ($1::text[]) ORDER BY symbol FOR KEY SHARE
