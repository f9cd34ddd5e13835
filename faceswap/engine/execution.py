"""The execution of one prompt: node after node, reported in the frames and the order that ComfyUI sends.

The sequence of frames follows recordings of ComfyUI 0.3.64.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
import traceback
from dataclasses import dataclass, field
from typing import Any, Protocol

import av
import cv2

from ..durable import DISK_FULL
from ..marks import EXTRA_DATA, Marks
from .catalog import describe
from .faults import Faults, InjectedError
from .folders import DISK_FULL_MESSAGE, Folders
from .frames import Frame
from .graph import Graph, execution_order, is_link, signatures
from .network_files import NetworkMemoryError
from .nodes import RUN, Inputs, NodeContext, People, Result, depends_on, encoding_of, video_combines
from .pixels import whole

log = logging.getLogger(__name__)

PROGRESS_INTERVAL_S = 0.04
PREVIEW_INTERVAL_S = 0.5
PREVIEW_PIXELS = 320


class InterruptedByUser(Exception):
    """The prompt was interrupted."""


@dataclass
class Prompt:
    """A graph to run, as it stands in the queue."""

    number: float
    id: str
    graph: Graph
    extra: dict[str, Any]
    outputs: list[str]
    faults: Faults = field(default_factory=Faults)
    interrupted: threading.Event = field(default_factory=threading.Event)
    people_data: Any = ()
    """Kept apart from `extra`, which is listed: they are faces."""
    steps: int = 0
    """Grows while nodes make progress."""

    @property
    def client_id(self) -> str | None:
        """The client that posted the prompt and gets its frames, None if it did not name itself."""
        return self.extra.get("client_id")

    @property
    def marks(self) -> Marks | None:
        """The marks that its frames get. Raises ValueError for such as are none."""
        wanted = self.extra.get(EXTRA_DATA)
        return None if wanted is None or not self.faults.streams else Marks.from_json(wanted)

    @property
    def people(self) -> People:
        """The pictures of people who came into view before its frames. Raises ValueError for such as are none."""
        frames = self.people_data
        if not isinstance(frames, list | tuple) or not all(
            isinstance(faces, list) and all(isinstance(face, str) for face in faces) for faces in frames
        ):
            raise ValueError("People are lists of pictures in base64")
        return tuple(tuple(faces) for faces in frames)

    def listed(self) -> list[Any]:
        """Return the prompt as `/queue` and `/history` show it."""
        return [self.number, self.id, self.graph, self.extra, self.outputs]


@dataclass
class PromptResult:
    """The end of a prompt, as `/history` shows it."""

    completed: bool = False
    messages: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    shown: dict[str, dict[str, Any]] = field(default_factory=dict)
    swaps: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of each swap node, the frames it read, those in which it changed a face, and the options that had no use; ComfyUI
    tells no such thing."""


class Observer(Protocol):
    """A receiver of a running prompt's messages, called from the thread that runs it."""

    def message(self, kind: str, data: dict[str, Any]) -> None:
        """Take a message of the protocol."""

    def preview(self, jpeg: bytes, metadata: dict[str, Any]) -> None:
        """Take a picture of the running work."""


class Cache:
    """The results of the prompt that ran last, by signature, as ComfyUI keeps them by default."""

    def __init__(self) -> None:
        self._results: dict[str, Result] = {}

    def get(self, signature: str) -> Result | None:
        """Return the result with this signature, None if there is none or its files are gone."""
        result = self._results.get(signature)
        return result if result is not None and result.is_whole else None

    def put(self, signature: str, result: Result) -> None:
        """Keep a result under its signature."""
        self._results[signature] = result

    def keep(self, signatures: set[str]) -> None:
        """Forget all results but these, and erase their files."""
        for signature in self._results.keys() - signatures:
            self._results.pop(signature).forget()


class Executor:
    """An executor of prompts, one after another, in one thread."""

    def __init__(self, folders: Folders, preset: str) -> None:
        self.folders = folders
        self.preset = preset
        self.cache = Cache()

    def execute(self, prompt: Prompt, observer: Observer) -> PromptResult:
        """Run a prompt to its end. Errors of nodes are part of the result."""
        return _Execution(self, prompt, observer).run()


