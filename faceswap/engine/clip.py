"""Clips: the frames of a video file in the order and size that a graph asks for, decoded while they are read."""

from __future__ import annotations

import functools
import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from ..limits import MAX_PIXELS, MAX_SIDE, MAX_TRACKS, OPEN_OPTIONS, bound_decoder, too_large
from .frames import LARGE_PIXELS, Colour, Frame, split_planes
from .pixels import Image

CONTAINERS = "mov,matroska,webm,avi,mpeg,mpegts,flv,asf,ogg,gif"
"""The formats that are read. Playlists are not among them: they would open other files and addresses."""

MAX_FRAMES = 1_000_000
"""The most frames that a video may have, as it is and at a forced rate."""

_RATE_TOLERANCE = Fraction(1, 100)


def open_media(path: Path) -> av.container.InputContainer:
    """Open a media file, and nothing that it refers to.

    Raises av.FFmpegError for other formats, MediaLimitError for too many tracks.
    """
    try:
        options = {"format_whitelist": CONTAINERS, **OPEN_OPTIONS}
        container = av.open(path, options=options, metadata_errors="replace")
    except MemoryError as error:
        raise MediaLimitError(
            f"{path.name} has more than {MAX_TRACKS} tracks, or its headers ask for too much memory"
        ) from error
    if len(container.streams) > MAX_TRACKS:
        container.close()
        raise MediaLimitError(f"{path.name} has more than {MAX_TRACKS} tracks")
    return container


class MediaLimitError(Exception):
    """A file that asks for more than is decoded."""


@dataclass(frozen=True)
class VideoFile:
    """A video's properties, known before its frames are decoded."""

    path: Path
    width: int
    height: int
    """Size as shown: after the rotation the file asks for."""
    rate: Fraction
    """Average frames per second."""
    told_rate: Fraction
    """Frames per second as the container tells them: a forced rate is counted by these, right or wrong."""
    times: tuple[int | None, ...]
    """Presentation time of each frame in the stream's time base, in order; None where the file has none."""
    keyframes: tuple[tuple[int, int], ...]
    """(presentation, decoding) time of the frames that decoding can start at, in order."""
    start: Fraction
    """Time of the first frame, seconds."""
    has_sound: bool

    @property
    def count(self) -> int:
        """Number of frames."""
        return len(self.times)


def probe(path: Path) -> VideoFile:
    """Read the packets of a video and decode its first frame. Raises ValueError when that fails.

    Frames are counted by their packets: headers lie, and edit lists leave frames out. What was found is remembered
    while the file stays the same, for a long video is loaded once for each of its segments.
    """
    try:
        stat = path.stat()
        return _probe(path, stat.st_size, stat.st_mtime_ns)
    except (av.FFmpegError, IndexError, StopIteration, OSError) as error:
        raise ValueError(f"{path.name} could not be loaded: it is not a video that can be decoded") from error


@functools.lru_cache(maxsize=4)
def _probe(path: Path, size: int, changed: int) -> VideoFile:
    """Read a video; `size` and `changed` tell apart two files that had the same name."""
    with _open_picture(path) as (container, stream):
        first = next(_pictures(container, stream))
        sideways = first.rotation % 180 != 0
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        base = stream.time_base or Fraction(1)
        has_sound = bool(container.streams.audio)
    with _open_picture(path) as (container, stream):
        packets = container.demux(stream)
        frames = (packet for packet in packets if packet.size and not packet.is_discard)
        shown = [(packet.pts, packet.dts, packet.is_keyframe) for packet in islice(frames, MAX_FRAMES + 1)]
    if len(shown) > MAX_FRAMES:
        raise ValueError(f"{path.name} could not be loaded: it has more than {MAX_FRAMES} frames")
    times = tuple(sorted((pts for pts, _, _ in shown), key=lambda pts: -math.inf if pts is None else pts))
    return VideoFile(
        path=path,
        width=first.height if sideways else first.width,
        height=first.width if sideways else first.height,
        rate=_checked_rate(rate, times, base),
        told_rate=rate,
        times=times,
        keyframes=tuple(sorted((pts, dts) for pts, dts, key in shown if key and pts is not None and dts is not None)),
        start=(first.pts or 0) * base,
        has_sound=has_sound,
    )


def _checked_rate(rate: Fraction, times: tuple[int | None, ...], base: Fraction) -> Fraction:
    """Return the rate that a file declares, or the true average if that differs by more than a hundredth."""
    first, last = times[0], times[-1]
    if first is None or last is None or last <= first:
        return rate
    average = (len(times) - 1) / ((last - first) * base)
    return rate if abs(rate / average - 1) < _RATE_TOLERANCE else average.limit_denominator(1_000_000)


