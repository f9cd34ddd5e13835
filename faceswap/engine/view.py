"""A box of a frame: what a painter looks at, in the frame's pixels and in coarse steps."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from . import mesh
from .colour import Floats
from .mesh import Image, Points


@dataclass(frozen=True)
class View:
    """A box of a frame, in pixels, looked at in steps of `step` pixels."""

    left: int
    top: int
    right: int
    bottom: int
    step: int

    @classmethod
    def around(cls, points: Points, frame: Image, step: int) -> View:
        """Return the box around points, with a margin, inside the frame: of whole steps, where there is room."""
        low = np.floor(points[:, :2].min(axis=0)).astype(int) - 3
        high = np.ceil(points[:, :2].max(axis=0)).astype(int) + 4
        height, width = frame.shape[:2]
        left, top = max(0, int(low[0])), max(0, int(low[1]))
        across, down = -(-(int(high[0]) - left) // step) * step, -(-(int(high[1]) - top) // step) * step
        return cls(left, top, min(width, left + across), min(height, top + down), step)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in steps, rounded up."""
        return -(-(self.right - self.left) // self.step), -(-(self.bottom - self.top) // self.step)

    @property
    def is_too_small(self) -> bool:
        """True where nothing can be seen in it."""
        return self.right - self.left < 8 or self.bottom - self.top < 8

    def of(self, frame: Image) -> Image:
        """Return the box of a frame, not copied."""
        return frame[self.top : self.bottom, self.left : self.right]

    def replace(self, frame: Image, content: Image) -> None:
        """Put the box back into the frame."""
        frame[self.top : self.bottom, self.left : self.right] = content

    def coarse(self, picture: Image) -> Image:
        """Shrink the box's content to one pixel a step."""
        return np.asarray(cv2.resize(picture, self.size, interpolation=cv2.INTER_AREA), np.uint8)

    def points(self, points: Points) -> Points:
        """Turn points of the frame into steps; the first step spans 0–1. Depth stays."""
        steps = points.copy()
        steps[:, :2] = (points[:, :2] - np.array([self.left, self.top], np.float32) + 0.5) / self.step
        return steps

    @property
    def to_steps(self) -> Floats:
        """The matrix (2, 3) from the frame's pixels to the steps of a drawing, whole numbers being centres in both."""
        scale, shift = 1 / self.step, (0.5 / self.step) - 0.5
        left, top = shift - self.left * scale, shift - self.top * scale
        return np.array([[scale, 0, left], [0, scale, top]], np.float32)

    def draw(self, points: Points, values: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        """Draw values at the mesh's points, one pixel a step; also return the mask of the mesh."""
        return mesh.rasterize(self.points(points), values, self.size)

    def fine(self, values: Floats) -> Floats:
        """Enlarge a drawing to the box's own pixels."""
        size = self.size[0] * self.step, self.size[1] * self.step
        large = cv2.resize(values, size, interpolation=cv2.INTER_LINEAR)
        return np.ascontiguousarray(large[: self.bottom - self.top, : self.right - self.left], np.float32)
