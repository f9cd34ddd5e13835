"""The flaws of a face in a picture that is to be a source: small, cut off, turned away or lit from one side.

In a worker process.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from ..engine.landmarks import Face
from .stills import Picture

LEAST_PIXELS = 80
"""Width of a face that is not small."""
MOST_CUT = 0.02
"""Share of a face's landmarks that may lie beyond the picture's edge."""
MOST_TURNED = 30.0
"""Degrees by which a face may be turned to a side, up or down."""
MOST_ONE_SIDED = 0.5
"""Difference between the two sides of an evenly lit face, in natural logarithms of lightness."""

_SIDES, _ENDS = (234, 454), (10, 152)
"""Landmarks at the sides of a face, and at its top and chin."""
_RIGHT = (50, 101, 205, 187, 123, 117, 108, 69, 104)
_LEFT = (280, 330, 425, 411, 352, 346, 337, 299, 333)
"""Landmarks on cheeks and forehead, and those on the other side."""
_SIDE = 40
"""Pixels to which a face is shrunk to see how its light falls."""
_DARK = 8.0
"""Steps of 8 bits that are added to lightness, so that black against nearly black is no difference."""


def flaws_of(bgr: Picture, face: Face) -> Iterator[str]:
    """Yield the flaws of a face: `small`, `cut`, `turned`, `one_sided`."""
    points, size = face.landmarks, np.array(bgr.shape[1::-1])
    left, _, right, _ = face.box
    plane = points[:, :2]
    if right - left < LEAST_PIXELS:
        yield "small"
    if ((plane < 0) | (plane >= size)).any(axis=1).mean() > MOST_CUT:
        yield "cut"
    if max(abs(_angle(points[second] - points[first])) for first, second in (_SIDES, _ENDS)) > MOST_TURNED:
        yield "turned"
    if _one_sidedness(bgr, face) > MOST_ONE_SIDED:
        yield "one_sided"


def _one_sidedness(bgr: Picture, face: Face) -> float:
    """Return how much lighter one side of a face is, in natural logarithms."""
    limit = np.array(bgr.shape[1::-1])
    low, high = (np.clip(end, 0, limit).astype(int) for end in (face.box[:2], face.box[2:]))
    part = bgr[low[1] : high[1], low[0] : high[0]]
    if not part.size:
        return 0.0
    small = cv2.resize(part, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).mean(axis=2) + _DARK
    x, y = ((face.landmarks[[*_RIGHT, *_LEFT], :2] - low) / (high - low) * _SIDE).astype(int).clip(0, _SIDE - 1).T
    right, left = np.split(np.log(small[y, x]), 2)
    return abs(float(np.median(right - left)))


def _angle(line: np.ndarray) -> float:
    """Return by how many degrees a line, x, y and depth, leads away from the picture's plane."""
    return float(np.degrees(np.arctan2(line[2], np.hypot(line[0], line[1]))))
