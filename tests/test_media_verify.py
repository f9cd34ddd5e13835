"""A result counts only when it is what was asked for; each false success has a code of its own."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import clips
import cv2
import media_samples
import numpy as np
import pytest

from faceswap.engine.clip import Clip, Selection, probe
from faceswap.engine.streams import SwappedClip
from faceswap.engine.swap import FaceSwapper, SourceFace
from faceswap.engine.video import Encoding, SwapCount, encode
from faceswap.errors import JobFailure
from faceswap.media import Verdict
from faceswap.media.compare import Reference
from faceswap.media.timeline import read_timeline
from faceswap.media.verify import Original, source_frames, verify

PHOTO = cv2.imread(str(Path(__file__).parent.parent / "faceswap" / "samples" / "astronaut.png"))[:, :, ::-1]
SIZE = (426, 240)
TINT = np.array([35, 12, -25])


def scene(number: int, width: int, height: int) -> clips.Picture:
    """Draw a photograph that moves, with grain, which is hard to encode."""
    x, y = 20 + 2 * number % 60, 40 + number % 30
    grain = np.random.default_rng(number).normal(0, 2, (height, width, 3))
    return np.clip(PHOTO[y : y + height, x : x + width] + grain, 0, 255).astype(np.uint8)


def painted(number: int, width: int, height: int, side: int = 24) -> clips.Picture:
    """Draw the scene with a patch of `side` pixels painted on, which moves with it."""
    picture = scene(number, width, height)
    x, y = 150 - 2 * number % 60, 100
    patch = picture[y : y + side, x : x + side]
    patch[:] = np.clip(patch.astype(int) + TINT, 0, 255)
    return picture


def black(_number: int, width: int, height: int) -> clips.Picture:
    return np.zeros((height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    return clips.make_clip(folder / "source.mp4", 72, size=SIZE, draw=scene, b_frames=3, gop=24, sounds=["aac"])


def check(result: Path, source: Path, first: int = 0, count: int = 24, **settings: Any) -> Verdict:
    settings = {"frame_rate": None, "crf": 20} | settings
    return verify(result, source, first_frame=first, frame_count=count, **settings)


def failure(result: Path, source: Path, first: int = 0, count: int = 24, **settings: Any) -> JobFailure:
    with pytest.raises(JobFailure) as caught:
        check(result, source, first, count, **settings)
    assert str(result.parent) not in caught.value.message
    return caught.value


@pytest.mark.parametrize("crf", [20, 25, 40])
@pytest.mark.parametrize("first", [0, 24, 41])
def test_an_encode_without_a_swap_never_counts_as_changed(tmp_path: Path, source: Path, crf: int, first: int) -> None:
    result = clips.make_clip(tmp_path / "r.mp4", 24, size=SIZE, draw=scene, first_number=first, crf=crf)
    verdict = check(result, source, first, crf=crf)
    assert verdict.frames == 24
    assert verdict.changed_share in ((0.0,) if crf <= 25 else (0.0, None))
    assert verdict.warnings == ()


def lettering(number: int, width: int, height: int) -> clips.Picture:
    """Draw words over a photograph that moves fast."""
    x = 8 * number % 80
    picture = cv2.resize(PHOTO[256:496, x : x + 426], (width, height))
    for line in range(4):
        place = (20 + 3 * number * (line % 2), height * (line + 1) // 5)
        grey = 255 * (line % 2)
        cv2.putText(picture, "moving TEXT 42,00 %", place, cv2.FONT_HERSHEY_DUPLEX, 0.8, (grey,) * 3, 2, cv2.LINE_AA)
    return picture


def fading(number: int, width: int, height: int) -> clips.Picture:
    """Draw a photograph that moves and fades."""
    x = 8 * number % 80
    dim = 1 - 0.8 * abs(np.sin(number / 12))
    return (PHOTO[256 : 256 + height, x : x + width] * dim).astype(np.uint8)


def grainy(number: int, width: int, height: int) -> clips.Picture:
    grain = np.random.default_rng(number).normal(0, 14, (height, width, 3))
    return np.clip(PHOTO[256 : 256 + height, :width] + grain, 0, 255).astype(np.uint8)


def noise(number: int, width: int, height: int) -> clips.Picture:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(("draw", "crf"), [(lettering, 28), (fading, 40), (grainy, 35), (noise, 20), (lettering, 51)])
def test_what_is_hard_to_encode_never_counts_as_changed(tmp_path: Path, draw: Any, crf: int) -> None:
    original = clips.make_clip(tmp_path / "s.mp4", 24, size=SIZE, draw=draw, crf=17)
    result = clips.make_clip(tmp_path / "r.mp4", 24, size=SIZE, draw=again(original), crf=crf)
    assert check(result, original, crf=crf).changed_share in (0.0, None)


def again(clip: Path) -> Any:
    """Yield the frames of a clip, to be drawn once more."""
    with av.open(str(clip)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return lambda number, width, height: frames[number]


@pytest.fixture(scope="module")
def portrait(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw a person, the face about 80 pixels wide."""

    def draw(number: int, width: int, height: int) -> clips.Picture:
        return np.ascontiguousarray(PHOTO[number : number + height, 2 * number : 2 * number + width])

    folder = tmp_path_factory.mktemp("portrait")
    return clips.make_clip(folder / "portrait.mp4", 24, size=SIZE, draw=draw, crf=17)


