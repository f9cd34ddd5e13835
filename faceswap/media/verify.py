"""Checks that a result is what was asked for, not one of the known false successes. It runs in a worker process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame

from ..errors import JobFailure
from .compare import Reference, blocks, display_size, grid, references
from .facts import Verdict
from .frames import decode_frames
from .join import check_joinable
from .probe import clockwise, reaches_past_the_end
from .timeline import Timeline, decoded, open_picture, read_source

RUN_FRAMES = 12
"""Frames are compared in runs, since encoding changes a frame by its neighbours."""
RUN_STEP = 3
RUNS_A_SECOND = 1
LEAST_RUNS, MOST_RUNS = 6, 80
LEAST_CHANGED, LEAST_CHANGED_UNCLEAR = 0.02, 0.1
"""Shares of frames that have to look changed: where most others surely are not, and where most are unclear."""
BLACK_LEVEL, NOT_BLACK_LEVEL = 16, 48
SHAPE_TOLERANCE = 0.03
STAND_IN_SIZE = (512, 512)

MISSING = JobFailure("output_missing", "The engine gave no result; check its encoder settings and log.", transient=True)
DAMAGED = JobFailure("output_damaged", "The engine's result cannot be decoded to its end.", transient=True)
FILTERED = JobFailure(
    "content_filtered",
    "The engine's content filter blacked out the result; use other material or turn the filter off.",
)


def verify(
    result: Path,
    source: Path,
    *,
    first_frame: int,
    frame_count: int,
    frame_rate: Fraction | None,
    crf: int | None,
) -> Verdict:
    """Decode `result` to its end and compare samples with the frames of `source` they were made of.

    The result has to hold `frame_count` frames from `first_frame` on, counted after `frame_rate` was forced, encoded
    with about `crf`; None leaves out the comparison of what they show. Raises JobFailure: `output_missing`,
    `output_damaged`, `format_not_joinable`, `content_filtered`, `frames_missing`, `input_damaged`.
    """
    if not result.is_file() or result.stat().st_size == 0:
        raise MISSING
    original = Original.of(source, first_frame, frame_count, frame_rate)
    tally = _Tally()
    try:
        _inspect(result, frame_count, original, crf, tally)
    except av.FFmpegError as error:
        raise DAMAGED from error
    if (tally.frames == 1 < frame_count and tally.stand_in) or (tally.all_black and not _all_black(original)):
        raise FILTERED
    if tally.frames != frame_count:
        raise _frames_missing(tally.frames, frame_count)
    return Verdict(tally.frames, tally.changed_share, tuple(tally.warnings))


@dataclass(frozen=True, slots=True)
class Original:
    """The part of the source that a result was made of: the index of the frame behind each of its frames."""

    path: Path
    timeline: Timeline
    frames: list[int]

    @classmethod
    def of(cls, path: Path, first_frame: int, frame_count: int, frame_rate: Fraction | None) -> Original:
        """Find the source's frames behind `frame_count` frames of a result from `first_frame` on."""
        timeline = read_source(path)
        return cls(path, timeline, timeline.shown(frame_rate, first_frame, frame_count))

    def runs(self) -> list[range]:
        """Return the frames to look at: all of a short clip, else a run of them every second, evenly spread."""
        count = len(self.frames)
        if count <= LEAST_RUNS * RUN_FRAMES:
            return [range(first, min(first + RUN_FRAMES, count)) for first in range(0, count, RUN_FRAMES)]
        seconds = count * float(self.timeline.duration) / len(self.timeline.times)
        wanted = max(LEAST_RUNS, min(round(seconds * RUNS_A_SECOND), MOST_RUNS, count // RUN_FRAMES))
        firsts = np.linspace(0, count - RUN_FRAMES, wanted).round().astype(int)
        return [range(first, first + RUN_FRAMES) for first in firsts.tolist()]

    def samples(self, run: range) -> range:
        """Return the frames of a run to compare: all of a short clip, else every few."""
        return run if len(self.frames) <= LEAST_RUNS * RUN_FRAMES else run[1::RUN_STEP]

    def references(self, crf: int) -> Iterator[Reference]:
        """Yield the references of the samples, in order; a source that cannot be decoded further ends them."""
        runs = self.runs()
        frames = source_frames(self, [number for run in runs for number in run])
        for run in runs:
            samples = self.samples(run)
            yield from references(islice(frames, len(run)), [number in samples for number in run], crf)


@dataclass(slots=True)
class _Tally:
    """The counts made while a result was decoded."""

    frames: int = 0
    stand_in: bool = False
    black: int = 0
    sampled: int = 0
    unchanged: int = 0
    changed: int = 0
    warnings: list[str] = field(default_factory=list)

    @property
    def all_black(self) -> bool:
        return self.black == self.sampled > 0

    @property
    def changed_share(self) -> float | None:
        """The share of frames that were changed; None when too little is known for a job to fail by it."""
        clear = self.unchanged * 2 >= self.sampled > 0
        if clear and self.changed == 0:
            return 0.0
        if self.changed <= (LEAST_CHANGED if clear else LEAST_CHANGED_UNCLEAR) * self.sampled:
            return None
        return self.changed / (self.changed + self.unchanged)


def _inspect(result: Path, frame_count: int, original: Original, crf: int | None, tally: _Tally) -> None:
    """Decode the result to its end, or to one frame too many, and compare samples on the way."""
    samples = {number for run in original.runs() for number in original.samples(run)}
    found: Iterator[Reference] = iter(())
    with open_picture(result) as (container, stream):
        if reaches_past_the_end(container, result):
            raise DAMAGED
        check_joinable(stream)
        for frame in decoded(container, stream):
            if frame.is_corrupt:
                raise DAMAGED
            if tally.frames == 0:
                tally.stand_in = (frame.width, frame.height) == STAND_IN_SIZE and _level(frame) <= BLACK_LEVEL
                size = _size_of_source(original, frame, tally)
                if size is not None and crf is not None:
                    found = original.references(crf)
            if tally.frames in samples:
                tally.sampled += 1
                tally.black += _level(frame) <= BLACK_LEVEL
                if size is not None and (reference := next(found, None)):
                    changed = reference.changed(blocks(frame, clockwise(frame), size))
                    tally.changed += changed is True
                    tally.unchanged += changed is False
            tally.frames += 1
            if tally.frames > frame_count:
                return


def _size_of_source(original: Original, frame: VideoFrame, tally: _Tally) -> tuple[int, int] | None:
    """Return the size at which frames are compared.

    None, with a warning, stands for a result of another shape than its source.
    """
    first = next(source_frames(original, [0]), None)
    if first is None:
        return None
    (own_width, own_height), (width, height) = display_size(frame), display_size(first)
    if abs(own_width * height / (own_height * width) - 1) > SHAPE_TOLERANCE:
        tally.warnings.append(f"The result is {own_width}×{own_height}, of another shape than the video.")
        return None
    if abs(own_width - width) > 1 or abs(own_height - height) > 1:
        tally.warnings.append(f"The result is {own_width}×{own_height}, the video {width}×{height}.")
    return grid(width, height)


def source_frames(original: Original, samples: Sequence[int]) -> Iterator[VideoFrame]:
    """Yield the decoded source frames behind the result's frames `samples`, in order; see `decode_frames`."""
    return decode_frames(original.path, original.timeline, [original.frames[i] for i in samples])


def _all_black(original: Original) -> bool:
    """Return true if the source is about as black as its result; one that cannot be decoded counts as black."""
    samples = [number for run in original.runs() for number in original.samples(run)]
    return all(_level(frame) < NOT_BLACK_LEVEL for frame in source_frames(original, samples))


def _level(frame: VideoFrame) -> int:
    """Return the brightness of the brightest region (0–255)."""
    return int(frame.reformat(width=64, height=64, format="gray", interpolation="AREA").to_ndarray().max())


def _frames_missing(found: int, asked: int) -> JobFailure:
    if found > asked:
        return JobFailure("frames_missing", f"The engine returned more than the {asked} frames it was asked for.")
    message = f"The engine returned {found} of {asked} frames; its content filter may have taken the others."
    return JobFailure("frames_missing", message, transient=True)
