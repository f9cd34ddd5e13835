"""Clips that are not plain files: with a swap still to be done, shortened, or already encoded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .clip import Clip
from .frames import Frame
from .pixels import Pixels
from .video import Encoding, Frames, Swap, SwapCount, swap_frames

if TYPE_CHECKING:
    from .swap import Source

HOLD_POLL_S = 0.01


@dataclass(frozen=True)
class SwappedClip:
    """A clip with a swap that is done while its frames are read.

    faces    those that the swap puts in, by the index of the face they replace
    lead     frames before the clip that the swap sees too, at most, where the clip has any: it then goes on with the
             faces and their light as the part of the video before left them
    """

    frames: Frames
    make_swap: Callable[[], Swap]
    swaps: SwapCount
    faces: Mapping[int, Source]
    lead: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.frames.size

    @property
    def rate(self) -> Fraction:
        """Frames a second."""
        return self.frames.rate

    @property
    def count(self) -> int:
        """Number of frames."""
        return self.frames.count

    def __iter__(self) -> Generator[Frame]:
        frames, lead = self.frames.led_in(self.lead) if isinstance(self.frames, Clip) else (self.frames, 0)
        return swap_frames(frames, self.make_swap(), self.swaps, lead)


@dataclass(frozen=True)
class EncodedClip(Clip):
    """A clip of the engine's own that is encoded as its consumer wants it."""

    encoding: Encoding


@dataclass(frozen=True)
class ShortenedClip:
    """A clip without its last frames."""

    frames: Frames
    count: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.frames.size

    @property
    def rate(self) -> Fraction:
        """Frames a second."""
        return self.frames.rate

    def __iter__(self) -> Generator[Frame]:
        yield from islice(iter(self.frames), self.count)


class InvertingSwap:
    """A swap for tests that inverts a square in the middle of each frame, after a wait.

    All but the first frame wait for the file `hold_until` too, where one is named.
    """

    lookahead = 0

    def __init__(self, wait_s: float, hold_until: str, interrupted: threading.Event) -> None:
        self._wait_s = wait_s
        self._hold_until = hold_until
        self._interrupted = interrupted
        self._painted = 0

    def track(self, frame: Pixels) -> None:
        """Find nothing: the square is always in the middle."""
        return

    def finish(self) -> None:
        """Do nothing: there are no tracks."""

    def apply(self, frame: Pixels, tracks: None) -> int:
        """Invert the square in place."""
        self._interrupted.wait(self._wait_s)
        while self._hold_until and self._painted and not Path(self._hold_until).exists():
            if self._interrupted.wait(HOLD_POLL_S):
                break
        self._painted += 1
        width, height = frame.size
        with frame.painted((width * 3 // 8, height * 3 // 8, width * 5 // 8, height * 5 // 8)) as middle:
            np.subtract(255, middle, out=middle)
        return 1
