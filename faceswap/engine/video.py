"""The way from frames to a file: decoder, swap and encoder are joined by streams, with a thread for each step.

At most a few frames wait between two steps, so memory does not depend on the length of a video.
"""

from __future__ import annotations

import heapq
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

import av

from ..marker import Marker
from ..marks import Marks
from .frames import LARGE_PIXELS, Colour, Frame
from .pixels import Pixels
from .sound import Sound, SoundTrack

PREFETCHED_FRAMES = 2
"""Frames that one step may be ahead of the next."""

_ENCODER_THREADS = 8
"""At most: each has pictures of its own in memory, and a machine may have a hundred cores."""

_LOOKAHEAD_PIXELS, _LEAST_LOOKAHEAD = 80_000_000, 4
"""Bound of x264's lookahead for large pictures: in pixels, and at least so many pictures."""

_HEADER_BYTES = 1 << 16
_LARGEST_RATE_PART = 1_000_000
_HIGHEST_CRF = 51

T = TypeVar("T")


class Swap(Protocol):
    """A swap of faces: `track` runs in one thread, `apply` in another, both in the order of the frames."""

    @property
    def lookahead(self) -> int:
        """Number of frames after a frame that are tracked before its tracks are final."""

    def track(self, frame: Pixels) -> Any:
        """Find the faces to replace in the next frame."""

    def finish(self) -> None:
        """Make the tracks of all frames final: none follow."""

    def apply(self, frame: Pixels, tracks: Any) -> int:
        """Replace the tracked faces of the next frame in place and return how many changed."""


@dataclass
class SwapCount:
    """The frames of a clip that went through a swap, and those of them in which it changed a face."""

    frames: int = 0
    swapped: int = 0


class Frames(Protocol):
    """A clip: frames that can be read again and again, and the properties known before."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""

    @property
    def rate(self) -> Fraction:
        """Frames a second."""

    @property
    def count(self) -> int:
        """Number of frames."""

    def __iter__(self) -> Generator[Frame]: ...


@dataclass(frozen=True)
class Encoding:
    """The encoding of H.264. `crf` is x264's, 0 (lossless) to 51; `marks` are drawn into the frames before."""

    crf: int = 19
    preset: str = "medium"
    marks: Marks | None = None


def as_rate(value: float | Fraction) -> Fraction:
    """Return frames a second as a fraction: 29.97002997 is 30000/1001."""
    return Fraction(value).limit_denominator(_LARGEST_RATE_PART)


def prefetch(items: Iterable[T], depth: int = PREFETCHED_FRAMES) -> Generator[T]:
    """Yield `items`, made by a thread of their own that is at most `depth` ahead of the reader.

    Closing the generator stops the thread; an error in the thread is raised here.
    """
    room = threading.Semaphore(depth)
    ready: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()
    closed = threading.Event()

    def make() -> None:
        iterator = iter(items)
        try:
            while room.acquire() and not closed.is_set():
                ready.put((next(iterator), None))
        except BaseException as error:  # noqa: BLE001 -- a thread's top: the reader gets every error
            ready.put((None, error))
        finally:
            with suppress(AttributeError):  # only generators can be closed
                iterator.close()  # type: ignore[attr-defined]

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            room.release()
            yield item  # type: ignore[misc]  # without an error it is an item
    finally:
        closed.set()
        room.release()
        thread.join()


def swap_frames(frames: Frames, swap: Swap, count: SwapCount, lead: int = 0) -> Generator[Frame]:
    """Yield the frames after the first `lead` with a swap applied, and count them.

    Decoding, tracking and applying each run in a thread.
    """
    large = is_large(frames.size)
    decoded = iter(frames) if large else prefetch(frames)
    tracked = prefetch(_tracked(decoded, swap), 1 if large else PREFETCHED_FRAMES)
    with closing(prefetch(_applied(tracked, swap, count, lead), 1 if large else PREFETCHED_FRAMES)) as stream:
        yield from stream


def _tracked(frames: Generator[Frame], swap: Swap) -> Iterator[tuple[Frame, Any]]:
    held: deque[tuple[Frame, Any]] = deque()
    with closing(frames):
        for frame in frames:
            held.append((frame, swap.track(frame)))
            if len(held) > swap.lookahead:
                yield held.popleft()
    swap.finish()
    yield from held


def _applied(frames: Generator[tuple[Frame, Any]], swap: Swap, count: SwapCount, lead: int) -> Iterator[Frame]:
    count.frames = count.swapped = 0
    with closing(frames):
        for number, (frame, tracks) in enumerate(frames):
            is_changed = swap.apply(frame, tracks) > 0
            if number >= lead:
                count.swapped += is_changed
                count.frames += 1
                yield frame


