"""The glasses that a target wears: they stay in front of the face that is put in."""

from __future__ import annotations

import cv2
import numpy as np

from . import colour, mesh
from .colour import Floats
from .glasses import LEAST_CONTRAST, find_glasses
from .mesh import Image, Points, Pose
from .view import View

_SIZE = 256
"""Side of the texture, in pixels, in which glasses are looked for."""

_MARGIN = np.ones((5, 5), np.uint8)
"""Texels around glasses that a source's are hidden with, and a target's are kept without."""

_LEAST_FACE_PIXELS = 80
"""Faces smaller than this show no rim that could be told from a lid."""

_THIN_CONTRAST = 0.035
"""Contrast of rims of thin metal, on a large face; bare faces have 0.00 to 0.02."""

_LARGE_FACE_PIXELS = 140
"""Faces from this size on have less noise than rims of thin metal have contrast."""

_MOST_YAW_DEGREES = 20.0
_LOOK_EVERY = 12
_LATER_LOOKS_EVERY = 60
_FIRST_LOOKS = 4
"""Frames between two looks, of the first few and later: glasses are put on and taken off."""

_MEMORY = 0.75
"""Share of the past in what is known, once the first looks are over."""

_CERTAIN = 0.5
"""Share of the looks that found glasses from which on they are believed."""


class Eyewear:
    """The glasses of one tracked face, looked for now and then in its texture."""

    def __init__(self) -> None:
        self._looks = 0
        self._next = 0
        self._worn = 0.0
        self._hidden = np.zeros((_SIZE, _SIZE), np.float32)

    def follow(self, number: int, frame: Image, landmarks: Points, pose: Pose) -> None:
        """Look for glasses in frame `number`, where it is time for that and the face is seen well enough."""
        face = float(np.ptp(landmarks[: mesh.VERTICES, :2], axis=0).max())
        if number < self._next or face < _LEAST_FACE_PIXELS or abs(pose.yaw) > _MOST_YAW_DEGREES:
            return
        layout = mesh.TEXTURE_UV * np.float32(_SIZE)
        place, _ = mesh.rasterize(layout, mesh.with_rings(landmarks)[:, :2], (_SIZE, _SIZE))
        texture = cv2.remap(frame, place, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)  # type: ignore[call-overload]  # the stubs lack map2=None
        least = _THIN_CONTRAST if face >= _LARGE_FACE_PIXELS else LEAST_CONTRAST
        glasses = find_glasses(colour.to_log(np.asarray(texture)), layout, least)
        share = max(1 / (self._looks + 1), 1 - _MEMORY)
        self._worn += share * ((glasses is not None) - self._worn)
        if glasses is not None:
            self._hidden = np.maximum(self._hidden * _MEMORY, cv2.erode(glasses.hidden, _MARGIN))
        self._looks += 1
        self._next = number + (_LOOK_EVERY if self._looks < _FIRST_LOOKS else _LATER_LOOKS_EVERY)

    def over(self, view: View, landmarks: Points) -> Floats | None:
        """Return the mask of the glasses in a frame, 0–1, one pixel a step; None where none are worn."""
        if self._worn < _CERTAIN:
            return None
        place, covered = view.draw(mesh.with_rings(landmarks), mesh.TEXTURE_UV * np.float32(_SIZE) - np.float32(0.5))
        mask = cv2.remap(self._hidden, place, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)  # type: ignore[call-overload]  # the stubs lack map2=None
        return np.asarray(mask * covered, np.float32)
