"""Parts of a source's texture: groups of the mesh's points drawn as masks, and means over what is known."""

from __future__ import annotations

import cv2
import numpy as np

from .colour import Floats, blur

Regions = tuple[tuple[list[int], float, float], ...]
"""Groups of points, each with the factors by which its hull is widened across and down."""


def painted(layout: Floats, regions: Regions, size: int, softness: float) -> Floats:
    """Return a mask of regions, float32 (size, size) 0–1, its edges blurred by `softness` pixels."""
    mask = np.zeros((size, size), np.uint8)
    for ids, across, down in regions:
        points = layout[ids]
        centre = points.mean(axis=0)
        outline = cv2.convexHull(centre + (points - centre) * np.array([across, down], np.float32))
        cv2.fillConvexPoly(mask, outline.astype(np.int32), 255)
    return np.asarray(blur(mask, softness) / np.float32(255), np.float32)


def average(flat: Floats, weight: Floats, sigma: float) -> tuple[Floats, Floats]:
    """Return the mean around each place, weighted by (size, size), and the weight there (normalised convolution)."""
    weight = weight[..., None]
    known = np.concatenate([flat * weight, weight], axis=-1)
    share = min(1.0, 4 / sigma)  # a wide mean needs no fine grid
    coarse = blur(cv2.resize(known, None, fx=share, fy=share, interpolation=cv2.INTER_AREA), sigma * share)
    around = cv2.resize(coarse, known.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(around[..., :3] / (around[..., 3:] + 1e-4), np.float32), np.asarray(around[..., 3:], np.float32)
