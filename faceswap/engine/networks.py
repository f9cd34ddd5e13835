"""The two networks, run by LiteRT on one thread each: BlazeFace finds faces, MediaPipe's landmarker places 478 points.

A network object belongs to one thread at a time; loading one takes a few milliseconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from .mesh import Image, Points

MODELS = Path(__file__).parent / "models"

CERTAIN = 0.5
"""Probability from which on something is a face."""

Box = NDArray[np.float32]


class Region(NamedTuple):
    """A turned square of the picture, pixels and radians."""

    x: float
    y: float
    size: float
    angle: float


class Landmarker:
    """MediaPipe's face landmarker: RGB (256, 256) in 0–1 to 478 points and a logit of their being a face."""

    _SIDE = 256

    def __init__(self) -> None:
        self._model = _load("face_landmarks_detector.tflite")
        outputs = self._model.get_output_details()
        self._input = self._model.get_input_details()[0]["index"]
        self._points = next(o["index"] for o in outputs if np.prod(o["shape"]) == 478 * 3)
        self._score = next(o["index"] for o in outputs if len(o["shape"]) == 4 and o["shape"][-1] == 1)

    def __call__(self, bgr: Image, region: Region) -> tuple[Points, float]:
        """Return a face's landmarks in a region, float32 (478, 3) in pixels, and the probability of a face there."""
        crop, to_image = self._crop(bgr, region)
        rgb = cv2.cvtColor(crop, cv2.COLOR_BGR2RGB)
        self._model.set_tensor(self._input, (rgb * np.float32(1 / 255))[None])
        self._model.invoke()
        points = self._model.get_tensor(self._points).reshape(478, 3).copy()
        points[:, :2] = points[:, :2] @ to_image[:, :2].T + to_image[:, 2]
        points[:, 2] *= region.size / self._SIDE
        return points, _sigmoid(self._model.get_tensor(self._score).ravel()[0])

    def _crop(self, bgr: Image, region: Region) -> tuple[Image, NDArray[np.float32]]:
        """Cut a region out; also return the (2, 3) matrix from the crop to the picture."""
        scale, half = region.size / self._SIDE, self._SIDE / 2
        c, s = np.cos(region.angle) * scale, np.sin(region.angle) * scale
        to_image = np.array([[c, -s, region.x - half * (c - s)], [s, c, region.y - half * (c + s)]])
        source: Any = bgr
        to_source = to_image
        if scale > 2.5:  # too much for bilinear sampling: shrink first
            radius = region.size * 0.75
            left, top = (max(0, int(v - radius)) for v in (region.x, region.y))
            part = bgr[top : int(region.y + radius) + 1, left : int(region.x + radius) + 1]
            if part.size:
                shrink = 1.5 / scale
                source = cv2.resize(part, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
                to_source = (to_image - [[0, 0, left], [0, 0, top]]) * shrink
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        crop = cv2.warpAffine(source, to_source, (self._SIDE, self._SIDE), flags=flags)
        return np.asarray(crop, np.uint8), to_image.astype(np.float32)


class Detector:
    """BlazeFace full range: RGB (192, 192) in −1–1 to boxes and eyes, one anchor for every 4×4 pixels."""

    _SIDE = 192

    def __init__(self) -> None:
        self._model = _load("face_detection_full_range.tflite")
        outputs = self._model.get_output_details()
        self._input = self._model.get_input_details()[0]["index"]
        self._boxes = next(o["index"] for o in outputs if o["shape"][-1] == 16)
        self._scores = next(o["index"] for o in outputs if o["shape"][-1] == 1)
        y, x = np.mgrid[0:48, 0:48]
        self._anchors = np.stack([x.ravel(), y.ravel()], axis=1) * 4 + 2.0

    def __call__(self, bgr: Image) -> Box:
        """Return detections, (n, 9), pixels: box, score, right and left eye."""
        picture, scale, offset = self._letterbox(bgr)
        rgb = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
        self._model.set_tensor(self._input, (rgb * np.float32(1 / 127.5) - 1)[None])
        self._model.invoke()
        scores = _sigmoid(self._model.get_tensor(self._scores)[0, :, 0])
        certain = scores > CERTAIN
        values = self._model.get_tensor(self._boxes)[0][certain].reshape(-1, 8, 2)
        anchors = self._anchors[certain][:, None]
        centre, half, eyes = values[:, :1] + anchors, values[:, 1:2] / 2, values[:, 2:4] + anchors
        points = np.concatenate([centre - half, centre + half, eyes], axis=1)
        points = ((points - offset) / scale).reshape(-1, 8)
        return np.insert(points, 4, scores[certain], axis=1).astype(np.float32)

    def _letterbox(self, bgr: Image) -> tuple[Image, float, tuple[int, int]]:
        height, width = bgr.shape[:2]
        scale = self._SIDE / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        left, top = (self._SIDE - size[0]) // 2, (self._SIDE - size[1]) // 2
        picture = np.zeros((self._SIDE, self._SIDE, 3), np.uint8)
        small = cv2.resize(bgr, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        picture[top : top + size[1], left : left + size[0]] = small
        return picture, scale, (left, top)


def _load(name: str) -> Any:
    # imported here: it takes 0.1 s, which a process that only looks at a mesh need not spend
    from ai_edge_litert.interpreter import Interpreter

    model = Interpreter(str(MODELS / name), num_threads=1)
    model.allocate_tensors()
    return model


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-np.clip(x, -60, 60)))
