"""The fate of a segment whose attempt came to nothing."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from stored_jobs import claim, create, opened
from waiting import until
from yarl import URL

from faceswap import recovery
from faceswap.comfy.backend import Backend, BackendPool
from faceswap.comfy.client import ComfyClient, ComfyError
from faceswap.comfy.in_flight import GivenUp, InFlightPrompt, Lost
from faceswap.comfy.inputs import EngineInputs
from faceswap.config import Timeouts
from faceswap.engine_watch import EngineWatch
from faceswap.errors import JobFailure
from faceswap.files import Files, FilesUnavailable
from faceswap.jobs import Segment, SegmentState
from faceswap.media import MediaWorker
from faceswap.progress_reporter import ProgressReporter
from faceswap.recovery import Again, Cause, Decision, EndOfJob, InParts, Recovery, TooLong, decide
from faceswap.store import Store, StoreError, database

TIMEOUTS = Timeouts()
FRAMES = 9


def decided(
    cause: Cause, *, died: bool = False, splittable: bool = True, replaceable: bool = False, **counts: Any
) -> Decision:
    """Decide about a segment with these counts."""
    values = {"failures": 0, "losses": 0, "deaths": 0, **counts}
    segment = Segment(
        prompt_id="job",
        number=0,
        first_frame=30,
        frame_count=FRAMES,
        state=SegmentState.SUBMITTED,
        attempt=1,
        comfy_prompt_id="prompt",
        backend="one",
        output_file=None,
        changed_share=None,
        **values,
    )
    return decide(segment, cause, TIMEOUTS, died=died, splittable=splittable, replaceable=replaceable)


def failure(code: str, *, transient: bool = False) -> JobFailure:
    return JobFailure(code, "Why.", transient=transient)


def test_what_was_never_sent_costs_nothing() -> None:
    assert decided(TooLong(4)) == InParts(4, unsent=True)
    given_up = decided(GivenUp("ComfyUI does not answer"))
    assert isinstance(given_up, Again) and not (given_up.failed or given_up.lost or given_up.died)
    assert given_up.message is not None and "does not answer; resuming at frame 30" in given_up.message


def test_what_was_forgotten_is_done_again_after_growing_pauses_and_not_for_ever() -> None:
    pauses = []
    for losses in range(TIMEOUTS.loss_limit - 1):
        again = decided(Lost(), losses=losses)
        assert isinstance(again, Again) and again.lost and not again.died
        pauses.append(again.pause_s)
    assert pauses == sorted(pauses) and pauses[0] < pauses[-1] == TIMEOUTS.retry_s[-1]
    last = decided(Lost(), losses=TIMEOUTS.loss_limit - 1)
    assert isinstance(last, EndOfJob) and last.failure.code == "engine_crashed"


def test_what_engines_die_of_is_halved_from_the_second_death_on_and_ends_the_job_at_the_fifth() -> None:
    assert decided(Lost(), died=True) == Again(
        "ComfyUI restarted, resuming at frame 30", pause_s=0.1, lost=True, died=True
    )
    halved = decided(Lost(), died=True, deaths=1)
    assert isinstance(halved, InParts) and (halved.limit, halved.died, halved.alone) == (5, True, True)
    assert isinstance(decided(Lost(), died=True, deaths=1, splittable=False), Again)
    assert isinstance(decided(Lost(), deaths=1), Again)
    last = decided(Lost(), died=True, deaths=TIMEOUTS.death_limit - 1)
    assert isinstance(last, EndOfJob) and "died 5 times in a row" in last.failure.message


def test_what_may_pass_is_tried_three_times_and_what_cannot_once() -> None:
    for failures in range(2):
        again = decided(failure("engine_error", transient=True), failures=failures)
        assert isinstance(again, Again) and again.failed
        assert again.message == f"Why. Attempt {failures + 2} of 3 follows."
        assert again.pause_s == pytest.approx(TIMEOUTS.retry_s[failures], rel=0.2)
    assert isinstance(decided(failure("engine_error", transient=True), failures=2), EndOfJob)
    assert isinstance(decided(failure("engine_error")), EndOfJob)


def test_what_one_engine_lacks_is_done_by_another_where_there_is_one() -> None:
    assert isinstance(decided(failure("model_missing"), replaceable=True), Again)
    assert isinstance(decided(failure("model_missing")), EndOfJob)


def test_an_upload_that_is_too_large_goes_elsewhere_once_and_then_in_halves() -> None:
    large = failure("upload_too_large")
    assert isinstance(decided(large, replaceable=True), Again)
    assert decided(large, replaceable=True, failures=1) == decided(large) == InParts(5)
    assert isinstance(decided(large, splittable=False), EndOfJob)


def test_a_full_disk_and_full_memory_of_an_engine_cost_no_job() -> None:
    full = failure("engine_disk_full", transient=True)
    assert decided(full, failures=99) == Again("Why.", is_step=True, pause_s=TIMEOUTS.retry_s[-1])
    memory = decided(failure("out_of_memory", transient=True))
    assert isinstance(memory, InParts) and (memory.limit, memory.failed, memory.free_memory) == (5, True, True)
    assert isinstance(decided(failure("out_of_memory", transient=True), splittable=False), Again)


class BusyStore(Store):
    """A store whose next reads fail, as on a full disk."""

    failures = 0

    def _fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise StoreError("disk full", transient=True, disk_full=True)

    async def job(self, *arguments: Any) -> Any:
        self._fail()
        return await super().job(*arguments)

    async def jobs_needing_engine(self, limit: int) -> list[str]:
        self._fail()
        return await super().jobs_needing_engine(limit)


@pytest.fixture
async def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[BusyStore]:
    monkeypatch.setattr(database, "RETRY_S", 0.01)
    async with opened(tmp_path / "faceswap.db") as store:
        store.__class__ = BusyStore
        assert isinstance(store, BusyStore)
        yield store


async def test_a_read_that_fails_for_a_moment_puts_a_segment_back_all_the_same(
    store: BusyStore, tmp_path: Path
) -> None:
    await create(store)
    prompt = InFlightPrompt(await claim(store))
    reporter = ProgressReporter(store, Files(tmp_path))
    inputs = EngineInputs(Files(tmp_path), MediaWorker(), reporter, store)
    backend = Backend(BackendPool(), "one", None, "client", TIMEOUTS, make_listener=lambda *_: None)
    store.failures = 3
    recovery = Recovery(store, reporter, inputs, {}, TIMEOUTS)
    assert await recovery.recover(prompt, backend, Lost()) is None
    assert store.failures == 0
    [segment] = await store.segments(prompt.segment.prompt_id)
    assert (segment.state, segment.losses) == (SegmentState.WAITING, 1)


@pytest.mark.parametrize(("name", "kind"), [("embedded", "embedded engines"), ("http://comfy", "ComfyUI servers")])
async def test_an_outage_of_several_says_of_what(store: BusyStore, name: str, kind: str) -> None:
    pool = BackendPool()
    for number in (1, 2):
        Backend(pool, f"{name}-{number}", ComfyClient(URL("http://127.0.0.1:1"), MagicMock()), str(number))
    watch = EngineWatch(store, pool.backends, Timeouts())
    assert watch._trouble() == f"None of the 2 {kind} can be given work"


async def test_a_read_that_fails_for_a_moment_does_not_keep_an_outage_secret(store: BusyStore) -> None:
    job = await create(store)
    watch = EngineWatch(store, BackendPool().backends, Timeouts(outage_s=0.0, gone_s=3600.0))
    await until(lambda: asyncio.get_running_loop().time() > watch._well_at)
    store.failures = 3
    assert await watch.look() is None
    assert store.failures == 0
    told = [event.data.get("message") for event in await store.events(job.prompt_id, 0)]
    assert "the job waits" in str(told[-1])


async def test_a_node_tells_of_no_outage_while_another_may_have_an_engine(store: BusyStore) -> None:
    await create(store)
    watch = EngineWatch(store, BackendPool().backends, Timeouts(outage_s=0.0, gone_s=0.0))
    await until(lambda: asyncio.get_running_loop().time() > watch._well_at)
    assert await watch.look(elsewhere=True) is None
    assert watch.outage is None
    await until(lambda: asyncio.get_running_loop().time() > watch._well_at)
    assert await watch.look() is not None


async def test_while_a_node_cannot_tell_of_others_an_outage_neither_begins_nor_ends(store: BusyStore) -> None:
    job = await create(store)
    watch = EngineWatch(store, BackendPool().backends, Timeouts(outage_s=0.0, gone_s=3600.0))
    await until(lambda: asyncio.get_running_loop().time() > watch._well_at)
    assert await watch.look(elsewhere=None) is None
    assert watch.outage is None
    await until(lambda: asyncio.get_running_loop().time() > watch._well_at)
    await watch.look()
    assert watch.outage is not None
    told = await store.events(job.prompt_id, 0)
    await watch.look(elsewhere=None)
    assert watch.outage is not None and await store.events(job.prompt_id, 0) == told


async def test_a_job_that_is_erased_while_the_disk_is_full_ends_the_wait_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "DISK_PAUSE_S", 0)
    async with opened(tmp_path / "faceswap.db") as store:
        job = await create(store)
        await store.erase(job.prompt_id)
        await recovery.wait_for_room(store, job.prompt_id)


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (None, recovery.DISK_FULL_MESSAGE),
        (OSError(errno.ENOSPC, "No space left on device"), recovery.DISK_FULL_MESSAGE),
        (StoreError("database or disk is full", transient=True, disk_full=True), recovery.DISK_FULL_MESSAGE),
        (StoreError("the connection was lost", transient=True), recovery.DATABASE_AWAY_MESSAGE),
        (FilesUnavailable("no answer"), recovery.FILES_AWAY_MESSAGE),
    ],
)
async def test_a_job_that_pauses_tells_for_what(
    cause: OSError | StoreError | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "DISK_PAUSE_S", 0)
    async with opened(tmp_path / "faceswap.db") as store:
        job = await create(store)
        await recovery.wait_for_room(store, job.prompt_id, cause)
        assert (await store.job(job.prompt_id)).step == message


class UploadHeldUp:
    """A client whose uploads last until they are cancelled."""

    async def upload(self, *_: object) -> str:
        await asyncio.Event().wait()
        raise AssertionError


async def test_an_upload_that_was_forgotten_fails_who_waits_for_it_and_may_be_tried_again(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.create()
    async with opened(files.database) as store, MediaWorker() as media:
        job = await create(store)
        await files.begin_upload(job.prompt_id)
        for path in (files.video(job.prompt_id, job.inputs), *files.images(job.prompt_id, job.inputs)):
            path.touch()
        backend = Backend(BackendPool(), "one", UploadHeldUp(), "client")  # type: ignore[arg-type]  # all it needs
        inputs = EngineInputs(files, media, ProgressReporter(store, files), store)
        waiting = asyncio.create_task(inputs.provide(job, await claim(store), backend, splittable=True))
        await until(lambda: bool(inputs._sent))
        inputs.forget(job.prompt_id)
        with pytest.raises(ComfyError) as given_up:
            await waiting
        assert given_up.value.transient
