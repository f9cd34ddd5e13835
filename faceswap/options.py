"""The choices that a user has about a job, and the checks of them. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from typing import Any

from .errors import BadRequest

NAME_PATTERN = re.compile(r"[A-Za-z0-9_ -][A-Za-z0-9._ -]{0,99}")
CONSENT_LIMIT = 1000
"""The most characters of a consent."""
LABEL_LIMIT = 100
"""The most characters of a label."""
MAX_MAPPED_FACES = 16
"""The most faces of a video that may be named."""
MAX_IMAGES = 8
"""The most pictures of faces that a job may have."""
NETWORK_OPTIONS = ("swap_model", "face_restore_model", "face_restore_visibility", "face_boost")
"""Options that mean something to the embedded engine only where it has a network for them."""
MAX_SECONDS = 1e6
"""The latest moment of a video that may be named, in seconds."""
VIDEO_FORMATS = ("mp4", "webm", "gif")
PICTURE_FORMATS = ("png", "jpg", "webp")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters, and halves of surrogate pairs, which no database can store."""
FACE_INDEX_PATTERN = re.compile(r"[0-9]{1,2}(,[0-9]{1,2}){0,15}")


@dataclass(frozen=True, slots=True)
class FaceMapping:
    """A face of the video and the face that takes its place: one of a picture, each counted from 0."""

    face: int
    image: int = 0
    source_face: int = 0


@dataclass(frozen=True, slots=True)
class Options:
    """The choices a user has about a swap. `None` leaves the workflow's own value.

    `start`, `end` and `at` are seconds of the video: only that part of it, or only that frame, as a picture.
    """

    face_index: str | None = None
    source_face_index: str | None = None
    swap_model: str | None = None
    face_restore_model: str | None = None
    face_restore_visibility: float | None = None
    face_boost: bool | None = None
    detect_gender: str | None = None
    frame_rate: float | None = None
    crf: int = 20
    workflow: str | None = None
    priority: int = 0
    start: float | None = None
    end: float | None = None
    at: float | None = None
    format: str | None = None
    mapping: tuple[FaceMapping, ...] | None = None
    one_person: bool | None = None

    @classmethod
    def parse(cls, raw: object) -> Options:
        """Check the JSON value of a request's `options`; raises `BadRequest` naming what is wrong and allowed."""
        if raw is None:
            return cls()
        if not isinstance(raw, Mapping):
            raise BadRequest("'options' must be a JSON object.", code="invalid_option")
        allowed = [option.name for option in fields(cls)]
        for name in raw:
            if name not in allowed:
                raise BadRequest(
                    f"Unknown option {str(name)[:40]!r}; allowed are {', '.join(allowed)}.",
                    code="unknown_option",
                )
        options = cls(**{name: _OPTION_CHECKS[name](name, value) for name, value in raw.items() if value is not None})
        options._check_together()
        return options

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Options:
        """Return the options that `to_dict` gave."""
        mapping = values.get("mapping")
        pairs = None if mapping is None else tuple(FaceMapping(**pair) for pair in mapping)
        return cls(**{**values, "mapping": pairs})

    def _check_together(self) -> None:
        """Raise `BadRequest` for options that contradict each other."""
        if self.at is not None and (self.start is not None or self.end is not None):
            raise BadRequest("Option 'at' is one frame: leave 'start' and 'end' out.", code="invalid_option")
        if self.end is not None and self.end <= (self.start or 0):
            raise BadRequest("Option 'end' must be later than 'start'.", code="invalid_option")
        if self.mapping is not None and (self.face_index is not None or self.source_face_index is not None):
            raise BadRequest(
                "Option 'mapping' takes the place of 'face_index' and 'source_face_index': leave them out.",
                code="invalid_option",
            )
        if (
            self.mapping is not None
            and self.one_person
            and any(pair.image or pair.source_face for pair in self.mapping)
        ):
            raise BadRequest(
                "With 'one_person' all pictures show one face: leave 'image' and 'source_face' out of 'mapping'.",
                code="invalid_option",
            )

    @property
    def least_images(self) -> int:
        """The number of pictures that the mapping needs."""
        return 1 + max((pair.image for pair in self.mapping or ()), default=0)

    @property
    def rate(self) -> Fraction | None:
        """The frame rate that was chosen, exactly."""
        return None if self.frame_rate is None else Fraction(self.frame_rate).limit_denominator(1001)

    def embedded_warnings(self, unused: Collection[str] = NETWORK_OPTIONS) -> tuple[str, ...]:
        """Return a sentence that names what was chosen although the embedded engine has no network for it."""
        chosen = [name for name in NETWORK_OPTIONS if getattr(self, name) not in (None, False, "none")]
        ignored = ", ".join(name for name in chosen if name in unused)
        return (f"The embedded engine has no use for {ignored}: it has no network for that.",) if ignored else ()

    def to_dict(self) -> dict[str, Any]:
        """Return the options that were chosen, as JSON values."""
        values = {option.name: getattr(self, option.name) for option in fields(self)}
        if self.mapping is not None:
            values["mapping"] = [asdict(pair) for pair in self.mapping]
        return {name: value for name, value in values.items() if value is not None}


