"""A source's forehead without what covers or shades it, which is not the face."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from .colour import Floats, blur
from .mesh import smoothstep
from .texels import Regions, average, painted

_KEPT = 0.2
"""Difference from the skin's log colour, over all channels, that skin keeps: the rest is hair, or a shadow."""

_STRAND = (0.1, 0.18)
"""Difference from the forehead around, in log colour, from which on and at which it is a strand of hair."""

_DENSE = (0.1, 0.4)
"""Share of strands in a place from which on and at which what lies between them is taken for hair as well."""

_FRINGE = (0.06, 0.1)
"""Share of the forehead under strands from which on and at which they are a fringe: a few may be lines of the face."""

_FOREHEAD: Regions = (([54, 68, 63, 105, 107, 336, 334, 293, 298, 284, 332, 297, 338, 10, 109, 67, 103], 1.15, 1.1),)


def bared(flat: Floats, layout: Floats, features: Floats, tone: Any) -> Floats:
    """Give the forehead the colour of skin, where a fringe or a hat covers or shades it, and take strands off it.

    flat        log colour, float32 (size, size, 3)
    layout      places of the mesh's points in the texture, float32 (586, 2), pixels
    features    mask of what is no bare skin, float32 (size, size) 0–1
    tone        mean log colour of the skin, (3,)
    """
    size = len(flat)
    skin = 1 - features
    forehead = painted(layout, _FOREHEAD, size, size / 60) * skin
    difference = average(flat, skin, size / 60)[0] - tone
    distance = np.linalg.norm(difference, axis=-1, keepdims=True) + 1e-6
    flat = np.asarray(flat - forehead[..., None] * difference * np.clip(1 - _KEPT / distance, 0, None), np.float32)
    around, _ = average(flat, skin, size / 60)
    strand = smoothstep(np.abs(blur(flat, size / 300) - around).mean(axis=-1), *_STRAND)
    fringe = smoothstep(np.asarray((forehead * strand).sum() / (forehead.sum() + 1e-6)), *_FRINGE)
    if not fringe:
        return flat
    strand = np.maximum(cv2.dilate(strand, np.ones((3, 3))), smoothstep(blur(strand, size / 40), *_DENSE))
    around, _ = average(flat, skin * (1 - strand) ** 4, size / 25)
    return np.asarray(flat + (forehead * strand * fringe)[..., None] * (around - flat), np.float32)
