"""One attempt at one segment: upload its inputs, submit its prompt, follow it, collect and verify its output."""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, aclosing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from . import events
from .clock import monotonic
from .comfy.backend import Backend
from .comfy.client import ComfyError, Outcome
from .comfy.in_flight import GivenUp, InFlightPrompt, Lost, News
from .comfy.inputs import EngineInputs, Original, people_named
from .comfy.messages import Executing, OutputFile, Preview, Progress
from .errors import JobFailure
from .files import Files
from .jobs import TERMINAL, Job, Segment
from .marks import EXTRA_DATA, PEOPLE_DATA
from .media import MediaWorker, Verdict
from .metrics import STAGE_S
from .progress import FIRST_GUESS, FIRST_GUESS_EMBEDDED, SegmentProgress
from .progress_reporter import ProgressReporter
from .recovery import TooLong, is_full, wait_for_room
from .store import EngineFile, Store, StoreError, retry_writes
from .tracing import stage
from .workflow import Graph, Workflow, WorkflowError, extra_data, swap_passes

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 0.5
CUT_LIMIT = 20
"""Times the way to an engine or back may be cut before that counts as a failure."""
REPLANNED_ABOVE = 1.25
"""Length of a segment, as a multiple of its engine's limit, above which it was planned for other memory."""
FETCHED = frozenset({"temp", "output"})
"""ComfyUI's folders that results are fetched from: the first is asked for, an older node may know the second only."""
NO_FILE = "ComfyUI reported success but made no file; look into its log and at the workflow's encoder settings."
A_FILE_A_FRAME = (
    "ComfyUI made a file for each frame, which cannot be joined into an mp4; choose the format video/h264-mp4,"
    " video/h265-mp4, video/webm or video/av1-webm in the workflow's VHS_VideoCombine."
)
COUNTED_ANEW = (
    "ReActor numbers the faces of each frame anew, from large to small: where people cross, or one comes nearer than"
    " the other, they may exchange their faces."
)
OUTPUT_LIMIT_BYTES = 64 * 2**30


@dataclass(frozen=True)
class _Attempt:
    """A prompt with all that its attempt needs."""

    job: Job
    workflow: Workflow
    prompt: InFlightPrompt
    backend: Backend
    bars: SegmentProgress
    expected: set[EngineFile] = field(default_factory=set)
    """The files that it makes at its engine, stored before it does."""

    @property
    def segment(self) -> Segment:
        return self.prompt.segment

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Time a stage of this attempt, within the job's trace."""
        return stage(
            name,
            self.job.traceparent,
            prompt_id=self.job.prompt_id,
            segment=self.segment.number,
            attempt=self.segment.attempt,
            engine=self.backend.name,
        )


