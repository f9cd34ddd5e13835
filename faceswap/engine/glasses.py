"""Glasses of a source, which are not to be put on the target: their rims are found in the texture.

Around each eye the picture is unrolled: a row an angle, a column a distance from the eye. A rim is a thin line, darker
or lighter than both sides, from angle to angle at nearly the same distance, and alike round both eyes.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from . import colour, mesh
from .colour import Floats, blur
from .texels import Regions, painted

_ANGLES = 96
_DISTANCES = 48
_NEAREST, _FARTHEST = 0.45, 1.6
"""Distances from an eye that are searched for its rim, as shares of the eye's width."""

_HALF_WIDTHS = (3, 5, 7)
"""Half the widths of rims that are looked for, in steps of distance."""

_BELOW = slice(_ANGLES * 15 // 360, _ANGLES * 165 // 360)
"""Angles below the eye, where nothing but a rim looks like one: above are brows and lids."""

LEAST_CONTRAST = 0.11
"""Contrast to both sides, in log colour, that a rim has below the eye."""

_MOST_CONTRAST = 0.5
_BEND = 0.02
"""Contrast that a rim must be worth to change its distance by one step from one angle to the next."""

_RIM, _BESIDE = 0.18, 0.4
"""Widths, as shares of the eye's, of the line that is hidden whole, and of where more of the frame is looked for."""

_THIN, _BRIDGE, _DARK = 0.15, 0.1, 0.4
"""Contrasts, in log colour, of thin lines beside the rims and over the nose, and of a broad frame against skin."""

_EYES: Regions = tuple((eye, 1.25, 1.6) for eye in mesh.EYES)
_BROWS: Regions = tuple((brow, 1.0, 0.8) for brow in mesh.BROWS)
"""Parts of the face that are taken for no part of the glasses."""

_EYES_APART = np.ones((3, 5), np.uint8)
"""Angles and distances by which the rims of the two eyes may differ: heads are turned, glasses are askew."""


@dataclass(frozen=True)
class Glasses:
    """The place of glasses in a source's texture: masks, float32 (size, size) 0–1.

    hidden   what the frame and its glints hide
    lenses   what is seen through the lenses, tinted and shaded by them
    """

    hidden: Floats
    lenses: Floats

    def beside(self, kept: Floats) -> Glasses:
        """Return what lies beside the parts in a mask, float32 (size, size) 0–1."""
        return Glasses(self.hidden * (1 - kept), self.lenses * (1 - kept))


def find_glasses(logs: Floats, layout: Floats, least: float = LEAST_CONTRAST) -> Glasses | None:
    """Return the glasses in a face's texture, None where there are none or in doubt.

    logs     log colour of the texture, float32 (size, size, 3)
    layout   places of the mesh's points in it, float32 (586, 2), pixels
    least    contrast of the rims below the eyes
    """
    size = len(logs)
    # a golden rim is as light as skin, but yellower
    softened = blur(np.stack([logs.mean(axis=-1), logs[..., 0] - logs[..., 2]], axis=-1), size / 350)
    rims = _find_rims(softened, layout, least)
    if rims is None:
        return None
    lenses = np.zeros((size, size), np.float32)
    cv2.fillPoly(lenses, [np.round(rim).astype(np.int32) for rim in rims], 1)
    hidden = np.asarray(blur(_mask(softened, layout, rims), size / 250), np.float32)
    return Glasses(hidden, np.asarray(blur(lenses, size / 80), np.float32))


def _find_rims(picture: Floats, layout: Floats, least: float) -> list[Floats] | None:
    """Return the outline of each rim in the texture, float32 (_ANGLES, 2), or None where there are no glasses."""
    places = [_unrolled(layout[eye], side) for eye, side in zip(mesh.EYES, (-1, 1), strict=True)]
    ridges = [_ridges(colour.read(picture, place.reshape(-1, 2)).reshape(_ANGLES, _DISTANCES, 2)) for place in places]
    rims = []
    for own, other, place in zip(ridges, ridges[::-1], places, strict=True):
        alike = np.minimum(own, cv2.dilate(other, _EYES_APART))
        if np.median(alike.max(axis=1)[_BELOW]) < least:
            return None  # no path collects more
        path = _best_path(alike)
        every = np.arange(_ANGLES)
        if np.median(alike[every, path][_BELOW]) < least:
            return None
        rims.append(place[every, path])
    return rims


def _unrolled(eye: Floats, side: int) -> Floats:
    """Return the places around an eye, (_ANGLES, _DISTANCES, 2); the first angle looks away from the nose."""
    angles = np.linspace(0, 2 * np.pi, _ANGLES, endpoint=False, dtype=np.float32)
    distances = np.linspace(_NEAREST, _FARTHEST, _DISTANCES, dtype=np.float32) * np.ptp(eye[:, 0])
    directions = np.stack([side * np.cos(angles), np.sin(angles)], axis=1)
    return np.asarray(eye.mean(axis=0) + directions[:, None] * distances[None, :, None], np.float32)


def _ridges(unrolled: Floats) -> Floats:
    """Return how much each place differs from the places on both sides of it, (_ANGLES, _DISTANCES)."""
    best = np.zeros_like(unrolled)
    for half in _HALF_WIDTHS:
        padded = np.pad(unrolled, ((0, 0), (half, half), (0, 0)), mode="edge")
        inner, outer = padded[:, : -2 * half], padded[:, 2 * half :]
        darker = np.minimum(inner, outer) - unrolled
        lighter = unrolled - np.maximum(inner, outer)
        best = np.maximum(best, np.maximum(darker, lighter))
    return np.asarray(best.max(axis=-1).clip(max=_MOST_CONTRAST), np.float32)


def _best_path(ridges: Floats) -> NDArray[np.intp]:
    """Return the distance at each angle of the closed line that collects the most contrast (Viterbi 1967)."""
    turns = np.concatenate([ridges] * 3)  # the middle one of three turns ends where it began
    came_from = np.zeros(turns.shape, np.intp)
    total = turns[0]
    padded = np.full(turns.shape[1] + 2, -np.inf, turns.dtype)
    for row, gain in enumerate(turns[1:], 1):
        padded[1:-1] = total
        choices = np.stack([padded[:-2] - _BEND, total, padded[2:] - _BEND])
        came_from[row] = choices.argmax(axis=0) - 1
        total = gain + choices.max(axis=0)
    path = np.zeros(len(turns), np.intp)
    path[-1] = total.argmax()
    for row in range(len(turns) - 1, 0, -1):
        path[row - 1] = path[row] + came_from[row, path[row]]
    return path[_ANGLES : 2 * _ANGLES]


def _mask(picture: Floats, layout: Floats, rims: list[Floats]) -> Floats:
    """Return what glasses hide, 1: the rims, what is dark or glints beside them, and the bridge; never an eye."""
    width = float(np.ptp(layout[mesh.RIGHT_EYE, 0]))
    rim = _drawn(picture, rims, max(2, round(_RIM * width)))
    beside = _drawn(picture, rims, round(_BESIDE * width))
    eyes, brows = (painted(layout, regions, len(picture), 0) > 0.5 for regions in (_EYES, _BROWS))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (round(0.3 * width) | 1,) * 2)
    hats = (cv2.morphologyEx(picture, kind, disc) for kind in (cv2.MORPH_BLACKHAT, cv2.MORPH_TOPHAT))
    thin = np.maximum(*hats).max(axis=-1)
    lightness = picture[..., 0]
    skin = np.median(lightness[beside & ~rim])
    bridge = np.zeros_like(rim)
    inner, other = layout[[133, 362]]
    top, bottom = round(inner[1] - 0.6 * width), round(inner[1] + 0.5 * width)
    bridge[top:bottom, round(inner[0]) : round(other[0])] = True
    frame = (thin > _THIN) | (np.abs(lightness - skin) > _DARK)
    hidden = rim | (((beside & frame) | (bridge & (thin > _BRIDGE))) & ~brows)
    mask = (hidden & ~eyes).astype(np.float32)
    return np.asarray(cv2.dilate(mask, np.ones((3, 3)), iterations=max(1, len(mask) // 250)), np.float32)


def _drawn(picture: Floats, outlines: list[Floats], width: int) -> NDArray[np.bool_]:
    """Return where closed lines of a width in pixels lie."""
    mask = np.zeros(picture.shape[:2], np.uint8)
    cv2.polylines(mask, [np.round(outline).astype(np.int32) for outline in outlines], True, 1, width)
    return mask > 0
