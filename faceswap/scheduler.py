"""The way of every job: recover, dispatch, cancel, erase. It owns the tasks and holds the leases.

The database says what is to be done and what was done; this only carries it out, so that it can stop anywhere and go
on after a restart.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from .assembly import Assembly
from .comfy.backend import DANGEROUS_DEATHS, MAX_PROMPTS, Backend, BackendPool
from .comfy.client import ComfyError
from .comfy.in_flight import Attempts, GivenUp, InFlightPrompt, Lost, Stopped
from .comfy.inputs import EngineInputs
from .config import Timeouts
from .engine_watch import WATCH_LEASE, EngineWatch, empty_files, stop_abandoned_prompts
from .erasure import Erasure
from .errors import INTERNAL_ERROR, JobFailure, NotFound
from .feed import Feed, Signal
from .files import Files
from .held_backends import HeldBackends
from .jobs import Job, Segment
from .leaseholder import Held, Leaseholder
from .media import MediaWorker
from .node import Node
from .orphans import requeue_orphans
from .other_nodes import OtherNodes
from .progress_reporter import ProgressReporter
from .recovery import DISK_PAUSE_S, Recovery, TooLong
from .runner import Runner
from .store import Lease, LeaseLost, Store, StoreError, backend_lease, join_lease, retry_writes
from .workflow import Workflow

log = logging.getLogger(__name__)

IDLE_S = 5.0
"""Between two looks for work when nothing tells of any."""
TAKE_UP_S = 5.0
"""Between two looks for work that no node does any more."""
START_TIMES = 2
"""The multiple of `Timeouts.node_gone_s` that nodes get to start, where all were down."""
HESITATION_S = 0.5
"""The time, for each backend that this node holds, that others get to take a free one first."""
HAND_OVER_S = 3.0
"""The time that another node gets to take a backend that this one has given back."""


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
        feed: Feed,
        node: Node,
    ) -> None:
        self.backends = pool.backends
        self._pool = pool
        self._store = store
        self._files = files
        self._progress_reporter = progress_reporter
        self._inputs = EngineInputs(files, media, progress_reporter, store)
        self._runner = Runner(store, files, media, progress_reporter, workflows, self._inputs)
        self._assembly = Assembly(store, files, media, progress_reporter, timeouts)
        self._recovery = Recovery(store, progress_reporter, self._inputs, workflows, timeouts)
        self._watch = EngineWatch(store, self.backends, timeouts)
        self._leases = Leaseholder(store, node.name, timeouts.lease_s)
        self._timeouts = timeouts
        self._feed = feed
        self._node = node
        self._tells = not store.is_shared
        self._tasks = asyncio.TaskGroup()
        self._attempts: Attempts = {}
        self._joins: dict[str, asyncio.Task[None]] = {}
        self._held = HeldBackends(node, timeouts)
        self._erasure = Erasure(
            store, files, feed, self._leases, self._attempts, self._tasks, cancel=self.cancel, forget=self._forget
        )
        self._others = OtherNodes(store, self._held, self._attempts, self._erasure, self._take_up)
        feed.on(Signal.WORK, lambda _: self._pool.changed.set())
        feed.on(Signal.STOP, lambda _: self._others.look_soon())
        feed.on(Signal.ENDED, self._ended_elsewhere)
        feed.on(Signal.ERASED, self._erased_elsewhere)

    @property
    def has_engine_elsewhere(self) -> bool:
        """True while another node has an engine that can be given work."""
        return self._pool.elsewhere

    @property
    def outage(self) -> str | None:
        """A sentence while no engine can be given work."""
        return self._watch.outage

    def wake(self) -> None:
        """Look for work, here and at the other nodes: there may be some."""
        self._pool.changed.set()
        self._feed.send(Signal.WORK)

    def cancel(self, prompt_id: str) -> None:
        """Stop the prompts of a job whose end the store was asked for, here and at the other nodes."""
        self._feed.send(Signal.STOP, prompt_id)
        attempts = self._attempts.get(prompt_id)
        if not attempts:
            self._forget(prompt_id)
            return
        for prompt in attempts:
            prompt.stop()

    async def erase(self, job: Job) -> None:
        """Erase a job that has ended, or was asked to. Raises `Unavailable` where that is not done yet."""
        await self._erasure.erase(job)

    async def run(self) -> None:
        """Take up what was left, then work until cancelled. Prompts in flight stay with ComfyUI."""
        async with self._tasks as tasks:
            for backend in self.backends:
                tasks.create_task(self._run_backend(backend), name=backend.name)
            tasks.create_task(self._dispatch(), name="dispatcher")
            tasks.create_task(self._progress_reporter.run(), name="reports")
            tasks.create_task(self._watch_engines(), name="watch over the engines")
            if self._store.is_shared:
                tasks.create_task(self._node.run(), name="heartbeat")
                tasks.create_task(self._tell_of_outages(), name="lease on outages")
                tasks.create_task(self._others.run(), name="requests by other nodes")
                tasks.create_task(self._take_up_regularly(), name="work that no node does")
            else:
                await requeue_orphans(self._store, self._node, self.backends, self._timeouts.lease_s)

    async def _take_up_regularly(self) -> None:
        """Take up what nodes that are gone have left: work at their own backends, and joins."""
        await asyncio.sleep(START_TIMES * self._timeouts.node_gone_s)
        while True:
            try:
                if self._node.is_sure:
                    await requeue_orphans(self._store, self._node, self.backends, self._timeouts.lease_s)
                self._finish_unfinished(await self._store.unfinished())
                unended = await self._store.unended()
                for prompt_id in self._progress_reporter.prompt_ids - unended - self._attempts.keys():
                    self._forget(prompt_id)
            except StoreError as error:  # the heartbeat tells of a database that is away
                if not error.transient:
                    raise
            await asyncio.sleep(TAKE_UP_S)

    async def _run_backend(self, backend: Backend) -> None:
        """Run a backend whenever this node holds its lease, for as long as the service runs."""
        while True:
            with suppress(LeaseLost):
                async with self._leases.hold(backend_lease(backend.name), self._hesitation_s) as held:
                    await self._recover(backend, held)
                if held.given_back:
                    await asyncio.sleep(HAND_OVER_S)

    def _hesitation_s(self) -> float:
        return self._node.hesitation_s(HESITATION_S)

    async def _recover(self, backend: Backend, held: Held) -> None:
        """Take up what was left with a backend, then listen to it; attempts are cancelled together with this."""
        backend.abandoned = await retry_writes(partial(self._store.abandoned, backend.name))
        submitted = await retry_writes(partial(self._store.adopt, held.lease))
        backend.may_be_given_work = lambda: held.is_sure
        async with self._held.hold(backend, held) as tasks:
            self._take_up(submitted, backend)
            tasks.create_task(backend.run(), name=f"listener of {backend.name}")
            tasks.create_task(stop_abandoned_prompts(self._store, backend), name=f"abandoned at {backend.name}")
            if not backend.is_embedded:
                tasks.create_task(empty_files(self._store, backend), name=f"erased at {backend.name}")
            self._finish_unfinished(await retry_writes(self._store.unfinished))

    async def _dispatch(self) -> None:
        """Give waiting segments to backends that have room, whenever something changes."""
        changed = self._pool.changed
        while True:
            changed.clear()
            due_s = None
            # A segment that is due waits for a backend, whose change wakes us.
            if any(backend.takes_a_prompt(MAX_PROMPTS - 1) for backend in self.backends):
                try:
                    await retry_writes(self._dispatch_waiting)
                    due_s = await self._store.next_due_s()
                except StoreError as error:
                    if not error.transient:
                        raise
                    due_s = DISK_PAUSE_S
            with suppress(TimeoutError):
                async with asyncio.timeout(min(due_s or IDLE_S, IDLE_S)):
                    await changed.wait()

    async def _dispatch_waiting(self) -> None:
        """Give to each backend its first segment before any its second, quick ones first.

        What failed at one goes to another where there is one. What engines have died of is given to one that has
        nothing else to do.
        """
        waiting: list[int] = []
        for busy in range(MAX_PROMPTS):
            if not any(backend.takes_a_prompt(busy) for backend in self.backends):
                continue
            waiting = waiting or await self._store.waiting_frames()
            if not waiting:
                return  # before what takes longer the more backends there are
            for backend in sorted(self.backends, key=lambda backend: backend.speed.seconds_per_frame or 0.0):
                if not backend.takes_a_prompt(busy):
                    continue
                waiting = waiting or await self._store.waiting_frames()
                if not waiting:
                    return
                if backend.takes_a_prompt(busy) and self._is_worth_dispatching(backend, waiting):
                    await self._claim(backend)
                    waiting = []  # it is looked at again where another could be given some

    async def _claim(self, backend: Backend) -> None:
        """Give the next waiting segment to a backend."""
        ours = self._held.get(backend)
        if ours is None or ours.leaving:
            return
        try:
            segment = await self._store.claim(
                ours.held.lease,
                again=not backend.replaceable,
                most_deaths=DANGEROUS_DEATHS - 1 if backend.in_flight else None,
            )
        except LeaseLost:
            ours.held.lose()
            return
        if segment is not None:
            self._start(segment, backend, look_first=False)

    def _is_worth_dispatching(self, backend: Backend, waiting: Sequence[int]) -> bool:
        """Return whether the work is done sooner when this backend takes the next segment too.

        `waiting` are the frames of those that wait, the next one first. It is not when another, at work now, would be
        done with all that waits before this one is with the next; and what has not shown its speed yet gets no second
        segment while others are there.
        """
        if backend.speed.seconds_per_frame is None:
            return not (backend.in_flight and backend.replaceable)
        done_in_s = backend.speed.done_in_s(waiting[0])
        others = [other for other in self.backends if other is not backend and other.healthy and other.in_flight]
        speeds = [other.speed for other in others if other.speed.seconds_per_frame is not None]
        return all(done_in_s <= speed.done_in_s(sum(waiting)) for speed in speeds)

    def _take_up(self, segments: Iterable[Segment], backend: Backend) -> None:
        """Go on with attempts that a backend may know already."""
        for segment in segments:
            self._start(segment, backend, look_first=True)

    def _start(self, segment: Segment, backend: Backend, *, look_first: bool) -> None:
        """Begin an attempt at a segment, or go on with one, unless its backend is let go: who holds it next looks."""
        ours = self._held.get(backend)
        if ours is None or ours.held.ending or ours.held.lease.epoch != segment.epoch:
            return
        in_hand = self._attempts.get(segment.prompt_id, ())
        if any(prompt.segment.attempt_key == segment.attempt_key for prompt in in_hand):
            return  # a look at the database has found it before the claim was answered
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
        prompt.audible = not (look_first and self._store.is_shared)
        work = self._run_segment(prompt, backend, ours.held, look_first)
        task = ours.tasks.create_task(work, name=f"segment {prompt.prompt_id}")
        self._attempts.setdefault(segment.prompt_id, {})[prompt] = task

    async def _run_segment(self, prompt: InFlightPrompt, backend: Backend, held: Held, look_first: bool) -> None:
        """See one attempt at a segment to its end, and what follows from it."""
        prompt_id = prompt.segment.prompt_id
        complete = False
        try:
            complete = await self._attempt(prompt, backend, look_first)
            if prompt.stopping_since is not None:
                await retry_writes(partial(self._store.mark_stopped, prompt.segment))
        except LeaseLost:
            held.lose()
        except NotFound:
            log.info("job %s was erased", prompt_id)
        finally:
            self._erasure.look_at(prompt_id)
            backend.end(prompt)
            others = self._attempts[prompt_id]
            del others[prompt]
            if not others:
                del self._attempts[prompt_id]
        if prompt.stopping_since is not None and not others:
            self._forget(prompt_id)
        if complete:
            self._finish_soon(prompt_id)
        else:
            self._feed.send(Signal.WORK)
        if backend.is_embedded and backend.idle:
            # It keeps the last video until the next one comes; faces are to be erased on time.
            with suppress(ComfyError):
                await backend.client.free()

    async def _attempt(self, prompt: InFlightPrompt, backend: Backend, look_first: bool) -> bool:
        """Have a segment done, or put it back; return whether it was the job's last and is done."""
        prompt_id = prompt.segment.prompt_id
        cause: GivenUp | Lost | TooLong | JobFailure
        try:
            return await self._runner.run(prompt, backend, look_first=look_first)
        except (LeaseLost, NotFound):
            raise
        except Stopped:
            log.info("stopped %s on %s", prompt.prompt_id, backend.name)
            return False
        except (GivenUp, Lost, TooLong, JobFailure) as error:
            cause = error
        except Exception as error:  # the top of the task
            if not backend.may_be_given_work():  # who holds it now may have finished, and removed, what was worked on
                raise LeaseLost(backend.name) from error
            log.exception("segment %s", prompt.prompt_id)
            cause = JobFailure("internal_error", INTERNAL_ERROR, transient=True)
        failure = await self._recovery.recover(prompt, backend, cause)
        if failure is not None:
            await self._end_failed(prompt_id, failure, prompt.segment)
        return False

    def _finish_unfinished(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            if job.prompt_id not in self._joins:
                self._finish_soon(job.prompt_id)

    def _finish_soon(self, prompt_id: str) -> None:
        """Have a job's finished segments made its result."""
        work = self._finish(prompt_id, after=self._joins.get(prompt_id))
        self._joins[prompt_id] = self._tasks.create_task(work, name=f"finish {prompt_id}")

    async def _finish(self, prompt_id: str, after: asyncio.Task[None] | None) -> None:
        """End a job whose segments are done; begin again when the lease on that is lost meanwhile."""
        if after is not None:  # it was cancelled while it was joined, and is joined again
            await asyncio.wait({after})
        finished = False
        while not finished:
            try:
                async with self._leases.hold(join_lease(prompt_id)) as held:
                    await self._assemble(prompt_id, held.lease)
                    finished = True
            except LeaseLost:
                pass  # begin again
            finally:
                self._erasure.look_at(prompt_id)
        if self._joins[prompt_id] is asyncio.current_task():
            del self._joins[prompt_id]
        if prompt_id not in self._attempts:  # else it was cancelled, and is done again
            self._forget(prompt_id)

    async def _assemble(self, prompt_id: str, lease: Lease) -> None:
        try:
            await self._assembly.finish(prompt_id, lease)
        except JobFailure as failure:
            await self._end_failed(prompt_id, failure, lease)

    async def _watch_engines(self) -> None:
        """End the jobs that wait for an engine when none has been there for too long."""
        while True:
            await asyncio.sleep(self._watch.pause_s)
            failure = await self._watch.look(elsewhere=self._may_be_elsewhere(), tells=self._tells)
            while failure is not None and (waiting := await self._watch.waiting()):
                for prompt_id in waiting:
                    await self._end_failed(prompt_id, failure)

    def _may_be_elsewhere(self) -> bool | None:
        """Return whether another node may have an engine that can be given work, None while nobody can tell."""
        if self._store.is_shared:
            return self._pool.elsewhere if self._node.is_sure else None
        return self._held.sure < len(self.backends)

    async def _tell_of_outages(self) -> None:
        """Tell jobs of outages whenever this node holds the lease on that."""
        while True:
            with suppress(LeaseLost):
                async with self._leases.hold(WATCH_LEASE):
                    self._tells = True
                    try:
                        await asyncio.Event().wait()
                    finally:
                        self._tells = False

    def _ended_elsewhere(self, prompt_id: str) -> None:
        """Drop what is kept of a job that has ended at another node; its attempts here are looked at."""
        if prompt_id in self._attempts:
            self._others.look_soon()
        else:
            self._forget(prompt_id)

    def _erased_elsewhere(self, prompt_id: str) -> None:
        self._ended_elsewhere(prompt_id)
        self._erasure.erased_elsewhere.add(prompt_id)
        self._others.look_soon()

    async def _end_failed(self, prompt_id: str, failure: JobFailure, cause: Segment | Lease | None = None) -> None:
        """End a job. `cause` is what failed, which is to be still ours. Raises `LeaseLost`."""
        log.warning("job %s: %s: %s", prompt_id, failure.code, failure.message)
        await retry_writes(partial(self._store.fail, prompt_id, failure.code, failure.message, cause))
        self.cancel(prompt_id)
        self._forget(prompt_id)

    def _forget(self, prompt_id: str) -> None:
        """Drop what was kept in memory of a job that has ended."""
        self._progress_reporter.close(prompt_id)
        self._inputs.forget(prompt_id)
