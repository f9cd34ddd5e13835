"""A piece of a video holds the very frames that were asked for, or there is no piece."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from clips import make_clip, numbered, read_numbers, with_edit_list

from faceswap.errors import JobFailure
from faceswap.media.cut import cut

FRAMES = 60
SOURCES: dict[str, dict[str, Any]] = {
    "plain.mp4": {"sounds": ["aac"]},
    "b-frames.mp4": {"b_frames": 4, "gop": 25},
    "one-key-frame.mkv": {"gop": 250},
    "late.mp4": {"video_start": 12, "sounds": ["aac"]},
    "uneven.mp4": {"times": [i * 4 + (i % 3) for i in range(FRAMES)], "time_base": Fraction(1, 100)},
    "vp9.webm": {"codec": "libvpx-vp9", "sounds": ["libopus"]},
    "turned.mp4": {"rotation": 180, "draw": lambda *size: numbered(*size)[::-1, ::-1].copy()},
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize(("first", "count"), [(0, 20), (20, 20), (31, 7), (53, 7), (0, FRAMES)])
def test_a_piece_holds_the_frames_after_its_lead(name: str, first: int, count: int, tmp_path: Path) -> None:
    source = make_clip(tmp_path / name, FRAMES, **SOURCES[name])
    piece = tmp_path / f"piece{'.mp4' if name.endswith('mp4') else '.mkv'}"
    lead = cut(source, piece, first, count).lead
    numbers = read_numbers(piece)
    upright = read_numbers(source)[first : first + count]
    assert numbers[lead : lead + count] == upright


def test_a_piece_from_the_middle_is_smaller_than_the_whole(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "clip.mp4", FRAMES, sounds=["aac"])
    cut(source, tmp_path / "piece.mp4", 30, 10)
    assert (tmp_path / "piece.mp4").stat().st_size < source.stat().st_size / 2


def with_an_edit_list(path: Path) -> Path:
    whole = make_clip(path.with_name("whole.mp4"), FRAMES, gop=250)
    return with_edit_list(whole, path, skipped=5 * 512, shown=1500)


INEXACT: dict[str, Callable[[Path], Path]] = {
    "without-times.avi": lambda path: make_clip(path, FRAMES, codec="mpeg4"),
    "edit-list.mp4": with_an_edit_list,
}


@pytest.mark.parametrize("name", INEXACT)
def test_a_cut_that_would_not_be_exact_is_refused_with_the_flag_to_raise(name: str, tmp_path: Path) -> None:
    source = INEXACT[name](tmp_path / name)
    with pytest.raises(JobFailure, match="--max-upload-size") as refused:
        cut(source, tmp_path / "piece.mp4", 3, 5)
    assert refused.value.code == "upload_too_large"
