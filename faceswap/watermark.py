"""The imperceptible watermark of a result: 64 bits in the colours of its frames. docs/provenance.md describes it.

The engine and the service share this module.
"""

from __future__ import annotations

import functools
import hashlib
import zlib
from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from .marks import PAYLOAD_BYTES

Floats = NDArray[np.float32]
Plane = NDArray[np.uint8]

CHECK_BYTES = 4
"""A CRC-32 follows the payload: noise is taken for a watermark once in hundreds of millions of tries."""

FAINT, STRONG = 0.5, 1.15
"""Root mean square of the pattern in each chroma plane where the picture is plain and where it has texture, in steps
of 8 bits."""
TEXTURE = 3.0
"""Mean difference of neighbouring luma samples, in steps of 8 bits, from which the pattern has its full strength."""
LARGEST_DIFFERENCE = 8
"""An edge of two samples counts as this much: one line makes no texture."""
PERIOD_FRAMES = 32
"""The pattern is added in the first half of each period and subtracted in the second: each change costs bytes."""
HALF_PERIOD_FRAMES = PERIOD_FRAMES // 2
GRID = 32, 64
"""Cells along the short and the long side of a frame in which the pattern is described and looked for."""
FREQUENCIES = 9, 16
"""Half waves along the short and the long side at which the pattern ends: coarse enough to be encoded and scaled."""
LOWEST_FREQUENCY = 2
SEED = b"faceswap watermark 1"

WORD_BITS, MESSAGE_BITS = 24, 12
GENERATOR = 0xC75
"""The generator polynomial of the Golay code (23, 12), which a parity bit extends to (24, 12)."""
CODE_BITS = (PAYLOAD_BYTES + CHECK_BYTES) * 8 * WORD_BITS // MESSAGE_BITS

SPANS_FRAMES = 2, 4, 8
"""Frames before and after a change of the pattern that a reader compares: few where much moves, more where it rests."""
LARGEST_CHANGE = 0.8
"""A cell that changes more, in steps of 8 bits, shows a movement, which counts as this much."""
WINDOW_FRAMES = 8 * PERIOD_FRAMES
WINDOWS = 30
"""A reader gives up after so many windows without a watermark."""
NEIGHBOURS = 5
"""Side of the square of frequencies that tells how strong the picture itself is at a frequency."""


class Watermark:
    """The pattern of a payload for frames of one size (width and height in pixels, both even)."""

    def __init__(self, payload: bytes, size: tuple[int, int]) -> None:
        width, self._height = size
        self._cells = GRID[::-1] if width >= self._height else GRID
        self._half = width // 2, self._height // 2
        self._pattern = [
            np.asarray(cv2.resize(plane, self._half, interpolation=cv2.INTER_CUBIC), np.float32)
            for plane in _pattern(payload, size)
        ]
        self._steps: tuple[Plane, Plane] | None = None

    def apply(self, planes: Plane, number: int) -> None:
        """Mark frame `number` of a video, counted from 0, in place: I420, uint8 (H · 3/2, W), in one piece.

        The strength follows the first picture of each half period, and the first that there is.
        """
        if self._steps is None or number % HALF_PERIOD_FRAMES == 0:
            self._steps = self._fitted(planes[: self._height])
        chroma = planes.reshape(-1, 1)[planes.shape[1] * self._height :, 0]
        raised, lowered = self._steps
        if number % PERIOD_FRAMES >= HALF_PERIOD_FRAMES:
            raised, lowered = lowered, raised
        cv2.add(chroma, raised, dst=chroma)
        cv2.subtract(chroma, lowered, dst=chroma)

    def _fitted(self, luma: Plane) -> tuple[Plane, Plane]:
        """Return the steps by which both chroma planes, in one piece, are raised and lowered in a picture."""
        across, down = cv2.absdiff(luma[1:, 1:], luma[1:, :-1]), cv2.absdiff(luma[1:, 1:], luma[:-1, 1:])
        differences = cv2.add(np.minimum(across, LARGEST_DIFFERENCE), np.minimum(down, LARGEST_DIFFERENCE))
        texture = cv2.resize(differences, self._cells, interpolation=cv2.INTER_AREA).astype(np.float32) / 2
        # A cell beside a plain one is as faint: the pattern knows no border between them.
        share = np.minimum(cv2.blur(cv2.erode(texture, np.ones((3, 3))), (3, 3)) / TEXTURE, 1)
        strength = cv2.resize(FAINT + (STRONG - FAINT) * share, self._half, interpolation=cv2.INTER_LINEAR)
        steps = np.rint(np.concatenate([(plane * strength).ravel() for plane in self._pattern]))
        return np.maximum(steps, 0).astype(np.uint8), np.maximum(-steps, 0).astype(np.uint8)


class Reader:
    """A reader of watermarks: it takes the frames of a video and says what they hold."""

    def __init__(self) -> None:
        self._cells: list[Floats] = []
        self._sum = np.zeros((len(SPANS_FRAMES), HALF_PERIOD_FRAMES, 2, *GRID), np.float32)
        self._windows = 0

    @property
    def is_done(self) -> bool:
        """True when more frames would not be looked at."""
        return self._windows >= WINDOWS

    def add(self, u: Plane, v: Plane) -> bytes | None:
        """Take the chroma planes of the next frame. Return the payload as soon as it is found."""
        grid = GRID[::-1]
        planes = (u, v) if u.shape[1] >= u.shape[0] else (u.T, v.T)
        small = [cv2.resize(np.ascontiguousarray(plane), grid, interpolation=cv2.INTER_AREA) for plane in planes]
        self._cells.append(np.asarray(small, np.float32))
        return self.read() if len(self._cells) == WINDOW_FRAMES else None

    def read(self) -> bytes | None:
        """Return the payload in the frames so far, None when there is none."""
        if len(self._cells) < PERIOD_FRAMES:
            return None
        cells = np.stack(self._cells)
        window = np.stack([_changes(cells, span) for span in SPANS_FRAMES])
        self._cells.clear()
        self._sum += window
        self._windows += 1
        found = _search(self._sum)
        return _search(window) if found is None and self._windows > 1 else found


