"""The drawing of marks into frames, for the engine and for the service."""

from __future__ import annotations

from .label import Label, Plane
from .marks import Marks
from .watermark import Watermark


class Marker:
    """Marks, ready for frames of one size (width and height in pixels, both even)."""

    def __init__(self, marks: Marks, size: tuple[int, int]) -> None:
        self._number = marks.first_frame
        self._watermark = Watermark(marks.payload, size)
        self._label = Label(marks.label, size) if marks.label else None

    def apply(self, planes: Plane) -> None:
        """Mark the next frame in place: I420, uint8 (H · 3/2, W), in one piece."""
        if self._label:
            self._label.apply(planes)
        self._watermark.apply(planes, self._number)
        self._number += 1
