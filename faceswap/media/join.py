"""Joining of segment results into one video without encoding again. It runs in a worker process."""

from __future__ import annotations

import hashlib
import heapq
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias, cast

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from .. import durable
from ..errors import JobFailure
from .facts import JoinFacts, frames_at
from .paths import partial_path, unsigned_path
from .sound import DecodedTrack, SoundEncoder, Span, add_aac_track, decode_tracks
from .tag import write_tag
from .timeline import (
    Timeline,
    open_media,
    open_picture,
    picture_packets,
    picture_stream,
    read_source,
    read_timeline,
)

MP4_SOUND = {"aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"}
"""Sound that is copied as it is; any other that decodes is encoded to AAC."""

SELF_CONTAINED = {"vp9", "av1"}
"""Codecs that repeat their parameters at each key frame: segments may differ in their headers."""

MP4_PICTURES = {"h264", "hevc", "av1", "vp9", "mpeg4", "ffv1"}
"""Pictures that are copied as they are: FFmpeg writes all of these into mp4, and can read them back."""

CLOCK_HZ = 90_000
INTERLEAVE_US = 200_000

SOUND_MISSING = JobFailure(
    "sound_missing", "The result does not have all of the video's sound in time.", transient=True
)

Timed: TypeAlias = "tuple[float, av.Packet[Any]]"
"""A time in seconds, and the packet to write then."""


def join(
    segments: Sequence[Path],
    source: Path,
    out: Path,
    frame_rate: Fraction | None,
    prompt_id: str,
    signing: tuple[Path, Path] | None = None,
    first_frame: int = 0,
    start: float | None = None,
    end: float | None = None,
) -> JoinFacts:
    """Write the frames of `segments`, in order, and the sound of `source` to `out`, an mp4.

    The frames are those of the source at `frame_rate` from `first_frame` on, which it shows from `start` to `end`
    (seconds; None: its own). With `frame_rate` None each is shown when its frame of the source is; otherwise the rate
    is constant. The offset between sound and picture is the source's; where frames of the source are left out, its
    sound is left out too. The file says that job `prompt_id` made it, and is signed with the certificate and key in
    `signing`. `out` appears complete or not at all.
    Raises JobFailure (`disk_full`, `output_damaged`, `segments_differ`, `sound_missing`,
    `input_damaged`, `not_signed`).
    """
    partial, unsigned = partial_path(out), unsigned_path(out)
    try:
        with disk_full_fails_the_job():
            runs = [_read_segment(path) for path in segments]
            in_band = _headers_differ(runs)
            timeline = read_source(source)
            frames = range(first_frame, first_frame + sum(len(run.ranks) for run in runs))
            begins, ends = timeline.bounds(frames, frame_rate, start, end)
            span = _span_of_sound(timeline, frame_rate, begins, ends)
            decoded_tracks = decode_tracks(source, span)
            with open_media(source) as sounds, _open_output(partial) as output:
                origin = Fraction(sounds.start_time or 0, av.time_base) if span.start is None else span.start
                clock = _Clock.of(timeline, frame_rate, frames, (begins, ends), origin)
                pictures = _pictures(runs, clock, in_band, output)
                sound = _sound_tracks(sounds, decoded_tracks, output)
                heard = _sound(sounds, sound, span, origin)
                for _, packet in heapq.merge(pictures, heard, key=lambda timed: timed[0]):
                    output.mux(packet)
            write_tag(partial, prompt_id)
            if signing is not None:
                partial.replace(unsigned)
                _sign(unsigned, partial, source, prompt_id, signing)
                unsigned.unlink()
            facts = _sync_and_check(partial, begins, timeline, clock, sound)
            durable.rename(partial, out)
            return facts
    except av.FFmpegError as error:
        message = "The result cannot be joined: a segment of it is damaged."
        raise JobFailure("output_damaged", message, transient=True) from error
    finally:
        partial.unlink(missing_ok=True)
        unsigned.unlink(missing_ok=True)


