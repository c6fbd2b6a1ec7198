-- Who collects each symbol: a lease with an owner and a heartbeat, both by this server's clock. An older
-- release raises epoch without them: where lease_epoch is not epoch, the other columns say nothing.
ALTER TABLE epoch_fence ADD COLUMN owner TEXT;                 -- the journal_id of its STATE_DIR
ALTER TABLE epoch_fence ADD COLUMN owner_name TEXT;            -- for people: host, process, start
ALTER TABLE epoch_fence ADD COLUMN lease_epoch BIGINT;         -- the epoch that owner claimed with
ALTER TABLE epoch_fence ADD COLUMN claimed_at TIMESTAMPTZ;
ALTER TABLE epoch_fence ADD COLUMN heartbeat_at TIMESTAMPTZ;
ALTER TABLE epoch_fence ADD COLUMN released_at TIMESTAMPTZ;    -- NULL while the owner holds it
