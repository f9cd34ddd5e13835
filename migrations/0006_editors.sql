-- The words by which a user finds a job again.
ALTER TABLE job ADD COLUMN label TEXT;
CREATE INDEX job_by_label ON job (coalesce(owner, ''), label, created_at DESC, prompt_id DESC) WHERE label IS NOT NULL;

-- Resumable uploads: `received` of `length` bytes are on the disk. One may serve several jobs until it expires.
CREATE TABLE upload (
    id         TEXT PRIMARY KEY,
    owner      TEXT,
    length     INTEGER NOT NULL,
    received   INTEGER NOT NULL DEFAULT 0,
    parts      TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(parts)),
    metadata   TEXT NOT NULL,
    sha256     TEXT,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;

CREATE INDEX upload_expiring ON upload (expires_at);
CREATE INDEX upload_of_owner ON upload (coalesce(owner, ''), length);
