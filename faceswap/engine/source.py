"""The face to put in: a still turned into a texture without its light, ready for any target.

The texture is laid out by `mesh.TEXTURE_UV`. What the still does not show (the far cheek, skin under hair) comes from
the mirrored side, and where neither side shows skin from the skin around.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from . import colour, mesh
from .behind_glasses import cleared, untinted
from .brows import brow_shift
from .colour import Floats, blur
from .expression import neutral_shape, neutral_texture
from .forehead import bared
from .glasses import Glasses, find_glasses
from .landmarks import find_faces
from .mesh import Image, Points, smoothstep
from .texels import Regions, average, painted

_LARGEST_FACE = 640
"""Larger faces are shrunk to so many pixels first."""

_LEAST_EYE = 180
"""Faces smaller than this show too little of their eyes to use them."""

_SMALLEST_MIP = 96
_ENLARGED = 2.0
"""Scale of the largest size of a texture."""

_GLINT_CUT = 0.7
_CREASE_CUT = 0.5
"""Share that is taken from what is unusually light or dark for skin: the light it comes from is not the target's."""

_WHITE = (-0.9, -0.3)
"""Lightness of the white of an eye beside skin's, in log colour, from the iris on: it is lit as the skin is."""

_MOST_TINT = 0.3
"""Bound of the difference in tint between skin and any other place, in log colour."""

_FEATURES: Regions = (
    *((eye, 1.35, 2.2) for eye in mesh.EYES),
    *((brow, 1.25, 1.7) for brow in mesh.BROWS),
    (mesh.LIPS_OUTER, 1.2, 1.35),
    (mesh.NOSTRILS, 1.3, 1.3),
)
_BEARD: Regions = ((mesh.BEARD, 1.1, 1.1),)
_OPENINGS: Regions = (*((eye, 1.1, 1.3) for eye in mesh.EYES), (mesh.LIPS_INNER, 1.0, 1.0))
_BROWS: Regions = tuple((brow, 1.1, 1.0) for brow in mesh.BROWS)
"""Parts that glasses are not taken off from: a rim that lies on a brow passes for it, and a face needs brows."""


class NoFaceError(ValueError):
    """The picture does not show the face that was asked for."""


@dataclass(frozen=True)
class Texture:
    """A texture at several sizes: for each its scale and uint8 BGR picture, largest first.

    The first is enlarged: bicubic once, so that bilinear sampling does for faces that are larger than the source's.
    """

    levels: tuple[tuple[float, Image], ...]

    @classmethod
    def of(cls, image: Image) -> Texture:
        """Make the levels of a picture, each three quarters of the one before."""
        enlarged = cv2.resize(image, None, fx=_ENLARGED, fy=_ENLARGED, interpolation=cv2.INTER_CUBIC)
        levels, scale = [(_ENLARGED, np.asarray(enlarged, np.uint8)), (1.0, image)], 1.0
        while image.shape[0] * scale > _SMALLEST_MIP:
            scale *= 0.75
            smaller = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            levels.append((scale, np.asarray(smaller, np.uint8)))
        return cls(tuple(levels))

    def fitting(self, scale: float) -> tuple[float, Image]:
        """Return the smallest level that still has the detail of `scale`."""
        return next((level for level in reversed(self.levels) if level[0] >= scale * 0.95), self.levels[0])


