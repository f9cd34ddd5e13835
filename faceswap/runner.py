"""A job's life: claim a segment, give it to a backend, follow it, collect, join, check, finish; cancel, retry.

The database says what is to be done and what was done; this only carries it out, so that it can stop anywhere and go
on after a restart.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import sqlite3
import time
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from .backend import MAX_PROMPTS, Backend
from .comfy.client import ComfyError, Outcome
from .errors import JobFailure, NotFound, Problem
from .flight import Flight, Lost, Patience, Stopped
from .folders import Folders
from .jobs import TERMINAL, Job, Segment
from .media import MediaWorker, Verdict
from .progress import FIRST_GUESS, FIRST_GUESS_EMBEDDED
from .reports import Reports
from .store import Store, insist
from .uploads import Uploads
from .workflow import Graph, Workflow, WorkflowError, extra_data

log = logging.getLogger(__name__)

EMBEDDED = "embedded"
"""The name under which the embedded engine's work is kept, whatever port it listens on."""
COMPLETED_MESSAGE = "🎉 Face swap completed successfully!"
INTERNAL_ERROR = "Something went wrong inside the service; its log says what."
ELSEWHERE = frozenset({"node_missing", "model_missing", "model_broken", "upload_too_large", "image_too_large"})
"""Failures that are one ComfyUI's own: another may well do it."""
FIRST_LOSS_PAUSE_S = 0.1
DISK_PAUSE_S = 2.0
LOOK_AGAIN_S = 0.5
CUT_LIMIT = 20
"""Times the way back from an engine may be cut before its work counts as lost."""
IDLE_S = 5.0
OUTPUT_LIMIT_BYTES = 64 * 2**30


