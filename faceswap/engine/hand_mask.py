"""The mask of the hands in front of a face: they stay in front of the one that is put in."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from .colour import Floats, blur
from .hands import Hand, palm_length
from .mesh import Points
from .view import View

_FINGERS = tuple(tuple(range(root, root + 4)) for root in (1, 5, 9, 13, 17))
_PALM = (0, 1, 2, 5, 9, 13, 17)

_RADII = np.array(
    [0.28, *(0.18, 0.16, 0.135, 0.11), *(0.16, 0.12, 0.115, 0.1) * 3, *(0.15, 0.105, 0.1, 0.09)], np.float32
)
"""Half the thickness of a hand at each landmark, in lengths of its palm; measured on pictures of hands."""

_FOREARM = 0.5
"""Length of the forearm that is taken for a part of the hand, in lengths of its palm."""

_FEATHER = 0.04
"""Softness of the mask's edge, in lengths of the palm."""

_BITS = 4
"""Fraction bits of the coordinates that are drawn."""

_CORNERS = np.linspace(0, 2 * np.pi, 16, endpoint=False)
_CIRCLE = np.stack([np.cos(_CORNERS), np.sin(_CORNERS)], axis=1).astype(np.float32)


def over(view: View, hands: Sequence[Hand]) -> Floats:
    """Return the mask of the hands in a view, float32 0–1, one pixel a step."""
    mask = np.zeros(view.size[::-1], np.float32)
    for hand in hands:
        points = view.points(hand.points)
        size = palm_length(hand.points) / view.step
        mask = np.maximum(mask, draw(points[:, :2] - np.float32(0.5), size, view.size) * np.float32(hand.presence))
    return mask


def draw(points: Points, palm: float, size: tuple[int, int]) -> Floats:
    """Return the mask of one hand, whose palm is `palm` pixels long, in a picture of a size."""
    mask = np.zeros(size[::-1], np.uint8)
    circles = points[:, None] + _CIRCLE * (_RADII * np.float32(palm))[:, None, None]
    behind = points[0] - points[9]
    arm = circles[0] + behind * np.float32(_FOREARM * palm / max(float(np.hypot(*behind)), 1.0))
    _fill(mask, np.concatenate([*circles[list(_PALM)]]))
    _fill(mask, np.concatenate([circles[0], arm]))
    for finger in _FINGERS:
        for joint, following in pairwise(finger):
            _fill(mask, np.concatenate([circles[joint], circles[following]]))
    return np.asarray(blur(mask, max(0.8, _FEATHER * palm)) * np.float32(1 / 255), np.float32)


def _fill(mask: NDArray[np.uint8], corners: NDArray[np.float32]) -> None:
    outline = np.round(cv2.convexHull(corners) * (1 << _BITS)).astype(np.int32)
    cv2.fillConvexPoly(mask, outline, 255, cv2.LINE_AA, _BITS)
