"""A small picture of a video or a picture. It runs in a worker process: the bytes may be hostile."""

from __future__ import annotations

import base64
import itertools
from pathlib import Path
from typing import Any

import av
import numpy as np

from ..errors import Unprocessable
from .facts import Thumbnail
from .probe import clockwise
from .stills import Picture, read_still
from .timeline import decoded, open_picture

SIDE = 320
"""The most pixels of a side."""
QUALITY = 80
FRAMES_LOOKED_AT = 50
"""Frames among which the first is chosen that shows something: many clips begin in the dark."""
LEAST_CONTRAST = 8.0
"""The standard deviation of the brightness, of 255, from which on a frame shows something."""
NO_PICTURE = Unprocessable("There is no picture in the file.", code="undecodable")


def thumbnail(path: Path, *, is_picture: bool) -> Thumbnail:
    """Return a JPEG of the file at `path`. Raises Unprocessable or UnsupportedMedia."""
    return Thumbnail(base64.b64encode(_encode(read_still(path)[1] if is_picture else _frame(path))).decode())


def _frame(path: Path) -> Picture:
    """Return the first frame that shows something, else the first, upright."""
    first: Picture | None = None
    try:
        with open_picture(path) as (container, stream):
            for frame in itertools.islice(decoded(container, stream), FRAMES_LOOKED_AT):
                turns = clockwise(frame) // 90
                picture = np.asarray(np.rot90(frame.to_ndarray(format="bgr24"), -turns), np.uint8)
                if picture.mean(axis=2).std() >= LEAST_CONTRAST:
                    return picture
                first = picture if first is None else first
    except (av.FFmpegError, ValueError):
        pass  # what was decoded before is enough
    if first is None:
        raise NO_PICTURE
    return first


def _encode(picture: Picture) -> bytes:
    import cv2

    height, width = picture.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(np.ascontiguousarray(picture), size, interpolation=cv2.INTER_AREA)
    encoded: Any = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    return bytes(encoded)