class Runner:
    """The one way to carry out attempts at segments."""

    def __init__(
        self,
        store: Store,
        files: Files,
        media: MediaWorker,
        progress_reporter: ProgressReporter,
        workflows: Mapping[str, Workflow],
        inputs: EngineInputs,
    ) -> None:
        self._store = store
        self._files = files
        self._media = media
        self._progress_reporter = progress_reporter
        self._workflows = workflows
        self._inputs = inputs

    async def run(self, prompt: InFlightPrompt, backend: Backend, *, look_first: bool) -> bool:
        """Carry out an attempt; return whether it was at the job's last segment.

        It is taken up again, never begun anew, when the way to the engine is cut or the disk is full. With `look_first`
        the prompt is looked for before it is sent, as after a crash. Raises `Stopped`, `Lost`, `GivenUp`, `TooLong`,
        `JobFailure` and `LeaseLost`.
        """
        cuts, prompt.sent = 0, look_first
        try:
            while True:
                try:
                    return await self._carry_out(prompt, backend, look_first=prompt.sent)
                except ComfyError as error:
                    cuts += 1
                    await self._check_way(prompt, backend, error, cuts)
                except JobFailure as failure:
                    if failure.code != "disk_full":
                        raise
                    await wait_for_room(self._store, prompt.segment.prompt_id)
                except (OSError, StoreError) as error:
                    if not is_full(error):
                        raise
                    await wait_for_room(self._store, prompt.segment.prompt_id, error)
        finally:
            if prompt.prompt_id in backend.abandoned:
                await self._store_abandoned(prompt, backend)

    async def _store_abandoned(self, prompt: InFlightPrompt, backend: Backend) -> None:
        """Store that a prompt was given up.

        A task that is cancelled tries once: nothing would end its wait for a database that is away, and the segment is
        still submitted under this id, which the next start looks up.
        """
        store = partial(self._store.abandon, backend.name, prompt.prompt_id)
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            with suppress(StoreError):
                await store()
        else:
            await retry_writes(store)

    async def _check_way(self, prompt: InFlightPrompt, backend: Backend, error: ComfyError, cuts: int) -> None:
        """Wait a moment where it makes sense to go on with an attempt after an error on the way; raise where not."""
        if not error.transient or (error.answered and not prompt.sent) or cuts > CUT_LIMIT:
            raise JobFailure("engine_error", error.message, transient=error.transient) from error
        if not prompt.sent and not await backend.answers():
            raise GivenUp(f"{backend.title} does not answer") from error
        log.warning("segment %s on %s: %s; going on", prompt.prompt_id, backend.name, error.message)
        await asyncio.sleep(LOOK_AGAIN_S)

    async def _carry_out(self, prompt: InFlightPrompt, backend: Backend, *, look_first: bool) -> bool:
        """Take a prompt from the upload to a checked output; return whether it was the job's last segment."""
        segment, job = prompt.segment, await self._store.job(prompt.segment.prompt_id)
        if job.state in TERMINAL or job.cancel_requested:
            prompt.stop()
        if segment.number == 0 and segment.attempt == 1 and not look_first and job.started_at is not None:
            STAGE_S.labels("queue", "done").observe((job.started_at - job.created_at) / 1000)
        workflow = self._workflow(job)
        if not look_first and workflow.splittable:
            _check_length(segment, job, backend)
        costs_key = _costs_key(backend, job)
        learned = await self._store.phase_costs(costs_key)
        expected = learned or (FIRST_GUESS_EMBEDDED if backend.is_embedded else FIRST_GUESS)
        progress = self._progress_reporter.progress(job)
        bars = progress.begin(segment.number, segment.frame_count, expected, monotonic(), guessed=not learned)
        attempt = _Attempt(job, workflow, prompt, backend, bars)
        try:
            await self._swap(attempt, look_first)
            costs = bars.end(monotonic())
            await backend.memory.free_for(job.inputs.width * job.inputs.height, segment.frame_count)
            with backend.collecting(prompt):
                async with prompt.stoppable():
                    with attempt.stage("collect"):
                        path, verdict = await self._collect(attempt)
        except BaseException:
            progress.abandon(segment.number, monotonic())
            raise
        learned_costs = None
        if costs and not look_first:  # or they may be those of a part only
            learned_costs = costs_key, costs
            progress.learn(costs)
        warnings = (*_unhonoured(backend, job, prompt.outcome), *self._inputs.unmet(job), *verdict.warnings)
        finish = self._store.finish_segment
        moved = await retry_writes(
            partial(finish, prompt.segment, path.name, verdict.changed_share, warnings, learned_costs)
        )
        progress.finish(segment.number)
        return moved is not None and moved.segments_done == moved.segments_total

    async def _swap(self, attempt: _Attempt, look_first: bool) -> None:
        """Follow a prompt to its `prompt.outcome`; submit it first, unless the engine knows it already."""
        if look_first and await self._resume(attempt):
            return
        prompt = attempt.prompt
        async with prompt.stoppable():
            with attempt.stage("upload"):
                graph = await self._upload(attempt)
                people = await self._inputs.people(attempt.job, attempt.backend)
        marks = self._media.marks(attempt.job.prompt_id, attempt.segment.first_frame)
        extra = extra_data(**{EXTRA_DATA: marks.to_json()}, **({PEOPLE_DATA: people} if people else {}))
        await attempt.backend.submit(prompt, graph, extra, output_node=attempt.workflow.output)
        if prompt.prompt_id != prompt.segment.comfy_prompt_id:
            set_id = partial(self._store.set_prompt_id, prompt.segment, prompt.prompt_id)
            prompt.segment = await retry_writes(set_id)
        await self._follow(attempt)

    async def _resume(self, attempt: _Attempt) -> bool:
        """Follow a prompt that may have been sent before; return False when the engine never got it."""
        prompt = attempt.prompt
        prompt.look_soon()
        try:
            await self._follow(attempt)
        except Lost:
            if prompt.running:
                raise
            log.info("%s does not know %s: sending it", attempt.backend.name, prompt.prompt_id)
            return False
        return True

    async def _upload(self, attempt: _Attempt) -> Graph:
        """Upload the inputs; return the graph that names them."""
        job, segment, workflow = attempt.job, attempt.segment, attempt.workflow
        prefix, options = f"{job.prompt_id}/{segment.number:05d}-{segment.attempt}", job.options.to_dict()
        try:
            if job.media == "image":
                inputs = await self._inputs.provide_still(job, attempt.backend)
                await self._remember_made(attempt, [still_output(prefix)])
                return workflow.build_still(
                    picture=inputs.video, images=inputs.images, output_prefix=prefix, options=options
                )
            inputs = await self._inputs.provide(job, segment, attempt.backend, splittable=workflow.splittable)
            graph = workflow.build(
                video=inputs.video,
                images=inputs.images,
                output_prefix=prefix,
                options=options,
                skip_first_frames=inputs.first_frame,
                frame_load_cap=0 if job.segments_total == 1 and job.is_whole else segment.frame_count,
            )
            await self._remember_made(attempt, video_outputs(prefix, graph[workflow.output]["inputs"]))
            return graph
        except WorkflowError as error:
            raise JobFailure("workflow_invalid", str(error)) from error

    async def _follow(self, attempt: _Attempt) -> None:
        with attempt.stage("swap"):
            await self._report_all(attempt)

    async def _report_all(self, attempt: _Attempt) -> None:
        async with aclosing(attempt.backend.follow(attempt.prompt)) as messages:
            async for message in messages:
                await self._report(attempt, message)

    async def _report(self, attempt: _Attempt, message: News) -> None:
        """Report a message of the engine to the job's watchers."""
        prompt_id, workflow = attempt.job.prompt_id, attempt.workflow
        match message:
            case Executing(node=str(node)):
                title = workflow.title(node)
                step = f"Executing: {title}"
                await self._progress_reporter.add_event(prompt_id, events.executing(node, title), step)
            case Progress(node=node, value=value, maximum=maximum):
                role = workflow.role(node)
                if role is not None:
                    attempt.bars.feed(role, value, maximum, monotonic())
            case Preview(image=image):
                self._progress_reporter.take_preview(prompt_id, image)

    async def _collect(self, attempt: _Attempt) -> tuple[Path, Verdict]:
        """Download an output and check it. Delete it when it does not pass."""
        job, segment, outcome = attempt.job, attempt.segment, attempt.prompt.outcome
        assert outcome is not None
        output = _output_file(outcome.outputs.get(attempt.workflow.output, ()))
        message = "Retrieving face-swapped video…"
        if job.segments_total > 1:
            message = f"Retrieving part {segment.number + 1} of {job.segments_total}…"
        await self._progress_reporter.add_status(job.prompt_id, message, message)
        share = outcome.swapped.get(attempt.workflow.swap)
        path = self._files.segment(segment)
        await self._files.make_scratch(job.prompt_id)
        await self._remember_made(attempt, _made_with(output))
        await attempt.backend.client.download(output, path, OUTPUT_LIMIT_BYTES)
        try:
            if job.media == "image":
                verdict = await self._media.verify_still(path, await self._inputs.still(job))
            else:
                verdict = await self._check_video(job, segment, path, crf=job.options.crf if share is None else None)
            await self._files.keep_segment(segment)
        except BaseException:
            await self._files.delete(path)
            raise
        return path, verdict if share is None else replace(verdict, changed_share=share)

    async def _check_video(self, job: Job, segment: Segment, path: Path, crf: int | None) -> Verdict:
        """Check an output against the frames it was made of, and have it marked."""

        async def verify(original: Original) -> Verdict:
            return await self._media.verify(
                path,
                original.path,
                first_frame=original.first_frame + segment.first_frame,
                frame_count=segment.frame_count,
                frame_rate=original.frame_rate,
                crf=crf,
            )

        verdict = await self._inputs.read_original(job, verify)
        marks = self._media.marks(job.prompt_id, segment.first_frame)
        await self._media.mark(path, marks, frame_count=segment.frame_count, crf=job.options.crf)
        return verdict

    async def _remember_made(self, attempt: _Attempt, files: list[EngineFile]) -> None:
        """Store the names of files that ComfyUI makes, so that they are emptied on time, once."""
        new = [file for file in files if file not in attempt.expected]
        if new and not attempt.backend.is_embedded:  # whose folders are ours
            await retry_writes(partial(self._store.add_engine_files, attempt.backend.name, attempt.job.prompt_id, new))
            attempt.expected.update(new)

    def _workflow(self, job: Job) -> Workflow:
        workflow = self._workflows.get(job.workflow)
        if workflow is None:
            raise JobFailure("workflow_missing", f"The workflow {job.workflow} is no longer in the workflow folder.")
        return workflow


