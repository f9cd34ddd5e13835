"""Bars on a terminal: one for each job under way, and one for all where there are several."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from .tasks import Task, figures, upload_figures

NAME_CHARS = 24
BAR_CHARS = 24


class Bars:
    """The display of a terminal, drawn again in place; it is gone when the work is done."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, max_width=NAME_CHARS)),
            BarColumn(BAR_CHARS),
            TextColumn("{task.fields[figures]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=self._console,
            transient=True,
        )
        self._all: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    @contextlib.contextmanager
    def task(self, name: str) -> Iterator[Task]:
        """Show a bar for the task."""
        bar = self._progress.add_task(name, total=None, figures="")
        try:
            yield _Bar(self, self._progress, bar, f"{name}: " if name else "")
        finally:
            self._progress.remove_task(bar)

    def count(self, done: int, failed: int, total: int) -> None:
        """Show the bar of all tasks, below or above theirs."""
        if self._all is None:
            self._all = self._progress.add_task("all", total=total, figures="")
        text = f"{done + failed}/{total}" + (f", {failed} failed" if failed else "")
        self._progress.update(self._all, completed=done + failed, figures=text)

    def line(self, text: str) -> None:
        """Write the line above the bars, as they are now."""
        self._console.print(text, markup=False, soft_wrap=True)
        self._progress.refresh()


class _Bar:
    def __init__(self, bars: Bars, progress: Progress, bar: TaskID, prefix: str) -> None:
        self._bars = bars
        self._progress = progress
        self._prefix = prefix
        self._bar = bar
        self._since = time.monotonic()

    def begin(self, message: str) -> None:
        self._progress.update(self._bar, figures=message)

    def step(self, message: str) -> None:
        self._progress.update(self._bar, figures=message)

    def note(self, text: str) -> None:
        self._bars.line(self._prefix + text)

    def sent(self, sent: int, total: int) -> None:
        if sent < total:
            text = upload_figures(sent, total, self._since)
            self._progress.update(self._bar, completed=sent, total=total, figures=text)
        else:
            self._progress.update(self._bar, completed=0, total=100, figures="Uploaded; the service looks at it")

    def progress(self, data: Mapping[str, Any]) -> None:
        self._progress.update(self._bar, completed=data["percentage"], total=100, figures=figures(data))
