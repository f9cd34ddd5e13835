"""Promises are on the disk before a client is told: files and the folders that name them are synced."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from clips import JOB, make_clip
from service_rig import EngineRig, Handler, service_and_engines
from stored_jobs import opened, sql
from yarl import URL

from faceswap.comfy.client import ComfyClient
from faceswap.comfy.messages import OutputFile
from faceswap.engine.server import ENGINE
from faceswap.files import Files
from faceswap.intake.files import FileSink, Room, new_input_folder
from faceswap.media.join import join


class Synced(list[Path]):
    """The files and folders that were synced, in order, by the names they had then."""

    def __init__(self) -> None:
        self.contents: set[tuple[Path, str]] = set()

    def holding(self, folder: Path, name: str) -> bool:
        """Tell whether the folder was synced while a file of that name was in it."""
        return (folder, name) in self.contents


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> Synced:
    found = Synced()

    def note(sync: Callable[[int], None], descriptor: int) -> None:
        sync(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        found.append(path)
        if path.is_dir():
            found.contents |= {(path, entry.name) for entry in path.iterdir()}

    for sync in (os.fsync, os.fdatasync):
        monkeypatch.setattr(os, sync.__name__, partial(note, sync))
    return found


async def test_an_upload_is_synced_and_so_are_the_folders_that_lead_to_it(synced: Synced, tmp_path: Path) -> None:
    files = Files(tmp_path)
    path = files.inputs("job-1")
    async with new_input_folder(files, "job-1", Room(files, 0)) as folder:
        await folder.expect(1000)
        sink = FileSink(folder, "video", 1000)
        await sink.write(b"bytes")
        assert (await sink.finish()).size == 5
        assert synced == [path / "video.part"]
    assert synced.holding(path, "video.mp4") and synced.holding(path.parent, "job-1")


async def test_an_output_that_was_fetched_is_synced_and_so_is_its_name(synced: Synced, tmp_path: Path) -> None:
    async with EngineRig(tmp_path / "engine") as engine, aiohttp.ClientSession() as session:
        (engine.folder / "output" / "made.mp4").write_bytes(b"video")
        client = ComfyClient(URL(engine.url), session)
        await client.download(OutputFile("made.mp4", "", "output"), tmp_path / "00000-1.mp4", 1000)
    assert any(path.name.endswith(".part") for path in synced)
    assert synced.holding(tmp_path, "00000-1.mp4")


def test_a_joined_video_is_synced_and_so_is_its_name(synced: Synced, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4")
    join([clip], clip, tmp_path / "joined.mp4", None, JOB)
    assert synced[0].name.startswith((".joined", "joined")) and synced[0].parent == tmp_path
    assert synced.holding(tmp_path, "joined.mp4")


async def test_a_kept_result_is_synced_under_its_public_name(synced: Synced, tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.create()
    await files.make_scratch("job-1")
    files.joined("job-1", 1).write_bytes(b"video")
    await files.keep_result("job-1", 1, "clip.mp4", "digest")
    assert synced.holding(tmp_path / "outputs", "clip.mp4")


async def test_a_commit_waits_for_the_disk(tmp_path: Path) -> None:
    async with opened(tmp_path / "db") as store, store._transaction() as transaction:
        row = await transaction.one("PRAGMA synchronous")
        assert row is not None and row[0] == 2  # FULL
    assert sql(tmp_path / "db", "PRAGMA journal_mode") == [("wal",)]


async def test_a_prompt_is_committed_before_it_is_sent(tmp_path: Path) -> None:
    known: list[list[tuple[str, str]]] = []

    async def look(request: web.Request, handler: Handler) -> web.StreamResponse:
        rows = sql(tmp_path / "data" / "faceswap.db", "SELECT state, comfy_prompt_id FROM segment")
        response = await handler(request)
        if request.path == "/prompt":
            prompt_id = request.app[ENGINE].prompts.pending[-1].id
            known.append([row for row in rows if row[1] == prompt_id])
        return response

    async with service_and_engines(tmp_path, lie=look, paint=True) as (service, _):
        status = await service.ended(await service.post(make_clip(tmp_path / "clip.mp4", 4)))
        assert status["status"] == "SUCCESS"
    assert [[state for state, _ in rows] for rows in known] == [["submitted"]]
