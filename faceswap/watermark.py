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

STRENGTH = 1.15
"""Root mean square of the pattern in each chroma plane, in steps of 8 bits: 42 dB in RGB, 46 dB in a plane."""
PERIOD_FRAMES = 8
"""The pattern is added in the first half of each period and subtracted in the second, so that what rests cancels."""
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

LARGEST_CHANGE = 0.8
"""A cell that changes more within half a period, in steps of 8 bits, shows a movement, which counts as this much."""
WINDOW_FRAMES = 240
WINDOWS = 30
"""A reader gives up after so many windows without a watermark."""
PHASES = 16
"""Tries to match the beginning of a period, which a cut may have moved."""
NEIGHBOURS = 5
"""Side of the square of frequencies that tells how strong the picture itself is at a frequency."""


class Watermark:
    """The pattern of a payload for frames of one size (width and height in pixels, both even)."""

    def __init__(self, payload: bytes, size: tuple[int, int]) -> None:
        width, height = size
        half = width // 2, height // 2
        planes = [cv2.resize(plane, half, interpolation=cv2.INTER_CUBIC) for plane in _pattern(payload, size)]
        pattern = np.rint(np.concatenate([plane.ravel() for plane in planes]))
        self._height = height
        self._raised, self._lowered = (np.clip(sign * pattern, 0, 255).astype(np.uint8) for sign in (1, -1))

    def apply(self, planes: Plane, number: int) -> None:
        """Mark frame `number` of a video, counted from 0, in place: I420, uint8 (H · 3/2, W), in one piece."""
        chroma = planes.reshape(-1, 1)[planes.shape[1] * self._height :, 0]
        raised, lowered = self._raised, self._lowered
        if number % PERIOD_FRAMES >= PERIOD_FRAMES // 2:
            raised, lowered = lowered, raised
        cv2.add(chroma, raised, dst=chroma)
        cv2.subtract(chroma, lowered, dst=chroma)


class Reader:
    """A reader of watermarks: it takes the frames of a video and says what they hold."""

    def __init__(self) -> None:
        self._cells: list[Floats] = []
        self._sum = np.zeros((2, *GRID), np.complex64)
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
        window = _alternation(np.stack(self._cells))
        self._cells.clear()
        self._sum += window
        self._windows += 1
        found = _search(self._sum)
        return _search(window) if found is None and self._windows > 1 else found


def _pattern(payload: bytes, size: tuple[int, int]) -> Iterator[Floats]:
    """Yield the pattern of the U and of the V plane, on the grid as it lies in frames of this size."""
    bits = _encoded(payload)
    planes, rows, columns, positions, signs = _carriers()
    spectrum = np.zeros((2, *GRID), np.float32)
    spectrum[planes, rows, columns] = signs * bits[positions]
    for plane in spectrum:
        pattern = np.asarray(cv2.idct(plane), np.float32)
        pattern *= STRENGTH / np.sqrt(np.mean(pattern**2))
        yield pattern if size[0] >= size[1] else np.ascontiguousarray(pattern.T)


@functools.cache
def _carriers() -> NDArray[np.int64]:
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


def _encoded(payload: bytes) -> Floats:
    """Return the bits of the code for a payload and its check, ±1."""
    number = int.from_bytes(payload + zlib.crc32(payload).to_bytes(CHECK_BYTES))
    messages = [number >> shift & 0xFFF for shift in range(0, CODE_BITS * MESSAGE_BITS // WORD_BITS, MESSAGE_BITS)]
    return _words()[messages].ravel()


def _decoded(bits: Floats) -> bytes | None:
    """Return the payload that bits, of any scale and some of them wrong, stand for; None if the check fails."""
    messages = np.argmax(bits.reshape(-1, WORD_BITS) @ _words().T, axis=1)
    number = sum(int(message) << MESSAGE_BITS * place for place, message in enumerate(messages))
    data = number.to_bytes(PAYLOAD_BYTES + CHECK_BYTES)
    payload, check = data[:PAYLOAD_BYTES], data[PAYLOAD_BYTES:]
    return payload if zlib.crc32(payload).to_bytes(CHECK_BYTES) == check else None


def _alternation(cells: Floats) -> NDArray[np.complex64]:
    """Return the part of the cells (frames, 2, H, W) that alternates with the period, as two spectra."""
    half = PERIOD_FRAMES // 2
    padded = np.concatenate([cells[:1].repeat(half, 0), cells, cells[-1:].repeat(half, 0)])
    sums = np.cumsum(np.concatenate([np.zeros_like(cells[:1]), padded]), axis=0, dtype=np.float64)
    means = (sums[PERIOD_FRAMES:] - sums[:-PERIOD_FRAMES]) / PERIOD_FRAMES
    changes = np.clip(cells - (means[:-1] + means[1:]) / 2, -LARGEST_CHANGE, LARGEST_CHANGE)
    angles = 2 * np.pi / PERIOD_FRAMES * np.arange(len(cells))
    spectra = [
        [cv2.dct(np.ascontiguousarray(plane)) for plane in np.tensordot(wave, changes, (0, 0)).astype(np.float32)]
        for wave in (np.cos(angles), -np.sin(angles))
    ]
    return (np.asarray(spectra[0]) + 1j * np.asarray(spectra[1])).astype(np.complex64)


def _search(spectrum: NDArray[np.complex64]) -> bytes | None:
    """Return the payload in two spectra, at any phase."""
    power = np.square(np.abs(spectrum), dtype=np.float32)
    usual = np.stack([cv2.blur(plane, (NEIGHBOURS, NEIGHBOURS)) for plane in power])
    planes, rows, columns, positions, signs = _carriers()
    values = signs * (spectrum / np.sqrt(usual + np.finfo(np.float32).tiny))[planes, rows, columns]
    bits = np.zeros(CODE_BITS, np.complex64)
    np.add.at(bits, positions, values)
    for phase in np.exp(-2j * np.pi / PHASES * np.arange(PHASES)):
        found = _decoded((bits * phase).real.astype(np.float32))
        if found is not None:
            return found
    return None
