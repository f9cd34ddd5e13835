"""A target that smiles keeps the folds of its cheeks; one that does not gets none."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from media_samples import ASTRONAUT, GRACE_HOPPER, read_image

from faceswap.engine import folds, mesh
from faceswap.engine.landmarks import find_faces
from faceswap.engine.pixels import Bitmap
from faceswap.engine.swap import FaceSwapper, SourceFace
from faceswap.engine.view import View

CHEEK = [117, 50, 205, 206, 203, 126, 100]


@pytest.fixture(scope="module")
def smiling() -> np.ndarray:
    return read_image(ASTRONAUT)[:300, 100:350]


def within(points: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape[:2], np.uint8)
    cv2.fillConvexPoly(mask, cv2.convexHull(points.astype(np.int32)), 1)
    return mask > 0


def folds_of(picture: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Return the picture's cheeks without their light and their grain, one after the other."""
    grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY).astype(np.float32)
    middle = cv2.GaussianBlur(grey, (0, 0), 2) - cv2.GaussianBlur(grey, (0, 0), 16)
    cheeks = [within(landmarks[points, :2], picture.shape) for points in (CHEEK, mesh.MIRROR[CHEEK])]
    return np.concatenate([middle[cheek] for cheek in cheeks])


def test_a_smile_has_the_folds_of_the_target(smiling: np.ndarray) -> None:
    target = cv2.resize(smiling, None, fx=2, fy=2)
    frame = target.copy()
    swapper = FaceSwapper([SourceFace.from_image(read_image(GRACE_HOPPER))])
    (track,) = swapper.track(Bitmap(frame))
    assert swapper.apply(Bitmap(frame), [track]) == 1
    before, after = folds_of(target, track.landmarks), folds_of(frame, track.landmarks)
    assert np.corrcoef(before, after)[0, 1] > 0.6  # 0.32 without the folds


def test_folds_are_those_of_the_cheeks_alone(smiling: np.ndarray) -> None:
    landmarks = find_faces(smiling)[0].landmarks
    view = View.around(landmarks[: mesh.VERTICES], smiling, 2)
    place, _ = view.draw(mesh.with_rings(landmarks), mesh.TEXTURE_UV)
    face = float(np.ptp(landmarks[: mesh.VERTICES, :2], axis=0).max()) / view.step
    points = view.points(landmarks)[:, :2]
    residual = np.zeros((*place.shape[:2], 3), np.float32)
    for line in ([205, 203], [107, 336]):  # on a cheek, and on the forehead
        ends = np.round(points[line]).astype(int).tolist()
        cv2.line(residual, ends[0], ends[1], (-0.2,) * 3, 2)
    fold = folds.of_smile(landmarks, place, residual, np.ones(place.shape[:2], np.float32), face)
    assert fold is not None
    forehead = within(points[[67, 109, 338, 297, 296, 107]], fold.shape)
    assert fold.min() < -0.05
    assert not fold[forehead].any()


def test_a_face_at_rest_gets_no_folds() -> None:
    landmarks = find_faces(read_image(GRACE_HOPPER))[0].landmarks
    nothing = np.zeros((8, 8, 3), np.float32)
    assert folds.of_smile(landmarks, nothing[..., :2], nothing, nothing[..., 0], 8.0) is None
