"""One engine and the way of a prompt through it: history and queue decide, whatever the socket does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web
from clips import make_clip
from service_rig import QUICK, EngineRig, Handler, Middleware
from stored_jobs import new_job
from waiting import WAIT_S, eventually, until
from yarl import URL

from faceswap import samples
from faceswap.clock import monotonic
from faceswap.comfy.backend import Backend, BackendPool
from faceswap.comfy.client import ComfyClient
from faceswap.comfy.in_flight import INBOX_LIMIT, GivenUp, Inbox, InFlightPrompt, Lost, News, Stopped
from faceswap.comfy.messages import Executing, Preview, Progress
from faceswap.config import Timeouts, resource_dir
from faceswap.errors import JobFailure
from faceswap.jobs import Segment, SegmentState, comfy_prompt_id
from faceswap.store import LeaseLost
from faceswap.workflow import Workflow, extra_data

WORKFLOW = Workflow.load(resource_dir("workflows") / "FaceSwap-Reactor-API.json")
FRAMES = 12


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", FRAMES, size=(96, 64))


class Pilot:
    """A backend that listens, and the few words it takes to have it do a prompt."""

    def __init__(self, engine: EngineRig, pool: BackendPool, backend: Backend, clip: Path) -> None:
        self.engine = engine
        self.pool = pool
        self.backend = backend
        self.clip = clip

    def begin(self, *, deaths: int = 0) -> InFlightPrompt:
        prompt_id = new_job().prompt_id
        queued_as = comfy_prompt_id(prompt_id, 0, 1)
        state = SegmentState.SUBMITTED
        segment = Segment(prompt_id, 0, 0, FRAMES, state, 1, 0, 0, queued_as, "engine", None, None, deaths=deaths)
        return self.backend.begin(segment)

    def add_another(self) -> None:
        """Let another backend be able to do the work from now on."""
        self.pool.backends.append(cast(Backend, SimpleNamespace(healthy=True)))

    async def submit(self, prompt: InFlightPrompt) -> None:
        video = await self.backend.client.upload(self.clip, "clip.mp4", prompt.segment.prompt_id)
        image = await self.backend.client.upload(samples.FACE, "face.png", prompt.segment.prompt_id)
        graph = WORKFLOW.build(video=video, images=(image,), output_prefix=prompt.prompt_id, options={})
        await self.backend.submit(prompt, graph, extra_data(), output_node=WORKFLOW.output)

    async def follow(self, prompt: InFlightPrompt) -> AsyncIterator[News]:
        async with aclosing(self.backend.follow(prompt)) as messages:
            async for message in messages:
                yield message

    async def perform(self, prompt: InFlightPrompt | None = None, *, submit: bool = True) -> list[News]:
        """Take a prompt, a new one unless it is given, to its success; return what was told of it meanwhile."""
        prompt = prompt or self.begin()
        try:
            if submit:
                await self.submit(prompt)
            else:
                prompt.look_soon()
            news = [message async for message in self.follow(prompt)]
            assert prompt.outcome is not None and prompt.outcome.state == "success"
            return news
        finally:
            self.backend.end(prompt)


@asynccontextmanager
async def pilot(
    folder: Path, clip: Path, timeouts: Timeouts = QUICK, lie: Middleware | None = None, **faults: Any
) -> AsyncIterator[Pilot]:
    async with EngineRig(folder, lie, **faults) as engine, aiohttp.ClientSession() as session:
        pool = BackendPool()
        client = ComfyClient(URL(engine.url), session)
        backend = Backend(pool, "engine", client, "client", timeouts, graph=WORKFLOW.graph)
        backend.address_known.set()
        listening = asyncio.create_task(backend.run())
        try:
            await until(lambda: backend.healthy)
            yield Pilot(engine, pool, backend, clip)
        finally:
            listening.cancel()
            with suppress(asyncio.CancelledError):
                await listening


async def test_a_prompt_goes_through_and_tells_of_its_nodes_and_progress(clip: Path, tmp_path: Path) -> None:
    async with pilot(tmp_path, clip, paint=True) as plane:
        prompt = plane.begin()
        news = await plane.perform(prompt)
        assert prompt.outcome is not None and prompt.outcome.outputs[WORKFLOW.output]
        nodes = [message.node for message in news if isinstance(message, Executing)]
        assert nodes[-1] == WORKFLOW.output and WORKFLOW.swap in nodes
        assert Progress(prompt.prompt_id, WORKFLOW.swap, FRAMES, FRAMES) in news
        assert any(isinstance(message, Preview) for message in news)


async def test_nothing_is_sent_to_an_engine_that_another_node_may_have_by_now(clip: Path, tmp_path: Path) -> None:
    async with pilot(tmp_path, clip) as plane:
        plane.backend.may_be_given_work = lambda: False
        with pytest.raises(LeaseLost):
            await plane.submit(plane.begin())
        assert plane.engine.submissions == 0


async def test_who_reads_slowly_misses_no_pass_of_a_bar_and_delays_no_look(clip: Path, tmp_path: Path) -> None:
    async with pilot(tmp_path, clip, paint=True) as plane:
        prompt = plane.begin()
        await plane.submit(prompt)
        news: list[News] = []
        async for message in plane.follow(prompt):
            if not news:  # nothing more is read until the prompt has ended, and was found to have
                await until(lambda: plane.engine.finished and ended(prompt))
            news.append(message)
        bars = [message for message in news if isinstance(message, Progress)]
        assert [bar.node for bar in bars].count(WORKFLOW.swap) == 1
        assert Progress(prompt.prompt_id, WORKFLOW.swap, FRAMES, FRAMES) in bars


def ended(prompt: InFlightPrompt) -> bool:
    """Tell whether the task that asks for a prompt's end has it."""
    return not [task for task in asyncio.all_tasks() if task.get_name() == f"end of {prompt.prompt_id}"]


