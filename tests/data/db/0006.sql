BEGIN TRANSACTION;
CREATE TABLE abandoned_prompt (
    comfy_prompt_id TEXT PRIMARY KEY,
    backend         TEXT NOT NULL
) STRICT;
INSERT INTO "abandoned_prompt" VALUES('11111111-0000-4000-8000-000000000001','http://gpu:8188');
CREATE TABLE api_key (
    sha256     TEXT PRIMARY KEY,
    name       TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT;
CREATE TABLE audit (
    number    INTEGER PRIMARY KEY AUTOINCREMENT,
    at        INTEGER NOT NULL,
    prompt_id TEXT NOT NULL,
    owner     TEXT,
    what      TEXT NOT NULL,
    data      TEXT NOT NULL CHECK (json_valid(data))
) STRICT;
CREATE TABLE backend (
    name      TEXT PRIMARY KEY,
    client_id TEXT NOT NULL
) STRICT;
INSERT INTO "backend" VALUES('embedded','6de3996ddec9455da1e96061f6c04892');
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
CREATE TABLE engine_file (
    backend   TEXT NOT NULL,
    kind      TEXT NOT NULL,
    subfolder TEXT NOT NULL,
    name      TEXT NOT NULL,
    prompt_id TEXT NOT NULL,
    added_at  INTEGER NOT NULL,
    PRIMARY KEY (backend, kind, subfolder, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE event (
    prompt_id TEXT NOT NULL REFERENCES job ON DELETE CASCADE,
    seq       INTEGER NOT NULL,
    type      TEXT NOT NULL,
    data      TEXT NOT NULL CHECK (json_valid(data)),
    at        INTEGER NOT NULL,
    PRIMARY KEY (prompt_id, seq)
) STRICT, WITHOUT ROWID;
INSERT INTO "event" VALUES('00000000-0000-4000-8000-000000000001',1,'queued','{"prompt_id": "00000000-0000-4000-8000-000000000001", "message": "Face swap workflow queued successfully!", "status_url": "/status/00000000-0000-4000-8000-000000000001", "events_url": "/events/00000000-0000-4000-8000-000000000001", "queue_position": 1}',1795361007134);
INSERT INTO "event" VALUES('00000000-0000-4000-8000-000000000001',2,'progress','{"percentage": 100.0, "current": 10, "total": 10, "message": "Face swap progress: 100.00%", "eta_seconds": 0, "fps": null}',1795361007138);
INSERT INTO "event" VALUES('00000000-0000-4000-8000-000000000001',3,'completed','{"message": "Done!", "filename": "holiday.mp4", "download_url": "/download/holiday.mp4", "prompt_id": "00000000-0000-4000-8000-000000000001", "output_prefix": "holiday", "bytes": 99, "sha256": "cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc", "warnings": []}',1795361007138);
INSERT INTO "event" VALUES('00000000-0000-4000-8000-000000000002',1,'queued','{"prompt_id": "00000000-0000-4000-8000-000000000002", "message": "Face swap workflow queued successfully!", "status_url": "/status/00000000-0000-4000-8000-000000000002", "events_url": "/events/00000000-0000-4000-8000-000000000002", "queue_position": 1}',1795361007139);
INSERT INTO "event" VALUES('00000000-0000-4000-8000-000000000002',2,'error','{"detail": "No face was swapped in any frame.", "code": "no_face_detected", "prompt_id": "00000000-0000-4000-8000-000000000002"}',1795361007141);
INSERT INTO "event" VALUES('00000000-0000-4000-8000-000000000003',1,'queued','{"prompt_id": "00000000-0000-4000-8000-000000000003", "message": "Face swap workflow queued successfully!", "status_url": "/status/00000000-0000-4000-8000-000000000003", "events_url": "/events/00000000-0000-4000-8000-000000000003", "queue_position": 1}',1795361007142);
INSERT INTO "event" VALUES('00000000-0000-4000-8000-000000000003',2,'progress','{"percentage": 12.5, "current": 2, "total": 20, "message": "Face swap progress: 12.50%", "eta_seconds": 3.5, "fps": 2.0}',1795361007143);
INSERT INTO "event" VALUES('00000000-0000-4000-8000-000000000004',1,'queued','{"prompt_id": "00000000-0000-4000-8000-000000000004", "message": "Face swap workflow queued successfully!", "status_url": "/status/00000000-0000-4000-8000-000000000004", "events_url": "/events/00000000-0000-4000-8000-000000000004", "queue_position": 1}',1795361007144);
CREATE TABLE input (
    prompt_id TEXT NOT NULL REFERENCES job ON DELETE CASCADE,
    role      TEXT NOT NULL CHECK (role IN ('video', 'face')),
    number    INTEGER NOT NULL,
    file      TEXT NOT NULL,
    bytes     INTEGER,
    sha256    TEXT NOT NULL,
    facts     TEXT NOT NULL CHECK (json_valid(facts)),
    PRIMARY KEY (prompt_id, role, number)
) STRICT, WITHOUT ROWID;
INSERT INTO "input" VALUES('00000000-0000-4000-8000-000000000001','face',0,'image.png',NULL,'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','{}');
INSERT INTO "input" VALUES('00000000-0000-4000-8000-000000000001','video',0,'video.mp4',1234,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','{"width":640,"height":480,"frames":10,"frame_rate":"30000/1001","duration_s":0.333666666666667,"has_audio":true}');
INSERT INTO "input" VALUES('00000000-0000-4000-8000-000000000002','face',0,'image.png',NULL,'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','{}');
INSERT INTO "input" VALUES('00000000-0000-4000-8000-000000000002','video',0,'video.mp4',1234,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','{"width":640,"height":480,"frames":10,"frame_rate":"30000/1001","duration_s":0.333666666666667,"has_audio":true}');
INSERT INTO "input" VALUES('00000000-0000-4000-8000-000000000003','face',0,'image.png',NULL,'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','{}');
INSERT INTO "input" VALUES('00000000-0000-4000-8000-000000000003','video',0,'video.mp4',1234,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','{"width":640,"height":480,"frames":20,"frame_rate":"30000/1001","duration_s":0.667333333333333,"has_audio":true}');
INSERT INTO "input" VALUES('00000000-0000-4000-8000-000000000004','face',0,'image.png',NULL,'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','{}');
INSERT INTO "input" VALUES('00000000-0000-4000-8000-000000000004','video',0,'video.mp4',1234,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','{"width":640,"height":480,"frames":10,"frame_rate":"30000/1001","duration_s":0.333666666666667,"has_audio":true}');
CREATE TABLE job (
    prompt_id        TEXT PRIMARY KEY,
    owner            TEXT,
    state            TEXT NOT NULL CHECK (state IN ('QUEUED', 'PROCESSING', 'SUCCESS', 'FAILED', 'CANCELLED')),
    step             TEXT NOT NULL,
    options          TEXT NOT NULL CHECK (json_valid(options)),
    workflow         TEXT NOT NULL,
    priority         INTEGER NOT NULL,
    output_name      TEXT NOT NULL UNIQUE,
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
, last_seq INTEGER NOT NULL DEFAULT 0, consent TEXT, result_put_url TEXT, traceparent TEXT, label TEXT) STRICT;
INSERT INTO "job" VALUES('00000000-0000-4000-8000-000000000001','ann','SUCCESS','Face swap completed successfully','{"face_index": "0,1", "crf": 23, "priority": 0}','FaceSwap-Reactor-API',0,'ann/holiday',1795361007133,1795361007138,1795361007137,1795361007138,NULL,NULL,'[]','ann/holiday.mp4',99,'cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc',0,100.0,10,10,NULL,0.0,1,1,1,'key','dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd',NULL,0,0,3,NULL,NULL,NULL,NULL);
INSERT INTO "job" VALUES('00000000-0000-4000-8000-000000000002',NULL,'FAILED','Failed','{"crf": 20, "priority": 0}','FaceSwap-Reactor-API',0,'holiday-2',1795361007139,1795361007141,1795361007140,1795361007141,'No face was swapped in any frame.','no_face_detected','[]',NULL,NULL,NULL,0,0.0,0,10,NULL,NULL,0,1,1,NULL,NULL,NULL,0,0,2,NULL,NULL,NULL,NULL);
INSERT INTO "job" VALUES('00000000-0000-4000-8000-000000000003',NULL,'PROCESSING','Preparing','{"crf": 20, "priority": 0}','FaceSwap-Reactor-API',0,'clip',1795361007142,1795361007143,1795361007143,NULL,NULL,NULL,'[]',NULL,NULL,NULL,0,12.5,2,20,2.0,3.5,0,2,1,NULL,NULL,'https://example.com/hook',0,0,1002,NULL,NULL,NULL,NULL);
INSERT INTO "job" VALUES('00000000-0000-4000-8000-000000000004',NULL,'QUEUED','Queued','{"frame_rate": 12.5, "crf": 20, "priority": -1}','FaceSwap-Reactor-API',-1,'clip-2',1795361007144,1795361007144,NULL,NULL,NULL,NULL,'[]',NULL,NULL,NULL,0,0.0,0,10,NULL,NULL,0,1,0,NULL,NULL,NULL,0,0,1001,NULL,NULL,NULL,NULL);
CREATE TABLE lease (
    name       TEXT PRIMARY KEY,
    holder     TEXT NOT NULL,
    epoch      INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;
INSERT INTO "lease" VALUES('backend:one','local',2,1795364607143);
INSERT INTO "lease" VALUES('join:00000000-0000-4000-8000-000000000001','local',1,1795364607143);
CREATE TABLE node (
    name       TEXT PRIMARY KEY,
    version    TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    seen_at    INTEGER NOT NULL,
    report     TEXT NOT NULL CHECK (json_valid(report))
) STRICT;
INSERT INTO "node" VALUES('node-1','3.0.0',1795361007000,1795361008000,'{"engines": []}');
CREATE TABLE secret (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;
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
    warnings        TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(warnings)), deaths INTEGER NOT NULL DEFAULT 0, epoch INTEGER NOT NULL DEFAULT 0, owner TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (prompt_id, number)
) STRICT, WITHOUT ROWID;
INSERT INTO "segment" VALUES('00000000-0000-4000-8000-000000000001',0,0,10,'done',0,1795361007133,0,1,0,0,'b743d16c-ea63-5094-9596-382cb70dc503','one','00000-1.mp4',1.0,'[]',0,0,'ann');
INSERT INTO "segment" VALUES('00000000-0000-4000-8000-000000000002',0,0,10,'failed',0,1795361007139,0,1,0,0,'b2f564d1-0ff0-5810-9642-16d954ca5ec9','one',NULL,NULL,'[]',0,0,'');
INSERT INTO "segment" VALUES('00000000-0000-4000-8000-000000000003',0,0,10,'submitted',0,1795361007142,0,1,0,0,'81147ac9-3065-570d-ab4b-6d2228137f6d','one',NULL,NULL,'[]',0,2,'');
INSERT INTO "segment" VALUES('00000000-0000-4000-8000-000000000003',1,10,10,'waiting',0,1795361007142,0,0,0,0,NULL,NULL,NULL,NULL,'[]',1,0,'');
INSERT INTO "segment" VALUES('00000000-0000-4000-8000-000000000004',0,0,10,'waiting',-1,1795361007144,0,0,0,0,NULL,NULL,NULL,NULL,'[]',1,0,'');
CREATE TABLE stat (
    key     TEXT NOT NULL,
    phase   TEXT NOT NULL,
    seconds REAL NOT NULL,
    PRIMARY KEY (key, phase)
) STRICT, WITHOUT ROWID;
INSERT INTO "stat" VALUES('embedded|FaceSwap-Reactor-API','load 1',0.001);
INSERT INTO "stat" VALUES('embedded|FaceSwap-Reactor-API','swap 1',0.03);
CREATE TABLE turn (
    owner  TEXT PRIMARY KEY,
    number INTEGER NOT NULL
) STRICT;
INSERT INTO "turn" VALUES('',0);
INSERT INTO "turn" VALUES('ann',0);
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
CREATE UNIQUE INDEX job_by_key ON job (coalesce(owner, ''), idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX job_with_inputs ON job (finished_at) WHERE inputs_erased = 0 AND finished_at IS NOT NULL;
CREATE INDEX job_with_result ON job (finished_at) WHERE result_erased = 0 AND result_file IS NOT NULL;
CREATE INDEX job_by_result ON job (result_file) WHERE result_file IS NOT NULL;
CREATE INDEX segment_submitted ON segment (backend) WHERE state = 'submitted';
CREATE INDEX segment_pausing ON segment (not_before) WHERE state = 'waiting';
CREATE INDEX segment_waiting ON segment (owner, priority DESC, created_at, prompt_id, number) WHERE state = 'waiting';
CREATE INDEX job_by_age ON job (coalesce(owner, ''), created_at DESC, prompt_id DESC);
CREATE INDEX job_by_state ON job (state, coalesce(owner, ''), created_at DESC, prompt_id DESC);
CREATE INDEX job_queued ON job (coalesce(owner, ''), priority DESC, created_at, prompt_id) WHERE state = 'QUEUED';
CREATE INDEX delivery_due ON delivery (kind, due_at) WHERE state = 'waiting';
CREATE INDEX delivery_of_job ON delivery (prompt_id, created_at);
CREATE INDEX audit_of_job ON audit (prompt_id, number);
CREATE INDEX job_ended ON job (finished_at) WHERE finished_at IS NOT NULL;
CREATE TRIGGER audit_is_never_changed BEFORE UPDATE ON audit BEGIN
    SELECT raise(ABORT, 'audit lines are only added');
END;
CREATE TRIGGER audit_is_never_deleted BEFORE DELETE ON audit BEGIN
    SELECT raise(ABORT, 'audit lines are only added');
END;
CREATE INDEX job_by_label ON job (coalesce(owner, ''), label, created_at DESC, prompt_id DESC) WHERE label IS NOT NULL;
CREATE INDEX upload_expiring ON upload (expires_at);
CREATE INDEX upload_of_owner ON upload (coalesce(owner, ''), length);
DELETE FROM "sqlite_sequence";
COMMIT;
PRAGMA user_version = 6;
