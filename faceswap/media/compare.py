"""Comparison of two frames: was a region the size of a face changed? It works without a detector of faces.

Both frames are reduced to the mean colours of small blocks, and what one linear colour transform of the whole frame
explains is taken away. The rest is compared with what encoding alone does to the same blocks, measured on the source's
own frames, encoded anew with the result's `crf`.

The limits below were chosen on 58 scenes of 180p to 720p (photographs that move, cut, fade and flash, grain, noise,
lettering, little light; faces of 46 to 170 pixels, swapped by the embedded engine and not) at crf 20 to 51.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import cv2
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from ..limits import DECODER_THREADS
from .probe import clockwise

Array = NDArray[np.float32]

SHORT_SIDE = 720
BLOCK = 8
RIDGE = 25.0

ENCODED_SHORT_SIDE = 1080
REACH = 7
"""Side of the square of blocks in which encoding may change all alike, in blocks."""
NOISE_FLOOR = 1.5
LEAST_MEDIAN = 0.3
CHANGED_RATIO, RATIO_PER_NOISE, MOST_NOISE = 2.5, 0.25, 12.0
UNCHANGED_RATIO, CLEAR_NOISE = 2.0, 3.0
DARK, DARK_FACTOR = 24.0, 2.5
"""In the dark an encoder may keep for seconds what was seen in the light, unseen in a run of a few frames."""


def grid(width: int, height: int) -> tuple[int, int]:
    """Return the size, a multiple of the block, at which frames of `width`×`height` are compared."""
    scale = min(1.0, SHORT_SIDE / min(width, height))
    return max(round(width * scale / BLOCK), 4) * BLOCK, max(round(height * scale / BLOCK), 4) * BLOCK


def blocks(frame: VideoFrame, turn: int, size: tuple[int, int]) -> Array:
    """Return the mean colours of a frame's blocks, float32 RGB, turned clockwise by `turn` degrees at `size`."""
    width, height = size[::-1] if turn in (90, 270) else size
    small = frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA").to_ndarray()
    picture = np.rot90(small, -turn // 90).astype(np.float32)
    return np.asarray(cv2.resize(picture, (size[0] // BLOCK, size[1] // BLOCK), interpolation=cv2.INTER_AREA))


@dataclass(frozen=True, slots=True)
class Reference:
    """A frame of the source to compare with.

    source       its blocks
    difference   what encoding changed in it, 0–255
    noise        what encoding changed in it and in the frames about it, 0–255
    """

    source: Array
    difference: Array
    noise: Array

    def changed(self, result: Array) -> bool | None:
        """Return true if a region of the blocks `result` differs from the source more than encoding explains.

        None when it may be either: the difference is small, or the encoding so coarse or the picture so dark that they
        would hide a swapped face. A job fails for frames that are surely unchanged, so doubt counts for neither.
        """
        difference = _difference(self.source, result)
        coarser = float(np.median(difference)) / max(float(np.median(self.difference)), LEAST_MEDIAN)
        noise = self.noise * max(coarser, 1.0)
        ratio = float((difference / (noise + NOISE_FLOOR)).max())
        usual = float(np.quantile(noise, 0.9))
        dark = float(self.source.mean()) < DARK
        if ratio > (CHANGED_RATIO + RATIO_PER_NOISE * min(usual, MOST_NOISE)) * (DARK_FACTOR if dark else 1):
            return True
        return False if usual < CLEAR_NOISE and not dark and ratio < UNCHANGED_RATIO else None


def references(run: Iterator[VideoFrame], wanted: Sequence[bool], crf: int) -> list[Reference]:
    """Return references for the wanted frames of a run of source frames, which is encoded with `crf`."""
    sources: list[Array] = []
    encoded: list[Array] = []
    encoder: _Encoder | None = None
    turn, size = 0, (0, 0)
    for number, frame in enumerate(run):
        if encoder is None:
            turn, encoder = clockwise(frame), _Encoder(frame, crf)
            size = grid(*display_size(frame))
        if wanted[number]:
            sources.append(blocks(frame, turn, size))
        encoded += (blocks(after, turn, size) for after in encoder.encode(frame) if wanted[after.pts or 0])
    if encoder is None:
        return []
    encoded += (blocks(after, turn, size) for after in encoder.encode(None) if wanted[after.pts or 0])
    differences = [_difference(source, after) for source, after in zip(sources, encoded, strict=True)]
    mean_square = np.mean(np.square(differences), axis=0)
    noise = cv2.dilate(np.sqrt(mean_square), np.ones((REACH, REACH), np.uint8))
    return [Reference(source, d, np.asarray(noise)) for source, d in zip(sources, differences, strict=True)]


class _Encoder:
    """An x264 encoder with a decoder behind it: frames go in, their encoded pictures come out; `pts` counts them."""

    def __init__(self, first: VideoFrame, crf: int) -> None:
        scale = min(1.0, ENCODED_SHORT_SIDE / min(first.width, first.height))
        self._encoder = av.CodecContext.create("libx264", "w")
        self._encoder.width, self._encoder.height = (
            max(round(side * scale / 2), 8) * 2 for side in (first.width, first.height)
        )
        self._encoder.pix_fmt = "yuv420p"
        self._encoder.time_base = Fraction(1, 25)
        self._encoder.options = {"crf": str(crf), "preset": "veryfast"}
        self._encoder.thread_count = DECODER_THREADS
        self._decoder = av.CodecContext.create("h264", "r")
        self._count = 0

    def encode(self, frame: VideoFrame | None) -> Iterator[VideoFrame]:
        """Encode the next frame; None ends the run."""
        picture = None
        if frame is not None:
            scaled = frame.reformat(
                width=self._encoder.width, height=self._encoder.height, format="yuv420p", interpolation="AREA"
            )
            # A copy: the source's choice of key frames is not to be repeated, nor its times to be lost.
            picture = VideoFrame.from_ndarray(scaled.to_ndarray(), "yuv420p")
            picture.pts = self._count
            self._count += 1
        for packet in self._encoder.encode(picture):
            yield from self._decoder.decode(packet)
        if frame is None:
            yield from self._decoder.decode(None)


def display_size(frame: VideoFrame) -> tuple[int, int]:
    """Return width and height of a frame as it is shown."""
    return (frame.height, frame.width) if clockwise(frame) in (90, 270) else (frame.width, frame.height)


def _difference(source: Array, result: Array) -> Array:
    """Return the colour difference of each 2×2 blocks (root mean square, 0–255) after the best colour transform."""
    ones = np.full((*source.shape[:2], 1), 255, np.float32)
    known = np.concatenate([source, ones], axis=2).reshape(-1, 4)
    wanted = (result - source).reshape(-1, 3)
    usual = np.ones(len(known), bool)
    rest = wanted
    for _ in range(2):
        # The ridge keeps colours that the usual blocks do not have as they are.
        k = known[usual]
        transform = np.linalg.solve(k.T @ k + RIDGE * len(k) * np.eye(4, dtype=np.float32), k.T @ wanted[usual])
        rest = wanted - known @ transform
        error = np.abs(rest).max(axis=1)
        usual = error <= np.quantile(error, 0.7)
    energy = (rest**2).mean(axis=1).reshape(source.shape[:2])
    return np.asarray(np.sqrt(cv2.blur(energy, (2, 2))), np.float32)
