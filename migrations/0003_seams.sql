-- The number of a job's last event: the next one is raised from it in the transaction that needs it.
-- Versions before this one told numbers that they had not stored, up to 1000 of them, of jobs that had not ended.
ALTER TABLE job ADD COLUMN last_seq INTEGER NOT NULL DEFAULT 0;
UPDATE job SET last_seq = (SELECT coalesce(max(seq), 0) FROM event WHERE event.prompt_id = job.prompt_id)
    + iif(state IN ('QUEUED', 'PROCESSING'), 1000, 0);

-- Who may do what only one may do at a time, and until when. The epoch is higher for each holder than for the last.
CREATE TABLE lease (
    name       TEXT PRIMARY KEY,
    holder     TEXT NOT NULL,
    epoch      INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;

-- The epoch of the backend's lease under which the segment was submitted or taken over.
ALTER TABLE segment ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0;

-- A job's input files, in the order of their numbers, and what was found out about each.
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

INSERT INTO input (prompt_id, role, number, file, bytes, sha256, facts)
    SELECT prompt_id, 'video', 0, video_file, video_bytes, video_sha256,
        json_object('width', width, 'height', height, 'frames', frames, 'frame_rate', frame_rate,
            'duration_s', duration_s, 'has_audio', json(iif(has_audio, 'true', 'false')))
    FROM job;
INSERT INTO input (prompt_id, role, number, file, bytes, sha256, facts)
    SELECT prompt_id, 'face', 0, image_file, NULL, image_sha256, '{}' FROM job;

ALTER TABLE job DROP COLUMN video_file;
ALTER TABLE job DROP COLUMN image_file;
ALTER TABLE job DROP COLUMN video_sha256;
ALTER TABLE job DROP COLUMN image_sha256;
ALTER TABLE job DROP COLUMN video_bytes;
ALTER TABLE job DROP COLUMN width;
ALTER TABLE job DROP COLUMN height;
ALTER TABLE job DROP COLUMN frames;
ALTER TABLE job DROP COLUMN frame_rate;
ALTER TABLE job DROP COLUMN duration_s;
ALTER TABLE job DROP COLUMN has_audio;