class Runner:
    """Moves every accepted job to its end."""

    def __init__(
        self,
        store: Store,
        folders: Folders,
        media: MediaWorker,
        reports: Reports,
        workflows: Mapping[str, Workflow],
        backends: Sequence[Backend],
        patience: Patience,
    ) -> None:
        self.backends = backends
        self._store = store
        self._folders = folders
        self._media = media
        self._workflows = workflows
        self._patience = patience
        self._wake = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None
        self._flights: dict[str, dict[Flight, asyncio.Task[None]]] = {}
        self._reports = reports
        self._uploads = Uploads(folders, media, reports)
        self._joins: dict[str, asyncio.Lock] = {}
        for backend in backends:
            backend.on_change = self.wake
            backend.replaceable = partial(self._has_other_than, backend)

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    def cancel(self, prompt_id: str) -> None:
        """The store was asked for a job's end: stop what is out of it."""
        flights = self._flights.get(prompt_id)
        if not flights:
            self._forget(prompt_id)
            return
        for flight in flights:
            flight.stop()

    async def erase(self, job: Job) -> None:
        """Erase a job that has ended, or was asked to: record, inputs and outputs, once no engine works on it."""
        while tasks := list(self._flights.get(job.prompt_id, {}).values()):
            await asyncio.wait(tasks)
        await self._store.erase(job.prompt_id)
        self._forget(job.prompt_id)
        await asyncio.to_thread(self._folders.erase_inputs, job.prompt_id)
        if job.result_file:
            self._folders.erase_result(job.result_file)

    async def run(self) -> None:
        """Take up what was left, then work until cancelled. Prompts that are out stay with ComfyUI."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            for backend in self.backends:
                tasks.create_task(backend.run(), name=f"listener of {backend.name}")
            await self._take_up()
            tasks.create_task(self._dispatch(), name="dispatcher")
            tasks.create_task(self._reports.run(), name="reports")
            tasks.create_task(self._miss_engines(), name="watch over the engines")

    def _has_other_than(self, backend: Backend) -> bool:
        return any(other.healthy for other in self.backends if other is not backend)

    async def _miss_engines(self) -> None:
        """End what waits when no engine has been there for so long that nobody can mean it to be."""
        seen = time.monotonic()
        while True:
            await asyncio.sleep(min(IDLE_S, self._patience.gone_s / 4))
            if any(backend.healthy for backend in self.backends):
                seen = time.monotonic()
            elif time.monotonic() - seen > self._patience.gone_s:
                hours = self._patience.gone_s / 3600
                sentence = f"No ComfyUI could be reached for {hours:.0f} hours; start it, then retry the job."
                for prompt_id in await self._store.unswapped():
                    await self._end_failed(prompt_id, JobFailure("engine_unreachable", sentence))

    async def _take_up(self) -> None:
        """Go on with what a former process left."""
        by_name = {backend.name: backend for backend in self.backends}
        for segment in await self._store.submitted():
            backend = by_name.get(segment.backend or "")
            if backend is None:
                await self._store.give_back(segment)
            else:
                self._start(segment, backend, look_first=True)
        for job in await self._store.unfinished():
            self._spawn(self._finish(job.prompt_id), f"finish {job.prompt_id}")

    async def _dispatch(self) -> None:
        """Give waiting segments to backends that have room: to each its first before any its second, quick ones first.

        What failed at one goes to another where there is one.
        """
        while True:
            self._wake.clear()
            for busy in range(MAX_PROMPTS):
                for backend in sorted(self.backends, key=lambda backend: backend.pace_s or 0.0):
                    if backend.takes_a_prompt(busy) and await self._gains(backend):
                        again = not self._has_other_than(backend)
                        segment = await insist(partial(self._store.claim, backend.name, again=again))
                        if segment is not None:
                            self._start(segment, backend, look_first=False)
            due_s = await self._store.next_due_s()
            # A segment that is due waits for a backend, whose change wakes us.
            try:
                async with asyncio.timeout(min(due_s, IDLE_S) if due_s else IDLE_S):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _gains(self, backend: Backend) -> bool:
        """Whether the work is done sooner when this backend takes the next segment too.

        It is not when another, at work now, would be done with all that waits before this one is with the next; and
        what has not shown its pace yet gets no second segment while others are there.
        """
        if backend.pace_s is None:
            return not (backend.flights and self._has_other_than(backend))
        waiting = await self._store.waiting_frames()
        done_in_s = backend.done_in_s(waiting[0] if waiting else 0)
        others = [other for other in self.backends if other is not backend and other.healthy and other.flights]
        return all(done_in_s <= other.done_in_s(sum(waiting)) for other in others if other.pace_s is not None)

    def _start(self, segment: Segment, backend: Backend, *, look_first: bool) -> None:
        flight = Flight(segment)
        backend.flights[flight.prompt_id] = flight
        task = self._spawn(self._fly(flight, backend, look_first), f"segment {flight.prompt_id}")
        self._flights.setdefault(segment.prompt_id, {})[flight] = task

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        assert self._tasks is not None
        return self._tasks.create_task(work, name=name)

    async def _fly(self, flight: Flight, backend: Backend, look_first: bool) -> None:
        """One attempt at one segment, whatever its end."""
        segment = flight.segment
        complete = False
        try:
            complete = await self._attempt(flight, backend, look_first)
        except Stopped:
            log.info("stopped %s on %s", flight.prompt_id, backend.name)
        except (Lost, ComfyError) as error:
            await self._lost(flight.segment, backend, error)
        except JobFailure as failure:
            await self._failed(flight.segment, backend, failure)
        except Problem:
            log.info("job %s was erased", segment.prompt_id)
        except Exception:  # the top of the task
            log.exception("segment %s", flight.prompt_id)
            await self._failed(flight.segment, backend, JobFailure("internal_error", INTERNAL_ERROR, passing=True))
        finally:
            backend.flights.pop(flight.prompt_id, None)
            others = self._flights[segment.prompt_id]
            del others[flight]
            if not others:
                del self._flights[segment.prompt_id]
            self.wake()
        if flight.stopping_since is not None and not others:
            await insist(partial(self._store.cancelled, segment.prompt_id))
            self._forget(segment.prompt_id)
        if complete:
            await self._finish(segment.prompt_id)
        if backend.name == EMBEDDED and backend.idle:
            # It keeps the last video until the next one comes; faces are to be erased on time.
            with suppress(ComfyError):
                await backend.client.free()

    async def _attempt(self, flight: Flight, backend: Backend, look_first: bool) -> bool:
        """One attempt, taken up again, never begun anew, when the way back from the engine is cut or the disk is full.

        Returns whether it was the job's last segment.
        """
        cuts = 0
        while True:
            try:
                return await self._carry_out(flight, backend, look_first)
            except ComfyError as error:
                cuts += 1
                if not error.passing or not flight.sent or cuts > CUT_LIMIT:
                    raise
                log.warning("segment %s on %s: %s; looking again", flight.prompt_id, backend.name, error.sentence)
                await asyncio.sleep(LOOK_AGAIN_S)
            except (OSError, sqlite3.Error) as error:
                log.warning("segment %s: %s; trying again", flight.prompt_id, error)
                await asyncio.sleep(DISK_PAUSE_S)
            look_first = True

    async def _carry_out(self, flight: Flight, backend: Backend, look_first: bool) -> bool:
        """From upload to a checked output in the work folder; returns whether it was the job's last segment."""
        job = await self._store.job(flight.segment.prompt_id)
        if job.state in TERMINAL or job.cancel_requested:
            flight.stop()
        workflow = self._workflows.get(job.workflow)
        if workflow is None:
            raise JobFailure("workflow_missing", f"The workflow {job.workflow} is no longer in the workflow folder.")
        costs_key = _costs_key(backend, job)
        guess = FIRST_GUESS_EMBEDDED if backend.name == EMBEDDED else FIRST_GUESS
        expected = await self._store.phase_costs(costs_key) or guess
        progress = self._reports.progress(job)
        bars = progress.begin(flight.segment.number, flight.segment.frame_count, expected, time.monotonic())

        async def on_executing(node: str) -> None:
            title = workflow.title(node)
            data = {"node": node, "title": title, "message": f"Executing: {title}"}
            await self._reports.tell(job.prompt_id, "executing", data, step=f"Executing: {title}")

        def on_progress(node: str, value: float, maximum: float) -> None:
            role = workflow.role(node)
            if role is not None:
                bars.feed(role, value, maximum, time.monotonic())

        flight.on_executing, flight.on_progress = on_executing, on_progress
        flight.on_preview = partial(self._reports.take_preview, job.prompt_id)

        try:
            outcome = await backend.perform(
                flight,
                partial(self._graph, job, flight, workflow, backend),
                extra_data(),
                output_node=workflow.output,
                look_first=look_first,
                on_queued=lambda queued_id: self._store.known_as(flight.segment, queued_id),
            )
            costs = bars.end(time.monotonic())
            with backend.released(flight):
                collecting = self._collect(job, flight.segment, workflow, backend, outcome)
                path, verdict = await flight.unless_stopped(collecting)
        except BaseException:
            progress.abandon(flight.segment.number, time.monotonic())
            raise
        if costs and not look_first:  # or they may be those of a part only
            await self._store.learn_phase_costs(costs_key, costs)
        finish = partial(self._store.finish_segment, flight.segment, path.name, verdict.changed_share, verdict.warnings)
        moved = await insist(finish)
        progress.finish(flight.segment.number)
        return moved is not None and moved.segments_done == moved.segments_total

    async def _graph(self, job: Job, flight: Flight, workflow: Workflow, backend: Backend) -> Graph:
        """The inputs uploaded, and the graph that names them."""
        segment = flight.segment
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
        files = [file for file in outcome.outputs.get(workflow.output, ()) if file.type == "output"]
        if not files:
            sentence = (
                "ComfyUI reported success but made no file; look into its log and at the workflow's encoder settings."
            )
            raise JobFailure("output_missing", sentence, passing=True)
        message = "Retrieving face-swapped video…"
        if job.segments_total > 1:
            message = f"Retrieving part {segment.number + 1} of {job.segments_total}…"
        await self._reports.tell(job.prompt_id, "status", {"status": job.state, "message": message}, step=message)
        path = self._folders.segment(segment)
        await backend.client.download(files[-1], path, OUTPUT_LIMIT_BYTES)
        original = self._uploads.original(job)
        try:
            verdict = await self._media.verify(
                path,
                original.path,
                first_frame=segment.first_frame,
                frame_count=segment.frame_count,
                frame_rate=original.frame_rate,
                expect_audio=False,
            )
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path, verdict

    async def _lost(self, segment: Segment, backend: Backend, error: Lost | ComfyError) -> None:
        """The engine went away with a segment: it is done again, here or elsewhere."""
        if isinstance(error, ComfyError) and (error.answered or not error.passing):
            await self._failed(segment, backend, JobFailure("engine_error", error.sentence, passing=error.passing))
            return
        if segment.losses + 1 >= self._patience.loss_limit:
            sentence = "ComfyUI died every time it worked on this video; look into its log, then retry the job."
            await self._failed(segment, backend, JobFailure("engine_crashed", sentence))
            return
        message = f"ComfyUI restarted, resuming at frame {segment.first_frame}"
        await self._reports.tell(segment.prompt_id, "status", {"status": "PROCESSING", "message": message})
        pause_s = min(FIRST_LOSS_PAUSE_S * 2**segment.losses, self._patience.retry_s[-1])
        await insist(partial(self._store.give_back, segment, lost=True, pause_s=pause_s))

    async def _failed(self, segment: Segment, backend: Backend, failure: JobFailure) -> None:
        """Try again what may pass by itself; end the job otherwise."""
        log.warning("segment %s on %s: %s: %s", segment.comfy_prompt_id, backend.name, failure.code, failure.sentence)
        self._uploads.repeat(segment.prompt_id, backend)
        pauses_s = self._patience.retry_s
        passing = failure.passing or (failure.code in ELSEWHERE and self._has_other_than(backend))
        if not passing or segment.failures == len(pauses_s):
            await self._end_failed(segment.prompt_id, failure)
            return
        message = f"{failure.sentence} Attempt {segment.failures + 2} of {len(pauses_s) + 1} follows."
        await self._reports.tell(segment.prompt_id, "status", {"status": "PROCESSING", "message": message})
        pause_s = pauses_s[segment.failures] * random.uniform(0.8, 1.2)
        if failure.code == "out_of_memory" and await self._relieve(segment, backend):
            await insist(partial(self._store.shorten, segment, pause_s=pause_s))
        else:
            await insist(partial(self._store.give_back, segment, failed=True, pause_s=pause_s))

    async def _relieve(self, segment: Segment, backend: Backend) -> bool:
        """Have an engine that ran out of memory give some back; tells whether shorter segments will help it too."""
        with suppress(ComfyError):
            await backend.client.free()
        job = await self._store.job(segment.prompt_id)
        return self._workflows[job.workflow].splittable

    async def _end_failed(self, prompt_id: str, failure: JobFailure) -> None:
        await insist(partial(self._store.fail, prompt_id, failure.code, failure.sentence))
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
                failures += 1
                if not failure.passing or failures > len(self._patience.retry_s):
                    await self._end_failed(prompt_id, failure)
                    return
                await asyncio.sleep(self._patience.retry_s[failures - 1])
            except (OSError, sqlite3.Error) as error:
                log.warning("joining %s: %s; trying again", prompt_id, error)
                await asyncio.sleep(DISK_PAUSE_S)

    async def _join(self, job: Job) -> None:
        segments = await self._store.segments(job.prompt_id)
        warnings = [*_check_changed(segments), *(warning for segment in segments for warning in segment.warnings)]
        joined = self._folders.joined(job.prompt_id)
        facts = await self._media.join(
            [self._folders.finished_segment(segment) for segment in segments],
            self._folders.video(job.prompt_id, job.inputs),
            joined,
            job.options.rate,
        )
        if facts.frames != job.total_frames:
            raise JobFailure("frames_missing", f"The result has {facts.frames} frames instead of {job.total_frames}.")
        filename = f"{job.output_name}.mp4"
        await asyncio.to_thread(self._folders.publish, joined, filename)
        self._reports.close(job.prompt_id)
        if await self._store.succeed(
            job,
            result_file=filename,
            size=facts.bytes,
            sha256=facts.sha256,
            warnings=tuple(dict.fromkeys((*warnings, *facts.warnings))),
            message=COMPLETED_MESSAGE,
        ):
            await asyncio.to_thread(self._folders.erase_work, job.prompt_id)
        else:
            self._folders.erase_result(filename)
        self._forget(job.prompt_id)

    def _forget(self, prompt_id: str) -> None:
        """What was kept in memory of a job that has ended."""
        self._reports.close(prompt_id)
        self._joins.pop(prompt_id, None)
        self._uploads.forget(prompt_id)


def _costs_key(backend: Backend, job: Job) -> str:
    """What the costs of a job's phases depend on: engine, workflow, model options and, roughly, the picture's size."""
    size = round(math.log2(job.inputs.width * job.inputs.height))
    options = job.options
    return (
        f"{backend.name}|{job.workflow}|{options.swap_model}|{options.face_restore_model}|{options.face_boost}|{size}"
    )


def _check_changed(segments: Sequence[Segment]) -> tuple[str, ...]:
    """A swap that changed nothing is a failure; one that changed some frames only is told."""
    known = [(segment.changed_share, segment.frame_count) for segment in segments if segment.changed_share is not None]
    if not known:
        return ()
    share = sum(share * frames for share, frames in known) / sum(frames for _, frames in known)
    if share == 0:
        raise JobFailure(
            "no_face_detected",
            "No face was swapped in any frame; check that both the video and the picture show a face clearly.",
        )
    if share < 1:
        return (
            f"A face was swapped in about {max(share * 100, 1):.0f}% of the frames; no face was found in the rest.",
        )
    return ()
