"""The end of a job: its segments joined, the whole checked, the result kept, the job finished."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .config import Timeouts
from .errors import INTERNAL_ERROR, JobFailure, NotFound
from .files import Files
from .jobs import TERMINAL, Job, JobState, Segment
from .media import JoinFacts, MediaWorker
from .progress_reporter import ProgressReporter
from .recovery import is_full, wait_for_room
from .store import Lease, Store, StoreError
from .tracing import stage

log = logging.getLogger(__name__)

NOT_KNOWN = "Whether a face was swapped cannot be told: the picture is too dark, too restless or encoded too coarsely."


class Assembly:
    """Makes results of finished segments."""

    def __init__(
        self, store: Store, files: Files, media: MediaWorker, progress_reporter: ProgressReporter, timeouts: Timeouts
    ) -> None:
        self._store = store
        self._files = files
        self._media = media
        self._progress_reporter = progress_reporter
        self._timeouts = timeouts

    async def finish(self, prompt_id: str, lease: Lease) -> None:
        """Join a job's segments, check the whole and end the job; try again what may pass by itself.

        Raises `JobFailure` when the job has to end without a result, `LeaseLost` when another joins it by now.
        """
        failures = 0
        while True:
            try:
                job = await self._store.job(prompt_id)
                if job.state not in TERMINAL:
                    with stage("join", job.traceparent, prompt_id=prompt_id):
                        await self._join(job, lease)
                elif job.state == JobState.SUCCESS:
                    # It was ended by a commit that was not answered.
                    await self._files.delete_scratch(prompt_id)
                else:
                    # It was cancelled after its file had got its name, and before that could be stored.
                    await self._files.discard_result(prompt_id, lease.epoch, job.stored_result)
                return
            except NotFound:
                log.info("job %s was erased", prompt_id)
                return
            except JobFailure as failure:
                if failure.code == "disk_full":
                    await wait_for_room(self._store, prompt_id)
                    continue
                failures += 1
                if not failure.transient or failures > len(self._timeouts.retry_s):
                    raise
                await asyncio.sleep(self._timeouts.retry_s[failures - 1])
            except (OSError, StoreError) as error:
                if not is_full(error):
                    log.exception("joining %s", prompt_id)
                    raise JobFailure("internal_error", INTERNAL_ERROR) from error
                await wait_for_room(self._store, prompt_id, error)

    async def _join(self, job: Job, lease: Lease) -> None:
        segments = await self._store.segments(job.prompt_id)
        told = (warning for segment in segments for warning in segment.warnings)
        warnings = [*job.warnings, *_check_changed(segments), *told]
        facts = await self._make_result(job, segments, self._files.joined(job.prompt_id, lease.epoch))
        filename = f"{job.output_name}.{job.extension}"
        await self._files.keep_result(job.prompt_id, lease.epoch, job.stored_result, facts.sha256)
        self._progress_reporter.close(job.prompt_id)
        if await self._store.succeed(
            job,
            lease,
            result_file=filename,
            size=facts.bytes,
            sha256=facts.sha256,
            warnings=tuple(dict.fromkeys((*warnings, *facts.warnings))),
        ):
            await self._files.delete_scratch(job.prompt_id)
        else:
            await self._files.discard_result(job.prompt_id, lease.epoch, job.stored_result)

    async def _make_result(self, job: Job, segments: Sequence[Segment], out: Path) -> JoinFacts:
        """Write the result of a job's finished segments to `out`."""
        parts = await self._files.fetch_segments(segments)
        source = await self._files.local_video(job.prompt_id, job.inputs)
        kind, crf, prompt_id = job.extension, job.options.crf, job.prompt_id
        if job.media == "image":
            return await self._media.finish_picture(parts[0], source, out, kind=kind, crf=crf, prompt_id=prompt_id)
        options, first_frame = job.options, job.inputs.first_frame
        facts = await self._media.join(
            parts, source, out, options.rate, prompt_id, first_frame=first_frame, start=options.start, end=options.end
        )
        if facts.frames != job.total_frames:
            raise JobFailure("frames_missing", f"The result has {facts.frames} frames instead of {job.total_frames}.")
        if kind == "mp4":
            return facts
        made = await self._media.convert(
            out, source, kind=kind, crf=crf, prompt_id=prompt_id, frame_count=job.total_frames
        )
        return replace(made, warnings=(*facts.warnings, *made.warnings))


def _check_changed(segments: Sequence[Segment]) -> tuple[str, ...]:
    """Fail a swap that surely changed nothing; return a warning for one that changed some frames only, or may have."""
    known = [(segment.changed_share, segment.frame_count) for segment in segments if segment.changed_share is not None]
    share = sum(share * frames for share, frames in known) / sum(frames for _, frames in known) if known else 0.0
    if share == 0 and len(known) < len(segments):
        return (NOT_KNOWN,)
    if share == 0:
        raise JobFailure(
            "no_face_detected",
            "No face was swapped in any frame; check that both the video and the picture show a face clearly.",
        )
    if share < 1:
        return (
            f"A face was swapped in about {min(max(share * 100, 1), 99):.0f}% of the frames;"
            " no face was found in the rest.",
        )
    return ()
