"""A piece of a video holds the very frames that were asked for, whatever the video, and costs its own length."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from clips import Picture, frame_times, make_clip, numbered, read_numbers, with_edit_list
from waiting import WAIT_S

from faceswap.errors import JobFailure
from faceswap.media.cut import LONGEST_GROUP, check_cuttable, cut, prepare
from faceswap.media.timeline import read_timeline

FRAMES = 60
UNEVEN = {"times": [i * 4 + (i % 3) for i in range(FRAMES)], "time_base": Fraction(1, 100)}
SOURCES: dict[str, dict[str, Any]] = {
    "plain.mp4": {"sounds": ["aac"]},
    "b-frames.mp4": {"b_frames": 4, "gop": 25},
    "one-key-frame.mkv": {"gop": 250},
    "late.mp4": {"video_start": 12, "sounds": ["aac"]},
    "uneven.mp4": UNEVEN,
    "vp9.webm": {"codec": "libvpx-vp9", "sounds": ["libopus"]},
    "turned.mp4": {"rotation": 180, "draw": lambda *size: numbered(*size)[::-1, ::-1].copy()},
}
PARTS = [(0, 20), (20, 20), (31, 7), (53, 7), (0, FRAMES)]


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize(("first", "count"), PARTS)
def test_a_piece_holds_the_frames_after_its_lead(name: str, first: int, count: int, tmp_path: Path) -> None:
    source = make_clip(tmp_path / name, FRAMES, **SOURCES[name])
    lead = cut(source, tmp_path / "piece", first, count, None, None).lead
    numbers = read_numbers(tmp_path / "piece")
    assert numbers[lead : lead + count] == read_numbers(source)[first : first + count]


def test_what_is_copied_is_copied_bit_by_bit(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "clip.mp4", FRAMES, sounds=["aac"])
    assert cut(source, tmp_path / "piece", 30, 10, None, None).suffix == ".mp4"
    assert set(packets(tmp_path / "piece")) < set(packets(source))


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def edited(folder: Path) -> Path:
    whole = make_clip(folder / "whole.mp4", FRAMES, gop=20)
    return with_edit_list(whole, folder / "edited.mp4", skipped=5 * 512, shown=2000)


def one_group(folder: Path) -> Path:
    return make_clip(folder / "one-group.mp4", LONGEST_GROUP + 60, gop=1000, b_frames=0)


AWKWARD: dict[str, Callable[[Path], Path]] = {
    "no times": lambda folder: make_clip(folder / "no-times.avi", FRAMES, codec="mpeg4"),
    "an edit list": edited,
    "one group": one_group,
    "no index": lambda folder: make_clip(folder / "no-index.ts", LONGEST_GROUP + 60, gop=25),
    "uneven": lambda folder: make_clip(folder / "uneven.mkv", FRAMES, **UNEVEN),
    "long": lambda folder: make_clip(folder / "long.mp4", LONGEST_GROUP + 60, gop=50),
}


@pytest.mark.parametrize("rate", [None, Fraction(10), Fraction(60)])
@pytest.mark.parametrize("kind", AWKWARD)
def test_pieces_of_any_video_at_any_rate_together_are_the_whole(
    kind: str, rate: Fraction | None, tmp_path: Path
) -> None:
    source = AWKWARD[kind](tmp_path)
    shown, timeline = read_numbers(source), read_timeline(source)
    total = round(timeline.duration * rate) if rate else len(shown)
    wanted = [shown[index] for index in timeline.shown(rate, 0, total)]
    assert check_cuttable(source).cuttable == (kind not in ("no times", "one group"))
    if not check_cuttable(source).cuttable or kind == "no index":  # as `inputs` does after an inexact cut
        prepare(source, tmp_path / "prepared.mp4", total, rate)
        source, rate = tmp_path / "prepared.mp4", None
    numbers = []
    for first in range(0, total, 47):
        count = min(47, total - first)
        lead = cut(source, tmp_path / "piece", first, count, rate, None).lead
        numbers += read_numbers(tmp_path / "piece")[lead : lead + count]
    assert numbers == wanted


def test_a_rate_that_was_asked_for_shows_each_picture_within_half_a_frame_of_its_time(tmp_path: Path) -> None:
    """Cut a clip that is slow, then quick, then pauses: by its average rate pictures would be a second off."""
    steps = [20] * 20 + [2] * 50 + [150] + [4] * 30
    times = [sum(steps[:i]) for i in range(len(steps))]
    source = make_clip(tmp_path / "uneven.mp4", len(times), times=times, time_base=Fraction(1, 100))
    ends = [*frame_times(source)[1:], float(read_timeline(source).duration)]
    for rate in (Fraction(5), Fraction(24), Fraction(30000, 1001), Fraction(60)):
        total = round(read_timeline(source).duration * rate)
        cut(source, tmp_path / "piece", 0, total, rate, None)
        shown = read_numbers(tmp_path / "piece")
        assert len(shown) == total
        half = float(1 / rate) / 2
        for i, number in enumerate(shown):
            now = i / float(rate)
            assert times[number] / 100 - half < now < ends[number] + half, (rate, i, number)


def test_a_cut_that_would_have_to_decode_from_the_start_is_refused(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "no-times.avi", LONGEST_GROUP + 10, codec="mpeg4")
    cut(source, tmp_path / "piece", LONGEST_GROUP - 10, 10, None, None)
    with pytest.raises(JobFailure) as failure:
        cut(source, tmp_path / "piece", LONGEST_GROUP, 10, None, None)
    assert failure.value.code == "cut_inexact"


def test_a_copy_that_would_show_other_frames_is_none(tmp_path: Path) -> None:
    source = edited(tmp_path)
    facts = cut(source, tmp_path / "piece", 3, 5, None, None)
    assert (facts.lead, facts.suffix) == (0, ".mp4")
    assert read_numbers(tmp_path / "piece") == read_numbers(source)[3:8]


def test_a_piece_that_is_too_large_for_its_lead_comes_without(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "clip.mp4", FRAMES, gop=1000)
    with_lead = cut(source, tmp_path / "piece", 50, 1, None, None)
    size = (tmp_path / "piece").stat().st_size
    without = cut(source, tmp_path / "piece", 50, 1, None, size - 1)
    assert (with_lead.lead, without.lead) == (50, 0)
    assert (tmp_path / "piece").stat().st_size < size
    assert read_numbers(tmp_path / "piece") == [50]


KINDS: dict[str, dict[str, Any]] = {
    "turned.mp4": {"rotation": 90},
    "odd.mp4": {"size": (131, 97), "pix_fmt": "yuv444p"},
    "odd.webm": {"size": (131, 97), "codec": "libvpx-vp9"},
    "ten-bits.mp4": {"pix_fmt": "yuv420p10le"},
    "full-range.mp4": {"pix_fmt": "yuvj420p"},
    "without-chroma.mkv": {"codec": "ffv1", "pix_fmt": "gray"},
    "rgb.mkv": {"codec": "ffv1", "pix_fmt": "bgr0"},
    "half-chroma.avi": {"codec": "mjpeg", "pix_fmt": "yuvj422p"},
}


@pytest.mark.parametrize("name", KINDS)
def test_comfyui_sees_in_a_piece_that_was_encoded_what_it_sees_in_the_whole(name: str, tmp_path: Path) -> None:
    source = make_clip(tmp_path / name, 12, crf=12, **KINDS[name])
    cut(source, tmp_path / "piece", 0, 12, Fraction(24), None)
    seen, wanted = list(as_opencv_reads(tmp_path / "piece")), list(as_opencv_reads(source))
    assert len(seen) == len(wanted) == 12
    for ours, theirs in zip(seen, wanted, strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(ours.astype(int) - theirs).mean() < 2.5


def as_opencv_reads(path: Path) -> Iterator[Picture]:
    capture = cv2.VideoCapture(str(path))
    while (read := capture.read())[0]:
        yield np.asarray(read[1], np.uint8)
    capture.release()


def test_a_prepared_copy_of_a_video_that_is_damaged_in_the_middle_is_not_kept(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "clip.mp4", FRAMES, gop=1000, b_frames=0)
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][30]
    assert packet.pos is not None
    data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    source.write_bytes(data)
    with pytest.raises(JobFailure) as failure:
        cut(source, tmp_path / "piece", 20, 20, None, None)
    assert failure.value.code == "cut_inexact"
    (tmp_path / "piece").unlink()
    with pytest.raises(JobFailure) as failure:
        prepare(source, tmp_path / "prepared.mp4", FRAMES, None)
    assert failure.value.code == "input_damaged"
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_prepared_copy_has_a_key_frame_every_second_and_no_more(tmp_path: Path) -> None:
    for gop in (1, 1000):
        source = make_clip(tmp_path / f"{gop}.mp4", FRAMES, gop=gop, b_frames=0)
        prepare(source, tmp_path / "prepared.mp4", FRAMES, None)
        with av.open(str(tmp_path / "prepared.mp4")) as container:
            keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
        assert [number for number, key in enumerate(keys) if key] == [0, 24, 48]


FULL_DISK = """
import resource, sys
from fractions import Fraction
from pathlib import Path
from faceswap.errors import JobFailure
from faceswap.media.cut import cut, prepare
source, out = Path(sys.argv[1]), Path(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
for work in (
    lambda: prepare(source, out, 60, None),
    lambda: cut(source, out, 0, 60, None, None),
    lambda: cut(source, out, 0, 60, Fraction(24), None),
):
    try:
        work()
    except JobFailure as failure:
        print(failure.code, failure.transient)
"""


@pytest.mark.parametrize("room", [0, 1000, 4000])
def test_a_full_disk_is_told(tmp_path: Path, room: int) -> None:
    source = make_clip(tmp_path / "source.mp4", FRAMES)
    command = [sys.executable, "-c", FULL_DISK, source, tmp_path / "out", str(room)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.stdout.split() == ["disk_full", "True"] * 3, done.stderr
