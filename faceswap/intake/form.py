"""The form of a swap: its fields, the check of each, and the request as a whole once everything was given."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from yarl import URL

from ..errors import BadRequest, TooLarge
from ..jobs import MAX_IMAGES, ImageFile, Options, check_consent, check_label, check_output_name
from ..url_guard import check_url
from .files import FileSink, InputFolder, StoredFile

MAX_TEXT_BYTES = 64 * 1024
"""The longest text field, and the longest JSON request."""

INPUTS = ("video", "image")
"""The two inputs, in the order in which a WebSocket client sends them; each has its `…_url` alternative."""

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


class Form:
    """The fields of one request, each checked as it arrives, so that a wrong one ends an upload at once."""

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
        check_known(name)
        if raw is None or raw == "":
            return
        if name == "image_url":
            for url in raw if isinstance(raw, list) else [raw]:
                self._note_image(name)
                self.values.setdefault(name, []).append(check_url(name, url))
            return
        self._note_given(name)
        self.values[name] = value = _CHECKS[name](name, raw)
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

    def check_complete(self) -> None:
        """Raise `BadRequest` unless both inputs were given, as file or as URL, and the consent where it is required."""
        for kind in INPUTS:
            if not self._given & {kind, f"{kind}_url"}:
                raise BadRequest(f"Give '{kind}' or '{kind}_url'.", code=f"missing_{kind}")
        if self._require_consent and "consent" not in self._given:
            raise BadRequest(
                "Give 'consent': a text or reference that says that the person shown has agreed.",
                code="consent_required",
            )

    def digest(self) -> str:
        """Return the SHA-256 of the values and the uploads; called before URLs are fetched, which count by address."""
        asked: dict[str, object] = {
            name: _one_or_all([str(url) for url in value]) if isinstance(value, list) else str(value)
            for name, value in self.values.items()
            if name != "return_prompt_id_only"
        }
        asked["options"] = self.values.get("options", Options()).to_dict()
        asked |= {kind: _one_or_all([file.sha256 for file in files]) for kind, files in self._files.items() if files}
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def submission(self, digest: str, *, respond_async: bool) -> Submission:
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
            digest=digest,
            consent=self.values.get("consent"),
            label=self.values.get("label"),
        )

    def _address(self, name: str) -> str | None:
        url = self.values.get(name)
        return None if url is None else str(url)

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
            if self._given >= {kind, f"{kind}_url"}:
                raise BadRequest(f"Give either '{kind}' or '{kind}_url', not both.", code=f"duplicate_{kind}")


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
        value = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise BadRequest("The request is not well-formed JSON.", code="malformed_json") from None
    return as_object(value)


def as_object(value: object) -> dict[str, Any]:
    """Return a JSON value that is an object; raises `BadRequest` for any other."""
    if not isinstance(value, dict):
        raise BadRequest("The request must be a JSON object.", code="malformed_json")
    return value


def check_known(name: str) -> None:
    """Raise `BadRequest` where no field of a request has this name."""
    if name not in _CHECKS:
        raise BadRequest(f"Unknown field {name[:40]!r}; allowed are {', '.join(_CHECKS)}.", code="unknown_field")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise BadRequest("A name was given twice in the JSON.", code="duplicate_field")
    return value


def _file(name: str, _raw: object) -> None:
    raise BadRequest(
        f"'{name}' is a file: send it as multipart/form-data, or give '{name}_url'.", code=f"invalid_{name}"
    )


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


_CHECKS: Mapping[str, Callable[[str, object], Any]] = {
    "video": _file,
    "video_url": check_url,
    "image": _file,
    "image_url": check_url,
    "output_name": _output_name,
    "return_prompt_id_only": _flag,
    "options": _options,
    "webhook_url": check_url,
    "result_put_url": check_url,
    "consent": _consent,
    "label": _label,
}
"""The known fields, each with the function that turns its text or JSON value into a checked one."""