def test_an_inbox_is_bounded_and_keeps_every_pass_and_the_newest_picture() -> None:
    inbox = Inbox()
    passes = [Progress("p", "swap", value, 3) for value in (1, 2, 3, 1, 2, 1)]
    pictures = [Preview("p", "swap", image) for image in (b"old", b"new")]
    for message in (*passes, *pictures):
        inbox.put(message)
    assert [inbox.take() for _ in range(5)] == [passes[2], passes[4], passes[5], pictures[1], None]
    for number in range(2 * INBOX_LIMIT):
        inbox.put(Executing("p", str(number)))
    kept = list(iter(inbox.take, None))
    assert len(kept) == INBOX_LIMIT and kept[0] == Executing("p", "0")


@pytest.mark.parametrize("fault", [{"ws_deaf": True}, {"ws_drop_after": 3}, {"ws_duplicate": True}, {"ws_delay_s": 1}])
async def test_the_end_is_found_whatever_the_socket_does(fault: dict[str, Any], clip: Path, tmp_path: Path) -> None:
    async with pilot(tmp_path, clip, wait_per_frame_s=0.02, **fault) as plane:
        await plane.perform()
        assert plane.engine.submissions == 1


async def test_silence_while_a_prompt_runs_has_the_socket_opened_anew(clip: Path, tmp_path: Path) -> None:
    timeouts = replace(QUICK, silence_s=0.3, reconcile_s=0.1)
    async with pilot(tmp_path, clip, timeouts, ws_deaf=True) as plane:
        plane.engine.hold()
        performing = asyncio.create_task(plane.perform())
        await until(lambda: plane.backend.listener.reconnects >= 1 or performing.done())
        plane.engine.release()
        await performing
        assert not plane.backend.stuck


async def test_a_prompt_that_was_sent_before_a_crash_is_not_sent_again(clip: Path, tmp_path: Path) -> None:
    async with pilot(tmp_path, clip, paint=True) as plane:
        prompt = plane.begin()
        await plane.perform(prompt)
        await plane.perform(prompt, submit=False)
        assert plane.engine.submissions == 1


async def test_a_prompt_that_never_arrived_is_lost_and_was_never_seen_running(clip: Path, tmp_path: Path) -> None:
    async with pilot(tmp_path, clip, paint=True) as plane:
        prompt = plane.begin()
        with pytest.raises(Lost):
            await plane.perform(prompt, submit=False)
        assert prompt.sent and not prompt.running


