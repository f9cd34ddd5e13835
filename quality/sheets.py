"""Contact sheets: the face in some frames of a clip, before and after the swap, and their difference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from faceswap.engine.mesh import Image, Points

FRAMES = 6
"""Rows of a sheet."""

_MARGIN = 0.35
"""Around the face, in face sizes."""

_LEAST_PIXELS, _MOST_PIXELS = 220, 420
"""Bounds of a picture's side on a sheet."""

_AMPLIFIED = 4


def draw(
    path: Path, target: Sequence[Image], results: Sequence[Sequence[Image]], faces: Sequence[Points | None]
) -> None:
    """Write a PNG: for each of some frames the target, each result, and the last one's difference × 4.

    faces   landmarks in the target's frames; frames without are left out
    """
    places = [(k, points) for k, points in enumerate(faces) if points is not None]
    shown = [places[k] for k in np.linspace(0, len(places) - 1, min(FRAMES, len(places))).astype(int)]
    cut = [[_cut(frames[k], points) for frames in (target, *results)] for k, points in shown]
    side = min(max([_LEAST_PIXELS, *(pictures[0].shape[0] for pictures in cut)]), _MOST_PIXELS)
    rows = []
    for (number, _), pictures in zip(shown, cut, strict=True):
        difference = cv2.absdiff(pictures[0], pictures[-1])
        amplified = np.asarray(cv2.convertScaleAbs(difference, alpha=_AMPLIFIED), np.uint8)
        row = np.hstack([_sized(picture, side) for picture in (*pictures, amplified)])
        cv2.putText(row, str(number), (4, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 255, 0), 1, cv2.LINE_AA)
        rows.append(row)
    if rows:
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.vstack(rows))


def _cut(frame: Image, points: Points) -> Image:
    """Return the square around a face."""
    low, high = points[:, :2].min(axis=0), points[:, :2].max(axis=0)
    side = max(8, round(2 * (high - low).max() * (0.5 + _MARGIN)))
    x, y = (low + high) / 2
    return np.asarray(cv2.getRectSubPix(frame, (side, side), (float(x), float(y))), np.uint8)


def _sized(picture: Image, side: int) -> Image:
    how = cv2.INTER_AREA if side < picture.shape[0] else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, (side, side), interpolation=how), np.uint8)