@dataclass(frozen=True)
class SourceFace:
    """A person's face, made once from a still.

    shape        canonical landmarks, float32 (468, 3)
    brows        widening of the brows' bands, canonical, float32 (468, 3)
    size         of the texture's square, pixels
    height       of the face in the texture, pixels
    residual     log colour without light, relative to `tone`, float32 (size, size, 3)
    tone         mean log colour of the skin, float32 (3,)
    variation    covariance of the skin's residuals, float32 (3, 3)
    skin         probability of skin, float32 (size, size, 1)
    trusted      skin samples that were visible, float32 (colour.SAMPLES,)
    has_eyes     true if its eyes are good enough to use
    """

    shape: Points
    brows: Points
    size: int
    height: float
    residual: Floats
    tone: Floats
    variation: Floats
    skin: Floats
    trusted: Floats
    has_eyes: bool

    @classmethod
    def from_image(cls, bgr: Image, index: int = 0) -> SourceFace:
        """Build the texture of the `index`-th largest face of a uint8 (H, W, 3) BGR picture.

        Raises NoFaceError if the picture shows no such face.
        """
        return _build(*_find(bgr, index))

    @classmethod
    def from_images(cls, pictures: Sequence[Image], index: int = 0) -> SourceFace:
        """Build one person's face out of several pictures: the bones of all, the skin of the one that shows it best.

        Textures are not averaged: what does not meet to the pixel gets a second brow. Pictures without such a face are
        left out. Raises NoFaceError if all are.
        """
        found = []
        for bgr in pictures:
            try:
                found.append(_find(bgr, index))
            except NoFaceError as error:
                missing = error
        if not found:
            raise missing
        weights = [_quality(landmarks) for _, landmarks in found]
        best = _build(*found[int(np.argmax(weights))])
        shapes = [neutral_shape(landmarks) for _, landmarks in found]
        return replace(best, shape=np.average(shapes, axis=0, weights=weights).astype(np.float32))

    def lit(self, tone: Floats, variation: Floats) -> Texture:
        """Return the texture on skin of another mean log colour, (3,), and covariance of residuals, (3, 3)."""
        shift = (tone - self.tone).astype(np.float32)
        lightness = float(shift.mean())
        residual = _with_tint(self.residual, min(1.0, np.sqrt(_vividness(tone) / _vividness(self.tone))))
        as_skin = cv2.transform(residual, colour.transport(self.variation, variation)) + shift
        # Brows, lips and eyes are not of the skin's colour: they take on all of its tint but only half its lightening.
        as_feature = residual + 0.6 * (shift - lightness) + (0.55 if lightness > 0 else 1.0) * lightness
        logs = self.tone + as_feature + self.skin * (as_skin - as_feature)
        brightest = cv2.max(cv2.max(*cv2.split(logs)[:2]), cv2.split(logs)[2])[..., None]
        too_bright = np.clip(brightest - np.log(246.0), 0, None, dtype=np.float32)
        return Texture.of(colour.from_log(np.asarray(logs - too_bright * (0.9 * self.skin + 0.1), np.float32)))


def _find(bgr: Image, index: int) -> tuple[Image, Points]:
    """Return the `index`-th largest face of a picture, cut out, and its landmarks there. Raises NoFaceError."""
    faces = find_faces(bgr)
    if not 0 <= index < len(faces):
        raise NoFaceError(f"Looked for face number {index} in the source picture, which shows {len(faces)}")
    return _crop(bgr, faces[index].landmarks)


def _quality(landmarks: Points) -> float:
    """Return how well a picture shows a face: large, seen from the front, its mouth closed."""
    pose = mesh.estimate_pose(landmarks)
    size = min(1.0, float(np.ptp(landmarks[: mesh.VERTICES, :2], axis=0).max()) / _LARGEST_FACE)
    turned = (abs(pose.yaw) + abs(pose.pitch)) / 25
    return size * float(np.exp(-turned - mesh.mouth_opening(landmarks) / 0.15)) + 1e-6


def _crop(bgr: Image, landmarks: Points) -> tuple[Image, Points]:
    """Cut the face out with a margin and shrink it to at most _LARGEST_FACE."""
    low, high = landmarks[: mesh.VERTICES, :2].min(axis=0), landmarks[: mesh.VERTICES, :2].max(axis=0)
    extent = float((high - low).max())
    left, top = (max(0, int(v)) for v in low - 0.45 * extent)
    right, bottom = (int(v) for v in high + 0.45 * extent)
    image = bgr[top:bottom, left:right]
    scale = min(1.0, _LARGEST_FACE / extent)
    if scale < 1:
        image = np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
    return image, ((landmarks - [left, top, 0]) * scale).astype(np.float32)


