"""From a request to a job on disk, cheap checks first: read it, look at its media, plan its segments, store the job."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import UTC, datetime
from fractions import Fraction
from functools import partial

from aiohttp import web

from ..config import Settings
from ..errors import BadRequest, Unavailable, Unprocessable
from ..files import Files
from ..jobs import Inputs, Job, JobState, NewJob, SegmentPlan, default_output_name, extension_of, new_prompt_id
from ..media import FrameRange, ImageFacts, MediaWorker, VideoFacts, output_frames, plan_segments
from ..options import Options
from ..store import LOCAL_HOLDER, CommitUnknown, Store, check_queue_of_key
from ..tracing import job_span, stage
from ..workflow import Workflow, WorkflowError
from .fetch import Fetcher
from .files import Room
from .form import Look, Submission
from .kept import KeptInputs
from .pictures import Pictures, target_warnings
from .readers import RequestReader
from .shape import check_format, check_length, result_stem, segment_length, still_options
from .uploads import Uploads

RETRY_AFTER_S = 60
"""The time after which a client may try a full queue again."""
RATE_OF_ONE_FRAME = "Option 'frame_rate' changes nothing: one frame has no rate."
CRF_WITHOUT_LOSS = "Option 'crf' changes nothing: a PNG loses nothing."
IDEMPOTENCY_KEY_PATTERN = re.compile(r"[ -~]{1,255}")


class Submitter:
    """Makes jobs of requests. A request that is refused leaves no file behind."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        files: Files,
        media: MediaWorker,
        fetcher: Fetcher,
        workflows: Mapping[str, Workflow],
        frame_limit: Callable[[int, float], int | None],
        person_problem: Callable[[], str | None],
        holder: str = LOCAL_HOLDER,
        *,
        engines: int = 0,
    ) -> None:
        """Tell the engines by two functions.

        `frame_limit(pixels, frame rate)` is the most frames of a segment that fit into their memory, `person_problem()`
        what none of them has to make one face of several pictures. `holder` is the name of this node, and `engines` the
        number of its embedded engines.
        """
        self._settings = settings
        self._store = store
        self._files = files
        self._media = media
        self._pictures = Pictures(files, media)
        self._workflows = workflows
        self._frame_limit = frame_limit
        self._person_problem = person_problem
        self._engines = engines
        room = Room(files, settings.min_free_mb * 1024 * 1024)
        self.uploads = Uploads(settings, store, files, room, holder)
        kept = KeptInputs(store, files, self.uploads)
        self._reader = RequestReader(settings, files, room, fetcher, kept, self._workflow_for)

    async def submit_request(self, request: web.Request, owner: str | None) -> tuple[Job, Submission]:
        """Make a job of a `POST /face-swap`, or find the one its `Idempotency-Key` made before. Raises `Problem`."""
        key = request.headers.get("Idempotency-Key")
        with job_span(request.headers.get("traceparent")) as traceparent:
            return await self._submit(partial(self._reader.from_request, request, owner), owner, key, traceparent)

    async def submit_frames(
        self, first: object, socket: web.WebSocketResponse, owner: str | None, traceparent: str | None = None
    ) -> Job:
        """Make a job of what a WebSocket client sends, `first` being the JSON of its first frame. Raises `Problem`."""
        with job_span(traceparent) as own:
            job, _ = await self._submit(partial(self._reader.from_websocket, first, socket, owner), owner, None, own)
        return job

    def looked_at(self, request: web.Request, owner: str | None) -> AbstractAsyncContextManager[Look]:
        """Yield the file of a request to look at one, which is gone after the block. Raises `Problem`."""
        return self._reader.looked_at(request, owner)

    async def _submit(
        self,
        read: Callable[[str], Awaitable[Submission]],
        owner: str | None,
        idempotency_key: str | None,
        traceparent: str | None,
    ) -> tuple[Job, Submission]:
        await self._check_queue(owner, idempotency_key)
        prompt_id = new_prompt_id()
        with stage("receive", traceparent, prompt_id=prompt_id):
            submission = await read(prompt_id)
        try:
            with stage("probe", traceparent, prompt_id=prompt_id):
                new = await self._plan(submission, prompt_id, owner, idempotency_key)
            new = replace(new, traceparent=traceparent)
            limits = self._settings.queue_limit, self._key_limit(owner)
            job, is_new = await self._store.create(new, *limits)
        except (asyncio.CancelledError, CommitUnknown):
            # The job may be committed nevertheless. The files of an upload without a job are erased at the next start.
            raise
        except BaseException:
            await self._files.delete_upload(prompt_id)
            raise
        if not is_new:
            await self._files.delete_upload(prompt_id)
            return job, submission
        await self._files.accept_upload(prompt_id)
        return job, submission

    def _key_limit(self, owner: str | None) -> int | None:
        """Return the number of jobs that an owner may have in the queue; None, where there is no key, for any."""
        return None if owner is None else self._settings.queue_limit_per_key

    async def _check_queue(self, owner: str | None, idempotency_key: str | None) -> None:
        """Refuse a request before its body is read. Raises `BadRequest`, `TooManyRequests`, `Unavailable`."""
        if idempotency_key is not None and not IDEMPOTENCY_KEY_PATTERN.fullmatch(idempotency_key):
            raise BadRequest(
                "'Idempotency-Key' must have 1-255 printable ASCII characters.", code="invalid_idempotency_key"
            )
        counts = await self._store.counts()
        if counts[JobState.QUEUED] >= self._settings.queue_limit:
            raise Unavailable("The queue is full; try again later.", code="queue_full", retry_after=RETRY_AFTER_S)
        if (limit := self._key_limit(owner)) is not None:
            check_queue_of_key(await self._store.queued_of(owner), limit)

    async def _plan(
        self, submission: Submission, prompt_id: str, owner: str | None, idempotency_key: str | None
    ) -> NewJob:
        """Check the media of a submission and plan its segments. Raises `Problem`."""
        options = submission.options
        workflow = self._workflow_for(options, len(submission.images))
        if options.one_person and len(submission.images) > 1 and (problem := self._person_problem()):
            raise Unprocessable(f"Option 'one_person' cannot be had: {problem}", code="one_person_unavailable")
        submission, warnings = await self._pictures.check(
            submission, prompt_id, owner, takes_light=not self._settings.comfyui_urls
        )
        unused = options.embedded_warnings()
        if unused and not await asyncio.to_thread(_may_have_networks, self._settings):
            warnings += unused
        if submission.options.at is not None and submission.options.frame_rate is not None:
            warnings += (RATE_OF_ONE_FRAME,)
        target = await self._media.probe_target(
            self._files.input(prompt_id, submission.video_file), self._settings.max_frames
        )
        if isinstance(target, ImageFacts):
            warnings += target_warnings(options, target.faces, len(submission.images))
        options, inputs, segments = await self._plan_target(submission, target, prompt_id, workflow)
        extension = extension_of(options, inputs)
        if extension == "png" and options.crf != Options().crf:
            warnings += (CRF_WITHOUT_LOSS,)
        name = submission.output_name and result_stem(submission.output_name, extension)
        return NewJob(
            prompt_id=prompt_id,
            output_name=name or default_output_name(datetime.now(UTC)),
            options=options,
            workflow=workflow.name,
            inputs=inputs,
            segments=tuple(segments),
            owner=owner,
            idempotency_key=idempotency_key,
            request_digest=submission.digest,
            webhook_url=submission.webhook_url,
            result_put_url=submission.result_put_url,
            consent=submission.consent,
            label=submission.label,
            warnings=warnings,
        )

    async def _plan_target(
        self, submission: Submission, target: VideoFacts | ImageFacts, prompt_id: str, workflow: Workflow
    ) -> tuple[Options, Inputs, list[SegmentPlan]]:
        """Plan what is done with the video or picture that is to be changed. Raises `Problem`."""
        options = submission.options
        if isinstance(target, ImageFacts):
            options = still_options(options, target)
            _check_workflow(workflow, options, len(submission.images), still=True)
            return options, _still_inputs(submission, target), plan_segments(1, 1)
        inputs = _inputs(submission, target)
        if options.at is not None:
            return options, inputs, plan_segments(1, 1)
        check_format(options, "video")
        frames = FrameRange(0, output_frames(target, options.rate))
        if options.start is not None or options.end is not None:
            file = self._files.input(prompt_id, submission.video_file)
            frames = await self._media.find_frames(file, options.start, options.end, options.rate)
        segment_frames = self._segment_frames(target, frames.count, options.rate) if workflow.splittable else 0
        check_length(target, frames.count, segment_frames, options, self._settings)
        return options, replace(inputs, first_frame=frames.first), plan_segments(frames.count, segment_frames)

    def _segment_frames(self, video: VideoFacts, frames: int, frame_rate: Fraction | None) -> int:
        """Return the length of a segment: the setting, or less for all engines to have some, or for their memory."""
        wanted = segment_length(frames, self._settings.segment_frames, self._engines)
        limit = self._frame_limit(video.width * video.height, float(frame_rate or video.frame_rate))
        return min(wanted, limit) if wanted and limit else wanted

    def _workflow_for(self, options: Options, images: int | None = None) -> Workflow:
        """Return the workflow of the options, which has a place for each that was chosen. Raises `BadRequest`.

        `images` is the number of pictures, None before they are there.
        """
        name = options.workflow or self._settings.workflow
        workflow = self._workflows.get(name)
        if workflow is None:
            raise BadRequest(
                f"There is no workflow {name!r}; there are {', '.join(sorted(self._workflows))}.",
                code="unknown_workflow",
            )
        if options.at is not None:
            check_format(options, "image")
        _check_workflow(workflow, options, images, still=options.at is not None)
        return workflow


