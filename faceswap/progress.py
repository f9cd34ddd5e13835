"""Progress of jobs: from the progress bars of many nodes to one percentage that never falls, and an ETA. Pure.

A prompt drives several bars: loading, one or more passes of the swap node (ReActor runs its bar once each for
filtering, analysing, swapping and restoring), encoding. Each pass is a phase with a cost in seconds per frame,
guessed at first, measured while it runs and learned for the next job. The fraction done is the time spent divided by
the sum of the time spent and the time remaining, so that it grows evenly. Callers pass the time, in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

FIRST_GUESS: Mapping[str, float] = {"load 1": 0.006, "swap 1": 0.05, "swap 2": 0.005, "swap 3": 0.3, "combine 1": 0.005}
"""The assumed seconds per frame of a ReActor workflow on an unknown machine."""
FIRST_GUESS_EMBEDDED: Mapping[str, float] = {"load 1": 0.001, "swap 1": 0.03, "combine 1": 0.001}
ROLES = ("load", "swap", "combine")
OVERHEAD_S = 0.3
"""The time of a segment besides its frames: upload, start, download and check."""
WELL_UNDER_WAY = 0.1
"""The share of a pass after which its own speed predicts its end."""
JOIN_S = 0.5
"""The time of a job after its last segment."""


def _order(phase: str) -> tuple[int, int]:
    role, number = phase.split()
    return ROLES.index(role), int(number)


@dataclass
class SegmentProgress:
    """The progress of one prompt."""

    frames: int
    expected: Mapping[str, float]
    started_s: float
    guessed: bool = False
    """True when the expected costs were never measured: good enough for a percentage, not for an ETA."""
    measured: dict[str, float] = field(default_factory=dict)
    """Seconds per frame of the phases that have ended."""
    _phase: str | None = None
    _phase_started_s: float = 0.0
    _value: float = 0.0
    _maximum: float = 1.0
    _ended_s: float | None = None

    def feed(self, role: str, value: float, maximum: float, now_s: float) -> None:
        """Take a bar's new value. A bar that falls back has begun its next pass; a value of 0 is ignored."""
        if not 0 < value <= maximum < math.inf:
            return
        number = 1
        if self._phase is not None:
            current_role, current_number = self._phase.split()
            if current_role == role:
                number = int(current_number) + (1 if value < self._value else 0)
        phase = f"{role} {number}"
        if self._phase is None:
            # Until now the prompt waited in the queue, except for the time of these frames.
            frames_s = value / maximum * self.expected.get(phase, 0.0) * self.frames
            self._phase, self.started_s = phase, max(self.started_s, now_s - frames_s)
            self._phase_started_s = self.started_s
        elif phase != self._phase:
            self._end_phase(now_s)
            self._phase, self._phase_started_s = phase, now_s
        self._value, self._maximum = value, maximum

    def end(self, now_s: float) -> Mapping[str, float]:
        """End the prompt; returns the cost of each of its phases, in seconds per frame."""
        self._end_phase(now_s)
        self._ended_s = now_s
        return self.measured

    def _end_phase(self, now_s: float) -> None:
        if self._phase is not None:
            self.measured[self._phase] = max(now_s - self._phase_started_s, 1e-6) / self.frames

    @property
    def predictable(self) -> bool:
        """True when the remaining time is known: costs were measured before, or the only pass is well under way."""
        if not self.guessed or self._ended_s is not None:
            return True
        swaps = sum(phase.startswith("swap") for phase in self.expected)
        return swaps == 1 and self._phase == "swap 1" and self._value / self._maximum >= WELL_UNDER_WAY

    @property
    def begun(self) -> bool:
        """True once a bar has moved."""
        return self._phase is not None

    def remaining_s(self, now_s: float) -> float:
        """Estimate the seconds of work that remain."""
        if self._ended_s is not None:
            return max(OVERHEAD_S - (now_s - self._ended_s), 0.0)
        if self._phase is None:
            return sum(self.expected.values()) * self.frames + OVERHEAD_S
        expected_s = self.expected.get(self._phase, 0.0) * self.frames
        done = max(self._value / self._maximum, 1e-9)  # the quotient of a tiny value can be 0
        spent_s = now_s - self._phase_started_s
        # The more of the phase is done, the more its own speed counts than what was expected.
        own_s = spent_s / done * (1 - done)
        current_s = own_s * done + expected_s * (1 - done) * (1 - done) if expected_s else own_s
        later_s = sum(cost for phase, cost in self.expected.items() if _order(phase) > _order(self._phase))
        return current_s + later_s * self.frames + OVERHEAD_S

    def fraction(self, now_s: float) -> float:
        """Estimate the share of the prompt's time that has passed, 0–1."""
        if self._phase is None:
            return 0.0
        spent_s = max(now_s - self.started_s, 0.0)
        whole_s = spent_s + self.remaining_s(now_s)
        return spent_s / whole_s if whole_s else 1.0


