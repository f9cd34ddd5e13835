"""Face landmarks: faces are found in a still and followed through a clip."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .mesh import VERTICES, Image, Points
from .networks import CERTAIN, Box, Detector, Landmarker, Region

DETECT_EVERY = 10
"""Frames between two looks for new faces while all known ones are followed."""

SEARCH_S = 3.0
"""Seconds after a loss in which every second frame is looked at: who is hidden behind somebody comes back."""

FADE_IN = 4
"""Frames over which a face that comes into view is handed over."""

_SMALLEST = 12.0
"""Faces narrower than this, in pixels, are taken for noise."""

_PADDED = 96
"""Pixels to which the longer side is shrunk to find a face that is too large, or cut by the edge."""

_SMALLEST_TILE = 64
"""Parts of a picture that are looked at on their own are no smaller, in pixels."""

_RIGID = [
    *(33, 133, 362, 263, 168, 6, 197, 195, 5, 4, 1, 2, 127, 356, 234, 454, 93, 323),
    *(151, 9, 8, 54, 284, 103, 332, 152, 148, 377),
]


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
        left, top, right, bottom = map(float, _box(self.landmarks))
        return left, top, right, bottom


@dataclass(frozen=True)
class Track:
    """One face in one frame.

    identity    the same number from frame to frame for as long as the face is followed
    landmarks   smoothed over time, float32 (478, 3), pixels
    raw         as the model gave them for this frame alone
    presence    0–1: less than 1 in the first frames of a face that came into view
    target      which of the wanted targets it is
    """

    identity: int
    landmarks: Points
    raw: Points
    presence: float = 1.0
    target: int = 0

    @property
    def area(self) -> float:
        """Area of the face's box, square pixels."""
        left, top, right, bottom = _box(self.raw)
        return float((right - left) * (bottom - top))


def find_faces(bgr: Image, max_faces: int = 16) -> list[Face]:
    """Find the faces of a still, large to small (ReActor's default order).

    Small faces are looked for in parts of the picture, and ones too large for the detector in a shrunken one,
    where the whole picture shows none.
    """
    finder = _Finder()
    found = _find_thoroughly(finder, bgr, max_faces)
    found.sort(key=_area, reverse=True)
    return [Face(points, finder.score(bgr, points)) for points in found]


