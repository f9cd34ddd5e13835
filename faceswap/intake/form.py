"""The form of a swap: its fields, the check of each, and the request as a whole once everything was given."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yarl import URL

from ..errors import BadRequest, NotFound, TooLarge
from ..jobs import ImageFile
from ..options import MAX_IMAGES, MAX_SECONDS, Options, check_consent, check_label, check_output_name
from ..url_guard import check_url
from .files import FileSink, InputFolder, KeptFile, StoredFile

MAX_TEXT_BYTES = 64 * 1024
"""The longest text field, and the longest JSON request."""

INPUTS = ("video", "image")
"""The two inputs, in the order in which a WebSocket client sends them; `ways` tells how each can be given."""

SEVERAL = ("image_url", "image_upload")
"""The fields that may hold several values, or be given several times."""

ID_PATTERN = re.compile(r"[ -~]{1,100}")
SECONDS_PATTERN = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")

DESTINATIONS = ("webhook_url", "result_put_url")
"""The URLs to which something is sent when the job has ended."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A request that was read whole; its two files lie in the job's folder, synced, their media not yet checked.

    `digest` tells requests with the same `Idempotency-Key` apart. It covers the hashes or URLs of the inputs, the
    options and the name, and is the same for multipart, JSON and WebSocket.
    """

    video_file: str
    images: tuple[ImageFile, ...]
    video_sha256: str
    video_bytes: int
    output_name: str | None
    webhook_url: str | None
    result_put_url: str | None
    options: Options
    respond_async: bool
    id_only: bool
    digest: str
    consent: str | None
    label: str | None


@dataclass(frozen=True, slots=True)
class Look:
    """A request to look at a file, which lies at `path` meanwhile: a `kind` of input, at so many seconds of a video."""

    kind: str
    path: Path
    at: float


class Form:
    """The fields of one request, each checked as it arrives, so that a wrong one ends an upload at once."""

    checks: Mapping[str, Callable[[str, object], Any]]
    """The known fields, each with the function that turns its text or JSON value into a checked one."""

    def __init__(
        self,
        inputs: InputFolder,
        max_bytes: Mapping[str, int],
        check_options: Callable[[Options], object],
        check_destination: Callable[[str, URL], object],
        *,
        require_consent: bool = False,
    ) -> None:
        self.inputs = inputs
        self.values: dict[str, Any] = {}
        self._files: dict[str, list[StoredFile]] = {kind: [] for kind in INPUTS}
        self._opened = dict.fromkeys(INPUTS, 0)
        self._max_bytes = max_bytes
        self._check_options = check_options
        self._check_destination = check_destination
        self._require_consent = require_consent
        self._given: set[str] = set()
        self._images = 0

    def put(self, name: str, raw: object) -> None:
        """Take a field's text or JSON value. Null and the empty text of a form left blank count as not given."""
        self.check_known(name)
        if raw is None or raw == "":
            return
        if name in SEVERAL:
            for one in raw if isinstance(raw, list) else [raw]:
                self._note_image(name)
                self.values.setdefault(name, []).append(self.checks[name](name, one))
            return
        self._note_given(name)
        self.values[name] = value = self.checks[name](name, raw)
        if isinstance(value, Options):
            self._check_options(value)
        if name in DESTINATIONS:
            self._check_destination(name, value)

    def open_upload(self, kind: str) -> FileSink:
        """Open an input whose bytes are in the request. A picture may follow others, up to `MAX_IMAGES`."""
        if kind == "image":
            self._note_image(kind)
        else:
            self._note_given(kind)
        return self.open(kind)

    def open(self, kind: str) -> FileSink:
        """Open an input for writing, wherever its bytes come from."""
        number = self._opened[kind]
        self._opened[kind] += 1
        return FileSink(self.inputs, kind, self._max_bytes[kind], number)

    async def close(self, sink: FileSink) -> None:
        """Finish an input that has arrived whole."""
        self._files[sink.kind].append(await sink.finish())

    async def take(self, kind: str, kept: KeptFile) -> None:
        """Take an input that is here already. Raises `BadRequest`, `TooLarge`, and `OSError`."""
        self._files[kind].append(await self.open(kind).take(kept))

    def is_given(self, kind: str) -> bool:
        """Return whether an input was given in any way but as that of another job."""
        return bool(self._given.intersection(ways(kind)))

    def several(self, name: str) -> Sequence[Any]:
        """Return the values of a field: none, one, or several."""
        value = self.values.get(name, [])
        return value if isinstance(value, list) else [value]

    @property
    def wanted(self) -> Sequence[str]:
        """The kinds of inputs that are taken from another job."""
        raise NotImplementedError

    def chosen(self, kept: Sequence[KeptFile]) -> Sequence[KeptFile]:
        """Return those that are taken of the inputs of a kind that another job has. Raises `Problem`."""
        return kept

    def check_known(self, name: str) -> None:
        """Raise `BadRequest` where no field of a request has this name."""
        if name not in self.checks:
            allowed = ", ".join(self.checks)
            raise BadRequest(f"Unknown field {name[:40]!r}; allowed are {allowed}.", code="unknown_field")

    def check_complete(self) -> None:
        """Raise `BadRequest` unless all was given that has to be."""
        raise NotImplementedError

    def _note_image(self, name: str) -> None:
        """Note one of several pictures. Raises `BadRequest` where there are too many."""
        self._images += 1
        if self._images > MAX_IMAGES:
            raise BadRequest(f"At most {MAX_IMAGES} pictures are taken.", code="too_many_images")
        self._given.discard(name)
        self._note_given(name)

    def _note_given(self, name: str) -> None:
        if name in self._given:
            raise BadRequest(f"'{name}' was given twice.", code="duplicate_field")
        self._given.add(name)
        for kind in INPUTS:
            if len(self._given.intersection(ways(kind))) > 1:
                raise BadRequest(f"Give '{kind}' in one way only.", code=f"duplicate_{kind}")


