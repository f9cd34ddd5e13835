"""The imperceptible watermark of a still picture. docs/provenance.md describes it.

A still has no second frame to be compared with, so each frequency that carries a bit is moved to the next value that
stands for it (quantisation index modulation, Chen and Wornell 2001): which one the picture itself has does not matter.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from ..watermark import CODE_BITS, GRID, Floats, carriers, decoded, encoded

Picture = NDArray[np.uint8]

STEP = 10.0
"""Distance of two values that stand for the same bit, in the units of the transform of steps of 8 bits."""
LEAST_SIDE = 2 * max(GRID)
"""Pixels of the longer side, and half of them of the shorter, below which a picture is left as it is."""
ROUNDS = 4
"""Times that what scaling takes away of the pattern is put back."""
SAMPLE = 8
"""Pixels a cell at which that is found out."""
STRIP_ROWS = 256
"""Rows of a picture that are drawn at a time: as numbers with fractions a large one would fill the memory."""
SEED = 1

COLOURS = ((0.0, 1.773), (-0.714, -0.344), (1.403, 0.0))
"""Of Cr and Cb, in steps of 8 bits, in blue, green and red (BT.601)."""


def draw(bgr: Picture, payload: bytes) -> None:
    """Draw the watermark of a payload into a picture in place, uint8 (H, W, 3)."""
    if not _is_large(bgr):
        return
    plane, row, column, position, sign = carriers()
    wanted = STEP / 4 * sign * encoded(payload)[position]
    found = _spectrum(bgr)[plane, row, column]
    change = np.zeros((2, *GRID), np.float32)
    change[plane, row, column] = wanted + STEP * np.round((found - wanted) / STEP) - found
    is_wide = bgr.shape[1] >= bgr.shape[0]
    size = bgr.shape[1::-1]
    patterns = [_scaled(part if is_wide else part.T, size) for part in map(_pattern, change)]
    random = np.random.default_rng(SEED)
    for top in range(0, bgr.shape[0], STRIP_ROWS):
        strip = bgr[top : top + STRIP_ROWS]
        # A change is less than a step of 8 bits: which pixels get a whole one is drawn by lot.
        lots = random.random(strip.shape[:2], np.float32)
        red, blue = (pattern[top : top + STRIP_ROWS] for pattern in patterns)
        for channel, (of_red, of_blue) in enumerate(COLOURS):
            changed = strip[..., channel] + np.floor(of_red * red + of_blue * blue + lots)
            strip[..., channel] = np.clip(changed, 0, 255)


def read(bgr: Picture) -> bytes | None:
    """Return the payload of the watermark in a picture, None when there is none."""
    if not _is_large(bgr):
        return None
    plane, row, column, position, sign = carriers()
    values = sign * np.sin(2 * np.pi / STEP * _spectrum(bgr)[plane, row, column])
    bits = np.zeros(CODE_BITS, np.float32)
    np.add.at(bits, position, values)
    return decoded(bits)


def _is_large(bgr: Picture) -> bool:
    short, long = sorted(bgr.shape[:2])
    return bool(long >= LEAST_SIDE and short >= LEAST_SIDE // 2)


def _spectrum(bgr: Picture) -> Floats:
    """Return the transforms of the chroma planes of a picture on the grid, float32 (2, 32, 64)."""
    is_wide = bgr.shape[1] >= bgr.shape[0]
    size = GRID[::-1] if is_wide else GRID
    cells = cv2.merge([_scaled(bgr[..., channel].astype(np.float32), size) for channel in range(3)])
    chroma = cv2.split(cv2.cvtColor(cells, cv2.COLOR_BGR2YCrCb))[1:]
    parts = [np.ascontiguousarray(part if is_wide else part.T) for part in chroma]
    return np.stack([np.asarray(cv2.dct(part), np.float32) for part in parts])


def _pattern(spectrum: Floats) -> Floats:
    """Return the cells of a pattern such that, scaled to a picture and back, it has a spectrum."""
    wanted = np.asarray(cv2.idct(spectrum), np.float32)
    pattern = wanted
    for _ in range(ROUNDS):
        sample = _scaled(pattern, (GRID[1] * SAMPLE, GRID[0] * SAMPLE))
        pattern = pattern + wanted - _scaled(sample, GRID[::-1])
    return pattern


def _scaled(plane: Floats, size: tuple[int, ...]) -> Floats:
    """Return a plane in another size (width, height): means of what it shrinks, a smooth course where it grows."""
    way = cv2.INTER_AREA if size[0] < plane.shape[1] else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(np.ascontiguousarray(plane), size, interpolation=way), np.float32)
