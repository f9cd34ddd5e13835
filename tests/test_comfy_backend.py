"""One engine and the way of a prompt through it: history and queue decide, whatever the socket does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from clips import make_clip
from service_rig import QUICK, EngineRig, Handler, Middleware
from stored_jobs import new_job
from waiting import eventually, until
from yarl import URL

from faceswap import samples
from faceswap.comfy.backend import Backend
from faceswap.comfy.client import ComfyClient, Outcome
from faceswap.comfy.in_flight import GivenUp, InFlightPrompt, Lost, Stopped
from faceswap.config import Timeouts, resource_dir
from faceswap.errors import JobFailure
from faceswap.jobs import Segment, SegmentState, comfy_prompt_id
from faceswap.workflow import Workflow, extra_data

WORKFLOW = Workflow.load(resource_dir("workflows") / "FaceSwap-Reactor-API.json")
FRAMES = 12


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", FRAMES, size=(96, 64))


def flight_of(attempt: int = 1) -> InFlightPrompt:
    prompt_id = new_job().prompt_id
    queued_as = comfy_prompt_id(prompt_id, 0, attempt)
    return InFlightPrompt(
        Segment(prompt_id, 0, 0, FRAMES, SegmentState.SUBMITTED, attempt, 0, 0, queued_as, "engine", None, None)
    )


class Pilot:
    """A backend that listens, and the few words it takes to have it do a prompt."""

    def __init__(self, engine: EngineRig, backend: Backend, clip: Path) -> None:
        self.engine = engine
        self.backend = backend
        self.clip = clip

    async def perform(self, prompt: InFlightPrompt, *, look_first: bool = False) -> Outcome:
        async def make_graph() -> Mapping[str, Any]:
            video = await self.backend.client.upload(self.clip, "clip.mp4", prompt.segment.prompt_id)
            image = await self.backend.client.upload(samples.FACE, "face.png", prompt.segment.prompt_id)
            return WORKFLOW.build(video=video, image=image, output_prefix=prompt.prompt_id, options={})

        async def on_queued(queued_id: str) -> Segment:
            return replace(prompt.segment, comfy_prompt_id=queued_id)

        self.backend.in_flight[prompt.prompt_id] = prompt
        try:
            return await self.backend.perform(
                prompt,
                make_graph,
                extra_data(),
                output_node=WORKFLOW.output,
                look_first=look_first,
                on_queued=on_queued,
            )
        finally:
            self.backend.in_flight.pop(prompt.prompt_id)


@asynccontextmanager
async def pilot(
    folder: Path, clip: Path, timeouts: Timeouts = QUICK, lie: Middleware | None = None, **faults: Any
) -> AsyncIterator[Pilot]:
    async with EngineRig(folder, lie, **faults) as engine, aiohttp.ClientSession() as session:
        backend = Backend("engine", ComfyClient(URL(engine.url), session), "client", timeouts)
        backend.address_known.set()
        listening = asyncio.create_task(backend.run())
        try:
            await until(lambda: backend.healthy)
            yield Pilot(engine, backend, clip)
        finally:
            listening.cancel()
            with suppress(asyncio.CancelledError):
                await listening


async def test_a_prompt_goes_through_and_tells_of_its_nodes_and_progress(clip: Path, tmp_path: Path) -> None:
    async with pilot(tmp_path, clip, paint=True) as plane:
        prompt = flight_of()
        nodes: list[str] = []
        bars: list[tuple[str, float, float]] = []

        async def on_executing(node: str) -> None:
            nodes.append(node)

        prompt.on_executing = on_executing
        prompt.on_progress = lambda *bar: bars.append(bar)
        outcome = await plane.perform(prompt)
        assert outcome.state == "success" and outcome.outputs[WORKFLOW.output]
        assert nodes[-1] == WORKFLOW.output and WORKFLOW.swap in nodes
        assert (WORKFLOW.swap, float(FRAMES), float(FRAMES)) in bars


@pytest.mark.parametrize("fault", [{"ws_deaf": True}, {"ws_drop_after": 3}, {"ws_duplicate": True}, {"ws_delay_s": 1}])
async def test_the_end_is_found_whatever_the_socket_does(fault: dict[str, Any], clip: Path, tmp_path: Path) -> None:
    async with pilot(tmp_path, clip, wait_per_frame_s=0.02, **fault) as plane:
        assert (await plane.perform(flight_of())).state == "success"
        assert plane.engine.submissions == 1


async def test_silence_while_a_prompt_runs_has_the_socket_opened_anew(clip: Path, tmp_path: Path) -> None:
    timeouts = replace(QUICK, silence_s=0.3, reconcile_s=0.1)
    async with pilot(tmp_path, clip, timeouts, wait_per_frame_s=0.1, ws_deaf=True) as plane:
        assert (await plane.perform(flight_of())).state == "success"
        assert plane.backend.listener.reconnects >= 1
        assert not plane.backend.stuck


async def test_a_prompt_that_was_sent_before_a_crash_is_not_sent_again(clip: Path, tmp_path: Path) -> None:
    async with pilot(tmp_path, clip, paint=True) as plane:
        prompt = flight_of()
        await plane.perform(prompt)
        assert (await plane.perform(prompt, look_first=True)).state == "success"
        assert plane.engine.submissions == 1


async def test_a_prompt_that_never_arrived_before_a_crash_is_sent(clip: Path, tmp_path: Path) -> None:
    async with pilot(tmp_path, clip, paint=True) as plane:
        assert (await plane.perform(flight_of(), look_first=True)).state == "success"
        assert plane.engine.submissions == 1


async def test_a_prompt_the_engine_has_forgotten_is_lost_and_not_done(clip: Path, tmp_path: Path) -> None:
    async with pilot(tmp_path, clip, paint=True, forget_history=True) as plane:
        with pytest.raises(Lost):
            await plane.perform(flight_of())


async def test_a_prompt_that_waits_behind_another_is_not_taken_for_stuck(clip: Path, tmp_path: Path) -> None:
    timeouts = replace(QUICK, stuck_s=1.5, silence_s=0.5)
    async with pilot(tmp_path, clip, timeouts, wait_per_frame_s=0.2) as plane:
        first = asyncio.create_task(plane.perform(flight_of()))
        await until(lambda: plane.engine.running)
        second = asyncio.create_task(plane.perform(flight_of()))
        assert [(await prompt).state for prompt in (first, second)] == ["success", "success"]


async def test_a_stuck_prompt_is_held_against_its_engine(clip: Path, tmp_path: Path) -> None:
    timeouts = replace(QUICK, stuck_s=0.5, silence_s=0.2)
    async with pilot(tmp_path, clip, timeouts, stuck=True) as plane:
        with pytest.raises(JobFailure) as failed:
            await plane.perform(flight_of())
        assert (failed.value.code, failed.value.transient) == ("engine_stuck", False)
        assert plane.backend.describe()["stuck"] and not plane.backend.healthy
        with pytest.raises(GivenUp):
            await plane.perform(flight_of())


async def test_stop_ends_a_running_prompt_and_the_engine_goes_on_with_the_next(clip: Path, tmp_path: Path) -> None:
    async with pilot(tmp_path, clip) as plane:
        plane.engine.hold()
        prompt = flight_of()
        running = asyncio.create_task(plane.perform(prompt))
        await until(lambda: plane.engine.running)
        prompt.stop()
        with pytest.raises(Stopped):
            await running
        assert plane.engine.running is None
        plane.engine.release()
        assert (await plane.perform(flight_of())).state == "success"


async def test_stop_before_the_prompt_is_sent_sends_nothing(clip: Path, tmp_path: Path) -> None:
    async with pilot(tmp_path, clip, paint=True) as plane:
        prompt = flight_of()
        prompt.stop()
        with pytest.raises(Stopped):
            await plane.perform(prompt)
        assert plane.engine.submissions == 0


async def test_an_engine_that_does_not_answer_is_left_when_another_could_do_it(clip: Path, tmp_path: Path) -> None:
    async with pilot(tmp_path, clip) as plane:
        plane.engine.hold()
        plane.backend.replaceable = lambda: True
        running = asyncio.create_task(plane.perform(flight_of()))
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
        running = asyncio.create_task(plane.perform(flight_of()))
        await until(lambda: plane.engine.running)
        plane.backend.client.url = URL("http://127.0.0.1:1")
        cut_at = time.monotonic()
        await until(lambda: running.done() or time.monotonic() - cut_at > 5 * timeouts.unreachable_s)
        assert not plane.backend.healthy
        plane.backend.client.url = URL(plane.engine.url)
        plane.engine.release()
        assert (await running).state == "success" and plane.engine.submissions == 1


async def test_a_prompt_that_cannot_be_asked_about_is_not_sent_again(clip: Path, tmp_path: Path) -> None:
    async with pilot(tmp_path, clip, replace(QUICK, unreachable_s=0.2)) as plane:
        plane.backend.replaceable = lambda: True
        plane.backend.client.url = URL("http://127.0.0.1:1")
        prompt = flight_of()
        with pytest.raises(GivenUp):
            await plane.perform(prompt, look_first=True)
        assert plane.backend.abandoned == {prompt.prompt_id}


async def test_a_cancelled_prompt_is_left_with_an_engine_that_cannot_be_asked(clip: Path, tmp_path: Path) -> None:
    async with pilot(tmp_path, clip, replace(QUICK, unreachable_s=0.2)) as plane:
        plane.engine.hold()
        prompt = flight_of()
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
        running = asyncio.create_task(plane.perform(flight_of()))
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
        prompt = flight_of()
        plane.backend.in_flight[prompt.prompt_id] = prompt
        assert plane.backend.takes_a_prompt(1)
        prompt.segment = replace(prompt.segment, deaths=2)
        assert not plane.backend.takes_a_prompt(1)


@pytest.mark.parametrize("streams", [True, False])
async def test_an_engine_that_streams_has_no_limit_of_memory(streams: bool, clip: Path, tmp_path: Path) -> None:
    async with pilot(tmp_path, clip, streams=streams) as plane:
        await until(lambda: plane.backend.problems is not None)
        assert (plane.backend.frame_limit(10**6, 24.0) is None) == streams


async def test_what_is_told_of_anothers_prompt_is_not_taken_for_ours(clip: Path, tmp_path: Path) -> None:
    async with pilot(tmp_path, clip, paint=True) as plane:
        client, ours = plane.backend.client, flight_of()
        nodes: list[str] = []
        bars: set[tuple[str, float]] = set()

        async def on_executing(node: str) -> None:
            nodes.append(node)

        ours.on_executing = on_executing
        ours.on_progress = lambda node, value, maximum: bars.add((node, maximum))
        # The socket hears of it, for it was sent under the same client id.
        plane.engine.hold()
        video = await client.upload(make_clip(tmp_path / "other.mp4", 7, size=(96, 64)), "other.mp4", "")
        image = await client.upload(samples.FACE, "face.png", "")
        graph = WORKFLOW.build(video=video, image=image, output_prefix="other", options={})
        await client.submit(graph, plane.backend.client_id, "other")
        performing = asyncio.create_task(plane.perform(ours))
        await until(lambda: plane.engine.running == "other" and plane.engine.pending)
        plane.engine.release()
        assert (await performing).state == "success"
        assert plane.engine.finished[0] == "other"
        assert sorted(nodes) == sorted(set(nodes))
        assert bars == {(node, float(FRAMES)) for node, _ in bars}


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
        performing = asyncio.create_task(plane.perform(flight_of()))
        await until(lambda: plane.engine.running)
        to_miss = 1
        await until(lambda: missed)
        looks = len(plane.engine.calls)
        await until(lambda: performing.done() or plane.engine.calls[looks:].count(("GET", "/queue")) > 1)
        plane.engine.release()
        assert (await performing).state == "success"


async def test_the_pace_is_that_of_the_last_prompts_and_slows_while_one_takes_long(clip: Path, tmp_path: Path) -> None:
    async with pilot(tmp_path, clip, wait_per_frame_s=0.05) as plane:
        backend = plane.backend
        assert backend.seconds_per_frame is None and backend.done_in_s(10) == 0
        await plane.perform(flight_of())
        seconds_per_frame = backend.seconds_per_frame
        assert seconds_per_frame is not None and seconds_per_frame >= 0.05
        assert backend.done_in_s(10) == pytest.approx(10 * seconds_per_frame)
        slow = flight_of()
        slow.started_at = time.monotonic() - 100
        backend._ended_at = slow.started_at
        backend.in_flight[slow.prompt_id] = slow
        assert backend.seconds_per_frame >= 100 / FRAMES
