"""Failures on demand, for tests of programs that talk to ComfyUI. Off unless the engine is started with them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, NoReturn

EXIT_CODE = 86
"""The exit status of an engine that was told to die: no other cause gives it."""


class InjectedError(Exception):
    """An error that a fault asked for; `type_name` is its type in the protocol."""

    def __init__(self, type_name: str, message: str) -> None:
        super().__init__(message)
        self.type_name = type_name


@dataclasses.dataclass(frozen=True)
class NodeFailure:
    """An error raised by one node class, when it starts or when it has done `at_frame` frames."""

    class_type: str
    exception_type: str = "RuntimeError"
    message: str = "injected failure"
    at_frame: int = 0

    def check(self, class_type: str, frame: int) -> None:
        """Raise the error if the node class and the number of frames done are the chosen ones."""
        if class_type == self.class_type and frame == self.at_frame:
            raise InjectedError(self.exception_type, self.message)


@dataclasses.dataclass(frozen=True)
class Faults:
    """The faults that an engine shows. Every field is off by default.

    Those that start with `ws_` hold for each socket, `http_` and `forget_history` for each request; the others
    belong to the prompt that was posted while they were on. After `times` prompts all of them go off.
    """

    times: int | None = None
    ws_drop_after: int | None = None
    """Cut the connection after so many frames."""
    ws_delay_s: float = 0.0
    ws_duplicate: bool = False
    """Send every frame twice."""
    ws_deaf: bool = False
    """Keep the socket open and send nothing."""
    http_delay_s: float = 0.0
    forget_history: bool = False
    streams: bool = True
    """False: decode from the first frame for each prompt, as ComfyUI does, and say nothing of streaming."""
    max_upload_size: int | None = None
    """Bytes; replaces the engine's own limit."""
    prompt_500: bool = False
    prompt_500_but_queued: bool = False
    """Answer 500 although the prompt was queued."""
    die_after_prompt: bool = False
    """End the process as soon as the prompt was answered."""
    die_at_frame: int | None = None
    """End the process when a swap has done so many frames."""
    stuck: bool = False
    """Keep the prompt in `queue_running` for ever."""
    raise_in_node: NodeFailure | None = None
    black_frame: bool = False
    """Give one black 512×512 frame, as ReActor's content filter does."""
    drop_frames: int = 0
    """Leave out the last so many frames."""
    unswapped: bool = False
    paint: bool = False
    """Invert a square in the middle of each frame in place of a swap."""
    wait_per_frame_s: float = 0.0
    """Wait so long for each frame, and paint."""
    hold_until: str = ""
    """After the first frame wait until this file is there, and paint."""
    no_file: bool = False
    """End in success with no output."""
    lose_output: bool = False
    """Delete the output file once it was announced."""

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Faults:
        """Read the JSON form, in which `raise_in_node` is `{"class", "exception_type", "message", "at_frame"}`.

        Raises ValueError for a name that is not a fault.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"no such fault: {', '.join(unknown)}")
        fields = dict(values)
        if failure := fields.get("raise_in_node"):
            rest = {name: value for name, value in failure.items() if name != "class"}
            fields["raise_in_node"] = NodeFailure(failure["class"], **rest)
        return cls(**fields)

    @property
    def paints(self) -> bool:
        """True if a stand-in changes the frames in place of a swap."""
        return self.paint or self.wait_per_frame_s > 0 or bool(self.hold_until)

    def on_node(self, class_type: str, frame: int) -> None:
        """Raise or die when a node starts (`frame` 0) or has done a frame, if a fault says so."""
        if self.raise_in_node:
            self.raise_in_node.check(class_type, frame)
        if class_type == "ReActorFaceSwap" and frame == self.die_at_frame:
            die()


class FaultSwitch:
    """The faults that are on now."""

    def __init__(self, faults: Faults) -> None:
        self.now = faults

    def take(self) -> Faults:
        """Return the faults of a newly posted prompt and count it against `times`."""
        if self.now.times == 0:
            self.now = Faults()
        elif self.now.times is not None:
            self.now = dataclasses.replace(self.now, times=self.now.times - 1)
        return dataclasses.replace(self.now, times=None)


def die() -> NoReturn:
    """End the process at once, as a crash would: nothing is flushed, closed or answered."""
    os._exit(EXIT_CODE)
