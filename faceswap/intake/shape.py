"""The shape of a result: whether it is a video or a picture, which kind of file, which part of the target. Pure."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Literal

from ..config import Settings
from ..errors import BadRequest, Unprocessable
from ..media import ImageFacts, VideoFacts
from ..options import PICTURE_FORMATS, VIDEO_FORMATS, Options

VIDEO_OPTIONS = ("start", "end", "at", "frame_rate")
"""Options that say something of time."""
STILL_FORMATS = {"jpeg": "jpg", "webp": "webp", "heif": "jpg", "avif": "jpg"}
"""Formats of results by those of the pictures they are made of; PNG is for all others."""
MOST_REPEATS = 100
"""The most times that each frame may be repeated on average, for a frame rate that was asked for."""
FEW_FRAMES = 10_000
"""A result of fewer frames may repeat them more often: a still that is shown for minutes is a video too."""
LEAST_SHARED = 60
"""The fewest frames of a segment made shorter for each engine to have one: some before it are done twice."""
MAX_GIF_S = 60
"""The longest GIF: it takes a hundred times the bytes of a video."""


def check_format(options: Options, media: Literal["video", "image"]) -> None:
    """Raise `BadRequest` for a `format` that a result of this kind cannot have."""
    allowed, kind = (PICTURE_FORMATS, "picture") if media == "image" else (VIDEO_FORMATS, "video")
    if options.format is not None and options.format not in allowed:
        raise BadRequest(
            f"Option 'format' is {options.format!r} and the result is a {kind}: allowed is {', '.join(allowed)}.",
            code="invalid_option",
        )


def still_options(options: Options, picture: ImageFacts) -> Options:
    """Return the options of a job whose target is a still picture, its format among them. Raises `BadRequest`."""
    for name in VIDEO_OPTIONS:
        if getattr(options, name) is not None:
            raise BadRequest(f"Option {name!r} is for videos, and a picture was sent.", code="invalid_option")
    check_format(options, "image")
    return replace(options, format=options.format or STILL_FORMATS.get(picture.format, "png"))


def result_stem(name: str, extension: str) -> str:
    """Return the name of a result without the extension that it gets, where a user has given that too."""
    for ending in (".jpg", ".jpeg") if extension == "jpg" else (f".{extension}",):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name


def segment_length(frames: int, most: int, engines: int) -> int:
    """Return the length of a segment by which several engines are done together with the `frames` of a result.

    It is `most` (0: as long as the result) or less, and no shorter than is worth a prompt of its own.
    """
    if engines < 2 or not most:
        return most
    rounds = max(1, -(-frames // (engines * most)))
    return min(most, max(LEAST_SHARED, -(-frames // (engines * rounds))))


def check_length(video: VideoFacts, frames: int, segment_frames: int, options: Options, settings: Settings) -> None:
    """Refuse too much work before any of it is done: `frames` of a result.

    A few bytes can claim any length: frames that are shown for years, to be repeated 60 times a second. Raises
    `Unprocessable` `empty_range`, `video_too_long` or `video_has_gaps`.
    """
    if not frames:
        raise Unprocessable(
            f"The video shows nothing in that time; it lasts {float(video.duration):g} seconds.", code="empty_range"
        )
    duration = min(video.duration, (Fraction(options.end) if options.end is not None else video.duration))
    duration -= Fraction(options.start or 0)
    if duration > settings.max_duration_s:
        limit = f"{settings.max_duration_s:,} seconds"
        detail = f"The video lasts {round(duration):,} seconds; at most {limit} are taken."
        raise Unprocessable(detail, code="video_too_long")
    if options.format == "gif" and duration > MAX_GIF_S:
        detail = f"A GIF may last {MAX_GIF_S} seconds, and the video lasts {round(duration):,}: give 'start' and 'end'."
        raise Unprocessable(detail, code="video_too_long")
    if frames > settings.max_frames:
        detail = f"At this frame rate the video has {frames:,} frames; at most {settings.max_frames:,} are taken."
        raise Unprocessable(detail, code="video_too_long")
    if frames > max(MOST_REPEATS * video.frames, FEW_FRAMES):
        detail = (
            f"The video has {video.frames} frames in {round(video.duration):,} seconds, and {frames:,} at the frame"
            " rate that was asked for; leave 'frame_rate' out."
        )
        raise Unprocessable(detail, code="video_has_gaps")
    segments = -(-frames // segment_frames) if segment_frames else 1
    if segments > settings.max_segments:
        detail = (
            f"The video would be done in {segments:,} parts of {segment_frames} frames; at most"
            f" {settings.max_segments:,} are taken."
        )
        raise Unprocessable(detail, code="video_too_long")
