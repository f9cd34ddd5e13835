"""Checks that a result is what was asked for, and not one of the ends that lie. Runs in a worker process."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame

from faceswap.errors import JobFailure
from faceswap.media import compare as regions
from faceswap.media.facts import Verdict, resampled
from faceswap.media.join import check_joinable
from faceswap.media.probe import clockwise, reaches_past_the_end
from faceswap.media.timeline import Timeline, decoded, open_media, picture_stream, read_source

SAMPLES_A_SECOND = 3
LEAST_SAMPLES = 16
MOST_SAMPLES = 240
# Frames decoded before the first that is wanted, so that none depends on a picture before the key frame.
LEAD_FRAMES = 16
BLACK_LEVEL = 16
SHAPE_TOLERANCE = 0.03
STAND_IN_SIZE = (512, 512)

MISSING = JobFailure("output_missing", "The engine gave no result; check its encoder settings and log.", passing=True)
DAMAGED = JobFailure("output_damaged", "The engine's result cannot be decoded to its end.", passing=True)
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
    compare: bool = True,
) -> Verdict:
    """Decodes `result` to its end and compares samples with the frames of `source` they were made of.

    The result has to hold `frame_count` frames from `first_frame` on, counted after `frame_rate` was forced.
    `compare` False leaves the comparison out. Raises JobFailure: `output_missing`, `output_damaged`,
    `format_not_joinable`, `content_filtered`, `frames_missing`, `input_damaged`.
    """
    if not result.is_file() or result.stat().st_size == 0:
        raise MISSING
    original = Original.of(source, first_frame, frame_count, frame_rate)
    tally = _Tally()
    try:
        _look(result, frame_count, original, compare, tally)
    except av.FFmpegError as error:
        raise DAMAGED from error
    if (tally.frames == 1 < frame_count and tally.stand_in) or (tally.all_black and not _all_black(original)):
        raise FILTERED
    if tally.frames != frame_count:
        raise _frames_missing(tally.frames, frame_count)
    share = tally.changed / tally.compared if tally.compared else None
    return Verdict(tally.frames, share, tuple(tally.warnings))


@dataclass(frozen=True, slots=True)
class Original:
    """The part of the source that a result was made of: the index of the frame behind each of its frames."""

    path: Path
    timeline: Timeline
    frames: list[int]

    @classmethod
    def of(cls, path: Path, first_frame: int, frame_count: int, frame_rate: Fraction | None) -> Original:
        timeline = read_source(path)
        shown = resampled(len(timeline.times), timeline.declared_rate, frame_rate)
        return cls(path, timeline, list(islice(shown, first_frame, first_frame + frame_count)))

    def samples(self) -> list[int]:
        """Which frames to compare: all of a short clip, else a few a second, evenly spread."""
        count = len(self.frames)
        seconds = count * float(self.timeline.duration) / len(self.timeline.times)
        wanted = max(LEAST_SAMPLES, min(round(seconds * SAMPLES_A_SECOND), MOST_SAMPLES))
        return sorted({round(i) for i in np.linspace(0, count - 1, min(count, wanted))})


@dataclass(slots=True)
class _Tally:
    """What was seen while a result was decoded."""

    frames: int = 0
    stand_in: bool = False
    black: int = 0
    sampled: int = 0
    compared: int = 0
    changed: int = 0
    warnings: list[str] = field(default_factory=list)

    @property
    def all_black(self) -> bool:
        return self.black == self.sampled > 0

    def compare(self, frame: VideoFrame, original: VideoFrame, content: bool) -> None:
        """Compare the size of a frame with its original's and, if wanted, what it shows."""
        turn, own_turn = clockwise(original), clockwise(frame)
        width, height = _display_size(original, turn)
        own_width, own_height = _display_size(frame, own_turn)
        if abs(own_width * height / (own_height * width) - 1) > SHAPE_TOLERANCE:
            self._warn(f"The result is {own_width}×{own_height}, of another shape than the video.")
            return
        if abs(own_width - width) > 1 or abs(own_height - height) > 1:
            self._warn(f"The result is {own_width}×{own_height}, the video {width}×{height}.")
        if not content:
            return
        size = regions.grid(width, height)
        verdict = regions.changed(regions.upright(original, turn, size), regions.upright(frame, own_turn, size))
        if verdict is not None:
            self.compared += 1
            self.changed += verdict

    def _warn(self, sentence: str) -> None:
        if sentence not in self.warnings:
            self.warnings.append(sentence)


