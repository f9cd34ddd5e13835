"""Marks in pictures that ComfyUI encoded: they are encoded once more. It runs in a worker process."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from .. import durable
from ..errors import JobFailure
from ..limits import DECODER_THREADS
from ..marker import Marker
from ..marks import Marks
from .facts import MarkFacts
from .join import disk_full_fails_the_job
from .paths import partial_path
from .timeline import decoded, open_picture

RATE = Fraction(24)
"""The clock of the marked file; the result's own is put in when it is joined."""


def mark(path: Path, marks: Marks, crf: int) -> MarkFacts:
    """Draw `marks` into the frames of a segment, in its place, unless its comment tells that they are there.

    Raises JobFailure (`output_damaged`, `disk_full`); the segment is then as it was before.
    """
    partial = partial_path(path)
    try:
        with disk_full_fails_the_job(), open_picture(path) as (container, stream):
            if container.metadata.get("comment") == marks.text:
                return MarkFacts(0)
            frames = _encode(decoded(container, stream), partial, marks, crf)
            durable.sync(partial)
            durable.rename(partial, path)
            return MarkFacts(frames)
    except av.FFmpegError as error:
        raise JobFailure(
            "output_damaged", "The engine's result cannot be marked: it is damaged.", transient=True
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _encode(frames: Iterable[VideoFrame], out: Path, marks: Marks, crf: int) -> int:
    number = 0
    with av.open(f"file:{out}", "w", format="mp4") as output:
        target: VideoStream | None = None
        for number, frame in enumerate(frames, 1):
            if target is None:
                target = _add_encoder(output, frame, crf)
                size = target.codec_context.width, target.codec_context.height
                marker = Marker(marks, size)
            planes = np.asarray(frame.reformat(*size, "yuv420p").to_ndarray(), np.uint8)
            marker.apply(planes)
            picture = VideoFrame.from_ndarray(planes, "yuv420p")
            _tag(picture, frame)
            picture.pts, picture.time_base = number - 1, 1 / RATE
            output.mux(target.encode(picture))
        if target is not None:
            output.mux(target.encode(None))
    return number


def _add_encoder(output: OutputContainer, frame: VideoFrame, crf: int) -> VideoStream:
    """Add a stream for pictures like `frame`, of even sides."""
    target = output.add_stream("libx264", rate=RATE, options={"crf": str(crf), "preset": "medium"})
    context = target.codec_context
    context.thread_count = DECODER_THREADS
    context.width, context.height = frame.width // 2 * 2, frame.height // 2 * 2
    context.pix_fmt = "yuv420p"
    _tag(context, frame)
    return target


def _tag(target: VideoFrame | av.VideoCodecContext, frame: VideoFrame) -> None:
    target.color_range, target.colorspace = frame.color_range, frame.colorspace
    target.color_primaries, target.color_trc = frame.color_primaries, frame.color_trc