@pytest.mark.parametrize(("crf", "least"), [(20, 1.0), (30, 0.9), (35, 0.5), (40, None)])
def test_a_real_swap_is_seen_or_cannot_be_told(tmp_path: Path, portrait: Path, crf: int, least: float | None) -> None:
    face = SourceFace.from_image(cv2.imread(str(media_samples.GRACE_HOPPER)))
    count = SwapCount()
    clip = Clip(probe(portrait), Selection())
    frames = SwappedClip(clip, lambda: FaceSwapper([face], [0], frame_rate=24.0), count, {0: face})
    result = tmp_path / "r.mp4"
    encode(frames, result, Fraction(24), Encoding(crf), lambda number, frame: None)
    assert count == SwapCount(24, 24)
    share = check(result, portrait, crf=crf).changed_share
    assert share != 0.0
    assert least is None or (share is not None and share >= least)


@pytest.mark.parametrize("first", [0, 24, 41])
def test_a_small_patch_counts_as_changed_in_every_frame(tmp_path: Path, source: Path, first: int) -> None:
    result = clips.make_clip(tmp_path / "r.mp4", 24, size=SIZE, draw=painted, first_number=first, crf=20)
    assert check(result, source, first).changed_share == 1.0


def test_a_patch_of_24_pixels_in_720p_is_seen(tmp_path: Path) -> None:
    photo = cv2.resize(PHOTO, (1480, 1000))

    def wide(number: int, width: int, height: int) -> clips.Picture:
        return np.ascontiguousarray(photo[number : number + height, 2 * number : 2 * number + width])

    def patched(number: int, width: int, height: int) -> clips.Picture:
        picture = wide(number, width, height).copy()
        patch = picture[300:324, 500:524]
        patch[:] = np.clip(patch.astype(int) + TINT, 0, 255)
        return picture

    original = clips.make_clip(tmp_path / "s.mp4", 6, size=(1280, 720), draw=wide, crf=18)
    result = clips.make_clip(tmp_path / "r.mp4", 6, size=(1280, 720), draw=patched)
    assert check(result, original, 0, 6).changed_share == 1.0
    plain = clips.make_clip(tmp_path / "p.mp4", 6, size=(1280, 720), draw=wide)
    assert check(plain, original, 0, 6).changed_share == 0.0


def test_the_share_tells_how_many_frames_were_changed(tmp_path: Path, source: Path) -> None:
    def half(number: int, width: int, height: int) -> clips.Picture:
        return (painted if number < 8 else scene)(number, width, height)

    result = clips.make_clip(tmp_path / "r.mp4", 16, size=SIZE, draw=half)
    assert check(result, source, 0, 16).changed_share == 0.5


