"""A filter of landmarks over time: steady while a face is calm, prompt when it moves."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .mesh import VERTICES, Points

_MOST_LAG = 0.015
"""Share of a face's size by which smoothed landmarks may be behind: noise is less, a fast move makes it more."""

_RIGID = [
    *(33, 133, 362, 263, 168, 6, 197, 195, 5, 4, 1, 2, 127, 356, 234, 454, 93, 323),
    *(151, 9, 8, 54, 284, 103, 332, 152, 148, 377),
]


class Smoother:
    """A filter against jitter on two levels: weak on the place and size of the face, strong on its shape.

    A filter on the points themselves would lag behind every movement of the head.
    """

    def __init__(self) -> None:
        self._pose = _OneEuro(cutoff=8, slope=60)
        self._shape = _OneEuro(cutoff=2, slope=40)
        self._reference: NDArray[np.complex128] | None = None

    def __call__(self, points: Points, seconds: float) -> Points:
        """Return the next frame's landmarks, (478, 3), `seconds` after the last, without their jitter."""
        plane = points[:, 0].astype(np.float64) + 1j * points[:, 1]
        rigid = plane[_RIGID]
        centre = rigid.mean()
        if self._reference is None:
            self._reference = (rigid - centre) / np.ptp(points[:VERTICES, :2], axis=0).max()
        # the similarity transform from the first frame's face, as one complex number
        turn = np.vdot(self._reference, rigid - centre) / np.vdot(self._reference, self._reference).real
        flat = (plane - centre) / turn
        shape = self._shape(np.stack([flat.real, flat.imag, points[:, 2] / abs(turn)], axis=1), 1.0, seconds)
        ends = np.array([[centre.real, centre.imag], [(centre + turn).real, (centre + turn).imag]])
        first, second = self._pose(ends, abs(turn), seconds) @ np.array([1, 1j])
        smooth = (shape[:, 0] + 1j * shape[:, 1]) * (second - first) + first
        lag = smooth - plane
        smooth = plane + lag / np.maximum(1, np.abs(lag) / (_MOST_LAG * abs(turn)))
        depth = shape[:, 2] * abs(second - first)
        return np.stack([smooth.real, smooth.imag, depth], axis=1).astype(np.float32)


class _OneEuro:
    """The One Euro filter (Casiez et al. 2012): steady when slow, prompt when fast. Cutoffs in hertz."""

    def __init__(self, cutoff: float, slope: float) -> None:
        self._cutoff, self._slope = cutoff, slope
        self._value: NDArray[np.float64] | None = None
        self._speed: Any = 0.0

    def __call__(self, value: NDArray[np.float64], unit: float, seconds: float) -> NDArray[np.float64]:
        """Filter (n, c) values; speed is measured in `unit` a second over the first two columns."""
        if self._value is None:
            self._value = value
            return value
        speed = (value - self._value) / (unit * seconds)
        self._speed = self._speed + _weight(1.0, seconds) * (speed - self._speed)
        pace = np.linalg.norm(self._speed[:, :2], axis=1, keepdims=True)
        self._value = self._value + _weight(self._cutoff + self._slope * pace, seconds) * (value - self._value)
        return self._value


def _weight(cutoff: Any, seconds: float) -> Any:
    """Return the share of a new value in a first-order low-pass filter."""
    return 1 / (1 + 1 / (2 * np.pi * cutoff * seconds))