def _span_of_sound(timeline: Timeline, frame_rate: Fraction | None, begins: Fraction, ends: Fraction) -> Span:
    """Return the span of the sound for the frames between two times, open where these are the source's own."""
    count = frames_at(len(timeline.times), timeline.duration, frame_rate)
    return Span(
        begins if begins > timeline.start else None, ends if ends < timeline.time_of(count, frame_rate) else None
    )


def _sign(unsigned: Path, signed: Path, source: Path, prompt_id: str, signing: tuple[Path, Path]) -> None:
    from .credentials import sign  # here, because a service without a certificate needs none of it

    sign(unsigned, signed, source, prompt_id, *signing)


@contextmanager
def disk_full_fails_the_job() -> Iterator[None]:
    """Turn the error of a full disk, met by Python or by FFmpeg, into a JobFailure (`disk_full`)."""
    try:
        yield
    except (OSError, av.FFmpegError) as error:
        if error.errno not in durable.DISK_FULL:
            raise
        raise JobFailure("disk_full", "The disk is full: free some space.", transient=True) from error


def check_joinable(stream: VideoStream) -> None:
    """Raise JobFailure (`format_not_joinable`) for a picture that the result, an mp4, cannot hold."""
    codec = stream.codec_context.codec.canonical_name
    if codec not in MP4_PICTURES:
        raise JobFailure(
            "format_not_joinable",
            f"ComfyUI's result is {codec}, which cannot be joined into an mp4; choose the format video/h264-mp4,"
            " video/h265-mp4, video/webm or video/av1-webm in the workflow's VHS_VideoCombine.",
        )


def _open_output(path: Path) -> OutputContainer:
    # Packets come in order; without the bound the muxer would keep ten seconds of them where a track pauses.
    options = {"movflags": "+faststart", "max_interleave_delta": str(INTERLEAVE_US)}
    return av.open(f"file:{path}", "w", format="mp4", options=options)


@dataclass(frozen=True, slots=True)
class _Segment:
    """One segment: for each packet, as stored, the rank in which its frame is shown."""

    path: Path
    ranks: NDArray[np.int64]
    codec: str
    size: tuple[int, int]
    header: bytes

    @property
    def delay(self) -> int:
        """The number of frames by which decoding runs ahead of showing."""
        return int(np.max(np.arange(len(self.ranks)) - self.ranks, initial=0))


def _read_segment(path: Path) -> _Segment:
    with open_media(path) as container:
        stream = picture_stream(container)
        if stream is None:
            raise JobFailure("output_damaged", "A segment of the result holds no video.", transient=True)
        times = [packet.pts for packet in picture_packets(container, stream)]
        if not times or None in times:
            raise JobFailure("output_damaged", "A segment of the result holds no timed frame.", transient=True)
        context = stream.codec_context
        ranks = np.argsort(np.argsort(np.array(times, np.int64), kind="stable"))
        size = context.width, context.height
        return _Segment(path, ranks, context.codec.canonical_name, size, bytes(context.extradata or b""))


def _headers_differ(runs: Sequence[_Segment]) -> bool:
    """Return true if H.264 parameters have to be repeated in the stream.

    Raises JobFailure (`segments_differ`) if the segments cannot follow one another at all.
    """
    first = runs[0]
    if any((run.codec, run.size) != (first.codec, first.size) for run in runs):
        message = "The segments of the result differ in size or codec; give all engines the same workflow."
        raise JobFailure("segments_differ", message)
    if first.codec in SELF_CONTAINED or all(run.header == first.header for run in runs):
        return False
    if first.codec != "h264" or any(run.header[4:5] != first.header[4:5] for run in runs):
        message = "The segments of the result were encoded with settings that cannot follow one another."
        raise JobFailure("segments_differ", message)
    return True