async def test_a_prompt_the_engine_has_forgotten_is_lost_and_not_done(clip: Path, tmp_path: Path) -> None:
    async with pilot(tmp_path, clip, paint=True, forget_history=True) as plane:
        with pytest.raises(Lost):
            await plane.perform()


async def test_a_prompt_that_waits_behind_another_is_not_taken_for_stuck(clip: Path, tmp_path: Path) -> None:
    timeouts = replace(QUICK, silence_s=0.5)
    async with pilot(tmp_path, clip, timeouts) as plane:
        plane.engine.hold()
        first = asyncio.create_task(plane.perform())
        await until(lambda: plane.engine.running)
        waiting = plane.begin()
        second = asyncio.create_task(plane.perform(waiting))
        await until(lambda: waiting.sent)
        waiting.heard_at = long_ago = monotonic() - 2 * WAIT_S
        await until(lambda: waiting.heard_at > long_ago or second.done())
        plane.engine.release()
        await asyncio.gather(first, second)


async def test_silence_about_what_another_node_has_sent_means_nothing(clip: Path, tmp_path: Path) -> None:
    timeouts = replace(QUICK, stuck_s=0.5, silence_s=0.2)
    async with pilot(tmp_path, clip, timeouts) as plane:
        plane.engine.hold()
        plane.backend.client_id = "another node's"
        prompt = plane.begin()
        await plane.submit(prompt)
        prompt.audible = False
        performing = asyncio.create_task(plane.perform(prompt, submit=False))
        await until(lambda: prompt.running and monotonic() - prompt.heard_at > 2 * timeouts.stuck_s)
        looks = len(plane.engine.calls)
        await until(lambda: len(plane.engine.calls) > looks + 4 or performing.done())
        plane.engine.release()
        await performing
        assert (plane.backend.listener.reconnects, plane.backend.stuck) == (0, False)


async def test_a_stuck_prompt_is_held_against_its_engine(clip: Path, tmp_path: Path) -> None:
    timeouts = replace(QUICK, stuck_s=0.5, silence_s=0.2)
    async with pilot(tmp_path, clip, timeouts, stuck=True) as plane:
        with pytest.raises(JobFailure) as failed:
            await plane.perform()
        assert (failed.value.code, failed.value.transient) == ("engine_stuck", False)
        assert plane.backend.describe()["stuck"] and not plane.backend.healthy
        with pytest.raises(GivenUp):
            await plane.perform()


async def test_stop_ends_a_running_prompt_and_the_engine_goes_on_with_the_next(clip: Path, tmp_path: Path) -> None:
    async with pilot(tmp_path, clip) as plane:
        plane.engine.hold()
        prompt = plane.begin()
        running = asyncio.create_task(plane.perform(prompt))
        await until(lambda: plane.engine.running)
        prompt.stop()
        with pytest.raises(Stopped):
            await running
        await until(lambda: plane.engine.running is None)
        plane.engine.release()
        await plane.perform()


@pytest.mark.parametrize("before", [True, False])
async def test_what_may_be_given_up_is_cancelled_by_a_stop(before: bool, clip: Path, tmp_path: Path) -> None:
    async with pilot(tmp_path, clip) as plane:
        prompt = plane.begin()
        begun, uploading = asyncio.Event(), asyncio.Event()

        async def upload() -> None:
            async with prompt.stoppable():
                begun.set()
                await uploading.wait()

        if before:
            prompt.stop()
        task = asyncio.create_task(upload())
        if not before:
            await begun.wait()
            prompt.stop()
        with pytest.raises(Stopped):
            await task
        assert begun.is_set() is not before


async def test_an_engine_that_does_not_answer_is_left_when_another_could_do_it(clip: Path, tmp_path: Path) -> None:
    async with pilot(tmp_path, clip) as plane:
        plane.engine.hold()
        plane.add_another()
        running = asyncio.create_task(plane.perform())
        await until(lambda: plane.engine.running)
        plane.backend.client.url = URL("http://127.0.0.1:1")
        with pytest.raises(GivenUp):
            await running
        plane.backend.client.url = URL(plane.engine.url)
        # Nobody waits for it any more: it is stopped as soon as the engine can be reached.
        assert await plane.backend.answers() and not plane.backend.healthy
        await eventually(plane.backend.stop_abandoned)
        assert plane.engine.running is None
        await until(lambda: plane.backend.healthy)


