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
    """Return the triangle, (n, 3), and the barycentric coordinates, (n, 3, 1), of each sample."""
    features = np.concatenate([OVAL, LIPS_INNER, LIPS_OUTER, NOSTRILS, *EYES, *BROWS, [64, 294, 240, 460]])
    skin = FACES[~np.isin(FACES, features).any(axis=1)]
    a, b, c = (CANONICAL[skin[:, k]] for k in range(3))
    areas = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    random = np.random.default_rng(0)
    chosen = skin[random.choice(len(skin), SAMPLES, p=areas / areas.sum())]
    return chosen, random.dirichlet([1, 1, 1], SAMPLES).astype(np.float32)[..., None]


_TRIANGLES, _BARYCENTRIC = _choose_samples()


def sample(values: NDArray[Any]) -> Floats:
    """Interpolate values at the mesh's vertices, (n, c), at the skin samples: float32 (SAMPLES, c)."""
    return np.asarray((values[_TRIANGLES] * _BARYCENTRIC).sum(axis=1), np.float32)


def facing(points: Points) -> Floats:
    """Return how squarely each skin sample faces the viewer, float32 (SAMPLES,): 1 fully, negative turned away."""
    a, b, c = (points[_TRIANGLES[:, k]] for k in range(3))
    ab, ac = b - a, c - a
    cross = np.cross(ac, ab)
    return np.asarray(cross[:, 2] / (np.linalg.norm(cross, axis=1) + 1e-9), np.float32)


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


def fit_light(logs: Floats, weights: Floats, rounds: int = 2) -> Floats:
    """Fit the field to log colours at the samples: float32 (11, 3) for SAMPLE_TERMS or MESH_TERMS.

    Samples far off (hair, glints, a microphone) lose their weight from round to round.
    """
    mean = np.average(logs, axis=0, weights=weights + 1e-6).astype(np.float32)
    ridge = np.diag(_STIFFNESS * max(float(weights.sum()), 1.0))
    trust = weights
    field = np.zeros((len(ridge), logs.shape[1]), np.float32)
    for _ in range(rounds):
        weighted = SAMPLE_TERMS * trust[:, None]
        field = np.linalg.solve(weighted.T @ SAMPLE_TERMS + ridge, weighted.T @ (logs - mean)).astype(np.float32)
        error = np.abs(logs - mean - SAMPLE_TERMS @ field).mean(axis=1)
        spread_ = 1.4826 * np.median(error[weights > 0]) + 0.01 if weights.any() else 1.0
        trust = trust / (1 + (error / (1.5 * spread_)) ** 4)
    field[0] += mean
    return field


def covariance(logs: Floats) -> Floats:
    """Return the covariance of (n, 3) log colours, kept away from singular."""
    return np.asarray(np.cov(logs.T) + np.eye(3) * 4e-4, np.float32)


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


def blur(image: NDArray[Any], sigma: float) -> Any:
    """Blur by a Gaussian of `sigma` pixels."""
    return cv2.GaussianBlur(image, (0, 0), max(sigma, 0.3))
