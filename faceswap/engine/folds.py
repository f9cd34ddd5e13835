"""The folds of a target's smile, which the source's face gets: without them its mouth smiles alone."""

from __future__ import annotations

from functools import cache

import numpy as np

from . import colour, mesh
from .colour import Floats, blur
from .expression import CHEEKS, smile_of
from .mesh import Points
from .texels import average, painted

_LAYOUT = 64
"""Side of the mask of the cheeks in the layout of the texture, in pixels."""

_FINEST, _COARSEST = 0.01, 0.09
"""Sizes of folds, as shares of the face's size: finer is skin, coarser is light."""

_DEEPEST = 0.1
"""Depth of a fold, in log colour, that is never passed: deeper ones make the face the target's."""


def of_smile(landmarks: Points, place: Floats, residual: Floats, own: Floats, face: float) -> Floats | None:
    """Return the lightness of a target's folds, log colour, float32 (h, w); None where it does not smile.

    place       of each step in the texture, (h, w, 2) in 0–1
    residual    log colour of the target without the light on its skin, (h, w, 3)
    own         probability that a step shows the target's own skin, (h, w)
    face        the face's extent in steps
    """
    smile = smile_of(landmarks)
    if not smile:
        return None
    lightness = colour.mean(residual)
    around, _ = average(lightness[..., None], own, _COARSEST * face)
    fold = blur(lightness, max(0.6, _FINEST * face)) - around[..., 0]
    share = mesh.look_up(_cheeks(), place) * own * smile
    return np.asarray(_DEEPEST * np.tanh(fold / _DEEPEST) * share, np.float32)


@cache
def _cheeks() -> Floats:
    return painted(mesh.TEXTURE_UV * np.float32(_LAYOUT), CHEEKS, _LAYOUT, _LAYOUT / 40)
