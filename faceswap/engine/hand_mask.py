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


def over(hands: Sequence[Hand], matrix: NDArray[np.floating], size: tuple[int, int]) -> Floats:
    """Return the mask of hands, float32 0–1, in a drawing of a width and height.

    matrix    (2, 3), from the picture's pixels to those of the drawing; a whole number is a pixel's centre
    """
    mask = np.zeros(size[::-1], np.float32)
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    for hand in hands:
        points = (hand.points[:, :2] @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)
        mask = np.maximum(mask, _draw(points, palm_length(hand.points) * scale, size) * np.float32(hand.presence))
    return mask


def _draw(points: Points, palm: float, size: tuple[int, int]) -> Floats:
    """Return the mask of one hand, whose palm is `palm` pixels long."""
    outlines = np.zeros(size[::-1], np.uint8)
    circles = points[:, None] + _CIRCLE * (_RADII * np.float32(palm))[:, None, None]
    behind = points[0] - points[9]
    arm = circles[0] + behind * np.float32(_FOREARM * palm / max(float(np.hypot(*behind)), 1.0))
    _fill(outlines, np.concatenate([*circles[list(_PALM)]]))
    _fill(outlines, np.concatenate([circles[0], arm]))
    for finger in _FINGERS:
        for joint, following in pairwise(finger):
            _fill(outlines, np.concatenate([circles[joint], circles[following]]))
    return np.asarray(blur(outlines, max(0.8, _FEATHER * palm)) * np.float32(1 / 255), np.float32)


def _fill(mask: NDArray[np.uint8], corners: NDArray[np.float32]) -> None:
    outline = np.round(cv2.convexHull(corners) * (1 << _BITS)).astype(np.int32)
    cv2.fillConvexPoly(mask, outline, 255, cv2.LINE_AA, _BITS)