class _Execution:
    def __init__(self, executor: Executor, prompt: Prompt, observer: Observer) -> None:
        self._executor = executor
        self._prompt = prompt
        self._observer = observer
        self._prompt_result = PromptResult()
        self._progress = _NodeProgress(prompt, observer)
        self._results: dict[str, Result] = {}
        self._executed: list[str] = []
        self._node = ""
        self._inputs: Inputs = {}

    def run(self) -> PromptResult:
        self._record("execution_start", {})
        try:
            self._run_nodes()
        except InterruptedByUser:
            self._record("execution_interrupted", self._place() | {"executed": self._executed})
        except Exception as error:  # noqa: BLE001 -- the top of a prompt: every error of a node is its result
            self._fail(error)
        else:
            self._prompt_result.completed = True
            self._prompt_result.swaps = {
                node: {"frames": result.swaps.frames, "swapped": result.swaps.swapped, "unused": list(result.unused)}
                for node, result in self._results.items()
                if result.swaps is not None
            }
            self._record("execution_success", {})
        if not self._prompt_result.completed:
            gc.collect()  # an error and the frames it went through refer to each other, and to pictures
        return self._prompt_result

    def _run_nodes(self) -> None:
        graph, folders = self._prompt.graph, self._executor.folders
        order = execution_order(graph, self._prompt.outputs, describe(folders))
        faults, marks, people = repr(self._prompt.faults), self._prompt.marks, self._prompt.people
        digests = signatures(graph, order, lambda node_id: [depends_on(folders, graph, node_id, marks, people), faults])
        cached = {node: found for node in order if (found := self._executor.cache.get(digests[node]))}
        self._executor.cache.keep({digests[node] for node in cached})
        self._results.update(cached)
        self._record("execution_cached", {"nodes": [node for node in graph if node in cached]})
        for node_id in order:
            if node_id not in cached:
                self._run_node(node_id)
                self._executor.cache.put(digests[node_id], self._results[node_id])
            elif (shown := cached[node_id].shown) is not None:
                self._show(node_id, shown)
                self._progress.skip(node_id)

    def _run_node(self, node_id: str) -> None:
        node = self._prompt.graph[node_id]
        class_type = node["class_type"]
        self._node = node_id
        self._inputs = {}
        self._check()
        self._progress.start(node_id)
        self._send("executing", {"node": node_id, "display_node": node_id})
        self._inputs = self._linked(node["inputs"])
        self._prompt.faults.on_node(class_type, 0)
        result = RUN[class_type](self._context(node_id, class_type), self._inputs)
        self._results[node_id] = result
        if result.shown is not None:
            self._show(node_id, result.shown)
            if self._prompt.faults.lose_output:
                for path in result.files:
                    path.unlink()
        self._progress.finish()
        self._executed.append(node_id)

    def _context(self, node_id: str, class_type: str) -> NodeContext:
        def progress(value: int, maximum: int, frame: Frame | None) -> None:
            self._check()
            self._progress.progress(value, maximum, frame)
            self._prompt.faults.on_node(class_type, value)

        preset, marks = self._executor.preset, self._prompt.marks
        combine = next(video_combines(self._prompt.graph, node_id), None)
        encoding = encoding_of(combine["inputs"], preset, marks) if combine else None
        faults, interrupted = self._prompt.faults, self._prompt.interrupted
        return NodeContext(
            self._executor.folders, faults, preset, marks, self._prompt.people, interrupted, encoding, progress
        )

    def _linked(self, inputs: Inputs) -> Inputs:
        """Return the inputs with the outputs of linked nodes, without links of inputs that the class does not have."""
        values = {name: value for name, value in inputs.items() if not is_link(value)}
        links = {name: link for name, link in inputs.items() if is_link(link) and link[0] in self._results}
        return values | {name: self._results[node].values[slot] for name, (node, slot) in links.items()}

    def _check(self) -> None:
        self._prompt.steps += 1
        if self._prompt.interrupted.is_set():
            raise InterruptedByUser

    def _show(self, node_id: str, output: dict[str, Any]) -> None:
        self._prompt_result.shown[node_id] = output
        self._send("executed", {"node": node_id, "display_node": node_id, "output": output})

    def _fail(self, error: Exception) -> None:
        log.error("prompt %s failed at node %s", self._prompt.id, self._node, exc_info=error)
        kind, message = _type_and_message(error)
        if message == DISK_FULL_MESSAGE:
            self._executor.cache.keep(set())  # its files take room that others need
        shown = {
            name: [value if isinstance(value, bool | int | float | str | None) else str(value)]
            for name, value in self._inputs.items()
        }
        details = {
            "executed": self._executed,
            "exception_message": f"{message}\n",
            "exception_type": kind,
            "traceback": traceback.format_tb(error.__traceback__),
            "current_inputs": shown,
            "current_outputs": list(self._results),
        }
        self._record("execution_error", self._place() | details)

    def _place(self) -> dict[str, Any]:
        node = self._prompt.graph.get(self._node, {})
        return {"node_id": self._node, "node_type": node.get("class_type")}

    def _record(self, kind: str, data: dict[str, Any]) -> None:
        """Send a message and add it to the history."""
        timed = {"prompt_id": self._prompt.id, **data, "timestamp": int(time.time() * 1000)}
        self._prompt_result.messages.append((kind, timed))
        self._observer.message(kind, timed)

    def _send(self, kind: str, data: dict[str, Any]) -> None:
        self._observer.message(kind, {**data, "prompt_id": self._prompt.id})