class Tracker:
    """A tracker of up to `max_faces` faces through the frames of a clip, which have to come in order.

    `is_later_part`: faces may be hidden at its beginning, as after a loss.
    """

    def __init__(self, max_faces: int, frame_rate: float = 25.0, *, is_later_part: bool = False) -> None:
        self._finder = _Finder()
        self._max_faces = max_faces
        self._seconds = 1 / max(frame_rate, 1.0)
        self._followed: list[_Followed] = []
        self._frames = 0
        self._lost_at = 0 if is_later_part else None
        self._identities = 0

    def __call__(self, bgr: Image) -> list[Track]:
        """Return the faces of the next frame."""
        found: list[Points] = []
        kept, lost = [], []
        for face in self._followed:
            points = self._finder.place(bgr, _region_of(face.raw))
            if points is None or _is_known(points, found):
                lost.append(face)
                continue
            face.raw = points
            found.append(points)
            kept.append(face)
        if lost:
            self._lost_at = self._frames
        if self._max_faces > len(kept) and (lost or self._is_detection_due(bool(kept))):
            kept += self._detect_new(bgr, found, lost)
        self._followed = kept
        self._frames += 1
        return [face.track(self._seconds) for face in kept]

    def _is_detection_due(self, any_known: bool) -> bool:
        searched = self._lost_at is not None and (self._frames - self._lost_at) * self._seconds < SEARCH_S
        return self._frames % (DETECT_EVERY if any_known and not searched else 2) == 0

    def _detect_new(self, bgr: Image, found: list[Points], lost: list[_Followed]) -> list[_Followed]:
        """Find faces beside `found`; one at the place of a lost face is taken for that face.

        The first frame is looked at as a still is: it may be one, and its faces are those that people choose from.
        """
        if self._frames == 0:
            found += _find_thoroughly(self._finder, bgr, self._max_faces)
            return [self._followed_at(points, lost) for points in found]
        known = len(found)
        boxes = self._finder.detect(bgr)
        if not known and not len(boxes):
            tiles = _tiles(*bgr.shape[:2])
            # One part a look keeps the cost of an empty scene low; a small face waits for its turn.
            boxes = self._finder.detect(bgr, tiles[self._frames // 2 % len(tiles)])
        self._finder.add(bgr, boxes, found, self._max_faces)
        return [self._followed_at(points, lost) for points in found[known:]]

    def _followed_at(self, points: Points, lost: list[_Followed]) -> _Followed:
        for face in lost:
            if _overlap(_box(points), _box(face.raw)) > 0.3:
                lost.remove(face)
                face.raw = points
                return face
        self._identities += 1
        return _Followed(self._identities, points, FADE_IN if self._frames == 0 else 0)


@dataclass
class _Followed:
    """The tracker's record of a face; `age` counts frames up to FADE_IN."""

    identity: int
    raw: Points
    age: int
    smoother: _Smoother = field(default_factory=lambda: _Smoother())

    def track(self, seconds: float) -> Track:
        self.age = min(self.age + 1, FADE_IN)
        return Track(self.identity, self.smoother(self.raw, seconds), self.raw, self.age / FADE_IN)


def _region_of(points: Points) -> Region:
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


class _Finder:
    """A detector and a landmarker together."""

    def __init__(self) -> None:
        self._detector = Detector()
        self._landmarker = Landmarker()

    def detect(self, bgr: Image, tile: tuple[int, int, int, int] | None = None) -> Box:
        """Return detections, (n, 9), largest first: box, score, both eyes. `tile` is left, top, right, bottom."""
        left, top, right, bottom = tile or (0, 0, bgr.shape[1], bgr.shape[0])
        boxes = self._detector(bgr[top:bottom, left:right])
        boxes[:, [0, 2, 5, 7]] += left
        boxes[:, [1, 3, 6, 8]] += top
        return _merged(boxes)

    def place(self, bgr: Image, region: Region) -> Points | None:
        """Return the landmarks of the face in a region, if there is one."""
        if not _SMALLEST <= region.size <= 8 * max(bgr.shape):
            return None
        points, score = self._landmarker(bgr, region)
        middle = points[:VERTICES, :2].mean(axis=0)
        is_inside = (middle >= 0).all() and (middle < bgr.shape[1::-1]).all()
        if score < CERTAIN or not is_inside or np.ptp(points[:VERTICES, 0]) < _SMALLEST:
            return None
        return points

    def score(self, bgr: Image, points: Points) -> float:
        """Return the probability, 0–1, that a face is at the landmarks that were found."""
        return float(self._landmarker(bgr, _region_of(points))[1])

    def add(self, bgr: Image, boxes: Box, found: list[Points], limit: int) -> None:
        """Append to `found` the landmarks of the detected faces that it does not hold yet, up to `limit`."""
        for box in boxes:
            if len(found) >= limit:
                return
            points = self.place(bgr, _region_of_box(box))
            # The landmarker is at its best when its region comes from landmarks.
            points = None if points is None else self.place(bgr, _region_of(points))
            if points is not None and not _is_known(points, found):
                found.append(points)


class _Smoother:
    """A filter against jitter on two levels: weak on the place and size of the face, strong on its shape.

    A filter on the points themselves would lag behind every movement of the head.
    """

    def __init__(self) -> None:
        self._pose = _OneEuro(cutoff=8, slope=60)
        self._shape = _OneEuro(cutoff=2, slope=40)
        self._reference: NDArray[np.complex128] | None = None

    def __call__(self, points: Points, seconds: float) -> Points:
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


def _find_thoroughly(finder: _Finder, bgr: Image, max_faces: int) -> list[Points]:
    """Return the faces of the first pass that shows any."""
    found: list[Points] = []
    for boxes in _detection_passes(finder, bgr):
        finder.add(bgr, boxes, found, max_faces)
        if found:
            break
    return found


def _detection_passes(finder: _Finder, bgr: Image) -> Iterator[Box]:
    """Yield detections, ever more thorough: the whole, the whole made smaller, parts of half the size and less."""
    height, width = bgr.shape[:2]
    yield finder.detect(bgr)
    scale = _PADDED / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(bgr, size, interpolation=cv2.INTER_AREA)
    margin = _PADDED // 2
    padded = cv2.copyMakeBorder(small, margin, margin, margin, margin, cv2.BORDER_REPLICATE)
    boxes = finder.detect(np.asarray(padded, np.uint8))
    places = [0, 1, 2, 3, 5, 6, 7, 8]
    boxes[:, places] = (boxes[:, places] - margin) / scale
    yield boxes
    yield _merged(np.concatenate([finder.detect(bgr, tile) for tile in _tiles(height, width)]))


def _tiles(height: int, width: int) -> list[tuple[int, int, int, int]]:
    """Return overlapping squares as left, top, right, bottom: of the shorter side, of half and of a quarter of it."""
    sides = [max(_SMALLEST_TILE, int(min(height, width) * share)) for share in (1.0, 0.5, 0.25)]
    tiles = (
        (left, top, min(left + side, width), min(top + side, height))
        for side in sides
        for top in _starts(height, side)
        for left in _starts(width, side)
    )
    return list(dict.fromkeys(tiles))


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


def _box(points: Points) -> Box:
    plane = points[:VERTICES, :2]
    return np.concatenate([plane.min(axis=0), plane.max(axis=0)])


def _area(points: Points) -> float:
    return float(np.ptp(points[:VERTICES, 0]) * np.ptp(points[:VERTICES, 1]))


def _overlap(a: Box, b: Box) -> float:
    """Return intersection over union of two boxes."""
    common = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    areas = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod()
    return float(common / (areas - common + 1e-9))


def _is_known(points: Points, found: list[Points]) -> bool:
    return any(_overlap(_box(points), _box(other)) > 0.4 for other in found)
