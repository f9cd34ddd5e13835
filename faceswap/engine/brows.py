"""The lower edge of a source's brows.

The landmarks of a brow are a band of fixed width that many a brow is wider than. What hangs out of it would be
stretched with the lids when the target raises its brows, so the band is widened to the brow it belongs to, in the
source's picture and on the target alike.
"""

from __future__ import annotations

import numpy as np

from . import colour, mesh
from .colour import Floats, blur
from .mesh import Image, Points

_STEPS = np.arange(-0.8, 2.6, 0.1, dtype=np.float32)
"""Places across a brow, in widths of its band from the upper edge on."""

_LEAST_CONTRAST = 0.25
"""Contrast to the forehead, in log colour, of a brow whose edge can be seen."""

_MOST_OF_LID = 0.5
"""Share of the way from the band to the eye that it is widened by at most."""

_WIDENED = 0.6
"""Share of the overhang by which the band is widened: all of it leaves a gap to eyes that lie far below their brows."""

_RIGHT_LID = [[113, 225, 224, 223, 222, 221, 189], [247, 30, 29, 27, 28, 56, 190]]
_LIDS = (_RIGHT_LID, [mesh.MIRROR[row].tolist() for row in _RIGHT_LID])
"""The rows of points between each brow and its eye, from the brow on."""

_LID_FOLLOWS = (0.6, 0.25)
"""Shares of the widening by which these rows give way, so that none is passed."""

_INNER_PAIRS = slice(1, 4)
"""The pairs of points that lie on a brow for certain: its ends may be thin."""


def brow_shift(image: Image, landmarks: Points) -> Points:
    """Return how far the lower edge of the band of each brow moves, in the canonical space, float32 (468, 3)."""
    face = float(np.ptp(landmarks[: mesh.VERTICES, 1]))
    softened = blur(image, face / 130)
    bands, shares = [], []
    for brow, lid in zip(mesh.BROWS, (159, 386), strict=True):
        upper, lower = brow[:5], brow[:4:-1]
        band = landmarks[lower] - landmarks[upper]
        room = _MOST_OF_LID * np.linalg.norm(landmarks[lid] - landmarks[lower[2]]) / np.linalg.norm(band[2])
        shares.append(min(float(room), _overhang(softened, landmarks[upper, :2], band[:, :2])))
        bands.append((lower, band))
    moved = landmarks.copy()
    for rows, (lower, band) in zip(_LIDS, bands, strict=True):
        widening = band * _WIDENED * min(shares)  # brows are alike: what is seen below one only is a shadow
        moved[lower] += widening
        for row, follows in zip(rows, _LID_FOLLOWS, strict=True):
            moved[row] += widening.mean(axis=0) * follows
    pose = mesh.estimate_pose(landmarks)
    return pose.to_canonical(moved)[: mesh.VERTICES] - pose.to_canonical(landmarks)[: mesh.VERTICES]


def _overhang(image: Image, upper: Floats, band: Floats) -> float:
    """Return how far a brow reaches below its band, as a share of the band's width."""
    places = upper[:, None] + band[:, None] * _STEPS[None, :, None]
    colours = colour.read(image, np.asarray(places[_INNER_PAIRS].reshape(-1, 2), np.float32))
    profile = colour.to_log(colours).mean(axis=-1).reshape(-1, len(_STEPS)).mean(axis=0)
    within = (_STEPS >= 0) & (_STEPS <= 1.2)
    darkest = int(np.flatnonzero(within)[profile[within].argmin()])
    edge = (profile[:3].mean() + profile[darkest]) / 2
    if profile[:3].mean() - profile[darkest] < _LEAST_CONTRAST:
        return 0.0
    below = np.flatnonzero(profile[darkest:] > edge)
    end = _STEPS[darkest + below[0]] if len(below) else _STEPS[-1]
    return max(0.0, float(end) - 1)
