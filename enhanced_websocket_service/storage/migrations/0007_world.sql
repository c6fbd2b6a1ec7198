-- To which world the rows belong, real prices or simulated ones. One row at most. It is written in the
-- transaction that writes the first row of any table; an empty database belongs to nobody.
CREATE TABLE ews_world (
    singleton BOOLEAN PRIMARY KEY DEFAULT true CHECK (singleton),
    world TEXT NOT NULL CHECK (world IN ('real', 'simulated')),
    since TIMESTAMPTZ NOT NULL DEFAULT now()
);
