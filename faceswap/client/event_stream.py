"""The event stream of a job: from the bytes of a `text/event-stream` to events."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..events import TERMINAL_EVENTS
from .errors import FaceSwapError

MAX_EVENT_CHARS = 1 << 20
"""The longest event; this service sends none that is longer."""

_LINE_END = re.compile(r"\r\n|\n|\r")


@dataclass(frozen=True, slots=True)
class JobEvent:
    """An event of a job. `id` is the value for `last_event_id` after it."""

    id: str
    type: str
    data: Mapping[str, Any]

    @property
    def terminal(self) -> bool:
        """True of an event that ended the job."""
        return self.type in TERMINAL_EVENTS


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event of a `text/event-stream`, its data not yet parsed."""

    id: str
    type: str
    data: str


class EventStreamParser:
    """A parser of `text/event-stream` (WHATWG HTML, 9.2.6 "Interpreting an event stream").

    Chunks may end anywhere, in the middle of a line end or of a character too. An event that the end of the stream
    cuts short is never dispatched. Raises `FaceSwapError` for an event longer than `MAX_EVENT_CHARS`.
    """

    def __init__(self) -> None:
        self.last_event_id = ""
        self.retry_ms: int | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
        self._rest = ""
        self._after_cr = False
        self._type = ""
        self._data: list[str] = []
        self._chars = 0

    def feed(self, chunk: bytes) -> Iterator[ServerSentEvent]:
        """Yield the events that this chunk completes."""
        text = self._decoder.decode(chunk)
        if not text:
            return
        if self._after_cr:
            text = text.removeprefix("\n")
        self._after_cr = text.endswith("\r")
        *lines, self._rest = _LINE_END.split(self._rest + text)
        for line in lines:
            if line:
                self._field(line)
            elif (event := self._dispatch()) is not None:
                yield event
        if self._chars + len(self._rest) > MAX_EVENT_CHARS:
            raise FaceSwapError(0, "bad_stream", "The server sent an event that is too long.")

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "data":
                self._data.append(value)
                self._chars += len(value)
            case "event":
                self._type = value
            case "id" if "\0" not in value:
                self.last_event_id = value
            case "retry" if value.isascii() and value.isdigit():
                self.retry_ms = int(value)

    def _dispatch(self) -> ServerSentEvent | None:
        data, type = "\n".join(self._data), self._type or "message"
        event = ServerSentEvent(self.last_event_id, type, data) if self._data else None
        self._type, self._data, self._chars = "", [], 0
        return event