@pytest.mark.parametrize(("painted_frames", "share"), [(1, None), (6, 0.1)])
def test_an_odd_frame_among_many_does_not_count(
    tmp_path: Path, source: Path, painted_frames: int, share: float | None
) -> None:
    def some(number: int, width: int, height: int) -> clips.Picture:
        return (painted if number < painted_frames else scene)(number, width, height)

    result = clips.make_clip(tmp_path / "r.mp4", 60, size=SIZE, draw=some)
    assert check(result, source, 0, 60).changed_share == (None if share is None else pytest.approx(share, abs=0.02))


@pytest.mark.parametrize(
    ("light", "noise", "change", "verdict"),
    [
        (100, 1, 0, False),
        (100, 1, 20, True),
        (100, 16, 0, None),  # a swap would not be seen
        (100, 16, 20, None),
        (100, 16, 200, True),
        (10, 1, 0, None),
        (10, 1, 12, None),  # what was light a moment ago
        (10, 1, 60, True),
    ],
)
def test_where_a_swap_could_hide_nothing_is_said(light: int, noise: int, change: int, verdict: bool | None) -> None:
    source = np.full((40, 60, 3), light, np.float32)
    level = np.full((40, 60), noise, np.float32)
    result = source.copy()
    result[10:14, 20:24, 0] += change
    assert Reference(source, level, level).changed(result) is verdict


@pytest.mark.parametrize("rate", [Fraction(12), Fraction(30)])
def test_a_forced_rate_is_compared_with_the_right_frames(tmp_path: Path, rate: Fraction) -> None:
    original = clips.make_clip(tmp_path / "s.mp4", 72)
    shown = read_timeline(original).shown(rate, 0, 60)

    def draw(number: int, width: int, height: int) -> clips.Picture:
        return clips.numbered(shown[number], width, height)

    result = clips.make_clip(tmp_path / "r.mp4", 12, draw=draw, first_number=20)
    assert check(result, original, 20, 12, frame_rate=rate).changed_share == 0.0
    later = check(result, original, 23, 12, frame_rate=rate).changed_share
    assert later is not None
    assert later > 0.9


