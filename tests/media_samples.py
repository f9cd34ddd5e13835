"""Pictures and clips the tests work on, made from the two portraits that ship with the project."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

import faceswap

SAMPLES = Path(faceswap.__file__).parent / "samples"
ASTRONAUT = SAMPLES / "astronaut.png"
GRACE_HOPPER = SAMPLES / "grace_hopper.jpg"

FACE_CENTRE = (225.0, 125.0)
"""The face in astronaut.png, pixels."""

CLIP_PERIOD = 75
"""Frames after which the motion of the made clip repeats."""


def read_image(path: Path) -> np.ndarray:
    """Read a picture as uint8 (H, W, 3) BGR."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise FileNotFoundError(path)
    return image


def astronaut_frames(count: int, size: tuple[int, int] = (512, 512)) -> Iterator[np.ndarray]:
    """Yield `count` frames of `size` (width, height), uint8 BGR: the astronaut moving, coming nearer and turning.

    The face fills a third to a half of the frame's shorter side and is always whole in the picture.
    """
    image = read_image(ASTRONAUT)
    width, height = size
    for number in range(count):
        phase = 2 * np.pi * number / CLIP_PERIOD
        zoom = (1.9 + 0.4 * np.sin(phase)) * min(size) / 512
        matrix = cv2.getRotationMatrix2D(FACE_CENTRE, 10 * np.sin(2 * phase + 1), zoom)
        matrix[0, 2] += width * (0.5 + 0.08 * np.cos(phase)) - FACE_CENTRE[0]
        matrix[1, 2] += height * (0.5 + 0.05 * np.sin(2 * phase)) - FACE_CENTRE[1]
        yield cv2.warpAffine(image, matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
