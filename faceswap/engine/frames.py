"""Pictures inside the engine: frames of videos, and stills, each a clip of one frame.

A frame keeps the planes it was decoded from. What a swap changes is added to them as a difference, so that
everything it leaves alone reaches the encoder untouched by colour conversions.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ..limits import MAX_IMAGE_BYTES, MAX_PIXELS, MAX_SIDE
from .pixels import Area, Image, shrunk, warped

LARGE_PIXELS = 4_000_000
"""Of pictures with more pixels than this (2.7K) as few are in memory at a time as works."""

_BT601 = 5
_FULL_RANGE = 2
_GREY = 128
"""U and V of what has no colour."""

_LUMA_WEIGHTS = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}
"""AVColorSpace → (Kr, Kb) of ITU-T H.273; all others are taken for BT.601, as ffmpeg does."""


@dataclass(frozen=True)
class Colour:
    """The colour encoding of a video's planes: the four AVCOL numbers of ffmpeg; 2 (range: 0) is unspecified."""

    matrix: int = 2
    range: int = 0
    primaries: int = 2
    transfer: int = 2

    @property
    def known_matrix(self) -> int:
        """The matrix (AVColorSpace) that ffmpeg converts with."""
        return self.matrix if self.matrix in _LUMA_WEIGHTS else _BT601

    @cached_property
    def from_bgr(self) -> NDArray[np.float32]:
        """The (3, 3) matrix from differences of B, G, R to differences of Y, U, V, all in steps of 8 bits."""
        kr, kb = _LUMA_WEIGHTS.get(self.matrix, (0.299, 0.114))
        luma = np.array([kb, 1 - kr - kb, kr])
        blue = (np.array([1, 0, 0]) - luma) / (2 * (1 - kb))
        red = (np.array([0, 0, 1]) - luma) / (2 * (1 - kr))
        scale = np.ones(3) if self.range == _FULL_RANGE else np.array([219, 224, 224]) / 255
        return (np.stack([luma, blue, red]) * scale[:, None]).astype(np.float32)

    @cached_property
    def to_bgr(self) -> NDArray[np.float32]:
        """The (3, 4) matrix from Y, U, V and 1 to B, G, R, all in steps of 8 bits."""
        turn = np.linalg.inv(self.from_bgr.astype(np.float64))
        black = np.array([[0 if self.range == _FULL_RANGE else 16], [_GREY], [_GREY]])
        return np.concatenate([turn, -turn @ black], axis=1).astype(np.float32)


