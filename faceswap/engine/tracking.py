"""Faces followed through the frames of a clip.

The landmarker finds a face again where it was a frame ago. It can be sure of itself and wrong: on a neck after a fast
move, on another person after a cut. Therefore the pattern of light and dark on the face is held against that of the
frames before, and where the two differ the detector decides.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from typing import TypeGuard

import cv2
import numpy as np
from numpy.typing import NDArray

from .hands import Hand
from .landmarks import Finder, box_of, is_same_place, overlap, passes_of, region_of
from .mesh import VERTICES, Image, Points
from .networks import Placement, Region
from .pixels import Pixels, in_blocks, whole, within
from .smoothing import Smoother

LOOKAHEAD = 6
"""Frames over which a face that comes into view is traced back, where so many are held back."""

DETECT_EVERY = LOOKAHEAD
"""Frames between two looks for new faces while all known ones are followed: those found are traced back to the last."""

SEARCH_S = 3.0
"""Seconds after a loss in which faces are looked for more often: who is hidden behind somebody comes back."""

CALM = 0.045
"""Share of the distance of the eyes that no landmark of a face that hardly moves goes in two frames."""

STEADY = 0.05
"""Share of the distance of the eyes by which no landmark of a face that keeps its course leaves it in two frames.

The frame between is interpolated: it is off by an eighth of that.
"""

CHECK_S = 1.0
"""Seconds between two looks of the detector at a face that is followed without doubt."""

ALIKE = 0.7
"""Correlation of two patterns from which on they are one face: 0.85 and more from frame to frame."""

UNLIKE = 0.4
"""Correlation of two patterns under which they are not one face: two people have 0.3."""

_ALIKE_OVER_CUT = 0.85
_LEARNING, _LEARNING_IN_DOUBT = 0.3, 0.1
"""Share of the newest pattern in what is known of a face: less where something may be in front of it."""

_PATTERN_NOISE = 3.0
"""Contrast of a pattern, in steps of 8 bits, that says little."""

_COURSE_SIDE = 48
_LEAST_WAY, _MOST_WAY = 0.5, 1.6
"""Shares of a way, at so many pixels a side or more: the shorter half to the longer one, both halves to the whole."""

_AROUND = 3.0
"""Size of the surroundings in which a face that is in doubt is looked for, in sizes of the face."""

_CUT_SIDE = 16
_CUT_CHANGE = 20.0
_CUT_SHARE = 0.6
"""In another shot this share of a picture of so many pixels a side changes by so many steps of 8 bits."""


@dataclass
class Track:
    """One face in one frame.

    identity    the same number from frame to frame for as long as the face is followed
    landmarks   smoothed over time, float32 (478, 3), pixels
    raw         as the model gave them for this frame alone
    pattern     brightness at the vertices, float32 (468,), as known of the face
    presence    0–1: less than 1 while a face comes into view or leaves it
    target      which of the wanted targets it is
    likeness    correlation of its pattern in this frame with the known one: less where something comes in front of it
    hands       those that may be in front of it
    """

    identity: int
    landmarks: Points
    raw: Points
    pattern: NDArray[np.float32]
    presence: float = 1.0
    target: int = 0
    likeness: float = 1.0
    hands: tuple[Hand, ...] = ()

    @property
    def area(self) -> float:
        """Area of the face's box, square pixels."""
        left, top, right, bottom = box_of(self.raw)
        return float((right - left) * (bottom - top))

    def seen_from(self, left: int, top: int) -> Track:
        """Return the track in a part of the frame that begins at a pixel."""
        corner = np.array([left, top, 0], np.float32)
        hands = tuple(hand.seen_from(left, top) for hand in self.hands)
        return replace(self, landmarks=self.landmarks - corner, raw=self.raw - corner, hands=hands)


