"""What is done next, and by which engine: recover, dispatch, cancel, erase. Owns the tasks of all jobs.

The database says what is to be done and what was done; this only carries it out, so that it can stop anywhere and go
on after a restart.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial

from .assembly import Assembly
from .comfy.backend import DANGEROUS_DEATHS, EMBEDDED, MAX_PROMPTS, Backend, BackendPool
from .comfy.client import ComfyError
from .comfy.in_flight import GivenUp, InFlightPrompt, Lost, Stopped
from .comfy.inputs import EngineInputs
from .config import Timeouts
from .engine_watch import EngineWatch, stop_abandoned_prompts
from .errors import INTERNAL_ERROR, JobFailure, NotFound
from .files import Files
from .jobs import Job, Segment
from .media import MediaWorker
from .progress_reporter import ProgressReporter
from .recovery import DISK_PAUSE_S, Recovery, TooLong
from .runner import Runner
from .store import Store, is_transient, retry_writes
from .workflow import Workflow

log = logging.getLogger(__name__)

IDLE_S = 5.0
"""Between two looks for work when nothing tells of any."""


class Scheduler:
    """Moves every accepted job to its end."""

    def __init__(
        self,
        store: Store,
        files: Files,
        media: MediaWorker,
        progress_reporter: ProgressReporter,
        workflows: Mapping[str, Workflow],
        pool: BackendPool,
        timeouts: Timeouts,
    ) -> None:
        self.backends = pool.backends
        self._pool = pool
        self._store = store
        self._files = files
        self._progress_reporter = progress_reporter
        self._inputs = EngineInputs(files, media, progress_reporter)
        self._runner = Runner(store, files, media, progress_reporter, workflows, self._inputs)
        self._assembly = Assembly(store, files, media, progress_reporter, timeouts)
        self._recovery = Recovery(store, progress_reporter, self._inputs, workflows, timeouts)
        self._watch = EngineWatch(store, self.backends, timeouts)
        self._tasks: asyncio.TaskGroup | None = None
        self._attempts: dict[str, dict[InFlightPrompt, asyncio.Task[None]]] = {}
        self._joins: dict[str, asyncio.Lock] = {}

    @property
    def outage(self) -> str | None:
        """A sentence while no engine can be given work."""
        return self._watch.outage

    def wake(self) -> None:
        """Look for work: there may be some."""
        self._pool.changed.set()

    def cancel(self, prompt_id: str) -> None:
        """Stop the prompts of a job whose end the store was asked for."""
        attempts = self._attempts.get(prompt_id)
        if not attempts:
            self._forget(prompt_id)
            return
        for prompt in attempts:
            prompt.stop()

    async def erase(self, job: Job) -> None:
        """Erase a job that has ended, or was asked to: record, inputs and outputs, once no engine works on it."""
        while tasks := list(self._attempts.get(job.prompt_id, {}).values()):
            await asyncio.wait(tasks)
        mark = self._files.erasure_mark(job.prompt_id)
        mark.touch(mode=0o600)
        await self._store.begin_erasure(job.prompt_id)
        self._forget(job.prompt_id)
        await asyncio.to_thread(self._files.erase_inputs, job.prompt_id)
        self._files.erase_result(job.result_file or f"{job.output_name}.mp4")
        await self._store.erase(job.prompt_id)
        mark.unlink(missing_ok=True)

    async def run(self) -> None:
        """Take up what was left, then work until cancelled. Prompts in flight stay with ComfyUI."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            for backend in self.backends:
                tasks.create_task(backend.run(), name=f"listener of {backend.name}")
                tasks.create_task(
                    stop_abandoned_prompts(self._store, backend), name=f"abandoned prompts of {backend.name}"
                )
            await self._recover()
            tasks.create_task(self._dispatch(), name="dispatcher")
            tasks.create_task(self._progress_reporter.run(), name="reports")
            tasks.create_task(self._watch_engines(), name="watch over the engines")

    async def _recover(self) -> None:
        """Go on with what a former process left."""
        by_name = {backend.name: backend for backend in self.backends}
        for segment in await self._store.submitted():
            backend = by_name.get(segment.backend or "")
            if backend is None:
                await self._store.requeue(segment)
            else:
                self._start(segment, backend, look_first=True)
        for job in await self._store.unfinished():
            self._spawn(self._finish(job.prompt_id), f"finish {job.prompt_id}")

    async def _dispatch(self) -> None:
        """Give waiting segments to backends that have room, whenever something changes."""
        changed = self._pool.changed
        while True:
            changed.clear()
            try:
                await retry_writes(self._dispatch_waiting)
                due_s = await self._store.next_due_s()
            except sqlite3.Error as error:
                if not is_transient(error):
                    raise
                due_s = DISK_PAUSE_S
            # A segment that is due waits for a backend, whose change wakes us.
            with suppress(TimeoutError):
                async with asyncio.timeout(min(due_s or IDLE_S, IDLE_S)):
                    await changed.wait()

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
                        backend.name,
                        again=not backend.replaceable,
                        most_deaths=DANGEROUS_DEATHS - 1 if backend.in_flight else None,
                    )
                    if segment is not None:
                        self._start(segment, backend, look_first=False)
                        waiting = await self._store.waiting_frames()

    def _is_worth_dispatching(self, backend: Backend, waiting: Sequence[int]) -> bool:
        """Return whether the work is done sooner when this backend takes the next segment too.

        `waiting` are the frames of those that wait, the next one first. It is not when another, at work now, would be
        done with all that waits before this one is with the next; and what has not shown its speed yet gets no second
        segment while others are there.
        """
        if backend.seconds_per_frame is None:
            return not (backend.in_flight and backend.replaceable)
        done_in_s = backend.done_in_s(waiting[0])
        others = [other for other in self.backends if other is not backend and other.healthy and other.in_flight]
        return all(
            done_in_s <= other.done_in_s(sum(waiting)) for other in others if other.seconds_per_frame is not None
        )

    def _start(self, segment: Segment, backend: Backend, *, look_first: bool) -> None:
        """Begin an attempt at a segment, or go on with one."""
        log.info(
            "job %s: frames %d to %d %s %s, attempt %d",
            segment.prompt_id,
            segment.first_frame,
            segment.first_frame + segment.frame_count - 1,
            "looked for at" if look_first else "given to",
            backend.name,
            segment.attempt,
        )
        prompt = backend.begin(segment)
        task = self._spawn(self._run_segment(prompt, backend, look_first), f"segment {prompt.prompt_id}")
        self._attempts.setdefault(segment.prompt_id, {})[prompt] = task

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        assert self._tasks is not None
        return self._tasks.create_task(work, name=name)

    async def _run_segment(self, prompt: InFlightPrompt, backend: Backend, look_first: bool) -> None:
        """See one attempt at a segment to its end, and what follows from it."""
        prompt_id = prompt.segment.prompt_id
        complete = False
        try:
            complete = await self._attempt(prompt, backend, look_first)
        finally:
            backend.end(prompt)
            others = self._attempts[prompt_id]
            del others[prompt]
            if not others:
                del self._attempts[prompt_id]
        if prompt.stopping_since is not None and not others:
            await retry_writes(partial(self._store.mark_cancelled, prompt_id))
            self._forget(prompt_id)
        if complete:
            await self._finish(prompt_id)
        if backend.name == EMBEDDED and backend.idle:
            # It keeps the last video until the next one comes; faces are to be erased on time.
            with suppress(ComfyError):
                await backend.client.free()

    async def _attempt(self, prompt: InFlightPrompt, backend: Backend, look_first: bool) -> bool:
        """Have a segment done, or put it back; return whether it was the job's last and is done."""
        prompt_id = prompt.segment.prompt_id
        cause: GivenUp | Lost | TooLong | JobFailure
        try:
            return await self._runner.run(prompt, backend, look_first=look_first)
        except Stopped:
            log.info("stopped %s on %s", prompt.prompt_id, backend.name)
            return False
        except NotFound:
            log.info("job %s was erased", prompt_id)
            return False
        except (GivenUp, Lost, TooLong, JobFailure) as error:
            cause = error
        except Exception:  # the top of the task
            log.exception("segment %s", prompt.prompt_id)
            cause = JobFailure("internal_error", INTERNAL_ERROR, transient=True)
        failure = await self._recovery.recover(prompt, backend, cause)
        if failure is not None:
            await self._end_failed(prompt_id, failure)
        return False

    async def _finish(self, prompt_id: str) -> None:
        """Have a job's finished segments made its result."""
        # A job that was cancelled while it was joined, and is joined again, may have two at a time.
        async with self._joins.setdefault(prompt_id, asyncio.Lock()):
            try:
                await self._assembly.finish(prompt_id)
            except JobFailure as failure:
                await self._end_failed(prompt_id, failure)
        self._forget(prompt_id)

    async def _watch_engines(self) -> None:
        """End the jobs that wait for an engine when none has been there for too long."""
        while True:
            await asyncio.sleep(self._watch.pause_s)
            failure = await self._watch.look()
            while failure is not None and (waiting := await self._watch.waiting()):
                for prompt_id in waiting:
                    await self._end_failed(prompt_id, failure)

    async def _end_failed(self, prompt_id: str, failure: JobFailure) -> None:
        log.warning("job %s: %s: %s", prompt_id, failure.code, failure.message)
        await retry_writes(partial(self._store.fail, prompt_id, failure.code, failure.message))
        self.cancel(prompt_id)
        self._forget(prompt_id)

    def _forget(self, prompt_id: str) -> None:
        """Drop what was kept in memory of a job that has ended."""
        self._progress_reporter.close(prompt_id)
        self._joins.pop(prompt_id, None)
        self._inputs.forget(prompt_id)
