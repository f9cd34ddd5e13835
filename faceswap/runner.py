"""A job's life: claim a segment, give it to a backend, follow it, collect, join, check, finish; cancel, retry.

The database says what is to be done and what was done; this only carries it out, so that it can stop anywhere and go
on after a restart.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from . import events
from .comfy.backend import DANGEROUS_DEATHS, EMBEDDED, MAX_PROMPTS, Backend
from .comfy.client import ComfyError, Outcome
from .comfy.in_flight import GivenUp, InFlightPrompt, Lost, Stopped
from .comfy.inputs import Uploads
from .config import Timeouts
from .engine_watch import EngineWatch
from .errors import DISK_FULL, JobFailure, NotFound, Problem
from .files import Files
from .jobs import TERMINAL, Job, Segment
from .media import MediaWorker, Verdict
from .progress import FIRST_GUESS, FIRST_GUESS_EMBEDDED
from .progress_reporter import ProgressReporter
from .recovery import Recovery
from .store import LOCAL_HOLDER, Lease, LeaseLost, Store, StoreError, backend_lease, join_lease, retry_writes
from .workflow import Graph, Workflow, WorkflowError, extra_data

log = logging.getLogger(__name__)

INTERNAL_ERROR = "Something went wrong inside the service; its log says what."
DISK_FULL_MESSAGE = "The disk is full; the job goes on when there is room."
IGNORED_BY_EMBEDDED = ("swap_model", "face_restore_model", "face_restore_visibility", "face_boost", "detect_gender")
"""Options that mean something to ReActor only."""
DISK_PAUSE_S = 2.0
LOOK_AGAIN_S = 0.5
CUT_LIMIT = 20
"""Times the way to an engine or back may be cut before that counts as a failure."""
REPLANNED_ABOVE = 1.25
"""How much longer than its engine's memory wants it a segment may be: it was planned for other memory then."""
IDLE_S = 5.0
LEASE_S = 3600.0
FETCHED = frozenset({"temp", "output"})
"""ComfyUI's folders that results are fetched from: the first is asked for, an older node may know the second only."""
A_FILE_A_FRAME = (
    "ComfyUI made a file for each frame, which cannot be joined into an mp4; choose the format video/h264-mp4,"
    " video/h265-mp4, video/webm or video/av1-webm in the workflow's VHS_VideoCombine."
)
OUTPUT_LIMIT_BYTES = 64 * 2**30