VARIABLE = {"times": [i * 4 + i % 3 for i in range(80)], "time_base": Fraction(1, 100)}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("s.mp4", {"b_frames": 3, "gop": 20}),
        ("s.mp4", VARIABLE),
        ("s.mkv", VARIABLE),
        ("s.mp4", {"video_start": 12, "sounds": ["aac"]}),
        ("s.ts", {"gop": 20}),
        ("s.webm", {"codec": "libvpx"}),
        ("s.avi", {"codec": "mpeg4"}),
        ("s.avi", {"b_frames": 2}),
    ],
)
def test_the_frames_of_a_segment_are_found_in_any_source(tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    path = clips.make_clip(tmp_path / name, 80, **settings)
    for first in (0, 5, 19, 20, 41, 70):
        original = Original.of(path, first, 10, None)
        frames = source_frames(original, [0, 1, 4, 9])
        numbers = [clips.read_number(frame.to_ndarray(format="gray")) for frame in frames]
        assert numbers == [first, first + 1, first + 4, first + 9]


def test_the_frames_behind_an_edit_list_are_found(tmp_path: Path) -> None:
    clip = clips.make_clip(tmp_path / "s.mp4", 80, gop=20)
    cut = clips.with_edit_list(clip, tmp_path / "cut.mp4", skipped=7 * 512, shown=3000)
    frames = source_frames(Original.of(cut, 40, 3, None), [0, 1, 2])
    assert [clips.read_number(frame.to_ndarray(format="gray")) for frame in frames] == [47, 48, 49]


def test_a_rotated_source_is_compared_upright(tmp_path: Path) -> None:
    def lying(number: int, width: int, height: int) -> clips.Picture:
        return np.ascontiguousarray(np.rot90(scene(number, height, width)))

    original = clips.make_clip(tmp_path / "s.mp4", 10, size=SIZE[::-1], draw=lying, rotation=90)
    result = clips.make_clip(tmp_path / "r.mp4", 10, size=SIZE, draw=scene)
    verdict = check(result, original, 0, 10)
    assert (verdict.changed_share, verdict.warnings) == (0.0, ())


def test_an_odd_size_padded_to_even_is_no_reason_to_warn(tmp_path: Path) -> None:
    original = clips.make_clip(tmp_path / "s.mp4", 8, size=(425, 239), pix_fmt="yuv444p", draw=scene)
    result = clips.make_clip(tmp_path / "r.mp4", 8, size=SIZE, draw=scene)
    assert check(result, original, 0, 8).warnings == ()


def test_another_size_is_warned_of_and_another_shape_not_compared(tmp_path: Path, source: Path) -> None:
    larger = clips.make_clip(tmp_path / "l.mp4", 8, size=(852, 480), draw=clips.numbered)
    assert "852×480" in check(larger, source, 0, 8).warnings[0]
    square = check(clips.make_clip(tmp_path / "q.mp4", 8, size=(240, 240), draw=scene), source, 0, 8)
    assert square.changed_share is None
    assert len(square.warnings) == 1


def test_the_black_stand_in_is_recognised(tmp_path: Path, source: Path) -> None:
    one = clips.make_clip(tmp_path / "one.mp4", 1, size=(512, 512), draw=black)
    assert failure(one, source).code == "content_filtered"
    every = clips.make_clip(tmp_path / "all.mp4", 24, size=SIZE, draw=black)
    assert failure(every, source).code == "content_filtered"


def test_a_video_that_is_black_itself_is_not_taken_for_filtered(tmp_path: Path) -> None:
    original = clips.make_clip(tmp_path / "s.mp4", 8, size=SIZE, draw=black)
    result = clips.make_clip(tmp_path / "r.mp4", 8, size=SIZE, draw=black)
    assert check(result, original, 0, 8).changed_share is None


@pytest.mark.parametrize(("made", "transient"), [(23, True), (25, False)])
def test_a_wrong_number_of_frames_is_recognised(tmp_path: Path, source: Path, made: int, transient: bool) -> None:
    result = clips.make_clip(tmp_path / "r.mp4", made, size=SIZE, draw=scene)
    found = failure(result, source)
    assert (found.code, found.transient) == ("frames_missing", transient)


def test_without_a_comparison_size_and_blackness_are_still_looked_at(tmp_path: Path, source: Path) -> None:
    larger = clips.make_clip(tmp_path / "l.mp4", 24, size=(852, 480), draw=clips.numbered)
    verdict = check(larger, source, crf=None)
    assert verdict.changed_share is None
    assert verdict.warnings == ("The result is 852×480, the video 426×240.",)
    every = clips.make_clip(tmp_path / "all.mp4", 24, size=SIZE, draw=black)
    assert failure(every, source, crf=None).code == "content_filtered"
    original = clips.make_clip(tmp_path / "s.mp4", 24, size=SIZE, draw=black)
    assert check(every, original, crf=None).frames == 24


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [("r.mov", "prores_ks", "yuv422p10le"), ("r.gif", "gif", "rgb8"), ("r.webm", "libvpx", "yuv420p")],
)
def test_pictures_that_an_mp4_cannot_hold_are_refused_by_name(
    tmp_path: Path, source: Path, name: str, codec: str, pix_fmt: str
) -> None:
    result = clips.make_clip(tmp_path / name, 24, size=SIZE, draw=scene, codec=codec, pix_fmt=pix_fmt)
    found = failure(result, source)
    assert (found.code, found.transient) == ("format_not_joinable", False)
    assert f"result is {codec.split('_')[0].removeprefix('lib').replace('vpx', 'vp8')}," in found.message


def test_a_damaged_or_absent_result_is_recognised(tmp_path: Path, source: Path) -> None:
    result = clips.make_clip(tmp_path / "r.mp4", 24, size=SIZE, draw=scene, options={"movflags": "faststart"})
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video")
    holed = bytearray(result.read_bytes())
    middle = len(holed) // 2
    holed[middle : middle + 4000] = bytes(range(250)) * 16
    (tmp_path / "holed.mp4").write_bytes(holed)
    assert failure(tmp_path / "empty.mp4", source).code == "output_missing"
    assert failure(tmp_path / "none.mp4", source).code == "output_missing"
    assert failure(tmp_path / "text.mp4", source).code == "output_damaged"
    assert failure(tmp_path / "holed.mp4", source).code == "output_damaged"
    for share in (0.3, 0.9):
        assert failure(clips.cut_short(result, tmp_path / "c.mp4", share), source).code == "output_damaged"
