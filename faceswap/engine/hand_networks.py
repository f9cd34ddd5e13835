"""The two networks for hands, run by LiteRT on one thread each: MediaPipe's palm detector and its hand landmarker.

They belong to one thread at a time, as the networks for faces do.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from .mesh import Points
from .networks import AnchorNetwork, Region, cut, load
from .pixels import Image, Pixels

POINTS = 21
"""Landmarks of a hand: the wrist, then four joints of each finger from its root to its tip, the thumb first."""

_MIDDLE_ROOT = 9
_PALM = (0, 1, 2, 3, 5, 6, 9, 10, 13, 14, 17, 18)
"""Landmarks that tell where the palm is, whatever the fingers do."""

_SURE_PALM = 0.4
"""Probability from which on a palm is looked at more closely."""

_ONE_PALM = 0.5
"""Distance of two palms, as a share of a palm's size, under which they are one."""


class HandPlacement(NamedTuple):
    """A hand as the landmarker places it: float32 (21, 3) in pixels, and the probability 0–1 that it is one."""

    points: Points
    score: float


class PalmDetector:
    """The palm detector: RGB (192, 192) in 0–1 to boxes and 7 points, two anchors for every 8×8 and six for 16×16."""

    _SIDE = 192

    def __init__(self) -> None:
        self._network = AnchorNetwork("palm_detection_lite.tflite", 18)
        self._anchors = np.concatenate([self._grid(8, 2), self._grid(16, 6)])

    def _grid(self, stride: int, times: int) -> NDArray[np.float32]:
        """Return the centres of the squares of a grid, each `times` times."""
        y, x = np.mgrid[0 : self._SIDE : stride, 0 : self._SIDE : stride]
        return np.repeat(np.stack([x.ravel(), y.ravel()], axis=1) + stride / 2, times, axis=0).astype(np.float32)

    def __call__(self, picture: Pixels, region: Region) -> list[Region]:
        """Return where to look for the hands of the palms in an upright region, the surest first."""
        crop, to_image = cut(picture, region, self._SIDE)
        scores, found = self._network(_rgb(crop))
        sure = np.flatnonzero(scores > _SURE_PALM)
        values = found[sure].reshape(-1, 9, 2)
        sizes = values[:, 1].max(axis=1) * np.float32(region.size / self._SIDE)
        # the box's centre, then the points: the first is the wrist, the third the root of the middle finger
        places = (values[:, [0, 2, 4]] + self._anchors[sure, None]) @ to_image[:, :2].T + to_image[:, 2]
        palms: list[Region] = []
        for best in np.argsort(-scores[sure]):
            centre, wrist, root = places[best]
            if not any(np.hypot(*(centre - palm[:2])) < _ONE_PALM * palm.size for palm in palms):
                palms.append(Region(float(centre[0]), float(centre[1]), float(sizes[best]), _upright(root - wrist)))
        return [_moved(palm, 0.5, 2.6) for palm in palms]


class HandLandmarker:
    """The hand landmarker: RGB (224, 224) in 0–1 to 21 points and the probability that they are a hand's."""

    _SIDE = 224

    def __init__(self) -> None:
        self._model = load("hand_landmark_lite.tflite")
        outputs = {output["name"]: output["index"] for output in self._model.get_output_details()}
        self._input = self._model.get_input_details()[0]["index"]
        self._points, self._score = outputs["Identity"], outputs["Identity_1"]

    def __call__(self, picture: Pixels, region: Region) -> HandPlacement:
        """Place the hand of a region."""
        crop, to_image = cut(picture, region, self._SIDE)
        self._model.set_tensor(self._input, _rgb(crop)[None])
        self._model.invoke()
        points = self._model.get_tensor(self._points).reshape(POINTS, 3).copy()
        points[:, :2] = points[:, :2] @ to_image[:, :2].T + to_image[:, 2]
        points[:, 2] *= region.size / self._SIDE
        return HandPlacement(points, float(self._model.get_tensor(self._score).ravel()[0]))


def region_of_hand(points: Points) -> Region:
    """Return the square to look for a hand in that was at `points` a frame ago."""
    roots = (points[5, :2] + points[13, :2]) / 4 + points[_MIDDLE_ROOT, :2] / 2
    angle = _upright(roots - points[0, :2])
    upright = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]], np.float32)
    turned = points[list(_PALM), :2] @ upright.T
    low, high = turned.min(axis=0), turned.max(axis=0)
    x, y = (low + high) / 2 @ upright
    return _moved(Region(float(x), float(y), float((high - low).max()), angle), 0.1, 2.0)


def _upright(along: NDArray[np.floating]) -> float:
    """Return the angle of a hand that points along a vector; 0 where its fingers point upward."""
    return float(np.arctan2(along[1], along[0]) + np.pi / 2)


def _moved(palm: Region, ahead: float, times: float) -> Region:
    """Return a square `times` as large, moved towards the fingers by `ahead` of the palm's size."""
    x = palm.x + np.sin(palm.angle) * ahead * palm.size
    y = palm.y - np.cos(palm.angle) * ahead * palm.size
    return Region(float(x), float(y), times * palm.size, palm.angle)


def _rgb(crop: Image) -> NDArray[np.float32]:
    return np.asarray(cv2.cvtColor(crop, cv2.COLOR_BGR2RGB) * np.float32(1 / 255), np.float32)
