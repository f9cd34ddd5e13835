"""A video in segments comes back with every frame once, on its own time, with its own sound, whatever it is like."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import aiosqlite
import numpy as np
import pytest
import pytest_asyncio
from clips import (
    Picture,
    frame_times,
    make_clip,
    numbered,
    read_numbers,
    sound_packets,
    with_edit_list,
    with_lying_header,
)
from processes import Engine, Service, at_rest, eventually
from service_rig import ServiceRig, service_and_engines

from faceswap.client import FaceSwap
from faceswap.comfy.backend import MAX_COLLECTING, MAX_PROMPTS
from faceswap.media.timeline import read_timeline
from faceswap.samples import FACE

FRAMES = 31
SEGMENT = 7
UNEVEN = {"times": [i * 4 + (i % 3) for i in range(FRAMES)], "time_base": Fraction(1, 100)}

CLIPS: dict[str, dict[str, Any]] = {
    "plain.mp4": {"sounds": ["aac"]},
    "silent.mp4": {},
    "two-tracks.mp4": {"sounds": ["aac", "libopus"]},
    "ntsc.mp4": {"rate": Fraction(30000, 1001), "sounds": ["aac"]},
    "uneven.mp4": {**UNEVEN, "sounds": ["aac"]},
    "odd.mp4": {"size": (131, 97), "pix_fmt": "yuv444p", "sounds": ["aac"]},
    "b-frames.mkv": {"b_frames": 4, "gop": 20, "sounds": ["libmp3lame"]},
    "late-picture.mp4": {"video_start": 6, "sounds": ["aac"]},
    "opus.webm": {"codec": "libvpx-vp9", "sounds": ["libopus"]},
}


def lying_on_its_side(number: int, width: int, height: int) -> Picture:
    return np.ascontiguousarray(np.rot90(numbered(number, height, width)))


def cases(folder: Path) -> Iterator[Path]:
    for name, settings in CLIPS.items():
        yield make_clip(folder / name, FRAMES, **settings)
    plain = make_clip(folder / "for-editing.mp4", FRAMES, sounds=["aac"])
    yield with_edit_list(plain, folder / "edit-list.mp4", skipped=5 * 512, shown=800)
    yield with_lying_header(plain, folder / "lying-header.mp4")
    yield make_clip(folder / "rotated.mp4", FRAMES, size=(96, 128), draw=lying_on_its_side, rotation=90, sounds=["aac"])


NAMES = [*CLIPS, "edit-list.mp4", "lying-header.mp4", "rotated.mp4"]


@pytest.fixture(scope="module")
def clips_by_name(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {path.name: path for path in cases(tmp_path_factory.mktemp("clips"))}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServiceRig]:
    folder = tmp_path_factory.mktemp("service")
    async with service_and_engines(folder, paint=True, settings={"segment_frames": SEGMENT}) as (service, _):
        yield service


def numbers_shown(clip: Path) -> list[int]:
    """Return the numbers a player shows, of an upright picture."""
    if clip.name == "rotated.mp4":
        return list(range(FRAMES))
    return read_numbers(clip)


def in_sync(result: Path, clip: Path) -> float:
    """Return the seconds between the ends of sound and picture, compared to the source."""
    shown, wanted = frame_times(result), frame_times(clip)
    drifts = [0.0]
    for track, original in zip(sound_packets(result), sound_packets(clip), strict=True):
        assert [data for data, _ in track] == [data for data, _ in original]
        drifts.append(abs((track[-1][1] - shown[-1]) - (original[-1][1] - wanted[-1])))
    return max(drifts)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", NAMES)
async def test_every_frame_comes_back_once_on_time_with_the_sound(
    name: str, clips_by_name: dict[str, Path], service: ServiceRig, tmp_path: Path
) -> None:
    clip = clips_by_name[name]
    status = await service.ended(await service.post(clip))
    assert (status["status"], status["warnings"]) == ("SUCCESS", []), status
    wanted = numbers_shown(clip)
    assert status["segments"]["total"] == -(-len(wanted) // SEGMENT)
    result = await service.download(status, tmp_path / "result.mp4")
    assert read_numbers(result) == wanted
    times, own = frame_times(result), sorted(frame_times(clip))
    assert [t - times[0] for t in times] == pytest.approx([t - own[0] for t in own], abs=0.002)
    assert in_sync(result, clip) < 0.005


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("rate", [10, 24, 60])
@pytest.mark.parametrize("name", ["ntsc.mp4", "uneven.mp4", "two-tracks.mp4"])
async def test_at_a_rate_of_its_own_no_frame_is_lost_at_the_seams(
    name: str, rate: int, clips_by_name: dict[str, Path], service: ServiceRig, tmp_path: Path
) -> None:
    clip = clips_by_name[name]
    status = await service.ended(await service.post(clip, frame_rate=rate))
    assert (status["status"], status["warnings"]) == ("SUCCESS", []), status
    result = await service.download(status, tmp_path / "result.mp4")
    times = frame_times(result)
    assert read_numbers(result) == read_timeline(clip).shown(Fraction(rate), 0, len(times))
    assert [t - times[0] for t in times] == pytest.approx([i / rate for i in range(len(times))], abs=0.001)
    assert len(times) == status["progress"]["total"]
    shown = times[-1] - times[0] + 1 / rate
    assert abs(shown - float(read_timeline(clip).duration)) <= 0.5 / rate


def noisy(number: int, width: int, height: int) -> Picture:
    noise = np.random.default_rng(number).integers(0, 120, (height, width, 3), dtype=np.uint8)
    noise[: height // 3] = numbered(number, width, height)[: height // 3]
    return noise


async def test_a_video_above_the_engines_limit_comes_in_pieces(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", 60, size=(320, 240), draw=noisy, sounds=["aac"], crf=30)
    limit = clip.stat().st_size * 2 // 3
    settings = {"segment_frames": 10}
    async with service_and_engines(tmp_path, paint=True, max_upload_size=limit, settings=settings) as (service, _):
        status = await service.ended(await service.post(clip))
        assert (status["status"], status["attempts"]) == ("SUCCESS", 6), status
        result = await service.download(status, tmp_path / "result.mp4")
        assert read_numbers(result) == list(range(60))
        assert frame_times(result) == pytest.approx(frame_times(clip))
        assert in_sync(result, clip) < 0.005
        await at_rest(service.files)


async def until(client: FaceSwap, prompt_id: str, reached: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """Wait until a job's status is as wanted."""

    async def look() -> dict[str, Any] | None:
        status = await client.status(prompt_id)
        return status if reached(status) else None

    found: dict[str, Any] = await eventually(look)
    return found