def _check_workflow(workflow: Workflow, options: Options, images: int | None, *, still: bool) -> None:
    """Raise `BadRequest` unless a workflow has a place for options, and for a still picture where that is wanted."""
    names, chosen = ("",) * (images or options.least_images), options.to_dict()
    try:
        if still:
            workflow.build_still(picture="", images=names, output_prefix="", options=chosen)
        else:
            workflow.build(video="", images=names, output_prefix="", options=chosen)
    except WorkflowError as error:
        raise BadRequest(str(error), code="invalid_option") from error


def _may_have_networks(settings: Settings) -> bool:
    """Return whether the options of networks may mean something to an engine, which tells itself which of them do."""
    return bool(settings.comfyui_urls) or settings.has_networks()


def _still_inputs(submission: Submission, picture: ImageFacts) -> Inputs:
    """Return the inputs of a job whose target is a still picture: one frame, and no time."""
    return Inputs(
        video_file=submission.video_file,
        images=submission.images,
        video_sha256=submission.video_sha256,
        video_bytes=submission.video_bytes,
        width=picture.width,
        height=picture.height,
        frames=1,
        frame_rate=Fraction(1),
        duration_s=0.0,
        has_audio=False,
        is_still=True,
    )


def _inputs(submission: Submission, video: VideoFacts) -> Inputs:
    return Inputs(
        video_file=submission.video_file,
        images=submission.images,
        video_sha256=submission.video_sha256,
        video_bytes=submission.video_bytes,
        width=video.width,
        height=video.height,
        frames=video.frames,
        frame_rate=video.frame_rate,
        duration_s=float(video.duration),
        has_audio=bool(video.audio),
    )
