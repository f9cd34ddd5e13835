-- The processes that use this database: when each was last seen, by the database's clock, and what it told of itself.
CREATE TABLE node (
    name       TEXT PRIMARY KEY,
    version    TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    seen_at    INTEGER NOT NULL,
    report     TEXT NOT NULL CHECK (json_valid(report))
) STRICT;
