"""The display of a command: bars on a terminal, lines in a log or a pipe."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from .tasks import Display, Task, figures

_LINE_EVERY_PERCENT = 10


@contextlib.contextmanager
def display(stream: TextIO) -> Iterator[Display]:
    """Choose the display for a stream."""
    if not stream.isatty():
        yield Lines(stream)
        return
    from .bars import Bars  # here, because a log needs no rich

    with Bars(stream) as bars:
        yield bars


class Lines:
    """The display of a log: each step is a line, and each tenth of a job."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @contextlib.contextmanager
    def task(self, name: str) -> Iterator[Task]:
        """Begin each line with the task's name, if it has one."""
        yield _LinesTask(self, f"{name}: " if name else "")

    def count(self, done: int, failed: int, total: int) -> None:
        """Say nothing: each line names its task."""

    def line(self, text: str) -> None:
        """Write the line."""
        print(text, file=self._stream, flush=True)


class _LinesTask:
    def __init__(self, lines: Lines, prefix: str) -> None:
        self._lines = lines
        self._prefix = prefix
        self._step = ""
        self._next_percentage = 0

    def begin(self, message: str) -> None:
        """Say nothing: a log tells what happened."""

    def step(self, message: str) -> None:
        if message != self._step:
            self._step = message
            self._lines.line(self._prefix + message)

    def note(self, text: str) -> None:
        self._lines.line(self._prefix + text)

    def sent(self, sent: int, total: int) -> None:
        """Say nothing: a log wants no line for each piece of a file."""

    def progress(self, data: Mapping[str, Any]) -> None:
        percentage = float(data["percentage"])
        if percentage >= self._next_percentage:
            self._next_percentage = (int(percentage) // _LINE_EVERY_PERCENT + 1) * _LINE_EVERY_PERCENT
            self._lines.line(self._prefix + figures(data))
