"""Rows and what they stand for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction

from ..errors import BadRequest, NotFound
from ..jobs import Inputs, Job, JobState, Options, Segment, SegmentState
from .connection import Row

_JOB_COLUMNS = (
    "prompt_id, owner, state, step, options, workflow, output_name, created_at, updated_at, started_at, finished_at,"
    " error, code, warnings, result_file, result_bytes, result_sha256, cancel_requested, percentage, current_frame,"
    " total_frames, fps, eta_s, segments_done, segments_total, attempts, request_digest, webhook_url"
)
_INPUT_COLUMNS = {
    "video_file": "video.file",
    "video_bytes": "video.bytes",
    "video_sha256": "video.sha256",
    "video_facts": "video.facts",
    "image_file": "face.file",
    "image_sha256": "face.sha256",
}
SELECT_JOB = (
    f"SELECT {', '.join(f'job.{name}' for name in _JOB_COLUMNS.split(', '))},"
    f" {', '.join(f'{column} AS {name}' for name, column in _INPUT_COLUMNS.items())} FROM job"
    " LEFT JOIN input AS video ON video.prompt_id = job.prompt_id AND video.role = 'video' AND video.number = 0"
    " LEFT JOIN input AS face ON face.prompt_id = job.prompt_id AND face.role = 'face' AND face.number = 0"
)
"""The beginning of a query for jobs, their inputs with them."""
SEGMENT_COLUMNS = (
    "prompt_id, number, first_frame, frame_count, state, attempt, failures, losses, comfy_prompt_id, backend,"
    " output_file, changed_share, warnings, deaths, epoch"
)


def job_of(row: Row) -> Job:
    """Return the job of a row that `SELECT_JOB` gave."""
    values = dict(row)
    facts = json.loads(values.pop("video_facts"))
    inputs = {name: values.pop(name) for name in _INPUT_COLUMNS if name != "video_facts"}
    facts["frame_rate"] = Fraction(facts["frame_rate"])
    values["state"] = JobState(values["state"])
    values["options"] = Options(**json.loads(values["options"]))
    values["warnings"] = tuple(json.loads(values["warnings"]))
    values["cancel_requested"] = bool(values["cancel_requested"])
    return Job(inputs=Inputs(**inputs, **facts), **values)


def input_rows(prompt_id: str, inputs: Inputs) -> list[tuple[str, str, int, str, int | None, str, str]]:
    """Return the rows of a job's inputs: prompt_id, role, number, file, bytes, sha256, facts."""
    facts = {
        "width": inputs.width,
        "height": inputs.height,
        "frames": inputs.frames,
        "frame_rate": str(inputs.frame_rate),
        "duration_s": inputs.duration_s,
        "has_audio": inputs.has_audio,
    }
    return [
        (prompt_id, "video", 0, inputs.video_file, inputs.video_bytes, inputs.video_sha256, json.dumps(facts)),
        (prompt_id, "face", 0, inputs.image_file, None, inputs.image_sha256, "{}"),
    ]


def segment_of(row: Row) -> Segment:
    """Return the segment of a row with `SEGMENT_COLUMNS`."""
    values = dict(row)
    values["state"] = SegmentState(values["state"])
    values["warnings"] = tuple(json.loads(values["warnings"]))
    return Segment(**values)


def found(rows: Sequence[Row]) -> Job:
    """Return the job that a query by `prompt_id` found. Raises `NotFound`."""
    if not rows:
        raise NotFound("There is no job with this prompt_id.", code="unknown_prompt_id")
    return job_of(rows[0])


def parse_cursor(cursor: str) -> tuple[int, str]:
    """Return the time and the id at which a page of jobs begins. Raises `BadRequest`."""
    created_at, _, prompt_id = cursor.partition("-")
    if not created_at.isdecimal() or len(created_at) > 15 or not prompt_id:
        raise BadRequest("'cursor' is not one that this service gave.", code="invalid_cursor")
    return int(created_at), prompt_id
