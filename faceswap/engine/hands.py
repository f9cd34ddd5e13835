"""Hands: found near a face, placed where they are looked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from .hand_networks import HandLandmarker, PalmDetector, region_of_hand
from .mesh import Points
from .networks import Region
from .pixels import Pixels

_NEW, _KNOWN = 0.8, 0.5
"""Probability from which on something is a hand, where a palm was detected and where a hand was a frame ago."""

_SMALLEST, _LARGEST = 0.06, 0.5
"""Length of a palm as a share of the region that is looked at: others are no hand, or one that is not at the face."""

_APART = 0.25
"""Distance of two hands, as a share of their regions' size, under which they are one."""

_TRIED = 3
"""Palms that are looked at more closely, the surest ones: an ear can look like one."""


@dataclass(frozen=True)
class Hand:
    """A hand in one frame.

    points    float32 (21, 3): x, y and depth in pixels
    presence  0–1: less than 1 while the hand is only just known, or lost
    """

    points: Points
    presence: float = 1.0

    def seen_from(self, left: int, top: int) -> Hand:
        """Return the hand in a part of the frame that begins at a pixel."""
        return replace(self, points=self.points - np.array([left, top, 0], np.float32))


def palm_length(points: Points) -> float:
    """Return the length of a palm in pixels, from the wrist to the root of the middle finger, also if it is turned."""
    return float(np.linalg.norm(points[9] - points[0]))


class HandFinder:
    """A palm detector and a hand landmarker together, opened when they are first needed."""

    @cached_property
    def _detector(self) -> PalmDetector:
        return PalmDetector()

    @cached_property
    def _landmarker(self) -> HandLandmarker:
        return HandLandmarker()

    def follow(self, picture: Pixels, points: Points) -> Points | None:
        """Return the hand that was at `points` a frame ago, if it is still there."""
        placed = self._landmarker(picture, region_of_hand(points))
        return placed.points if placed.score >= _KNOWN else None

    def find(self, picture: Pixels, region: Region, limit: int, known: Sequence[Points]) -> list[Points]:
        """Return up to `limit` hands in a region that are as large as hands at its face, beside `known` ones."""
        found: list[Points] = []
        for palm in self._detector(picture, region)[: _TRIED if limit else 0]:
            if any(is_same_hand(palm, region_of_hand(other)) for other in (*known, *found)):
                continue
            points = self._place(picture, palm)
            if points is not None and _SMALLEST < palm_length(points) / region.size < _LARGEST:
                found.append(points)
        return found[:limit]

    def _place(self, picture: Pixels, palm: Region) -> Points | None:
        """Return the hand of a palm; the landmarker is at its best when its region comes from landmarks."""
        seen = self._landmarker(picture, palm)
        if seen.score < _KNOWN:
            return None
        placed = self._landmarker(picture, region_of_hand(seen.points))
        return placed.points if placed.score >= _NEW else None


def is_same_hand(a: Region, b: Region) -> bool:
    """Return whether two regions are of one hand."""
    return float(np.hypot(a.x - b.x, a.y - b.y)) < _APART * max(a.size, b.size)
