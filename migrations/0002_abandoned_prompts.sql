-- Prompts that were given up while their ComfyUI could not be asked: it may still know them and is asked to stop them.
CREATE TABLE abandoned_prompt (
    comfy_prompt_id TEXT PRIMARY KEY,
    backend         TEXT NOT NULL
) STRICT;

-- When the next pausing segment is due.
CREATE INDEX segment_pausing ON segment (not_before) WHERE state = 'waiting';

-- How often in a row an engine has died while it worked on the segment.
ALTER TABLE segment ADD COLUMN deaths INTEGER NOT NULL DEFAULT 0;
