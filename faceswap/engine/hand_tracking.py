"""Hands followed through the frames of a clip, where they may be in front of a face that is replaced."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from .fades import FADE
from .hand_networks import region_of_hand
from .hands import Hand, HandFinder, is_same_hand, palm_length
from .landmarks import box_of
from .mesh import Points
from .networks import Region
from .pixels import Pixels
from .tracking import Track

MOST_HANDS = 2

LOOK_EVERY = 16
"""Frames between two looks for hands around a face that looks as it did."""

SEARCH_EVERY = 4
"""Frames between two looks while a face looks as if something were in front of it, or a hand is missed."""

DOUBT = 0.88
"""Likeness of a face under which something may be in front of it: 0.9 and more while it talks and turns."""

_AROUND = 2.4
"""Size of the surroundings in which hands are looked for, in sizes of the face."""

_BELOW = 0.2
"""Distance of their middle from the face's, in sizes of the face."""

_FAR = 2.0
"""Distance from every face, in sizes of a face, beyond which a hand is followed no more."""

_REST = 0.02
"""Move, in lengths of its palm, under which a hand rests."""

_SMOOTH, _PROMPT = 0.4, 0.15
"""Share of a hand's new place that is taken while it rests; the move, in lengths of its palm, from which on all is."""

_COMING, _LEAVING = 1 / 2, 1 / (FADE + 1)
"""Share of a hand that comes in with each frame that shows it, and leaves with each that does not: it may be missed."""


@dataclass
class _Followed:
    """A hand that is followed: where it is, how far it has come into view, and whether it was seen just now."""

    points: Points
    coming: float
    is_seen: bool = True
    rests: bool = False
    """True after a frame in which it hardly moved: the next one is taken to show it at the same place."""


@dataclass
class _Held:
    """A frame that is held back, with its faces and its hands."""

    frame: Pixels
    tracks: list[Track]
    hands: list[Hand] = field(default_factory=list)


class HandTracker:
    """A tracker of the hands at the faces of a clip, whose frames have to come in order.

    lookahead    frames that are held back: a hand is traced back through them
    """

    def __init__(self, lookahead: int) -> None:
        self._finder = HandFinder()
        self._held: deque[_Held] = deque(maxlen=lookahead + 1)
        self._followed: list[_Followed] = []
        self._since_look = LOOK_EVERY
        self._looks = 0

    def add(self, frame: Pixels, tracks: list[Track], *, begins_shot: bool) -> None:
        """Take the faces of the next frame; those of the frames that are held back get the hands in front of them."""
        if begins_shot:
            self._held.clear()
            self._followed.clear()
            self._since_look = LOOK_EVERY
        self._held.append(_Held(frame, tracks))
        self._follow(frame, tracks)
        self._since_look += 1
        if tracks and self._room() and self._is_look_due(tracks):
            self._look(frame, tracks, begins_shot=begins_shot)
        self._held[-1].hands += [Hand(hand.points, hand.coming) for hand in self._followed]
        for held in self._held:
            for track in held.tracks:
                track.hands = tuple(held.hands)

    def _room(self) -> int:
        return MOST_HANDS - sum(hand.is_seen for hand in self._followed)

    def _is_look_due(self, tracks: list[Track]) -> bool:
        """Return whether it is time for a look: sooner for a hand that is missed, and where none explains a doubt."""
        wait = LOOK_EVERY
        if any(not hand.is_seen for hand in self._followed):
            wait = SEARCH_EVERY
        elif any(track.likeness < DOUBT for track in tracks):
            wait = SEARCH_EVERY * (1 + len(self._followed))
        return self._since_look >= wait

    def _follow(self, frame: Pixels, tracks: list[Track]) -> None:
        """Place the hands where they were; one that is not seen fades out there."""
        for hand in self._followed:
            if hand.rests:
                hand.rests = False
                continue
            points = self._finder.follow(frame, hand.points)
            hand.is_seen = points is not None
            if points is not None:
                moved = _move(hand.points, points)
                hand.rests = moved < _REST and hand.coming == 1
                share = np.float32(_SMOOTH + (1 - _SMOOTH) * min(1.0, moved / _PROMPT))
                hand.points = hand.points + (points - hand.points) * share
            hand.coming = min(1.0, hand.coming + (_COMING if hand.is_seen else -_LEAVING))
        self._followed = [hand for hand in self._followed if hand.coming > 0 and _is_near(hand.points, tracks)]

    def _look(self, frame: Pixels, tracks: list[Track], *, begins_shot: bool) -> None:
        """Look for hands around a face, the most doubtful one or each in turn; around all where a shot begins."""
        self._since_look = 0
        self._looks += 1
        doubtful = min(tracks, key=lambda track: track.likeness)
        one = doubtful if doubtful.likeness < DOUBT else tracks[self._looks % len(tracks)]
        for track in tracks if begins_shot else [one]:
            known = [hand.points for hand in self._followed if hand.is_seen]
            for points in self._finder.find(frame, _around(track), self._room(), known):
                self._come(points, begins_shot=begins_shot)

    def _come(self, points: Points, *, begins_shot: bool) -> None:
        """Follow a hand that was found: one that was missed goes on, another fades in where it came into view."""
        place = region_of_hand(points)
        for hand in self._followed:
            if not hand.is_seen and is_same_hand(place, region_of_hand(hand.points)):
                hand.points, hand.is_seen, hand.coming = points, True, min(1.0, hand.coming + _COMING)
                return
        traced: list[tuple[_Held, Points]] = []
        for held in list(self._held)[-2::-1]:
            earlier = self._finder.follow(held.frame, traced[-1][1] if traced else points)
            if earlier is None:
                break
            traced.append((held, earlier))
        for age, (held, there) in enumerate(traced):
            held.hands.append(Hand(there, min(1.0, (len(traced) - age) * _COMING)))
        coming = 1.0 if begins_shot else min(1.0, (len(traced) + 1) * _COMING)
        self._followed.append(_Followed(points, coming))


def _move(before: Points, after: Points) -> float:
    """Return how far the points of a hand have moved on the average, in lengths of its palm."""
    return float(np.abs(after[:, :2] - before[:, :2]).mean()) / palm_length(after)


def _around(track: Track) -> Region:
    """Return the surroundings of a face, upright, and more of what is below: hands come from there."""
    left, top, right, bottom = map(float, box_of(track.raw))
    size = max(right - left, bottom - top)
    return Region((left + right) / 2, (top + bottom) / 2 + _BELOW * size, _AROUND * size, 0)


def _is_near(points: Points, tracks: list[Track]) -> bool:
    """Return whether a hand is near a face; where there is none for a moment, it is."""
    place = region_of_hand(points)
    regions = [_around(track) for track in tracks]
    near = (np.hypot(place.x - region.x, place.y - region.y) < _FAR / _AROUND * region.size for region in regions)
    return not regions or any(near)