@functools.lru_cache(maxsize=4)
def _at_forced_rate(count: int, rate: Fraction, force_rate: Fraction) -> array[int]:
    """Return the video's frame number for each frame at the forced rate.

    As VideoHelperSuite 1.7.9 chooses them (`cv_frame_generator`), in floating point: the rounding decides some.
    Raises ValueError when there are too many.
    """
    if count * force_rate > MAX_FRAMES * rate:
        raise ValueError(f"at {float(force_rate):g} frames a second there would be more than {MAX_FRAMES} frames")
    period, forced_period = 1 / float(rate), 1 / float(force_rate)
    chosen, number, clock = array("l"), 0, forced_period
    while True:
        if clock < forced_period:
            number += 1
            if number >= count:
                return chosen
            clock += period
        if clock >= forced_period:
            clock -= forced_period
            chosen.append(number)


@dataclass(frozen=True)
class Selection:
    """A selection of a video's frames and their size: the inputs of VHS_LoadVideo.

    `force_rate` (frames a second, 0 = as they are) drops and repeats frames; `skip`, `step` and `cap` (0 = all)
    count what is left. A width or height of 0 follows from the other; with both, the picture is cropped to fit.
    Sides are rounded to multiples of `multiple`; the number of frames to `groups` = (n, r): r more than n times k.
    """

    force_rate: Fraction = Fraction(0)
    skip: int = 0
    step: int = 1
    cap: int = 0
    width: int = 0
    height: int = 0
    multiple: int = 1
    groups: tuple[int, int] = (1, 0)