@dataclass(frozen=True, slots=True)
class Report:
    """The figures of a job's `progress` event."""

    percentage: float
    current: int
    total: int
    fps: float | None
    eta_s: float | None


class JobProgress:
    """The progress of a job, over all passes of all segments and over restarts."""

    def __init__(self, total_frames: int, done_frames: int, floor: float, now_s: float) -> None:
        """`floor` is the percentage reported before; the remaining work takes it from there to 100."""
        self.total_frames = total_frames
        self._done_frames = done_frames
        self._floor = floor
        self._running: dict[int, SegmentProgress] = {}
        self._restart_growth(now_s)

    def _restart_growth(self, now_s: float) -> None:
        """Let the percentage grow evenly from here to the end."""
        self._origin_s, self._origin_percentage, self._origin_fraction = now_s, self._floor, self._fraction(now_s)

    def _fraction(self, now_s: float) -> float:
        """Return the share of the job's work that is done, 0–1."""
        frames = self._done_frames + sum(segment.frames * segment.fraction(now_s) for segment in self._running.values())
        return min(frames / self.total_frames, 1.0) if self.total_frames else 0.0

    def begin(
        self, number: int, frames: int, expected: Mapping[str, float], now_s: float, *, guessed: bool = False
    ) -> SegmentProgress:
        """Begin the progress of a segment that was submitted, maybe again."""
        self._running[number] = SegmentProgress(frames, expected, now_s, guessed)
        return self._running[number]

    def learn(self, costs: Mapping[str, float]) -> None:
        """Set the measured costs of one segment as the expected costs of those that have not begun."""
        for segment in self._running.values():
            if segment.guessed and not segment.begun:
                segment.expected, segment.guessed = costs, False

    def abandon(self, number: int, now_s: float) -> None:
        """Forget a segment's attempt that failed: its frames remain to be done."""
        if self._running.pop(number, None):
            self._restart_growth(now_s)

    def finish(self, number: int) -> None:
        """Count a segment's frames as done."""
        segment = self._running.pop(number, None)
        if segment is not None:
            self._done_frames += segment.frames

    @property
    def running(self) -> frozenset[int]:
        """The numbers of the segments that are under way here."""
        return frozenset(self._running)

    def count_done(self, frames: int) -> None:
        """Take the frames of all segments that are done, wherever, but for those under way here."""
        self._done_frames = frames

    @property
    def moving(self) -> bool:
        """True once there is any progress to report."""
        return self._done_frames > 0 or any(segment.begun for segment in self._running.values())

    def report(self, now_s: float) -> Report:
        """Compute the figures now. The percentage stays below 100 until the job has ended."""
        fraction = self._fraction(now_s)
        if fraction <= self._origin_fraction:
            self._origin_s = now_s  # time in the queue does not count
        spent_s = now_s - self._origin_s
        gained, to_gain = fraction - self._origin_fraction, 1 - self._origin_fraction
        share = gained / to_gain if to_gain > 0 else 1.0
        percentage = self._origin_percentage + (100 - self._origin_percentage) * share
        self._floor = max(self._floor, min(round(percentage, 2), 99.99))
        fps = eta_s = None
        if gained > 0.005 and spent_s > 0:
            fps = round(gained * self.total_frames / spent_s, 2)
            if all(segment.predictable for segment in self._running.values()):
                eta_s = round(spent_s * (1 - fraction) / gained + JOIN_S, 1)
        current = min(int(self._floor / 100 * self.total_frames), self.total_frames)
        return Report(self._floor, current, self.total_frames, fps, eta_s)
