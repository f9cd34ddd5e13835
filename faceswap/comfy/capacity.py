"""The capacity of one ComfyUI: its speed, as measured, and the frames that its memory takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress

from ..clock import monotonic
from .client import ComfyClient, ComfyError
from .in_flight import InFlightPrompt

SPEED_WEIGHT = 0.5
"""Weight of the newest prompt in an engine's measured speed."""
BYTES_PER_PIXEL = 37
"""Memory of ComfyUI for each pixel of each frame of a segment, as measured at its peak."""
MEMORY_SHARE = 0.5
"""Share of ComfyUI's free memory that one segment may take."""


class Speed:
    """The speed of a ComfyUI, learnt from the prompts that end well."""

    def __init__(self, in_flight: Mapping[str, InFlightPrompt]) -> None:
        self._in_flight = in_flight
        self._seconds_per_frame: float | None = None
        self._ended_at = 0.0

    @property
    def seconds_per_frame(self) -> float | None:
        """Seconds a frame, as last measured, or more when the prompt in hand takes longer; None when never measured."""
        if self._seconds_per_frame is None or not self._in_flight:
            return self._seconds_per_frame
        oldest = next(iter(self._in_flight.values()))
        elapsed_s = monotonic() - max(oldest.started_at, self._ended_at)
        return max(self._seconds_per_frame, elapsed_s / oldest.segment.frame_count)

    def done_in_s(self, frames: int) -> float:
        """Return the seconds until it would be done with what it has and `frames` more; 0 when its speed is unknown."""
        frames += sum(prompt.segment.frame_count for prompt in self._in_flight.values())
        return (self.seconds_per_frame or 0.0) * frames

    def learn(self, prompt: InFlightPrompt) -> None:
        """Take the time of a prompt that ended well, from its start or from the end of the one before."""
        now = monotonic()
        seconds_per_frame = (now - max(prompt.started_at, self._ended_at)) / prompt.segment.frame_count
        self._ended_at = now
        if self._seconds_per_frame is None:
            self._seconds_per_frame = seconds_per_frame
        else:
            self._seconds_per_frame += SPEED_WEIGHT * (seconds_per_frame - self._seconds_per_frame)


class Memory:
    """The memory of a ComfyUI for the frames of a prompt, all at once unless it `streams` them."""

    def __init__(self, client: ComfyClient) -> None:
        self.streams = True
        """False once it has told that it keeps all frames of a prompt in memory."""
        self._client = client
        self._free_bytes: int | None = None

    def learn(self, free_bytes: int) -> None:
        """Take what it has free when it rests: while it works, much of that is in use by what is to be replaced."""
        self._free_bytes = max(free_bytes, self._free_bytes or 0)

    def frame_limit(self, pixels: int, frame_rate: float) -> int | None:
        """Return how many frames of so many pixels a segment may have for its memory, at least a second's.

        None is for any number.
        """
        if self.streams or self._free_bytes is None:
            return None
        return max(int(self._free_bytes * MEMORY_SHARE / (BYTES_PER_PIXEL * pixels)), math.ceil(frame_rate), 1)

    async def free_for(self, pixels: int, frames: int) -> None:
        """Ask it to free the memory of its last prompts when one of `frames` frames would not fit."""
        if self.streams:
            return
        with suppress(ComfyError):
            free_bytes = await self._client.free_memory()
            if free_bytes is not None and free_bytes < BYTES_PER_PIXEL * pixels * frames:
                await self._client.free(models=False)
