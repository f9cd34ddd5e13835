"""Pieces of a video: copied where the file allows it, else encoded anew without a visible loss."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from .. import durable
from ..errors import JobFailure, Unprocessable
from .facts import CuttingFacts, FrameRange, PieceFacts
from .frames import LEAD_FRAMES, after_seek, from_start
from .join import disk_full_fails_the_job
from .paths import partial_path
from .timeline import LARGE_PIXELS, Timeline, decoded, open_picture, picture_packets, read_source, read_timeline

LONGEST_GROUP = 300
"""Frames from one key frame to the next, at most, in a video that pieces are cut from: each costs so much to reach."""
KEY_FRAME_EVERY = 24
ENCODER = {"crf": "12", "tune": "zerolatency", "g": str(KEY_FRAME_EVERY), "bf": "0"}
"""x264 at a quality whose loss is not seen. It does not check_cuttable ahead, and so holds few pictures in memory."""
PRESET, PRESET_LARGE = "veryfast", "ultrafast"
"""For large pictures the one that holds the least of each."""
ENCODER_THREADS = 4
LEAST_RATE, LARGEST_RATE = Fraction(1), Fraction(240)

INEXACT = JobFailure("cut_inexact", "The video cannot be cut exactly.")


def check_cuttable(source: Path) -> CuttingFacts:
    """Return whether pieces can be cut out of `source` as it is. Raises JobFailure `input_damaged`."""
    return CuttingFacts(_is_cuttable(read_source(source)))


def _is_cuttable(timeline: Timeline) -> bool:
    return timeline.stamped and timeline.longest_group <= LONGEST_GROUP


def find_frames(path: Path, start: float | None, end: float | None, frame_rate: Fraction | None) -> FrameRange:
    """Return the frames of a result that are shown from `start` to `end`. Raises Unprocessable (`undecodable`)."""
    try:
        found = read_timeline(path).span(start, end, frame_rate)
    except av.FFmpegError as error:
        raise Unprocessable("The video cannot be read.", code="undecodable") from error
    return FrameRange(found.start, len(found))


def prepare(
    source: Path, out: Path, frame_count: int, frame_rate: Fraction | None, first_frame: int = 0
) -> CuttingFacts:
    """Make a copy of `source`, in one pass, that pieces can be cut from at little cost: `out`, complete or not at all.

    It holds the `frame_count` frames of the result at `frame_rate` from `first_frame` on, a key frame among them every
    second or so, and no sound. Raises JobFailure (`input_damaged`, `disk_full`).
    """
    timeline = read_source(source)
    partial = partial_path(out)
    try:
        with disk_full_fails_the_job():
            shown = timeline.shown(frame_rate, first_frame, frame_count)
            made = _encode(_until_damaged(from_start(source, shown)), partial, frame_rate or timeline.rate()[0])
            if made != frame_count:
                message = f"The video is damaged: it cannot be decoded after frame {made} of {frame_count}."
                raise JobFailure("input_damaged", message)
            durable.sync(partial)
            durable.rename(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    return CuttingFacts(cuttable=True)


def cut(
    source: Path, out: Path, first_frame: int, frame_count: int, frame_rate: Fraction | None, max_bytes: int | None
) -> PieceFacts:
    """Write frames of the result at `frame_rate`, from `first_frame` on, to `out`, without the sound.

    With `frame_rate` None the packets are copied, with those before them that decoding needs, as long as that gives
    the very frames of `source` and, where such a lead is the reason, no more than `max_bytes`. Else the frames are
    encoded anew. Raises JobFailure: `cut_inexact` when they cannot be found without decoding from the start,
    `input_damaged`, `disk_full`.
    """
    timeline = read_source(source)
    with disk_full_fails_the_job():
        if frame_rate is None:
            piece = _copy_if_exact(source, out, timeline, first_frame, frame_count)
            if piece and (piece.lead == 0 or max_bytes is None or out.stat().st_size <= max_bytes):
                return piece
        shown = timeline.shown(frame_rate, first_frame, frame_count)
        frames = _until_damaged(_found(source, timeline, shown))
        made = _encode(frames, out, frame_rate or timeline.rate()[0])
        if made != frame_count:
            raise INEXACT
    return PieceFacts(0, ".mp4")


def _until_damaged(frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
    """Yield the frames as far as they can be decoded."""
    with contextlib.suppress(av.InvalidDataError):
        yield from frames


def _found(source: Path, timeline: Timeline, shown: Sequence[int]) -> Iterator[VideoFrame]:
    """Yield the frames `shown` that are found without decoding more than a group of pictures before them."""
    if shown[0] < LONGEST_GROUP:
        return from_start(source, shown)
    if timeline.stamped:
        return after_seek(source, timeline, shown)
    raise INEXACT


def _encode(frames: Iterable[VideoFrame], out: Path, rate: Fraction) -> int:
    """Write frames at a constant rate to an mp4, all of the first one's size, and return their number."""
    rate = min(max(rate, LEAST_RATE), LARGEST_RATE).limit_denominator(1001)
    number = 0
    with av.open(f"file:{out}", "w", format="mp4") as output:
        target: VideoStream | None = None
        for number, frame in enumerate(frames, 1):
            target = target or _add_encoder(output, frame, rate)
            context = target.codec_context
            picture = frame.reformat(
                context.width,
                context.height,
                context.pix_fmt,
                src_color_range=frame.color_range,
                dst_color_range=context.color_range,
            )
            picture.pts, picture.time_base, picture.pict_type = number - 1, 1 / rate, PictureType.NONE
            output.mux(target.encode(picture))
        if target is not None:
            output.mux(target.encode(None))
    return number


