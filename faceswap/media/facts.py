"""Facts about media, and the plan of a job's segments: plain data, without a decoder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    from ..jobs import SegmentPlan

ENGINE_FORMATS = frozenset({"png", "jpeg", "webp", "gif", "bmp", "tiff"})
"""Formats of pictures that ComfyUI and the embedded engine read by themselves, upright."""


@dataclass(frozen=True, slots=True)
class AudioFacts:
    """One sound track: its codec, channels, samples a second and number of packets."""

    codec: str
    channels: int
    rate: int
    packets: int


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """The contents of a video, counted packet by packet; its header is not believed.

    width, height   pixels as displayed, after the rotation
    rotation        degrees clockwise (0, 90, 180, 270) that make the stored picture upright
    frames          frames that a full decode shows: edit lists are honoured
    frame_rate      frames a second: the nominal rate when constant, else the average
    variable        true if frames lie further than a clock tick from a constant rate
    duration        seconds from the first frame to the end of the last
    start_s         seconds at which the first frame is shown, in the file's own clock
    """

    width: int
    height: int
    rotation: int
    frames: int
    frame_rate: Fraction
    variable: bool
    duration: Fraction
    start_s: float
    codec: str
    audio: tuple[AudioFacts, ...]
    bytes: int

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Return the facts that a worker wrote with `dataclasses.asdict`, fractions as text."""
        audio = tuple(AudioFacts(**track) for track in data["audio"])
        fractions = {name: Fraction(data[name]) for name in ("frame_rate", "duration")}
        return cls(**{**data, **fractions, "audio": audio})


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """A still image that decodes.

    width, height    pixels, as displayed
    format           `png`, `jpeg`, …
    faces            their number
    flaws            of each face, what makes it serve badly as a source; see `flaws.flaws_of`
    """

    width: int
    height: int
    format: str
    faces: int
    flaws: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Return the facts that a worker wrote as JSON."""
        return cls(**{**data, "flaws": tuple(map(tuple, data["flaws"]))})


@dataclass(frozen=True, slots=True)
class ConvertedFacts:
    """A picture that was converted: bytes of the new file."""

    bytes: int


@dataclass(frozen=True, slots=True)
class FaceFacts:
    """A face in a picture.

    index       as `face_index` counts: from 0, large to small
    box         left, top, width and height in pixels, within the picture
    score       0–1, the detector's certainty
    thumbnail   a small JPEG as a `data:` URI
    """

    index: int
    box: tuple[int, int, int, int]
    score: float
    thumbnail: str


@dataclass(frozen=True, slots=True)
class ShownFrame:
    """One frame of a video: the time at which it is shown, and what the video is otherwise.

    at, duration   seconds: of the time that a player shows, and from the first frame to the end of the last
    frame_rate     frames a second, the average where they vary
    """

    at: float
    duration: float
    frame_rate: float
    frames: int


@dataclass(frozen=True, slots=True)
class FacesFacts:
    """The faces of a picture, or of one frame of a video, by their indexes; size in pixels as displayed."""

    width: int
    height: int
    faces: tuple[FaceFacts, ...]
    frame: ShownFrame | None

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Return the facts that a worker wrote as JSON."""
        faces = tuple(FaceFacts(**{**face, "box": tuple(face["box"])}) for face in data["faces"])
        frame = ShownFrame(**data["frame"]) if data["frame"] else None
        return cls(data["width"], data["height"], faces, frame)


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A small picture: a JPEG in Base64."""

    jpeg: str


@dataclass(frozen=True, slots=True)
class PieceFacts:
    """A piece cut out of a video: the number of frames before the first that was wanted, and its file's suffix."""

    lead: int
    suffix: str


@dataclass(frozen=True, slots=True)
class FrameRange:
    """A run of frames of a result: the first, counted as if nothing was left out, and their number."""

    first: int
    count: int


@dataclass(frozen=True, slots=True)
class StillFacts:
    """A picture that was made for the engine: its size in pixels."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class CuttingFacts:
    """The result of looking at a video: `cuttable` if pieces can be cut out at little cost, wherever they lie."""

    cuttable: bool


@dataclass(frozen=True, slots=True)
class JoinFacts:
    """The joined result: size and digest of the file, its frames, its length and warnings for the user."""

    bytes: int
    sha256: str
    frames: int
    duration_s: float
    warnings: tuple[str, ...]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Return the facts that a worker wrote as JSON."""
        return cls(**{**data, "warnings": tuple(data["warnings"])})


@dataclass(frozen=True, slots=True)
class MarkFacts:
    """A segment with its marks: the number of frames that were encoded for them, 0 if it had them already."""

    frames: int


@dataclass(frozen=True, slots=True)
class SigningFacts:
    """The result of a signature made to see if it can be: the problem in words, None if there is none."""

    problem: str | None


@dataclass(frozen=True, slots=True)
class Tag:
    """The metadata tag of a file: IPTC's type of its source, the software, and the id of the job that made it."""

    source_type: str
    software: str | None
    prompt_id: str | None


@dataclass(frozen=True, slots=True)
class Credentials:
    """The content credentials (C2PA) of a file.

    state         `unknown` where the package that reads them is missing
    signer        name in the certificate, which is not held against a list of trusted ones
    source_types  IPTC's types that they tell, and `ingredients` the number of files it was made of
    """

    state: Literal["none", "valid", "invalid", "unknown"]
    signer: str | None = None
    source_types: tuple[str, ...] = ()
    ingredients: int = 0


@dataclass(frozen=True, slots=True)
class Provenance:
    """The words of a file on its making; the watermark's payload is hexadecimal."""

    tag: Tag | None
    credentials: Credentials
    watermark: str | None

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Return what a worker wrote as JSON."""
        credentials = {**data["credentials"], "source_types": tuple(data["credentials"]["source_types"])}
        tag = Tag(**data["tag"]) if data["tag"] else None
        return cls(tag, Credentials(**credentials), data["watermark"])


@dataclass(frozen=True, slots=True)
class Verdict:
    """A result that passed.

    frames          how many it has
    changed_share   0–1, the share of compared frames in which a region the size of a face differs from the source; None
                    when they cannot be compared
    warnings        for the user
    """

    frames: int
    changed_share: float | None
    warnings: tuple[str, ...]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Return the verdict that a worker wrote as JSON."""
        return cls(**{**data, "warnings": tuple(data["warnings"])})


def frames_at(frames: int, duration: Fraction, frame_rate: Fraction | None) -> int:
    """Return the number of frames of a result at `frame_rate` (None: its own) of a clip with so many in `duration`."""
    if frame_rate is None:
        return frames
    return max(1, math.floor(duration * frame_rate + Fraction(1, 2)))


def output_frames(facts: VideoFacts, frame_rate: Fraction | None) -> int:
    """Return the number of frames of a job's result at `frame_rate` (None: the clip's own)."""
    return frames_at(facts.frames, facts.duration, frame_rate)


def plan_segments(total: int, segment_frames: int) -> list[SegmentPlan]:
    """Split the frames of a result into the fewest segments of at most `segment_frames` (0: one segment).

    Their lengths differ by one frame at most, so none is tiny.
    """
    from ..jobs import SegmentPlan  # not above: workers are started often, and plan nothing

    count = -(-total // segment_frames) if segment_frames else min(total, 1)
    bounds = [total * number // count for number in range(count)] + [total]
    return [SegmentPlan(i, bounds[i], bounds[i + 1] - bounds[i]) for i in range(count)]
