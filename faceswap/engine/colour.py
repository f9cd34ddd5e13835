"""The light on a face: a smooth field fitted to samples of its skin, in the log domain.

There, light multiplies skin, and an 11-term cubic in canonical x and y is enough to describe it (a low-order stand-in
for spherical harmonics). The same terms can be drawn over the mesh, so that one small fit gives a field of gains.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .mesh import (
    BROWS,
    CANONICAL,
    EYES,
    FACES,
    LIPS_INNER,
    LIPS_OUTER,
    NOSTRILS,
    OVAL,
    VERTICES,
    Image,
    Points,
    normals,
    spread,
)

Floats = NDArray[np.float32]

SAMPLES = 1400
"""Places on the skin, spread evenly over cheeks, forehead, nose and chin."""

MIN_SAMPLES = 60
"""With fewer visible samples a fit means nothing."""

CONTRAST = (0.7, 1.1)
"""Least and greatest factor of the contrast of skin when it is matched to a target's."""

STIFF = 30.0
"""Stiffness of a field that is fitted to the upper half of a face."""

_BEARD = 0.42
"""Darkness, in log colour, and greyness, as a share of the skin's tint, that together make a beard."""

_WHITE = 0.25
"""Greyness from which on what is lighter than skin is hair, and no glint."""

_MIN_BEARD = 20
"""Samples that have to be seen to tell."""

_LEAST_TINT = 4e-3
"""Square of a tint, in log colour, that is too weak to be lost in a beard: a grey film has none."""

_THIRDS = np.full((3, 1), 1 / 3, np.float32)

_DARK = 8.0
"""Added before the logarithm: noise in the shadows counts for less."""

_STIFFNESS = np.array([1e-3, 0.02, 0.02, 0.05, 0.05, 0.05, 0.15, 0.15, 0.15, 0.15, 0.2], np.float32) * 0.3
"""Ridge weight of each term for one sample: the higher its order, the less it may bend."""


def to_log(colours: NDArray[Any]) -> Floats:
    """Turn 0–255 colours into logarithms, float32."""
    return np.asarray(np.log(colours.astype(np.float32) + np.float32(_DARK)), np.float32)


def from_log(logs: Floats) -> Image:
    """Turn logarithms back into uint8 colours."""
    return np.asarray(np.clip(cv2.exp(logs) - _DARK, 0, 255), np.uint8)


def read(image: NDArray[Any], xy: Floats) -> Floats:
    """Read an image at (n, 2) pixel positions (0 is the first pixel's centre): float32 (n, channels)."""
    place = np.ascontiguousarray(xy[None], np.float32)
    values = cv2.remap(image, place, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)  # type: ignore[call-overload]  # the stubs lack map2=None
    return np.asarray(values, np.float32).reshape(len(xy), -1)


def _choose_samples() -> tuple[NDArray[np.int32], Floats]:
    """Return the triangle and the barycentric coordinates of each sample, both (n, 3)."""
    features = np.concatenate([OVAL, LIPS_INNER, LIPS_OUTER, NOSTRILS, *EYES, *BROWS, [64, 294, 240, 460]])
    skin = FACES[~np.isin(FACES, features).any(axis=1)]
    a, b, c = (CANONICAL[skin[:, k]] for k in range(3))
    areas = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    random = np.random.default_rng(0)
    chosen = skin[random.choice(len(skin), SAMPLES, p=areas / areas.sum())]
    return chosen, random.dirichlet([1, 1, 1], SAMPLES).astype(np.float32)


_TRIANGLES, _BARYCENTRIC = _choose_samples()


def sample(values: NDArray[Any]) -> Floats:
    """Interpolate values at the mesh's vertices, (n, c), at the skin samples: float32 (SAMPLES, c)."""
    return np.asarray(np.einsum("ijk,ij->ik", values[_TRIANGLES], _BARYCENTRIC), np.float32)


_PLACES = sample(CANONICAL)
LOWER = np.asarray(_PLACES[:, 1] < CANONICAL[2, 1] - 0.3)
"""The skin samples below the nose, where a beard grows, bool (SAMPLES,)."""

_CHIN = LOWER & np.asarray((_PLACES[:, 1] < CANONICAL[17, 1] - 0.3) & (np.abs(_PLACES[:, 0]) < 3.5))
_SIDES = (LOWER & (_PLACES[:, 0] < 0), LOWER & (_PLACES[:, 0] > 0))


def _terms(points: Points, normal: Points) -> Floats:
    x, y, n = points[:, 0] / 8, points[:, 1] / 9, normal[:, 0]
    cubic = [np.ones_like(x), x, y, x * y, x * x, y * y, x**3, x * x * y, x * y * y, y**3]
    return np.stack([*cubic, n * np.abs(n)], axis=1).astype(np.float32)


def _vertex_normals() -> Points:
    total = np.zeros((VERTICES, 3), np.float32)
    # canonical space is seen from the other side than a picture: y and z are up
    np.add.at(total, FACES.ravel(), np.repeat(-normals(CANONICAL), 3, axis=0))
    return np.asarray(total / np.linalg.norm(total, axis=1, keepdims=True), np.float32)