def _add_encoder(output: OutputContainer, frame: VideoFrame, rate: Fraction) -> VideoStream:
    """Add a stream that decodes to pictures like `frame`: its size, colours and rotation."""
    preset = PRESET_LARGE if frame.width * frame.height > LARGE_PIXELS else PRESET
    target = output.add_stream("libx264", rate=rate, options={**ENCODER, "preset": preset})
    context = target.codec_context
    context.thread_count = ENCODER_THREADS
    context.width, context.height, context.pix_fmt = frame.width, frame.height, _pixel_format(frame)
    if not frame.format.is_rgb:
        context.color_range, context.colorspace = frame.color_range, frame.colorspace
    context.color_primaries, context.color_trc = frame.color_primaries, frame.color_trc
    target.set_display_rotation(frame.rotation)
    return target


def _pixel_format(frame: VideoFrame) -> str:
    """Return the pixel format with 8 bits a sample and as much colour as the frame has."""
    halved = (frame.format.chroma_width(2), frame.format.chroma_height(2)) == (1, 1)
    even = frame.width % 2 == frame.height % 2 == 0
    return "yuv420p" if halved and even else "yuv444p"


def _copy_if_exact(
    source: Path, out: Path, timeline: Timeline, first_frame: int, frame_count: int
) -> PieceFacts | None:
    """Copy the packets if they decode to the frames that the source shows; else return None."""
    try:
        return _copy(source, out, timeline, first_frame, frame_count)
    except (av.FFmpegError, JobFailure):
        return None  # a full disk is met again


def _copy(source: Path, out: Path, timeline: Timeline, first_frame: int, frame_count: int) -> PieceFacts:
    """Copy the packets and decode the copy.

    Raises INEXACT if its frames are not the very ones of the source.
    """
    if not _is_cuttable(timeline):
        raise INEXACT
    wanted = timeline.times[first_frame : first_frame + frame_count].tolist()
    near = int(timeline.times[max(0, first_frame - LEAD_FRAMES)])
    with open_picture(source) as (container, stream):
        # Where a copy keeps what is said about its frames.
        kind = "mp4" if "mp4" in container.format.name else "matroska"
        shown = np.array([packet.pts for packet in _needed(container, stream, near, set(wanted))], np.int64)
    start = int(shown[0])
    if start > wanted[0]:
        raise INEXACT
    decoding = _decoding_times(shown)
    with open_picture(source) as (container, template), av.open(f"file:{out}", "w", format=kind) as output:
        target = output.add_stream_from_template(template, opaque=True)
        target.time_base = template.time_base
        for packet, dts in zip(_needed(container, template, near, set(wanted)), decoding.tolist(), strict=True):
            packet.stream, packet.pts, packet.dts = target, int(packet.pts or 0) - start, dts - start
            output.mux(packet)
    lead = first_frame - int(timeline.times.searchsorted(start))
    copied = _digests(_of_piece(out, lead, frame_count))
    if len(copied) != frame_count or copied != _digests(_of_source(source, wanted)):
        raise INEXACT
    return PieceFacts(lead, ".mp4" if kind == "mp4" else ".mkv")


def _needed(
    container: InputContainer, stream: VideoStream, near: int, wanted: set[int]
) -> Iterator[av.Packet[VideoStream]]:
    """Yield the packets from the key frame before the time `near` to the last that a wanted frame needs, as stored."""
    container.seek(near, stream=stream)
    for packet in picture_packets(container, stream):
        if packet.pts is None:
            raise INEXACT
        wanted.discard(packet.pts)
        yield packet
        if not wanted:
            return
    raise INEXACT


def _decoding_times(shown: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return when each packet is decoded: in the order stored, never after it is shown. Not all files say it."""
    times = np.sort(shown)
    delay = int(np.max(np.arange(len(shown)) - times.searchsorted(shown), initial=0))
    step = max(int(np.min(np.diff(times), initial=1)), 1)
    return np.concatenate([np.arange(-delay, 0) * step + times[0], times])[: len(shown)]


def _of_piece(piece: Path, lead: int, count: int) -> Iterator[VideoFrame]:
    with open_picture(piece) as (container, stream):
        yield from islice(decoded(container, stream), lead, lead + count)


def _of_source(source: Path, wanted: Sequence[int]) -> Iterator[VideoFrame]:
    with open_picture(source) as (container, stream):
        container.seek(wanted[0], stream=stream)
        for frame in decoded(container, stream):
            if frame.pts is not None and frame.pts >= wanted[0]:
                yield frame
            if frame.pts == wanted[-1]:
                return


def _digests(frames: Iterator[VideoFrame]) -> list[tuple[int, int]]:
    """Return a digest of each frame's brightness, and its rotation."""
    return [(zlib.crc32(frame.to_ndarray(format="gray").tobytes()), frame.rotation) for frame in frames]
