"""Pictures with no face, one and several, as they are sent."""

from __future__ import annotations

import io

import clips
import cv2
import numpy as np
import pillow_heif
from numpy.typing import NDArray
from PIL import Image

from faceswap import samples

LARGE, SMALL = 360, 180
"""Pixels of the two people's pictures."""
GROUP_SIZE = (SMALL + LARGE, LARGE)


def group() -> NDArray[np.uint8]:
    """Draw two people, RGB: a small one at the left, a large one at the right."""
    person = cv2.cvtColor(cv2.imread(str(samples.FACE)), cv2.COLOR_BGR2RGB)
    picture = np.full((LARGE, SMALL + LARGE, 3), 110, np.uint8)
    picture[:SMALL, :SMALL] = cv2.resize(person, (SMALL, SMALL), interpolation=cv2.INTER_AREA)
    picture[:, SMALL:] = cv2.resize(person, (LARGE, LARGE), interpolation=cv2.INTER_AREA)
    return picture


def png(rgb: NDArray[np.uint8]) -> bytes:
    """Return a picture as the bytes of a PNG."""
    return bytes(cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1])


def heic(rgb: NDArray[np.uint8]) -> bytes:
    """Return a picture as the bytes of a HEIC."""
    return photograph(rgb, "HEIF", 1)


def photograph(rgb: NDArray[np.uint8], kind: str, orientation: int) -> bytes:
    """Return a picture as the bytes of a `HEIF` or `AVIF` that asks to be turned (EXIF 2.32, tag 0x0112)."""
    pillow_heif.register_heif_opener()
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(rgb).save(file, kind, quality=95, exif=exif.tobytes())
    return file.getvalue()


def nobody() -> bytes:
    """Return the bytes of a PNG without a face."""
    return png(clips.numbered(5))