async def attempts_when_killed(killed: str, folder: Path) -> tuple[list[int], list[int]]:
    """Kill the service or the engine once two of eight segments are done; which were, and how often each was tried."""
    clip = make_clip(folder / "clip.mp4", 32, size=(96, 64), sounds=["aac"])
    async with (
        Engine(folder, wait_per_frame_s=0.05) as engine,
        Service(folder, engine.url, segment_frames=4) as service,
    ):
        async with FaceSwap(service.url) as client:
            prompt_id = await client.submit(clip, FACE)
            await until(client, prompt_id, lambda status: status["segments"]["done"] >= 2)
            done = await column(service, "number", "WHERE state = 'done'")
        victim = service if killed == "service" else engine
        await victim.kill()
        await victim.start()
        async with FaceSwap(service.url) as client:
            status = await until(client, prompt_id, lambda status: status["finished_at"])
            assert status["status"] == "SUCCESS", status
            await client.download(status["result"].removeprefix("/download/"), folder / "result.mp4")
        assert read_numbers(folder / "result.mp4") == list(range(32))
        return done, await column(service, "attempt", "ORDER BY number")


async def column(service: Service, name: str, rest: str) -> list[int]:
    """Return a column of the segments in the database."""
    async with aiosqlite.connect(service.data_dir / "faceswap.db") as database:
        return [row[0] for row in await database.execute_fetchall(f"SELECT {name} FROM segment {rest}")]


async def test_a_killed_service_has_no_segment_done_twice(tmp_path: Path) -> None:
    _, attempts = await attempts_when_killed("service", tmp_path)
    assert attempts == [1] * 8


async def test_a_killed_engine_costs_what_it_had_and_no_finished_segment(tmp_path: Path) -> None:
    done, attempts = await attempts_when_killed("engine", tmp_path)
    assert [attempts[number] for number in done] == [1] * len(done)
    assert attempts.count(2) <= MAX_PROMPTS + MAX_COLLECTING and max(attempts) <= 2