@dataclass(frozen=True, slots=True)
class _Clock:
    """The times and durations of the result's frames, in ticks of `time_base` from the origin."""

    time_base: Fraction
    times: NDArray[np.int64]
    durations: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        source: Timeline,
        frame_rate: Fraction | None,
        frames: range,
        bounds: tuple[Fraction, Fraction],
        origin: Fraction,
    ) -> _Clock:
        """Return the source's own times of some frames within `bounds`, or a constant rate from where they begin."""
        start = bounds[0] - origin
        rate, count = frame_rate or source.rate()[0], len(frames)
        if frame_rate is None and frames.stop <= len(source.times):
            base = source.time_base
            begins, ends = (round(bound / base) for bound in bounds)
            times = np.maximum(source.times[frames.start : frames.stop] - begins, 0)
            times = np.maximum.accumulate(times - np.arange(count)) + np.arange(count)
            last = max(ends - begins - int(times[-1]), 1)
        else:
            scale = -(-CLOCK_HZ // rate.numerator)
            base, step = Fraction(1, rate.numerator * scale), rate.denominator * scale
            times, last = np.arange(count, dtype=np.int64) * step, step
        return cls(base, times + round(start / base), np.diff(times, append=times[-1] + last))

    def decoding(self, delay: int) -> NDArray[np.int64]:
        """Return when each packet, as stored, is decoded: `delay` frames before the frame of that rank is shown."""
        lead = np.arange(-delay, 0) * max(int(self.durations[0]), 1) + self.times[0]
        return np.concatenate([lead, self.times])


def _pictures(runs: Sequence[_Segment], clock: _Clock, in_band: bool, output: OutputContainer) -> Iterator[Timed]:
    """Yield the packets of all segments on the result's clock."""
    with open_picture(runs[0].path) as (_, template):
        target = output.add_stream_from_template(template, opaque=True)
    target.set_display_rotation(0)
    target.time_base = clock.time_base
    if in_band:
        target.codec_context.codec_tag = "avc3"
    return _retimed(runs, clock, in_band, target)


def _retimed(runs: Sequence[_Segment], clock: _Clock, in_band: bool, target: VideoStream) -> Iterator[Timed]:
    decoding = clock.decoding(max(run.delay for run in runs))
    shown = stored = 0
    for run in runs:
        prefix = _parameter_sets(run.header) if in_band else b""
        with open_picture(run.path) as (container, stream):
            for packet, rank in zip(picture_packets(container, stream), run.ranks, strict=True):
                if prefix and packet.is_keyframe:
                    packet = _prefixed(prefix, packet)
                packet.stream, packet.time_base = target, clock.time_base
                packet.pts, packet.dts = int(clock.times[shown + rank]), int(decoding[stored])
                packet.duration = int(clock.durations[shown + rank])
                stored += 1
                yield float(packet.dts * clock.time_base), packet
        shown += len(run.ranks)


def _prefixed(prefix: bytes, packet: av.Packet[VideoStream]) -> av.Packet[VideoStream]:
    longer = cast("av.Packet[VideoStream]", av.Packet(prefix + bytes(packet)))
    longer.is_keyframe = True
    return longer


def _parameter_sets(header: bytes) -> bytes:
    """Return the SPS and PPS of an `avcC` record (ISO/IEC 14496-15, 5.3.3.1) as they stand in the stream."""
    length_size = (int.from_bytes(header[4:5]) & 3) + 1
    position, found = 5, b""
    for mask in (0x1F, 0xFF):
        count, position = int.from_bytes(header[position : position + 1]) & mask, position + 1
        for _ in range(count):
            size = int.from_bytes(header[position : position + 2])
            found += size.to_bytes(length_size) + header[position + 2 : position + 2 + size]
            position += 2 + size
    return found


@dataclass(frozen=True, slots=True)
class _Sound:
    """The sound that goes into the result, with the facts of each of its tracks in the source, in order."""

    copied: dict[int, AudioStream]
    encoded: dict[int, SoundEncoder]
    decoded_tracks: list[DecodedTrack]
    warnings: list[str]


def _sound_tracks(source: InputContainer, decoded_tracks: dict[int, DecodedTrack], output: OutputContainer) -> _Sound:
    """Add a track to `output` for each sound track of `source` that holds sound, by its index there.

    Sound is copied where an mp4 can hold it and all of it decodes.
    """
    sound = _Sound({}, {}, [], [])
    for number, stream in enumerate(source.streams.audio, start=1):
        decoded_track = decoded_tracks[stream.index]
        if not decoded_track.packets:
            continue
        if not decoded_track.seconds:
            sound.warnings.append(f"Sound track {number} of the video cannot be decoded and was left out.")
            continue
        codec = stream.codec_context.codec.canonical_name
        if codec in MP4_SOUND and not decoded_track.damaged:
            track = sound.copied[stream.index] = output.add_stream_from_template(stream, opaque=True)
        else:
            track = add_aac_track(stream, output)
            sound.encoded[stream.index] = SoundEncoder(stream, track)
            why = f"({codec}) does not fit into mp4 and was"
            if decoded_track.damaged:
                why = "of the video is damaged; what can be decoded of it was"
            sound.warnings.append(f"Sound track {number} {why} encoded to AAC.")
        if "language" in stream.metadata:
            track.metadata["language"] = stream.metadata["language"]
        sound.decoded_tracks.append(decoded_track)
    return sound


def _sound(source: InputContainer, sound: _Sound, span: Span, origin: Fraction) -> Iterator[Timed]:
    """Yield the sound of the source within a span, its times counted from `origin` (seconds in the source's clock)."""
    latest = dict.fromkeys(sound.copied, -(1 << 62))
    for packet in span.packets(source):
        index = packet.stream_index
        if encoder := sound.encoded.get(index):
            yield from _timed(encoder.encode(packet, origin))
        elif index in sound.copied and packet.pts is not None:
            packet.pts -= round(origin / packet.time_base)
            packet.pts = packet.dts = latest[index] = max(packet.pts, latest[index] + 1)
            packet.stream = sound.copied[index]
            yield float(packet.pts * packet.time_base), packet
    for encoder in sound.encoded.values():
        yield from _timed(encoder.encode(None, origin))


def _timed(encoded: Iterator[av.Packet[Any]]) -> Iterator[Timed]:
    return ((float((packet.dts or 0) * packet.time_base), packet) for packet in encoded)


def _sync_and_check(path: Path, start: Fraction, source: Timeline, clock: _Clock, sound: _Sound) -> JoinFacts:
    """Make the file durable and read it back: all frames there, all sound, and its digest.

    `start` is when its first frame is shown in the source.
    """
    timeline = read_timeline(path)
    if len(timeline.times) != len(clock.times):
        raise JobFailure("output_damaged", "The joined result lost frames.", transient=True)
    shift_s = float(timeline.start - start)
    _check_sound(list(decode_tracks(path).values()), sound.decoded_tracks, shift_s, 1 / float(source.rate()[0]))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
    return JoinFacts(size, digest, len(clock.times), float(timeline.duration), tuple(sound.warnings))


def _check_sound(found: list[DecodedTrack], wanted: list[DecodedTrack], shift_s: float, frame_s: float) -> None:
    """Raise JobFailure (`sound_missing`) unless each track has the seconds it has in the source, at the same time.

    Times are compared from the first frame on, which is shown `shift_s` later than in the source, within a frame of the
    picture (`frame_s`) or, where that is longer, of the sound.
    """
    if len(found) != len(wanted):
        raise SOUND_MISSING
    for ours, theirs in zip(found, wanted, strict=True):
        tolerance_s = max(frame_s, ours.frame_s, theirs.frame_s)
        late_s = (ours.start or 0.0) - (theirs.start or 0.0) - shift_s
        missing_s = max(theirs.seconds - ours.seconds, (theirs.end or 0.0) - (ours.end or 0.0) + shift_s)
        if ours.damaged or abs(late_s) > tolerance_s or missing_s > tolerance_s:
            raise SOUND_MISSING
