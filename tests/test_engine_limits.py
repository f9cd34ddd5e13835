"""Media beyond the engine's limits: one failed prompt with a sentence, and the engine goes on."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import logging
import os
import resource
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import av
import cv2
import numpy as np
import pytest
from clips import growing, huge_png, make_clip, many_tracks
from engine_rig import FACE, Rig, engine, workflow
from processes import Engine

from faceswap.engine.clip import Clip, MediaLimitError, Selection, open_media, probe
from faceswap.engine.execution import lacks_memory
from faceswap.engine.frames import Frame
from faceswap.engine.prompts import LEAKED_EXIT_CODE, STALLED_EXIT_CODE
from faceswap.limits import MAX_IMAGE_BYTES, MAX_PIXELS, MAX_SIDE, MAX_TRACKS, OPEN_OPTIONS


@pytest.mark.parametrize("size", [(MAX_SIDE + 8, 64), (7600, 7000)])
def test_a_picture_that_grows_beyond_the_limits_is_not_decoded(tmp_path: Path, size: tuple[int, int]) -> None:
    clip = Clip(probe(growing(tmp_path / "grow.mkv", (64, 64), (64, 64), size)), Selection())
    assert (clip.size, clip.count) == ((64, 64), 3)
    with pytest.raises(MediaLimitError, match=f"at most {MAX_SIDE} pixels a side and {MAX_PIXELS} in all") as raised:
        list(clip)
    # The decoder itself refuses what is large, before it takes memory; what is long and thin costs none.
    assert isinstance(raised.value.__cause__, av.error.ArgumentError) == (size[0] * size[1] > MAX_PIXELS)


def test_a_name_that_is_no_text_does_not_keep_a_video_from_being_read(tmp_path: Path) -> None:
    data = make_clip(tmp_path / "good.mp4", 2).read_bytes()
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(data.replace(b"VideoHandler", b"\xff\xfedeoHandler"))
    assert bad.read_bytes() != data
    with open_media(bad) as container:
        assert len(list(container.decode(video=0))) == 2


def test_a_picture_that_grows_within_the_limits_is_scaled_to_the_first(tmp_path: Path) -> None:
    clip = Clip(probe(growing(tmp_path / "grow.mkv", (64, 64), (640, 480), (32, 32))), Selection())
    assert [frame.size for frame in clip] == [(64, 64)] * 3


@pytest.mark.parametrize("container", ["mkv", "mp4", "ts", "avi", "asf"])
def test_a_file_with_too_many_tracks_is_not_opened(tmp_path: Path, container: str) -> None:
    for count in (MAX_TRACKS + 1, 99):  # AVI has no more
        with pytest.raises(MediaLimitError, match=f"more than {MAX_TRACKS} tracks"):
            probe(many_tracks(tmp_path / f"many.{container}", count))
    with open_media(many_tracks(tmp_path / f"most.{container}", MAX_TRACKS)) as media:
        assert len(media.streams) == MAX_TRACKS


def test_a_demuxer_does_not_make_more_tracks_than_are_taken(tmp_path: Path) -> None:
    with av.open(many_tracks(tmp_path / "many.mkv", 2 * MAX_TRACKS), options=OPEN_OPTIONS) as media:
        assert len(media.streams) == MAX_TRACKS + 1


async def result(rig: Rig, prompt_id: str, **inputs: Any) -> tuple[str, str] | None:
    """Run a prompt and return the type and the message of its error; None when it went well."""
    await rig.submit(workflow(filename_prefix=prompt_id, **inputs), prompt_id)
    entry = await rig.ended(prompt_id)
    if entry["status"]["completed"]:
        return None
    told = entry["status"]["messages"][-1][1]
    return told["exception_type"], told["exception_message"].strip()


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[tuple[Engine, Rig]]:
    """Give an engine process with a face and a small clip, and a caller."""
    async with Engine(tmp_path, paint=True) as engine, aiohttp.ClientSession(engine.url) as session:
        rig = Rig(session, engine.data_dir)  # type: ignore[arg-type]  # all that Rig calls
        await rig.upload(FACE, "face.png")
        await rig.upload(make_clip(tmp_path / "clip.mp4", 3))
        yield engine, rig


async def test_what_is_too_large_fails_its_own_prompt_only(process: tuple[Engine, Rig], tmp_path: Path) -> None:
    engine, rig = process
    await rig.upload(many_tracks(tmp_path / "tracks.mkv", MAX_TRACKS + 1))
    await rig.upload(growing(tmp_path / "grow.mkv", (64, 64), (MAX_SIDE + 8, 64)))
    for name, width, height in (("wide.png", MAX_SIDE + 8, 64), ("large.png", 7600, 7000)):
        await rig.upload(huge_png(tmp_path / name, width, height))
        assert await result(rig, name, image=name) == (
            "ValueError",
            f"{name} cannot be decoded: at most {MAX_SIDE} pixels a side and {MAX_PIXELS} in all",
        )
    for name in ("tracks.mkv", "grow.mkv"):
        failure = await result(rig, name, video=name)
        assert failure is not None and failure[0].endswith("MediaLimitError")
    assert (await result(rig, "size", custom_width=8000, custom_height=8000)) == (
        "ValueError",
        "8000×8000 is too large",
    )
    assert await result(rig, "last") is None
    assert engine.running


async def test_a_prompt_without_memory_fails_and_gives_back_what_it_had(
    process: tuple[Engine, Rig], tmp_path: Path
) -> None:
    engine, rig = process
    allowed, _ = resource.prlimit(engine.pid, resource.RLIMIT_DATA)
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < allowed < physical
    await rig.upload(make_clip(tmp_path / "large.mp4", 4, size=(6144, 3456), draw=_plain))
    assert await result(rig, "first") is None
    used = _data_bytes(engine.pid)
    resting_mb = engine.memory_mb()
    resource.prlimit(engine.pid, resource.RLIMIT_DATA, (2 * used + (20 << 20), allowed))
    failure = await result(rig, "large", video="large.mp4", force_rate=0)
    assert failure == ("MemoryError", "It needs more memory than the engine may take")
    assert engine.memory_mb() < resting_mb + 60
    resource.prlimit(engine.pid, resource.RLIMIT_DATA, (allowed, allowed))
    assert await result(rig, "again", crf=30) is None


def _plain(number: int, width: int, height: int) -> Any:
    return np.full((height, width, 3), 10 * number, np.uint8)


def _data_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    return int(status.split("VmData:")[1].split()[0]) * 1024


async def test_a_failed_prompt_leaves_no_picture_in_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)  # pytest keeps the tracebacks of what is logged
    async with engine(tmp_path) as rig:
        await rig.upload(growing(tmp_path / "grow.mkv", *[(64, 64)] * 4, (MAX_SIDE + 8, 64)))
        gc.disable()
        try:
            assert await result(rig, "grow", video="grow.mkv") is not None
            assert not [kept for kept in gc.get_objects() if isinstance(kept, Frame)]
        finally:
            gc.enable()


async def test_a_prompt_that_makes_no_progress_ends_the_engine(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from faceswap.engine import __main__, prompts\n"
        "prompts.STALL_CHECK_S, prompts.STALL_S = 0.1, 1\n"
        "__main__.main(sys.argv[1:])\n"
    )
    options = ("--no-token", "--port", "0", "--data-dir", str(tmp_path / "data"))
    faults = ("--faults", json.dumps({"wait_per_frame_s": 3600}))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, *options, *faults), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    url = (await process.stdout.readline()).decode().split()[-1]
    async with aiohttp.ClientSession(url) as session:
        rig = Rig(session, tmp_path / "data")  # type: ignore[arg-type]  # all that Rig calls
        await rig.upload(FACE, "face.png")
        await rig.upload(make_clip(tmp_path / "clip.mp4", 3))
        await rig.submit(workflow(), "stuck")
        assert await process.wait() == STALLED_EXIT_CODE


FRAMES = """
import resource
import numpy as np
from faceswap.engine.__main__ import _limit_memory

