"""The engine's pictures and sound: every frame in its place, every packet as it was."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import aiohttp
import av
import cv2
import numpy as np
import pytest
from clips import (
    frame_times,
    make_clip,
    numbered,
    read_number,
    read_numbers,
    sound_packets,
    with_edit_list,
    with_lying_header,
)
from engine_rig import FACE, PACKAGE, Rig, engine, workflow
from media_samples import ASTRONAUT, read_image
from numpy.typing import NDArray

from faceswap.engine import streams
from faceswap.engine.clip import Clip, Selection, probe
from faceswap.engine.faults import Faults
from faceswap.engine.folders import Folders
from faceswap.engine.frames import Colour, Frame, Picture, split_planes
from faceswap.engine.nodes import NodeContext, load_video, video_info
from faceswap.engine.pixels import Area, Bitmap, Pixels, in_blocks
from faceswap.engine.streams import SwappedClip
from faceswap.engine.swap import find_faces
from faceswap.engine.video import Frames, Swap, SwapCount, as_rate, prefetch, swap_frames
from faceswap.marks import EXTRA_DATA, Marks

NTSC = Fraction(30000, 1001)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with engine(tmp_path) as rig:
        yield rig


async def swapped(rig: Rig, clip: Path, **inputs: Any) -> Path:
    """Run the workflow on a clip at its own rate, with a square painted in place of a face."""
    await rig.upload(clip, "in" + clip.suffix, overwrite="true")
    return await rig.swap(workflow("in" + clip.suffix, **{"force_rate": 0, **inputs}), os.urandom(4).hex())


def rate_of(path: Path) -> Fraction:
    with av.open(path) as container:
        rate = container.streams.video[0].average_rate
        assert rate is not None
        return rate


def size_of(path: Path) -> tuple[int, int]:
    with av.open(path) as container:
        return container.streams.video[0].width, container.streams.video[0].height


KINDS: dict[str, dict[str, Any]] = {
    "25 frames a second": {"rate": Fraction(25)},
    "29.97 frames a second": {"rate": NTSC},
    "long groups with B-frames": {"b_frames": 4, "gop": 60, "frames": 60},
    "no sound": {"sounds": []},
    "odd size": {"size": (129, 97), "pix_fmt": "yuv444p"},
    "10 bits": {"pix_fmt": "yuv420p10le"},
    "a start after zero": {"video_start": 5},
    "one frame": {"frames": 1},
}


@pytest.mark.parametrize("kind", KINDS)
async def test_every_frame_comes_through_once_and_in_order(rig: Rig, tmp_path: Path, kind: str) -> None:
    options = {"frames": 30, "sounds": ["aac"], **KINDS[kind]}
    clip = make_clip(tmp_path / "made.mp4", **options)
    out = await swapped(rig, clip)
    assert read_numbers(out) == list(range(options["frames"]))
    assert rate_of(out) == options.get("rate", 24)
    assert frame_times(out)[0] == 0
    width, height = options.get("size", (128, 96))
    assert size_of(out) == (width + width % 2, height + height % 2)
    assert out.name.endswith("-audio.mp4" if options["sounds"] else "_00001.mp4")


async def test_a_variable_rate_becomes_its_average(rig: Rig, tmp_path: Path) -> None:
    times = list(itertools.accumulate([40, 40, 80, 20, 120] * 6, initial=0))[:30]
    clip = make_clip(tmp_path / "vfr.mp4", 30, times=times, time_base=Fraction(1, 1000))
    out = await swapped(rig, clip)
    assert read_numbers(out) == list(range(30))
    steps = np.diff(frame_times(out))
    assert np.allclose(steps, steps[0], atol=1e-4)
    assert frame_times(out)[-1] == pytest.approx(frame_times(clip)[-1], rel=0.1)


@pytest.mark.parametrize("rotation", [90, 180, 270])
async def test_a_turned_clip_comes_out_as_it_is_shown(rig: Rig, tmp_path: Path, rotation: int) -> None:
    clip = make_clip(tmp_path / "turned.mp4", 5, rotation=rotation)
    out = await swapped(rig, clip, crf=1)
    with av.open(out) as container:
        ours = next(container.decode(video=0)).to_ndarray(format="bgr24")
    capture = cv2.VideoCapture(str(clip))
    _, shown = capture.read()
    capture.release()
    assert ours.shape == shown.shape
    untouched = np.s_[: shown.shape[0] * 3 // 8]
    assert np.abs(ours[untouched].astype(int) - shown[untouched]).mean() < 2


async def test_an_edit_list_is_followed(rig: Rig, tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "whole.mp4", 24)
    cut = with_edit_list(whole, tmp_path / "cut.mp4", skipped=6 * 512, shown=500)
    assert read_numbers(await swapped(rig, cut)) == read_numbers(cut)


def test_a_forced_rate_that_gives_too_many_frames_is_refused_before_they_are_counted(tmp_path: Path) -> None:
    ticks = {"video_track_timescale": "1"}
    times = [0, 10_000_000, 20_000_000]
    path = make_clip(tmp_path / "gaps.mp4", 3, times=times, time_base=Fraction(1), b_frames=0, options=ticks)
    with pytest.raises(ValueError, match="more than 1000000 frames"):
        _ = Clip(probe(path), Selection(force_rate=Fraction(60))).count
    assert Clip(probe(path), Selection()).count <= 3


def test_a_video_with_too_many_frames_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faceswap.engine.clip.MAX_FRAMES", 23)
    with pytest.raises(ValueError, match="more than 23 frames"):
        probe(make_clip(tmp_path / "long.mp4", 24))
    assert probe(make_clip(tmp_path / "short.mp4", 23)).count == 23


def test_a_header_that_lies_is_not_believed(tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "whole.mp4", 24)
    video = probe(with_lying_header(whole, tmp_path / "lying.mp4"))
    assert (video.count, video.rate) == (24, 24)


async def test_a_damaged_packet_is_passed_over(rig: Rig, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "damaged.mp4", 48, b_frames=0, gop=8)
    data = bytearray(clip.read_bytes())
    with av.open(clip) as container:
        packet = [p for p in container.demux(video=0) if p.size][20]
        assert packet.pos is not None
        data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    clip.write_bytes(data)
    numbers = read_numbers(await swapped(rig, clip))
    assert numbers[:20] == list(range(20))
    assert numbers[-8:] == list(range(40, 48))


@pytest.mark.parametrize("codec", ["aac", "libmp3lame", "ac3"])
async def test_sound_is_copied_packet_by_packet(rig: Rig, tmp_path: Path, codec: str) -> None:
    clip = make_clip(tmp_path / "sound.mp4", 40, sounds=[codec])
    ours, theirs = (sound_packets(path)[0] for path in (await swapped(rig, clip), clip))
    assert [data for data, _ in ours] == [data for data, _ in theirs]
    assert [at for _, at in ours] == pytest.approx([at for _, at in theirs], abs=1e-4)


async def test_sound_that_mp4_cannot_hold_becomes_aac(rig: Rig, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "sound.mkv", 48, sounds=["pcm_s16le"])
    with av.open(await swapped(rig, clip)) as container:
        stream = container.streams.audio[0]
        assert stream.codec_context.name == "aac"
        assert stream.duration is not None and stream.time_base is not None
        assert float(stream.duration * stream.time_base) == pytest.approx(2, abs=0.05)


async def test_segments_put_together_are_the_whole(rig: Rig, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "long.mp4", 60, rate=Fraction(25), sounds=["aac"], gop=12)
    parts = [
        await swapped(rig, clip, skip_first_frames=skip, frame_load_cap=cap)
        for skip, cap in ((0, 25), (25, 25), (50, 10))
    ]
    assert [number for part in parts for number in read_numbers(part)] == list(range(60))
    packets = [data for part in parts for data, _ in sound_packets(part)[0]]
    assert packets == [data for data, _ in sound_packets(clip)[0]]
    for part in parts[1:]:
        assert 0 <= sound_packets(part)[0][0][1] < 0.03


@pytest.mark.parametrize(
    ("selection", "most", "numbers"),
    [
        (Selection(skip=20, cap=3), 8, range(12, 23)),
        (Selection(skip=3, cap=3), 8, range(6)),
        (Selection(cap=3), 8, range(3)),
        (Selection(skip=5, step=2, cap=3), 8, range(1, 10, 2)),
        (Selection(skip=20), 2, range(18, 30)),
        (Selection(skip=8, groups=(4, 1)), 2, range(6, 29)),
        (Selection(cap=3, groups=(8, 5)), 8, range(0)),
    ],
)
def test_a_clip_begins_earlier_where_frames_come_before_it(
    selection: Selection, most: int, numbers: range, tmp_path: Path
) -> None:
    clip = Clip(probe(make_clip(tmp_path / "clip.mp4", 30)), selection)
    earlier, lead = clip.led_in(most)
    found = [read_number(split_planes(frame.planes)[0]) for frame in earlier]
    assert found == list(numbers)
    assert len(found) - lead == clip.count == len(list(clip))


class Witness:
    """A swap that remembers which frames of a numbered clip it has seen, and changes every other one."""

    lookahead = 2

    def __init__(self) -> None:
        self.seen = list[int]()

    def track(self, frame: Pixels) -> int:
        self.seen.append(read_number(split_planes(frame.planes)[0]))
        return self.seen[-1]

    def finish(self) -> None:
        pass

    def apply(self, frame: Pixels, tracks: int) -> int:
        return tracks % 2


def test_frames_before_a_clip_are_seen_by_its_swap_and_are_no_part_of_it(tmp_path: Path) -> None:
    clip = Clip(probe(make_clip(tmp_path / "clip.mp4", 30)), Selection(skip=20, cap=5))
    witness, count = Witness(), SwapCount()
    shown = SwappedClip(clip, lambda: witness, count, {}, lead=8)
    assert [read_number(split_planes(frame.planes)[0]) for frame in shown] == list(range(20, 25))
    assert witness.seen == list(range(12, 25))
    assert (shown.count, count.frames, count.swapped) == (5, 5, 2)


@pytest.mark.parametrize(("first_frame", "lead"), [(None, 0), (0, 0), (3, 3), (12, 8)])
async def test_a_segment_begins_with_what_its_swap_knows_of_the_job_before_it(
    first_frame: int | None, lead: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leads = list[int]()

    def watched(frames: Frames, swap: Swap, count: SwapCount, lead: int) -> Generator[Frame]:
        leads.append(lead)
        return swap_frames(frames, swap, count, lead)

    monkeypatch.setattr(streams, "swap_frames", watched)
    clip = make_clip(tmp_path / "clip.mp4", 24)
    async with engine(tmp_path / "engine", Faults()) as rig:
        await rig.upload(clip)
        extra = {} if first_frame is None else {EXTRA_DATA: Marks(bytes(8), first_frame).to_json()}
        graph = workflow(clip.name, skip_first_frames=12, frame_load_cap=6)
        await rig.submit(graph, "p", extra_data=extra)
        await rig.ended("p")
    assert leads == [lead]


def vhs_frames(count: int, fps: float, force_rate: float) -> list[int]:
    """Return the source frames that VideoHelperSuite 1.7.9 (`cv_frame_generator`) gives for a forced rate."""
    base, target = 1 / fps, 1 / force_rate
    offset, source, chosen = target, 0, []
    while True:
        if offset < target:
            source += 1
            if source >= count:
                return chosen
            offset += base
        if offset < target:
            continue
        offset -= target
        chosen.append(source)


@pytest.mark.parametrize(
    ("fps", "forced"), [(30, 24), (10, 24), (24, 12), (25, 25), (50, 7), (30, 29.97), (25, 10), (24, 60), (60, 50)]
)
def test_a_forced_rate_drops_and_repeats_frames_as_videohelpersuite_does(
    tmp_path: Path, fps: int, forced: float
) -> None:
    clip = make_clip(tmp_path / "made.mp4", 50, rate=Fraction(fps))
    chosen = Clip(probe(clip), Selection(force_rate=as_rate(forced)))
    numbers = [read_number(split_planes(frame.planes)[0]) for frame in chosen]
    assert len(numbers) == chosen.count
    assert numbers == vhs_frames(50, fps, forced)
    assert chosen.rate == as_rate(forced)


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({"skip": 7, "cap": 5}, list(range(7, 12))),
        ({"step": 4}, list(range(0, 60, 4))),
        ({"skip": 3, "step": 2, "cap": 4}, [3, 5, 7, 9]),
        ({"force_rate": Fraction(12), "skip": 5, "cap": 3}, [10, 12, 14]),
        ({"skip": 58, "cap": 10}, [58, 59]),
        ({"skip": 60}, []),
        ({"groups": (8, 1)}, list(range(57))),
    ],
)
def test_frames_are_selected_as_asked(tmp_path: Path, selection: dict[str, Any], expected: list[int]) -> None:
    clip = Clip(probe(make_clip(tmp_path / "made.mp4", 60)), Selection(**selection))
    assert [read_number(split_planes(frame.planes)[0]) for frame in clip] == expected
    assert clip.count == len(expected)


@pytest.mark.parametrize("b_frames", [0, 3])
def test_any_frame_can_be_the_first(tmp_path: Path, b_frames: int) -> None:
    video = probe(make_clip(tmp_path / "made.mp4", 40, gop=10, b_frames=b_frames))
    for skip in range(0, 40, 3):
        first = next(iter(Clip(video, Selection(skip=skip))))
        assert read_number(split_planes(first.planes)[0]) == skip


@pytest.mark.parametrize(
    ("wanted", "size"),
    [((64, 0), (64, 48)), ((0, 48), (64, 48)), ((200, 0), (200, 150)), ((64, 64), (64, 64)), ((0, 0), (128, 96))],
)
def test_a_clip_is_scaled_and_keeps_its_shape(tmp_path: Path, wanted: tuple[int, int], size: tuple[int, int]) -> None:
    clip = make_clip(tmp_path / "made.mp4", 3, draw=_with_disc)
    chosen = Clip(probe(clip), Selection(width=wanted[0], height=wanted[1]))
    assert chosen.size == size
    frame = next(iter(chosen))
    assert frame.size == size
    disc = split_planes(frame.planes)[0] > 128
    rows, columns = np.flatnonzero(disc.any(axis=1)), np.flatnonzero(disc.any(axis=0))
    assert abs(np.ptp(rows) - np.ptp(columns)) <= 2
    assert abs(rows.mean() * 2 + 1 - size[1]) <= 2 and abs(columns.mean() * 2 + 1 - size[0]) <= 2


def _with_disc(_: int, width: int, height: int) -> NDArray[np.uint8]:
    picture = np.zeros((height, width, 3), np.uint8)
    cv2.circle(picture, (width // 2, height // 2), 30, (255, 255, 255), -1)
    return picture


def test_the_facts_of_a_video_are_those_of_videohelpersuite(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    make_clip(tmp_path / "input" / "made.mp4", 60, rate=Fraction(30))
    bars: list[int] = []
    context = NodeContext(
        folders, Faults(), "veryfast", None, (), threading.Event(), None, lambda value, *_: bars.append(value)
    )
    inputs = {
        "video": "made.mp4",
        "force_rate": 20.0,
        "custom_width": 64,
        "custom_height": 0,
        "frame_load_cap": 10,
        "skip_first_frames": 2,
        "select_every_nth": 2,
    }
    loaded = load_video(context, inputs)
    facts = video_info(context, {"video_info": loaded.values[3]}).values
    assert facts == (30.0, 60, 2.0, 128, 96, 10.0, 10, 1.0, 64, 48)
    assert loaded.values[1] == 10 and bars == list(range(1, 11))


@pytest.mark.parametrize(("matrix", "full"), [(1, False), (5, False), (1, True), (9, False)])
async def test_what_is_not_swapped_keeps_its_exact_colours(rig: Rig, tmp_path: Path, matrix: int, full: bool) -> None:
    clip = tmp_path / "colours.mp4"
    with av.open(clip, "w") as output:
        stream = output.add_stream("libx264", rate=24, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        colour = Colour(matrix, 2 if full else 1, matrix, matrix)
        context = stream.codec_context
        context.color_range, context.colorspace = colour.range, colour.matrix
        context.color_primaries, context.color_trc = colour.primaries, colour.transfer
        planes = np.random.default_rng(0).integers(0, 255, (9, 8), np.uint8).repeat(16, 0).repeat(16, 1)
        for _ in range(3):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(planes, "yuv420p")))
        output.mux(stream.encode(None))
    out = await swapped(rig, clip, crf=1)
    with av.open(out) as ours, av.open(clip) as theirs:
        mine, original = next(ours.decode(video=0)), next(theirs.decode(video=0))
        for name in ("colorspace", "color_range", "color_primaries", "color_trc"):
            assert getattr(mine, name) == getattr(original, name)
        difference = np.abs(mine.to_ndarray().astype(int) - original.to_ndarray())
    assert difference[:32].mean() < 0.5
    assert difference[40:56, 52:76].mean() > 20


COLOURS = [Colour(), *(Colour(matrix, full) for matrix in (1, 5, 7, 9) for full in (1, 2))]


@pytest.mark.parametrize("colour", COLOURS, ids=str)
def test_a_picture_has_the_colours_that_ffmpeg_gives_it(colour: Colour) -> None:
    planes = np.random.default_rng(0).integers(0, 256, (60, 48), np.uint8)
    theirs = av.VideoFrame.from_ndarray(planes, "yuv420p").reformat(
        format="bgr24", src_colorspace=colour.known_matrix, src_color_range=colour.range or 1
    )
    difference = Frame(planes, colour).to_bgr().astype(int) - theirs.to_ndarray()
    assert np.abs(difference).max() <= 3  # theirs is of whole numbers
    assert np.abs(difference.mean(axis=(0, 1))).max() < 1.5


@pytest.mark.parametrize("angle", [0.0, 0.4])
def test_a_turned_square_of_a_frame_shows_what_its_picture_does(angle: float) -> None:
    frame = Frame.from_bgr(read_image(ASTRONAUT))
    c, s = 1.2 * np.cos(angle), 1.2 * np.sin(angle)
    matrix = np.array([[c, -s, 120.3], [s, c, 20.7]])
    own, whole = (pixels.warped(matrix, 128).astype(int) for pixels in (frame, Bitmap(frame.to_bgr())))
    assert np.abs(own - whole).mean() < 1.5
    assert np.abs((own - whole).mean(axis=(0, 1))).max() < 0.5
    # half a pixel of the colours' planes aside would be more
    shifted = Bitmap(np.roll(frame.to_bgr(), 1, axis=1)).warped(matrix, 128).astype(int)
    assert np.abs(own - whole).mean() < 0.5 * np.abs(shifted - whole).mean()


@pytest.mark.parametrize(
    ("area", "side", "blocks"),
    [((0, 0, 64, 32), 8, (0, 0, 64, 32)), ((3, 5, 70, 41), 8, (4, 6, 68, 38)), ((3, 5, 9, 41), 8, (3, 5, 9, 41))],
)
def test_a_part_is_cut_down_to_whole_blocks(area: Area, side: int, blocks: Area) -> None:
    assert in_blocks(area, side) == blocks


@pytest.mark.parametrize("colour", [Colour(), Colour(1, 1), Colour(1, 2), Colour(9, 1)])
def test_a_change_reaches_the_planes_in_the_colours_it_was_made_in(colour: Colour) -> None:
    grey = np.full((96 * 3 // 2, 128), 128, np.uint8)
    grey[:96] = 90
    frame = Frame(grey.copy(), colour)
    with frame.painted((25, 7, 99, 41)) as part:
        part[13:33, 6:52] = (30, 90, 200)
    assert np.abs(frame.to_bgr()[24:36, 40:70].astype(int) - (30, 90, 200)).max() <= 4
    changed = np.argwhere(frame.planes[:96] != grey[:96])
    assert changed.min(axis=0).tolist() == [20, 31] and changed.max(axis=0).tolist() == [39, 76]


async def test_an_output_can_be_played_while_it_loads(rig: Rig, tmp_path: Path) -> None:
    data = (await swapped(rig, make_clip(tmp_path / "made.mp4", 10, sounds=["aac"]))).read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat")


async def test_crf_sets_the_quality(rig: Rig, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "made.mp4", 24)
    fine, coarse = [(await swapped(rig, clip, crf=crf)).stat().st_size for crf in (5, 45)]
    assert fine > 2 * coarse


@pytest.mark.parametrize("inputs", [{"crf": 999}, {"pingpong": True}, {"pix_fmt": "yuv444p"}])
async def test_what_cannot_be_done_is_an_error_not_a_missing_file(rig: Rig, inputs: dict[str, Any]) -> None:
    await rig.submit(workflow(**inputs), "p")
    assert (await rig.ended("p"))["status"]["messages"][-1][0] == "execution_error"


async def test_a_disabled_swap_passes_the_frames_through(rig: Rig, tmp_path: Path) -> None:
    graph = workflow(force_rate=0)
    graph["3"]["inputs"]["enabled"] = False
    out = await rig.swap(graph)
    assert read_numbers(out) == list(range(24))
    with av.open(out) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.abs(picture.astype(int) - numbered(0)).mean() < 5


async def test_two_swaps_in_a_row_are_done_as_one(rig: Rig) -> None:
    graph = workflow(force_rate=0)
    graph["13"] = {**graph["3"], "inputs": {**graph["3"]["inputs"], "input_image": ["3", 0]}}
    graph["9"]["inputs"]["images"] = ["13", 0]
    with av.open(await rig.swap(graph)) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    square = (slice(40, 56), slice(52, 76))
    assert np.abs(picture[square].astype(int) - (255 - numbered(0)[square])).mean() < 10  # inverted once, not twice
    (entry,) = (await rig.get("/history")).values()
    assert (entry["faceswap"]["13"]["frames"], entry["faceswap"]["13"]["swapped"]) == (24, 24)


def _portrait(number: int, width: int, height: int) -> NDArray[np.uint8]:
    """Draw a sample that moves a pixel a frame."""
    photo = cv2.imread(str(PACKAGE / "samples" / "grace_hopper.jpg"), cv2.IMREAD_COLOR_RGB)
    scaled = cv2.resize(photo, (width + 16, (width + 16) * photo.shape[0] // photo.shape[1]))
    return np.ascontiguousarray(scaled[number : number + height, number : number + width], np.uint8)


def pictures(path: Path) -> NDArray[np.int16]:
    with av.open(path) as container:
        return np.stack([f.to_ndarray(format="bgr24") for f in container.decode(video=0)]).astype(np.int16)


async def test_the_swap_changes_the_face_and_leaves_the_rest(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "portrait.mp4", 12, size=(256, 256), draw=_portrait)
    async with engine(tmp_path, Faults()) as rig:
        swap = pictures(await swapped(rig, clip, crf=10))
        await rig.post("/faults", {"unswapped": True})
        plain = pictures(await swapped(rig, clip, crf=10))
        told = [entry["faceswap"]["3"] for entry in (await rig.get("/history")).values()]
    assert [(swap["frames"], swap["swapped"]) for swap in told] == [(12, 12), (12, 0)]
    (face, *_) = find_faces(plain[0].astype(np.uint8))
    left, top, right, bottom = map(int, face.box)
    assert np.abs(swap[:, top:bottom, left:right] - plain[:, top:bottom, left:right]).mean() > 5
    below = bottom + (bottom - top) // 3
    assert below < 230
    assert np.abs(swap[:, below:] - plain[:, below:]).mean() < 1


async def test_the_history_tells_in_how_many_frames_a_face_was_swapped(tmp_path: Path) -> None:
    def half(number: int, width: int, height: int) -> NDArray[np.uint8]:
        return _portrait(number, width, height) if number < 8 else numbered(number, width, height)

    clip = make_clip(tmp_path / "half.mp4", 16, size=(256, 256), draw=half)
    async with engine(tmp_path, None) as rig:
        await swapped(rig, clip)
        (entry,) = (await rig.get("/history")).values()
    assert entry["faceswap"]["3"]["frames"] == 16
    assert 6 <= entry["faceswap"]["3"]["swapped"] <= 10


async def test_a_source_without_a_face_leaves_the_frames_as_they_are(tmp_path: Path) -> None:
    async with engine(tmp_path, None) as rig:
        cv2.imwrite(str(tmp_path / "none.png"), np.full((200, 200, 3), 128, np.uint8))
        await rig.upload(tmp_path / "none.png")
        out = await rig.swap(workflow(image="none.png", force_rate=0))
    assert read_numbers(out) == list(range(24))
    assert np.abs(pictures(out)[0][:, :, ::-1] - numbered(0)).mean() < 5


def test_a_thread_ahead_stops_with_its_reader_and_passes_errors_on() -> None:
    made: list[int] = []
    closed = threading.Event()

    def numbers() -> Iterator[int]:
        try:
            for number in itertools.count():
                made.append(number)
                yield number
        finally:
            closed.set()

    reader = prefetch(numbers(), depth=3)
    assert [next(reader), next(reader)] == [0, 1]
    reader.close()
    assert closed.is_set() and len(made) <= 6

    def failing() -> Iterator[int]:
        yield 1
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        list(prefetch(failing()))


async def test_memory_does_not_depend_on_the_length_of_a_video(tmp_path: Path) -> None:
    short, long = (make_clip(tmp_path / f"{n}.mp4", n, size=(256, 256), b_frames=0, draw=_plain) for n in (300, 1500))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "faceswap.engine", "--no-token", "--port", "0", "--data-dir", str(tmp_path / "data")),
        *("--preset", "ultrafast", "--faults", '{"paint": true}'),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        base = (await process.stdout.readline()).decode().split()[-1]
        async with aiohttp.ClientSession(base) as session:
            rig = Rig(_Remote(session), tmp_path / "data")  # type: ignore[arg-type]  # the few calls Rig makes
            await rig.upload(FACE, "face.png")
            peaks = []
            for clip in (short, long):
                await rig.upload(clip)
                await rig.swap(workflow(clip.name, force_rate=0), clip.stem)
                peaks.append(_peak_memory(process.pid))
    finally:
        process.terminate()
        await process.wait()
    assert peaks[1] - peaks[0] < 30 << 20


def _plain(number: int, width: int, height: int) -> NDArray[np.uint8]:
    return np.full((height, width, 3), number % 256, np.uint8)


class _Remote:
    """A session as the rig's client."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.get, self.post = session.get, session.post


