"""From a request that was read to a job that is on disk: media looked at, segments planned, the record written."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from datetime import UTC, datetime

from .config import Settings
from .errors import BadRequest, Unavailable, Unprocessable
from .inputs import accept_upload, erase_upload
from .intake import Submission
from .jobs import Inputs, Job, JobState, NewJob, Options, default_output_name
from .media import MediaWorker, VideoFacts, plan_segments
from .store import Store
from .workflow import Workflow, WorkflowError

IDEMPOTENCY_KEY_PATTERN = re.compile(r"[ -~]{1,255}")


class Admission:
    """Decides which submissions become jobs."""

    def __init__(self, settings: Settings, store: Store, media: MediaWorker, workflows: Mapping[str, Workflow]) -> None:
        self._settings = settings
        self._store = store
        self._media = media
        self._workflows = workflows

    async def check(self, idempotency_key: str | None) -> None:
        """Refuse before an upload is read. Raises `BadRequest` or `Unavailable`."""
        if idempotency_key is not None and not IDEMPOTENCY_KEY_PATTERN.fullmatch(idempotency_key):
            raise BadRequest(
                "'Idempotency-Key' must have 1-255 printable ASCII characters.", code="invalid_idempotency_key"
            )
        counts = await self._store.counts()
        if counts[JobState.QUEUED] >= self._settings.queue_limit:
            raise Unavailable("The queue is full; try again later.", code="queue_full", retry_after=60)

    async def admit(
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
        await (asyncio.to_thread(accept_upload, submission.folder) if is_new else _erase(submission))
        return job, is_new

    async def _examine(
        self, submission: Submission, prompt_id: str, owner: str | None, idempotency_key: str | None
    ) -> NewJob:
        options = submission.options
        workflow = self.check_options(options)
        # One after the other: a refusal erases the folder, which nothing may be reading then.
        await self._media.probe_image(submission.folder / submission.image_file)
        video = await self._media.probe_video(submission.folder / submission.video_file)
        segment_frames = self._settings.segment_frames if workflow.splittable else 0
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
        duration_s=video.duration_s,
        has_audio=bool(video.audio),
    )
