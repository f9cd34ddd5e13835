"""A still picture as a target: what the engine gets, what is checked, and what the result is."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import clips
import cv2
import numpy as np
import pytest
from media_samples import ASTRONAUT, GRACE_HOPPER, read_image
from PIL import Image, ImageCms
from signing import make_identity

from faceswap.errors import JobFailure
from faceswap.media.credentials import read_credentials
from faceswap.media.examine import examine
from faceswap.media.picture import finish_picture, make_still, picture_quality, verify_still
from faceswap.media.tag import SOURCE_TYPE, read_tag


def swapped(picture: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return a copy of the astronaut with something else in place of the face."""
    changed = picture.copy()
    changed[90:160, 190:260] = cv2.flip(changed[90:160, 190:260], 0)
    return changed


def written(path: Path, picture: np.ndarray[Any, Any]) -> Path:
    assert cv2.imwrite(str(path), picture)
    return path


def finish(result: Path, source: Path, out: Path, **given: Any) -> Any:
    plain = {"kind": "png", "crf": 20, "prompt_id": clips.JOB, "label": "", "payload": None, "signing": None}
    return finish_picture(result, source, out, **{**plain, **given})


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("steady.mp4", {}),
        ("varied.mkv", {"times": [i * 5 + (i % 3) for i in range(60)], "time_base": Fraction(1, 100)}),
        ("ntsc.mp4", {"rate": Fraction(30000, 1001), "gop": 250}),
        ("turned.mp4", {"rotation": 90, "size": (128, 96)}),
        ("old.avi", {"codec": "mpeg4"}),
    ],
)
def test_the_frame_at_a_time_is_that_very_frame_upright(tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    video = clips.make_clip(tmp_path / name, 60, **settings)
    with av.open(str(video)) as container:
        frames = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    times = clips.frame_times(video)
    for number in (0, 1, 17, 44, 59):
        at = round(times[number], 3)  # as a page gives it
        if name.endswith(".avi"):  # which is shown by the numbers of its frames
            at = round(number / 24, 3)
        make_still(video, tmp_path / "still.png", at)
        expected = np.rot90(frames[number], -1) if "rotation" in settings else frames[number]
        assert np.array_equal(read_image(tmp_path / "still.png"), expected)


def test_a_picture_goes_to_the_engine_pixel_by_pixel(tmp_path: Path) -> None:
    make_still(ASTRONAUT, tmp_path / "still.png", None)
    assert np.array_equal(read_image(tmp_path / "still.png"), read_image(ASTRONAUT))


def test_a_target_that_can_no_longer_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(ASTRONAUT.read_bytes()[:900])
    (tmp_path / "broken.mp4").write_bytes(clips.make_clip(tmp_path / "clip.mp4", 60).read_bytes()[:900])
    for source, at in ((tmp_path / "broken.png", None), (tmp_path / "broken.mp4", 1.0)):
        with pytest.raises(JobFailure) as failed:
            make_still(source, tmp_path / "still.png", at)
        assert failed.value.code == "input_damaged"
    assert not (tmp_path / "still.png").exists()


def test_what_was_done_to_a_picture_is_seen(tmp_path: Path) -> None:
    astronaut = read_image(ASTRONAUT)
    still = written(tmp_path / "still.png", astronaut)
    small = cv2.resize(astronaut, (256, 256), interpolation=cv2.INTER_AREA)
    noisy = np.clip(astronaut.astype(int) + np.random.default_rng(1).integers(-3, 4, astronaut.shape), 0, 255)
    for name, picture, share, warned in (
        ("same", astronaut, 0.0, False),
        ("another decoder", noisy.astype(np.uint8), 0.0, False),
        ("swapped", swapped(astronaut), 1.0, False),
        ("smaller", small, None, True),
        ("smaller, swapped", cv2.resize(swapped(astronaut), (256, 256), interpolation=cv2.INTER_AREA), 1.0, True),
    ):
        verdict = verify_still(written(tmp_path / "result.png", picture), still)
        assert (verdict.frames, verdict.changed_share, bool(verdict.warnings)) == (1, share, warned), name


def test_a_picture_that_was_blacked_out_is_none(tmp_path: Path) -> None:
    black = written(tmp_path / "black.png", np.zeros((512, 512, 3), np.uint8))
    with pytest.raises(JobFailure) as failed:
        verify_still(black, ASTRONAUT)
    assert (failed.value.code, failed.value.transient) == ("content_filtered", False)
    assert verify_still(black, black).changed_share == 0.0
    (tmp_path / "none.png").write_bytes(b"")
    with pytest.raises(JobFailure) as failed:
        verify_still(tmp_path / "none.png", ASTRONAUT)
    assert (failed.value.code, failed.value.transient) == ("output_damaged", True)


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_a_result_shows_what_the_engine_made_and_says_what_it_is(tmp_path: Path, kind: str) -> None:
    identity = make_identity(tmp_path)
    made = swapped(read_image(ASTRONAUT))
    result, out = written(tmp_path / "result.png", made), tmp_path / "joined.mp4"
    facts = finish(result, ASTRONAUT, out, kind=kind, signing=(identity.cert, identity.key))
    assert (facts.bytes, facts.frames, facts.warnings) == (out.stat().st_size, 1, ())
    shown = read_image(out)
    if kind == "png":
        assert np.array_equal(shown, made)
    else:
        assert cv2.PSNR(shown, made) > 35
    tag, credentials = examine(out).tag, read_credentials(out)
    assert tag is not None
    assert (tag.source_type, tag.prompt_id) == (SOURCE_TYPE, clips.JOB)
    assert (credentials.state, credentials.ingredients) == ("valid", 1)
    assert list(tmp_path.glob(".*")) == []


def test_colours_are_meant_as_those_of_the_picture_were(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source = tmp_path / "source.jpg"
    Image.open(ASTRONAUT).convert("RGB").save(source, icc_profile=profile)
    for kind in ("png", "jpg", "webp"):
        finish(ASTRONAUT, source, tmp_path / "out", kind=kind)
        with Image.open(tmp_path / "out") as image:
            assert image.info.get("icc_profile") == profile
    finish(ASTRONAUT, written(tmp_path / "plain.png", read_image(ASTRONAUT)), tmp_path / "out")
    with Image.open(tmp_path / "out") as image:
        assert "icc_profile" not in image.info


PAYLOAD = "5fb4bde01d0c4c1a"


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", ["png", "webp", "jpg"])
def test_what_is_transparent_stays_so_or_that_is_told(tmp_path: Path, kind: str, turned: bool) -> None:
    picture = read_image(ASTRONAUT)
    opacity = np.full(picture.shape[:2], 255, np.uint8)
    opacity[:40, 20:] = 0
    opacity[40:60] = 128
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    stored = np.dstack([picture[..., ::-1], opacity])
    Image.fromarray(np.rot90(stored) if turned else stored).save(tmp_path / "clear.png", exif=exif)
    result = written(tmp_path / "engine.png", swapped(picture))
    facts = finish(result, tmp_path / "clear.png", tmp_path / "out", kind=kind)
    with Image.open(tmp_path / "out") as image:
        if kind == "jpg":
            assert image.mode == "RGB" and len(facts.warnings) == 1 and "transparent" in facts.warnings[0]
        else:
            assert np.array_equal(np.asarray(image.getchannel("A")), opacity) and not facts.warnings
            assert abs(np.asarray(image, int)[60:, :, :3] - swapped(picture)[60:, :, ::-1]).mean() < 3


def test_an_opaque_picture_gets_no_transparency(tmp_path: Path) -> None:
    picture = read_image(ASTRONAUT)
    Image.fromarray(picture[..., ::-1]).convert("RGBA").save(tmp_path / "opaque.png")
    finish(written(tmp_path / "engine.png", swapped(picture)), tmp_path / "opaque.png", tmp_path / "out")
    with Image.open(tmp_path / "out") as image:
        assert image.mode == "RGB"


@pytest.mark.parametrize("source", [ASTRONAUT, GRACE_HOPPER], ids=lambda path: path.stem)
def test_a_watermark_is_read_from_copies_of_a_picture(tmp_path: Path, source: Path) -> None:
    shown = read_image(source)
    plain = written(tmp_path / "plain.png", shown)
    assert examine(plain).watermark is None
    finish(plain, plain, tmp_path / "marked", payload=PAYLOAD)
    marked = read_image(tmp_path / "marked")
    assert cv2.PSNR(marked, shown) > 46
    half = cv2.resize(marked, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    for name, picture, settings in (
        ("same.png", marked, []),
        ("coarse.jpg", marked, [cv2.IMWRITE_JPEG_QUALITY, 60]),
        ("coarse.webp", marked, [cv2.IMWRITE_WEBP_QUALITY, 70]),
        ("half.jpg", half, [cv2.IMWRITE_JPEG_QUALITY, 85]),
    ):
        assert cv2.imwrite(str(tmp_path / name), picture, settings)
        assert examine(tmp_path / name).watermark == PAYLOAD, name


def test_a_picture_that_is_too_small_for_a_watermark_stays_as_it_is(tmp_path: Path) -> None:
    small = np.asarray(read_image(ASTRONAUT)[:60, :100])
    finish(written(tmp_path / "small.png", small), ASTRONAUT, tmp_path / "out", payload=PAYLOAD)
    assert np.array_equal(read_image(tmp_path / "out"), small)
    assert examine(tmp_path / "out").watermark is None


def test_quality_follows_crf() -> None:
    assert [picture_quality(crf) for crf in (0, 20, 37, 51)] == [100, 95, 83, 67]


def test_a_label_is_drawn_into_pictures_of_any_size(tmp_path: Path) -> None:
    for size in ((512, 512), (333, 501), (40, 31)):
        picture = np.full((size[1], size[0], 3), 120, np.uint8)
        finish(written(tmp_path / "plain.png", picture), ASTRONAUT, tmp_path / "out", label="AI-generated")
        labelled = read_image(tmp_path / "out")
        assert labelled.shape == picture.shape
        assert (labelled[: size[1] // 2] == 120).all()
        assert labelled.max() > 200 or min(size) < 40
        assert not (labelled == 120).all()


def test_a_tag_is_read_from_no_other_file(tmp_path: Path) -> None:
    assert read_tag(ASTRONAUT) is None
    (tmp_path / "nothing").write_bytes(b"")
    assert read_tag(tmp_path / "nothing") is None
