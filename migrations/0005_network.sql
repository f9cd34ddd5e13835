-- Who may ask: an API key is kept as its SHA-256 only. Several keys may have one name, which is the jobs' owner.
CREATE TABLE api_key (
    sha256     TEXT PRIMARY KEY,
    name       TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT;

-- What this database's services share and tell nobody, such as what links are signed with.
CREATE TABLE secret (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

-- Two owners may use the same name for a result: the names of owned ones are kept as `owner/name`.
UPDATE job SET output_name = owner || '/' || output_name, result_file = owner || '/' || result_file
    WHERE owner IS NOT NULL;

-- Owners take turns: the lower its number, the longer ago an owner's segment was claimed. No owner is the empty one.
CREATE TABLE turn (
    owner  TEXT PRIMARY KEY,
    number INTEGER NOT NULL
) STRICT;

ALTER TABLE segment ADD COLUMN owner TEXT NOT NULL DEFAULT '';
UPDATE segment SET owner = (SELECT owner FROM job WHERE job.prompt_id = segment.prompt_id)
    WHERE prompt_id IN (SELECT prompt_id FROM job WHERE owner IS NOT NULL);
INSERT INTO turn (owner, number) SELECT '', 0 UNION SELECT owner, 0 FROM job WHERE owner IS NOT NULL;
DROP INDEX segment_waiting;
CREATE INDEX segment_waiting ON segment (owner, priority DESC, created_at, prompt_id, number) WHERE state = 'waiting';
-- Each owner asks for their own jobs only.
DROP INDEX job_by_age;
CREATE INDEX job_by_age ON job (coalesce(owner, ''), created_at DESC, prompt_id DESC);
DROP INDEX job_by_state;
CREATE INDEX job_by_state ON job (state, coalesce(owner, ''), created_at DESC, prompt_id DESC);
DROP INDEX job_queued;
CREATE INDEX job_queued ON job (coalesce(owner, ''), priority DESC, created_at, prompt_id) WHERE state = 'QUEUED';

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

-- Files of jobs at a ComfyUI that is not ours, until they were emptied there: nothing can be deleted from outside.
-- They outlive their job.
CREATE TABLE engine_file (
    backend   TEXT NOT NULL,
    kind      TEXT NOT NULL,
    subfolder TEXT NOT NULL,
    name      TEXT NOT NULL,
    prompt_id TEXT NOT NULL,
    added_at  INTEGER NOT NULL,
    PRIMARY KEY (backend, kind, subfolder, name)
) STRICT, WITHOUT ROWID;

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