class SwapForm(Form):
    """The form of a swap."""

    def check_complete(self) -> None:
        """Raise `BadRequest` unless both inputs were given, in whichever way, and the consent where it is required."""
        for kind in INPUTS:
            if not self.is_given(kind) and "from_job" not in self._given:
                raise BadRequest(f"Give {' or '.join(map(repr, ways(kind)))}.", code=f"missing_{kind}")
        if self._require_consent and "consent" not in self._given:
            raise BadRequest(
                "Give 'consent': a text or reference that says that the person shown has agreed.",
                code="consent_required",
            )

    @property
    def wanted(self) -> Sequence[str]:
        """The kinds of inputs that were not given."""
        return [kind for kind in INPUTS if not self.is_given(kind)]

    def digest(self) -> str:
        """Return the SHA-256 of the values and of what was sent, once all inputs are closed.

        An upload counts as a file of the request does, by its bytes; a URL by its address, another job by its id.
        """
        asked: dict[str, object] = {
            name: _one_or_all([str(url) for url in value]) if isinstance(value, list) else str(value)
            for name, value in self.values.items()
            if name not in ("return_prompt_id_only", "video_upload", "image_upload")
        }
        asked["options"] = self.values.get("options", Options()).to_dict()
        sent = [kind for kind in INPUTS if self._given.intersection((kind, f"{kind}_upload"))]
        asked |= {kind: _one_or_all([file.sha256 for file in self._files[kind]]) for kind in sent}
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def submission(self, *, respond_async: bool) -> Submission:
        """Return the request as a whole, once all inputs are closed."""
        [video], images = self._files["video"], self._files["image"]
        return Submission(
            video_file=video.name,
            images=tuple(ImageFile(image.name, image.sha256) for image in images),
            video_sha256=video.sha256,
            video_bytes=video.size,
            output_name=self.values.get("output_name"),
            webhook_url=self._address("webhook_url"),
            result_put_url=self._address("result_put_url"),
            options=self.values.get("options", Options()),
            respond_async=respond_async,
            id_only=self.values.get("return_prompt_id_only", False),
            digest=self.digest(),
            consent=self.values.get("consent"),
            label=self.values.get("label"),
        )

    def _address(self, name: str) -> str | None:
        url = self.values.get(name)
        return None if url is None else str(url)


class LookForm(Form):
    """The form of a look at one file."""

    def check_complete(self) -> None:
        """Raise `BadRequest` unless one file was given, in whichever way."""
        files = sum(map(self.is_given, INPUTS)) + ("from_job" in self._given)
        if not files:
            raise BadRequest("Give a video or a picture.", code="missing_video")
        if files > 1 or self._images > 1:
            raise BadRequest("Give one video or one picture, not several.", code="duplicate_field")

    @property
    def kind(self) -> str:
        """The kind of the file."""
        given = (kind for kind in INPUTS if self.is_given(kind))
        return next(given, None) or str(self.values.get("role", "video"))

    @property
    def wanted(self) -> Sequence[str]:
        """The kind of the file, where it is another job's."""
        return [self.kind] if "from_job" in self._given else []

    def chosen(self, kept: Sequence[KeptFile]) -> Sequence[KeptFile]:
        """Return the one with the number that was given, the first by default. Raises `NotFound`."""
        number = self.values.get("number", 0)
        if number >= len(kept):
            raise NotFound(f"That job has {len(kept)} such files.", code="no_such_image")
        return [kept[number]]

    def look(self) -> Look:
        """Return the request as a whole, once its file is closed."""
        [file] = self._files[self.kind]
        return Look(self.kind, self.inputs.path(file.name), self.values.get("at", 0.0))