def frame():
    return [np.full(1 << 19, 1, np.uint8) for _ in range(8)]

_limit_memory()
frame()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    frame()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="a C library without such a choice")
def test_the_memory_of_a_frame_is_kept_for_the_next() -> None:
    """Count the pages that the system gives anew while 4 MiB are taken and given back twenty times."""
    run = subprocess.run([sys.executable, "-c", FRAMES], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 20 * (4 << 20) / resource.getpagesize() / 4


def test_a_lack_of_memory_is_known_in_every_librarys_words() -> None:
    with pytest.raises(cv2.error) as opencv:
        cv2.imdecode(np.empty(0, np.uint8), cv2.IMREAD_COLOR)
    assert not lacks_memory(opencv.value)
    opencv.value.code = cv2.Error.StsNoMem
    for error in (
        opencv.value,
        MemoryError(),
        RuntimeError("can't start new thread"),
        av.error.MemoryError(12, "Cannot allocate memory"),
        av.error.BlockingIOError(11, "Resource temporarily unavailable"),
        av.error.ExternalError(542398533, "Generic error in an external library"),
    ):
        assert lacks_memory(error), error
    assert not lacks_memory(RuntimeError("No frames generated"))
    assert not lacks_memory(av.error.InvalidDataError(1094995529, "Invalid data found"))


async def test_an_engine_that_has_lost_its_memory_ends_before_the_next_prompt(process: tuple[Engine, Rig]) -> None:
    engine, rig = process
    assert await result(rig, "first") is None
    _, allowed = resource.prlimit(engine.pid, resource.RLIMIT_DATA)
    resource.prlimit(engine.pid, resource.RLIMIT_DATA, (_data_bytes(engine.pid) * 3 // 2, allowed))
    await rig.submit(workflow(filename_prefix="second"), "second")
    assert await engine.ended() == LEAKED_EXIT_CODE


async def test_a_picture_file_has_a_largest_size(process: tuple[Engine, Rig], tmp_path: Path) -> None:
    _, rig = process
    padded = tmp_path / "padded.png"
    padded.write_bytes(FACE.read_bytes())
    os.truncate(padded, MAX_IMAGE_BYTES + 1)
    form = aiohttp.FormData()
    form.add_field("image", padded.open("rb"), filename=padded.name)
    async with rig.client.post("/upload/image", data=form) as response:
        assert response.status == 200
    assert await result(rig, "p", image=padded.name) == ("ValueError", "padded.png is larger than 160 MiB")
