"""From a request that was read to a job that is on disk: media looked at, segments planned, the record written."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from fractions import Fraction

from ..config import Settings
from ..errors import BadRequest, Unavailable, Unprocessable
from ..jobs import Inputs, Job, JobState, NewJob, Options, default_output_name
from ..media import MediaWorker, VideoFacts, output_frames, plan_segments
from ..store import Store
from ..workflow import Workflow, WorkflowError
from .files import accept_upload, erase_upload
from .readers import Submission

log = logging.getLogger(__name__)

MOST_REPEATS = 100
"""Times that each frame may be repeated on average, for a frame rate that was asked for."""
FEW_FRAMES = 10_000
"""Frames of a result that need no such proportion: a still that is shown for minutes is a video too."""
IDEMPOTENCY_KEY_PATTERN = re.compile(r"[ -~]{1,255}")


class Submitter:
    """Decides which submissions become jobs."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        media: MediaWorker,
        workflows: Mapping[str, Workflow],
        frame_limit: Callable[[int, float], int | None],
    ) -> None:
        """`frame_limit(pixels, frame rate)` tells how many frames a segment may have for the memory of the engines."""
        self._settings = settings
        self._store = store
        self._media = media
        self._workflows = workflows
        self._frame_limit = frame_limit

    async def check(self, idempotency_key: str | None) -> None:
        """Refuse before an upload is read. Raises `BadRequest` or `Unavailable`."""
        if idempotency_key is not None and not IDEMPOTENCY_KEY_PATTERN.fullmatch(idempotency_key):
            raise BadRequest(
                "'Idempotency-Key' must have 1-255 printable ASCII characters.", code="invalid_idempotency_key"
            )
        counts = await self._store.counts()
        if counts[JobState.QUEUED] >= self._settings.queue_limit:
            raise Unavailable("The queue is full; try again later.", code="queue_full", retry_after=60)

    async def submit_job(
        self, submission: Submission, prompt_id: str, *, owner: str | None, idempotency_key: str | None
    ) -> tuple[Job, bool]:
        """Make a job of a submission, or find the one its idempotency key made before; tell whether it is new.

        The submission's files are gone when it did not become a job. Raises `Problem`.
        """
        try:
            new = await self._examine(submission, prompt_id, owner, idempotency_key)
            job, is_new = await self._store.create(new, self._settings.queue_limit)
        except asyncio.CancelledError:
            # The job may be committed all the same. What is left of an upload that became none goes at the next start.
            raise
        except BaseException:
            await _erase(submission)
            raise
        if is_new:
            await asyncio.to_thread(accept_upload, submission.folder)
            log.info(
                "job %s accepted: %d frames of %d×%d in %d segments",
                job.prompt_id,
                job.total_frames,
                job.inputs.width,
                job.inputs.height,
                job.segments_total,
            )
        else:
            await _erase(submission)
        return job, is_new

    async def _examine(
        self, submission: Submission, prompt_id: str, owner: str | None, idempotency_key: str | None
    ) -> NewJob:
        options = submission.options
        workflow = self.check_options(options)
        # One after the other: a refusal erases the folder, which nothing may be reading then.
        await self._media.probe_image(submission.folder / submission.image_file)
        video = await self._media.probe_video(submission.folder / submission.video_file, self._settings.max_frames)
        segment_frames = self._segment_frames(video, options.rate) if workflow.splittable else 0
        check_length(video, segment_frames, options.rate, self._settings)
        segments = plan_segments(video, segment_frames, options.rate)
        if not segments:
            raise Unprocessable("The video has no frames.", code="video_without_frames")
        return NewJob(
            prompt_id=prompt_id,
            output_name=submission.output_name or default_output_name(datetime.now(UTC)),
            options=options,
            workflow=workflow.name,
            inputs=_inputs(submission, video),
            segments=tuple(segments),
            owner=owner,
            idempotency_key=idempotency_key,
            request_digest=submission.digest,
        )

    def _segment_frames(self, video: VideoFacts, frame_rate: Fraction | None) -> int:
        """How many frames a segment may have: what was set, and what fits into the memory of every ComfyUI."""
        wanted = self._settings.segment_frames
        limit = self._frame_limit(video.width * video.height, float(frame_rate or video.frame_rate))
        return min(wanted, limit) if wanted and limit else wanted

    def check_options(self, options: Options) -> Workflow:
        """The workflow that was chosen, which has every option that was. Raises `BadRequest`."""
        name = options.workflow or self._settings.workflow
        workflow = self._workflows.get(name)
        if workflow is None:
            raise BadRequest(
                f"There is no workflow {name!r}; there are {', '.join(sorted(self._workflows))}.",
                code="unknown_workflow",
            )
        try:
            workflow.build(video="", image="", output_prefix="", options=options.to_dict())
        except WorkflowError as error:
            raise BadRequest(str(error), code="invalid_option") from error
        return workflow


def check_length(video: VideoFacts, segment_frames: int, frame_rate: Fraction | None, settings: Settings) -> None:
    """Refuse what would be too much work, before any of it. Raises `Unprocessable` `video_too_long`, `video_has_gaps`.

    A few bytes can tell of any length: of frames that are shown for years, to be repeated 60 times a second.
    """
    if video.duration > settings.max_duration_s:
        limit = f"{settings.max_duration_s:,} seconds"
        detail = f"The video lasts {round(video.duration):,} seconds; at most {limit} are taken."
        raise Unprocessable(detail, code="video_too_long")
    frames = output_frames(video, frame_rate)
    if frames > settings.max_frames:
        detail = f"At this frame rate the video has {frames:,} frames; at most {settings.max_frames:,} are taken."
        raise Unprocessable(detail, code="video_too_long")
    if frames > max(MOST_REPEATS * video.frames, FEW_FRAMES):
        detail = (
            f"The video has {video.frames} frames in {round(video.duration):,} seconds, and {frames:,} at the frame"
            " rate that was asked for; leave 'frame_rate' out."
        )
        raise Unprocessable(detail, code="video_has_gaps")
    segments = -(-frames // segment_frames) if segment_frames else 1
    if segments > settings.max_segments:
        detail = (
            f"The video would be done in {segments:,} parts of {segment_frames} frames; at most"
            f" {settings.max_segments:,} are taken."
        )
        raise Unprocessable(detail, code="video_too_long")


async def _erase(submission: Submission) -> None:
    await asyncio.to_thread(erase_upload, submission.folder)


def _inputs(submission: Submission, video: VideoFacts) -> Inputs:
    return Inputs(
        video_file=submission.video_file,
        image_file=submission.image_file,
        video_sha256=submission.video_sha256,
        image_sha256=submission.image_sha256,
        video_bytes=submission.video_bytes,
        width=video.width,
        height=video.height,
        frames=video.frames,
        frame_rate=video.frame_rate,
        duration_s=float(video.duration),
        has_audio=bool(video.audio),
    )
