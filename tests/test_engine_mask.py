"""The target keeps what is its own: lids that close, and what is in front of its face."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from media_samples import ASTRONAUT, GRACE_HOPPER, read_image

from faceswap.engine import mask, mesh
from faceswap.engine.eyewear import Eyewear
from faceswap.engine.landmarks import find_faces
from faceswap.engine.painter import Lids
from faceswap.engine.pixels import Bitmap
from faceswap.engine.swap import FaceSwapper, SourceFace
from faceswap.engine.view import View

RIGHT, LEFT = 0, 1


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    return find_faces(read_image(ASTRONAUT), max_faces=1)[0].landmarks


def winking(face: np.ndarray) -> np.ndarray:
    """Close the right eye."""
    closed = face.copy()
    upper, lower = mesh.RIGHT_EYE[1:8], mesh.RIGHT_EYE[:8:-1]
    closed[upper] = closed[lower]
    return closed


def test_lids_are_the_targets_while_they_close(face: np.ndarray) -> None:
    lids = Lids()
    for _ in range(5):
        assert lids.follow(face) == pytest.approx([0, 0], abs=0.01)
    assert lids.follow(winking(face)) == pytest.approx([1, 0], abs=0.01)
    assert lids.follow(face) == pytest.approx([0, 0], abs=0.01)


def test_eyes_that_are_narrow_by_nature_count_as_open_in_time(face: np.ndarray) -> None:
    narrow = face.copy()
    for eye in mesh.EYES:
        narrow[eye, 1] = narrow[eye, 1].mean() + (narrow[eye, 1] - narrow[eye, 1].mean()) * 0.4
    lids = Lids()
    shares = [lids.follow(narrow) for _ in range(300)]
    assert max(shares[0]) > 0.1
    assert max(shares[-1]) < 0.1


def test_the_kept_lids_reach_from_the_crease_to_under_the_lashes(face: np.ndarray) -> None:
    points = face[:, :2] * np.float32(0.5)
    size = float(np.ptp(points[: mesh.VERTICES], axis=0).max())
    kept = mask.kept(points, (256, 256), size, 0.0, 0.0, np.array([1, 0], np.float32))

    def at(k: int) -> float:
        x, y = points[k].round().astype(int)
        return float(kept[y, x])

    right_lid, below, brow, left_lid = 27, 145, 105, 257
    assert min(at(right_lid), at(below)) > 0.7
    assert max(at(brow), at(left_lid)) < 0.1
    assert cv2.countNonZero((kept > 0.5).astype(np.uint8)) < 0.06 * size * size


def test_a_shift_of_bones_leaves_the_outline_in_place(face: np.ndarray) -> None:
    shift = np.random.default_rng(0).normal(0, 1, (mesh.VERTICES, 3)).astype(np.float32)
    moved = mesh.morph(face, mesh.estimate_pose(face), shift) - mesh.with_rings(face)
    assert np.abs(moved[mesh.OVAL]).max() < 1e-3
    assert np.abs(moved[mesh.LANDMARKS :]).max() < 1e-3
    assert np.abs(moved[mesh.NOSTRILS]).max() > 1


def test_what_is_laid_out_in_the_texture_is_found_again_on_the_face(face: np.ndarray) -> None:
    """Draw a shift of bones on the face itself, and look it up by the places of the texture."""
    shift = mesh.followed(mesh.CANONICAL)
    points, size = mesh.with_rings(face), (512, 512)
    drawn, inside = mesh.rasterize(points, shift, size)
    place, _ = mesh.rasterize(points, mesh.TEXTURE_UV, size)
    off = np.linalg.norm(mesh.look_up(mesh.lay_out(shift, 64), place) - drawn, axis=2)[inside]
    assert off.mean() < 0.02 * np.linalg.norm(drawn[inside], axis=1).max()


def glasses(picture: np.ndarray) -> np.ndarray | None:
    """Return the mask of the glasses in a picture, of the picture's size."""
    landmarks = find_faces(picture, max_faces=1)[0].landmarks
    eyewear = Eyewear()
    eyewear.follow(0, picture, landmarks, mesh.estimate_pose(landmarks))
    return eyewear.over(View(0, 0, picture.shape[1], picture.shape[0], 1), landmarks)


def test_glasses_of_a_target_stay_in_front_of_the_new_face() -> None:
    before = cv2.resize(read_image(GRACE_HOPPER), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    swapper = FaceSwapper([SourceFace.from_image(read_image(ASTRONAUT))])
    after = before.copy()
    assert swapper.apply(Bitmap(after), swapper.track(Bitmap(after))) == 1
    worn = glasses(before)
    assert worn is not None
    rims = worn > 0.9
    change = cv2.absdiff(before, after).mean(axis=-1)
    assert rims.sum() > 200
    assert np.median(change[rims]) < 0.4 * np.median(change[(change > 0) & (worn < 0.1)])


def large_face(rims: float = 0) -> np.ndarray:
    """Return a large face, with rims of a pixel that take this share of the light from the skin."""
    picture = cv2.resize(read_image(ASTRONAUT)[:300, 100:350], None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    landmarks = find_faces(picture, max_faces=1)[0].landmarks
    right, left = (landmarks[eye, :2].mean(axis=0) for eye in mesh.EYES)
    drawn = np.zeros(picture.shape[:2], np.uint8)
    for eye in (right, left):
        radius = int(0.42 * np.linalg.norm(left - right))
        cv2.circle(drawn, np.round(eye).astype(int).tolist(), radius, 255, 1, cv2.LINE_AA)
    return np.asarray(picture * (1 - rims * drawn[..., None] / 255), np.uint8)


def test_rims_of_thin_metal_are_found_on_a_large_face() -> None:
    assert glasses(large_face()) is None
    worn = glasses(large_face(rims=0.3))  # a contrast of 0.07; without rims it is 0.02
    assert worn is not None and (worn > 0.9).sum() > 200


def test_a_face_without_glasses_gets_none() -> None:
    assert glasses(read_image(ASTRONAUT)) is None
