"""The shapes of results, from request to file: a part of a video, one frame, a picture, another kind of file."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import aiohttp
import av
import clips
import numpy as np
import pytest
from media_samples import ASTRONAUT, GRACE_HOPPER, read_image
from PIL import Image
from service_rig import ServiceRig, service_and_engines
from waiting import eventually

from faceswap import samples
from faceswap.intake.shape import segment_length
from faceswap.media.tag import read_tag
from faceswap.media.timeline import read_timeline

VARIABLE: dict[str, Any] = {"times": [i * 4 + (i % 3) for i in range(60)], "time_base": Fraction(1, 100)}
PAINTED = (slice(192, 320), slice(192, 320))
"""The middle of a picture of 512 × 512, which the engine inverts in place of a swap."""


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips.make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", 60, sounds=["aac"])


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[ServiceRig]:
    async with service_and_engines(tmp_path, settings={"segment_frames": 20}, paint=True) as (service, _):
        yield service


async def make(rig: ServiceRig, video: Path, to: Path, **options: Any) -> tuple[dict[str, Any], Path]:
    """Return the status of a job that ended well, and its result."""
    status = await rig.ended(await rig.post(video, **options))
    assert status["status"] == "SUCCESS", status
    return status, await rig.download(status, to / Path(status["result"]).name)


async def refused(rig: ServiceRig, video: Path, **fields: Any) -> dict[str, Any]:
    form = aiohttp.FormData()
    form.add_field("video", video.read_bytes(), filename=video.name)
    form.add_field("image", samples.FACE.read_bytes(), filename="face.png")
    form.add_field("options", json.dumps(fields))
    async with rig.client.post("/face-swap", data=form) as response:
        assert response.status >= 400
        answer: dict[str, Any] = await response.json()
        return answer


def seconds_of_sound(path: Path) -> float:
    with av.open(str(path)) as container:
        return sum(frame.samples for frame in container.decode(audio=0)) / 48000


PARTS: dict[str, tuple[dict[str, Any], dict[str, Any], Any]] = {
    "whole-groups.mp4": ({}, {"start": 0.5, "end": 2.0}, range(12, 48)),
    "late.mp4": ({}, {"start": 2.2, "end": 99}, range(52, 60)),
    "variable.mp4": (VARIABLE, {"start": 0.52, "end": 1.6}, range(12, 40)),
    "one-group.mkv": ({"gop": 250}, {"start": 1.5}, range(36, 60)),
    "no-times.avi": ({"codec": "mpeg4"}, {"start": 1.5, "end": 2.0}, range(36, 48)),
    "faster.mp4": ({}, {"start": 0.5, "end": 2.0, "frame_rate": 48}, [n for n in range(12, 48) for _ in range(2)]),
}
"""For a clip: how it is made, what is asked for, and the frames that this is."""


async def test_only_a_part_is_made_with_its_frames_and_sound(rig: ServiceRig, tmp_path: Path) -> None:
    async def check(name: str, settings: dict[str, Any], options: dict[str, Any], numbers: Any) -> None:
        video = clips.make_clip(tmp_path / name, 60, sounds=["libmp3lame"], **settings)
        timeline = read_timeline(video)
        status, result = await make(rig, video, tmp_path, **options)
        assert clips.read_numbers(result) == list(numbers)
        assert status["progress"]["total"] == len(numbers)
        begin, end = (timeline.time_of(n, None) for n in (numbers[0], numbers[-1] + 1))
        if "frame_rate" not in options:
            times = [float(timeline.time_of(n, None) - begin) for n in numbers]
            assert clips.frame_times(result) == pytest.approx(times, abs=1e-4)
        assert seconds_of_sound(result) == pytest.approx(float(end - begin), abs=0.1)

    await asyncio.gather(*(check(name, *case) for name, case in PARTS.items()))


async def test_a_part_is_made_of_pieces_that_hold_little_else(rig: ServiceRig, tmp_path: Path) -> None:
    long = clips.make_clip(tmp_path / "long.mp4", 400, gop=12)
    prompt_id = await rig.post(long, start=1, end=2)
    assert (await rig.ended(prompt_id))["status"] == "SUCCESS"
    found = await rig.segments(prompt_id)
    assert [(first, count) for first, count, _ in found] == [(0, 12), (12, 12)]
    names = [path.name for path in (tmp_path / "engine-0" / "input" / prompt_id).iterdir()]
    assert not any(name.startswith("video") for name in names)


async def test_one_frame_is_that_very_frame_as_a_picture(rig: ServiceRig, clip: Path, tmp_path: Path) -> None:
    for video in (clip, clips.make_clip(tmp_path / "variable.mp4", 60, **VARIABLE)):
        times = clips.frame_times(video)
        status, result = await make(rig, video, tmp_path, at=round(times[41], 3), frame_rate=30, crf=30, priority=10)
        for changes_nothing in ("frame_rate", "crf"):
            assert any(f"'{changes_nothing}'" in warning for warning in status["warnings"])
        assert status["media"] == "image"
        assert result.suffix == ".png"
        picture = read_image(result)
        assert clips.read_number(picture) == 41
        with av.open(str(video)) as container:
            frame = list(container.decode(video=0))[41].to_ndarray(format="bgr24")
        changed = np.argwhere((picture != frame).any(axis=2))
        height, width = frame.shape[:2]
        assert changed.min(axis=0).tolist() == [height * 3 // 8, width * 3 // 8]
        assert changed.max(axis=0).tolist() == [height * 5 // 8 - 1, width * 5 // 8 - 1]


async def test_a_picture_becomes_a_picture(rig: ServiceRig, tmp_path: Path) -> None:
    cases = [("png", "", "png"), ("jpg", "", "jpg"), ("webp", "", "webp"), ("bmp", "", "png"), ("png", "jpg", "jpg")]
    await asyncio.gather(*(check_picture(rig, tmp_path, *case) for case in cases))


async def check_picture(rig: ServiceRig, tmp_path: Path, kind: str, chosen: str, extension: str) -> None:
    target = tmp_path / f"target.{kind}"
    Image.open(ASTRONAUT).convert("RGB").save(target, quality=95)
    status, result = await make(rig, target, tmp_path, **({"format": chosen} if chosen else {}))
    assert (status["media"], result.suffix, status["options"]["format"]) == ("image", f".{extension}", extension)
    made, shown = read_image(result).astype(int), read_image(target).astype(int)
    assert np.abs(made[PAINTED] - (255 - shown[PAINTED])).mean() < 3
    made[PAINTED] = shown[PAINTED]
    assert np.abs(made - shown).mean() < (0.01 if (kind, extension) in (("png", "png"), ("bmp", "png")) else 2)
    tag = read_tag(result)
    assert tag is not None and tag.prompt_id == status["prompt_id"]
    async with rig.client.get(status["result"]) as response:
        assert response.content_type == {"jpg": "image/jpeg"}.get(extension, f"image/{extension}")
    messages = await rig.messages(status["prompt_id"])
    assert messages[-1] == "🎉 Face swap completed successfully!"


async def test_a_picture_that_lies_on_its_side_is_made_upright(rig: ServiceRig, tmp_path: Path) -> None:
    upright = Image.open(GRACE_HOPPER).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to show it
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "side.jpg", exif=exif, quality=95)
    _, result = await make(rig, tmp_path / "side.jpg", tmp_path, format="png")
    with Image.open(result) as made:
        assert made.size == upright.size
        assert made.getexif().get(0x0112, 1) == 1
    corner = np.asarray(upright)[:80, :80, ::-1].astype(int)
    assert np.abs(read_image(result)[:80, :80].astype(int) - corner).mean() < 5


async def test_a_result_is_another_kind_of_file(rig: ServiceRig, clip: Path, tmp_path: Path) -> None:
    for kind, content_type in (("webm", "video/webm"), ("gif", "image/gif")):
        status, result = await make(rig, clip, tmp_path, format=kind, end=1)
        assert result.suffix == f".{kind}"
        assert clips.read_numbers(result) == list(range(24))
        assert status["sha256"] == hashlib.sha256(result.read_bytes()).hexdigest()
        async with rig.client.head(status["result"]) as response:
            assert response.content_type == content_type


async def test_the_extension_of_a_name_is_not_doubled(rig: ServiceRig, clip: Path) -> None:
    async def name(output_name: str, **options: Any) -> str:
        form = aiohttp.FormData()
        form.add_field("video", clip.read_bytes(), filename="clip.mp4")
        form.add_field("image", samples.FACE.read_bytes(), filename="face.png")
        form.add_field("output_name", output_name)
        form.add_field("options", json.dumps(options))
        form.add_field("return_prompt_id_only", "true")
        async with rig.client.post("/face-swap", data=form) as response:
            assert response.status == 200
            prompt_id = (await response.json())["prompt_id"]
        return Path((await rig.ended(prompt_id))["result"]).name

    assert await name("clip.mp4", end=0.2) == "clip.mp4"
    assert await name("clip.mp4", end=0.2) == "clip-2.mp4"
    assert await name("clip.mov", end=0.2) == "clip.mov.mp4"
    assert await name("shot.JPEG", at=1, format="jpg") == "shot.jpg"


async def test_what_cannot_be_made_is_refused(rig: ServiceRig, clip: Path, tmp_path: Path) -> None:
    long = clips.make_clip(tmp_path / "long.mp4", 62, rate=Fraction(1))
    for video, code, options in (
        (clip, "empty_range", {"start": 2.5}),
        (clip, "empty_range", {"start": 40, "end": 50}),
        (clip, "invalid_option", {"format": "png"}),
        (clip, "invalid_option", {"at": 1, "format": "mp4"}),
        (long, "video_too_long", {"format": "gif"}),
        (ASTRONAUT, "invalid_option", {"start": 1}),
        (ASTRONAUT, "invalid_option", {"at": 1}),
        (ASTRONAUT, "invalid_option", {"frame_rate": 24}),
        (ASTRONAUT, "invalid_option", {"format": "mp4"}),
    ):
        answer = await refused(rig, video, **options)
        assert answer["code"] == code, (options, answer)
    assert (await rig.ended(await rig.post(long, format="gif", end=59)))["status"] == "SUCCESS"


async def test_a_picture_in_which_nothing_was_changed_is_no_result(tmp_path: Path, clip: Path) -> None:
    async with service_and_engines(tmp_path, unswapped=True, streams=False) as (rig, engines):
        prompt_id = await rig.post(ASTRONAUT)
        status = await rig.ended(prompt_id)
        assert (status["status"], status["code"]) == ("FAILED", "no_face_detected")
        async with rig.client.delete(f"/jobs/{prompt_id}") as response:
            assert response.status == 204
        made = engines[0].folder / "output" / prompt_id / "00000-1_00001_.png"

        async def emptied() -> bool:
            return await asyncio.to_thread(lambda: made.stat().st_size == 0)

        await eventually(emptied)
        engines[0].set_faults(black_frame=True)
        assert (await rig.ended(await rig.post(clip, at=1)))["code"] == "content_filtered"


@pytest.mark.parametrize(
    ("frames", "most", "engines", "length"),
    [
        (2400, 240, 1, 240),
        (2400, 0, 8, 0),  # never split
        (2400, 240, 8, 150),  # two for each
        (2400, 240, 4, 200),
        (150, 240, 2, 75),
        (150, 240, 8, 60),  # shorter ones are not worth it
        (40, 240, 8, 60),
        (1_000_000, 240, 8, 240),
        (24, 6, 2, 6),
        (0, 240, 2, 60),
    ],
)
def test_segments_are_of_a_length_by_which_all_engines_are_done_together(
    frames: int, most: int, engines: int, length: int
) -> None:
    assert segment_length(frames, most, engines) == length
