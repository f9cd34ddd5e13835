"""Skin, eyes and brows that were seen through a source's glasses, as they look without them.

Lenses tint and shade what is seen through them, most of all the whites of the eyes, and a dark frame that lies on a
brow passes for a part of it.
"""

from __future__ import annotations

import cv2
import numpy as np

from . import colour, mesh
from .colour import Floats, blur
from .mesh import smoothstep
from .texels import Regions, average, painted

_LENS_CUT = 0.7
"""Share of the tint and shade of lenses that is taken from the skin behind them."""

_DARKEST, _LIGHTEST = 2, 85
"""Percentiles of an eye's lightness that pupil and white of the eye have."""

_WHITE = -0.1
"""Lightness of the white of an eye that is seen well, in log colour beside skin's."""

_WHITE_TINT_CUT = 0.5
"""Share of the tint that is taken from the white of an eye."""

_EYES: Regions = tuple((eye, 1.2, 1.4) for eye in mesh.EYES)
"""Eyes with their lashes, which are as dark as a frame."""

_HAIR = 25
"""Percentage of a brow's upper half that is taken for hair."""

_DARKER = 0.3
"""Difference in log colour by which a frame is darker than the hair of the brow it lies on."""

_FRAME_KEPT = 0.15
"""Share of the frame's contrast to the brow that is left, as a texture."""


def cleared(flat: Floats, lenses: Floats, openings: Floats, layout: Floats, tone: Floats) -> Floats:
    """Return log colour without light, float32 (size, size, 3), as it is without lenses and the frame on the brows.

    lenses     what is seen through the lenses, float32 (size, size) 0–1
    openings   eyes and mouth, float32 (size, size) 0–1
    layout     places of the mesh's points in the texture, float32 (586, 2), pixels
    tone       mean log colour of the skin, float32 (3,)
    """
    flat = _skin(flat, lenses * (1 - openings), tone)
    for eye in mesh.EYES:
        flat = _eye(flat, layout, eye, float(tone.mean()))
    for brow in mesh.BROWS:
        flat = _brow(flat, layout, brow)
    return flat


def _skin(flat: Floats, lenses: Floats, tone: Floats) -> Floats:
    """Take the tint and the shade of lenses from the skin behind them, and keep its grain."""
    around, _ = average(flat, lenses, len(flat) / 50)
    return np.asarray(flat - _LENS_CUT * lenses[..., None] * (around - tone), np.float32)


def _eye(flat: Floats, layout: Floats, eye: list[int], skin: float) -> Floats:
    """Stretch an eye from its pupil to its white where that is darker than it should be beside skin's lightness."""
    size = len(flat)
    lightness = colour.mean(flat)[..., None]
    inside = painted(layout, ((eye, 1.0, 1.0),), size, 0) > 0.5
    pupil, seen = np.percentile(lightness[inside], (_DARKEST, _LIGHTEST))
    white = skin + _WHITE
    if not pupil < seen < white:
        return flat
    stretched = pupil + (lightness - pupil) * (white - pupil) / (seen - pupil)
    stretched = np.minimum(stretched, np.maximum(lightness, white + 0.1))  # glints are light enough
    whiteness = np.clip((stretched - pupil) / (white - pupil), 0, 1)
    tint = (flat - lightness) * (1 - _WHITE_TINT_CUT * whiteness)
    share = painted(layout, ((eye, 1.0, 1.1),), size, size / 250)[..., None]
    return np.asarray(flat + share * (stretched + tint - flat), np.float32)


def _brow(flat: Floats, layout: Floats, brow: list[int]) -> Floats:
    """Give what is darker than a brow's hair the colour of its hair: the frame lies on the lower half."""
    size = len(flat)
    upper, lower = layout[brow[1:5]], layout[brow[8:4:-1]]  # without the outer end, where the frame is as high
    half = np.zeros((size, size), np.uint8)
    outline = np.concatenate([upper, (upper + lower)[::-1] / 2])
    cv2.fillPoly(half, [np.round(outline).astype(np.int32)], 1)
    colours = flat[half > 0]
    lightness = colours.mean(axis=-1)
    darkest = np.percentile(lightness, _HAIR)
    hair = np.median(colours[lightness <= darkest], axis=0)
    softened = blur(colour.mean(flat), size / 300)
    near = painted(layout, ((brow, 1.25, 1.5),), size, size / 150) * (1 - painted(layout, _EYES, size, 0))
    frame = near * (1 - smoothstep(softened, darkest - _DARKER, darkest))
    return np.asarray(flat + frame[..., None] * (hair + _FRAME_KEPT * (flat - hair) - flat), np.float32)
