"""Masks of the swap: the source's face shows inside the face, on skin, not on the target's open mouth and eyes.

All masks are float32 in 0–1, drawn at the coarse resolution of a view; points are in its pixels, a whole number being
a pixel's centre.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from . import mesh
from .colour import Floats, blur
from .mesh import Points, smoothstep

_FEATHER = 0.035
"""Softness of the mask's edge, as a share of the face's size."""

_LID_FEATHER = 0.02
"""Softness of the edge of the lids, as a share of the face's size."""

_BITS = 4
"""Fraction bits of the coordinates that are drawn."""

_FEATURES = (
    *((eye, 1.35, 2.0) for eye in mesh.EYES),
    *((brow, 1.2, 1.5) for brow in mesh.BROWS),
    (mesh.LIPS_OUTER, 1.15, 1.2),
    (mesh.NOSTRILS, 1.3, 1.3),
)
_OVAL_SHRINK = np.full((len(mesh.OVAL), 1), 0.96, np.float32)
_OVAL_SHRINK[[0, 1, 2, 3, -1, -2, -3]] = 0.93  # the forehead more, for hair


def oval(points: Points, size: tuple[int, int], face: float) -> Floats:
    """Return the inside of a face whose extent is `face` pixels, with a soft edge that lies within it."""
    outline = points[mesh.OVAL, :2]
    centre = outline.mean(axis=0)
    mask = np.zeros(size[::-1], np.uint8)
    _fill(mask, cv2.convexHull((centre + (outline - centre) * _OVAL_SHRINK).astype(np.float32)), 255)
    softness = max(0.8, _FEATHER * face)
    reach = max(1, int(softness * 1.1))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    return _soft(cv2.erode(mask, disc), softness)


def kept(points: Points, size: tuple[int, int], face: float, mouth: float, eyes: float, lids: Floats) -> Floats:
    """Return the mask of the target's own parts by their shares: inside the lips, both eyes, the lids of each eye."""
    mask = np.zeros(size[::-1], np.uint8)
    _fill(mask, points[mesh.LIPS_INNER, :2], 255 * mouth)
    for eye in mesh.EYES:
        _fill(mask, _widened(points[eye, :2], 1.12, 1.35), 255 * eyes)
    soft = _soft(mask, max(0.6, 0.008 * face))
    if not lids.any():
        return soft
    mask[:] = 0
    for outline, share in zip(mesh.LIDS, lids, strict=True):
        _fill(mask, cv2.convexHull(points[outline, :2].mean(axis=1)), 255 * float(share))
    return np.maximum(soft, _soft(mask, max(0.8, _LID_FEATHER * face)))


def skin(points: Points, face: float, residual: Floats, variation: Floats, bearded: bool) -> Floats:
    """Return the probability that the target shows its own face, and not hair, a hand or a microphone.

    residual    log colour of the target without the light on its skin, float32 (h, w, 3)
    variation   covariance of such residuals on skin
    bearded     true if it has a beard, which is part of it
    """
    precision = np.linalg.inv(variation * 1.6 + np.eye(3) * 0.012).astype(np.float32)
    squares = cv2.transform(cv2.transform(residual, precision) * residual, np.ones((1, 3), np.float32))
    likely = 1 - smoothstep(np.sqrt(np.maximum(squares, 0)), 2.8, 4.6)
    # Eyes, brows and lips look like no skin: they are taken for what lies around them.
    features = np.zeros(residual.shape[:2], np.uint8)
    for ids, across, down in _FEATURES:
        _fill(features, cv2.convexHull(_widened(points[ids, :2], across, down)), 255)
    reach = int(0.3 * face) | 1
    around = smoothstep(np.asarray(cv2.blur(likely, (reach, reach)), np.float32), 0.3, 0.55)
    likely = np.maximum(likely, _soft(features, max(0.8, 0.015 * face)) * around)
    if bearded:
        beard = np.zeros(residual.shape[:2], np.uint8)
        _fill(beard, cv2.convexHull(points[mesh.BEARD, :2]), 255)
        likely = np.maximum(likely, _soft(beard, max(0.8, 0.03 * face)))
    return np.asarray(blur(cv2.erode(likely, np.ones((3, 3), np.uint8)), max(0.8, 0.012 * face)), np.float32)


def _widened(points: Points, across: float, down: float) -> Points:
    centre = points.mean(axis=0)
    return np.asarray(centre + (points - centre) * np.array([across, down], np.float32), np.float32)


def _fill(mask: NDArray[np.uint8], outline: NDArray[np.generic], value: float) -> None:
    if value >= 1:
        corners = np.round(np.asarray(outline, np.float32).reshape(1, -1, 2) * (1 << _BITS)).astype(np.int32)
        cv2.fillPoly(mask, corners, int(value), cv2.LINE_AA, _BITS)  # type: ignore[call-overload]  # the stubs want a list


def _soft(mask: NDArray[np.generic], sigma: float) -> Floats:
    return np.asarray(blur(mask, sigma) * np.float32(1 / 255), np.float32)
