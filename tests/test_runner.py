"""An attempt at a segment, in what its end has to store."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from stored_jobs import claim, create, opened
from waiting import until

from faceswap import recovery
from faceswap.comfy.backend import Backend, BackendPool
from faceswap.comfy.in_flight import GivenUp
from faceswap.comfy.inputs import EngineInputs
from faceswap.files import Files
from faceswap.media import MediaWorker
from faceswap.progress_reporter import ProgressReporter
from faceswap.runner import Runner
from faceswap.store import Store, StoreError


async def test_a_stop_waits_for_no_database_to_store_what_was_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, tries, is_away = Files(tmp_path), 0, True
    files.create()

    async def abandon(*names: str) -> None:
        nonlocal tries
        tries += 1
        if is_away:
            raise StoreError("away", transient=True)
        await Store.abandon(store, *names)

    async def give_up(*_: object, look_first: bool) -> bool:
        backend.abandoned.add(prompt.prompt_id)
        raise GivenUp("It does not answer")

    async def give_up_and_wait(*_: object, look_first: bool) -> bool:
        backend.abandoned.add(prompt.prompt_id)
        await asyncio.Event().wait()
        raise AssertionError

    async with opened(files.database) as store, MediaWorker() as media:
        client: Any = None
        backend, reporter = Backend(BackendPool(), "one", client, "client"), ProgressReporter(store, files)
        runner = Runner(store, files, media, reporter, {}, EngineInputs(files, media, reporter, store))
        await create(store)
        prompt = backend.begin(await claim(store))
        monkeypatch.setattr(store, "abandon", abandon)
        monkeypatch.setattr(runner, "_carry_out", give_up_and_wait)
        task = asyncio.create_task(runner.run(prompt, backend, look_first=False))
        await until(lambda: bool(backend.abandoned))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert tries == 1
        # Without a stop it waits until the database is back.
        monkeypatch.setattr(runner, "_carry_out", give_up)
        monkeypatch.setattr("faceswap.store.database.RETRY_S", 0)
        task = asyncio.create_task(runner.run(prompt, backend, look_first=False))
        await until(lambda: tries > 5)
        is_away = False
        with pytest.raises(GivenUp):
            await task
        assert await store.abandoned("one") == {prompt.prompt_id}


async def test_a_prompt_that_may_have_been_sent_is_looked_for_though_the_database_was_away_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, looks = Files(tmp_path), list[bool]()
    files.create()

    async def carry_out(*_: object, look_first: bool) -> bool:
        looks.append(look_first)
        if len(looks) == 1:
            raise StoreError("away", transient=True)
        return True

    monkeypatch.setattr(recovery, "DISK_PAUSE_S", 0)
    async with opened(files.database) as store, MediaWorker() as media:
        client: Any = None
        backend, reporter = Backend(BackendPool(), "one", client, "client"), ProgressReporter(store, files)
        runner = Runner(store, files, media, reporter, {}, EngineInputs(files, media, reporter, store))
        monkeypatch.setattr(runner, "_carry_out", carry_out)
        await create(store)
        assert await runner.run(backend.begin(await claim(store)), backend, look_first=True)
    assert looks == [True, True]
