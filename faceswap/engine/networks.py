"""The two networks for faces, run by LiteRT on one thread each: BlazeFace finds, MediaPipe's landmarker places them.

A network object belongs to one thread at a time; loading one takes a few milliseconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from .mesh import VERTICES, Image, Points
from .pixels import Pixels, in_blocks, warped, within

MODELS = Path(__file__).parent / "models"

CERTAIN = 0.5
"""Probability from which on something is a face."""

_LEAST_SHRINKING, _MOST_SHRINKING = 1.25, 2.5
"""Pixels of a picture to one of a crop that bilinear sampling can bear: the least where a picture is shrunk before."""

Box = NDArray[np.float32]


class Region(NamedTuple):
    """A turned square of the picture, pixels and radians."""

    x: float
    y: float
    size: float
    angle: float


class Placement(NamedTuple):
    """A face as the landmarker places it.

    points    landmarks, float32 (478, 3), pixels
    score     0–1, the probability that a face is there
    pattern   brightness at the mesh's vertices, float32 (468,), steps of 8 bits
    """

    points: Points
    score: float
    pattern: NDArray[np.float32]


class Landmarker:
    """MediaPipe's face landmarker: RGB (256, 256) in 0–1 to 478 points and a logit of their being a face."""

    _SIDE = 256
    _PATTERN_SIDE = 64

    def __init__(self) -> None:
        self._model = load("face_landmarks_detector.tflite")
        outputs = self._model.get_output_details()
        self._input = self._model.get_input_details()[0]["index"]
        self._points = next(o["index"] for o in outputs if np.prod(o["shape"]) == 478 * 3)
        self._score = next(o["index"] for o in outputs if len(o["shape"]) == 4 and o["shape"][-1] == 1)

    def __call__(self, picture: Pixels, region: Region) -> Placement:
        """Place the face of a region."""
        crop, to_image = cut(picture, region, self._SIDE)
        rgb = cv2.cvtColor(crop, cv2.COLOR_BGR2RGB)
        self._model.set_tensor(self._input, (rgb * np.float32(1 / 255))[None])
        self._model.invoke()
        points = self._model.get_tensor(self._points).reshape(478, 3).copy()
        pattern = self._pattern(crop, points[:VERTICES, :2])
        points[:, :2] = points[:, :2] @ to_image[:, :2].T + to_image[:, 2]
        points[:, 2] *= region.size / self._SIDE
        return Placement(points, float(_sigmoid(self._model.get_tensor(self._score).ravel()[0])), pattern)

    def _pattern(self, crop: Image, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Read the brightness of a crop, made smaller against noise, at the vertices."""
        side = self._PATTERN_SIDE
        small = cv2.resize(cv2.cvtColor(crop, cv2.COLOR_BGR2GRAY), (side, side), interpolation=cv2.INTER_AREA)
        x, y = np.clip(points * (side / self._SIDE), 0, side - 1).astype(np.intp).T
        return np.asarray(small[y, x], np.float32)


class AnchorNetwork:
    """A network that tells for each of its anchors, which lie in a grid, how sure it is, and where things lie from it.

    columns    values of each anchor
    """

    def __init__(self, name: str, columns: int) -> None:
        self._model = load(name)
        outputs = self._model.get_output_details()
        self._input = self._model.get_input_details()[0]["index"]
        self._values = next(o["index"] for o in outputs if o["shape"][-1] == columns)
        self._scores = next(o["index"] for o in outputs if o["shape"][-1] == 1)

    def __call__(self, rgb: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the probabilities (n,) and the values (n, columns) for a picture, (side, side, 3)."""
        self._model.set_tensor(self._input, rgb[None])
        self._model.invoke()
        return _sigmoid(self._model.get_tensor(self._scores)[0, :, 0]), self._model.get_tensor(self._values)[0]


class Detector:
    """BlazeFace full range: RGB (192, 192) in −1–1 to boxes and eyes, one anchor for every 4×4 pixels."""

    _SIDE = 192

    def __init__(self) -> None:
        self._network = AnchorNetwork("face_detection_full_range.tflite", 16)
        y, x = np.mgrid[0:48, 0:48]
        self._anchors = np.stack([x.ravel(), y.ravel()], axis=1) * 4 + 2.0

    def __call__(self, picture: Pixels, region: Region) -> Box:
        """Return the detections in an upright region, (n, 9), pixels: box, score, right and left eye."""
        crop, to_image = cut(picture, region, self._SIDE)
        rgb = cv2.cvtColor(crop, cv2.COLOR_BGR2RGB)
        scores, found = self._network(rgb * np.float32(1 / 127.5) - 1)
        certain = scores > CERTAIN
        values = found[certain].reshape(-1, 8, 2)
        anchors = self._anchors[certain][:, None]
        centre, half, eyes = values[:, :1] + anchors, values[:, 1:2] / 2, values[:, 2:4] + anchors
        points = np.concatenate([centre - half, centre + half, eyes], axis=1) @ to_image[:, :2].T + to_image[:, 2]
        return np.insert(points.reshape(-1, 8), 4, scores[certain], axis=1).astype(np.float32)


def cut(picture: Pixels, region: Region, side: int) -> tuple[Image, NDArray[np.float32]]:
    """Cut a region out, `side` pixels wide; also return the (2, 3) matrix from the crop to the picture."""
    scale, half = region.size / side, side / 2
    c, s = np.cos(region.angle) * scale, np.sin(region.angle) * scale
    to_image = np.array([[c, -s, region.x - half * (c - s)], [s, c, region.y - half * (c + s)]])
    if scale <= _MOST_SHRINKING:
        return picture.warped(to_image, side), to_image.astype(np.float32)
    x, y, reach = region.x, region.y, region.size * 0.75
    area = within(picture, x - reach, y - reach, x + reach, y + reach)
    if area is None:
        return np.zeros((side, side, 3), np.uint8), to_image.astype(np.float32)
    times = int(scale / _LEAST_SHRINKING)
    left, top, right, bottom = area = in_blocks(area, 2 * times)
    part = picture.part(area, 1 / times)
    shrink = np.array([[part.shape[1] / (right - left)], [part.shape[0] / (bottom - top)]])
    to_part = (to_image - [[0, 0, left], [0, 0, top]]) * shrink
    return warped(part, to_part, side), to_image.astype(np.float32)


def load(name: str) -> Any:
    """Open one of the engine's own networks, ready to run on one thread."""
    # imported here: it takes 0.1 s, which a process that only looks at a mesh need not spend
    from ai_edge_litert.interpreter import Interpreter

    model = Interpreter(str(MODELS / name), num_threads=1)
    model.allocate_tensors()
    return model


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-np.clip(x, -60, 60)))
