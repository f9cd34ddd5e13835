"""Files of a job at a ComfyUI that is not ours are emptied when the job is erased, or its inputs are."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import postgres
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler
from clips import make_clip
from processes import files_in
from service_rig import ServiceRig, service_and_engines
from stored_jobs import create, opened, run_to_success
from waiting import eventually, until
from yarl import URL

from faceswap import engine_watch
from faceswap.api import keys
from faceswap.store import EngineFile, Store

FILES = [EngineFile("input", "job", "video.mp4"), EngineFile("temp", "job", "00000-1_00001.mp4")]


@pytest.fixture(params=["sqlite", "postgresql"])
async def store(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> AsyncIterator[Store]:
    async with opened(database_url or tmp_path / "faceswap.db") as store:
        yield store


@pytest.fixture
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.node.callspec.params["store"] == "sqlite":
        yield ""
    else:
        with postgres.database() as url:
            yield url


async def test_files_are_due_when_the_inputs_go_and_not_before(store: Store) -> None:
    job, other = await run_to_success(store), await create(store)
    for _ in range(2):
        await store.add_engine_files("one", job.prompt_id, FILES)
    await store.add_engine_files("one", other.prompt_id, [EngineFile("input", "other", "video.mp4")])
    assert await store.engine_files_to_empty("one", 10) == []
    assert await store.mark_inputs_erased(job.prompt_id)
    assert await store.engine_files_to_empty("two", 10) == []
    assert await store.engine_files_to_empty("one", 10) == FILES
    assert await store.engine_files_to_empty("one", 1) == FILES[:1]
    assert await store.engine_files_to_empty("one", 10, FILES[0]) == FILES[1:]
    await store.forget_engine_files("one", FILES[:1])
    assert await store.engine_files_to_empty("one", 10) == FILES[1:]


async def test_files_outlive_their_job_for_as_long_as_a_record_does(store: Store) -> None:
    job, running = await create(store), await create(store)
    await store.add_engine_files("one", job.prompt_id, FILES)
    await store.add_engine_files("one", running.prompt_id, [EngineFile("input", "running", "video.mp4")])
    await store.begin_erasure(job.prompt_id)
    await store.erase(job.prompt_id)
    assert await store.engine_files_to_empty("one", 10) == FILES
    await store.forget_old_engine_files(await store.now_ms() - 60_000)
    assert await store.engine_files_to_empty("one", 10) == FILES
    await store.forget_old_engine_files(await store.now_ms() + 60_000)
    assert await store.engine_files_to_empty("one", 10) == []
    await store.erase(running.prompt_id)
    assert len(await store.engine_files_to_empty("one", 10)) == 1


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_watch, "EMPTY_S", 0.05)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "clip.mp4", 12, size=(96, 64))


def sizes(engine: Path) -> set[int]:
    """Return the sizes of all files of jobs at an engine."""
    found = set()
    for folder in (engine / kind for kind in ("input", "temp", "output")):
        for name in files_in(folder):
            with suppress(FileNotFoundError):  # renamed since it was listed
                found.add((folder / name).stat().st_size)
    return found


async def erase(service: ServiceRig, prompt_id: str) -> None:
    async with service.client.delete(f"/jobs/{prompt_id}") as response:
        assert response.status == 204


@pytest.mark.usefixtures("quick")
async def test_everything_of_an_erased_job_is_emptied_at_its_engine(clip: Path, tmp_path: Path) -> None:
    settings = {"segment_frames": 2}
    async with service_and_engines(tmp_path, paint=True, settings=settings) as (service, _):
        kept, prompt_id = await service.post(clip), await service.post(clip, frame_rate=10)
        for job in (kept, prompt_id):
            assert (await service.ended(job))["status"] == "SUCCESS"
        engine = tmp_path / "engine-0"
        assert 0 not in sizes(engine)
        await erase(service, prompt_id)
        names = [path for path in engine.rglob("*") if path.is_file() and prompt_id in str(path)]
        assert len(names) > 4
        await until(lambda: not any(path.stat().st_size for path in names))
        assert all(path.stat().st_size for path in engine.rglob("*") if path.is_file() and kept in str(path))
        await erase(service, kept)
        await until(lambda: sizes(engine) == {0})
        store = service.client.app[keys.STORE]
        [backend] = service.client.app[keys.SCHEDULER].backends
        await until_empty(store, backend.name)


async def until_empty(store: Store, backend: str) -> None:
    async def nothing_is_left() -> bool:
        return await store.engine_files_to_empty(backend, 1) == []

    await eventually(nothing_is_left)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("status", "passes"), [(503, True), (403, False)])
async def test_an_engine_that_does_not_do_it_is_asked_again_where_that_may_help(
    clip: Path, tmp_path: Path, status: int, passes: bool, caplog: pytest.LogCaptureFixture
) -> None:
    refusals = []

    async def lie(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method == "HEAD" and len(refusals) < 3:
            refusals.append(request.path)
            return web.Response(status=status)
        return await handler(request)

    caplog.set_level(logging.WARNING)
    async with service_and_engines(tmp_path, paint=True, lie=lie) as (service, _):
        prompt_id = await service.post(clip)
        await service.ended(prompt_id)
        await erase(service, prompt_id)
        await until(lambda: len(refusals) == 3)
        [backend] = service.client.app[keys.SCHEDULER].backends
        await until_empty(service.client.app[keys.STORE], backend.name)
        assert (sizes(tmp_path / "engine-0") == {0}) is passes
        assert ("of a job that was erased" in caplog.text) is not passes


@pytest.mark.usefixtures("quick")
async def test_what_a_prompt_makes_that_was_given_up_is_emptied_too(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_watch, "EMPTY_BATCH", 1)
    silent, unstoppable = set[int | None](), set[int | None]()

    async def lie(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.url.port in silent:
            return web.Response(status=503)
        if request.url.port in unstoppable and request.path in ("/interrupt", "/queue") and request.method == "POST":
            return web.Response()
        return await handler(request)

    async with service_and_engines(tmp_path, 2, paint=True, lie=lie) as (service, engines):
        for engine in engines:
            engine.hold()
        prompt_id = await service.post(clip)
        await until(lambda: any(engine.running for engine in engines))
        held, other = sorted(engines, key=lambda engine: engine.running is None)
        silent.add(URL(held.url).port)
        unstoppable.add(URL(held.url).port)
        await until(lambda: other.running)
        other.release()
        assert (await service.ended(prompt_id))["status"] == "SUCCESS"
        await erase(service, prompt_id)
        asked, store = len(held.calls), service.client.app[keys.STORE]
        silent.clear()
        await until(lambda: ("POST", "/upload/image") in held.calls[asked:])
        inputs = [path for path in (held.folder / "input").rglob("*") if path.is_file()]
        await until(lambda: not any(path.stat().st_size for path in inputs))  # all of them, while it runs
        names = [backend.name for backend in service.client.app[keys.SCHEDULER].backends]
        assert held.running and any([await store.engine_files_to_empty(name, 1) for name in names])
        held.release()
        for name in names:
            await until_empty(store, name)
        assert not held.running and sizes(held.folder) == sizes(other.folder) == {0}
