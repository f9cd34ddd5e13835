"""Frames of a video, found by their numbers and decoded."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import av
from av.video.frame import VideoFrame

from .timeline import Timeline, decoded, open_picture

LEAD_FRAMES = 16
"""Frames decoded before the first that is wanted, so that none depends on a picture before the key frame."""


def decode_frames(path: Path, timeline: Timeline, wanted: Sequence[int]) -> Iterator[VideoFrame]:
    """Yield the frames numbered `wanted`, which rise; one that cannot be decoded ends them.

    Seeks to just before the first where the file's times can be trusted.
    """
    with contextlib.suppress(av.FFmpegError):
        if timeline.stamped and wanted[0] > LEAD_FRAMES:
            found = yield from after_seek(path, timeline, wanted)
            wanted = wanted[found:]
        yield from from_start(path, wanted)


def from_start(path: Path, wanted: Sequence[int]) -> Iterator[VideoFrame]:
    """Decode from the first frame on and yield those numbered `wanted`, which rise; fewer where decoding ends."""
    if not wanted:
        return
    with open_picture(path) as (container, stream):
        position = 0
        for index, frame in enumerate(decoded(container, stream)):
            while wanted[position] == index:
                yield frame
                position += 1
                if position == len(wanted):
                    return


def after_seek(path: Path, timeline: Timeline, wanted: Sequence[int]) -> Generator[VideoFrame, None, int]:
    """Yield the wanted frames, found by their times, and return how many were found in a row."""
    times = timeline.times
    found = 0
    with open_picture(path) as (container, stream):
        container.seek(int(times[max(0, wanted[0] - LEAD_FRAMES)]), stream=stream)
        for frame in decoded(container, stream):
            time = frame.pts  # as read: who gets a frame may change it
            while time == times[wanted[found]]:
                yield frame
                found += 1
                if found == len(wanted):
                    return found
            if time is None or time > times[wanted[found]] or frame.is_corrupt:
                return found
    return found
