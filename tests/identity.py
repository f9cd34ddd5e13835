"""Recognition of the person in a picture, by a network the engine does not use: dlib's ResNet face embedding.

Distances between pictures of one person are about 0.33 to 0.44, between two people 0.68 to 0.99.
"""

import functools
import importlib.util
from pathlib import Path
from typing import Any

import cv2
import dlib
import numpy as np


def embedding(bgr: np.ndarray) -> np.ndarray:
    """Return the float64 (128,) embedding of the largest face in a uint8 (H, W, 3) BGR picture.

    Raises ValueError where dlib's frontal detector sees no face.
    """
    detector, predictor, encoder = _models()
    rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    faces = detector(rgb, 0) or detector(rgb, 1)
    if not faces:
        raise ValueError("dlib sees no face in the picture")
    shape = predictor(rgb, max(faces, key=lambda face: face.area()))
    return np.array(encoder.compute_face_descriptor(rgb, shape), np.float64)


def embedding_at(bgr: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    """Return the embedding of the face that fills a box from left, top to right, bottom, forehead and chin included."""
    _, predictor, encoder = _models()
    rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    left, top, right, bottom = box
    # dlib's boxes are squares from the brows to the chin
    x, y, half = (left + right) / 2, top * 0.48 + bottom * 0.52, (bottom - top) * 0.45
    square = dlib.rectangle(round(x - half), round(y - half), round(x + half), round(y + half))
    return np.array(encoder.compute_face_descriptor(rgb, predictor(rgb, square)), np.float64)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Euclidean distance of two embeddings: under 0.6 dlib speaks of one person."""
    return float(np.linalg.norm(a - b))


@functools.cache
def _models() -> tuple[Any, Any, Any]:
    # The package is found, not imported: its __init__ needs pkg_resources, which setuptools no longer has.
    spec = importlib.util.find_spec("face_recognition_models")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("face_recognition_models")
    folder = Path(spec.submodule_search_locations[0]) / "models"
    return (
        dlib.get_frontal_face_detector(),
        dlib.shape_predictor(str(folder / "shape_predictor_5_face_landmarks.dat")),
        dlib.face_recognition_model_v1(str(folder / "dlib_face_recognition_resnet_model_v1.dat")),
    )