def _build(image: Image, landmarks: Points) -> SourceFace:
    """Make the texture of the face at `landmarks` in `image`."""
    plane = landmarks[: mesh.VERTICES, :2]
    extent = float(np.ptp(plane, axis=0).max())
    size = int(np.clip(extent * 1.5, 192, 768))
    layout = mesh.TEXTURE_UV * np.float32(size)
    pose = mesh.estimate_pose(landmarks)
    unwrapped, seen, brows, glasses = _bare_texture(image, landmarks, size)
    logs = colour.to_log(unwrapped)
    softened = colour.to_log(blur(unwrapped, size / 200))

    places = colour.sample(layout[: mesh.VERTICES]) - np.float32(0.5)
    trusted = (colour.read(seen, places).ravel() > 0.4).astype(np.float32)
    sampled = colour.read(softened, places)
    light_above = colour.fit_bearded_light(sampled, trusted)
    bearded = light_above is not None
    field = colour.fit_light(sampled, trusted, rounds=4) if light_above is None else light_above
    skin_logs = sampled - colour.SAMPLE_TERMS @ field
    bare = (trusted > 0) & ~(colour.LOWER & bearded)
    spread = 1.4826 * np.median(np.abs(skin_logs[bare]), axis=0) + 0.02 if bare.any() else np.full(3, 0.1)
    tone = (colour.SAMPLE_TERMS @ field).mean(axis=0)

    light, _ = mesh.rasterize(layout, colour.MESH_TERMS @ field, (size, size))
    features = painted(layout, _FEATURES + _BEARD if bearded else _FEATURES, size, size / 90)
    openings = painted(layout, _OPENINGS, size, size / 150)
    likeness = _skin_likeness(softened - light, spread, size)
    trust = np.maximum(likeness, features) * seen
    flat = logs - np.clip(light - tone, -0.7, 0.7)
    if glasses is not None:
        flat = untinted(flat, glasses.lenses * (1 - openings), features, seen, likeness, tone)
    flat, trust = _mirrored(flat, trust, size)
    flat = _filled(flat, trust, features, tone, size)
    if glasses is not None:
        flat = cleared(flat, layout, tone)
    flat = _evened(flat, trust, features, openings, tone, float(spread.mean()))
    flat = bared(flat, layout, features, tone)
    flat = neutral_texture(flat, landmarks, layout, features)
    residual = _without_stains((flat - tone).astype(np.float32))
    smooth = colour.read(blur(residual, size / 200), places)
    eyes = mesh.eye_openings(landmarks)
    return SourceFace(
        shape=neutral_shape(landmarks),
        brows=brows,
        size=size,
        height=float(np.ptp(layout[: mesh.VERTICES, 1])),
        residual=residual,
        tone=tone.astype(np.float32),
        variation=colour.covariance(smooth[bare] if bare.sum() > 3 else smooth),
        skin=_skin_probability(residual, openings, spread, size),
        trusted=np.maximum(_usual(smooth), colour.LOWER & bearded),
        has_eyes=extent >= _LEAST_EYE and min(eyes) > 0.18 and abs(pose.yaw) < 25,
    )


def _bare_texture(image: Image, landmarks: Points, size: int) -> tuple[Image, Floats, Points, Glasses | None]:
    """Return the texture, how much of each place is seen beside glasses, how far brows are widened, and the glasses."""
    layout = mesh.TEXTURE_UV * np.float32(size)
    unwrapped, seen = _unwrap(image, landmarks, size)
    glasses, brows = find_glasses(colour.to_log(unwrapped), layout), brow_shift(image, landmarks)
    if glasses is not None:
        brows[:] = 0  # what is dark below a brow may be the rim
        glasses = glasses.beside(painted(layout, _BROWS, size, size / 150))
        seen = seen * (1 - glasses.hidden)
    elif brows.any():
        banded = landmarks.copy()
        banded[: mesh.VERTICES] += mesh.estimate_pose(landmarks).to_image(brows)
        unwrapped, seen = _unwrap(image, banded, size)
    return unwrapped, seen, brows, glasses


def _unwrap(image: Image, landmarks: Points, size: int) -> tuple[Image, Floats]:
    """Return the texture as the image shows it, and its visibility at each place, float32 (size, size) 0–1."""
    layout = mesh.TEXTURE_UV * np.float32(size)
    place, _ = mesh.rasterize(layout, mesh.with_rings(landmarks)[:, :2], (size, size))
    texture = cv2.remap(image, place, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)  # type: ignore[call-overload]  # the stubs lack map2=None
    seen, _ = mesh.rasterize(layout, mesh.spread(mesh.visibility(landmarks)[:, None]), (size, size))
    inside = ((place >= 0) & (place <= np.array(image.shape[1::-1]) - 1)).all(axis=-1)
    return np.asarray(texture, np.uint8), blur(seen[..., 0] * inside, size / 100)


