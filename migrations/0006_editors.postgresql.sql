-- The words by which a user finds a job again.
ALTER TABLE job ADD COLUMN label TEXT COLLATE "C";
CREATE INDEX job_by_label ON job (coalesce(owner, ''), label, created_at DESC, prompt_id DESC) WHERE label IS NOT NULL;

-- Resumable uploads: `received` of `length` bytes are stored. One may serve several jobs until it expires.
CREATE TABLE upload (
    id         TEXT COLLATE "C" PRIMARY KEY,
    owner      TEXT COLLATE "C",
    length     BIGINT NOT NULL,
    received   BIGINT NOT NULL DEFAULT 0,
    parts      TEXT NOT NULL DEFAULT '[]' CHECK (parts::json IS NOT NULL),
    metadata   TEXT NOT NULL,
    sha256     TEXT,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);

CREATE INDEX upload_expiring ON upload (expires_at);
CREATE INDEX upload_of_owner ON upload (coalesce(owner, ''), length);