class _TooLong(Exception):
    """A segment has more frames than its engine has memory for."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit


class Runner:
    """Moves every accepted job to its end."""

    def __init__(
        self,
        store: Store,
        files: Files,
        media: MediaWorker,
        progress_reporter: ProgressReporter,
        workflows: Mapping[str, Workflow],
        backends: Sequence[Backend],
        timeouts: Timeouts,
    ) -> None:
        self.backends = backends
        self._store = store
        self._files = files
        self._media = media
        self._workflows = workflows
        self._timeouts = timeouts
        self._wake = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None
        self._in_flight: dict[str, dict[InFlightPrompt, asyncio.Task[None]]] = {}
        self._progress_reporter = progress_reporter
        self._watch = EngineWatch(store, backends, timeouts, self._end_failed)
        self._uploads = Uploads(files, media, progress_reporter)
        self._recovery = Recovery(
            store, progress_reporter, self._uploads, workflows, timeouts, self._has_other_than, self._end_failed
        )
        self._joins: dict[str, asyncio.Lock] = {}
        self._leases: dict[str, Lease] = {}
        for backend in backends:
            backend.on_change = self.wake
            backend.replaceable = partial(self._has_other_than, backend)

    @property
    def outage(self) -> str | None:
        """A sentence while no engine can be given work."""
        return self._watch.outage

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    def cancel(self, prompt_id: str) -> None:
        """The store was asked for a job's end: stop what is out of it."""
        in_flight = self._in_flight.get(prompt_id)
        if not in_flight:
            self._forget(prompt_id)
            return
        for prompt in in_flight:
            prompt.stop()

    async def erase(self, job: Job) -> None:
        """Erase a job that has ended, or was asked to: record, inputs and outputs, once no engine works on it."""
        while tasks := list(self._in_flight.get(job.prompt_id, {}).values()):
            await asyncio.wait(tasks)
        await self._files.mark_erasure(job.prompt_id)
        await self._store.begin_erasure(job.prompt_id)
        self._forget(job.prompt_id)
        await self._files.delete_inputs(job.prompt_id)
        await self._files.delete_result(job.result_file or f"{job.output_name}.mp4")
        await self._store.erase(job.prompt_id)
        await self._files.unmark_erasure(job.prompt_id)

    async def run(self) -> None:
        """Take up what was left, then work until cancelled. Prompts that are out stay with ComfyUI."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            for backend in self.backends:
                tasks.create_task(backend.run(), name=f"listener of {backend.name}")
            await self._recover()
            tasks.create_task(self._dispatch(), name="dispatcher")
            tasks.create_task(self._progress_reporter.run(), name="reports")
            tasks.create_task(self._watch.run(), name="watch over the engines")

    def _has_other_than(self, backend: Backend) -> bool:
        return any(other.healthy for other in self.backends if other is not backend)

    async def _recover(self) -> None:
        """Go on with what a former process left."""
        for backend in self.backends:
            lease = self._leases[backend.name] = await self._acquire(backend_lease(backend.name))
            for segment in await self._store.adopt(lease):
                self._start(segment, backend, look_first=True)
        for name in {segment.backend for segment in await self._store.submitted()} - self._leases.keys():
            for segment in await self._store.adopt(await self._acquire(backend_lease(name or ""))):
                await self._store.requeue(segment)
        for job in await self._store.unfinished():
            self._spawn(self._finish(job.prompt_id), f"finish {job.prompt_id}")

    async def _acquire(self, name: str) -> Lease:
        lease = await self._store.acquire_lease(name, LOCAL_HOLDER, LEASE_S)
        assert lease is not None
        return lease

    async def _dispatch(self) -> None:
        """Give waiting segments to backends that have room, whenever something changes."""
        while True:
            self._wake.clear()
            try:
                await retry_writes(self._dispatch_waiting)
                due_s = await self._store.next_due_s()
            except StoreError as error:
                if not error.transient:
                    raise
                due_s = DISK_PAUSE_S
            # A segment that is due waits for a backend, whose change wakes us.
            with suppress(TimeoutError):
                async with asyncio.timeout(min(due_s or IDLE_S, IDLE_S)):
                    await self._wake.wait()

    async def _dispatch_waiting(self) -> None:
        """Give to each backend its first segment before any its second, quick ones first.

        What failed at one goes to another where there is one. What engines have died of is given to one that has
        nothing else to do.
        """
        waiting = await self._store.waiting_frames()
        for busy in range(MAX_PROMPTS):
            for backend in sorted(self.backends, key=lambda backend: backend.seconds_per_frame or 0.0):
                if waiting and backend.takes_a_prompt(busy) and self._is_worth_dispatching(backend, waiting):
                    segment = await self._store.claim(
                        self._leases[backend.name],
                        again=not self._has_other_than(backend),
                        most_deaths=DANGEROUS_DEATHS - 1 if backend.in_flight else None,
                    )
                    if segment is not None:
                        self._start(segment, backend, look_first=False)
                        waiting = await self._store.waiting_frames()

    def _is_worth_dispatching(self, backend: Backend, waiting: Sequence[int]) -> bool:
        """Whether the work is done sooner when this backend takes the next segment too.

        `waiting` are the frames of those that wait, the next one first. It is not when another, at work now, would be
        done with all that waits before this one is with the next; and what has not shown its pace yet gets no second
        segment while others are there.
        """
        if backend.seconds_per_frame is None:
            return not (backend.in_flight and self._has_other_than(backend))
        done_in_s = backend.done_in_s(waiting[0])
        others = [other for other in self.backends if other is not backend and other.healthy and other.in_flight]
        return all(
            done_in_s <= other.done_in_s(sum(waiting)) for other in others if other.seconds_per_frame is not None
        )

    def _start(self, segment: Segment, backend: Backend, *, look_first: bool) -> None:
        prompt = InFlightPrompt(segment)
        log.info(
            "job %s: frames %d to %d %s %s, attempt %d",
            segment.prompt_id,
            segment.first_frame,
            segment.first_frame + segment.frame_count - 1,
            "looked for at" if look_first else "given to",
            backend.name,
            segment.attempt,
        )
        backend.in_flight[prompt.prompt_id] = prompt
        task = self._spawn(self._run_segment(prompt, backend, look_first), f"segment {prompt.prompt_id}")
        self._in_flight.setdefault(segment.prompt_id, {})[prompt] = task

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        assert self._tasks is not None
        return self._tasks.create_task(work, name=name)

    async def _run_segment(self, prompt: InFlightPrompt, backend: Backend, look_first: bool) -> None:
        """One attempt at one segment, whatever its end."""
        segment = prompt.segment
        complete = False
        try:
            complete = await self._attempt(prompt, backend, look_first)
        except Stopped:
            log.info("stopped %s on %s", prompt.prompt_id, backend.name)
        except _TooLong as error:
            await retry_writes(partial(self._store.split, segment, error.limit, unsent=True))
        except GivenUp as error:
            await self._recovery.given_up(segment, error)
        except LeaseLost as error:
            log.warning("%s goes on elsewhere: %s", prompt.prompt_id, error)
        except Lost:
            await self._recovery.lost(prompt, backend)
        except JobFailure as failure:
            await self._recovery.failed(segment, backend, failure)
        except Problem:
            log.info("job %s was erased", segment.prompt_id)
        except Exception:  # the top of the task
            log.exception("segment %s", prompt.prompt_id)
            await self._recovery.failed(segment, backend, JobFailure("internal_error", INTERNAL_ERROR, transient=True))
        finally:
            backend.in_flight.pop(prompt.prompt_id, None)
            others = self._in_flight[segment.prompt_id]
            del others[prompt]
            if not others:
                del self._in_flight[segment.prompt_id]
            self.wake()
        if prompt.stopping_since is not None:
            await retry_writes(partial(self._store.mark_stopped, segment))
            if not others:
                self._forget(segment.prompt_id)
        if complete:
            await self._finish(segment.prompt_id)
        if backend.name == EMBEDDED and backend.idle:
            # It keeps the last video until the next one comes; faces are to be erased on time.
            with suppress(ComfyError):
                await backend.client.free()

    async def _attempt(self, prompt: InFlightPrompt, backend: Backend, look_first: bool) -> bool:
        """One attempt, taken up again, never begun anew, when the way to the engine is cut or the disk is full.

        Returns whether it was the job's last segment.
        """
        cuts = 0
        try:
            while True:
                try:
                    return await self._carry_out(prompt, backend, look_first)
                except ComfyError as error:
                    cuts += 1
                    await self._check_way(prompt, backend, error, cuts)
                except JobFailure as failure:
                    if failure.code != "disk_full":
                        raise
                    await self._wait_for_room(prompt.segment.prompt_id)
                except (OSError, StoreError) as error:
                    if not _is_full(error):
                        raise
                    await self._wait_for_room(prompt.segment.prompt_id)
                look_first = prompt.sent
        finally:
            if prompt.prompt_id in backend.abandoned:
                await retry_writes(partial(self._store.abandon, backend.name, prompt.prompt_id))

    async def _check_way(self, prompt: InFlightPrompt, backend: Backend, error: ComfyError, cuts: int) -> None:
        """Wait a moment where it makes sense to go on with an attempt after an error on the way; raise where not."""
        if not error.transient or (error.answered and not prompt.sent) or cuts > CUT_LIMIT:
            raise JobFailure("engine_error", error.message, transient=error.transient) from error
        if not prompt.sent and not await backend.answers():
            raise GivenUp(f"{backend.title} does not answer") from error
        log.warning("segment %s on %s: %s; going on", prompt.prompt_id, backend.name, error.message)
        await asyncio.sleep(LOOK_AGAIN_S)

    async def _wait_for_room(self, prompt_id: str) -> None:
        """Pause a job on a full disk, which its step says where that can be written."""
        with suppress(StoreError):
            if (await self._store.job(prompt_id)).step != DISK_FULL_MESSAGE:
                log.warning("job %s: the disk is full; it goes on when there is room", prompt_id)
                await self._store.add_status(prompt_id, DISK_FULL_MESSAGE, DISK_FULL_MESSAGE)
        await asyncio.sleep(DISK_PAUSE_S)

    async def _carry_out(self, prompt: InFlightPrompt, backend: Backend, look_first: bool) -> bool:
        """From upload to a checked output in the work folder; returns whether it was the job's last segment."""
        job = await self._store.job(prompt.segment.prompt_id)
        if job.state in TERMINAL or job.cancel_requested:
            prompt.stop()
        workflow = self._workflow(job)
        pixels = job.inputs.width * job.inputs.height
        limit = backend.frame_limit(pixels, float(job.inputs.frame_rate))
        if limit and prompt.segment.frame_count > REPLANNED_ABOVE * limit and workflow.splittable and not look_first:
            raise _TooLong(limit)
        costs_key = _costs_key(backend, job)
        guess = FIRST_GUESS_EMBEDDED if backend.name == EMBEDDED else FIRST_GUESS
        learned = await self._store.phase_costs(costs_key)
        progress = self._progress_reporter.progress(job)
        bars = progress.begin(
            prompt.segment.number, prompt.segment.frame_count, learned or guess, time.monotonic(), guessed=not learned
        )

        async def on_executing(node: str) -> None:
            title = workflow.title(node)
            executing = events.executing(node, title)
            await self._progress_reporter.add_event(job.prompt_id, executing, step=f"Executing: {title}")

        def on_progress(node: str, value: float, maximum: float) -> None:
            role = workflow.role(node)
            if role is not None:
                bars.feed(role, value, maximum, time.monotonic())

        prompt.on_executing, prompt.on_progress = on_executing, on_progress
        prompt.on_preview = partial(self._progress_reporter.take_preview, job.prompt_id)

        try:
            outcome = await backend.perform(
                prompt,
                partial(self._graph, job, prompt, workflow, backend),
                extra_data(),
                output_node=workflow.output,
                look_first=look_first,
                on_queued=lambda queued_id: self._store.set_prompt_id(prompt.segment, queued_id),
            )
            costs = bars.end(time.monotonic())
            await backend.free_memory_for(pixels, prompt.segment.frame_count)
            with backend.released(prompt):
                collecting = self._collect(job, prompt.segment, workflow, backend, outcome)
                path, verdict = await prompt.unless_stopped(collecting)
        except BaseException:
            progress.abandon(prompt.segment.number, time.monotonic())
            raise
        if costs and not look_first:  # or they may be those of a part only
            await self._store.learn_phase_costs(costs_key, costs)
            progress.learn(costs)
        warnings = (*_ignored_options(backend, job), *verdict.warnings)
        finish = partial(self._store.finish_segment, prompt.segment, path.name, verdict.changed_share, warnings)
        moved = await retry_writes(finish)
        progress.finish(prompt.segment.number)
        return moved is not None and moved.segments_done == moved.segments_total

    async def _graph(self, job: Job, prompt: InFlightPrompt, workflow: Workflow, backend: Backend) -> Graph:
        """The inputs uploaded, and the graph that names them."""
        segment = prompt.segment
        inputs = await self._uploads.provide(job, segment, backend, splittable=workflow.splittable)
        try:
            return workflow.build(
                video=inputs.video,
                image=inputs.image,
                output_prefix=f"{job.prompt_id}/{segment.number:05d}-{segment.attempt}",
                options=job.options.to_dict(),
                skip_first_frames=inputs.first_frame,
                frame_load_cap=0 if job.segments_total == 1 else segment.frame_count,
            )
        except WorkflowError as error:
            raise JobFailure("workflow_invalid", str(error)) from error

    async def _collect(
        self, job: Job, segment: Segment, workflow: Workflow, backend: Backend, outcome: Outcome
    ) -> tuple[Path, Verdict]:
        """Fetch an output and check it. What does not pass is not kept."""
        files = [file for file in outcome.outputs.get(workflow.output, ()) if file.type in FETCHED]
        if not files:
            message = (
                "ComfyUI reported success but made no file; look into its log and at the workflow's encoder settings."
            )
            raise JobFailure("output_missing", message, transient=True)
        message = "Retrieving face-swapped video…"
        if job.segments_total > 1:
            message = f"Retrieving part {segment.number + 1} of {job.segments_total}…"
        await self._progress_reporter.add_status(job.prompt_id, message, message)
        if "%" in files[-1].filename:
            raise JobFailure("format_not_joinable", A_FILE_A_FRAME)
        share = outcome.swapped.get(workflow.swap)
        path = self._files.segment(segment)
        await self._files.make_scratch(job.prompt_id)
        await backend.client.download(files[-1], path, OUTPUT_LIMIT_BYTES)
        original = await self._uploads.original(job)
        try:
            verdict = await self._media.verify(
                path,
                original.path,
                first_frame=segment.first_frame,
                frame_count=segment.frame_count,
                frame_rate=original.frame_rate,
                crf=job.options.crf if share is None else None,
            )
        except BaseException:
            await self._files.delete(path)
            raise
        return path, verdict if share is None else replace(verdict, changed_share=share)

    def _workflow(self, job: Job) -> Workflow:
        workflow = self._workflows.get(job.workflow)
        if workflow is None:
            raise JobFailure("workflow_missing", f"The workflow {job.workflow} is no longer in the workflow folder.")
        return workflow

    async def _end_failed(self, prompt_id: str, failure: JobFailure) -> None:
        log.warning("job %s: %s: %s", prompt_id, failure.code, failure.message)
        await retry_writes(partial(self._store.fail, prompt_id, failure.code, failure.message))
        self.cancel(prompt_id)
        self._forget(prompt_id)

    async def _finish(self, prompt_id: str) -> None:
        """All segments are done: join them, put the sound on, check the whole, end the job."""
        failures = 0
        while True:
            try:
                job = await self._store.job(prompt_id)
                if job.state not in TERMINAL:
                    # A job that was cancelled while it was joined, and is joined again, may have two at a time.
                    async with self._joins.setdefault(prompt_id, asyncio.Lock()):
                        await self._join(job)
                return
            except NotFound:
                log.info("job %s was erased", prompt_id)
                return
            except JobFailure as failure:
                if failure.code == "disk_full":
                    await self._wait_for_room(prompt_id)
                    continue
                failures += 1
                if not failure.transient or failures > len(self._timeouts.retry_s):
                    await self._end_failed(prompt_id, failure)
                    return
                await asyncio.sleep(self._timeouts.retry_s[failures - 1])
            except (OSError, StoreError) as error:
                if not _is_full(error):
                    log.exception("joining %s", prompt_id)
                    await self._end_failed(prompt_id, JobFailure("internal_error", INTERNAL_ERROR))
                    return
                await self._wait_for_room(prompt_id)

    async def _join(self, job: Job) -> None:
        segments = await self._store.segments(job.prompt_id)
        warnings = [*_check_changed(segments), *(warning for segment in segments for warning in segment.warnings)]
        joined = self._files.joined(job.prompt_id)
        facts = await self._media.join(
            [self._files.finished_segment(segment) for segment in segments],
            self._files.video(job.prompt_id, job.inputs),
            joined,
            job.options.rate,
        )
        if facts.frames != job.total_frames:
            raise JobFailure("frames_missing", f"The result has {facts.frames} frames instead of {job.total_frames}.")
        filename = f"{job.output_name}.mp4"
        await self._files.publish_result(job.prompt_id, filename)
        self._progress_reporter.close(job.prompt_id)
        if await self._store.succeed(
            job,
            await self._acquire(join_lease(job.prompt_id)),
            result_file=filename,
            size=facts.bytes,
            sha256=facts.sha256,
            warnings=tuple(dict.fromkeys((*warnings, *facts.warnings))),
        ):
            await self._files.delete_scratch(job.prompt_id)
        else:
            await self._files.delete_result(filename)
        self._forget(job.prompt_id)

    def _forget(self, prompt_id: str) -> None:
        """What was kept in memory of a job that has ended."""
        self._progress_reporter.close(prompt_id)
        self._joins.pop(prompt_id, None)
        self._uploads.forget(prompt_id)


