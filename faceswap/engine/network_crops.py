"""Crops of faces as networks take them: cut out upright by five points, scaled, and put back.

A matrix is float64 (2, 3), from pixels of the picture to pixels of the crop; whole numbers are centres of pixels.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from .colour import Floats
from .mesh import Image, Points
from .network_kinds import Scaling

Matrix = NDArray[np.float64]

_EYES = ([33, 160, 158, 133, 153, 144], [362, 385, 387, 263, 373, 380])
_NOSE, _MOUTH = 4, (61, 291)
"""The landmarks where the points 36–47, 30, 48 and 54 of the usual 68 lie."""

_LEAST_SCALE = 1e-3
"""Pixels of a crop for one of the picture."""

REACH = 2.6
"""Size of a box that holds a turned crop, in multiples of the face's box."""

_FEATHER = 0.3
"""Blur of a crop's edge, as a share of half its side."""


def five_points(landmarks: Points) -> Points:
    """Return eyes, nose and corners of the mouth, float32 (5, 2), pixels, the picture's left ones first."""
    plane = landmarks[:, :2]
    eyes = [plane[eye].mean(axis=0) for eye in _EYES]
    return np.stack([*eyes, plane[_NOSE], *plane[list(_MOUTH)]]).astype(np.float32)


def fit(points: Points, places: Points) -> Matrix | None:
    """Return the matrix that turns, scales and moves points as near to their places as can be; None for no face."""
    # So wide a threshold takes in all points: the least squares of all five.
    matrix, _ = cv2.estimateAffinePartial2D(points, places, method=cv2.RANSAC, ransacReprojThreshold=100)
    if matrix is None or not np.isfinite(matrix).all():
        return None
    found = np.asarray(matrix, np.float64)
    return found if scale_of(found) > _LEAST_SCALE else None


def scale_of(matrix: Matrix) -> float:
    """Return the pixels of the crop for one of the picture."""
    return float(np.hypot(matrix[0, 0], matrix[1, 0]))


def enlarged(matrix: Matrix, factor: float) -> Matrix:
    """Return the matrix to a crop of `factor` times the side."""
    larger = matrix * factor
    larger[:, 2] += (factor - 1) / 2
    return larger


def cut(bgr: Image, matrix: Matrix, side: int) -> Image:
    """Cut a crop out, uint8 (side, side, 3); beyond the picture its edge goes on."""
    scale = scale_of(matrix)
    if scale < 0.5:  # too much for bilinear sampling: shrink first
        size = max(1, round(bgr.shape[1] * 2 * scale)), max(1, round(bgr.shape[0] * 2 * scale))
        shares = np.array([bgr.shape[1] / size[0], bgr.shape[0] / size[1]])
        bgr = np.asarray(cv2.resize(bgr, size, interpolation=cv2.INTER_AREA), np.uint8)
        offset = matrix[:, :2] @ ((shares - 1) / 2) + matrix[:, 2]
        matrix = np.column_stack([matrix[:, :2] * shares, offset])
    crop = cv2.warpAffine(bgr, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(crop, np.uint8)


def paste(frame: Image, crop: Image, matrix: Matrix, mask: Floats) -> None:
    """Put a crop back in place, as far as its mask, float32 (side, side) 0–1, lets it show."""
    side = len(crop)
    back = cv2.invertAffineTransform(matrix)
    corners = np.array([[0, 0], [side, 0], [side, side], [0, side]]) @ back[:, :2].T + back[:, 2]
    limit = np.array(frame.shape[1::-1])
    left, top = np.clip(np.floor(corners.min(axis=0)), 0, limit).astype(int)
    right, bottom = np.clip(np.ceil(corners.max(axis=0)) + 1, 0, limit).astype(int)
    if right <= left or bottom <= top:
        return
    placed = matrix.copy()
    placed[:, 2] += matrix[:, :2] @ (left, top)
    size, flags = (int(right - left), int(bottom - top)), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    face = cv2.warpAffine(crop, placed, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    cover = cv2.warpAffine(mask, placed, size, flags=flags, borderMode=cv2.BORDER_CONSTANT)
    part = frame[top:bottom, left:right]
    frame[top:bottom, left:right] = cv2.blendLinear(face, part, cover, 1 - cover)


@lru_cache(maxsize=8)
def box_mask(side: int) -> Floats:
    """Return the mask of a whole crop with a soft edge, float32 (side, side), the same array each time."""
    blur = int(side * 0.5 * _FEATHER)
    border = max(1, blur // 2)
    mask = np.zeros((side, side), np.float32)
    mask[border:-border, border:-border] = 1
    soft = np.asarray(cv2.GaussianBlur(mask, (0, 0), blur * 0.25), np.float32)
    soft.flags.writeable = False
    return soft


def to_network(crops: NDArray[np.uint8], scaling: Scaling) -> Floats:
    """Turn crops, uint8 (n, h, w, 3) BGR, into what a network takes: float32 (n, 3, h, w) RGB."""
    planes = np.ascontiguousarray(crops[..., ::-1].transpose(0, 3, 1, 2))  # as bytes: a fourth to move
    mean, deviation = _of_planes(scaling)
    return np.asarray(planes * (1 / (255 * deviation)) - mean / deviation, np.float32)


def from_network(pictures: Floats, scaling: Scaling) -> NDArray[np.uint8]:
    """Turn what a network gives, float32 (n, 3, h, w) RGB, into crops, uint8 (n, h, w, 3) BGR."""
    mean, deviation = _of_planes(scaling)
    planes = np.rint(np.clip(pictures * (255 * deviation) + 255 * mean, 0, 255)).astype(np.uint8)
    return np.ascontiguousarray(planes[:, ::-1].transpose(0, 2, 3, 1))


def _of_planes(scaling: Scaling) -> tuple[Floats, Floats]:
    """Return mean and deviation as float32 (3, 1, 1)."""
    mean, deviation = (np.array(part, np.float32)[:, None, None] for part in (scaling.mean, scaling.deviation))
    return mean, deviation


def divided(crop: Image, times: int) -> NDArray[np.uint8]:
    """Return the crop's sub-grids, every `times`-th pixel of every `times`-th row: uint8 (times², h, w, 3)."""
    side = len(crop) // times
    grids = crop.reshape(side, times, side, times, 3).transpose(1, 3, 0, 2, 4)
    return np.ascontiguousarray(grids.reshape(times * times, side, side, 3))


def joined(grids: NDArray[np.uint8], times: int) -> Image:
    """Put the sub-grids of `divided` back together."""
    side = grids.shape[1]
    crop = grids.reshape(times, times, side, side, 3).transpose(2, 0, 3, 1, 4)
    return np.ascontiguousarray(crop.reshape(side * times, side * times, 3))
