"""Faces are found in stills and followed through clips."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from media_samples import ASTRONAUT, GRACE_HOPPER, astronaut_frames, read_image

from faceswap.engine import mesh
from faceswap.engine.landmarks import DETECT_EVERY, FADE_IN, Tracker, find_faces

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


def test_a_followed_face_keeps_its_identity() -> None:
    tracker = Tracker(1)
    tracks = [tracker(frame) for frame in astronaut_frames(2 * DETECT_EVERY + 5)]
    assert {track.identity for frame in tracks for track in frame} == {1}
    assert all(len(frame) == 1 for frame in tracks)


def test_tracked_landmarks_are_steadier_than_raw_ones_and_stay_on_the_face() -> None:
    random = np.random.default_rng(0)
    tracker, raw, smooth = Tracker(1), [], []
    for frame in astronaut_frames(40):
        noise = random.normal(0, 6, frame.shape)
        (track,) = tracker(np.clip(frame + noise, 0, 255).astype(np.uint8))
        raw.append(track.raw[:, :2])
        smooth.append(track.landmarks[:, :2])
    jitter, raw_jitter = (np.abs(np.diff(points, 2, axis=0)).mean() for points in (smooth, raw))
    assert jitter < 0.95 * raw_jitter
    assert np.linalg.norm(np.array(smooth) - np.array(raw), axis=2).mean() < 1.5


def test_a_face_leaves_and_comes_back() -> None:
    frames = list(astronaut_frames(30))
    empty = np.full_like(frames[0], 90)
    tracker = Tracker(1)
    counts = [len(tracker(frame)) for frame in [*frames[:6], *[empty] * 5, *frames[6:12]]]
    assert counts[:6] == [1] * 6
    assert counts[6:11] == [0] * 5
    assert counts[-4:] == [1] * 4


def test_a_face_that_comes_into_view_later_fades_in() -> None:
    frames = list(astronaut_frames(8))
    tracker = Tracker(1)
    assert tracker(frames[0])[0].presence == 1
    late = Tracker(1)
    late(np.zeros_like(frames[0]))
    seen = [track.presence for frame in frames for track in late(frame)]
    assert seen[:FADE_IN] == [k / FADE_IN for k in range(1, FADE_IN + 1)]


def test_a_small_face_in_a_clip_is_found_after_a_while_and_in_the_first_frame_at_once() -> None:
    canvas = on_canvas(read_image(ASTRONAUT), 0.25, 1500, 600, (1920, 1080))
    assert [track.raw.tolist() for track in Tracker(1)(canvas)] == [
        face.landmarks.tolist() for face in find_faces(canvas)
    ]
    tracker = Tracker(1)
    tracker(np.zeros_like(canvas))
    assert any(tracker(canvas) for _ in range(120))
