"""The expression of a source, which is not to be put on the target: its smile and its parted lips are taken back.

In the texture, folds and bulges of the cheeks are flattened and the lips closed; in the shape, the jaw is shut and the
corners of the mouth are moved to where they rest, with the cheeks around them.
"""

from __future__ import annotations

import cv2
import numpy as np

from . import mesh
from .colour import Floats, blur
from .mesh import Points, smoothstep
from .texels import Regions, average, painted

_SMILE = (0.62, 0.70)
"""Widths of the mouth, as shares of the distance of the eyes' outer corners, from which on and at which it smiles."""

_PARTED = (0.03, 0.10)
"""Gaps between the lips, as shares of the mouth's width, over which they are closed."""

_RELAXED = 0.4
"""Share of folds and bulges that is taken from the cheeks of a face that smiles."""

_GRAIN = 0.05
"""Depth of a line in skin, in log colour, that is no fold."""

_LIP_LINE = 0.35
"""Darkness, in log colour, of the line between lips that had to be closed."""

_JAW_SHARE = 0.5
"""Share of the gap between the lips that is the jaw's; the rest is the upper lip's."""

_LIFT_CM = 0.2
"""Height of the mouth's corners above its middle from which on it smiles, in canonical centimetres."""

_SMILE_REACH_CM = 2.2
"""Distance over which the cheeks follow the corner of the mouth (standard deviation)."""

_RIGHT_CHEEK = [117, 126, 203, 57, 204, 170, 150, 172, 187]
_CHEEKS: Regions = tuple((ids, 1.0, 1.0) for ids in (_RIGHT_CHEEK, mesh.MIRROR[_RIGHT_CHEEK].tolist()))
_INSIDE: Regions = ((mesh.LIPS_INNER, 1.1, 1.0),)
_LIPS: Regions = ((mesh.LIPS_OUTER, 0.97, 0.95),)
_UPPER_LIP = mesh.LIPS_INNER[:11]
_LOWER_LIP = [mesh.LIPS_INNER[-k % 20] for k in range(11)]


def neutral_shape(landmarks: Points) -> Points:
    """Return the canonical shape of a face at rest, float32 (468, 3)."""
    shape = mesh.estimate_pose(landmarks).to_canonical(landmarks)[: mesh.VERTICES]
    corners, chin = shape[[61, 291]], shape[152]
    middle = shape[[13, 14]].mean(axis=0)
    # The jaw turns about the ears: the farther forward and below the mouth, the farther up.
    below = np.clip((middle[1] - shape[:, 1]) / (middle[1] - chin[1]), 0, 1)
    ears = shape[[234, 454], 2].mean()
    forward = np.clip((shape[:, 2] - ears) / (chin[2] - ears), 0, 1.2)
    resting = shape.copy()
    resting[:, 1] += _JAW_SHARE * (shape[13, 1] - shape[14, 1]) * below * forward
    usual = _SMILE[0] * float(np.ptp(shape[[33, 263], 0]))
    inward = max(0.0, float(np.ptp(corners[:, 0])) - usual) / 2
    down = max(0.0, float(corners[:, 1].mean() - middle[1]) - _LIFT_CM)
    for corner in corners:
        nearness = np.exp(-((shape - corner) ** 2).sum(axis=1) / (2 * _SMILE_REACH_CM**2))
        resting += nearness[:, None] * np.array([-np.sign(corner[0]) * inward, -down, 0], np.float32)
    return resting.astype(np.float32)


def neutral_texture(flat: Floats, landmarks: Points, layout: Floats, features: Floats) -> Floats:
    """Take the smile and the gap between the lips out of a texture without light.

    flat        log colour, float32 (size, size, 3)
    landmarks   of the face in its picture
    layout      places of the mesh's points in the texture, float32 (586, 2), pixels
    features    mask of what is no bare skin, float32 (size, size) 0–1
    """
    corner, other, right, left = landmarks[[61, 291, 33, 263]]
    width = float(np.linalg.norm(corner - other) / np.linalg.norm(right - left))
    smile = float(smoothstep(width, *_SMILE))
    parted = float(smoothstep(mesh.mouth_opening(landmarks), *_PARTED))
    if smile:
        flat = _relaxed(flat, layout, features, _RELAXED * smile)
    return _closed(flat, layout, parted) if parted else flat


def _relaxed(flat: Floats, layout: Floats, features: Floats, share: float) -> Floats:
    """Take a share of the folds and bulges from the cheeks, and keep the grain of their skin."""
    size = len(flat)
    cheeks = (painted(layout, _CHEEKS, size, size / 40) * (1 - features))[..., None]
    fold = blur(flat, size / 200) - average(flat, 1 - features, size / 14)[0]
    relaxed = flat - share * cheeks * fold
    lightness = np.asarray(relaxed.mean(axis=-1), np.float32)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size // 40 | 1,) * 2)
    line = np.clip(cv2.morphologyEx(lightness, cv2.MORPH_BLACKHAT, disc) - _GRAIN, 0, None)
    return np.asarray(relaxed + share * cheeks * line[..., None], np.float32)


def _closed(flat: Floats, layout: Floats, share: float) -> Floats:
    """Close parted lips by a share: what shows between them becomes lip, with a line where the lips meet."""
    size = len(flat)
    reach = np.ones((2 * (size // 130) + 1, 3))
    gap = cv2.dilate(painted(layout, _INSIDE, size, 0), reach)
    inside = blur(gap, size / 250)
    lip, _ = average(flat, painted(layout, _LIPS, size, size / 250) * (1 - cv2.dilate(gap, reach)), size / 60)
    line = np.zeros((size, size), np.uint8)
    middle = np.round((layout[_UPPER_LIP] + layout[_LOWER_LIP]) / 2).astype(np.int32)
    cv2.polylines(line, [middle], False, 255, max(1, size // 200), cv2.LINE_AA)
    lip -= _LIP_LINE * blur(line, size / 250)[..., None] / np.float32(255)
    return np.asarray(flat + share * inside[..., None] * (lip - flat), np.float32)