@dataclass
class Frame:
    """One picture. `planes` is I420, uint8 (H · 3/2, W), with H and W even."""

    planes: Image
    colour: Colour = field(default_factory=Colour)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.planes.shape[1], self.planes.shape[0] * 2 // 3

    def to_bgr(self) -> Image:
        """Return a copy of the picture as uint8 (H, W, 3) BGR."""
        return _converted(self.planes, self.colour)

    def part(self, area: Area, scale: float = 1.0) -> Image:
        """Return a copy of a part of the picture, BGR; made smaller its sides are even."""
        left, top, right, bottom = area
        even = x0, y0, x1, y1 = _even(area)
        planes = _cut(self.planes, even)
        if scale != 1:
            half = max(1, round((x1 - x0) * scale / 2)), max(1, round((y1 - y0) * scale / 2))
            y, *uv = split_planes(planes)
            smaller = [shrunk(y, (2 * half[0], 2 * half[1])), *(shrunk(plane, half) for plane in uv)]
            return _converted(_joined(smaller), self.colour)
        return _converted(planes, self.colour)[top - y0 : bottom - y0, left - x0 : right - x0]

    def warped(self, matrix: NDArray[np.floating], side: int) -> Image:
        """Return a turned square, BGR."""
        halved = matrix.copy()
        halved[:, 2] = (matrix[:, 2] + matrix[:, :2].sum(axis=1) / 2 - 0.5) / 2
        y, *uv = split_planes(self.planes)
        planes = [warped(y, matrix, side), *(warped(plane, halved, side // 2, _GREY) for plane in uv)]
        return _converted(_joined(planes), self.colour)

    @contextmanager
    def painted(self, area: Area) -> Iterator[Image]:
        """Give a part as BGR to paint on; what was changed there is added to the planes at the end."""
        x0, y0, x1, y1 = _even(area)
        before = _converted(_cut(self.planes, (x0, y0, x1, y1)), self.colour)
        after = before.copy()
        left, top, right, bottom = area
        yield after[top - y0 : bottom - y0, left - x0 : right - x0]
        self._add(x0, y0, before, after)

    def _add(self, x0: int, y0: int, before: Image, after: Image) -> None:
        """Add the difference of two pictures, whose corner lies at even coordinates, to the planes."""
        height, width = before.shape[:2]
        left, top, across, down = cv2.boundingRect(cv2.absdiff(after, before).reshape(height, width * 3))
        if across == 0:
            return
        left, right = left // 3 // 2 * 2, ((left + across - 1) // 3 + 2) // 2 * 2
        top, bottom = top // 2 * 2, (top + down + 1) // 2 * 2
        box = np.s_[top:bottom, left:right]
        change = cv2.subtract(after[box], before[box], dtype=cv2.CV_32F)
        luma, *chroma = cv2.split(cv2.transform(change, self.colour.from_bgr))
        y, *uv = split_planes(self.planes)
        place = np.s_[y0 + top : y0 + bottom, x0 + left : x0 + right]
        y[place] = cv2.add(y[place], luma, dtype=cv2.CV_8U)
        half = np.s_[(y0 + top) // 2 : (y0 + bottom) // 2, (x0 + left) // 2 : (x0 + right) // 2]
        for plane, part in zip(uv, chroma, strict=True):
            small = cv2.resize(part, ((right - left) // 2, (bottom - top) // 2), interpolation=cv2.INTER_AREA)
            plane[half] = cv2.add(plane[half], small, dtype=cv2.CV_8U)

    @classmethod
    def from_bgr(cls, bgr: Image) -> Frame:
        """Make a frame of a still, uint8 (H, W, 3) BGR, in BT.601; odd sides grow by one pixel."""
        height, width = bgr.shape[:2]
        even = cv2.copyMakeBorder(bgr, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        return cls(np.asarray(cv2.cvtColor(even, cv2.COLOR_BGR2YUV_I420), np.uint8), Colour(matrix=_BT601, range=1))


def _converted(planes: Image, colour: Colour) -> Image:
    """Convert I420 planes to BGR."""
    y, *uv = split_planes(planes)
    large = [cv2.resize(plane, y.shape[::-1], interpolation=cv2.INTER_NEAREST) for plane in uv]
    return np.asarray(cv2.transform(cv2.merge([y, *large]), colour.to_bgr), np.uint8)


def _even(area: Area) -> Area:
    """Widen a part of an even picture to even coordinates."""
    left, top, right, bottom = area
    return left // 2 * 2, top // 2 * 2, (right + 1) // 2 * 2, (bottom + 1) // 2 * 2


def _cut(planes: Image, area: Area) -> Image:
    """Return the planes of a part with even coordinates."""
    left, top, right, bottom = area
    y, *uv = split_planes(planes)
    half = np.s_[top // 2 : bottom // 2, left // 2 : right // 2]
    return _joined([y[top:bottom, left:right], *(plane[half] for plane in uv)])


def _joined(planes: Sequence[Image]) -> Image:
    """Return the planes Y, U and V as one I420 array."""
    return np.concatenate([plane.reshape(-1) for plane in planes]).reshape(-1, planes[0].shape[1])


def split_planes(planes: Image) -> list[Image]:
    """Return views of the Y, U and V planes of an I420 array."""
    width, height = planes.shape[1], planes.shape[0] * 2 // 3
    flat, luma, chroma = planes.reshape(-1), width * height, width * height // 4
    return [
        flat[:luma].reshape(height, width),
        flat[luma : luma + chroma].reshape(height // 2, width // 2),
        flat[luma + chroma :].reshape(height // 2, width // 2),
    ]


@dataclass(frozen=True, eq=False)
class Picture:
    """A still, as a clip of one frame; equal only to itself."""

    bgr: Image
    rate: Fraction = Fraction(1)
    count: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.bgr.shape[1], self.bgr.shape[0]

    def __iter__(self) -> Generator[Frame]:
        yield Frame.from_bgr(self.bgr)

    def __str__(self) -> str:
        return f"<picture {self.size[0]}×{self.size[1]}>"


def read_picture(path: Path) -> Picture:
    """Read an image as it is meant to be shown. Raises ValueError when it is none."""
    if path.stat().st_size > MAX_IMAGE_BYTES:
        raise ValueError(f"{path.name} is larger than {MAX_IMAGE_BYTES >> 20} MiB")
    return Picture(decode_picture(np.fromfile(path, np.uint8), path.name))


def decode_picture(data: NDArray[np.uint8], name: str = "The picture") -> Image:
    """Return the pixels of an image file as it is meant to be shown, BGR. Raises ValueError when it is none."""
    try:
        bgr = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error as error:
        limits = f"at most {MAX_SIDE} pixels a side and {MAX_PIXELS} in all"
        raise ValueError(f"{name} cannot be decoded: {limits}") from error
    if bgr is None:
        raise ValueError(f"{name} is not an image that can be read")
    return np.asarray(bgr, np.uint8)
