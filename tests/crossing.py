"""A made clip of two people who cross: each moves to the other's side, and one passes in front of the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from media_samples import ASTRONAUT, GRACE_HOPPER, read_image

FACES = {"astronaut": (ASTRONAUT, (225.0, 125.0), 109.0), "hopper": (GRACE_HOPPER, (263.0, 233.0), 202.0)}
"""For each person the picture, the centre of the face there and its height, pixels."""


@dataclass(frozen=True)
class Scene:
    """A frame, uint8 (H, W, 3) BGR, and for each person the centre of the face and whether nothing is before it."""

    frame: np.ndarray
    faces: dict[str, tuple[float, float, bool]]


PERIOD = 48
"""Frames in which both people change sides and come back."""


def crossing(
    count: int, size: tuple[int, int] = (640, 360), *, front: str = "hopper", first: int = 0
) -> Iterator[Scene]:
    """Yield the frames of a clip in which both people cross from side to side and back; `front` passes in front.

    The clip begins with frame `first` of the period.
    """
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    room = np.stack([90 + x * 60 / width, 110 + y * 40 / height, 120 + 20 * np.sin(x / 17.0)], axis=2).astype(np.uint8)
    order = sorted(FACES, key=lambda name: name == front)
    for number in range(first, first + count):
        phase = 2 * np.pi * number / PERIOD
        frame, faces = room.copy(), {}
        for side, name in enumerate(order):
            path, centre, own = FACES[name]
            way = np.cos(phase + np.pi * side)
            face = height * (0.36 + 0.03 * np.sin(2 * phase + side))
            place = (width * (0.5 + 0.3 * way), height * (0.42 + 0.03 * np.sin(3 * phase + 2 * side)))
            _paste(frame, read_image(path), centre, own, face / own, place, 6 * np.sin(2 * phase + side))
            faces = {
                other: (*there[:2], there[2] and abs(there[0] - place[0]) > 1.1 * face)
                for other, there in faces.items()
            }
            faces[name] = (*place, True)
        yield Scene(frame, faces)


def _paste(
    frame: np.ndarray,
    picture: np.ndarray,
    centre: tuple[float, float],
    face: float,
    zoom: float,
    place: tuple[float, float],
    turn: float,
) -> None:
    """Draw head and shoulders of a picture into a frame, the face's `centre` at `place`."""
    matrix = cv2.getRotationMatrix2D(centre, turn, zoom)
    matrix[:, 2] += np.array(place) - centre
    size = frame.shape[1::-1]
    drawn = cv2.warpAffine(picture, matrix, size, borderMode=cv2.BORDER_REPLICATE)
    shape = np.zeros(picture.shape[:2], np.float32)
    x, y = map(int, centre)
    cv2.ellipse(shape, (x, int(y - 0.1 * face)), (int(0.68 * face), int(face)), 0, 0, 360, 1.0, -1)
    cv2.ellipse(shape, (x, int(y + 2.5 * face)), (int(1.4 * face), int(1.6 * face)), 0, 0, 360, 1.0, -1)
    mask = cv2.warpAffine(cv2.GaussianBlur(shape, (0, 0), 4), matrix, size)[..., None]
    frame[:] = (drawn * mask + frame * (1 - mask)).astype(np.uint8)


def around(scene: Scene, frame: np.ndarray, person: str) -> np.ndarray:
    """Cut a person's head out of a frame."""
    x, y, _ = scene.faces[person]
    half = frame.shape[0] // 4
    top, left = max(0, int(y) - half), max(0, int(x) - half)
    return np.ascontiguousarray(frame[top : int(y) + half, left : int(x) + half])
