"""A ComfyUI that cannot be asked is not one that does not know: its work is waited for, or done under a new id."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from clips import make_clip, read_numbers
from processes import Engine, eventually
from service_rig import PATIENT, QUICK, EngineRig, Handler, ServiceRig, running_service
from waiting import until

from faceswap.api import keys

FRAMES = 16


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", FRAMES, size=(96, 64))


@contextmanager
def frozen(engine: Engine) -> Iterator[None]:
    """Freeze an engine, as a debugger or a wedged driver does: it accepts connections and answers nothing."""
    os.kill(engine.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(engine.pid, signal.SIGCONT)


async def at_work(*engines: Engine) -> bool:
    """Tell whether each of them works on a prompt."""
    async with aiohttp.ClientSession() as session:
        for engine in engines:
            async with session.get(f"{engine.url}/queue") as answer:
                if not (await answer.json())["queue_running"]:
                    return False
    return True


async def prompts(engine: Engine) -> dict[str, str]:
    """Return the end of each prompt that an engine has finished, by segment and attempt."""
    async with aiohttp.ClientSession() as session, session.get(f"{engine.url}/history") as answer:
        history: dict[str, Any] = await answer.json()
    ended = {}
    for entry in history.values():
        inputs = [node["inputs"] for node in entry["prompt"][2].values()]
        prefix = next(values["filename_prefix"] for values in inputs if "filename_prefix" in values)
        ended[prefix] = entry["status"]["status_str"]
    return ended


def twice(*ended: dict[str, str]) -> list[str]:
    """Return the segments that were done well more than once."""
    done = [prefix.rpartition("-")[0] for each in ended for prefix, state in each.items() if state == "success"]
    return sorted({segment for segment in done if done.count(segment) > 1})


async def start_of_a_job(folder: Path, clip: Path, engines: list[Engine]) -> str:
    """Start a job of four segments on both engines, which stop after a frame until `release`; kill the service."""
    for engine in engines:
        await engine.hold()
    urls = [engine.url for engine in engines]
    async with running_service(folder, *urls, timeouts=PATIENT, segment_frames=4) as service:
        await service.ready(2)
        prompt_id = await service.post(clip)
        await eventually(lambda: at_work(*engines))
        return prompt_id


async def ended_well(service: ServiceRig, prompt_id: str, folder: Path) -> dict[str, Any]:
    status = await service.ended(prompt_id)
    assert status["status"] == "SUCCESS", status
    assert read_numbers(await service.download(status, folder / "result.mp4")) == list(range(FRAMES))
    return status


async def test_a_restart_while_one_of_two_engines_is_frozen_has_the_other_do_its_work(
    clip: Path, tmp_path: Path
) -> None:
    async with Engine(tmp_path / "a") as one, Engine(tmp_path / "b") as two:
        prompt_id = await start_of_a_job(tmp_path / "data", clip, [one, two])
        with frozen(one):
            for engine in (one, two):
                engine.release()
            async with running_service(tmp_path / "data", one.url, two.url, segment_frames=4) as service:
                await ended_well(service, prompt_id, tmp_path)
                told = await service.messages(prompt_id)
                assert any("does not answer; resuming at frame" in message for message in told)
                assert not any("restarted" in message for message in told)
        # Thawed, it is asked to stop what was given up, by the next service too.
        async with running_service(tmp_path / "data", one.url, two.url) as service:
            await service.ready(2)

            async def healthy() -> bool:
                backends = (await service.get("/health"))["backends"]
                return all(backend["answers"] and not backend["abandoned"] for backend in backends)

            await eventually(healthy)
        # What was given up while it was frozen is not known to have been done twice: it could not be asked.
        assert twice(await prompts(two)) == []


async def test_a_restart_while_one_of_two_engines_is_gone_for_good_has_the_other_do_its_work(
    clip: Path, tmp_path: Path
) -> None:
    async with Engine(tmp_path / "a") as one, Engine(tmp_path / "b") as two:
        prompt_id = await start_of_a_job(tmp_path / "data", clip, [one, two])
        await one.kill()
        two.release()
        async with running_service(tmp_path / "data", one.url, two.url, segment_frames=4) as service:
            await ended_well(service, prompt_id, tmp_path)
        assert twice(await prompts(two)) == []


async def test_what_a_short_freeze_interrupted_is_taken_up_and_never_done_again(clip: Path, tmp_path: Path) -> None:
    async with Engine(tmp_path / "a") as one, Engine(tmp_path / "b") as two:
        prompt_id = await start_of_a_job(tmp_path / "data", clip, [one, two])
        async with running_service(tmp_path / "data", one.url, two.url, timeouts=PATIENT, segment_frames=4) as service:
            with frozen(one):
                for engine in (one, two):
                    engine.release()
                backends = (await service.get("/health"))["backends"]
                assert len(backends) == 2
            status = await ended_well(service, prompt_id, tmp_path)
        assert status["attempts"] == 4
        assert twice(await prompts(one), await prompts(two)) == []


async def test_the_only_engine_is_waited_for_however_long_it_is_frozen(clip: Path, tmp_path: Path) -> None:
    async with (
        Engine(tmp_path / "a") as engine,
        running_service(tmp_path / "data", engine.url) as service,
    ):
        await engine.hold()
        await service.ready()
        prompt_id = await service.post(clip)
        await eventually(lambda: at_work(engine))
        with frozen(engine):

            async def told() -> bool:
                step: str = (await service.status(prompt_id))["progress"]["step"]
                return step.startswith(f"ComfyUI at {engine.url} does not answer since") and "the job waits" in step

            await eventually(told)

        async def outages() -> list[str]:
            messages = await service.messages(prompt_id)
            return [found.group() for message in messages if (found := re.search("job waits|job goes on", message))]

        async def goes_on() -> bool:
            return "job goes on" in await outages()

        await eventually(goes_on)
        engine.release()
        status = await ended_well(service, prompt_id, tmp_path)
        assert status["attempts"] == 1
        story = await outages()  # one in all, unless a busy machine makes it seem to be away once more
        assert story == ["job waits", "job goes on"] * (len(story) // 2)
        messages = await service.messages(prompt_id)
        assert not any("restarted" in message for message in messages)


class Cut:
    """The way to an engine, which may be cut: a proxy in front of it answers then."""

    def __init__(self, at: str = "") -> None:
        self.is_cut = False
        self._at = at

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.is_cut = self.is_cut or request.path == self._at
        return web.Response(status=502) if self.is_cut else await handler(request)


async def test_what_was_given_up_is_stopped_after_a_restart_too(clip: Path, tmp_path: Path) -> None:
    way = Cut()

    async def lie(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await way(request, handler)

    timeouts = replace(QUICK, unreachable_s=0.3)
    data = tmp_path / "data"
    async with EngineRig(tmp_path / "a", lie) as one, EngineRig(tmp_path / "b") as two:
        one.hold()
        two.hold()
        async with running_service(data, one, two, timeouts=PATIENT, segment_frames=8) as service:
            prompt_id = await service.post(clip)
            await until(lambda: one.running and two.running)
            given_up = one.running
            for backend in service.client.app[keys.SCHEDULER].backends:
                backend.timeouts = timeouts
            way.is_cut = True
            two.release()
            await ended_well(service, prompt_id, tmp_path)
        assert one.running == given_up
        way.is_cut = False
        async with running_service(data, one, two, timeouts=timeouts) as service:
            await until(lambda: one.running is None)
            store, name = service.client.app[keys.STORE], service.client.app[keys.SCHEDULER].backends[0].name

            async def forgotten() -> bool:
                return not await store.abandoned(name)

            await eventually(forgotten)


async def test_a_prompt_that_cannot_be_asked_about_after_a_restart_is_not_sent_again(
    clip: Path, tmp_path: Path
) -> None:
    way = Cut()

    async def lie(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path == "/upload/image":
            return await handler(request)
        return await way(request, handler)

    data = tmp_path / "data"
    async with EngineRig(tmp_path / "a", lie) as one, EngineRig(tmp_path / "b", paint=True) as two:
        one.hold()
        async with running_service(data, one) as service:
            prompt_id = await service.post(clip)
            await until(lambda: one.running)
        way.is_cut = True
        async with running_service(data, one.url, two, timeouts=replace(QUICK, unreachable_s=0.3)) as service:
            status = await ended_well(service, prompt_id, tmp_path)
        assert (status["attempts"], one.submissions, two.submissions) == (2, 1, 1)
        assert one.calls.count(("POST", "/upload/image")) == 2  # the video and the face, before the restart


async def test_an_engine_that_is_gone_before_the_upload_is_left(clip: Path, tmp_path: Path) -> None:
    way = Cut(at="/upload/image")

    async def lie(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await way(request, handler)

    async with (
        EngineRig(tmp_path / "a", lie) as one,
        EngineRig(tmp_path / "b", paint=True) as two,
        running_service(tmp_path / "data", one, two) as service,
    ):
        prompt_id = await service.post(clip)
        status = await ended_well(service, prompt_id, tmp_path)
        assert (status["attempts"], one.submissions, two.submissions) == (2, 0, 1)
        told = await service.messages(prompt_id)
        assert any("does not answer; resuming at frame 0" in message for message in told)
