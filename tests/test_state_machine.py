"""Jobs under everything that can happen to them, in any order: nothing is lost, done twice or stuck."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Coroutine
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar

import postgres
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from stored_jobs import MIGRATIONS, QUEUE_LIMIT, finish, new_job, sql

from faceswap import events
from faceswap.errors import Conflict
from faceswap.events import Event
from faceswap.jobs import TERMINAL, TRANSITIONS, Job, JobState, Segment, SegmentState
from faceswap.progress import Report
from faceswap.store import Lease, LeaseLost, Store, StoreError, backend_lease

T = TypeVar("T")

BACKENDS, HOLDERS = ("a", "b"), ("one", "two")
RETRYABLE = frozenset(state for state in TERMINAL if JobState.QUEUED in TRANSITIONS[state])


class Jobs(RuleBasedStateMachine):
    """A service that crashes at any time, its users, and engines that answer late or never.

    The model is what was promised: the state each job was last seen in, and the numbers of the events it told.
    """

    jobs = Bundle("jobs")
    attempts = Bundle("attempts")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.where = self.make_database()
        self.powered = True
        self.states: dict[str, JobState] = {}
        self.told: defaultdict[str, list[int]] = defaultdict(list)
        self.leases: dict[str, Lease] = {}
        self.store = self.open()
        for backend in BACKENDS:
            self.take(backend, HOLDERS[0])

    def make_database(self) -> Path | str:
        """Make a place for a database; returns where it is."""
        self.folder = Path(tempfile.mkdtemp())
        return self.folder / "0.db"

    def remove_database(self) -> None:
        """Leave nothing of the database."""
        shutil.rmtree(self.folder)

    def cut_power(self, task: asyncio.Task[Any]) -> None:
        """End the process in the middle of a task: another finds what the disk holds at this moment."""
        assert isinstance(self.where, Path)
        found = self.where.with_stem(str(int(self.where.stem) + 1))
        for suffix in ("", "-wal"):
            shutil.copy(f"{self.where}{suffix}", f"{found}{suffix}")
        task.cancel()
        self.run(asyncio.wait([task]))
        self.run(self.store.close())
        self.where = found

    def open(self) -> Store:
        return self.run(Store.open(self.where, MIGRATIONS, self.hear))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def hear(self, event: Event) -> None:
        if self.powered:
            self.told[event.prompt_id].append(event.seq)

    def take(self, backend: str, holder: str) -> list[Segment]:
        """Have a holder take a backend whose lease it may have; returns what it takes over."""
        lease = self.run(self.store.acquire_lease(backend_lease(backend), holder, 1000))
        assert lease is not None
        assert backend not in self.leases or lease.epoch > self.leases[backend].epoch
        self.leases[backend] = lease
        return self.run(self.store.adopt(lease))

    def move(self, attempt: Segment, work: Coroutine[Any, Any, object]) -> None:
        """Move an attempt: who does not hold its backend any more is refused, and changes nothing."""
        assert attempt.backend is not None
        if attempt.epoch == self.leases[attempt.backend].epoch:
            self.run(work)
            return
        before = self.run(self.store.segments(attempt.prompt_id))
        with pytest.raises(LeaseLost):
            self.run(work)
        assert self.run(self.store.segments(attempt.prompt_id)) == before

    def job(self, prompt_id: str) -> Job:
        return self.run(self.store.job(prompt_id))

    def teardown(self) -> None:
        try:
            for prompt_id in self.states:
                self.lead_to_an_end(prompt_id)
        finally:
            self.run(self.store.close())
            self.loop.close()
            self.remove_database()

    def lead_to_an_end(self, prompt_id: str) -> None:
        """End every job as a runner does after its start, with engines that have forgotten everything."""
        for backend in BACKENDS:
            for segment in self.take(backend, self.leases[backend].holder):
                self.run(self.store.requeue(segment))
        sql(self.where, "UPDATE segment SET not_before = 0")
        while segment := self.run(self.store.claim(self.leases[BACKENDS[0]])):
            self.run(self.store.finish_segment(segment, "x.mp4", None))
        for job in self.run(self.store.unfinished()):
            assert self.run(finish(self.store, job))
        assert self.job(prompt_id).state in TERMINAL

    # What users do.

    @rule(target=jobs, segments=st.integers(1, 3), priority=st.integers(-1, 1))
    def submit(self, segments: int, priority: int) -> str:
        new = new_job(segments=segments, options={"priority": priority})
        job, is_new = self.run(self.store.create(new, QUEUE_LIMIT))
        assert is_new
        self.states[job.prompt_id] = job.state
        return job.prompt_id

    @rule(prompt_id=jobs)
    def cancel(self, prompt_id: str) -> None:
        before = self.job(prompt_id)
        if before.state in TERMINAL:
            with pytest.raises(Conflict):
                self.run(self.store.request_cancel(prompt_id, None))
            return
        out = [one for one in self.run(self.store.submitted()) if one.prompt_id == prompt_id]
        after = self.run(self.store.request_cancel(prompt_id, None))
        assert after.cancel_requested
        assert after.state == (before.state if out else JobState.CANCELLED)

    @rule(prompt_id=jobs)
    def retry(self, prompt_id: str) -> None:
        before = self.job(prompt_id)
        if before.state not in RETRYABLE:
            with pytest.raises(Conflict):
                self.run(self.store.retry(prompt_id, None))
            return
        after = self.run(self.store.retry(prompt_id, None))
        assert after.state == JobState.QUEUED
        assert after.segments_done in (before.segments_done, before.segments_total - 1)
        self.states[prompt_id] = JobState.QUEUED

    # What the runner does.

    @rule(target=attempts, backend=st.sampled_from(BACKENDS))
    def claim(self, backend: str) -> Segment | None:
        segment = self.run(self.store.claim(self.leases[backend]))
        if segment is not None:
            job = self.job(segment.prompt_id)
            assert (job.state, job.cancel_requested) == (JobState.PROCESSING, False)
        return segment

    @rule(attempt=attempts)
    def finish_segment(self, attempt: Segment | None) -> None:
        """Finish an attempt, also one that was given up long ago: an engine answers late."""
        if attempt is not None:
            self.move(attempt, self.store.finish_segment(attempt, "x.mp4", 1.0))

    @rule(attempt=consumes(attempts), failed=st.booleans(), pause_s=st.sampled_from([0, 0, 1000]))
    def requeue(self, attempt: Segment | None, failed: bool, pause_s: int) -> None:
        if attempt is not None:
            self.move(attempt, self.store.requeue(attempt, failed=failed, lost=not failed, pause_s=pause_s))

    @rule(attempt=consumes(attempts))
    def shorten(self, attempt: Segment | None) -> None:
        if attempt is not None:
            self.move(attempt, self.store.split(attempt, -(-attempt.frame_count // 2), failed=True))

    @rule(prompt_id=jobs)
    def succeed(self, prompt_id: str) -> None:
        """Finish a job as the runner does, only when all segments are done."""
        for job in self.run(self.store.unfinished()):
            if job.prompt_id == prompt_id:
                assert self.run(finish(self.store, job))

    @rule(prompt_id=jobs)
    def fail(self, prompt_id: str) -> None:
        was_open = self.job(prompt_id).state not in TERMINAL
        assert self.run(self.store.fail(prompt_id, "code", "sentence")) == was_open

    @rule(attempt=consumes(attempts))
    def engine_stopped(self, attempt: Segment | None) -> None:
        if attempt is not None:
            self.move(attempt, self.store.mark_stopped(attempt))

    @rule(target=attempts, backend=st.sampled_from(BACKENDS))
    def take_over(self, backend: str) -> Segment | None:
        """Let a holder freeze until its lease has run out, and another take its backend."""
        lease = self.leases[backend]
        other = next(holder for holder in HOLDERS if holder != lease.holder)
        assert self.run(self.store.acquire_lease(lease.name, other, 1000)) is None
        assert self.run(self.store.renew_lease(lease, 1000))
        sql(self.where, "UPDATE lease SET expires_at = 1 WHERE name = ?", lease.name)
        assert not self.run(self.store.renew_lease(lease, 1000))
        taken = self.take(backend, other)
        with pytest.raises(LeaseLost):
            self.run(self.store.claim(lease))
        return next(iter(taken), None)

    @rule(prompt_id=jobs, percentage=st.floats(0, 99.99), kind=st.sampled_from(["progress", "tell", "announce"]))
    def event(self, prompt_id: str, percentage: float, kind: str) -> None:
        before = self.job(prompt_id)
        report = Report(percentage, 0, 1, None, None)
        if kind == "progress":
            self.run(self.store.record_progress({prompt_id: report}, {}))
            assert self.job(prompt_id).percentage >= before.percentage
        elif kind == "tell":
            self.run(self.store.add_status(prompt_id, "told"))
        elif before.state not in TERMINAL:
            for _ in range(20):
                self.run(self.store.record_progress({}, {prompt_id: events.preview(prompt_id, 1)}))

    # What happens to the service.

    @rule(target=attempts, method=st.sampled_from(["claim", "create"]), turns=st.integers(0, 12))
    def crash(self, method: str, turns: int) -> Segment | None:
        """Cut the power in the middle of a method: another process finds only what the disk holds then."""
        work = (
            self.store.claim(self.leases[BACKENDS[0]])
            if method == "claim"
            else self.store.create(new_job(), QUEUE_LIMIT)
        )
        task = self.loop.create_task(work)  # type: ignore[arg-type]  # either result will do
        for _ in range(turns):
            self.run(asyncio.sleep(0))
        self.powered = False
        self.cut_power(task)
        self.powered = True
        self.store = self.open()
        for (prompt_id,) in sql(self.where, "SELECT prompt_id FROM job"):
            self.states.setdefault(prompt_id, JobState.QUEUED)
        taken = [one for backend in BACKENDS for one in self.take(backend, self.leases[backend].holder)]
        return next(iter(taken), None)

    # What always holds.

    @invariant()
    def an_end_changes_by_retry_only_and_other_states_by_their_moves(self) -> None:
        for prompt_id, before in self.states.items():
            after = self.job(prompt_id).state
            assert after == before or (before not in TERMINAL and after in TRANSITIONS[before])
            self.states[prompt_id] = after

    @invariant()
    def event_numbers_grow(self) -> None:
        for numbers in self.told.values():
            assert numbers == sorted(set(numbers))

    @invariant()
    def the_last_event_of_an_ended_job_tells_its_end(self) -> None:
        for prompt_id, state in self.states.items():
            [*_, last] = self.run(self.store.events(prompt_id, 0))
            assert last.terminal == (state in TERMINAL)

    @invariant()
    def counts_agree_with_the_segments(self) -> None:
        for prompt_id, state in self.states.items():
            job, segments = self.job(prompt_id), self.run(self.store.segments(prompt_id))
            states = [segment.state for segment in segments]
            assert job.segments_done == states.count(SegmentState.DONE)
            if state in TERMINAL:
                assert not {SegmentState.WAITING, SegmentState.SUBMITTED} & set(states)
            elif not job.cancel_requested:
                assert SegmentState.FAILED not in states

    @invariant()
    def every_frame_is_in_one_segment(self) -> None:
        for prompt_id in self.states:
            job, next_frame = self.job(prompt_id), 0
            segments = self.run(self.store.segments(prompt_id))
            for segment in segments:
                assert segment.first_frame == next_frame
                next_frame += segment.frame_count
            assert (next_frame, len(segments)) == (job.total_frames, job.segments_total)

    @invariant()
    def names_and_engine_ids_are_never_shared(self) -> None:
        for column, table in (("output_name", "job"), ("comfy_prompt_id", "segment")):
            values = sql(self.where, f"SELECT {column} FROM {table} WHERE {column} IS NOT NULL")
            assert len(values) == len(set(values))


class JobsOnPostgreSQL(Jobs):
    """The same with PostgreSQL, whose server outlives the process: it undoes what was not committed."""

    def make_database(self) -> Path | str:
        self.stack = ExitStack()
        return self.stack.enter_context(postgres.database())

    def remove_database(self) -> None:
        self.stack.close()

    def cut_power(self, task: asyncio.Task[Any]) -> None:
        assert isinstance(self.where, str)
        others = "datname = current_database() AND pid <> pg_backend_pid()"
        sql(self.where, f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE {others}")
        self.run(asyncio.wait([task]))
        with suppress(StoreError):
            task.result()
        self.run(self.store.close())


TestJobs = Jobs.TestCase
TestJobs.settings = settings(max_examples=25, stateful_step_count=40)
TestJobsOnPostgreSQL = JobsOnPostgreSQL.TestCase
TestJobsOnPostgreSQL.settings = settings(max_examples=10, stateful_step_count=40)
