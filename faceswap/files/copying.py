"""The copy of a job's files from a data folder to where nodes share them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from ..jobs import Job, JobState, Segment, SegmentState
from .local import Files
from .writer import PIECE_BYTES, FileWriter, new_file


async def copy_job(source: Files, target: Files, job: Job, segments: Sequence[Segment]) -> None:
    """Copy what there is of a job's files: inputs, finished segments, result. What an earlier try left is replaced.

    Raises `OSError` with a sentence for a file that is not the one of the job's record.
    """
    try:
        await _copy_inputs(source, target, job)
        if job.state == JobState.SUCCESS:
            await _copy_result(source, target, job)
        else:
            for segment in segments:
                await _copy_segment(source, target, segment)
    finally:
        await target.delete_copies([job.prompt_id])


async def _copy_inputs(source: Files, target: Files, job: Job) -> None:
    prompt_id, inputs = job.prompt_id, job.inputs
    await target.delete_upload(prompt_id)
    if not await source.fetch_inputs(prompt_id, inputs):
        return
    await target.begin_upload(prompt_id)
    images = [(image.file, image.sha256) for image in inputs.images]
    for name, sha256 in [(inputs.video_file, inputs.video_sha256), *images]:
        writer = target.new_input(prompt_id, f"{Path(name).stem}.part")
        try:
            await _fill(writer, source.input(prompt_id, name))
            await writer.finish(name)
        finally:
            await writer.close()
        _check(writer, sha256, source.input(prompt_id, name))
    await target.sync_upload(prompt_id)
    await target.accept_upload(prompt_id)


async def _copy_segment(source: Files, target: Files, segment: Segment) -> None:
    path = source.finished_segment(segment)
    if segment.state != SegmentState.DONE or not await source.exists(path):
        return
    if path.name != target.segment(segment).name:
        raise OSError(f"{path} is of an older version; let its job end, or delete it, before.")
    await target.make_scratch(segment.prompt_id)
    async with new_file(target.segment(segment)) as writer:
        await _fill(writer, path)
    await target.keep_segment(segment)


async def _copy_result(source: Files, target: Files, job: Job) -> None:
    result = await source.find_result(job)
    if not isinstance(result, Path) or job.result_sha256 is None:
        return
    await target.make_scratch(job.prompt_id)
    async with new_file(target.joined(job.prompt_id, 0)) as writer:
        await _fill(writer, result)
    _check(writer, job.result_sha256, result)
    await target.keep_result(job.prompt_id, 0, job.stored_result, job.result_sha256)
    await target.delete_scratch(job.prompt_id)


async def _fill(writer: FileWriter, path: Path) -> None:
    with await asyncio.to_thread(path.open, "rb") as file:
        while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
            await writer.write(piece)


def _check(writer: FileWriter, sha256: str, path: Path) -> None:
    if writer.sha256 != sha256:
        raise OSError(f"{path} is not the file that its job's record describes; its digest is another.")
