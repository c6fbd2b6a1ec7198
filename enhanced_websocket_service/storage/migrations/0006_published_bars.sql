-- Published bars in the order of the stream: what clients that resume from further back are given.
CREATE INDEX bar_revisions_published ON bar_revisions (symbol, epoch, tick_offset)
    WHERE tick_offset IS NOT NULL;
