"""The visible label of a result: a text in the lower left corner of its frames."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.uint8]

SHARE, LEAST_PIXELS = 1 / 20, 11
"""Height of the letters: a share of the frame's shorter side, and at least so many pixels."""
SHADE = 0.4
"""The box behind the text keeps so much of the picture's light and colour."""
WHITE, GREY = 235, 128
FONT = "sans"


class Label:
    """A text drawn for frames of one size (width and height in pixels; both even, but for `draw`)."""

    def __init__(self, text: str, size: tuple[int, int]) -> None:
        width, height = size
        font, letters = cv2.FontFace(FONT), max(LEAST_PIXELS, round(min(size) * SHARE))
        _, _, across, _ = cv2.getTextSize((0, 0), text, (0, 0), font, letters)
        if across + 2 * letters > width:
            letters = max(1, letters * width // (across + 2 * letters))
            _, _, across, _ = cv2.getTextSize((0, 0), text, (0, 0), font, letters)
        box_width, box_height = min(width, (across + 2 * letters) // 2 * 2), min(height, letters * 2 // 2 * 2)
        picture = np.zeros((box_height, box_width), np.uint8)
        cv2.putText(picture, text, (letters // 2, letters * 3 // 2), 255, font, letters)
        half = np.asarray(
            cv2.resize(picture, (box_width // 2, box_height // 2), interpolation=cv2.INTER_AREA), np.uint8
        )
        self._size = size
        # What each sample keeps of itself, and what is added to it.
        self._luma = _blend(picture, WHITE, 0)
        self._chroma = _blend(half, GREY, GREY * (1 - SHADE))

    def apply(self, planes: Plane) -> None:
        """Draw the text into a frame in place: I420, uint8 (H · 3/2, W), in one piece."""
        width, height = self._size
        flat, quarter = planes.reshape(-1), width * height // 4
        _draw(flat[: 4 * quarter].reshape(height, width), *self._luma)
        for start in (4 * quarter, 5 * quarter):
            _draw(flat[start : start + quarter].reshape(height // 2, width // 2), *self._chroma)

    def draw(self, bgr: Plane) -> None:
        """Draw the text into a still picture in place, uint8 (H, W, 3); its sides may be odd."""
        for channel in range(3):
            _draw(bgr[..., channel], *self._luma)


def _blend(letters: Plane, colour: float, box: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    shown = letters.astype(np.float32) / np.float32(255)
    return (1 - shown) * np.float32(SHADE), shown * np.float32(colour) + (1 - shown) * np.float32(box)


def _draw(plane: Plane, kept: NDArray[np.float32], added: NDArray[np.float32]) -> None:
    corner = plane[-kept.shape[0] :, : kept.shape[1]]
    corner[:] = np.rint(corner * kept + added)
