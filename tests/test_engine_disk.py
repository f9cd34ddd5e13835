"""An engine with a full disk: it reports it, leaves nothing half done, and goes on when there is room."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from clips import make_clip, read_numbers
from engine_rig import FACE, Rig, workflow
from processes import Engine
from small_disk import SmallDisk, small_disk
from waiting import WAIT_S

from faceswap.comfy import embedded as embedded_module
from faceswap.comfy.embedded import EmbeddedEngine

FRAMES = 60


@pytest.fixture
async def full(tmp_path: Path) -> AsyncIterator[tuple[SmallDisk, Engine, Rig]]:
    """Give a disk, an engine on it, and a caller that has uploaded a face and a clip."""
    with small_disk(tmp_path / "engine") as disk:
        async with Engine(tmp_path, paint=True) as engine, aiohttp.ClientSession(engine.url) as session:
            rig = Rig(session, engine.data_dir)  # type: ignore[arg-type]  # all that Rig calls
            await rig.upload(FACE, "face.png")
            await rig.upload(make_clip(tmp_path / "clip.mp4", FRAMES, size=(320, 240), sounds=["aac"], crf=10))
            yield disk, engine, rig


def files(engine: Engine) -> set[str]:
    """Return every file of the engine, and those it has erased but still holds open."""
    found = {str(path) for path in engine.data_dir.rglob("*") if path.is_file()}
    for link in Path(f"/proc/{engine.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since it was listed
            target = str(link.readlink())
            found |= {target} if target.endswith("(deleted)") else set()
    return found


async def failed(rig: Rig, prompt_id: str) -> dict[str, Any] | None:
    """Run the workflow and return the error's data, None when it went well."""
    await rig.submit(workflow(filename_prefix=prompt_id, crf=10), prompt_id)
    entry = await rig.ended(prompt_id)
    kind, told = entry["status"]["messages"][-1]
    assert kind == ("execution_success" if entry["status"]["completed"] else "execution_error")
    return None if entry["status"]["completed"] else told


async def test_an_upload_that_does_not_fit_is_answered_507(full: tuple[SmallDisk, Engine, Rig], tmp_path: Path) -> None:
    disk, engine, _ = full
    before = files(engine)
    large = tmp_path / "large.mp4"
    large.write_bytes(bytes(3 << 20))

    async def upload() -> tuple[int, str]:
        form = aiohttp.FormData({"subfolder": "new"})
        form.add_field("image", large.open("rb"), filename=large.name)
        # A connection of its own: that of an upload which is refused may be closed.
        async with (
            aiohttp.ClientSession(engine.url) as session,
            session.post("/upload/image", data=form) as response,
        ):
            return response.status, await response.text()

    for room in (0, 100_000, 2 << 20):
        disk.leave(room, engine.pid)
        status, told = await upload()
        assert (status, str(tmp_path) in told) == (507, False)
        disk.free(engine.pid)
        assert files(engine) == before
    assert (await upload())[0] == 200


async def test_a_prompt_that_meets_a_full_disk_fails_with_that_and_leaves_nothing(
    full: tuple[SmallDisk, Engine, Rig],
) -> None:
    disk, engine, rig = full
    assert await failed(rig, "measure") is None
    (result,) = (rig.data / "output").iterdir()
    size = result.stat().st_size
    result.unlink()
    await rig.post("/free", {"free_memory": True})
    before = files(engine)
    ended_well = []
    # Room for nothing, the encoded pictures or a part of them, and for those and a part of the result.
    for number, share in enumerate((0, 0.1, 0.5, 0.9, 1.0, 1.2, 1.5, 1.9, 1.97, 2.0, 2.1)):
        disk.leave(int(size * share), engine.pid)
        told = await failed(rig, f"p{number}")
        disk.free(engine.pid)
        if told is None:
            (result,) = (rig.data / "output").iterdir()
            assert read_numbers(result) == list(range(FRAMES))
            result.unlink()
            await rig.post("/free", {"free_memory": True})
        else:
            assert told["exception_type"] == "OSError"
            assert "No space left on device" in told["exception_message"]
        assert files(engine) == before, share
        ended_well.append(told is None)
    assert ended_well == sorted(ended_well) and not ended_well[3], ended_well
    assert await failed(rig, "last") is None


async def test_an_engine_starts_when_there_is_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(embedded_module, "LONGEST_PAUSE_S", 0.2)
    with small_disk(tmp_path / "disk") as disk:
        disk.fill_with_files()
        data = disk.folder / "engine"
        if disk.mounted:
            command = [sys.executable, "-m", "faceswap.engine", "--port", "0", "--data-dir", str(data)]
            ended = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
            assert (ended.returncode, ended.stdout) == (1, "")
            assert ended.stderr.startswith("faceswap engine: [Errno 28] No space left on device")
            assert len(ended.stderr.splitlines()) == 1
        keeper = EmbeddedEngine(data)
        ready = asyncio.Event()
        with caplog.at_level(logging.INFO):
            running = asyncio.create_task(keeper.run(lambda url: ready.set()))
            while disk.mounted and not keeper.restarts:
                await asyncio.sleep(0.01)
            disk.free()
            async with asyncio.timeout(WAIT_S):
                await ready.wait()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        assert "Traceback" not in caplog.text
