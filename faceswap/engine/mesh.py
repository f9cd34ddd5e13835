"""The face as a mesh: 468 vertices of MediaPipe's canonical face, 10 iris points and three outer rings.

Everything that depends on the mesh alone lies here: groups of vertices, triangles, texture coordinates, head pose,
rasterising, and how far each vertex has to move to turn one person's shape into another's.

Points are float32 (n, 3): x and y in pixels, y down, z in the same unit, away from the viewer. The canonical space is
in centimetres with y up and z towards the viewer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Points = NDArray[np.float32]
Indices = NDArray[np.int32]

OVAL = [
    *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377),
    *(152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),
]
LIPS_INNER = [78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 324, 318, 402, 317, 14, 87, 178, 88, 95]
LIPS_OUTER = [61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146]
RIGHT_EYE = [33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7]
LEFT_EYE = [263, 466, 388, 387, 386, 385, 384, 398, 362, 382, 381, 380, 374, 373, 390, 249]
RIGHT_BROW = [70, 63, 105, 66, 107, 55, 65, 52, 53, 46]
LEFT_BROW = [300, 293, 334, 296, 336, 285, 295, 282, 283, 276]
_RIGHT_UPPER_LID = [(247, 113), (30, 225), (29, 224), (27, 223), (28, 222), (56, 221), (190, 189)]
_RIGHT_LOWER_LID = [243, 112, 26, 22, 23, 24, 110, 25, 130]
NOSTRILS = [98, 327, 2, 4, 97, 326, 60, 290]
BEARD = [
    *(132, 58, 172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397, 288, 361),
    *(411, 427, 436, 426, 2, 206, 216, 207, 187),
]
"""The outline of where a beard grows."""

EYES = (RIGHT_EYE, LEFT_EYE)
BROWS = (RIGHT_BROW, LEFT_BROW)

VERTICES = 468
LANDMARKS = 478
IRISES = (range(468, 473), range(473, 478))
"""For each eye the landmarks of its iris: the centre, then right, top, left and bottom in the picture."""

RINGS = (1.12, 1.28, 1.55)
"""The outer rings as multiples of the oval: the surroundings of the face in a texture."""

_MARGIN_PIXELS = 8
_RIGID = [
    *(33, 133, 362, 263, 168, 6, 197, 195, 5, 4, 1, 2, 98, 327, 127, 356, 234, 454, 93, 323),
    *(10, 151, 9, 8, 54, 284, 103, 332),
]
_OUTLINE_CENTIMETRES = 3.0
"""Distance from the outline over which a shift fades in: what is outside the face stays as it is."""

_IMAGE_AXES = np.array([1, -1, -1], np.float32)
_MIRROR_AXES = np.array([-1, 1, 1], np.float32)

_model = np.load(Path(__file__).parent / "models" / "canon.npz")
CANONICAL: Points = _model["v"].astype(np.float32)
FACES: Indices = _model["tri"].astype(np.int32)
"""(898, 3): the triangles of the canonical face alone, eyes closed by skin."""


def smoothstep(x: NDArray[np.floating] | float, low: float, high: float) -> NDArray[np.float32]:
    """Return 0 below `low`, 1 above `high` and a smooth cubic between, float32 of x's shape."""
    t = np.clip((np.asarray(x, np.float32) - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def _mirror_indices() -> Indices:
    """Return for each landmark the one on the other side of the face."""
    gaps = ((CANONICAL[:, None] * _MIRROR_AXES - CANONICAL[None]) ** 2).sum(axis=-1)
    irises = [473, 476, 475, 474, 477, 468, 471, 470, 469, 472]
    return np.array([*gaps.argmin(axis=1), *irises], np.int32)


def _texture_coordinates() -> Points:
    """Return float32 (586, 2) in 0–1, y down, for vertices, irises and rings; mirroring the face mirrors them."""
    vertices: Points = _model["uv"]
    parts = [vertices]
    for eye in EYES:
        centre, radius = vertices[eye].mean(axis=0), np.ptp(vertices[eye, 0]) * 0.21
        parts.append(centre + radius * np.array([[0, 0], [1, 0], [0, -0.95], [-1, 0], [0, 0.95]]))
    oval = vertices[OVAL]
    centre = oval.mean(axis=0)
    parts += [centre + (oval - centre) * ring for ring in RINGS]
    whole = np.concatenate(parts).astype(np.float32)
    low, high = whole.min(axis=0), whole.max(axis=0)
    return np.asarray((whole - low) / (high - low).max() * 0.98 + 0.01, np.float32)


MIRROR = _mirror_indices()

_right_lids = np.array(_RIGHT_UPPER_LID + [(k, k) for k in _RIGHT_LOWER_LID], np.int32)
LIDS = (_right_lids, MIRROR[_right_lids])
"""int32 (16, 2) for each eye: the outline of its lids with their lashes, each point midway between two vertices."""

TEXTURE_UV = _texture_coordinates()


def _eye_triangles(eye: list[int], iris: range) -> list[list[int]]:
    """Span the opening of an eye: a strip from the lids to the rim of the iris, a fan inside the rim."""
    centre, *rim = iris
    gaps = np.linalg.norm(TEXTURE_UV[eye][:, None] - TEXTURE_UV[rim][None], axis=-1)
    nearest = [rim[k] for k in gaps.argmin(axis=1)]
    triangles = [[rim[k], rim[(k + 1) % 4], centre] for k in range(4)]
    for k in range(len(eye)):
        here, there = eye[k - 1], eye[k]
        triangles.append([here, there, nearest[k - 1]])
        if nearest[k - 1] != nearest[k]:
            triangles.append([there, nearest[k - 1], nearest[k]])
    return triangles


def _ring_triangles() -> list[list[int]]:
    triangles, inner, count = [], OVAL, len(OVAL)
    for ring in range(len(RINGS)):
        outer = [LANDMARKS + ring * count + k for k in range(count)]
        for k in range(count):
            after = (k + 1) % count
            triangles.append([inner[k], inner[after], outer[k]])
            triangles.append([inner[after], outer[after], outer[k]])
        inner = outer
    return triangles


def _mesh_triangles() -> Indices:
    eyes = [set(eye) for eye in EYES]
    triangles = [t for t in FACES.tolist() if not any(eye.issuperset(t) for eye in eyes)]
    for eye, iris in zip(EYES, IRISES, strict=True):
        triangles += _eye_triangles(eye, iris)
    return np.array(triangles + _ring_triangles(), np.int32)


TRIANGLES = _mesh_triangles()
"""int32 (n, 3): the whole mesh, with open eyes, irises and outer rings."""


def with_rings(landmarks: Points) -> Points:
    """Append the outer rings to (478, 3) landmarks: float32 (586, 3)."""
    oval = landmarks[OVAL]
    centre = oval.mean(axis=0)
    width = np.ptp(landmarks[:VERTICES, 0])
    parts = [landmarks]
    for ring in RINGS:
        points = centre + (oval - centre) * ring
        points[:, 2] = oval[:, 2] + (ring - 1) * width * 0.3
        parts.append(points)
    return np.concatenate(parts).astype(np.float32)


def extent(landmarks: Points, reach: float) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of the box that is `reach` times as large as a face's, and a margin."""
    points = landmarks[:VERTICES, :2]
    low, high = points.min(axis=0), points.max(axis=0)
    half = (high - low) * np.float32(reach / 2) + _MARGIN_PIXELS
    (left, top), (right, bottom) = (low + high) / 2 - half, (low + high) / 2 + half
    return float(left), float(top), float(right), float(bottom)


def spread(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """Extend values at the 468 vertices, (468, c), to the whole mesh: float32 (586, c)."""
    irises = [np.repeat(values[eye].mean(axis=0, keepdims=True), 5, axis=0) for eye in EYES]
    return np.concatenate([values, *irises, *[values[OVAL]] * len(RINGS)]).astype(np.float32)


def normals(points: Points) -> Points:
    """Return the unit normals of FACES, float32 (898, 3), pointing at the viewer where a picture shows their front."""
    a, b, c = (points[FACES[:, k]] for k in range(3))
    cross = np.cross(c - a, b - a)
    return np.asarray(cross / (np.linalg.norm(cross, axis=1, keepdims=True) + 1e-9), np.float32)


def visibility(landmarks: Points) -> NDArray[np.float32]:
    """Return how squarely a picture shows each vertex, float32 (468,): 0 turned away, 1 from 60° off on."""
    facing = normals(landmarks)[:, 2]
    lowest = np.ones(VERTICES, np.float32)
    np.minimum.at(lowest, FACES.ravel(), np.repeat(facing, 3))
    return smoothstep(lowest, 0.12, 0.5)


@dataclass(frozen=True)
class Pose:
    """The pose of a head: image = scale · rotation · canonical + translation, with the canonical axes y, z up."""

    scale: float
    rotation: NDArray[np.float64]
    translation: NDArray[np.float64]

    @property
    def yaw(self) -> float:
        """Degrees to the side; 0 is frontal."""
        return float(np.degrees(np.arctan2(self.rotation[0, 2], self.rotation[2, 2])))

    @property
    def pitch(self) -> float:
        """Degrees up or down; 0 is level."""
        return float(np.degrees(np.arcsin(np.clip(-self.rotation[1, 2], -1, 1))))

    @property
    def roll(self) -> float:
        """Degrees in the plane of the picture; 0 is upright."""
        return float(np.degrees(np.arctan2(self.rotation[1, 0], self.rotation[1, 1])))

    def to_canonical(self, landmarks: Points) -> Points:
        """Turn (n, 3) image points into canonical space."""
        flipped = landmarks * _IMAGE_AXES - self.translation
        return np.asarray(flipped @ self.rotation / self.scale, np.float32)

    def to_image(self, shifts: Points) -> Points:
        """Turn (n, 3) canonical displacements into image displacements."""
        return np.asarray(self.scale * (shifts @ self.rotation.T) * _IMAGE_AXES, np.float32)


def estimate_pose(landmarks: Points) -> Pose:
    """Fit the canonical face to the bones of (478, 3) landmarks by a similarity transform (Umeyama 1991)."""
    canonical = CANONICAL[_RIGID].astype(np.float64)
    image = (landmarks[_RIGID] * _IMAGE_AXES).astype(np.float64)
    from_centre, to_centre = canonical.mean(axis=0), image.mean(axis=0)
    a, b = canonical - from_centre, image - to_centre
    u, spectrum, vt = np.linalg.svd(b.T @ a)
    signs = np.array([1, 1, np.sign(np.linalg.det(u @ vt))])
    rotation = u * signs @ vt
    scale = float((spectrum * signs).sum() / (a**2).sum())
    return Pose(scale, rotation, to_centre - scale * rotation @ from_centre)


def mouth_opening(landmarks: Points) -> float:
    """Return the gap between the lips as a share of the mouth's width."""
    return _ratio(landmarks, 13, 14, 78, 308)


def eye_openings(landmarks: Points) -> tuple[float, float]:
    """Return the gap between the lids as a share of the eye's width, for the right and the left eye."""
    return _ratio(landmarks, 159, 145, 33, 133), _ratio(landmarks, 386, 374, 362, 263)


def gaze_aside(landmarks: Points) -> float:
    """Return how far the irises lie to one side of the middle of their eyes, as a share of the eyes' width."""
    offsets = []
    for iris, *corners in ((468, 33, 133), (473, 362, 263)):
        right, left = landmarks[corners, :2]
        across = left - right
        offsets.append((landmarks[iris, :2] - (right + left) / 2) @ across / (across @ across + 1e-6))
    return abs(float(np.mean(offsets)))


def _ratio(landmarks: Points, top: int, bottom: int, right: int, left: int) -> float:
    gap, width = landmarks[[top, right], :2] - landmarks[[bottom, left], :2]
    return float(np.linalg.norm(gap) / (np.linalg.norm(width) + 1e-6))


def rasterize(
    points: NDArray[np.floating], values: NDArray[np.floating], size: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Draw the mesh with a value interpolated between its points, nearer triangles over farther ones.

    points   (586, 2 or 3): x and y in pixels of the drawing, whose first pixel spans 0–1; z for the order, if any
    values   (586, c), c ≤ 3
    size     width and height of the drawing

    Returns the values, float32 (height, width, c), and where the mesh lies, bool (height, width).
    """
    width, height = size
    depth = points[:, 2] if points.shape[1] > 2 else np.zeros(len(points))
    # The rasteriser is a perspective camera; a depth range of 0.4 % makes it as good as orthographic.
    distance = 1 + 0.004 * (depth - depth.min()) / (np.ptp(depth) + 1e-6)
    x, y = (points[:, 0] - width / 2) / (height / 2), (points[:, 1] - height / 2) / (height / 2)
    vertices = np.stack([x * distance, -y * distance, -distance], axis=1).astype(np.float32)
    low = values.min(axis=0).astype(np.float32)
    extent = (np.ptp(values, axis=0) + 1e-6).astype(np.float32)
    colours = np.zeros((len(points), 3), np.float32)
    colours[:, : values.shape[1]] = (values - low) / extent
    empty, far = np.zeros((height, width, 3), np.float32), np.full((height, width), _FAR, np.float32)
    drawn, nearest = cv2.triangleRasterize(
        vertices, TRIANGLES, colours, empty, far, _CAMERA, np.pi / 2, 0.5, _FAR, _SETTINGS
    )
    inside = np.asarray(nearest < 0.95 * _FAR)
    to_values = np.eye(values.shape[1], 4, dtype=np.float32)
    to_values[:, :3] *= extent[:, None]
    to_values[:, 3] = low
    return np.asarray(cv2.transform(drawn, to_values), np.float32).reshape(height, width, -1), inside


def lay_out(values: NDArray[np.floating], size: int) -> NDArray[np.float32]:
    """Draw values at the mesh's points, (586, c), c ≤ 3, in the layout of the texture: float32 (size, size, c)."""
    return rasterize(TEXTURE_UV * np.float32(size), values, (size, size))[0]


def look_up(layout: NDArray[np.float32], place: NDArray[np.float32]) -> NDArray[np.float32]:
    """Read what was laid out at places of the texture, float32 (h, w, 2) in 0–1: float32 (h, w, c)."""
    pixels = place * np.float32(len(layout)) - np.float32(0.5)
    return np.asarray(cv2.remap(layout, pixels, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.float32)  # type: ignore[call-overload]  # the stubs lack map2=None


_FAR = 2.0
_CAMERA = np.eye(4, dtype=np.float32)
_SETTINGS = cv2.TriangleRasterizeSettings()
_SETTINGS.setCullingMode(cv2.RASTERIZE_CULLING_NONE)
_SETTINGS.setShadingType(cv2.RASTERIZE_SHADING_SHADED)


def _adjacency() -> NDArray[np.float32]:
    edges = np.concatenate([FACES[:, [0, 1]], FACES[:, [1, 2]], FACES[:, [2, 0]]])
    matrix = np.zeros((VERTICES, VERTICES), np.float32)
    matrix[edges[:, 0], edges[:, 1]] = matrix[edges[:, 1], edges[:, 0]] = 1
    return matrix


def _grown(ids: list[int]) -> Indices:
    """Return `ids` with their neighbours."""
    return np.flatnonzero(_ADJACENCY[ids].any(axis=0) | np.isin(np.arange(VERTICES), ids)).astype(np.int32)


_ADJACENCY = _adjacency()
_SMOOTHING = (0.5 * (np.eye(VERTICES) + _ADJACENCY / _ADJACENCY.sum(axis=1, keepdims=True))).astype(np.float32)
_FOLLOWS = smoothstep(
    np.linalg.norm(CANONICAL[:, None] - CANONICAL[OVAL], axis=-1).min(axis=1, keepdims=True), 0, _OUTLINE_CENTIMETRES
)
"""float32 (468, 1): share of a shift that a vertex follows, 0 on the outline."""

_EYE_BLOCKS = [_grown(eye) for eye in EYES]
_BROW_BLOCKS = [np.array(brow, np.int32) for brow in BROWS]
_MOUTH_BLOCK = _grown(LIPS_INNER + LIPS_OUTER)


@cache
def _smoothing_rounds() -> NDArray[np.float32]:
    """Return several rounds of smoothing as one product, which who only looks for faces has no need of."""
    return np.linalg.matrix_power(_SMOOTHING, 6)


def identity_shift(source: Points, target: Points) -> Points:
    """Return how the vertices of `target` move to get the bones of `source` and keep the expression of `target`.

    Both are canonical, at least (468, 3); so is the result, float32 (468, 3). Eyes, brows and mouth move as blocks,
    so that they neither open nor close; the mouth keeps its width, as a smile is part of the expression.
    """
    target = target[:VERTICES]
    shift: Points = source[:VERTICES] - target
    shift = (shift + shift[MIRROR[:VERTICES]] * _MIRROR_AXES) * np.float32(0.5)
    moved = shift.copy()
    for block in _EYE_BLOCKS:
        moved[block] = _as_block(target[block], shift[block])
    for block in _BROW_BLOCKS:
        moved[block] = _as_block(target[block], shift[block])
        moved[block, 1] *= 0.3
    moved[_MOUTH_BLOCK] = shift[_MOUTH_BLOCK].mean(axis=0) * np.array([0, 0.5, 1], np.float32)
    # not numpy's product: BLAS would start threads for it
    return np.asarray(cv2.gemm(_smoothing_rounds(), moved, 1, np.zeros_like(moved), 0), np.float32)


def _as_block(points: Points, shift: Points) -> Points:
    """Make a shift rigid: its mean, and the points' own shape scaled by the change of width."""
    growth = np.ptp((points + shift)[:, 0]) / np.ptp(points[:, 0])
    return np.asarray(
        shift.mean(axis=0) + (points - points.mean(axis=0)) * (np.clip(growth, 0.8, 1.25) - 1), np.float32
    )


def followed(shift: Points) -> Points:
    """Return how far each point of the mesh follows a canonical `shift`, (468, 3): float32 (586, 3)."""
    return spread(shift * _FOLLOWS)


def morph(landmarks: Points, pose: Pose, shift: Points) -> Points:
    """Move a face with its irises by a canonical `shift`, (468, 3): float32 (586, 3). Its outline stays in place."""
    return with_rings(landmarks) + pose.to_image(followed(shift))
