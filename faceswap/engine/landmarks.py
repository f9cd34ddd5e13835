"""Face landmarks: the faces of a picture are found, and placed where they are looked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .mesh import VERTICES, Image, Points
from .networks import CERTAIN, Box, Detector, Landmarker, Placement, Region
from .pixels import Bitmap, Pixels

_SMALLEST = 12.0
"""Faces narrower than this, in pixels, are taken for noise."""

_SMALLEST_PART = 64
"""Parts of a picture that are looked at on their own are no smaller, in pixels."""

_SETTLED = 0.05
"""Share of a region's size up to which a face may be off its middle."""

_ROUNDS = 3
"""Places in which a face is looked for, each where the last seemed to show it."""


@dataclass(frozen=True)
class Face:
    """A face in a picture.

    landmarks   float32 (478, 3): x, y and depth in pixels
    score       0–1, the probability that it is one
    """

    landmarks: Points
    score: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom in pixels."""
        left, top, right, bottom = map(float, box_of(self.landmarks))
        return left, top, right, bottom


def find_faces(bgr: Image, max_faces: int = 16) -> list[Face]:
    """Find the faces of a still, large to small (ReActor's default order).

    Small faces are looked for in parts of the picture, and ones too large for the detector in a shrunken one,
    where the whole picture shows none.
    """
    still = Bitmap(bgr)
    found = [Face(placed.points, placed.score) for placed in Finder().find(still, passes_of(still), max_faces)]
    found.sort(key=lambda face: _area(face.landmarks), reverse=True)
    return found


def region_of(points: Points) -> Region:
    """Return the square to look for a face in that was at `points` a frame ago."""
    across = points[263, :2] - points[33, :2]
    angle = float(np.arctan2(across[1], across[0]))
    upright = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]], np.float32)
    turned = points[:, :2] @ upright.T
    low, high = turned.min(axis=0), turned.max(axis=0)
    x, y = (low + high) / 2 @ upright
    return Region(float(x), float(y), float((high - low).max() * 1.5), angle)


def _region_of_box(box: Box) -> Region:
    """Return the square around a detection, (9,), upright by its eyes."""
    left, top, right, bottom, _, x0, y0, x1, y1 = map(float, box)
    size = max(right - left, bottom - top) * 1.7
    return Region((left + right) / 2, (top + bottom) / 2, size, float(np.arctan2(y1 - y0, x1 - x0)))


class Finder:
    """A detector and a landmarker together."""

    def __init__(self) -> None:
        self._detector = Detector()
        self._landmarker = Landmarker()

    def detect(self, picture: Pixels, regions: Iterable[Region]) -> list[Region]:
        """Return the places of the faces that are detected in any of `regions`, largest first."""
        boxes = np.concatenate([self._detector(picture, region) for region in regions])
        return [_region_of_box(box) for box in _merged(boxes)]

    def place(self, picture: Pixels, region: Region) -> Placement | None:
        """Return the face in a region, if there is one.

        Where the face is not in the middle, the region is moved: away from it the landmarker may be sure and wrong.
        """
        for _ in range(_ROUNDS):
            if not _SMALLEST <= region.size <= 8 * max(picture.size):
                return None
            placed = self._landmarker(picture, region)
            start, region = region, region_of(placed.points)
            if np.hypot(region.x - start.x, region.y - start.y) < _SETTLED * start.size:
                break
        middle = placed.points[:VERTICES, :2].mean(axis=0)
        is_inside = (middle >= 0).all() and (middle < picture.size).all()
        is_face = placed.score >= CERTAIN and np.ptp(placed.points[:VERTICES, 0]) >= _SMALLEST
        return placed if is_inside and is_face else None

    def place_detected(self, picture: Pixels, region: Region) -> Placement | None:
        """Return the face of a detection; the landmarker is at its best when its region comes from landmarks."""
        placed = self.place(picture, region)
        return None if placed is None else self.place(picture, region_of(placed.points))

    def find(
        self, picture: Pixels, passes: Iterable[Iterable[Region]], limit: int, known: Sequence[Points] = ()
    ) -> list[Placement]:
        """Return up to `limit` faces of the first pass that shows any beside `known` ones."""
        found: list[Placement] = []
        taken = list(known)
        for regions in passes:
            for region in self.detect(picture, regions):
                placed = self.place_detected(picture, region) if len(found) < limit else None
                if placed is not None and not any(is_same_place(placed.points, other) for other in taken):
                    found.append(placed)
                    taken.append(placed.points)
            if found:
                break
        return found


def passes_of(picture: Pixels, shares: Sequence[float] = (1.0, 0.5, 0.25)) -> list[list[Region]]:
    """Return regions to look for faces in, ever more thorough.

    The whole; the whole and as much around it, for a face that is too large or cut by the edge; then parts, as wide
    as `shares` of the shorter side.
    """
    width, height = picture.size
    x, y, size = width / 2, height / 2, float(max(height, width))
    return [[Region(x, y, size, 0)], [Region(x, y, 2 * size, 0)], list(_parts(height, width, shares))]


def _parts(height: int, width: int, shares: Sequence[float]) -> Iterator[Region]:
    """Yield overlapping squares, as wide as `shares` of the shorter side."""
    sides = dict.fromkeys(max(_SMALLEST_PART, int(min(height, width) * share)) for share in shares)
    for side in sides:
        for top in _starts(height, side):
            for left in _starts(width, side):
                yield Region(left + side / 2, top + side / 2, side, 0)


def _starts(length: int, side: int) -> list[int]:
    """Return the starts of stretches of `side` that cover `length` and overlap by a quarter or more."""
    last, step = max(0, length - side), side * 3 // 4
    return [*range(0, last, step), last]


def _merged(boxes: Box) -> Box:
    """Join detections of one face, weighted by score, and sort them by size, largest first."""
    merged = []
    boxes = boxes[np.argsort(-boxes[:, 4])]
    while len(boxes):
        best = boxes[0]
        low, high = np.maximum(boxes[:, :2], best[:2]), np.minimum(boxes[:, 2:4], best[2:4])
        common = np.clip(high - low, 0, None).prod(axis=1)
        areas = (boxes[:, 2:4] - boxes[:, :2]).prod(axis=1)
        same = (common > 0.3 * (areas + areas[0] - common)) | (common > 0.6 * np.minimum(areas, areas[0]))
        same[0] = True
        merged.append(np.average(boxes[same], axis=0, weights=boxes[same, 4]))
        boxes = boxes[~same]
    merged.sort(key=lambda box: float((box[2] - box[0]) * (box[3] - box[1])), reverse=True)
    return np.array(merged, np.float32).reshape(-1, 9)


def box_of(points: Points) -> Box:
    """Return left, top, right and bottom of a face, float32 (4,)."""
    plane = points[:VERTICES, :2]
    return np.concatenate([plane.min(axis=0), plane.max(axis=0)])


def _area(points: Points) -> float:
    return float(np.ptp(points[:VERTICES, 0]) * np.ptp(points[:VERTICES, 1]))


def overlap(a: Box, b: Box) -> float:
    """Return intersection over union of two boxes."""
    common = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    areas = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod()
    return float(common / (areas - common + 1e-9))


def is_same_place(a: Points, b: Points) -> bool:
    """Return whether two faces are at one place."""
    return overlap(box_of(a), box_of(b)) > 0.4