def encode(
    frames: Frames,
    path: Path,
    rate: Fraction,
    encoding: Encoding,
    on_frame: Callable[[int, Frame], None],
) -> int:
    """Encode frames as H.264 into an MP4 file without sound and return their number.

    `on_frame(number, frame)` is called after each, counted from 1; what it raises ends the encoding.
    Raises ValueError when there is no frame at all.
    """
    number = 0
    stream: av.VideoStream | None = None
    marker: Marker | None = None
    with closing(iter(frames)) as decoded, _new_file(path) as output:
        for number, frame in enumerate(decoded, 1):
            if stream is None:
                stream = _add_video(output, frame, rate, encoding)
                marker = Marker(encoding.marks, frame.size) if encoding.marks else None
            if marker is not None:
                marker.apply(frame.planes)
            picture = av.VideoFrame.from_numpy_buffer(frame.planes, "yuv420p")  # not copied: nobody changes it any more
            picture.pts, picture.time_base = number - 1, 1 / rate
            _tag(picture, frame.colour)
            output.mux(stream.encode(picture))
            on_frame(number, frame)
        if stream is None:
            raise ValueError("No frames to encode")
        output.mux(stream.encode(None))
    return number


def _new_file(path: Path, **options: str) -> av.container.OutputContainer:
    """Open an MP4 file to be written. Raises OSError if there is no room for its first bytes."""
    # Tried here, because PyAV leaves a file open for good when it cannot write its header.
    path.write_bytes(bytes(_HEADER_BYTES))
    return av.open(path, "w", format="mp4", options=options)


def is_large(size: tuple[int, int]) -> bool:
    """Return whether as few pictures of a size are in memory at a time as works."""
    return size[0] * size[1] > LARGE_PIXELS


def _add_video(
    output: av.container.OutputContainer, frame: Frame, rate: Fraction, encoding: Encoding
) -> av.VideoStream:
    width, height = frame.size
    options = {"crf": str(min(encoding.crf, _HIGHEST_CRF)), "preset": encoding.preset}
    if is_large(frame.size):
        options["rc-lookahead"] = str(max(_LEAST_LOOKAHEAD, _LOOKAHEAD_PIXELS // (width * height)))
    stream = output.add_stream("libx264", rate=rate, options=options)
    stream.thread_type = "SLICE" if is_large(frame.size) else "FRAME"
    stream.codec_context.thread_count = min((os.cpu_count() or 1) * 3 // 2, _ENCODER_THREADS)
    stream.width, stream.height = width, height
    stream.pix_fmt = "yuv420p"
    _tag(stream.codec_context, frame.colour)
    return stream


def _tag(target: av.VideoFrame | av.VideoCodecContext, colour: Colour) -> None:
    target.color_range = colour.range
    target.colorspace = colour.matrix
    target.color_primaries = colour.primaries
    target.color_trc = colour.transfer


def mux(
    video: Path, sound: Sound | None, path: Path, rate: Fraction, marks: Marks | None, on_frame: Callable[[int], None]
) -> None:
    """Put an encoded video, at `rate`, and a sound into an MP4 file that can be played while it loads.

    Its comment tells the marks that its frames have.
    """
    with (
        av.open(video) as source,
        _new_file(path, movflags="+faststart") as output,
    ):
        picture = source.streams.video[0]
        stream = output.add_stream_from_template(picture)
        stream.time_base = 1 / rate
        if marks is not None:
            output.metadata["comment"] = marks.text
        track = SoundTrack(sound, output) if sound else None
        pictures = _retimed(source, picture, stream, rate)
        number = 0
        for _, packet in heapq.merge(pictures, track.packets() if track else (), key=lambda timed: timed[0]):
            output.mux(packet)
            if packet.stream is stream:
                number += 1
                on_frame(number)


def _retimed(
    source: av.container.InputContainer, picture: av.VideoStream, stream: av.VideoStream, rate: Fraction
) -> Iterator[tuple[Fraction, av.Packet[Any]]]:
    """Yield the packets of a constant-rate video, timed anew for `rate`."""
    base = picture.time_base or Fraction(1)
    own_rate = picture.average_rate or rate
    for packet in source.demux(picture):
        if packet.pts is None or packet.dts is None:
            continue
        packet.pts, packet.dts = (round(time * base * own_rate) for time in (packet.pts, packet.dts))
        packet.duration = 1
        packet.time_base = 1 / rate
        packet.stream = stream
        yield packet.dts / rate, packet
