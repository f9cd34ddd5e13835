"""Faces are found in stills."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from media_samples import ASTRONAUT, GRACE_HOPPER, read_image

from faceswap.engine import mesh
from faceswap.engine.landmarks import find_faces

ASTRONAUT_BOX = (180, 70, 271, 179)


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Return intersection over union of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(0.0, width) * max(0.0, height)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def on_canvas(picture: np.ndarray, scale: float, left: int, top: int, size: tuple[int, int]) -> np.ndarray:
    """Lay a scaled picture on a grey canvas of `size` (width, height)."""
    canvas = np.full((size[1], size[0], 3), 100, np.uint8)
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    return canvas


def two_people() -> np.ndarray:
    """Draw two people, the larger face on the right."""
    left, right = read_image(ASTRONAUT), read_image(GRACE_HOPPER)[:512]
    return np.hstack([left, right])


def test_a_face_is_found_where_it_is() -> None:
    (face,) = find_faces(read_image(ASTRONAUT))
    assert face.landmarks.shape == (478, 3)
    assert face.landmarks.dtype == np.float32
    assert overlap(face.box, ASTRONAUT_BOX) > 0.95


@pytest.mark.parametrize("scale", [0.5, 0.3])
def test_a_small_face_in_a_large_picture_is_found(scale: float) -> None:
    canvas = on_canvas(read_image(ASTRONAUT), scale, 900, 300, (1920, 1080))
    (face,) = find_faces(canvas)
    left, top, right, bottom = (v * scale for v in ASTRONAUT_BOX)
    assert overlap(face.box, (900 + left, 300 + top, 900 + right, 300 + bottom)) > 0.8


def test_a_face_that_fills_the_picture_is_found() -> None:
    close = cv2.resize(read_image(ASTRONAUT)[75:175, 180:270], None, fx=6, fy=6)
    (face,) = find_faces(close)
    assert overlap(face.box, (0, 0, close.shape[1], close.shape[0])) > 0.7


def test_faces_come_large_to_small_and_no_more_than_asked_for() -> None:
    large, small = find_faces(two_people())
    assert large.box[0] > 512 > small.box[2]
    assert [face.box for face in find_faces(two_people(), max_faces=1)] == [large.box]


@pytest.mark.parametrize("size", [(16, 16), (1, 1), (3, 700), (701, 333)])
def test_a_picture_of_any_size_without_a_face_has_none(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (size[1], size[0], 3), np.uint8)
    assert find_faces(noise) == []
    assert find_faces(np.zeros_like(noise)) == []


def test_a_turned_head_reads_as_turned() -> None:
    picture = read_image(ASTRONAUT)
    upright = mesh.estimate_pose(find_faces(picture)[0].landmarks)
    matrix = cv2.getRotationMatrix2D((225, 125), 20, 1)
    turned = mesh.estimate_pose(find_faces(cv2.warpAffine(picture, matrix, (512, 512)))[0].landmarks)
    assert turned.roll - upright.roll == pytest.approx(20, abs=1.5)
    assert (turned.yaw, turned.pitch) == pytest.approx((upright.yaw, upright.pitch), abs=5)


def test_a_mirrored_face_has_mirrored_landmarks_and_texture() -> None:
    picture = read_image(ASTRONAUT)
    there = find_faces(picture)[0].landmarks
    mirrored = find_faces(np.ascontiguousarray(picture[:, ::-1]))[0].landmarks[mesh.MIRROR]
    mirrored[:, 0] = picture.shape[1] - mirrored[:, 0]
    assert np.abs(mirrored - there)[:, :2].mean() < 1.5
    uv = mesh.TEXTURE_UV[: mesh.LANDMARKS]
    assert np.abs(uv[mesh.MIRROR] - [1, 0] - uv * [-1, 1]).max() < 2e-3