def ways(kind: str) -> tuple[str, str, str]:
    """Return the fields by which an input can be given."""
    return kind, f"{kind}_url", f"{kind}_upload"


def _one_or_all(texts: list[str]) -> str | list[str]:
    """Return a list, or what is alone in it."""
    return texts[0] if len(texts) == 1 else texts


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Parse the JSON object in a request's body or a WebSocket's text. Raises `BadRequest`.

    Parsed JSON takes up to thirty times the memory of its bytes, so a long text is refused unread with `TooLarge`.
    """
    if len(text) > MAX_TEXT_BYTES:
        raise TooLarge(f"The JSON is longer than {MAX_TEXT_BYTES:,} bytes.", code="too_large")
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_float=_number)
    except (ValueError, RecursionError):
        raise BadRequest("The request is not well-formed JSON.", code="malformed_json") from None
    return as_object(value)


def as_object(value: object) -> dict[str, Any]:
    """Return a JSON value that is an object; raises `BadRequest` for any other."""
    if not isinstance(value, dict):
        raise BadRequest("The request must be a JSON object.", code="malformed_json")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise BadRequest("A name was given twice in the JSON.", code="duplicate_field")
    return value


def _number(text: str) -> int | float:
    """Return a number with a fraction or an exponent, to JSON Schema a whole one too: 5.0 is 5."""
    number = float(text)
    return int(number) if number.is_integer() else number


def _file(name: str, _raw: object) -> None:
    raise BadRequest(
        f"'{name}' is a file: send it as multipart/form-data, or give '{name}_url'.", code=f"invalid_{name}"
    )


def _id(name: str, raw: object) -> str:
    if not isinstance(raw, str) or not ID_PATTERN.fullmatch(raw):
        raise BadRequest(f"'{name}' must be an id that this service gave.", code="invalid_id")
    return raw


def _output_name(name: str, raw: object) -> str:
    if not isinstance(raw, str):
        raise BadRequest(f"'{name}' must be a text.", code="invalid_output_name")
    return check_output_name(raw)


def _consent(_name: str, raw: object) -> str:
    return check_consent(raw)


def _label(_name: str, raw: object) -> str:
    return check_label(raw)


def _flag(name: str, raw: object) -> bool:
    text = str(raw).strip().lower()
    if text in ("true", "1", "yes", "on"):
        return True
    if text in ("false", "0", "no", "off"):
        return False
    raise BadRequest(f"'{name}' must be true or false.", code="invalid_flag")


def _options(_name: str, raw: object) -> Options:
    return Options.parse(parse_object(raw) if isinstance(raw, str) else raw)


def _moment(name: str, raw: object) -> float:
    text = str(raw)
    if isinstance(raw, bool) or not SECONDS_PATTERN.fullmatch(text) or float(text) > MAX_SECONDS:
        raise BadRequest(f"'{name}' must be a number of seconds from 0 to {MAX_SECONDS:,.0f}.", code="malformed_field")
    return float(text)


def _role(name: str, raw: object) -> str:
    if raw not in INPUTS:
        raise BadRequest(f"'{name}' must be {' or '.join(INPUTS)}.", code="malformed_field")
    return str(raw)


def _image_number(name: str, raw: object) -> int:
    text = str(raw)
    if not (text.isascii() and text.isdecimal()) or len(text) > 3 or int(text) >= MAX_IMAGES:
        raise BadRequest(f"'{name}' must be a whole number below {MAX_IMAGES}.", code="malformed_field")
    return int(text)


_KEPT: Mapping[str, Callable[[str, object], Any]] = {
    "video": _file,
    "video_url": check_url,
    "video_upload": _id,
    "image": _file,
    "image_url": check_url,
    "image_upload": _id,
    "from_job": _id,
}
SwapForm.checks = {
    **_KEPT,
    "output_name": _output_name,
    "return_prompt_id_only": _flag,
    "options": _options,
    "webhook_url": check_url,
    "result_put_url": check_url,
    "consent": _consent,
    "label": _label,
}
LookForm.checks = {**_KEPT, "role": _role, "number": _image_number, "at": _moment}