@dataclass(frozen=True)
class Clip:
    """The selected frames of a video. Each iteration decodes them anew; two iterations do not disturb each other."""

    video: VideoFile
    selection: Selection

    @property
    def _resampled(self) -> Sequence[int]:
        """The video's frame number for each frame after `force_rate`."""
        force_rate = self.selection.force_rate
        if not force_rate:
            return range(self.video.count)
        return _at_forced_rate(self.video.count, self.video.told_rate, force_rate)

    @property
    def count(self) -> int:
        """Number of frames."""
        chosen = self.selection
        count = max(0, math.ceil((len(self._resampled) - chosen.skip) / chosen.step))
        if chosen.cap:
            count = min(count, chosen.cap)
        size, rest = chosen.groups
        return count if size == 1 else max(0, (count - rest) // size * size + rest)

    @property
    def rate(self) -> Fraction:
        """Frames a second, such that the clip lasts as long as the part of the video it was taken from."""
        return (self.selection.force_rate or self.video.rate) / self.selection.step

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        chosen, width, height = self.selection, self.video.width, self.video.height
        if chosen.width and not chosen.height:
            sides = (Fraction(chosen.width), Fraction(height * chosen.width, width))
        elif chosen.height and not chosen.width:
            sides = (Fraction(width * chosen.height, height), Fraction(chosen.height))
        else:
            sides = (Fraction(chosen.width or width), Fraction(chosen.height or height))
        multiple = chosen.multiple
        across, down = (max(1, math.floor(side / multiple + Fraction(1, 2))) * multiple for side in sides)
        return across, down

    @property
    def span(self) -> tuple[Fraction | None, Fraction | None]:
        """First and last moment of the clip in seconds of the video; None at the video's own end."""
        frame = 1 / (self.selection.force_rate or self.video.rate)
        end = self.selection.skip + self.count * self.selection.step
        return (
            self.selection.skip * frame if self.selection.skip else None,
            end * frame if end < len(self._resampled) else None,
        )

    def led_in(self, most: int) -> tuple[Clip, int]:
        """Return the clip with up to `most` of the frames that come before it, and their number."""
        chosen = self.selection
        lead = min(most, chosen.skip // chosen.step)
        if not lead:
            return self, 0
        earlier = replace(chosen, skip=chosen.skip - lead * chosen.step, cap=self.count + lead, groups=(1, 0))
        return replace(self, selection=earlier), lead

    def __str__(self) -> str:
        return f"<clip of {self.count} frames, {self.size[0]}×{self.size[1]}>"

    def __iter__(self) -> Generator[Frame]:
        wanted = iter(self._wanted())
        index = next(wanted, None)
        if index is None:
            return
        layout: _Layout | None = None
        for number, decoded in _decode(self.video, index):
            while index == number:
                layout = layout or _Layout(decoded, self.size)
                yield layout.frame(decoded)
                index = next(wanted, None)
            if index is None:
                return

    def _wanted(self) -> Iterator[int]:
        """Yield the video's frame number for each frame of the clip."""
        chosen, resampled = self.selection, self._resampled
        for number in range(self.count):
            yield resampled[chosen.skip + number * chosen.step]


def _decode(video: VideoFile, first: int) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield the frames of a video from number `first` on, or from an earlier one, each with its number."""
    with _open_picture(video.path) as (container, stream):
        keyframe = _keyframe_before(video, first)
        if keyframe is not None:
            container.seek(keyframe[1], stream=stream)
            frames = _pictures(container, stream)
            start = next(frames, None)
            number = _number(video, start)
            if start is not None and number is not None and number <= first:
                yield number, start
                yield from enumerate(frames, number + 1)
                return
    with _open_picture(video.path) as (container, stream):
        yield from enumerate(_pictures(container, stream))


def _keyframe_before(video: VideoFile, first: int) -> tuple[int, int] | None:
    """Return the key frame to decode from for frame `first`.

    None stands for the beginning, also where times cannot be trusted.
    """
    if first == 0 or first >= video.count or len({*video.times}) != video.count or None in video.times:
        return None
    at = bisect_right(video.keyframes, (video.times[first], math.inf)) - 1
    return video.keyframes[at] if at > 0 else None


def _number(video: VideoFile, frame: av.VideoFrame | None) -> int | None:
    if frame is None or frame.pts is None:
        return None
    number = bisect_left(video.times, frame.pts)  # type: ignore[type-var]  # _keyframe_before saw no None
    return number if number < video.count and video.times[number] == frame.pts else None


def _pictures(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Decode the packets of a stream; a damaged packet is skipped, as ffmpeg does.

    Raises MediaLimitError for a picture that is too large, MemoryError where there is no memory for one.
    """
    size = stream.codec_context.width * stream.codec_context.height
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            # Some decoders call a packet damaged when they get no memory for its picture.
            np.empty((size, 3), np.uint8)
            continue
        except av.error.ArgumentError as error:
            raise _too_large() from error
        for frame in frames:
            if too_large(frame.width, frame.height):
                raise _too_large()
            size = frame.width * frame.height
            yield frame


def _too_large() -> MediaLimitError:
    return MediaLimitError(
        f"The video has a picture that cannot be decoded: at most {MAX_SIDE} pixels a side and {MAX_PIXELS} in all"
    )


@contextmanager
def _open_picture(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a file and its first picture track, the decoder bounded. Raises IndexError without such a track."""
    with open_media(path) as container:
        stream = container.streams.video[0]
        bound_decoder(stream, LARGE_PIXELS)
        yield container, stream


class _Layout:
    """A conversion of decoded frames to I420 of the wanted size: scaled, cropped, turned and padded to even sides."""

    def __init__(self, decoded: av.VideoFrame, size: tuple[int, int]) -> None:
        self._turns = round(decoded.rotation / 90) % 4
        width, height = reversed(size) if self._turns % 2 else size
        self._width, self._height = width, height
        scale = max(Fraction(width, decoded.width), Fraction(height, decoded.height))
        self._scaled = max(width, round(decoded.width * scale)), max(height, round(decoded.height * scale))
        self._left, self._top = (self._scaled[0] - width) // 4 * 2, (self._scaled[1] - height) // 4 * 2
        self._shape = (size[1] + size[1] % 2) * 3 // 2, size[0] + size[0] % 2
        self._reformatter = VideoReformatter()
        self._colour = Colour(
            matrix=int(decoded.colorspace),
            range=2 if decoded.format.name.startswith("yuvj") else int(decoded.color_range),
            primaries=int(decoded.color_primaries),
            transfer=int(decoded.color_trc),
        )

    def frame(self, decoded: av.VideoFrame) -> Frame:
        planes: Image = np.empty(self._shape, np.uint8)
        for half, (source, target) in enumerate(zip(self._i420(decoded).planes, split_planes(planes), strict=True)):
            step = 2 if half else 1
            rows = np.frombuffer(memoryview(source), np.uint8).reshape(-1, source.line_size)
            top, left = self._top // step, self._left // step
            bottom, right = top + -(-self._height // step), left + -(-self._width // step)
            picture = np.rot90(rows[top:bottom, left:right], self._turns)
            height, width = picture.shape
            target[:height, :width] = picture
            target[height:] = target[height - 1]
            target[:, width:] = target[:, width - 1 : width]
        return Frame(planes, self._colour)

    def _i420(self, decoded: av.VideoFrame) -> av.VideoFrame:
        same_size = (decoded.width, decoded.height) == self._scaled
        if same_size and decoded.format.name in ("yuv420p", "yuvj420p"):
            return decoded
        return self._reformatter.reformat(
            decoded,
            *self._scaled,
            format="yuv420p",
            src_colorspace=self._colour.known_matrix,
            dst_colorspace=self._colour.known_matrix,
            src_color_range=self._colour.range or 1,
            dst_color_range=self._colour.range or 1,
            interpolation="BICUBIC",
        )
