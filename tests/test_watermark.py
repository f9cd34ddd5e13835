"""The watermark is read from copies, never from what has none, and is not seen; `make watermark` is the long form."""

from __future__ import annotations

import numpy as np
import pytest
from clips import JOB
from marked_clips import TREATMENTS, examine_clip, make, psnr

from faceswap.engine.frames import Frame
from faceswap.marker import Marker
from faceswap.marks import Marks, payload_of
from faceswap.watermark import PERIOD_FRAMES, WINDOW_FRAMES, Reader

SIZE = (640, 360)
PAYLOAD = payload_of(JOB)


def chroma(planes: np.ndarray) -> np.ndarray:
    width, height = planes.shape[1], planes.shape[0] * 2 // 3
    return planes.reshape(-1)[width * height :].reshape(2, height // 2, width // 2)


def grey_frames(count: int, size: tuple[int, int] = SIZE, first: int = 0) -> list[np.ndarray]:
    """Return marked frames of one colour."""
    marker = Marker(Marks(PAYLOAD, first), size)
    frames = [np.full((size[1] * 3 // 2, size[0]), 120, np.uint8) for _ in range(count)]
    for planes in frames:
        marker.apply(planes)
    return frames


def read(frames: list[np.ndarray]) -> bytes | None:
    reader = Reader()
    for planes in frames:
        if (found := reader.add(*chroma(planes))) is not None:
            return found
    return reader.read()


def test_the_watermark_is_read_after_every_treatment_and_from_marked_clips_only() -> None:
    # One that is read after crf 31 too: no two encodings by several threads are the same.
    finding = examine_clip(13, make(13, frames=(80, 81)))
    assert finding.found == dict.fromkeys(TREATMENTS, True)
    assert finding.false_payload is None
    assert finding.psnr >= 42
    assert finding.rgb_psnr >= 42


def test_the_payload_is_the_beginning_of_the_jobs_id() -> None:
    assert PAYLOAD.hex() == JOB.replace("-", "")[:16]


@pytest.mark.parametrize("size", [SIZE, (360, 640), (64, 64), (1920, 1080)])
def test_marked_frames_are_read_at_every_size(size: tuple[int, int]) -> None:
    assert read(grey_frames(2 * PERIOD_FRAMES, size)) == PAYLOAD


@pytest.mark.parametrize("first", [1, 3, 4, 7])
def test_a_cut_may_begin_anywhere_in_a_period(first: int) -> None:
    assert read(grey_frames(5 * PERIOD_FRAMES, first=first)) == PAYLOAD


def test_a_plain_picture_is_marked_fainter_than_one_with_texture() -> None:
    texture = np.random.default_rng(1).integers(100, 140, (SIZE[1] * 3 // 2, SIZE[0])).astype(np.uint8)
    halves = texture.copy()
    halves[: SIZE[1], : SIZE[0] // 2] = 120
    marked = halves.copy()
    Marker(Marks(PAYLOAD), SIZE).apply(marked)
    plain, rough = np.split(np.abs(chroma(marked).astype(int) - chroma(halves)), 2, axis=2)
    assert plain.max() <= 2
    assert np.mean(plain**2) < np.mean(rough**2) / 2


def test_segments_that_are_marked_apart_are_one_watermark() -> None:
    apart = [*grey_frames(13), *grey_frames(20, first=13)]
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(apart, grey_frames(33), strict=True))


def test_the_mean_of_a_period_is_as_it_was() -> None:
    frames = grey_frames(PERIOD_FRAMES)
    assert np.array_equal(np.mean(frames, axis=0), np.full_like(frames[0], 120, float))
    assert all(np.array_equal(planes[: SIZE[1]], np.full((SIZE[1], SIZE[0]), 120)) for planes in frames), "luma"


def test_colours_at_the_end_of_the_scale_do_not_turn_around() -> None:
    for level in (0, 255):
        planes = np.full((SIZE[1] * 3 // 2, SIZE[0]), level, np.uint8)
        before = planes.copy()
        Marker(Marks(PAYLOAD), SIZE).apply(planes)
        assert psnr([(before, planes)]) > 42


def test_noise_holds_no_watermark() -> None:
    rng = np.random.default_rng(1)
    for _ in range(5):
        shape = SIZE[1] // 4 * 3 // 2, SIZE[0] // 4
        frames = [rng.integers(100, 150, shape).astype(np.uint8) for _ in range(2 * PERIOD_FRAMES)]
        assert read(frames) is None


def test_frames_too_few_hold_none() -> None:
    assert read([]) is None
    assert read(grey_frames(PERIOD_FRAMES - 1)) is None


def test_a_watermark_that_begins_late_is_found_in_a_later_window() -> None:
    plain = [np.full((96, 64), 120, np.uint8)] * (2 * WINDOW_FRAMES)
    assert read([*plain, *grey_frames(WINDOW_FRAMES, (64, 64))]) == PAYLOAD


def test_a_reader_gives_up_after_its_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faceswap.watermark.WINDOWS", 2)
    reader, plain = Reader(), Frame(np.full((24, 16), 120, np.uint8))
    fed = 0
    while not reader.is_done:
        assert reader.add(*chroma(plain.planes)) is None
        fed += 1
    assert fed == 2 * WINDOW_FRAMES