def _skin_likeness(residual: Floats, spread: Any, size: int) -> Floats:
    """Return a mask of residuals as small as skin's: float32 (size, size), 0 for hair, glasses and background."""
    distance = np.sqrt(((residual / (spread + 0.05)) ** 2).mean(axis=-1)).astype(np.float32)
    likeness = 1 - smoothstep(blur(distance, size / 130), 2.4, 4.2)
    return np.asarray(cv2.erode(likeness, np.ones((3, 3), np.uint8), iterations=max(1, size // 160)), np.float32)


def _mirrored(flat: Floats, trust: Floats, size: int) -> tuple[Floats, Floats]:
    """Fill the parts that this half of the face does not show from the other; also return the trust in the result."""
    other, other_trust = flat[:, ::-1], trust[:, ::-1]
    own = blur(trust / (trust + 0.12 * other_trust + 1e-4), size / 110)[..., None]
    merged = blur(np.maximum(trust, 0.9 * other_trust), size / 110) * 1.15
    return np.asarray(flat * own + other * (1 - own), np.float32), np.asarray(np.clip(merged, 0, 1), np.float32)


def _filled(flat: Floats, trust: Floats, features: Floats, tone: Any, size: int) -> Floats:
    """Fill the parts that neither half shows with the skin around them."""
    weight = (trust**2 * (1 - features)).astype(np.float32)
    fill = np.asarray(tone, np.float32)
    for sigma, enough in ((size / 12, 0.02), (size / 45, 0.05)):
        around, known = average(flat, weight, sigma)
        fill = np.asarray((around * known + fill * enough) / (known + enough), np.float32)
    own = smoothstep(trust, 0.15, 0.6)[..., None]
    return np.asarray(flat * own + fill * (1 - own), np.float32)


def _evened(flat: Floats, trust: Floats, features: Floats, openings: Floats, tone: Any, spread: float) -> Floats:
    """Flatten glints, and creases and cast shadows on skin."""
    lightness = (flat - tone).mean(axis=-1)
    glint = np.clip(lightness - np.clip(1.5 * spread, 0.08, 0.22), 0, None) * (1 - openings)
    crease = np.clip(-lightness - max(0.06, 1.2 * spread), 0, None) * (1 - features) * smoothstep(trust, 0.3, 0.8)
    return np.asarray(flat - _GLINT_CUT * glint[..., None] + _CREASE_CUT * crease[..., None], np.float32)


def _without_stains(residual: Floats) -> Floats:
    """Bound the distance of a place's tint from the skin's: shadows and creases of a photograph are often deep red."""
    distance = np.linalg.norm(residual - residual.mean(axis=-1, keepdims=True), axis=-1, keepdims=True) + 1e-6
    return _with_tint(residual, _MOST_TINT * np.tanh(distance / _MOST_TINT) / distance)


def _with_tint(residual: Floats, share: NDArray[np.floating] | float) -> Floats:
    """Keep the lightness of log colours and a share of their tint."""
    lightness = colour.mean(residual)[..., None]
    return np.asarray(lightness + (residual - lightness) * share, np.float32)


def _vividness(tone: Floats) -> float:
    """Return the distance of a log colour from grey."""
    return float(np.linalg.norm(tone - tone.mean())) + 0.02


def _skin_probability(residual: Floats, openings: Floats, spread: Any, size: int) -> Floats:
    """Return float32 (size, size, 1): 1 on skin, 0 on brows, lashes and lips. Light spots and whites are skin, too."""
    distance = np.sqrt(((residual / (spread + 0.03)) ** 2).mean(axis=-1))
    lightness = residual.mean(axis=-1)
    distance[(lightness > 0) & (openings < 0.3)] = 0
    skin = np.maximum(1 - smoothstep(distance, 1.8, 4.0), openings * smoothstep(lightness, *_WHITE))
    return np.asarray(blur(skin, size / 260)[..., None], np.float32)


def _usual(logs: Floats) -> Floats:
    """Return 1 for samples near the median, 0 for ones far off, float32 (n,)."""
    distance = np.linalg.norm(logs - np.median(logs, axis=0), axis=1)
    return np.asarray(distance <= 3 * np.median(distance), np.float32)