def _look(result: Path, frame_count: int, original: Original, compare: bool, tally: _Tally) -> None:
    """Decodes the result to its end, or to one frame too many, and looks at samples on the way."""
    samples = original.samples()
    originals = source_frames(original, samples if compare else samples[:1])
    with open_media(result) as container:
        stream = picture_stream(container)
        if stream is None or reaches_past_the_end(container, result):
            raise DAMAGED
        check_joinable(stream)
        for frame in decoded(container, stream):
            if frame.is_corrupt:
                raise DAMAGED
            if tally.frames == 0:
                tally.stand_in = (frame.width, frame.height) == STAND_IN_SIZE and _is_black(frame)
            if tally.frames in samples:
                tally.sampled += 1
                tally.black += _is_black(frame)
                if source_frame := next(originals, None):
                    tally.compare(frame, source_frame, compare)
            tally.frames += 1
            if tally.frames > frame_count:
                return


def source_frames(original: Original, samples: Sequence[int]) -> Iterator[VideoFrame]:
    """The decoded source frames behind the result's frames `samples`, in order.

    Seeks to just before the first where the file's times can be trusted; a source that cannot be decoded
    further ends the frames.
    """
    wanted = [original.frames[i] for i in samples]
    with contextlib.suppress(av.FFmpegError):
        if original.timeline.stamped and wanted[0] > LEAD_FRAMES:
            found = yield from _after_seek(original, wanted)
            wanted = wanted[found:]
        yield from _from_start(original, wanted)


def _from_start(original: Original, wanted: Sequence[int]) -> Iterator[VideoFrame]:
    if not wanted:
        return
    with open_media(original.path) as container:
        stream = picture_stream(container)
        assert stream is not None
        position = 0
        for index, frame in enumerate(decoded(container, stream)):
            while wanted[position] == index:
                yield frame
                position += 1
                if position == len(wanted):
                    return


def _after_seek(original: Original, wanted: Sequence[int]) -> Generator[VideoFrame, None, int]:
    """Yields the wanted frames, found by their times, and returns how many were found in a row."""
    times = original.timeline.times
    found = 0
    with open_media(original.path) as container:
        stream = picture_stream(container)
        assert stream is not None
        container.seek(int(times[wanted[0] - LEAD_FRAMES]), stream=stream)
        for frame in decoded(container, stream):
            while frame.pts == times[wanted[found]]:
                yield frame
                found += 1
                if found == len(wanted):
                    return found
            if frame.pts is None or frame.pts > times[wanted[found]] or frame.is_corrupt:
                return found
    return found


def _display_size(frame: VideoFrame, turn: int) -> tuple[int, int]:
    return (frame.height, frame.width) if turn in (90, 270) else (frame.width, frame.height)


def _all_black(original: Original) -> bool:
    """Whether the source is as black as its result; one that cannot be decoded does not tell."""
    return all(_is_black(frame) for frame in source_frames(original, original.samples()))


def _is_black(frame: VideoFrame) -> bool:
    small = frame.reformat(width=64, height=64, format="gray", interpolation="AREA").to_ndarray()
    return int(small.max()) <= BLACK_LEVEL


def _frames_missing(found: int, asked: int) -> JobFailure:
    if found > asked:
        return JobFailure("frames_missing", f"The engine returned more than the {asked} frames it was asked for.")
    sentence = f"The engine returned {found} of {asked} frames; its content filter may have taken the others."
    return JobFailure("frames_missing", sentence, passing=True)
