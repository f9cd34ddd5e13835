"""Results in other formats than mp4, encoded once more: WebM and GIF. It runs in a worker process."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.filter import Graph
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from .. import durable
from ..errors import JobFailure
from .facts import JoinFacts
from .join import disk_full_fails_the_job
from .paths import partial_path, unsigned_path
from .sound import AAC_LAYOUTS, SoundEncoder, decode_tracks
from .tag import MATROSKA_TAG, tag_packet, write_gif_tag
from .timeline import Timeline, decoded, open_media, open_picture, packets, picture_stream, read_timeline

GIF_RATE = 25
"""The most frames a second in a GIF: browsers show what is much shorter too slowly."""
GIF_SIDE = 640
"""The longer side of a GIF in pixels, at most."""
GIF_TICKS = 100
"""A GIF counts time in hundredths of a second."""
TICK = Fraction(1, GIF_TICKS)
LEAST_TICKS = 2
ROUNDING = Fraction(1, 1000)
VP9 = {"deadline": "good", "cpu-used": "4", "row-mt": "1", "b": "0"}
VP9_CRF_OFFSET = 5
"""Added to `crf`: VP9 counts quality to 63, x264 to 51."""
VP9_HIGHEST_CRF = 63
ENCODER_THREADS = 4
OPUS_RATE = 48000
LOST_SOUND_S = 0.1

UNSIGNED = "The result has no content credentials: a WebM cannot hold them."
LOST = JobFailure("output_damaged", "The result lost frames or sound when it was encoded anew.", transient=True)


def convert(
    path: Path, source: Path, kind: str, crf: int, prompt_id: str, signing: tuple[Path, Path] | None
) -> JoinFacts:
    """Replace the joined result at `path` by one of `kind` (webm, gif) with what is seen and, in WebM, heard in it.

    It says that job `prompt_id` made it, of `source`. A GIF is signed with the certificate and key in `signing`; a WebM
    cannot be. Raises JobFailure (`output_damaged`, `disk_full`, `not_signed`); `path` is then as it was before.
    """
    partial, unsigned = partial_path(path), unsigned_path(path)
    try:
        with disk_full_fails_the_job():
            facts = _write_webm(path, partial, crf, prompt_id) if kind == "webm" else _write_gif(path, partial)
            warnings: tuple[str, ...] = ()
            if kind == "gif":
                write_gif_tag(partial, prompt_id)
            if signing is not None and kind == "gif":
                from .credentials import sign  # here, because a service without a certificate needs none of it

                partial.replace(unsigned)
                sign(unsigned, partial, source, prompt_id, *signing)
            elif signing is not None:
                warnings = (UNSIGNED,)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.tell()
            durable.rename(partial, path)
            return JoinFacts(size, digest, len(facts.times), float(facts.duration), warnings)
    except av.FFmpegError as error:
        raise LOST from error
    finally:
        partial.unlink(missing_ok=True)
        unsigned.unlink(missing_ok=True)


def _write_webm(path: Path, out: Path, crf: int, prompt_id: str) -> Timeline:
    with open_media(path) as container, av.open(f"file:{out}", "w", format="webm") as output:
        output.metadata[MATROSKA_TAG] = tag_packet(prompt_id)
        picture = picture_stream(container)
        assert picture is not None
        target = _add_vp9(picture, output, crf)
        sounds = {stream.index: _add_opus(stream, output) for stream in container.streams.audio}
        for packet in packets(container, "video", "audio"):
            if encoder := sounds.get(packet.stream_index):
                output.mux(list(encoder.encode(packet, Fraction(0))))
            elif packet.stream_index == picture.index:
                for frame in packet.decode():
                    output.mux(target.encode(_as_420(frame)))
        for frame in picture.decode(None):
            output.mux(target.encode(_as_420(frame)))
        output.mux(target.encode(None))
        for encoder in sounds.values():
            output.mux(list(encoder.encode(None, Fraction(0))))
    before, after = read_timeline(path), read_timeline(out)
    if len(after.times) != len(before.times):
        raise LOST
    for ours, theirs in zip(decode_tracks(out).values(), decode_tracks(path).values(), strict=True):
        if ours.damaged or ours.seconds < theirs.seconds - LOST_SOUND_S:
            raise LOST
    return after


def _add_vp9(picture: VideoStream, output: OutputContainer, crf: int) -> VideoStream:
    options = VP9 | {"crf": str(min(crf + VP9_CRF_OFFSET, VP9_HIGHEST_CRF))}
    target = output.add_stream("libvpx-vp9", rate=picture.average_rate, options=options)
    context, source = target.codec_context, picture.codec_context
    context.thread_count = ENCODER_THREADS
    context.width, context.height, context.pix_fmt = source.width, source.height, "yuv420p"
    context.time_base = picture.time_base or Fraction(1, 1000)
    context.color_range, context.colorspace = source.color_range, source.colorspace
    context.color_primaries, context.color_trc = source.color_primaries, source.color_trc
    return target


def _as_420(frame: VideoFrame) -> VideoFrame:
    picture = frame.reformat(format="yuv420p")
    picture.pict_type = PictureType.NONE  # the source's choice of key frames is not to be repeated
    return picture


def _add_opus(stream: AudioStream, output: OutputContainer) -> SoundEncoder:
    layout = AAC_LAYOUTS.get(stream.codec_context.channels, "stereo")
    track = output.add_stream("libopus", rate=OPUS_RATE, layout=layout)
    if "language" in stream.metadata:
        track.metadata["language"] = stream.metadata["language"]
    return SoundEncoder(stream, track)


def _write_gif(path: Path, out: Path) -> Timeline:
    """Write a GIF in two passes, its palette first and then the frames, so that few are in memory at a time."""
    with open_picture(path) as (container, stream):
        size = _gif_size(stream.codec_context.width, stream.codec_context.height)
        palette = _palette(_gif_frames(container, stream, size))
    count = 0
    with open_picture(path) as (container, stream), av.open(f"file:{out}", "w", format="gif") as output:
        target = output.add_stream("gif", rate=GIF_RATE)
        target.width, target.height, target.pix_fmt = *size, "pal8"
        target.codec_context.time_base = Fraction(1, GIF_TICKS)
        for frame in _painted(_gif_frames(container, stream, size), palette):
            output.mux(target.encode(frame))
            count += 1
        output.mux(target.encode(None))
    made = read_timeline(out)
    if len(made.times) != count:
        raise LOST
    return made


def _gif_size(width: int, height: int) -> tuple[int, int]:
    scale = min(1.0, GIF_SIDE / max(width, height))
    return max(round(width * scale), 1), max(round(height * scale), 1)


def _gif_frames(container: InputContainer, stream: VideoStream, size: tuple[int, int]) -> Iterator[VideoFrame]:
    """Yield the frames that a GIF shows, in its size and ticks: the first in each of its shortest times."""
    begun: Fraction | None = None
    slot, tick = -1, -LEAST_TICKS
    for frame in decoded(container, stream):
        time = Fraction(frame.pts or 0) * (frame.time_base or Fraction(1))
        begun = time if begun is None else begun
        own_slot = int((time - begun) * GIF_RATE + ROUNDING)
        if own_slot == slot:
            continue
        slot, tick = own_slot, max(round((time - begun) * GIF_TICKS), tick + LEAST_TICKS)
        small = frame.reformat(*size, format="rgb24", interpolation="AREA")
        small.pts, small.time_base = tick, Fraction(1, GIF_TICKS)
        yield small


def _palette(frames: Iterable[VideoFrame]) -> VideoFrame:
    graph = Graph()
    source: Any = None
    for frame in frames:
        if source is None:
            source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=TICK)
            made, sink = graph.add("palettegen"), graph.add("buffersink")
            source.link_to(made)
            made.link_to(sink)
            graph.configure()
        source.push(frame)
    if source is None:
        raise LOST
    source.push(None)
    return cast("VideoFrame", sink.pull())


def _painted(frames: Iterable[VideoFrame], palette: VideoFrame) -> Iterator[VideoFrame]:
    """Yield the frames in the colours of a palette."""
    graph, source = Graph(), None
    for frame in frames:
        if source is None:
            source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=TICK)
            colours = graph.add_buffer(
                width=palette.width, height=palette.height, format=palette.format, time_base=TICK
            )
            use, sink = graph.add("paletteuse", "diff_mode=rectangle"), graph.add("buffersink")
            source.link_to(use, 0, 0)
            colours.link_to(use, 0, 1)
            use.link_to(sink)
            graph.configure()
            colours.push(palette)
            colours.push(None)
        source.push(frame)
        yield from _ready(sink)
    if source is not None:
        source.push(None)
        yield from _ready(sink)


def _ready(sink: Any) -> Iterator[VideoFrame]:
    with suppress(av.BlockingIOError, av.EOFError):
        while True:
            yield sink.pull()
