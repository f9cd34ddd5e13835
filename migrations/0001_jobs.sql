-- A job is what the user asked for; a segment is a run of its frames that is one ComfyUI prompt; an event is
-- something a watcher is told. Times are Unix milliseconds, flags 0 or 1.

CREATE TABLE job (
    prompt_id        TEXT PRIMARY KEY,
    owner            TEXT,
    state            TEXT NOT NULL CHECK (state IN ('QUEUED', 'PROCESSING', 'SUCCESS', 'FAILED', 'CANCELLED')),
    step             TEXT NOT NULL,
    options          TEXT NOT NULL CHECK (json_valid(options)),
    workflow         TEXT NOT NULL,
    priority         INTEGER NOT NULL,
    output_name      TEXT NOT NULL UNIQUE,
    video_file       TEXT NOT NULL,
    image_file       TEXT NOT NULL,
    video_sha256     TEXT NOT NULL,
    image_sha256     TEXT NOT NULL,
    video_bytes      INTEGER NOT NULL,
    width            INTEGER NOT NULL,
    height           INTEGER NOT NULL,
    frames           INTEGER NOT NULL,
    frame_rate       TEXT NOT NULL,
    duration_s       REAL NOT NULL,
    has_audio        INTEGER NOT NULL,
    created_at       INTEGER NOT NULL,
    updated_at       INTEGER NOT NULL,
    started_at       INTEGER,
    finished_at      INTEGER,
    error            TEXT,
    code             TEXT,
    warnings         TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(warnings)),
    result_file      TEXT,
    result_bytes     INTEGER,
    result_sha256    TEXT,
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    percentage       REAL NOT NULL DEFAULT 0,
    current_frame    INTEGER NOT NULL DEFAULT 0,
    total_frames     INTEGER NOT NULL,
    fps              REAL,
    eta_s            REAL,
    segments_done    INTEGER NOT NULL DEFAULT 0,
    segments_total   INTEGER NOT NULL,
    attempts         INTEGER NOT NULL DEFAULT 0,
    idempotency_key  TEXT,
    request_digest   TEXT,
    webhook_url      TEXT,
    inputs_erased    INTEGER NOT NULL DEFAULT 0,
    result_erased    INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE INDEX job_by_age ON job (created_at DESC, prompt_id DESC);
CREATE INDEX job_by_state ON job (state, created_at DESC, prompt_id DESC);
CREATE INDEX job_queued ON job (priority DESC, created_at, prompt_id) WHERE state = 'QUEUED';
CREATE UNIQUE INDEX job_by_key ON job (coalesce(owner, ''), idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX job_with_inputs ON job (finished_at) WHERE inputs_erased = 0 AND finished_at IS NOT NULL;
CREATE INDEX job_with_result ON job (finished_at) WHERE result_erased = 0 AND result_file IS NOT NULL;
CREATE INDEX job_by_result ON job (result_file) WHERE result_file IS NOT NULL;

CREATE TABLE segment (
    prompt_id       TEXT NOT NULL REFERENCES job ON DELETE CASCADE,
    number          INTEGER NOT NULL,
    first_frame     INTEGER NOT NULL,
    frame_count     INTEGER NOT NULL,
    state           TEXT NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'submitted', 'done', 'failed')),
    priority        INTEGER NOT NULL,
    created_at      INTEGER NOT NULL,
    not_before      INTEGER NOT NULL DEFAULT 0,
    attempt         INTEGER NOT NULL DEFAULT 0,
    failures        INTEGER NOT NULL DEFAULT 0,
    losses          INTEGER NOT NULL DEFAULT 0,
    comfy_prompt_id TEXT UNIQUE,
    backend         TEXT,
    output_file     TEXT,
    changed_share   REAL,
    warnings        TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(warnings)),
    PRIMARY KEY (prompt_id, number)
) STRICT, WITHOUT ROWID;

CREATE INDEX segment_waiting ON segment (priority DESC, created_at, prompt_id, number) WHERE state = 'waiting';
CREATE INDEX segment_submitted ON segment (backend) WHERE state = 'submitted';

CREATE TABLE event (
    prompt_id TEXT NOT NULL REFERENCES job ON DELETE CASCADE,
    seq       INTEGER NOT NULL,
    type      TEXT NOT NULL,
    data      TEXT NOT NULL CHECK (json_valid(data)),
    at        INTEGER NOT NULL,
    PRIMARY KEY (prompt_id, seq)
) STRICT, WITHOUT ROWID;

-- The client id under which we listen to a ComfyUI lives as long as the database.
CREATE TABLE backend (
    name      TEXT PRIMARY KEY,
    client_id TEXT NOT NULL
) STRICT;

-- Seconds per frame of each phase, learned from finished segments.
CREATE TABLE stat (
    key     TEXT NOT NULL,
    phase   TEXT NOT NULL,
    seconds REAL NOT NULL,
    PRIMARY KEY (key, phase)
) STRICT, WITHOUT ROWID;