def _refuse(name: str, value: object, allowed: str) -> BadRequest:
    return BadRequest(f"Option {name!r} is {str(value)[:40]!r}; allowed is {allowed}.", code="invalid_option")


def _face_index(name: str, value: object) -> str:
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    text = text.replace(" ", "")
    if not FACE_INDEX_PATTERN.fullmatch(text):
        raise _refuse(name, value, "a face number from 0, or several with commas")
    return text


def _name(name: str, value: object) -> str:
    if not isinstance(value, str) or not NAME_PATTERN.fullmatch(value):
        raise _refuse(name, value, "a name of 1-100 letters, digits, '.', '_', '-' and space")
    return value


def _number(low: float, high: float, *, whole: bool = False) -> Any:
    def check(name: str, value: object) -> float | int:
        kinds = (int,) if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
            raise _refuse(name, value, f"{'a whole number' if whole else 'a number'} from {low:g} to {high:g}")
        return value

    return check


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _refuse(name, value, "true or false")
    return value


def _gender(name: str, value: object) -> str:
    if value not in ("no", "female", "male"):
        raise _refuse(name, value, "'no', 'female' or 'male'")
    return str(value)


def _format(name: str, value: object) -> str:
    if value not in VIDEO_FORMATS + PICTURE_FORMATS:
        raise _refuse(
            name, value, f"one of {', '.join(VIDEO_FORMATS)} for videos, {', '.join(PICTURE_FORMATS)} for pictures"
        )
    return str(value)


def _mapping(name: str, value: object) -> tuple[FaceMapping, ...]:
    allowed = "a list of objects such as {'face': 1, 'image': 0, 'source_face': 0}, each face once"
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MAPPED_FACES:
        raise _refuse(name, value, allowed)
    limits = {"face": 99, "image": MAX_IMAGES - 1, "source_face": 99}
    pairs = []
    for pair in value:
        if not isinstance(pair, Mapping) or "face" not in pair or not pair.keys() <= limits.keys():
            raise _refuse(name, pair, allowed)
        pairs.append(FaceMapping(**{key: _number(0, limits[key], whole=True)(key, pair[key]) for key in pair}))
    if len({pair.face for pair in pairs}) < len(pairs):
        raise _refuse(name, value, allowed)
    return tuple(pairs)


_OPTION_CHECKS: Mapping[str, Any] = {
    "face_index": _face_index,
    "source_face_index": _face_index,
    "swap_model": _name,
    "face_restore_model": _name,
    "face_restore_visibility": _number(0.1, 1),
    "face_boost": _flag,
    "detect_gender": _gender,
    "frame_rate": _number(1, 60),
    "crf": _number(0, 51, whole=True),
    "workflow": _name,
    "priority": _number(-10, 10, whole=True),
    "start": _number(0, MAX_SECONDS),
    "end": _number(0, MAX_SECONDS),
    "at": _number(0, MAX_SECONDS),
    "format": _format,
    "mapping": _mapping,
    "one_person": _flag,
}


def check_output_name(name: str) -> str:
    """Return the name a user wants for the result, without extension; raises `BadRequest`."""
    if not NAME_PATTERN.fullmatch(name):
        raise BadRequest(
            "'output_name' must be 1-100 of A-Z a-z 0-9 . _ - and space, and not start with a dot.",
            code="invalid_output_name",
        )
    return name


def check_consent(text: object) -> str:
    """Return the text or reference that a user gives as consent; raises `BadRequest`."""
    if not isinstance(text, str) or len(text) > CONSENT_LIMIT or not text.strip() or _CONTROL.search(text):
        raise BadRequest(
            f"'consent' must be one line of text, of at most {CONSENT_LIMIT} characters.", code="invalid_consent"
        )
    return text.strip()


def check_label(text: object) -> str:
    """Return the words that a user wants to find a job by; raises `BadRequest`."""
    if not isinstance(text, str) or len(text) > LABEL_LIMIT or not text.strip() or _CONTROL.search(text):
        raise BadRequest(
            f"'label' must be one line of text, of at most {LABEL_LIMIT} characters.", code="invalid_label"
        )
    return text.strip()
