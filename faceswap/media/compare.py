"""Tells whether a region the size of a face was changed between two frames, without knowing where faces are.

Both frames are reduced to the mean colours of small blocks, in which encoding noise averages out, and what one
linear colour transform of the whole frame explains is taken away. The rest is measured against what the
encoder does elsewhere in the same frame to blocks of the same contrast.

The limits below were found on scenes of 180p to 720p with moving texture, grain, lettering and little light,
encoded by x264 at crf 20, 25, 30 and 40. At crf 20 photographic frames without a swap stay below a ratio of 6;
faces of 46 to 109 pixels swapped by the embedded engine all lie above the limit. Where the noise is coarse (from
about crf 28 on) only strong changes count, and other frames are not judged.
"""

from __future__ import annotations

import cv2
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

Array = NDArray[np.float32]

SHORT_SIDE = 720
BLOCK = 8
CONTRAST_CLASSES = 8
LEAST_LEVELS = 2.5
LEAST_RATIO, RATIO_PER_NOISE = 6.5, 0.25
UNCHANGED_RATIO = 4.0
CLEAR_NOISE, UNCLEAR_RATIO = 2.0, 16.0
DARK = 24.0
RIDGE = 25.0
NOISE_FLOOR = 0.7
# Sharp edges (lettering, graphics) ring more than the rest of a frame tells; faces have less contrast.
EDGE_CONTRAST, NOISE_PER_EDGE = 50.0, 0.06


def grid(width: int, height: int) -> tuple[int, int]:
    """The size, a multiple of the block, at which frames of `width`×`height` are compared."""
    scale = min(1.0, SHORT_SIDE / min(width, height))
    return max(round(width * scale / BLOCK), 4) * BLOCK, max(round(height * scale / BLOCK), 4) * BLOCK


def upright(frame: VideoFrame, clockwise: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The frame turned by `clockwise` degrees and scaled to `size`: uint8 (H, W, 3) RGB."""
    width, height = size[::-1] if clockwise in (90, 270) else size
    small = frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA")
    return np.ascontiguousarray(np.rot90(small.to_ndarray(), -clockwise // 90), np.uint8)


def changed(source: NDArray[np.uint8], result: NDArray[np.uint8]) -> bool | None:
    """Whether some region of `result` differs from `source` more than encoding explains; same sizes, RGB.

    None when it may be either: the difference is small, or the encoding so coarse or the picture so dark that they
    would hide a swapped face. A job fails for frames that are surely unchanged, so doubt counts for neither.
    """
    blocks = _blocks(source)
    difference, contrast = _difference(blocks, _blocks(result)), _contrast(source, blocks)
    usual = _usual(difference, contrast)
    noise = np.maximum(np.maximum(usual, NOISE_FLOOR), NOISE_PER_EDGE * (contrast - EDGE_CONTRAST))
    ratio = float(np.where(difference > LEAST_LEVELS, difference / noise, 0).max())
    ratio -= RATIO_PER_NOISE * float(np.median(difference))
    clear = float(np.quantile(usual, 0.9)) < CLEAR_NOISE and float(blocks.mean()) > DARK
    if ratio > (LEAST_RATIO if clear else UNCLEAR_RATIO):
        return True
    return False if clear and ratio < UNCHANGED_RATIO else None


def _blocks(picture: NDArray[np.uint8] | Array) -> Array:
    height, width = picture.shape[:2]
    small = cv2.resize(picture.astype(np.float32), (width // BLOCK, height // BLOCK), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32)


def _difference(source: Array, result: Array) -> Array:
    """Colour difference of each 2×2 blocks (root mean square, 0–255) after the best colour transform."""
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


def _contrast(source: NDArray[np.uint8], blocks: Array) -> Array:
    """How much there is to blur around each block: deviation within it and range between its neighbours."""
    grey = cv2.cvtColor(source, cv2.COLOR_RGB2GRAY).astype(np.float32)
    mean = _blocks(grey)
    inside = np.sqrt(np.maximum(_blocks(grey * grey) - mean * mean, 0))
    near = np.ones((3, 3), np.uint8)
    steps = (cv2.dilate(mean, near) - cv2.erode(mean, near)) / 2
    return np.asarray(cv2.blur(inside, (3, 3)) + steps, np.float32)


def _usual(difference: Array, contrast: Array) -> Array:
    """The difference usual in this frame for blocks of the same contrast: medians of classes, interpolated."""
    order = np.argsort(contrast, axis=None)
    classes = np.array_split(order, CONTRAST_CLASSES)
    centres = [float(contrast.flat[members].mean()) for members in classes]
    medians = np.maximum.accumulate([float(np.median(difference.flat[members])) for members in classes])
    return np.asarray(np.interp(contrast, centres, medians), np.float32)
