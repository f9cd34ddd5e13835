-- Who may ask: an API key is kept as its SHA-256 only. Several keys may have one name, which is the jobs' owner.
CREATE TABLE api_key (
    sha256     TEXT PRIMARY KEY,
    name       TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT;

-- The text or reference that a user gave as consent, the address the result is put to, and the trace of the request.
ALTER TABLE job ADD COLUMN consent TEXT;
ALTER TABLE job ADD COLUMN result_put_url TEXT;
ALTER TABLE job ADD COLUMN traceparent TEXT;

-- What is to be sent when a job has ended: stored with its end, delivered at least once. It outlives no job.
-- `origin` is the URL's scheme, host and port; `holder` the node that is sending it, until `due_at`.
CREATE TABLE delivery (
    id           TEXT PRIMARY KEY,
    prompt_id    TEXT NOT NULL REFERENCES job ON DELETE CASCADE,
    kind         TEXT NOT NULL CHECK (kind IN ('webhook', 'result')),
    url          TEXT NOT NULL,
    origin       TEXT NOT NULL,
    body         TEXT NOT NULL,
    state        TEXT NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'delivered', 'failed')),
    created_at   INTEGER NOT NULL,
    due_at       INTEGER NOT NULL,
    give_up_at   INTEGER NOT NULL,
    attempts     INTEGER NOT NULL DEFAULT 0,
    attempted_at INTEGER,
    delivered_at INTEGER,
    last_status  INTEGER,
    last_error   TEXT,
    holder       TEXT
) STRICT;

CREATE INDEX delivery_due ON delivery (kind, due_at) WHERE state = 'waiting';
CREATE INDEX delivery_of_job ON delivery (prompt_id, created_at);

-- What happened to each job: who, when, digests and options, never content. Lines are only added; they outlive the job.
CREATE TABLE audit (
    number    INTEGER PRIMARY KEY AUTOINCREMENT,
    at        INTEGER NOT NULL,
    prompt_id TEXT NOT NULL,
    owner     TEXT,
    what      TEXT NOT NULL,
    data      TEXT NOT NULL CHECK (json_valid(data))
) STRICT;

CREATE INDEX audit_of_job ON audit (prompt_id, number);

-- Ended jobs by age, for those whose records are to go.
CREATE INDEX job_ended ON job (finished_at) WHERE finished_at IS NOT NULL;

CREATE TRIGGER audit_is_never_changed BEFORE UPDATE ON audit BEGIN
    SELECT raise(ABORT, 'audit lines are only added');
END;
CREATE TRIGGER audit_is_never_deleted BEFORE DELETE ON audit BEGIN
    SELECT raise(ABORT, 'audit lines are only added');
END;
