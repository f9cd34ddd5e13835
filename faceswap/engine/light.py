"""The light on a target's skin."""

from __future__ import annotations

from functools import cache

import numpy as np

from . import colour, mesh
from .colour import Floats
from .mesh import VERTICES, Image, Points
from .view import View

_LIGHT_MEMORY = 0.85
_TONE_MEMORY = 0.4
_VARIATION_MEMORY = 0.9
"""Share of the past in running means, for each frame."""

_LAYOUT = 32
"""Side of the field in the layout of the texture, in pixels."""

_LOOK_FOR_BEARD = 25
"""Frames between two looks for a beard, which is no shadow."""


class Light:
    """The light on a target's skin: a field that follows each frame, steadied over time."""

    def __init__(self, trusted: Floats) -> None:
        self._trusted = trusted
        self._seen = self.bearded = False
        self._frames = 0
        self.field = np.zeros((colour.MESH_TERMS.shape[1], 3), np.float32)
        self._limits = np.zeros((2, 3))
        self.variation = np.zeros((3, 3), np.float32)

    @property
    def tone(self) -> Floats:
        """Mean log colour of the skin, float32 (3,)."""
        return np.asarray(colour.SAMPLE_TERMS.mean(axis=0) @ self.field, np.float32)

    def at(self, place: Floats) -> Floats:
        """Return the field at places of the texture, (h, w, 2) in 0–1, held within what was seen on skin: (h, w, 3)."""
        field = np.clip(_laid_out_terms() @ self.field, *self._limits, dtype=np.float32)
        return mesh.look_up(field.reshape(_LAYOUT, _LAYOUT, 3), place)

    def follow(self, view: View, picture: Image, landmarks: Points) -> bool:
        """Look at the skin in the next frame's coarse picture; return False while no skin has been seen."""
        places = view.points(colour.sample(landmarks[:VERTICES, :2])) - np.float32(0.5)
        colours = colour.read(picture, places)
        inside = ((places > 0) & (places < np.array(view.size) - 1)).all(axis=1)
        weights = _without_outliers(colours, self._trusted * inside * (colour.facing(landmarks) > 0.2))
        if weights.sum() <= colour.MIN_SAMPLES:
            return self._seen
        logs = colour.to_log(colours)
        if self._frames % _LOOK_FOR_BEARD == 0:
            self.bearded = colour.fit_bearded_light(logs, weights) is not None
        self._frames += 1
        if self.bearded:
            weights = np.asarray(weights * ~colour.LOWER, np.float32)
        field = colour.fit_light(logs, weights, stiffness=colour.STIFF if self.bearded else 1.0)
        seen = weights > 0
        if self._seen:
            memory = np.array([_TONE_MEMORY] + [_LIGHT_MEMORY] * (len(field) - 1), np.float32)[:, None]
            field = memory * self.field + (1 - memory) * field
        fitted = (colour.SAMPLE_TERMS @ field)[seen]
        variation = colour.covariance(logs[seen] - fitted)
        if self._seen:
            variation = _VARIATION_MEMORY * self.variation + (1 - _VARIATION_MEMORY) * variation
        self.field, self.variation, self._seen = field, variation, True
        low, high = int(0.01 * len(fitted)), int(0.97 * len(fitted))
        self._limits = np.partition(fitted, (low, high), axis=0)[[low, high]] + np.array([[-0.03], [0.02]])
        return True


@cache
def _laid_out_terms() -> Floats:
    """Return the terms of the field in the layout of the texture, float32 (_LAYOUT², 11)."""
    terms = [mesh.lay_out(colour.MESH_TERMS[:, k : k + 1], _LAYOUT) for k in range(colour.MESH_TERMS.shape[1])]
    return np.concatenate(terms, axis=-1).reshape(_LAYOUT * _LAYOUT, -1)


def _without_outliers(colours: Floats, weights: Floats) -> Floats:
    """Take the weight from samples that are far from the median colour."""
    seen = weights > 0
    if seen.sum() <= colour.MIN_SAMPLES:
        return weights
    apart = colours - colour.median(colours[seen])
    distance = np.sqrt(np.einsum("ij,ij->i", apart, apart))[:, None]
    return np.asarray(weights * (distance < 2.8 * colour.median(distance[seen]) + 4)[:, 0], np.float32)