def _check_length(segment: Segment, job: Job, backend: Backend) -> None:
    """Refuse a segment that its engine has no memory for. Raises `TooLong`."""
    limit = backend.memory.frame_limit(job.inputs.width * job.inputs.height, float(job.inputs.frame_rate))
    if limit and segment.frame_count > REPLANNED_ABOVE * limit:
        raise TooLong(limit)


def _output_file(files: tuple[OutputFile, ...]) -> OutputFile:
    """Return the file to fetch of those the output node made. Raises `JobFailure`."""
    fetched = [file for file in files if file.type in FETCHED]
    if not fetched:
        raise JobFailure("output_missing", NO_FILE, transient=True)
    if "%" in fetched[-1].filename:
        raise JobFailure("format_not_joinable", A_FILE_A_FRAME)
    return fetched[-1]


def still_output(prefix: str) -> EngineFile:
    """Return the file that SaveImage makes for a prefix that is used once: its folder is never emptied by itself."""
    subfolder, _, stem = prefix.rpartition("/")
    return EngineFile("output", subfolder, f"{stem}_00001_.png")


def video_outputs(prefix: str, combine: Mapping[str, Any]) -> list[EngineFile]:
    """Return the files that VHS_VideoCombine, by its inputs, makes for a prefix that is used once.

    A prompt that is stopped, or given up, may leave any of them and never tell. None where its format does not tell
    the extension.
    """
    extension = re.search("(mp4|webm)$", str(combine.get("format")))
    if extension is None:
        return []
    subfolder, _, stem = prefix.rpartition("/")
    kind = "output" if combine.get("save_output", True) else "temp"
    return _made_with(OutputFile(f"{stem}_00001.{extension[0]}", subfolder, kind))


