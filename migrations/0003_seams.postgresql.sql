-- The schema as the first three migrations left it in SQLite, for a database that is empty. Times are Unix
-- milliseconds, flags 0 or 1. Texts that are compared or sorted are so by their bytes, whatever the database's locale.

CREATE TABLE job (
    prompt_id        TEXT COLLATE "C" PRIMARY KEY,
    owner            TEXT COLLATE "C",
    state            TEXT NOT NULL CHECK (state IN ('QUEUED', 'PROCESSING', 'SUCCESS', 'FAILED', 'CANCELLED')),
    step             TEXT NOT NULL,
    options          TEXT NOT NULL CHECK (options::json IS NOT NULL),
    workflow         TEXT NOT NULL,
    priority         INTEGER NOT NULL,
    output_name      TEXT COLLATE "C" NOT NULL UNIQUE,
    created_at       BIGINT NOT NULL,
    updated_at       BIGINT NOT NULL,
    started_at       BIGINT,
    finished_at      BIGINT,
    error            TEXT,
    code             TEXT,
    warnings         TEXT NOT NULL DEFAULT '[]' CHECK (warnings::json IS NOT NULL),
    result_file      TEXT COLLATE "C",
    result_bytes     BIGINT,
    result_sha256    TEXT,
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    percentage       DOUBLE PRECISION NOT NULL DEFAULT 0,
    current_frame    INTEGER NOT NULL DEFAULT 0,
    total_frames     INTEGER NOT NULL,
    fps              DOUBLE PRECISION,
    eta_s            DOUBLE PRECISION,
    segments_done    INTEGER NOT NULL DEFAULT 0,
    segments_total   INTEGER NOT NULL,
    attempts         INTEGER NOT NULL DEFAULT 0,
    idempotency_key  TEXT COLLATE "C",
    request_digest   TEXT,
    webhook_url      TEXT,
    inputs_erased    INTEGER NOT NULL DEFAULT 0,
    result_erased    INTEGER NOT NULL DEFAULT 0,
    last_seq         BIGINT NOT NULL DEFAULT 0
);

CREATE INDEX job_by_age ON job (created_at DESC, prompt_id DESC);
CREATE INDEX job_by_state ON job (state, created_at DESC, prompt_id DESC);
CREATE INDEX job_queued ON job (priority DESC, created_at, prompt_id) WHERE state = 'QUEUED';
CREATE UNIQUE INDEX job_by_key ON job (coalesce(owner, ''), idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX job_with_inputs ON job (finished_at) WHERE inputs_erased = 0 AND finished_at IS NOT NULL;
CREATE INDEX job_with_result ON job (finished_at) WHERE result_erased = 0 AND result_file IS NOT NULL;
CREATE INDEX job_by_result ON job (result_file) WHERE result_file IS NOT NULL;

CREATE TABLE input (
    prompt_id TEXT COLLATE "C" NOT NULL REFERENCES job ON DELETE CASCADE,
    role      TEXT NOT NULL CHECK (role IN ('video', 'face')),
    number    INTEGER NOT NULL,
    file      TEXT NOT NULL,
    bytes     BIGINT,
    sha256    TEXT NOT NULL,
    facts     TEXT NOT NULL CHECK (facts::json IS NOT NULL),
    PRIMARY KEY (prompt_id, role, number)
);

CREATE TABLE segment (
    prompt_id       TEXT COLLATE "C" NOT NULL REFERENCES job ON DELETE CASCADE,
    number          INTEGER NOT NULL,
    first_frame     INTEGER NOT NULL,
    frame_count     INTEGER NOT NULL,
    state           TEXT NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'submitted', 'done', 'failed')),
    priority        INTEGER NOT NULL,
    created_at      BIGINT NOT NULL,
    not_before      BIGINT NOT NULL DEFAULT 0,
    attempt         INTEGER NOT NULL DEFAULT 0,
    failures        INTEGER NOT NULL DEFAULT 0,
    losses          INTEGER NOT NULL DEFAULT 0,
    comfy_prompt_id TEXT COLLATE "C" UNIQUE,
    backend         TEXT COLLATE "C",
    output_file     TEXT,
    changed_share   DOUBLE PRECISION,
    warnings        TEXT NOT NULL DEFAULT '[]' CHECK (warnings::json IS NOT NULL),
    deaths          INTEGER NOT NULL DEFAULT 0,
    epoch           INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (prompt_id, number)
);

CREATE INDEX segment_waiting ON segment (priority DESC, created_at, prompt_id, number) WHERE state = 'waiting';
CREATE INDEX segment_submitted ON segment (backend) WHERE state = 'submitted';
CREATE INDEX segment_pausing ON segment (not_before) WHERE state = 'waiting';

CREATE TABLE event (
    prompt_id TEXT COLLATE "C" NOT NULL REFERENCES job ON DELETE CASCADE,
    seq       BIGINT NOT NULL,
    type      TEXT NOT NULL,
    data      TEXT NOT NULL CHECK (data::json IS NOT NULL),
    at        BIGINT NOT NULL,
    PRIMARY KEY (prompt_id, seq)
);

CREATE TABLE backend (
    name      TEXT COLLATE "C" PRIMARY KEY,
    client_id TEXT NOT NULL
);

CREATE TABLE stat (
    key     TEXT COLLATE "C" NOT NULL,
    phase   TEXT COLLATE "C" NOT NULL,
    seconds DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (key, phase)
);

CREATE TABLE abandoned_prompt (
    comfy_prompt_id TEXT COLLATE "C" PRIMARY KEY,
    backend         TEXT COLLATE "C" NOT NULL
);

CREATE TABLE lease (
    name       TEXT COLLATE "C" PRIMARY KEY,
    holder     TEXT NOT NULL,
    epoch      INTEGER NOT NULL,
    expires_at BIGINT NOT NULL
);
