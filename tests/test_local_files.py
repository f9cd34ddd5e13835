"""Files that grow from a stream: synced before anybody is told, and never on the event loop."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from clips import make_clip
from service_rig import service_and_engines
from waiting import WAIT_S, eventually

from faceswap.files import PIECE_BYTES, Files, FileWriter, new_file
from faceswap.files import writer as writer_module

PIECE = bytes(range(256)) * (PIECE_BYTES // 256)
EVENTS = frozenset(
    {"open", "os.chmod", "os.listdir", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.scandir", "shutil.rmtree"}
)
"""Audit events of calls that may wait for a disk."""


class Watch:
    """The calls that a thread makes on files below a folder."""

    folder: Path | None = None
    thread = 0
    found: list[str] = []  # noqa: RUF012 - there is one audit hook, which cannot be removed


def note(event: str, arguments: tuple[Any, ...]) -> None:
    """Note a call."""
    if Watch.folder is not None and event in EVENTS and threading.get_ident() == Watch.thread and arguments:
        path = arguments[0]
        if isinstance(path, str | Path) and Path(path).is_relative_to(Watch.folder):
            Watch.found.append(f"{event} {path}")


sys.addaudithook(note)


@contextmanager
def watched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Note what this thread does on files below a folder."""
    for name in ("stat", "fsync", "fdatasync", "statvfs"):
        call = getattr(os, name)

        def noted(target: Any, *rest: Any, _name: str = name, _call: Any = call, **named: Any) -> Any:
            path = f"/proc/self/fd/{target}" if isinstance(target, int) else str(target)
            note("open", (os.path.realpath(path) if isinstance(target, int) else path, _name))
            return _call(target, *rest, **named)

        monkeypatch.setattr(os, name, noted)
    Watch.folder, Watch.thread, Watch.found = folder, threading.get_ident(), []
    try:
        yield Watch.found
    finally:
        Watch.folder = None
        monkeypatch.undo()


async def test_through_a_whole_job_the_loop_waits_for_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = make_clip(tmp_path / "clip.mp4", 12, sounds=["aac"])
    with watched(tmp_path / "data", monkeypatch) as found:
        async with service_and_engines(tmp_path, paint=True) as (service, _):
            status = await service.ended(await service.post(clip))
            assert status["status"] == "SUCCESS"
            async with service.client.get(status["result"]) as answer:
                assert answer.status == 200
                await answer.read()
            await service.get("/health")
            async with service.client.delete(f"/jobs/{status['prompt_id']}") as answer:
                assert answer.status == 204
    assert found == []


async def test_a_call_on_the_loop_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with watched(tmp_path, monkeypatch) as found:
        (tmp_path / "file").touch()
        (tmp_path / "file").exists()
        await asyncio.to_thread((tmp_path / "file").unlink)
    assert [line.split()[0] for line in found] == ["open", "open"]


async def test_pieces_of_any_size_make_one_file_with_its_digest(tmp_path: Path) -> None:
    parts = [b"", b"a", PIECE, PIECE[:1000], PIECE * 2, b"z"]
    async with new_file(tmp_path / "file") as file:
        for part in parts:
            await file.write(part)
            assert not (tmp_path / "file").exists()
    whole = b"".join(parts)
    assert (tmp_path / "file").read_bytes() == whole
    assert (file.size, file.sha256) == (len(whole), hashlib.sha256(whole).hexdigest())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


class HeldDisk:
    """A disk on which each sync waits until it is released."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.syncing = 0
        self.most = 0
        self.released = threading.Event()
        self.open_when_left: list[bool] = []
        monkeypatch.setattr(os, "fdatasync", self._sync)

    def _sync(self, descriptor: int) -> None:
        self.syncing += 1
        self.most = max(self.most, self.syncing)
        assert self.released.wait(WAIT_S)
        self.open_when_left.append(Path(f"/proc/self/fd/{descriptor}").exists())
        self.syncing -= 1

    async def begun(self) -> bool:
        return self.syncing > 0


async def test_a_sync_goes_on_beside_the_receiving_and_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "SYNC_BYTES", 2 * PIECE_BYTES)
    disk = HeldDisk(monkeypatch)
    file = FileWriter(tmp_path / "part")
    for _ in range(4):  # the first two are being synced
        await file.write(PIECE)
    await eventually(disk.begun)

    async def written() -> bool:
        return (tmp_path / "part").stat().st_size == 4 * PIECE_BYTES

    await eventually(written)
    third = asyncio.create_task(file.write(PIECE))  # the next two have to be, and wait for that
    await asyncio.wait({third}, timeout=0.3)
    assert not third.done()
    disk.released.set()
    await third
    await file.finish("file")
    assert disk.most == 1
    assert (tmp_path / "file").stat().st_size == 5 * PIECE_BYTES


async def test_a_piece_is_hashed_beside_its_writing_and_before_the_file_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        monkeypatch.setattr(writer_module, "_HASHES", threads)
        threads.submit(held.wait, WAIT_S)
        file = FileWriter(tmp_path / "part")
        await file.write(PIECE)

        async def written() -> bool:
            return (tmp_path / "part").stat().st_size == PIECE_BYTES

        await eventually(written)
        finish = asyncio.create_task(file.finish("file"))
        await asyncio.wait({finish}, timeout=0.3)
        assert not finish.done()
        held.set()
        await finish
    assert file.sha256 == hashlib.sha256(PIECE).hexdigest()


async def test_a_file_is_not_finished_before_its_last_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = HeldDisk(monkeypatch)
    file = FileWriter(tmp_path / "part")
    await file.write(b"bytes")
    finish = asyncio.create_task(file.finish("file"))
    await eventually(disk.begun)
    assert not finish.done() and not (tmp_path / "file").exists()
    disk.released.set()
    await finish
    assert (tmp_path / "file").read_bytes() == b"bytes"


async def test_a_thread_that_outlives_its_cancelled_wait_keeps_its_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = HeldDisk(monkeypatch)

    async def fill() -> None:
        async with new_file(tmp_path / "file") as file:
            await file.write(b"bytes")

    filling = asyncio.create_task(fill())
    await eventually(disk.begun)
    for _ in range(2):  # the second ends the wait for the clearing away too
        filling.cancel()
        await asyncio.wait({filling}, timeout=0.05)
    assert filling.cancelled()
    disk.released.set()

    async def cleared() -> bool:
        return not list(tmp_path.iterdir())

    await eventually(cleared)
    assert disk.open_when_left == [True]


@pytest.mark.parametrize("size", [10, 3 * PIECE_BYTES])
async def test_a_disk_that_fills_in_the_middle_is_told_and_leaves_nothing(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", full)
    with pytest.raises(OSError, match="No space left"):
        async with new_file(tmp_path / "file") as file:
            await file.write(bytes(size))
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_bytes(b"an earlier one")
    with pytest.raises(OSError, match="No space left"):
        async with new_file(tmp_path / "file") as file:
            await file.write(bytes(size))
    assert (tmp_path / "file").read_bytes() == b"an earlier one"


async def test_the_room_on_the_disk_is_told_though_every_thread_waits_for_it(tmp_path: Path) -> None:
    files = Files(tmp_path)
    held = threading.Event()
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as threads:
        loop.set_default_executor(threads)
        begun = asyncio.gather(loop.run_in_executor(None, held.wait), files.begin_upload("job"))
        async with asyncio.timeout(WAIT_S):
            assert await files.free_bytes() > 0
        assert not begun.done()
        held.set()
        await begun
