"""Inputs sent to an engine: the whole video where that is as good, else exact pieces; and the limits of a job."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from clips import Picture, frame_times, make_clip, read_numbers, sound_packets, with_edit_list
from processes import at_rest
from service_rig import ServiceRig, service_and_engines

from faceswap.errors import JobFailure
from faceswap.media import MediaWorker
from faceswap.media.cut import KEY_FRAME_EVERY, LONGEST_GROUP
from faceswap.media.frames import LEAD_FRAMES
from faceswap.media.timeline import read_timeline
from faceswap.samples import FACE

SEGMENT = 40
LONG = LONGEST_GROUP + 60
UNEVEN_STEPS = [20] * 20 + [2] * 90 + [150] + [4] * 50
UNEVEN = {"times": [sum(UNEVEN_STEPS[:i]) for i in range(len(UNEVEN_STEPS))], "time_base": Fraction(1, 100)}


def whole(prompt: dict[str, Any]) -> bool:
    return str(prompt["video"]).partition("/")[2].startswith("video")


def edited(folder: Path) -> Path:
    clip = make_clip(folder / "whole.mp4", LONG, gop=20, sounds=["aac"])
    return with_edit_list(clip, folder / "edited.mp4", skipped=5 * 512, shown=14_000)


CLIPS: dict[str, Callable[[Path], Path]] = {
    "plain": lambda folder: make_clip(folder / "plain.mp4", LONG, sounds=["aac"]),
    "one group": lambda folder: make_clip(folder / "one-group.mp4", LONG, gop=1000, sounds=["aac"]),
    "edit list": edited,
    "no index": lambda folder: make_clip(folder / "no-index.ts", LONG, gop=25, sounds=["aac"]),
    "no times": lambda folder: make_clip(folder / "no-times.avi", LONG, codec="mpeg4", sounds=["libmp3lame"]),
    "uneven": lambda folder: make_clip(folder / "uneven.mp4", len(UNEVEN_STEPS), sounds=["aac"], sound_s=8, **UNEVEN),
}


async def finished(service: ServiceRig, clip: Path, to: Path, **options: Any) -> Path:
    """Return the result of a job that has to succeed without a warning."""
    status = await service.ended(await service.post(clip, **options))
    assert (status["status"], status["warnings"]) == ("SUCCESS", []), status
    await at_rest(service.files)
    return await service.download(status, to)


CASES = [*((name, None) for name in CLIPS), ("plain", 15), ("one group", 15), ("no times", 15), ("uneven", 15)]


@pytest.mark.parametrize(("name", "rate"), CASES)
async def test_comfyui_decodes_little_in_vain_and_every_frame_comes_back(
    name: str, rate: int | None, tmp_path: Path
) -> None:
    clip, settings = CLIPS[name](tmp_path), {"segment_frames": SEGMENT}
    async with service_and_engines(tmp_path, settings=settings, streams=False, paint=True) as (service, engines):
        options = {"frame_rate": rate} if rate else {}
        result = await finished(service, clip, tmp_path / "result.mp4", **options)
        prompts = engines[0].loads
    shown, numbers = read_numbers(clip), read_numbers(result)
    indices = read_timeline(clip).shown(Fraction(rate) if rate else None, 0, len(numbers))
    assert numbers == [shown[index] for index in indices]
    assert list(map(len, sound_packets(result))) == list(map(len, sound_packets(clip))) == [len(sound_packets(clip)[0])]
    assert {prompt["force_rate"] for prompt in prompts} == {0}
    assert [whole(prompt) for prompt in prompts] == [not rate and number < 3 for number in range(len(prompts))]
    in_vain = [prompt["skip_first_frames"] for prompt in prompts if not whole(prompt)]
    assert max(in_vain) <= LEAD_FRAMES + KEY_FRAME_EVERY + 1
    assert len(prompts) == -(-len(numbers) // SEGMENT) > 2


async def test_an_engine_that_seeks_gets_the_whole_video_once(tmp_path: Path) -> None:
    clip, settings = CLIPS["plain"](tmp_path), {"segment_frames": SEGMENT}
    async with service_and_engines(tmp_path, settings=settings, paint=True) as (service, (engine,)):
        await finished(service, clip, tmp_path / "result.mp4")
        assert (len(engine.loads), all(map(whole, engine.loads))) == (9, True)
        assert engine.calls.count(("POST", "/upload/image")) == 2


async def test_an_engine_that_seeks_gets_pieces_of_what_it_could_not_seek_in(tmp_path: Path) -> None:
    clip, settings = CLIPS["one group"](tmp_path), {"segment_frames": SEGMENT}
    async with service_and_engines(tmp_path, settings=settings, paint=True) as (service, (engine,)):
        result = await finished(service, clip, tmp_path / "result.mp4")
        assert [whole(prompt) for prompt in engine.loads] == [True] * 3 + [False] * 6
    assert read_numbers(result) == list(range(LONG))


@pytest.mark.parametrize("name", ["plain", "one group", "no times"])
async def test_of_a_video_above_the_upload_limit_every_segment_is_a_piece(name: str, tmp_path: Path) -> None:
    clip, settings = CLIPS[name](tmp_path), {"segment_frames": SEGMENT}
    limits = {"max_upload_size": clip.stat().st_size - 1}
    async with service_and_engines(tmp_path, settings=settings, paint=True, **limits) as (service, (engine,)):
        result = await finished(service, clip, tmp_path / "result.mp4")
        assert not any(map(whole, engine.loads))
    assert read_numbers(result) == read_numbers(clip)


async def test_pictures_are_within_half_a_frame_of_their_time_at_a_rate_that_was_asked_for(tmp_path: Path) -> None:
    clip = CLIPS["uneven"](tmp_path)
    begins = frame_times(clip)
    ends = [*begins[1:], float(read_timeline(clip).duration)]
    async with service_and_engines(tmp_path, settings={"segment_frames": SEGMENT}, paint=True) as (service, _):
        result = await finished(service, clip, tmp_path / "result.mp4", frame_rate=24)
    half = 0.5 / 24 + 0.001
    for now, number in zip(frame_times(result), read_numbers(result), strict=True):
        assert begins[number] - half < now < ends[number] + half
    assert abs(frame_times(result)[-1] + 1 / 24 - ends[-1]) < half


@pytest.mark.parametrize("name", ["plain", "one group"])
async def test_a_result_at_another_rate_is_compared_with_the_frames_it_was_made_of(name: str, tmp_path: Path) -> None:
    """With any others an engine that swaps nothing would seem to have changed them."""
    clip, settings = CLIPS[name](tmp_path), {"segment_frames": 100}
    async with service_and_engines(tmp_path, settings=settings, unswapped=True) as (service, _):
        status = await service.ended(await service.post(clip, frame_rate=15))
    assert (status["status"], status["code"]) == ("FAILED", "no_face_detected"), status


@pytest.mark.parametrize(
    ("reader", "at"), [("cut", "end"), ("cut", "begin"), ("cut", "begin, remade"), ("verify", "begin")]
)
async def test_the_copy_for_pieces_is_made_once_and_a_job_outlives_its_loss(
    reader: str, at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The copy goes when the first piece was cut, or between the look for it and the reading of it.

    Another task may have made it anew by the time at which the failed reader looks for it.
    """
    made: list[Path] = []
    gone: list[Path] = []
    spare = tmp_path / "spare.mp4"
    prepare, check = MediaWorker.prepare, MediaWorker._check

    async def counted(self: MediaWorker, source: Path, out: Path, *arguments: Any, **named: Any) -> None:
        made.append(out)
        await prepare(self, source, out, *arguments, **named)

    def lose(path: Path) -> None:
        if path in made and not gone:
            shutil.copyfile(path, spare)
            gone.append(path)
            path.unlink()

    async def losing(self: MediaWorker, call: str, arguments: dict[str, Any], *limits: Any) -> dict[str, Any]:
        if call == reader and at.startswith("begin"):
            lose(arguments["source"])
        try:
            found = await check(self, call, arguments, *limits)
        except JobFailure:
            if at.endswith("remade") and spare.exists():
                spare.replace(arguments["source"])
            raise
        if call == reader:
            lose(arguments["source"])
        return found

    monkeypatch.setattr(MediaWorker, "prepare", counted)
    monkeypatch.setattr(MediaWorker, "_check", losing)
    clip = CLIPS["one group"](tmp_path)
    settings, engine = {"segment_frames": SEGMENT}, {"streams": False, "paint": True}
    async with service_and_engines(tmp_path, 2, settings=settings, **engine) as (service, engines):
        prompt_id = await service.post(clip)
        status = await service.ended(prompt_id)
        assert (status["status"], status["warnings"]) == ("SUCCESS", []), status
        result = await service.download(status, tmp_path / "result.mp4")
        messages = await service.messages(prompt_id)
    assert read_numbers(result) == list(range(LONG))
    assert (len(gone), sum(len(engine.loads) for engine in engines)) == (1, LONG // SEGMENT)
    assert not re.search("faceswap.recovery.*(check_failed|input_damaged)", caplog.text)
    assert messages.count("Preparing the video…") == len(made)
    assert len(made) == 2 or ((reader == "verify" or at.endswith("remade")) and len(made) == 1)


HUGE_GAPS_S = {"a day": 24 * 3600, "a week": 7 * 24 * 3600, "a year": 365 * 24 * 3600}


@pytest.mark.parametrize("gap", HUGE_GAPS_S)
async def test_a_few_frames_that_last_for_years_are_refused(gap: str, tmp_path: Path) -> None:
    times, ticks = [0, HUGE_GAPS_S[gap], 2 * HUGE_GAPS_S[gap]], {"video_track_timescale": "1"}
    clip = make_clip(tmp_path / "clip.mp4", 3, times=times, time_base=Fraction(1), b_frames=0, options=ticks)
    async with service_and_engines(tmp_path, paint=True) as (service, _):
        form = aiohttp.FormData({"options": '{"frame_rate": 60}'})
        form.add_field("video", clip.read_bytes(), filename="clip.mp4")
        form.add_field("image", FACE.read_bytes(), filename="face.png")
        async with service.client.post("/face-swap", data=form) as response:
            problem = await response.json()
        assert (response.status, problem["code"]) == (422, "video_too_long"), problem
        assert service.files() == []


def noise(number: int, width: int, height: int) -> Picture:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)


async def test_a_piece_that_is_too_large_is_done_in_two(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "noise.mp4", 24, draw=noise, gop=1)
    limits = {"max_upload_size": clip.stat().st_size * 6 // 10}
    async with service_and_engines(tmp_path, paint=True, **limits) as (service, (engine,)):
        status = await service.ended(await service.post(clip))
        assert status["status"] == "SUCCESS", status
        lengths = [frames for _, frames, _ in await service.segments(status["prompt_id"])]
        assert (sum(lengths), max(lengths)) == (24, 12)
        assert len(engine.loads) == len(lengths)
