"""Cuts a run of frames out of a video without encoding again, for an engine that does not take the whole file."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from faceswap.errors import JobFailure
from faceswap.media.facts import PieceFacts
from faceswap.media.timeline import Timeline, open_media, packets, picture_stream, read_timeline

# Frames before the first that is wanted at which to look for a key frame; as in `verify`.
LEAD_FRAMES = 16

INEXACT = JobFailure(
    "upload_too_large",
    "The video is larger than ComfyUI takes and cannot be cut into parts exactly; start ComfyUI with a higher"
    " --max-upload-size.",
)


def cut(source: Path, out: Path, first_frame: int, frame_count: int) -> PieceFacts:
    """Writes the frames of `source` from `first_frame` on, and those before it that decoding them needs, to `out`.

    The sound is left out. The piece is decoded and its frames compared with the source's: where they differ, as
    they can with open groups of pictures or edit lists, JobFailure `upload_too_large` is raised.
    """
    try:
        timeline = read_timeline(source)
        if not timeline.stamped:
            raise INEXACT
        wanted = timeline.times[first_frame : first_frame + frame_count].tolist()
        lead = _copy(source, out, timeline, first_frame, wanted)
        if _digests(_of_piece(out, lead, frame_count)) != _digests(_of_source(source, wanted)):
            raise INEXACT
    except av.FFmpegError as error:
        raise INEXACT from error
    return PieceFacts(lead)


def _copy(source: Path, out: Path, timeline: Timeline, first_frame: int, wanted: Sequence[int]) -> int:
    """Copies the packets; returns how many frames of the piece come before the first that is wanted."""
    near = int(timeline.times[max(0, first_frame - LEAD_FRAMES)])
    with open_media(source) as container:
        shown = np.array([packet.pts for packet in _needed(container, near, set(wanted))], np.int64)
    start = int(shown[0])
    if start > wanted[0]:
        raise INEXACT
    decoding = _decoding_times(shown)
    with open_media(source) as container, av.open(f"file:{out}", "w", format=_format(container.format.name)) as output:
        template = picture_stream(container)
        assert template is not None
        target = output.add_stream_from_template(template, opaque=True)
        target.time_base = template.time_base
        for packet, dts in zip(_needed(container, near, set(wanted)), decoding.tolist(), strict=True):
            packet.stream, packet.pts, packet.dts = target, int(packet.pts or 0) - start, dts - start
            output.mux(packet)
    return first_frame - int(timeline.times.searchsorted(start))


def _needed(container: InputContainer, near: int, wanted: set[int]) -> Iterator[av.Packet[VideoStream]]:
    """The packets from the key frame before the time `near` to the last that a wanted frame needs, as stored."""
    stream = picture_stream(container)
    assert stream is not None
    container.seek(near, stream=stream)
    for packet in packets(container, "video"):
        if packet.stream_index != stream.index:
            continue
        if packet.pts is None:
            raise INEXACT
        wanted.discard(packet.pts)
        yield packet
        if not wanted:
            return
    raise INEXACT


def _decoding_times(shown: NDArray[np.int64]) -> NDArray[np.int64]:
    """When each packet is decoded: in the order stored, never after it is shown. Not all files tell."""
    times = np.sort(shown)
    delay = int(np.max(np.arange(len(shown)) - times.searchsorted(shown), initial=0))
    step = max(int(np.min(np.diff(times), initial=1)), 1)
    return np.concatenate([np.arange(-delay, 0) * step + times[0], times])[: len(shown)]


def _format(source_format: str) -> str:
    """The container of a piece: the source's own where that keeps what is said about its frames."""
    return "mp4" if "mp4" in source_format else "matroska"


def _of_piece(piece: Path, lead: int, count: int) -> Iterator[VideoFrame]:
    with open_media(piece) as container:
        stream = picture_stream(container)
        assert stream is not None
        stream.thread_type = "AUTO"
        yield from islice(container.decode(stream), lead, lead + count)


def _of_source(source: Path, wanted: Sequence[int]) -> Iterator[VideoFrame]:
    with open_media(source) as container:
        stream = picture_stream(container)
        assert stream is not None
        stream.thread_type = "AUTO"
        container.seek(wanted[0], stream=stream)
        for frame in container.decode(stream):
            if frame.pts is not None and frame.pts >= wanted[0]:
                yield frame
            if frame.pts == wanted[-1]:
                return


def _digests(frames: Iterator[VideoFrame]) -> list[tuple[int, int]]:
    """A digest of each frame's brightness, and how it has to be turned."""
    return [(zlib.crc32(frame.to_ndarray(format="gray").tobytes()), frame.rotation) for frame in frames]