def _made_with(output: OutputFile) -> list[EngineFile]:
    """Return an output and what VHS_VideoCombine makes beside it: without and with the sound, and the first frame."""
    stem, _, extension = output.filename.rpartition(".")
    base = stem.removesuffix("-audio")
    names = sorted({output.filename, f"{base}.{extension}", f"{base}-audio.{extension}", f"{base}.png"})
    return [EngineFile(output.type, output.subfolder, name) for name in names]


def _unhonoured(backend: Backend, job: Job, outcome: Outcome | None) -> tuple[str, ...]:
    """Return a warning about what the job asks for and its engine has no use for, or does not hold to."""
    if backend.features is None:
        return ()
    if backend.features.streams:
        return job.options.embedded_warnings(outcome.unused) if outcome else ()
    return (COUNTED_ANEW,) if people_named(job) else ()


def _costs_key(backend: Backend, job: Job) -> str:
    """Return what the costs of a job's phases depend on: engine, workflow, options and, roughly, picture size."""
    size = round(math.log2(job.inputs.width * job.inputs.height))
    options = job.options
    models = f"{options.swap_model}|{options.face_restore_model}|{options.face_boost}"
    swaps = len(swap_passes(options.to_dict(), len(job.inputs.images))) or 1
    return f"{backend.name}|{job.workflow}|{models}|{size}|{swaps}"