def _peak_memory(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


class RecordedSwap:
    """A swap that changes nothing and keeps which frame was tracked or applied when; frames are told by their grey.

    After the last one -1 is kept.
    """

    lookahead = 3

    def __init__(self) -> None:
        self.tracked: list[int] = []
        self.applied: list[tuple[int, int]] = []

    def track(self, frame: Pixels) -> int:
        self.tracked.append(grey_of(frame))
        return self.tracked[-1]

    def finish(self) -> None:
        self.tracked.append(-1)

    def apply(self, frame: Pixels, tracks: int) -> int:
        assert tracks == grey_of(frame)
        self.applied.append((tracks, len(self.tracked)))
        return 0


def grey_of(frame: Pixels) -> int:
    return int(frame.part((0, 0, 2, 2))[0, 0, 0])


def test_frames_are_held_back_until_their_tracks_are_final() -> None:
    class Greys(Picture):
        def __iter__(self) -> Generator[Frame]:
            yield from (Frame.from_bgr(np.full((32, 32, 3), 16 + number, np.uint8)) for number in range(8))

    swap = RecordedSwap()
    frames = list(swap_frames(Greys(np.zeros((32, 32, 3), np.uint8), count=8), swap, SwapCount()))
    assert len(frames) == 8
    assert swap.tracked == [*(number for number, _ in swap.applied), -1]
    assert all(tracked >= min(9, number + 1 + swap.lookahead) for number, (_, tracked) in enumerate(swap.applied))
