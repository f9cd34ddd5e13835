"""The work that waits, and how long it is likely to take. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

STEPS_S = ((60, 5), (600, 30), (3600, 60))
"""Waits below so many seconds are told in steps of so many: what changes all the time tells nobody anything."""
LONG_STEP_S = 600


@dataclass(frozen=True, slots=True)
class Backlog:
    """The frames that are still to be swapped, and the pace at which that went of late: `None` before the first job."""

    running_frames: int
    queued_frames: int
    queued_jobs: int
    seconds_per_frame: float | None

    def wait_s(self, place: int | None) -> float | None:
        """Return the seconds until the job at a place in the queue starts; None where that cannot be told."""
        if place is None or self.seconds_per_frame is None or not self.queued_jobs:
            return None
        frames = self.running_frames + (place - 1) * self.queued_frames / self.queued_jobs
        seconds = frames * self.seconds_per_frame
        step = next((step for below, step in STEPS_S if seconds < below), LONG_STEP_S)
        return float(round(seconds / step) * step)


def pace(jobs: Iterable[tuple[int, int, int]]) -> float | None:
    """Return the seconds a frame took, of jobs with their start and end in milliseconds and their frames.

    Those that ran side by side count as one time.
    """
    ran_ms, frames, until = 0, 0, 0
    for started_at, finished_at, count in sorted(jobs):
        ran_ms += max(0, finished_at - max(started_at, until))
        until = max(until, finished_at)
        frames += count
    return ran_ms / 1000 / frames if frames else None
