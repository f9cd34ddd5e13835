"""The people of a clip, told apart by their looks, so that a face stays with its person through a crossing.

A tracker follows places. Where one person passes in front of another, a place may go over to the other of them, and a
face that comes back is a new place. Within one clip the colours of a face, read at the same points of everybody, are
enough to tell whose it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations

import cv2
import numpy as np
from numpy.typing import NDArray

from . import colour, mesh
from .colour import Floats
from .landmarks import find_faces
from .mesh import Image, Points
from .pixels import Bitmap, Pixels
from .tracking import Track

SHRUNKEN = 40.0
"""Pixels to which a face is shrunk before its colours are read."""

TONE_WEIGHT = 1.0
"""Weight of a difference in the tint of a whole face against one in its pattern."""

LOYALTY = 0.1
"""Difference in looks by which another person has to fit better to take a place over."""

FAMILIAR = 0.2
"""Difference in looks up to which a face adds to what is known of its person."""

LEARNING = 0.1
"""Share of the newest look in what is known of a person."""

NOWHERE = 0
"""The place of a face that is not followed."""

ALL_WAYS = 5
"""Up to so many faces and people all ways to name them are tried; among more the likest are named first."""


@dataclass(frozen=True)
class Look:
    """The looks of a face: log colours at the mesh's vertices, float32 (468, 3), and how well each was seen, (468,)."""

    colours: Floats
    seen: Floats

    @classmethod
    def of(cls, frame: Pixels, landmarks: Points) -> Look:
        """Read the looks of a face off a frame."""
        points = landmarks[: mesh.VERTICES, :2]
        low, high = np.floor(points.min(axis=0)).astype(int), np.ceil(points.max(axis=0)).astype(int) + 1
        left, top = np.clip(low, 0, np.array(frame.size) - 1)
        right, bottom = np.clip(high, (left + 1, top + 1), frame.size)
        part = frame.part((int(left), int(top), int(right), int(bottom)))
        scale = min(1.0, SHRUNKEN / float((high - low).max()))
        size = max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale))
        small = cv2.resize(part, size, interpolation=cv2.INTER_AREA)
        places = (points - (left, top)) * (np.array(size) / part.shape[1::-1])
        inside = ((places >= 0) & (places <= size)).all(axis=1)
        colours = colour.to_log(colour.read(small, places.astype(np.float32) - np.float32(0.5)))
        return cls(colours, np.asarray(mesh.visibility(landmarks) * inside, np.float32))

    def difference(self, other: Look) -> float:
        """Return the difference in looks: well under 0.1 for one face in one light, 0.4 for two that are unlike."""
        weights = self.seen * other.seen + np.float32(1e-4)
        weights = (weights / weights.sum())[:, None]
        apart = self.colours - other.colours
        tone = (apart * weights).sum(axis=0)
        pattern = float((np.abs(apart - tone) * weights).sum() / 3)
        return pattern + TONE_WEIGHT * float(np.abs(tone - tone.mean()).mean())

    def learned(self, newer: Look) -> Look:
        """Return what is known after a newer look; points that it does not show are kept."""
        share = LEARNING * np.clip(newer.seen, 0, 1)
        colours = self.colours + (newer.colours - self.colours) * share[:, None]
        return Look(np.asarray(colours, np.float32), np.maximum(self.seen * np.float32(0.999), newer.seen * LEARNING))


class People:
    """The people seen so far in a clip, numbered in the order in which they came into view, large to small."""

    def __init__(self, known: Sequence[Look] = ()) -> None:
        self._looks = list(known)
        self._places: dict[int, int] = {}

    @property
    def looks(self) -> tuple[Look, ...]:
        """The looks of each person, as far as they are known."""
        return tuple(self._looks)

    def meet(self, pictures: Sequence[Image]) -> bool:
        """Get to know the people of one frame by a picture of each, large to small; return whether all show a face."""
        looks = []
        for bgr in pictures:
            faces = find_faces(bgr, max_faces=1)
            if not faces:
                return False
            looks.append(Look.of(Bitmap(bgr), faces[0].landmarks))
        self._name(looks, [NOWHERE] * len(looks), range(len(looks)))
        return True

    def name(self, frame: Pixels, tracks: Sequence[Track]) -> list[int]:
        """Return for each face that is followed in the next frame the number of its person.

        A face that nobody known is left for is somebody new.
        """
        places = [track.identity for track in tracks]
        large_to_small = sorted(range(len(tracks)), key=lambda k: -tracks[k].area)
        named = self._name([Look.of(frame, track.raw) for track in tracks], places, large_to_small)
        self._places = dict(zip(places, named, strict=True))
        return named

    def _name(self, looks: Sequence[Look], places: Sequence[int], order: Iterable[int]) -> list[int]:
        """Name faces by their looks and places, new ones in `order`, and learn the looks."""
        pairs = zip(looks, places, strict=True)
        doubts = [[self._doubt(face, place, person) for person in range(len(self._looks))] for face, place in pairs]
        names = _assign(np.array(doubts).reshape(len(looks), len(self._looks)))
        for k in order:
            if names[k] is None:
                names[k] = len(self._looks)
                self._looks.append(looks[k])
        named = [name for name in names if name is not None]
        for person, face in zip(named, looks, strict=True):
            if face.difference(self._looks[person]) < FAMILIAR:
                self._looks[person] = self._looks[person].learned(face)
        return named

    def _doubt(self, face: Look, place: int, person: int) -> float:
        """Return how little a face is like a person, the less so where it was this person's a frame ago."""
        loyalty = LOYALTY if self._places.get(place) == person else 0.0
        return face.difference(self._looks[person]) - loyalty


def _assign(doubts: NDArray[np.float64]) -> list[int | None]:
    """Return for each row its own column, so that the sum is least; None for rows that no column is left for."""
    rows, columns = doubts.shape
    if max(rows, columns) > ALL_WAYS:
        return _assign_likest(doubts)
    padded = [*range(columns), *[None] * max(0, rows - columns)]
    ways = permutations(padded, rows)
    return list(min(ways, key=lambda way: sum(doubts[k, column] for k, column in enumerate(way) if column is not None)))


def _assign_likest(doubts: NDArray[np.float64]) -> list[int | None]:
    names: list[int | None] = [None] * len(doubts)
    for flat in np.argsort(doubts, axis=None):
        row, column = divmod(int(flat), doubts.shape[1])
        if names[row] is None and column not in names:
            names[row] = column
    return names