def _is_full(error: OSError | StoreError) -> bool:
    """Whether an error passes when there is room on the disk again."""
    return error.transient if isinstance(error, StoreError) else error.errno in DISK_FULL


def _ignored_options(backend: Backend, job: Job) -> tuple[str, ...]:
    """A warning that names the options the embedded engine has no use for."""
    if backend.features is None or not backend.features.streams:
        return ()
    given = job.options.to_dict()
    ignored = [name for name in IGNORED_BY_EMBEDDED if given.get(name) not in (None, False, "no", "none")]
    return (f"The embedded engine has no use for {', '.join(ignored)}: that is ReActor's.",) if ignored else ()


def _costs_key(backend: Backend, job: Job) -> str:
    """What the costs of a job's phases depend on: engine, workflow, model options and, roughly, the picture's size."""
    size = round(math.log2(job.inputs.width * job.inputs.height))
    options = job.options
    return (
        f"{backend.name}|{job.workflow}|{options.swap_model}|{options.face_restore_model}|{options.face_boost}|{size}"
    )


def _check_changed(segments: Sequence[Segment]) -> tuple[str, ...]:
    """A swap that surely changed nothing is a failure; one that changed some frames only, or may have, is told."""
    known = [(segment.changed_share, segment.frame_count) for segment in segments if segment.changed_share is not None]
    share = sum(share * frames for share, frames in known) / sum(frames for _, frames in known) if known else 0.0
    if share == 0 and len(known) < len(segments):
        return (
            "Whether a face was swapped cannot be told: the picture is too dark, too restless or encoded too coarsely.",
        )
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
