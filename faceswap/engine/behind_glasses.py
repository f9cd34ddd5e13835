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

_TOO_DARK = (-0.4, -0.15)
"""Lightness beside skin's, in log colour, of what is no skin behind lenses, and of what is: lashes and shadows stay."""

_FEW = 0.02
"""Share of skin around a place that is too little to tell its colour by."""

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


def untinted(flat: Floats, lenses: Floats, features: Floats, seen: Floats, skin: Floats, tone: Floats) -> Floats:
    """Return log colour without light, float32 (size, size, 3), its skin behind lenses like that beside them.

    Where the frame was is filled from both sides afterwards, and must have no edges. Skin keeps its grain.

    lenses     what is seen through the lenses, without eyes, float32 (size, size) 0–1
    features   eyes, brows, nostrils and mouth, float32 (size, size) 0–1
    seen       what the picture shows, float32 (size, size) 0–1
    skin       likeness to skin, float32 (size, size) 0–1
    tone       mean log colour of the skin, float32 (3,)
    """
    size = len(flat)
    lightness = colour.mean(flat) - float(tone.mean())
    behind, share = average(flat, lenses * seen * smoothstep(lightness, *_TOO_DARK), size / 50)
    beside, known = average(flat, (1 - lenses) ** 4 * (1 - features) * (seen * skin) ** 2, size / 12)
    beside = (beside * known + tone * _FEW) / (known + _FEW)
    return np.asarray(flat - lenses[..., None] * share / (share + _FEW) * (behind - beside), np.float32)


def cleared(flat: Floats, layout: Floats, tone: Floats) -> Floats:
    """Return log colour without light, float32 (size, size, 3), without the lenses' shade on eyes and frame on brows.

    layout     places of the mesh's points in the texture, float32 (586, 2), pixels
    tone       mean log colour of the skin, float32 (3,)
    """
    for eye in mesh.EYES:
        flat = _eye(flat, layout, eye, float(tone.mean()))
    for brow in mesh.BROWS:
        flat = _brow(flat, layout, brow)
    return flat


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