async def test_the_only_engine_is_waited_for_when_it_cannot_be_asked(clip: Path, tmp_path: Path) -> None:
    timeouts = replace(QUICK, unreachable_s=0.2, reconcile_s=0.05)
    async with pilot(tmp_path, clip, timeouts) as plane:
        plane.engine.hold()
        running = asyncio.create_task(plane.perform())
        await until(lambda: plane.engine.running)
        plane.backend.client.url = URL("http://127.0.0.1:1")
        await until(lambda: running.done() or not plane.backend.healthy)
        missed_at = time.monotonic()
        await until(lambda: running.done() or time.monotonic() - missed_at > 5 * timeouts.unreachable_s)
        assert not plane.backend.healthy
        plane.backend.client.url = URL(plane.engine.url)
        plane.engine.release()
        await running
        assert plane.engine.submissions == 1


async def test_a_prompt_that_cannot_be_asked_about_is_given_up_and_not_lost(clip: Path, tmp_path: Path) -> None:
    async with pilot(tmp_path, clip, replace(QUICK, unreachable_s=0.2)) as plane:
        plane.add_another()
        plane.backend.client.url = URL("http://127.0.0.1:1")
        prompt = plane.begin()
        with pytest.raises(GivenUp):
            await plane.perform(prompt, submit=False)
        assert plane.backend.abandoned == {prompt.prompt_id}


async def test_a_cancelled_prompt_is_left_with_an_engine_that_cannot_be_asked(clip: Path, tmp_path: Path) -> None:
    async with pilot(tmp_path, clip, replace(QUICK, unreachable_s=0.2)) as plane:
        plane.engine.hold()
        prompt = plane.begin()
        running = asyncio.create_task(plane.perform(prompt))
        await until(lambda: plane.engine.running)
        plane.backend.client.url = URL("http://127.0.0.1:1")
        prompt.stop()
        with pytest.raises(Stopped):
            await running
        assert plane.backend.abandoned == {prompt.prompt_id}


async def test_an_engine_that_does_not_answer_is_given_nothing(clip: Path, tmp_path: Path) -> None:
    async with pilot(tmp_path, clip) as plane:
        assert plane.backend.takes_a_prompt(0)
        plane.backend.client.url = URL("http://127.0.0.1:1")
        assert not await plane.backend.answers()
        assert plane.backend.listener.state == "connected" and not plane.backend.takes_a_prompt(0)


