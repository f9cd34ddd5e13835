"""Still pictures of every format that is taken are read upright, in the colours they are meant to have."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import clips
import cv2
import numpy as np
import pillow_heif
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from faceswap.errors import Problem
from faceswap.media.stills import HEAD_BYTES, convert, is_still, read_still, still_format

pillow_heif.register_heif_opener()

RED, GREEN, BLUE, WHITE = (230, 40, 40), (40, 230, 40), (40, 40, 230), (230, 230, 230)
UPRIGHT = (RED, GREEN, BLUE, WHITE)
"""The quarters of the picture: top left, top right, bottom left, bottom right."""
SIZE = (96, 64)
ORIENTATION = 0x0112
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "HEIF", "AVIF")


def quarters(order: Sequence[tuple[int, int, int]], width: int, height: int) -> NDArray[np.uint8]:
    picture = np.zeros((height, width, 3), np.uint8)
    for colour, (y, x) in zip(order, ((0, 0), (0, 1), (1, 0), (1, 1)), strict=True):
        picture[y * height // 2 : (y + 1) * height // 2, x * width // 2 : (x + 1) * width // 2] = colour
    return picture


def stored(orientation: int) -> NDArray[np.uint8]:
    """Return the picture as a camera stores it that asks to have it turned (EXIF 2.32, tag 0x0112)."""
    upright = quarters(UPRIGHT, *SIZE)
    turns = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 6: np.rot90(upright), 8: np.rot90(upright, -1)}
    return np.ascontiguousarray(turns[orientation])


def photo(path: Path, kind: str, orientation: int = 1) -> Path:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"exif": exif} if kind == "TIFF" else {"exif": exif.tobytes(), "quality": 95}
    Image.fromarray(stored(orientation)).save(path, kind, **options)
    return path


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read_upright(kind: str, tmp_path: Path) -> None:
    for orientation in (1, 2, 3, 6, 8):
        path = photo(tmp_path / "photo", kind, orientation)
        found, bgr = read_still(path)
        assert found == kind.lower()
        assert bgr.shape == (SIZE[1], SIZE[0], 3)
        expected = quarters(UPRIGHT, *SIZE)
        # away from the borders, where the encoders blur
        for y in (12, 52):
            for x in (12, 84):
                assert np.abs(bgr[y, x, ::-1].astype(int) - expected[y, x]).max() < 40, (orientation, y, x)


def test_a_converted_picture_is_a_png_that_every_engine_reads_upright(tmp_path: Path) -> None:
    for kind in ("HEIF", "AVIF"):
        facts = convert(photo(tmp_path / "photo", kind, 6), tmp_path / "photo.png")
        assert facts.bytes == (tmp_path / "photo.png").stat().st_size
        found, bgr = read_still(tmp_path / "photo.png")
        assert (found, bgr.shape) == ("png", (SIZE[1], SIZE[0], 3))
        with Image.open(tmp_path / "photo.png") as plain:  # as ComfyUI reads it
            assert plain.size == SIZE
            assert not plain.getexif()


def test_the_colours_of_a_wide_profile_are_brought_to_those_of_screens(tmp_path: Path) -> None:
    # Lab is as wide as a profile gets; a profile that is none leaves the colours as they are.
    plain = Image.fromarray(np.full((64, 64, 3), (200, 120, 90), np.uint8))
    linear = ImageCms.ImageCmsProfile(io.BytesIO(linear_profile()))
    plain.save(tmp_path / "linear.heic", "HEIF", quality=95, icc_profile=linear.tobytes())
    plain.save(tmp_path / "broken.heic", "HEIF", quality=95, icc_profile=b"no profile at all")
    _, brighter = read_still(tmp_path / "linear.heic")
    _, same = read_still(tmp_path / "broken.heic")
    assert np.abs(same[32, 32, ::-1].astype(int) - (200, 120, 90)).max() < 6
    assert (brighter[32, 32, ::-1].astype(int) - (200, 120, 90)).min() > 15


def test_what_only_begins_like_a_picture_is_refused(tmp_path: Path) -> None:
    for kind in ("HEIF", "AVIF"):
        whole = photo(tmp_path / "photo", kind)
        for share in (0.3, 0.7):
            with pytest.raises(Problem) as caught:
                read_still(clips.cut_short(whole, tmp_path / "cut", share))
            assert (caught.value.status, caught.value.code) == (415, "not_an_image")


def test_a_heic_that_declares_giant_sides_is_refused(tmp_path: Path) -> None:
    data = photo(tmp_path / "photo", "HEIF").read_bytes()
    sides = SIZE[0].to_bytes(4, "big") + SIZE[1].to_bytes(4, "big")
    assert data.count(b"ispe" + bytes(4) + sides) == 1
    for width, height in ((9000, 16), (8000, 8000), (60000, 60000)):
        giant = b"ispe" + bytes(4) + width.to_bytes(4, "big") + height.to_bytes(4, "big")
        (tmp_path / "giant").write_bytes(data.replace(b"ispe" + bytes(4) + sides, giant))
        with pytest.raises(Problem) as caught:
            read_still(tmp_path / "giant")
        assert caught.value.code in ("image_too_large", "not_an_image")


def test_a_still_is_told_from_a_video_by_its_bytes(tmp_path: Path) -> None:
    assert all(is_still(photo(tmp_path / "photo", kind)) for kind in FORMATS)
    assert not is_still(clips.make_clip(tmp_path / "clip.mp4", 3))
    frames = [Image.fromarray(clips.numbered(number)) for number in range(3)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:], duration=40)
    frames[0].save(tmp_path / "still.gif")
    assert not is_still(tmp_path / "moving.gif")
    assert is_still(tmp_path / "still.gif")
    assert still_format(b"RIFF\x00\x00\x00\x00AVI LIST".ljust(HEAD_BYTES)) is None
    # ISO/IEC 23008-12: the brand that counts may come after others, but not after the box.
    assert still_format(b"\x00\x00\x00\x1cftypmif1\x00\x00\x00\x00mif1miafheic".ljust(HEAD_BYTES)) == "heif"
    assert still_format(b"\x00\x00\x00\x1cftypmif1\x00\x00\x00\x00mif1miafavif".ljust(HEAD_BYTES)) == "avif"
    assert still_format(b"\x00\x00\x00\x14ftypisom\x00\x00\x00\x00isomheic".ljust(HEAD_BYTES)) is None


def linear_profile() -> bytes:
    """Return an ICC profile (ICC.1:2010) of the primaries of sRGB with a straight tone curve."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return with_straight_curves(profile)


def with_straight_curves(profile: bytes) -> bytes:
    """Make every parametric curve of a profile a power of 1."""
    data = bytearray(profile)
    place = data.find(b"para")
    while place >= 0:
        data[place + 8 : place + 10] = bytes(2)
        data[place + 12 : place + 16] = (1 << 16).to_bytes(4, "big")
        place = data.find(b"para", place + 4)
    return bytes(data)


def test_opencv_agrees_on_what_the_engine_reads_by_itself(tmp_path: Path) -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        path = photo(tmp_path / "photo", kind, 6)
        assert np.array_equal(read_still(path)[1], cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR))