MESH_TERMS = spread(_terms(CANONICAL, _vertex_normals()))
"""float32 (586, 11): the terms of the field at every point of the mesh."""

SAMPLE_TERMS = _terms(sample(CANONICAL), sample(_vertex_normals()))
"""float32 (SAMPLES, 11): the same at the skin samples."""


def facing(points: Points) -> Floats:
    """Return how squarely each skin sample faces the viewer, float32 (SAMPLES,): 1 fully, negative turned away."""
    a, b, c = (points.T[:, corners] for corners in _TRIANGLES.T)
    (x, y, z), (u, v, w) = c - a, b - a
    across, down, through = y * w - z * v, z * u - x * w, x * v - y * u
    return np.asarray(through / (np.sqrt(across * across + down * down + through * through) + 1e-9), np.float32)


def median(values: Floats) -> Floats:
    """Return the upper median of (n, c) values, float32 (c,), quicker than numpy's for so few."""
    middle = len(values) // 2
    return np.partition(np.ascontiguousarray(values.T), middle, axis=-1)[:, middle]


def fit_light(logs: Floats, weights: Floats, rounds: int = 2, stiffness: float = 1.0) -> Floats:
    """Fit the field to log colours at the samples: float32 (11, 3) for SAMPLE_TERMS or MESH_TERMS.

    Samples far off (hair, glints, a microphone) lose their weight from round to round. A field that has to be guessed
    where there are no samples needs `stiffness`.
    """
    shares = weights + np.float32(1e-6)
    mean = (shares @ logs) / shares.sum()
    ridge = np.diag(_STIFFNESS * stiffness * max(float(weights.sum()), 1.0))
    trust = weights
    field = np.zeros((len(ridge), logs.shape[1]), np.float32)
    for _ in range(rounds):
        weighted = SAMPLE_TERMS * trust[:, None]
        field = np.linalg.solve(weighted.T @ SAMPLE_TERMS + ridge, weighted.T @ (logs - mean)).astype(np.float32)
        error = np.abs(logs - mean - SAMPLE_TERMS @ field) @ _THIRDS
        spread_ = 1.4826 * float(median(error[weights > 0])[0]) + 0.01 if weights.any() else 1.0
        trust = trust / (1 + np.square(np.square(error / np.float32(1.5 * spread_))))[:, 0]
    field[0] += mean
    return field


def fit_bearded_light(logs: Floats, weights: Floats) -> Floats | None:
    """Fit the field to a face with a beard by the skin above it; None where there is no beard.

    A beard is darker than the light on the rest of the face explains, or greyer, on the chin and beside the mouth.
    """
    above = weights * ~LOWER
    if above.sum() <= MIN_SAMPLES:
        return None
    field = fit_light(logs, above, 4, STIFF)
    residual = logs - SAMPLE_TERMS @ field
    darkness = -residual.mean(axis=1)
    tint = field[0] - field[0].mean()
    greyness = -(residual + darkness[:, None]) @ tint / (tint @ tint + _LEAST_TINT)
    chin, right, left = (
        _hairiness(darkness[shown], greyness[shown]) for shown in (part & (weights > 0) for part in (_CHIN, *_SIDES))
    )
    return field if min(chin, (right + left) / 2) >= _BEARD else None


def _hairiness(darkness: Floats, greyness: Floats) -> float:
    """Return how much darker and greyer than skin samples are; light hair is known by its grey alone."""
    if len(darkness) < _MIN_BEARD:
        return 0.0
    dark, grey = float(np.median(darkness)), float(np.median(greyness))
    return (abs(dark) if grey > _WHITE else dark) + grey


def covariance(logs: Floats) -> Floats:
    """Return the covariance of (n, 3) log colours, kept away from singular."""
    apart = logs - logs.mean(axis=0)
    return np.asarray(apart.T @ apart / max(1, len(logs) - 1) + np.eye(3) * 4e-4, np.float32)


def transport(source: Floats, target: Floats) -> Floats:
    """Return the (3, 3) map that gives colours of one covariance another (Monge–Kantorovich, Pitié 2007).

    Contrast stays within `CONTRAST` times the source's.
    """
    root = _square_root(source.astype(np.float64))
    inverse = np.linalg.inv(root)
    whole = inverse @ _square_root(root @ target.astype(np.float64) @ root) @ inverse
    u, gains, vt = np.linalg.svd(whole)
    return np.asarray(u * np.clip(gains, *CONTRAST) @ vt, np.float32)


def _square_root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 1e-6)) @ vectors.T)


def mean(colours: Floats) -> Floats:
    """Return the mean of the channels of (h, w, 3), float32 (h, w); numpy takes long for the mean of three."""
    return np.asarray(cv2.transform(colours, _THIRDS.T), np.float32)


def blur(image: NDArray[Any], sigma: float) -> Any:
    """Blur by a Gaussian of `sigma` pixels."""
    return cv2.GaussianBlur(image, (0, 0), max(sigma, 0.3))
