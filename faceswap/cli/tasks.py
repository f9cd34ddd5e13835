"""Tasks that are under way, and the words and figures that people see of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any, Protocol

from ..client import JobEvent


class Task(Protocol):
    """One thing that is under way: a job, or the start of a service."""

    def begin(self, message: str) -> None:
        """Show, where there are bars, what it does until there is something to measure."""

    def step(self, message: str) -> None:
        """Show what it does now."""

    def note(self, text: str) -> None:
        """Write a line about it that stays."""

    def sent(self, sent: int, total: int) -> None:
        """Show an upload, in bytes; may be called in any thread."""

    def progress(self, data: Mapping[str, Any]) -> None:
        """Show the data of a `progress` event."""


class Display(Protocol):
    """The place where tasks are shown."""

    def task(self, name: str) -> contextlib.AbstractContextManager[Task]:
        """Show a task for as long as it lasts."""

    def count(self, done: int, failed: int, total: int) -> None:
        """Show how many of all tasks have ended, and how."""

    def line(self, text: str) -> None:
        """Write a line that stays."""


def show_event(task: Task, event: JobEvent) -> None:
    """Show an event of a job."""
    if event.type == "progress":
        task.progress(event.data)
    elif not event.terminal and "message" in event.data:
        task.step(str(event.data["message"]))


def figures(data: Mapping[str, Any]) -> str:
    """Return the figures of a `progress` event: percentage, frames, frames a second, time left."""
    total = str(data["total"])
    words = [f"{data['percentage']:5.1f}%", f"{data['current']:>{len(total)}}/{total} frames"]
    if data.get("fps"):
        words.append(f"{data['fps']:5.1f} fps")
    if data.get("eta_seconds") is not None:
        words.append(f"{clock(data['eta_seconds'])} left")
    return "  ".join(words)


def upload_figures(sent: int, total: int, since: float) -> str:
    """Return the figures of an upload that began at the monotonic time `since`."""
    seconds = time.monotonic() - since
    rate = f"  {sent / seconds / 1e6:.1f} MB/s" if seconds > 0 else ""
    return f"Uploading {sent / total:4.0%}{rate}" if total else "Uploading"


def clock(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
