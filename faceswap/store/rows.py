"""Rows and what they stand for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

from ..errors import BadRequest, NotFound
from ..jobs import ImageFile, Inputs, Job, JobState, Segment, SegmentState, stored_name
from ..options import Options
from .connection import Row

UNKNOWN_JOB = "There is no job with this prompt_id."
PARSED_LIMIT = 1024
"""Parsed texts of each kind that are kept."""

_JOB_COLUMNS = (
    "prompt_id, owner, state, step, options, workflow, output_name, created_at, updated_at, started_at, finished_at,"
    " error, code, warnings, result_file, result_bytes, result_sha256, cancel_requested, percentage, current_frame,"
    " total_frames, fps, eta_s, segments_done, segments_total, attempts, request_digest, webhook_url,"
    " result_put_url, traceparent, consent, label"
)
_JOB_FIELDS = tuple(_JOB_COLUMNS.split(", "))
SELECT_JOB = (
    f"SELECT {', '.join(f'job.{name}' for name in _JOB_FIELDS)}, video.file, video.sha256, video.bytes, video.facts,"
    " (SELECT group_concat(number || ' ' || sha256 || ' ' || file, '|') FROM input"
    " WHERE prompt_id = job.prompt_id AND role = 'face')"
    " FROM job"
    " LEFT JOIN input AS video ON video.prompt_id = job.prompt_id AND video.role = 'video' AND video.number = 0"
)
"""The beginning of a query for jobs, their inputs with them."""
SEGMENT_COLUMNS = (
    "prompt_id, number, first_frame, frame_count, state, attempt, failures, losses, comfy_prompt_id, backend,"
    " output_file, changed_share, warnings, deaths, epoch"
)


def job_of(row: Row) -> Job:
    """Return the job of a row that `SELECT_JOB` gave."""
    # By place: a row of SQLite looks a name up by comparing it with all of its names.
    columns = tuple(row)
    values = dict(zip(_JOB_FIELDS, columns, strict=False))
    values["state"] = JobState(values["state"])
    values["options"] = _options(values["options"])
    values["warnings"] = _warnings(values["warnings"])
    values["cancel_requested"] = bool(values["cancel_requested"])
    if values["owner"] is not None:
        kept = stored_name(values["owner"], "")
        values["output_name"] = values["output_name"].removeprefix(kept)
        values["result_file"] = values["result_file"] and values["result_file"].removeprefix(kept)
    return Job(inputs=_inputs(*columns[len(_JOB_FIELDS) :]), **values)


# The same few texts are read again and again, by those who poll.
@lru_cache(PARSED_LIMIT)
def _inputs(video: str, sha256: str, video_bytes: int, facts: str, faces: str) -> Inputs:
    values = json.loads(facts)
    values["frame_rate"] = Fraction(values["frame_rate"])
    # In whichever order the database joined them.
    images = sorted((int(number), file, digest) for number, digest, file in map(str.split, faces.split("|")))
    return Inputs(video, tuple(ImageFile(file, digest) for _, file, digest in images), sha256, video_bytes, **values)


@lru_cache(PARSED_LIMIT)
def _options(text: str) -> Options:
    return Options.from_dict(json.loads(text))


@lru_cache(PARSED_LIMIT)
def _warnings(text: str) -> tuple[str, ...]:
    return tuple(json.loads(text))


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
    if inputs.is_still:  # a node of the version before knows no such fact
        facts["is_still"] = True
    if inputs.first_frame:
        facts["first_frame"] = inputs.first_frame
    return [
        (prompt_id, "video", 0, inputs.video_file, inputs.video_bytes, inputs.video_sha256, json.dumps(facts)),
        *(
            (prompt_id, "face", number, image.file, None, image.sha256, "{}")
            for number, image in enumerate(inputs.images)
        ),
    ]


def segment_of(row: Row) -> Segment:
    """Return the segment of a row with `SEGMENT_COLUMNS`."""
    values = dict(row)
    values["state"] = SegmentState(values["state"])
    values["warnings"] = _warnings(values["warnings"])
    return Segment(**values)


def found(rows: Sequence[Row]) -> Job:
    """Return the job that a query by `prompt_id` found. Raises `NotFound`."""
    if not rows:
        raise NotFound(UNKNOWN_JOB, code="unknown_prompt_id")
    return job_of(rows[0])


def parse_cursor(cursor: str) -> tuple[int, str]:
    """Return the time and the id at which a page of jobs begins. Raises `BadRequest`."""
    created_at, _, prompt_id = cursor.partition("-")
    if not (created_at.isascii() and created_at.isdecimal()) or len(created_at) > 15 or not prompt_id:
        raise BadRequest("'cursor' is not one that this service gave.", code="invalid_cursor")
    return int(created_at), prompt_id