def _type_and_message(error: Exception) -> tuple[str, str]:
    """Return the type and the message of an error for callers, the same ones for every kind of full disk or memory."""
    if isinstance(error, InjectedError):
        return error.type_name, str(error)
    if isinstance(error, OSError | av.FFmpegError) and error.errno in DISK_FULL:
        return "OSError", DISK_FULL_MESSAGE
    if lacks_memory(error):
        is_told = isinstance(error, NetworkMemoryError)
        return "MemoryError", str(error) if is_told else "It needs more memory than the engine may take"
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return name, str(error)


def lacks_memory(error: Exception) -> bool:
    """Return true if memory ran out.

    Python, OpenCV, ffmpeg, x264 (with one code for all errors) and the start of a thread report it differently.
    """
    if isinstance(error, cv2.error):
        return bool(error.code == cv2.Error.StsNoMem)
    without_thread = isinstance(error, RuntimeError) and "start new thread" in str(error)
    return without_thread or isinstance(error, MemoryError | av.error.ExternalError | av.error.BlockingIOError)


class _NodeProgress:
    """The progress of a prompt's nodes, reported no more often than every `PROGRESS_INTERVAL_S`."""

    def __init__(self, prompt: Prompt, observer: Observer) -> None:
        self._prompt = prompt
        self._observer = observer
        self._states: dict[str, dict[str, Any]] = {}
        self._node = ""
        self._next_frame = 0.0
        self._next_preview = 0.0

    def start(self, node_id: str) -> None:
        self._node = node_id
        self._next_frame = 0.0
        self._set(0.0, 1.0, "running")

    def progress(self, value: int, maximum: int, frame: Frame | None) -> None:
        now = time.monotonic()
        if now < self._next_frame and value < maximum:
            return
        self._next_frame = now + PROGRESS_INTERVAL_S
        self._set(value, maximum, "running")
        data = {"value": value, "max": maximum, "prompt_id": self._prompt.id, "node": self._node}
        self._observer.message("progress", data)
        if frame is not None and now >= self._next_preview:
            self._next_preview = now + PREVIEW_INTERVAL_S
            self._observer.preview(_jpeg(frame), self._identity())

    def finish(self) -> None:
        maximum = self._states[self._node]["max"]
        self._set(maximum, maximum, "finished")

    def skip(self, node_id: str) -> None:
        """Report a node whose result came from the cache."""
        self._node = node_id
        self._set(1, 1, "finished")

    def _set(self, value: float, maximum: float, state: str) -> None:
        bar = {"value": value, "max": maximum, "state": state, **self._identity()}
        self._states[self._node] = bar
        self._observer.message("progress_state", {"prompt_id": self._prompt.id, "nodes": dict(self._states)})

    def _identity(self) -> dict[str, Any]:
        return {
            "node_id": self._node,
            "prompt_id": self._prompt.id,
            "display_node_id": self._node,
            "parent_node_id": None,
            "real_node_id": self._node,
        }


def _jpeg(frame: Frame) -> bytes:
    """Encode a frame as a small JPEG, its longer side of at most about `PREVIEW_PIXELS`."""
    bgr = frame.part(whole(frame), min(1.0, PREVIEW_PIXELS / max(frame.size)))
    _, data = cv2.imencode(".jpg", bgr)
    return data.tobytes()
