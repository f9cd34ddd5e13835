-- The processes that use this database: when each was last seen, by the database's clock, and what it told of itself.
CREATE TABLE node (
    name       TEXT COLLATE "C" PRIMARY KEY,
    version    TEXT NOT NULL,
    started_at BIGINT NOT NULL,
    seen_at    BIGINT NOT NULL,
    report     TEXT NOT NULL CHECK (report::json IS NOT NULL)
);

-- The leases that last, among those of all the jobs that were ever joined.
CREATE INDEX lease_lasting ON lease (expires_at);