def _pattern(payload: bytes, size: tuple[int, int]) -> Iterator[Floats]:
    """Yield the pattern of the U and of the V plane, of root mean square 1, on the grid as it lies in such frames."""
    bits = encoded(payload)
    planes, rows, columns, positions, signs = carriers()
    spectrum = np.zeros((2, *GRID), np.float32)
    spectrum[planes, rows, columns] = signs * bits[positions]
    for plane in spectrum:
        pattern = np.asarray(cv2.idct(plane), np.float32)
        pattern /= np.sqrt(np.mean(pattern**2))
        yield pattern if size[0] >= size[1] else np.ascontiguousarray(pattern.T)


@functools.cache
def carriers() -> NDArray[np.int64]:
    """Return the carriers as five rows: plane, row and column in the spectrum, the bit that each holds, its sign."""
    short, long = FREQUENCIES
    places = [
        (plane, row, column)
        for row in range(short)
        for column in range(long)
        if (row / short) ** 2 + (column / long) ** 2 < 1 and max(row, column) >= LOWEST_FREQUENCY
        for plane in (0, 1)
    ]
    noise = np.frombuffer(hashlib.shake_256(SEED).digest(4 * len(places)), "<u4").astype(np.int64)
    ranks = np.argsort(np.argsort(noise, kind="stable"), kind="stable")
    return np.array([*zip(*places, strict=True), ranks % CODE_BITS, 1 - 2 * (noise & 1)])


@functools.cache
def _words() -> Floats:
    """Return the words of the extended Golay code, ±1, in the order of their messages."""
    words = []
    for message in range(1 << MESSAGE_BITS):
        rest = message << (WORD_BITS - 1 - MESSAGE_BITS)
        for shift in reversed(range(MESSAGE_BITS)):
            if rest >> (shift + WORD_BITS - 1 - MESSAGE_BITS) & 1:
                rest ^= GENERATOR << shift
        word = message << (WORD_BITS - 1 - MESSAGE_BITS) | rest
        words.append(word << 1 | word.bit_count() & 1)
    return 2 * (np.array(words)[:, None] >> np.arange(WORD_BITS) & 1).astype(np.float32) - 1


def encoded(payload: bytes) -> Floats:
    """Return the bits of the code for a payload and its check, ±1."""
    number = int.from_bytes(payload + zlib.crc32(payload).to_bytes(CHECK_BYTES))
    messages = [number >> shift & 0xFFF for shift in range(0, CODE_BITS * MESSAGE_BITS // WORD_BITS, MESSAGE_BITS)]
    return _words()[messages].ravel()


def decoded(bits: Floats) -> bytes | None:
    """Return the payload that bits, of any scale and some of them wrong, stand for; None if the check fails."""
    messages = np.argmax(bits.reshape(-1, WORD_BITS) @ _words().T, axis=1)
    number = sum(int(message) << MESSAGE_BITS * place for place, message in enumerate(messages))
    data = number.to_bytes(PAYLOAD_BYTES + CHECK_BYTES)
    payload, check = data[:PAYLOAD_BYTES], data[PAYLOAD_BYTES:]
    return payload if zlib.crc32(payload).to_bytes(CHECK_BYTES) == check else None


def _changes(cells: Floats, span: int) -> Floats:
    """Return how the cells (frames, 2, H, W) change at each phase of a half period, as spectra (phases, 2, H, W).

    A change is the mean of `span` frames less that of the `span` before. Every other one counts as its opposite.
    """
    sums = np.cumsum(np.concatenate([np.zeros_like(cells[:1]), cells]), axis=0, dtype=np.float64)
    means = (sums[span:] - sums[:-span]) / span
    changes = np.clip(means[span:] - means[:-span], -LARGEST_CHANGE, LARGEST_CHANGE).astype(np.float32)
    numbers = span + np.arange(len(changes))
    changes[numbers % PERIOD_FRAMES >= HALF_PERIOD_FRAMES] *= -1
    folded = np.zeros((HALF_PERIOD_FRAMES, *cells.shape[1:]), np.float32)
    np.add.at(folded, numbers % HALF_PERIOD_FRAMES, changes)
    return np.asarray([[cv2.dct(plane) for plane in phase] for phase in folded], np.float32)


def _search(spectra: Floats) -> bytes | None:
    """Return the payload in spectra (spans, phases, 2, H, W), at any of them and of either sign."""
    planes, rows, columns, positions, signs = carriers()
    for spectrum in spectra.reshape(-1, *spectra.shape[2:]):
        usual = np.stack([cv2.blur(plane**2, (NEIGHBOURS, NEIGHBOURS)) for plane in spectrum])
        values = signs * (spectrum / np.sqrt(usual + np.finfo(np.float32).tiny))[planes, rows, columns]
        bits = np.bincount(positions, values, CODE_BITS).astype(np.float32)
        for sign in (1, -1):
            found = decoded(sign * bits)
            if found is not None:
                return found
    return None
