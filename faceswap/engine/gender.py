"""The gender of a face, for ReActor's `detect_gender`: a small network of dlib's models, run by OpenCV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from .mesh import Image, Points
from .network_crops import REACH, cut, fit
from .networks import MODELS
from .swap import Painter, Source, painter_of
from .tracking import Track

Gender = Literal["female", "male"]

_SIDE = 32
_MEAN = (122.782, 117.001, 104.298)
"""Of R, G and B in the pictures that the network was trained on."""

_POINTS = [263, 362, 33, 133, 2]
"""The landmarks of dlib's five points: corners of the left and of the right eye, outer first, and below the nose."""

_PLACES = np.array(
    [(0.8596, 0.2135), (0.6461, 0.229), (0.1206, 0.2137), (0.3341, 0.2291), (0.4901, 0.6278)], np.float32
)
_MARGIN = 0.2
"""Of the face on each side of the crop, as a share of the face."""

_FIRST_LOOKS = 8
"""Frames of a face that are all looked at; later ones `_LOOK_EVERY` apart."""
_LOOK_EVERY = 25
_DOUBT = 0.2
"""Distance from 0.5 by which the mean has to contradict what a face was taken for."""


class GenderNetwork:
    """The network, for one thread at a time."""

    def __init__(self) -> None:
        self._network = cv2.dnn.readNetFromONNX(str(MODELS / "gender.onnx"))

    def maleness(self, bgr: Image, landmarks: Points) -> float:
        """Return the probability, 0–1, that a face is a man's."""
        places = (_PLACES + np.float32(_MARGIN)) / np.float32(1 + 2 * _MARGIN) * np.float32(_SIDE)
        matrix = fit(np.ascontiguousarray(landmarks[_POINTS, :2], np.float32), places)
        if matrix is None:
            return 0.5
        blob = cv2.dnn.blobFromImage(cut(bgr, matrix, _SIDE), 1 / 256, mean=_MEAN, swapRB=True)
        self._network.setInput(blob)
        return float(self._network.forward()[0, 1])

    def is_of(self, gender: Gender, bgr: Image, landmarks: Points) -> bool:
        """Return whether a face of a still is of a gender."""
        return (self.maleness(bgr, landmarks) > 0.5) == (gender == "male")


@dataclass(frozen=True, eq=False)
class FaceForGender:
    """A face to put in that goes onto faces of one gender only; others are left alone."""

    source: Source
    gender: Gender

    def painter(self, strength: float) -> Painter:
        """Return a painter of one tracked face."""
        return _GenderPainter(painter_of(self.source, strength), self.gender)


class _GenderPainter:
    """A painter that leaves a face of the other gender alone; it judges by many frames, so that none flickers."""

    def __init__(self, painter: Painter, gender: Gender) -> None:
        self._painter, self._is_male = painter, gender == "male"
        self.reach = max(painter.reach, REACH)
        self._network = GenderNetwork()
        self._frames = self._looks = 0
        self._mean = 0.5
        self._taken_for_male = False

    def paint(self, frame: Image, track: Track) -> bool:
        """Paint the face of one frame, unless it is of the other gender."""
        if self._frames < _FIRST_LOOKS or self._frames % _LOOK_EVERY == 0:
            self._look(frame, track.landmarks)
        self._frames += 1
        return self._taken_for_male == self._is_male and self._painter.paint(frame, track)

    def _look(self, frame: Image, landmarks: Points) -> None:
        self._looks += 1
        self._mean += (self._network.maleness(frame, landmarks) - self._mean) / self._looks
        if self._looks == 1 or abs(self._mean - 0.5) > _DOUBT:
            self._taken_for_male = self._mean > 0.5
