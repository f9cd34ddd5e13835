"""Rows and what they stand for."""

from __future__ import annotations

import json
from fractions import Fraction

from ..errors import BadRequest, NotFound
from ..jobs import Inputs, Job, JobState, Options, Segment, SegmentState
from .connection import Row

JOB_COLUMNS = (
    "prompt_id, owner, state, step, options, workflow, output_name, video_file, image_file, video_sha256, image_sha256,"
    " video_bytes, width, height, frames, frame_rate, duration_s, has_audio, created_at, updated_at, started_at,"
    " finished_at, error, code, warnings, result_file, result_bytes, result_sha256, cancel_requested, percentage,"
    " current_frame, total_frames, fps, eta_s, segments_done, segments_total, attempts, request_digest, webhook_url"
)
SEGMENT_COLUMNS = (
    "prompt_id, number, first_frame, frame_count, state, attempt, failures, losses, comfy_prompt_id, backend,"
    " output_file, changed_share, warnings, deaths, epoch"
)


def job_of(row: Row) -> Job:
    values = dict(row)
    inputs = {name: values.pop(name) for name in Inputs.__dataclass_fields__}
    inputs["frame_rate"] = Fraction(inputs["frame_rate"])
    inputs["has_audio"] = bool(inputs["has_audio"])
    values["state"] = JobState(values["state"])
    values["options"] = Options(**json.loads(values["options"]))
    values["warnings"] = tuple(json.loads(values["warnings"]))
    values["cancel_requested"] = bool(values["cancel_requested"])
    return Job(inputs=Inputs(**inputs), **values)


def segment_of(row: Row) -> Segment:
    values = dict(row)
    values["state"] = SegmentState(values["state"])
    values["warnings"] = tuple(json.loads(values["warnings"]))
    return Segment(**values)


def checked(row: Row | None, prompt_id: str, owner: str | None) -> Job:
    if row is None or (owner is not None and row["owner"] != owner):
        raise NotFound("There is no job with this prompt_id.", code="unknown_prompt_id")
    return job_of(row)


def parse_cursor(cursor: str) -> tuple[int, str]:
    created_at, _, prompt_id = cursor.partition("-")
    if not created_at.isdecimal() or len(created_at) > 15 or not prompt_id:
        raise BadRequest("'cursor' is not one that this service gave.", code="invalid_cursor")
    return int(created_at), prompt_id
