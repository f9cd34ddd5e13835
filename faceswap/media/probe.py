"""Probing of videos and images, whatever their headers say. It runs in a worker process: the bytes may be hostile."""

from __future__ import annotations

import contextlib
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ..errors import Unprocessable, UnsupportedMedia
from ..limits import DECODER_OPTIONS, MAX_SIDE, MAX_TRACKS, too_large
from .facts import AudioFacts, ImageFacts, VideoFacts
from .timeline import FrameCounter, open_media, packets, picture_stream

FIRST_FRAME_PACKETS = 300

NOT_A_VIDEO = UnsupportedMedia("The file is not a video that can be read.", code="not_a_video")
TRUNCATED = Unprocessable("The video is cut off: a part of the file is missing.", code="video_truncated")
NO_FRAMES = Unprocessable("The video has no frame that can be shown.", code="video_without_frames")
TOO_MANY_TRACKS = Unprocessable(
    f"The video has more than {MAX_TRACKS} tracks, or its headers ask for too much memory.",
    code="video_too_many_tracks",
)
DAMAGED = Unprocessable("The video is damaged: its first frame cannot be decoded.", code="video_damaged")


def probe_video(path: Path, max_frames: int) -> VideoFacts:
    """Read every packet of the video at `path`, up to `max_frames` frames, and decode its first frame.

    Raises UnsupportedMedia (`not_a_video`) or Unprocessable (`video_without_frames`, `video_truncated`,
    `video_damaged`, `video_too_large`, `video_too_long`, `video_too_many_tracks`).
    """
    try:
        container = open_media(path)
    except MemoryError as error:
        raise TOO_MANY_TRACKS from error
    except (av.FFmpegError, ValueError) as error:
        raise (TRUNCATED if _looks_like_mp4(path) else NOT_A_VIDEO) from error
    with container:
        if len(container.streams) > MAX_TRACKS:
            raise TOO_MANY_TRACKS
        stream = picture_stream(container)
        if stream is None:
            raise NOT_A_VIDEO
        _check_size(stream)
        stream.codec_context.options = DECODER_OPTIONS
        return _read(path, container, stream, max_frames)


def _read(path: Path, container: InputContainer, stream: VideoStream, max_frames: int) -> VideoFacts:
    counter = FrameCounter(stream)
    sounds = {s.index: 0 for s in container.streams.audio}
    picture: VideoFrame | None = None
    waiting = 0
    try:
        for packet in packets(container, "video", "audio"):
            if packet.stream_index in sounds:
                sounds[packet.stream_index] += 1
            elif packet.stream_index == stream.index:
                counter.add(packet)
                if picture is None and waiting < FIRST_FRAME_PACKETS:
                    waiting += 1
                    picture = _decode(packet)
                if counter.count > max_frames:
                    detail = f"The video has more than {max_frames:,} frames, the most that are taken."
                    raise Unprocessable(detail, code="video_too_long")
    except av.FFmpegError as error:
        raise TRUNCATED from error
    if reaches_past_the_end(container, path):
        raise TRUNCATED
    picture = picture or _decode_rest(stream)
    if counter.count == 0:
        raise NO_FRAMES
    if container.format.name == "gif" and counter.count == 1:
        raise NOT_A_VIDEO
    if picture is None:
        raise DAMAGED
    return _facts(path, stream, counter, picture, sounds)


def _facts(
    path: Path, stream: VideoStream, counter: FrameCounter, picture: VideoFrame, sounds: dict[int, int]
) -> VideoFacts:
    timeline = counter.timeline()
    rate, variable = timeline.rate()
    rotation = clockwise(picture)
    size = (picture.height, picture.width) if rotation in (90, 270) else (picture.width, picture.height)
    return VideoFacts(
        width=size[0],
        height=size[1],
        rotation=rotation,
        frames=counter.count,
        frame_rate=rate,
        variable=variable,
        duration=timeline.duration,
        start_s=float(int(timeline.times[0]) * timeline.time_base),
        codec=stream.codec_context.codec.canonical_name,
        audio=tuple(_sound(s, sounds[s.index]) for s in stream.container.streams.audio),
        bytes=path.stat().st_size,
    )


def _sound(stream: AudioStream, count: int) -> AudioFacts:
    context = stream.codec_context
    if context is None:
        return AudioFacts("unknown", 0, 0, count)
    return AudioFacts(context.codec.canonical_name, context.channels, context.sample_rate, count)


def clockwise(picture: VideoFrame) -> int:
    """Return the degrees clockwise (0, 90, 180, 270) that make the decoded picture upright."""
    return round(-picture.rotation / 90) % 4 * 90


def _check_size(stream: VideoStream) -> None:
    width, height = stream.codec_context.width, stream.codec_context.height
    if too_large(width, height):
        detail = f"The video is {width}×{height}; at most {MAX_SIDE} pixels a side are taken."
        raise Unprocessable(detail, code="video_too_large")


def _decode(packet: av.Packet[VideoStream]) -> VideoFrame | None:
    """Return the first picture that comes out of a packet; one that does not decode is skipped."""
    with contextlib.suppress(av.FFmpegError):
        return next(iter(packet.decode()), None)
    return None


def _decode_rest(stream: VideoStream) -> VideoFrame | None:
    """Return the first picture that a decoder still holds back at the end of the stream."""
    with contextlib.suppress(av.FFmpegError):
        return next(iter(stream.decode(None)), None)
    return None


def _looks_like_mp4(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(12)[4:8] == b"ftyp"


def reaches_past_the_end(container: InputContainer, path: Path) -> bool:
    """Return true if a file with an index (mp4, mov) names samples of any stream beyond its own end."""
    if "mp4" not in container.format.name.split(","):
        return False
    size = path.stat().st_size
    return any(e.pos + e.size > size for s in container.streams for e in s.index_entries)


def probe_image(path: Path) -> ImageFacts:
    """Decode the image at `path`, count its faces and look for flaws of theirs.

    Raises UnsupportedMedia (`not_an_image`) or Unprocessable (`image_too_large`).
    """
    # Loaded here: OpenCV and the detector take longer to load than a video to probe.
    from ..engine.landmarks import find_faces
    from .flaws import flaws_of
    from .stills import read_still

    found, bgr = read_still(path)
    height, width = bgr.shape[:2]
    faces = find_faces(bgr)
    return ImageFacts(width, height, found, len(faces), tuple(tuple(flaws_of(bgr, face)) for face in faces))


def probe_target(path: Path, max_frames: int) -> VideoFacts | ImageFacts:
    """Probe the still picture or the video at `path`. Raises as `probe_image` and `probe_video` do."""
    from .stills import is_still

    return probe_image(path) if is_still(path) else probe_video(path, max_frames)