class Tracker:
    """A tracker of up to `max_faces` faces through the frames of a clip, which have to come in order.

    lookahead        frames over which a face can be traced back; none are left out without
    is_later_part    faces may be hidden at its beginning, as after a loss
    """

    def __init__(
        self, max_faces: int, frame_rate: float = 25.0, *, lookahead: int = 0, is_later_part: bool = False
    ) -> None:
        self._finder = Finder()
        self._max_faces = max_faces
        self._seconds = 1 / max(frame_rate, 1.0)
        self._followed: list[_Followed] = []
        self._lost: list[_Followed] = []
        self._recent: deque[Pixels] = deque(maxlen=max(1, lookahead) + 1)
        self._interpolates = lookahead > 0
        self._waiting: Pixels | None = None
        self._frames = -1
        self._lost_at = 0 if is_later_part else None
        self._identities = 0
        self.begins_shot = False
        """True after the first frame of a shot, as far as its faces tell."""

    def follow(self, frame: Pixels) -> Iterator[tuple[Pixels, list[Track]]]:
        """Take the next frame; yield each frame whose faces are known by now, in order, with these.

        While faces keep their course every second frame waits for the next one, and its landmarks are interpolated.
        """
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            if self._interpolates and self._may_wait():
                self._waiting = frame
            else:
                yield frame, self(frame)
            return
        ends = [self._finder.place(frame, region_of(face.ahead)) for face in self._followed]
        steady = [(face, end) for face, end in zip(self._followed, ends, strict=True) if face.is_steady_until(end)]
        sure = [(face, end) for face, end in steady if face.is_between(self._recent[-1], waiting, frame, end)]
        if len(sure) < len(ends):
            ahead = {face.identity: end for face, end in steady}
            yield waiting, self(waiting)
            yield frame, self(frame, ahead)
            return
        between = [face.between(end) for face, end in sure]
        for picture, placed in ((waiting, between), (frame, [end for _, end in sure])):
            self._recent.append(picture)
            self._frames += 1
            self.begins_shot = False
            self._followed = [face.seen(p, self._frames) for face, p in zip(self._followed, placed, strict=True)]
            yield picture, self._tracks()

    def finish(self) -> Iterator[tuple[Pixels, list[Track]]]:
        """Yield the frame that waits for a next one that does not come, with its faces."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            yield waiting, self(waiting)

    def _may_wait(self) -> bool:
        """Return whether faces keep their course, and the detector is not to be asked in the next two frames."""
        two = (self._frames + 1, self._frames + 2)
        is_due = self._room() > 0 and any(self._is_detection_due(number) for number in two)
        steady = (face.is_steady and not self._is_check_due(face, two[1]) for face in self._followed)
        return bool(self._followed) and not is_due and all(steady)

    def __call__(self, frame: Pixels, ahead: Mapping[int, Placement] | None = None) -> list[Track]:
        """Return the faces of the next frame at once. `ahead`: faces that are placed in it already, by identity."""
        self._recent.append(frame)
        self._frames += 1
        self.begins_shot = self._frames == 0
        before = self._followed
        self._followed = self._follow(frame, ahead or {})
        kept = {face.identity for face in self._followed}
        lost = [face for face in before if face.identity not in kept]
        if lost:
            self._lost_at = self._frames
            self._lost += lost
        self._lost = [face for face in self._lost if (self._frames - face.frame) * self._seconds < SEARCH_S]
        for face in self._followed:
            self._recognise(face)
        if self._room() > 0 and (lost or self._is_detection_due(self._frames)):
            self._detect_new(frame)
        if self.begins_shot:
            self._lost.clear()
        return self._tracks()

    def _tracks(self) -> list[Track]:
        return [face.track(self._seconds) for face in self._followed]

    def trace_back(self, track: Track, frames: int) -> tuple[list[Track], bool]:
        """Return the tracks of a face in up to `frames` frames before the last, newest first.

        Also return whether a shot begins with the earliest of them. The frames must be as they were.
        """
        smoother = Smoother()
        smoother(track.raw, self._seconds)
        traced: list[Track] = []
        for after, frame in islice(pairwise(reversed(self._recent)), frames):
            if _is_cut(frame, after):
                return traced, True
            placed = self._finder.place(frame, region_of(track.raw))
            if placed is None or _agreement(placed.pattern, track.pattern) < ALIKE:
                break
            track = replace(track, raw=placed.points, landmarks=smoother(placed.points, self._seconds))
            traced.append(track)
        return traced, False

    def _follow(self, frame: Pixels, ahead: Mapping[int, Placement]) -> list[_Followed]:
        """Place the faces that were followed; where two come to one place it is that of the one more alike."""
        placed = [(face, self._place(frame, face, ahead.get(face.identity))) for face in self._followed]
        least = _ALIKE_OVER_CUT if self.begins_shot else UNLIKE
        sure = [(face.agreement(there), face, there) for face, there in placed if there is not None]
        taken: list[Points] = []
        kept = []
        for agreement, face, there in sorted(sure, key=lambda known: -known[0]):
            if agreement >= least and not any(is_same_place(there.points, other) for other in taken):
                taken.append(there.points)
                kept.append(face.seen(there, self._frames))
        return sorted(kept, key=lambda face: face.identity)

    def _place(self, frame: Pixels, face: _Followed, ahead: Placement | None) -> Placement | None:
        """Place a face where it was, unless it is placed; in doubt, and now and then without, ask the detector."""
        placed = ahead or self._finder.place(frame, region_of(face.raw))
        is_alike = placed is not None and face.agreement(placed) >= ALIKE
        if is_alike and not self._is_check_due(face, self._frames):
            return placed
        face.checked = self._frames
        if not is_alike and len(self._recent) > 1 and _is_cut(self._recent[-2], frame):
            self.begins_shot = True
        seen = self._finder.detect(frame, [_around(face)])
        if placed is not None and is_alike and not _is_elsewhere(region_of(placed.points), seen):
            return placed
        detected = [there for region in seen if (there := self._finder.place_detected(frame, region)) is not None]
        if placed is not None and any(is_same_place(placed.points, there.points) for there in detected):
            detected.append(placed)
        return max(detected, key=face.agreement, default=None)

    def _room(self) -> int:
        """Return how many more faces may be followed: one in excess while a lost one may come back beside it."""
        return self._max_faces + bool(self._lost) - len(self._followed)

    def _is_check_due(self, face: _Followed, frame: int) -> bool:
        return (frame - face.checked) * self._seconds >= CHECK_S

    def _is_detection_due(self, frame: int) -> bool:
        searched = self._lost_at is not None and (frame - self._lost_at) * self._seconds < SEARCH_S
        if self._followed:
            return frame % (2 if searched else DETECT_EVERY) == 0
        return searched or frame % 2 == 0

    def _detect_new(self, frame: Pixels) -> None:
        """Find faces beside those that are followed; one that is like a lost face is taken for it."""
        known = [face.raw for face in self._followed]
        found = self._finder.find(frame, self._passes(frame), self._room(), known)
        if found and len(self._recent) > 1 and not self.begins_shot:
            self.begins_shot = _is_cut(self._recent[-2], frame)
        self._followed += [self._known_or_new(placed) for placed in found]

    def _passes(self, frame: Pixels) -> Iterable[Iterable[Region]]:
        """Return where to look for faces: all over in the first frame of a shot, in a part or two of a later one.

        The first frame of a clip is looked at as a still is: it may be one, and its faces are those that people
        choose from. One part a look keeps the cost of an empty scene low; a small face waits for its turn.
        """
        if self._frames == 0:
            return passes_of(frame)
        if self.begins_shot:
            return passes_of(frame, (1.0, 0.5))
        everywhere, *others = [[region] for regions in passes_of(frame) for region in regions]
        passes = [[_around(face)] for face in self._lost[-1:]] + [everywhere]
        return passes if self._followed else [*passes, others[self._frames // 2 % len(others)]]

    def _known_or_new(self, placed: Placement) -> _Followed:
        best = max(self._lost, key=lambda face: face.agreement(placed), default=None)
        if best is not None and best.agreement(placed) >= self._least_agreement(best, placed):
            self._lost = [face for face in self._lost if face is not best]
            return best.seen(placed, self._frames)
        self._identities += 1
        return _Followed(self._identities, placed.points, placed.pattern, self._frames, self._frames, self._frames)

    def _recognise(self, face: _Followed) -> None:
        """Give a face that was taken for a new one, half hidden, the identity of the lost one that it is."""
        if self._frames - face.first > LOOKAHEAD:
            return
        for other in self._lost:
            if other.frame < face.first and _agreement(other.pattern, face.pattern) >= ALIKE:
                face.identity = other.identity
                self._lost = [left for left in self._lost if left is not other]
                return

    def _least_agreement(self, face: _Followed, placed: Placement) -> float:
        """Return how alike a face has to be to be one that was lost: less so at its place, more so in another shot."""
        if self.begins_shot:
            return _ALIKE_OVER_CUT
        is_near = overlap(box_of(placed.points), box_of(face.raw)) > 0.3
        return UNLIKE if is_near and self._frames - face.frame <= LOOKAHEAD else ALIKE


@dataclass
class _Followed:
    """The tracker's record of a face: when it was first and last seen, and how and where it was then and before.

    `checked` is the frame in which the detector was last asked about it, `likeness` that of the last frame.
    """

    identity: int
    raw: Points
    pattern: NDArray[np.float32]
    frame: int
    checked: int
    first: int
    likeness: float = 1.0
    smoother: Smoother = field(default_factory=Smoother)
    earlier: tuple[Points, ...] = ()
    """Its places in the two frames before, newest first."""

    @property
    def ahead(self) -> Points:
        """The place of the face in two frames if it keeps its course: the same, if it hardly moves."""
        return self.raw if _is_calm(self.earlier[1], self.raw) else 2 * self.raw - self.earlier[1]

    @property
    def is_steady(self) -> bool:
        """True while the face has kept its course for two frames."""
        return len(self.earlier) == 2 and _is_steady(self.earlier[1], self.earlier[0], self.raw)

    def is_steady_until(self, end: Placement | None) -> TypeGuard[Placement]:
        """Return whether the face has kept its course since it was last seen, two frames ago."""
        return end is not None and self.agreement(end) >= ALIKE and _is_steady(self.earlier[1], self.raw, end.points)

    def is_between(self, before: Pixels, middle: Pixels, after: Pixels, end: Placement) -> bool:
        """Return whether a picture shows the face half way to a place, as far as it moves at all."""
        return _is_calm(self.raw, end.points) or _is_half_way(before, middle, after, self.between(end).points)

    def between(self, end: Placement) -> Placement:
        """Return the face half way to a place: if it moves, on the parabola through that, this and the last place."""
        is_calm = _is_calm(self.raw, end.points)
        shares = np.array([0, 0.5, 0.5] if is_calm else [-0.125, 0.75, 0.375], np.float32)
        points = np.tensordot(shares, [self.earlier[1], self.raw, end.points], 1)
        return end._replace(points=points, pattern=(self.pattern + end.pattern) * np.float32(0.5))

    def agreement(self, placed: Placement) -> float:
        return _agreement(placed.pattern, self.pattern)

    def seen(self, placed: Placement, frame: int) -> _Followed:
        """Learn how the face looks in a frame, and where it is."""
        self.likeness = self.agreement(placed)
        share = _LEARNING if self.likeness >= ALIKE else _LEARNING_IN_DOUBT
        if frame - self.frame > 1:
            self.smoother, self.earlier = Smoother(), ()
        self.earlier = (self.raw, *self.earlier[:1])
        self.pattern = self.pattern + np.float32(share) * (placed.pattern - self.pattern)
        self.raw, self.frame = placed.points, frame
        return self

    def track(self, seconds: float) -> Track:
        landmarks = self.smoother(self.raw, seconds)
        return Track(self.identity, landmarks, self.raw, self.pattern, likeness=self.likeness)


def _is_calm(before: Points, after: Points) -> bool:
    """Return whether no landmark has moved far."""
    return _farthest(after - before, after) < CALM


def _is_steady(first: Points, second: Points, third: Points) -> bool:
    """Return whether no landmark moves far, or each goes on as far as it came."""
    if _is_calm(first, second) and _is_calm(second, third):
        return True
    return _farthest(first - 2 * second + third, third) < STEADY


def _farthest(moves: Points, points: Points) -> float:
    """Return the longest move of a landmark, as a share of the distance of the eyes."""
    x, y = moves[:VERTICES, 0], moves[:VERTICES, 1]
    eyes = points[263, :2] - points[33, :2]
    return float(np.sqrt((x * x + y * y).max() / (eyes @ eyes)))


def _is_half_way(before: Pixels, middle: Pixels, after: Pixels, points: Points) -> bool:
    """Return whether the picture in the middle is as far from those before and after it, and on the way.

    It is not where frames are shown twice, or the camera shakes.
    """
    area = within(middle, *map(float, box_of(points)))
    if area is None:
        return False
    times = max(1, max(area[2] - area[0], area[3] - area[1]) // _COURSE_SIDE)
    views = [frame.part(in_blocks(area, 2 * times), 1 / times) for frame in (before, middle, after)]
    there, on, whole = (float(cv2.absdiff(views[a], views[b]).mean()) for a, b in ((0, 1), (1, 2), (0, 2)))
    return min(there, on) >= _LEAST_WAY * max(there, on) and there + on <= _MOST_WAY * whole


def _is_elsewhere(region: Region, seen: list[Region]) -> bool:
    """Return whether the face of a region is seen half beside it, and not in it. A detector does not see every face."""
    distances = [np.hypot(region.x - other.x, region.y - other.y) / region.size for other in seen]
    return 0.25 < min(distances, default=0.0) < 0.8


def _around(face: _Followed) -> Region:
    """Return the surroundings of the place of a face, upright."""
    left, top, right, bottom = map(float, box_of(face.raw))
    return Region((left + right) / 2, (top + bottom) / 2, _AROUND * max(right - left, bottom - top), 0)


def _agreement(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Return the correlation of two patterns; 1 where there is too little contrast to tell."""
    a, b = a - a.mean(), b - b.mean()
    noise = _PATTERN_NOISE**2 * len(a)
    return float((a @ b + noise) / (np.sqrt((a @ a) * (b @ b)) + noise))


def _is_cut(before: Pixels, after: Pixels) -> bool:
    """Return whether two frames are of different shots: most of the picture has changed much."""
    change = cv2.absdiff(_small(before), _small(after)).max(axis=2)
    return float((change > _CUT_CHANGE).mean()) > _CUT_SHARE


def _small(frame: Pixels) -> Image:
    """Return a whole frame at so few pixels that only the shot is seen."""
    part = frame.part(whole(frame), min(1.0, 4 * _CUT_SIDE / max(frame.size)))
    return np.asarray(cv2.resize(part, (_CUT_SIDE, _CUT_SIDE), interpolation=cv2.INTER_AREA), np.uint8)
