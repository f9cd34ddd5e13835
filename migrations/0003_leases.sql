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
