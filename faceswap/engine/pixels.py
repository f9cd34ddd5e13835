"""The pixels of a picture as a swap gets at them: a part in full size or made smaller, to look at or to paint on.

A video's frame is converted from its planes only where somebody looks; a bitmap has its pixels ready.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

Area = tuple[int, int, int, int]
"""Left, top, right and bottom of a part of a picture, in whole pixels within it."""


class Pixels(Protocol):
    """A picture whose parts can be read and painted on, as uint8 (height, width, 3) BGR."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""

    def part(self, area: Area, scale: float = 1.0) -> Image:
        """Return a part that is not empty, not to be changed; made smaller its sides are rounded as is convenient."""

    def warped(self, matrix: NDArray[np.floating], side: int) -> Image:
        """Return a turned square, `side` pixels wide, an even number.

        `matrix`, (2, 3), leads from its pixels to the picture's.
        """

    def painted(self, area: Area) -> AbstractContextManager[Image]:
        """Give a part to paint on, which is put back at the end."""


@dataclass(frozen=True, eq=False)
class Bitmap:
    """The pixels of a still, uint8 (H, W, 3) BGR, painted on in place."""

    bgr: Image

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.bgr.shape[1], self.bgr.shape[0]

    def part(self, area: Area, scale: float = 1.0) -> Image:
        """Return a part, not copied in full size."""
        part = self._part(area)
        if scale == 1:
            return part
        height, width = part.shape[:2]
        return shrunk(part, (max(1, round(width * scale)), max(1, round(height * scale))))

    def warped(self, matrix: NDArray[np.floating], side: int) -> Image:
        """Return a turned square."""
        return warped(self.bgr, matrix, side)

    @contextmanager
    def painted(self, area: Area) -> Iterator[Image]:
        """Give a part to paint on."""
        yield self._part(area)

    def _part(self, area: Area) -> Image:
        left, top, right, bottom = area
        return self.bgr[top:bottom, left:right]


def whole(picture: Pixels) -> Area:
    """Return the area of all of a picture."""
    return 0, 0, *picture.size


def within(picture: Pixels, left: float, top: float, right: float, bottom: float) -> Area | None:
    """Return the whole pixels that a box touches within a picture, if there are any."""
    width, height = picture.size
    x0, y0 = max(0, int(np.floor(left))), max(0, int(np.floor(top)))
    x1, y1 = min(width, int(np.ceil(right))), min(height, int(np.ceil(bottom)))
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def in_blocks(area: Area, side: int) -> Area:
    """Return as much of an area as whole blocks of `side` pixels, an even number, make from an even pixel on.

    Such a part is made smaller by half the side several times faster than by about as much.
    """
    left, top = area[0] + area[0] % 2, area[1] + area[1] % 2
    across, down = (area[2] - left) // side * side, (area[3] - top) // side * side
    return (left, top, left + across, top + down) if across > 0 and down > 0 else area


def warped(picture: Image, matrix: NDArray[np.floating], side: int, beyond: int = 0) -> Image:
    """Return a turned square of a picture, or of one plane of it, with the value `beyond` its edges."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(picture, matrix, (side, side), flags=flags, borderValue=beyond), np.uint8)


def shrunk(picture: Image, size: tuple[int, int]) -> Image:
    """Return a picture, or one plane of it, at a smaller width and height."""
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