async def test_an_engine_that_keeps_back_what_its_nodes_are_is_one_that_answers(clip: Path, tmp_path: Path) -> None:
    inspected: list[bool] = []
    planes: list[Pilot] = []

    async def lie(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith("/object_info"):
            assert request.transport is not None
            request.transport.abort()  # as when the answer takes longer than is waited for it
        elif request.path.endswith("/features") and planes:
            inspected.append(planes[0].backend.healthy)
        return await handler(request)

    async with pilot(tmp_path, clip, replace(QUICK, inspect_s=0.05), lie=lie) as plane:
        planes.append(plane)
        await until(lambda: len(inspected) >= 5)
        assert all(inspected) and plane.backend.problems is None


async def test_what_was_given_up_is_gone_when_it_was_missed_twice(clip: Path, tmp_path: Path) -> None:
    async with pilot(tmp_path, clip) as plane:
        plane.backend.abandoned = {"on its way"}
        assert await plane.backend.stop_abandoned() == set()
        assert not plane.backend.healthy
        assert await plane.backend.stop_abandoned() == {"on its way"}
        assert plane.backend.healthy


async def test_an_engine_that_does_not_let_go_of_what_was_given_up_is_stuck(clip: Path, tmp_path: Path) -> None:
    async def lie(request: web.Request, handler: Handler) -> web.StreamResponse:
        return web.Response() if request.path.endswith(("/interrupt", "/cancel")) else await handler(request)

    async with pilot(tmp_path, clip, replace(QUICK, stop_s=0.1), lie=lie) as plane:
        plane.engine.hold()
        running = asyncio.create_task(plane.perform())
        await until(lambda: plane.engine.running)
        running.cancel()
        plane.backend.abandoned = {str(plane.engine.running)}

        async def stuck() -> bool:
            await plane.backend.stop_abandoned()
            return plane.backend.stuck

        await eventually(stuck)
        plane.engine.release()
        await until(lambda: not plane.engine.running)
        await eventually(plane.backend.stop_abandoned)
        assert not plane.backend.stuck


async def test_nothing_runs_beside_what_engines_died_of(clip: Path, tmp_path: Path) -> None:
    async with pilot(tmp_path, clip) as plane:
        prompt = plane.begin()
        assert plane.backend.takes_a_prompt(1)
        plane.backend.end(prompt)
        plane.begin(deaths=2)
        assert not plane.backend.takes_a_prompt(1)


@pytest.mark.parametrize("streams", [True, False])
async def test_an_engine_that_streams_has_no_limit_of_memory(streams: bool, clip: Path, tmp_path: Path) -> None:
    async with pilot(tmp_path, clip, streams=streams) as plane:
        await until(lambda: plane.backend.problems is not None)
        assert (plane.backend.memory.frame_limit(10**6, 24.0) is None) == streams


async def test_what_is_told_of_anothers_prompt_is_not_taken_for_ours(clip: Path, tmp_path: Path) -> None:
    async with pilot(tmp_path, clip, paint=True) as plane:
        client = plane.backend.client
        # The socket hears of it, for it was sent under the same client id.
        plane.engine.hold()
        video = await client.upload(make_clip(tmp_path / "other.mp4", 7, size=(96, 64)), "other.mp4", "")
        image = await client.upload(samples.FACE, "face.png", "")
        graph = WORKFLOW.build(video=video, images=(image,), output_prefix="other", options={})
        await client.submit(graph, plane.backend.client_id, "other")
        performing = asyncio.create_task(plane.perform())
        await until(lambda: plane.engine.running == "other" and plane.engine.pending)
        plane.engine.release()
        news = await performing
        assert plane.engine.finished[0] == "other"
        nodes = [message.node for message in news if isinstance(message, Executing)]
        assert sorted(nodes) == sorted(set(nodes))
        assert {message.maximum for message in news if isinstance(message, Progress)} == {float(FRAMES)}


async def test_a_prompt_that_is_missed_once_is_not_lost(clip: Path, tmp_path: Path) -> None:
    to_miss = missed = 0

    async def lie(request: web.Request, handler: Handler) -> web.StreamResponse:
        nonlocal missed
        if request.path == "/queue" and request.method == "GET" and missed < to_miss:
            missed += 1
            return web.json_response({"queue_running": [], "queue_pending": []})
        return await handler(request)

    async with pilot(tmp_path, clip, lie=lie) as plane:
        await until(lambda: plane.backend.problems is not None)  # it has been looked at, and will not be for long
        plane.engine.hold()
        performing = asyncio.create_task(plane.perform())
        await until(lambda: plane.engine.running)
        to_miss = 1
        await until(lambda: missed)
        looks = len(plane.engine.calls)
        await until(lambda: performing.done() or plane.engine.calls[looks:].count(("GET", "/queue")) > 1)
        plane.engine.release()
        await performing


async def test_the_pace_is_that_of_the_last_prompts_and_slows_while_one_takes_long(clip: Path, tmp_path: Path) -> None:
    async with pilot(tmp_path, clip, wait_per_frame_s=0.05) as plane:
        speed = plane.backend.speed
        assert speed.seconds_per_frame is None and speed.done_in_s(10) == 0
        await plane.perform()
        seconds_per_frame = speed.seconds_per_frame
        assert seconds_per_frame is not None and seconds_per_frame >= 0.05
        assert speed.done_in_s(10) == pytest.approx(10 * seconds_per_frame)
        slow = plane.begin()
        slow.started_at = time.monotonic() - 100
        speed._ended_at = slow.started_at
        assert speed.seconds_per_frame >= 100 / FRAMES
