"""Untrusted media opened, and its frames and their times counted, packet by packet, without decoding."""

from __future__ import annotations

import functools
import math
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.container import InputContainer
from av.stream import Discard, Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from ..errors import JobFailure
from ..limits import OPEN_OPTIONS, bound_decoder
from .facts import frames_at

CONTAINERS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,gif"
"""Containers that hold their own media. Playlists (hls, concat, image2, …) would open whatever they name."""

LARGE_PIXELS = 16_000_000
"""A picture with more pixels is decoded by one thread."""

ROUNDING_S = Fraction(1, 1000)
"""Seconds by which a time that a person or a program gives may miss the frame it means."""
HELD_S = Fraction(1, 10)
"""A part of a video begins and ends with whole frames, unless one is shown so much longer than is wanted."""


def open_media(path: Path) -> InputContainer:
    """Open `path` for reading by its bytes, whatever its name; it can lead to no other file."""
    options = {"format_whitelist": CONTAINERS, **OPEN_OPTIONS}
    return av.open(f"file:{path}", options=options, metadata_errors="replace")


@contextmanager
def open_picture(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the video at `path` and its moving picture. Raises `av.FFmpegError` where there is none."""
    with open_media(path) as container:
        stream = picture_stream(container)
        if stream is None:
            raise av.InvalidDataError(0, "no video stream")
        yield container, stream


def decoded(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Decode the frames of `stream`, its decoder bounded."""
    bound_decoder(stream, LARGE_PIXELS)
    return container.decode(stream)


def picture_stream(container: InputContainer) -> VideoStream | None:
    """Return the stream with the moving picture; the cover of a sound file is none, nor is an unknown codec."""
    for stream in container.streams.video:
        if stream.codec_context is not None and not stream.disposition & Disposition.attached_pic:
            return stream
    return None


@dataclass(frozen=True, slots=True)
class Timeline:
    """The frames of a stream in the order they are shown; times in ticks of `time_base` (seconds).

    `stamped` tells that the times are the file's own presentation times, so that a decoded frame can be
    found by its time. `longest_group` is the most frames from one key frame to the next.
    """

    time_base: Fraction
    times: NDArray[np.int64]
    last_duration: int
    declared_rate: Fraction
    stamped: bool
    longest_group: int
    origin: Fraction = Fraction(0)
    """The time that a player shows as 0, in seconds of the file's own clock: its sound may begin before the picture."""

    @property
    def duration(self) -> Fraction:
        """Seconds from the first frame to the end of the last."""
        return (int(self.times[-1]) - int(self.times[0]) + self.last_duration) * self.time_base

    def shown(self, frame_rate: Fraction | None, first: int, count: int) -> list[int]:
        """Return the source frame behind each of `count` frames of a result at `frame_rate` (None: the source's own).

        Frame i of the result stands for the source from i to i + 1 periods after the source's first frame, and shows
        what the source shows in the middle of that time. So each picture lies within half a frame of its own time.
        """
        if frame_rate is None:
            return list(range(first, min(first + count, len(self.times))))
        half_ticks = 1 / (2 * frame_rate * self.time_base)
        numerator, denominator = half_ticks.numerator, half_ticks.denominator
        middles = [-(-(2 * i + 1) * numerator // denominator) for i in range(first, first + count)]
        begun = self.times.searchsorted(int(self.times[0]) + np.array(middles, np.int64))
        return [int(index) for index in np.maximum(begun - 1, 0)]

    @property
    def start(self) -> Fraction:
        """The time in seconds at which the first frame is shown, in the file's own clock."""
        return int(self.times[0]) * self.time_base

    def index_at(self, seconds: float) -> int:
        """Return the frame that a player shows at a time: the first before it begins, the last after it has ended."""
        return min(max(self._begun(Fraction(seconds) + ROUNDING_S, None), 1), len(self.times)) - 1

    def span(self, start: float | None, end: float | None, frame_rate: Fraction | None) -> range:
        """Return the frames of a result at `frame_rate` (None: the source's own) that a player shows in a span of time.

        `start` and `end` are seconds; None, and an end that comes later, stand for the clip's own.
        """
        count = frames_at(len(self.times), self.duration, frame_rate)
        first, stop = 0, count
        if start is not None:
            if Fraction(start) + self.origin >= self.start + self.duration:
                return range(count, count)
            first = min(max(self._begun(Fraction(start) + ROUNDING_S, frame_rate), 1), count) - 1
        if end is not None:
            stop = max(first, min(self._begun(Fraction(end) - ROUNDING_S, frame_rate), count))
        return range(first, stop)

    def _begun(self, seconds: Fraction, frame_rate: Fraction | None) -> int:
        """Return how many frames of a result at `frame_rate` have begun at a time of a player."""
        if frame_rate is None and self.stamped:
            return int(self.times.searchsorted(math.floor((seconds + self.origin) / self.time_base), "right"))
        lead = Fraction(0) if frame_rate is None else self.start - self.origin
        return math.floor((seconds - lead) * (frame_rate or self.rate()[0])) + 1

    def bounds(
        self, frames: range, frame_rate: Fraction | None, start: float | None, end: float | None
    ) -> tuple[Fraction, Fraction]:
        """Return when the part of a result that `span` found begins and ends, in seconds of the file's own clock."""
        begins, ends = self.time_of(frames.start, frame_rate), self.time_of(frames.stop, frame_rate)
        if start is not None and Fraction(start) + self.origin - begins > HELD_S:
            begins = Fraction(start) + self.origin
        if end is not None and ends - Fraction(end) - self.origin > HELD_S:
            ends = Fraction(end) + self.origin
        return begins, ends

    def time_of(self, number: int, frame_rate: Fraction | None) -> Fraction:
        """Return when frame `number` of a result at `frame_rate` begins, in seconds of the file's own clock."""
        if frame_rate is not None:
            return self.start + number / frame_rate
        if number < len(self.times):
            return int(self.times[number]) * self.time_base
        return self.start + self.duration

    def rate(self) -> tuple[Fraction, bool]:
        """Return frames a second, and true if they vary: a rate is constant if each frame lies within a tick of it."""
        count = len(self.times)
        span = int(self.times[-1] - self.times[0]) * self.time_base
        if span <= 0:
            return self.declared_rate, False
        average = (count - 1) / span
        whole = Fraction(max(round(average), 1))
        ntsc = Fraction(max(round(average * 1001 / 1000), 1) * 1000, 1001)
        for rate in (self.declared_rate, whole, ntsc, average.limit_denominator(1001) or average):
            drift = self.times - self.times[0] - np.arange(count) * float(1 / (rate * self.time_base))
            if np.ptp(drift) <= 2:
                return rate, False
        return average, True


class FrameCounter:
    """A counter of the packets of a video stream that become frames.

    A decoder does not show, and this leaves out: frames an edit list hides, VP8's invisible reference
    frames, and what comes before the first key frame.
    """

    def __init__(self, stream: VideoStream) -> None:
        self._stream = stream
        self._vp8 = stream.codec_context.name == "vp8"
        self._first_key: int | None = None
        self._last = (-(1 << 63), 0)
        self._presented, self._decoded, self._keys = array("q"), array("q"), array("q")
        self.count = 0

    def add(self, packet: av.Packet[VideoStream]) -> bool:
        """Count the packet; return false when it shows no frame."""
        time = packet.pts if packet.pts is not None else packet.dts
        if self._first_key is None and packet.is_keyframe:
            self._first_key = time or 0
        early = self._first_key is None or (packet.pts is not None and packet.pts < self._first_key)
        invisible = self._vp8 and not bytes(packet)[0] & 0x10
        if early or invisible or packet.is_discard:
            return False
        self.count += 1
        if packet.pts is not None:
            self._presented.append(packet.pts)
            if packet.is_keyframe:
                self._keys.append(packet.pts)
        if packet.dts is not None:
            self._decoded.append(packet.dts)
        if time is not None:
            self._last = max(self._last, (time, packet.duration or 0))
        return True

    def timeline(self) -> Timeline:
        """Return the frames counted so far; without times in the file they lie at the declared rate."""
        time_base = self._stream.time_base or Fraction(1, 1000)
        rate = self._stream.average_rate or 1 / time_base
        presented = len(self._presented) == self.count
        if not presented and len(self._decoded) != self.count:
            return Timeline(1 / rate, np.arange(self.count, dtype=np.int64), 1, rate, False, self.count)
        # Before 0 there is only what a decoder of sound has to hear first.
        container = cast("InputContainer", self._stream.container)
        origin = max(Fraction(container.start_time or 0, av.time_base), Fraction(0))
        times = np.sort(np.array(self._presented if presented else self._decoded, np.int64))
        last_duration = self._last[1] or max(round(1 / (rate * time_base)), 1)
        # AVI stores no presentation times; what FFmpeg makes up is wrong after a seek.
        stamped = presented and container.format.name != "avi"
        groups = np.diff(times.searchsorted(np.sort(np.array(self._keys, np.int64))), append=self.count)
        return Timeline(time_base, times, last_duration, rate, stamped, int(np.max(groups, initial=0)), origin)


def packets(container: InputContainer, *kinds: str) -> Iterator[av.Packet[Any]]:
    """Yield the packets of the streams of the named kinds (`video`, `audio`) that hold anything, in file order."""
    for stream in container.streams:
        if stream.type not in kinds:
            stream.discard = Discard.all
    try:
        for packet in container.demux():
            if packet.size and packet.stream.type in kinds:
                yield packet
    except IndexError as error:
        raise av.InvalidDataError(0, "a packet of a stream that was not announced") from error


def picture_packets(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet[VideoStream]]:
    """Yield the packets of one video stream that hold anything, in file order."""
    return (packet for packet in packets(container, "video") if packet.stream_index == stream.index)


def read_timeline(path: Path) -> Timeline:
    """Return the frames of the video at `path`. Raises `av.FFmpegError` when there are none.

    What was read is remembered while the file stays the same: a long video is asked for once for each segment.
    """
    stat = path.stat()
    return _read_timeline(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _read_timeline(path: Path, size: int, changed: int) -> Timeline:
    """Read a timeline; `size` and `changed` tell apart two files that had the same name."""
    with open_picture(path) as (container, stream):
        counter = FrameCounter(stream)
        for packet in picture_packets(container, stream):
            counter.add(packet)
        if counter.count == 0:
            raise av.InvalidDataError(0, "no frames")
        return counter.timeline()


def read_source(path: Path) -> Timeline:
    """Return the frames of a job's video. Raises JobFailure (`input_damaged`)."""
    try:
        return read_timeline(path)
    except av.FFmpegError as error:
        message = "The stored video can no longer be read; send it again as a new job."
        raise JobFailure("input_damaged", message) from error
