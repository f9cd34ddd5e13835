"""A ComfyUI that behaves as the real one does, lies included, and the client through which a node reaches it.

The lies are those that were seen: history that knows an end only after a moment, sockets that go deaf, prompts that are
queued although the answer is a 500, success without a file, a stop that is lost, work that is done for nobody.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp
from yarl import URL

from faceswap.comfy.client import ComfyClient, ComfyError, Features, Outcome, Place, QueueState
from faceswap.comfy.failures import PromptRejected, failure_from_error
from faceswap.comfy.messages import PREVIEW_IMAGE_WITH_METADATA, OutputFile
from faceswap.errors import JobFailure

if TYPE_CHECKING:
    from .loop import Machine
    from .node import Node
    from .world import World

T = TypeVar("T")

LATENCY_S = 0.02
"""The longest that a request, or its answer, is on its way."""
ANSWER_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 10.0
HEARTBEAT_S = 30.0
"""The longest that either end of a socket takes to notice that nothing comes through."""
GAP_S = 0.3
"""The longest that a prompt which has left the queue is not in history yet."""
LATE_S = 0.3
"""The longest that a request whose connection was cut arrives after the cut."""
LOADER, OUTPUT = ("VHS_LoadVideo", "VHS_VideoCombine")
TROUBLES = ("lost", "cut", "late", "refused", "done but refused")
"""The fates of requests that are not answered as they should be."""
STEPS = 3
"""Progress messages of a prompt."""


@dataclass(eq=False)
class Prompt:
    """A prompt that was queued, and what became of it.

    state      pending, running, ending (in neither queue nor history), success, error or interrupted
    told       whether a node was told how it ended
    unfetched  whether fetching its file has failed
    """

    prompt_id: str
    client_id: str
    job: str
    first: int
    count: int
    prefix: str
    video: str
    output_node: str
    generation: int
    state: str = "pending"
    stop_asked: bool = False
    interrupted: bool = False
    told: bool = False
    unfetched: bool = False
    has_file: bool = False
    started_at: float = 0.0
    fate: str = "success"

    @property
    def known(self) -> bool:
        """True while it is at work, or has an end that could be used."""
        return self.state in ("pending", "running", "ending") or (self.state == "success" and self.has_file)


class Socket:
    """The client's end of a WebSocket."""

    def __init__(self, comfy: ComfyUI, client_id: str, machine: Machine) -> None:
        self.machine = machine
        self._comfy = comfy
        self._client_id = client_id
        self._frames: deque[aiohttp.WSMessage | None] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False

    def push(self, frame: aiohttp.WSMessage | None) -> None:
        """Let a frame arrive; None for the end of the connection."""
        self._frames.append(frame)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def close(self) -> None:
        """Close as aiohttp does: the server has seen it when this returns, if it answers."""
        if not self._closed:
            self._closed = True
            self.push(None)
            await asyncio.sleep(self._comfy.latency())
            self._comfy.forget_socket(self._client_id)

    def __aiter__(self) -> Socket:
        return self

    async def __anext__(self) -> aiohttp.WSMessage:
        while not self._frames:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        frame = self._frames.popleft()
        if frame is None:
            self._frames.append(None)
            raise StopAsyncIteration
        return frame


class ComfyUI:
    """One ComfyUI process after another at one address. `faults` are the chances of each lie, 0 when it is honest."""

    def __init__(
        self, world: World, name: str, named_by: Sequence[Node], seconds_per_frame: float, has_jobs: bool
    ) -> None:
        self.world = world
        self.name = name
        self.named_by = named_by
        """The nodes that are to give it work."""
        self.is_embedded = False
        """True for the child of the one node that names it, with which it lives and dies."""
        self.cut_from: set[str] = set()
        """The names of nodes that cannot reach it."""
        self.url = URL(f"http://{name.replace(':', '.')}:8188")
        self.seconds_per_frame = seconds_per_frame
        self.has_jobs = has_jobs
        self.up = True
        self.frozen = False
        self.trouble = 0.0
        """Share of the requests that come to nothing, or seem to."""
        self.lies = 0.0
        """Share of the prompts that do not end as they should."""
        self.generation = 0
        self.pending: list[Prompt] = []
        self.running: Prompt | None = None
        self.prompts: dict[str, Prompt] = {}
        """The prompts that queue and history hold, or will in a moment."""
        self.files: dict[str, str] = {}
        self.inputs: dict[str, str] = {}
        self._sockets: dict[str, Socket] = {}
        self._held: list[Callable[[], None]] = []
        self._random = world.random

    def latency(self) -> float:
        """Return how long a message takes."""
        return self._random.random() * LATENCY_S

    # What happens to it.

    def freeze(self) -> None:
        """Stop as by SIGSTOP: connections are accepted, nothing is answered, everything goes on afterwards."""
        self.frozen = True

    def thaw(self) -> None:
        """Go on with everything that came meanwhile."""
        self.frozen = False
        held, self._held = self._held, []
        for work in held:
            work()

    def die(self) -> None:
        """End the process: queue, history and temporary files are gone."""
        self.up, self.frozen = False, False
        self.generation += 1
        held, self._held = self._held, []
        for work in held:  # whoever waits is told that the connection is gone
            work()
        self.pending.clear()
        self.prompts.clear()
        self.files.clear()
        self.running = None
        for socket in self._sockets.values():
            socket.push(None)
        self._sockets.clear()

    def start(self) -> None:
        """Come up again."""
        self.up = True

    def forget(self) -> None:
        """Let go of what history is not sure to keep: the oldest prompt that has ended."""
        for prompt in self.prompts.values():
            if prompt.state in ("success", "error", "interrupted"):
                del self.prompts[prompt.prompt_id]
                self.world.note(f"{self.name} forgets {prompt.prompt_id}")
                return

    def drop_sockets(self) -> None:
        """Cut every connection; it sees the old ones die late, which deafens those that opened meanwhile."""
        for client_id, socket in self._sockets.items():
            socket.push(None)
            self.later(self._random.uniform(0, 5), lambda client_id=client_id: self.forget_socket(client_id))

    def cut(self, node: str) -> None:
        """Let nothing through to a node or from it; both ends of its socket notice that sooner or later."""
        self.cut_from.add(node)
        for client_id, socket in self._sockets.items():
            if socket.machine.name == node:
                self.world.environment.call_later(self._random.uniform(0, HEARTBEAT_S), socket.push, None)
                self.later(self._random.uniform(0, HEARTBEAT_S), partial(self.forget_socket, client_id))

    def machine_died(self, machine: Machine) -> None:
        """See the sockets of a process that was killed end, sooner or later."""
        for client_id, socket in self._sockets.items():
            if socket.machine is machine:
                delay = self._random.choice((0.0, self._random.uniform(0, 5)))
                self.later(delay, lambda client_id=client_id: self.forget_socket(client_id))

    def forget_socket(self, client_id: str) -> None:
        """Forget the last socket of a client id, whichever of them has closed."""
        self._sockets.pop(client_id, None)

    def later(self, delay_s: float, work: Callable[[], None]) -> None:
        """Do something after a while, unless the process has ended by then; a frozen one does it when it thaws."""
        generation = self.generation

        def due() -> None:
            if self.generation != generation or not self.up:
                return
            if self.frozen:
                self._held.append(due)
            else:
                work()

        self.world.environment.call_later(delay_s, due)

    # Requests.

    async def call(self, work: Callable[[], T], timeout_s: float = ANSWER_TIMEOUT_S) -> T:
        """Carry out a request. Once sent it arrives, whatever becomes of the node. Raises `ComfyError`."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        machine = self.world.scheduler.running
        assert machine is not None
        fate = self._random.choice(TROUBLES) if self._chance(self.trouble) else "answered"
        if machine.name in self.cut_from:
            fate = "lost"
        self.world.environment.call_later(self.latency(), self._arrive, work, answer, fate)
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            raise ComfyError("ComfyUI did not answer in time.", transient=True) from None

    def _arrive(self, work: Callable[[], T], answer: asyncio.Future[T], fate: str) -> None:
        """Do what a request asks for, even when nobody waits for the answer any more."""
        unreachable = ComfyError("ComfyUI cannot be reached.", transient=True)
        answered_500 = ComfyError("ComfyUI answered 500; its log may say why.", transient=True, answered=True)
        if self.up and self.frozen:
            self._held.append(lambda: self._arrive(work, answer, fate))
        elif not self.up or fate == "lost":
            self._reply(answer, unreachable)
        elif fate == "late":
            self._reply(answer, unreachable)
            self.later(self._random.uniform(0, LATE_S), lambda: self._quietly(work))
        elif fate == "refused":
            self._reply(answer, answered_500)
        else:
            try:
                result: T | Exception = work()
            except JobFailure as failure:
                result = failure
            troubles = {"cut": unreachable, "done but refused": answered_500}
            self._reply(answer, troubles.get(fate, result))

    def _reply(self, answer: asyncio.Future[T], result: T | Exception) -> None:
        def arrives() -> None:
            if answer.done():
                return
            if isinstance(result, Exception):
                answer.set_exception(result)
            else:
                answer.set_result(result)

        self.world.environment.call_later(self.latency(), arrives)

    def _quietly(self, work: Callable[[], Any]) -> None:
        with suppress(JobFailure):
            work()

    def _chance(self, share: float) -> bool:
        return share > 0 and self._random.random() < share

    async def open_socket(self, client_id: str) -> Socket:
        """Open a socket: the newest of a client id hears, the others do not."""
        machine = self.world.scheduler.running
        assert machine is not None
        socket = Socket(self, client_id, machine)

        def opened() -> None:
            self._sockets[client_id] = socket

        await self.call(opened, CONNECT_TIMEOUT_S)
        self._say_to(client_id, "status", {"status": {"exec_info": {"queue_remaining": len(self.pending)}}})
        return socket

    def submit(self, graph: Mapping[str, Any], client_id: str, prompt_id: str) -> str:
        """Queue a prompt."""
        (loader,) = (node["inputs"] for node in graph.values() if node["class_type"] == LOADER)
        ((output_node, output),) = (
            (node_id, node["inputs"]) for node_id, node in graph.items() if node["class_type"] == OUTPUT
        )
        if loader["video"] not in self.inputs:
            raise PromptRejected("input_missing", "ComfyUI no longer has the uploaded file.", transient=True)
        clip = json.loads(self.inputs[loader["video"]])
        first = clip["first"] + loader["skip_first_frames"]
        count = loader["frame_load_cap"] or clip["count"] - loader["skip_first_frames"]
        prompt = Prompt(
            prompt_id,
            client_id,
            clip["job"],
            first,
            count,
            output["filename_prefix"],
            loader["video"],
            output_node,
            self.generation,
        )
        self.world.invariants.queued(self, prompt)
        self.world.note(f"{self.name} queues {prompt_id}: {prompt.job} {first}+{count}")
        if self._chance(self.lies):
            prompt.fate = self._random.choice(("no file", "error", "out of memory", "death", "stuck", "interrupted"))
        self.prompts[prompt_id] = prompt
        self.pending.append(prompt)
        self._start_next()
        return prompt_id

    def look(self, prompt_id: str) -> Outcome | None:
        """Return what history holds of a prompt."""
        prompt = self.prompts.get(prompt_id)
        if prompt is None or prompt.state in ("pending", "running", "ending"):
            return None
        match prompt.state:
            case "success":
                folder, _, name = prompt.prefix.rpartition("/")
                files = (OutputFile(f"{name}_00001.mp4", folder, "temp"),) if prompt.has_file else ()
                return Outcome("success", {prompt.output_node: files})
            case "error" if prompt.fate == "out of memory":
                failure = failure_from_error("VHS_VideoCombine", "torch.OutOfMemoryError", "out of memory")
                return Outcome("error", {}, failure)
            case "error":
                return Outcome("error", {}, JobFailure("engine_error", "A node failed in ComfyUI.", transient=True))
        return Outcome("interrupted", {})

    def queue(self) -> QueueState:
        """Return what runs and what waits."""
        running = (self.running.prompt_id,) if self.running else ()
        return QueueState(running, tuple(prompt.prompt_id for prompt in self.pending))

    def cancel_pending(self, prompt_id: str) -> None:
        """Take a prompt out of the queue, if it waits there."""
        for prompt in self.pending:
            if prompt.prompt_id == prompt_id:
                prompt.stop_asked = True
                self.pending.remove(prompt)
                del self.prompts[prompt_id]
                return

    def interrupt(self, prompt_id: str) -> None:
        """Have the running prompt stop at its next step; one that has just begun may not notice."""
        prompt = self.running
        if prompt is not None and prompt.prompt_id == prompt_id:
            prompt.stop_asked = True
            just_begun = self.world.scheduler.now - prompt.started_at < 0.1
            prompt.interrupted = not (just_begun and self._random.random() < 0.5)

    # Work.

    def _start_next(self) -> None:
        if self.running is not None or not self.pending:
            return
        prompt = self.running = self.pending.pop(0)
        prompt.state, prompt.started_at = "running", self.world.scheduler.now
        self._say(prompt, "execution_start", {})
        self._say(prompt, "executing", {"node": prompt.output_node})
        self._step(prompt, 1)

    def _step(self, prompt: Prompt, number: int) -> None:
        seconds = prompt.count * self.seconds_per_frame / STEPS
        self.later(seconds * self._random.uniform(0.5, 1.5), lambda: self._stepped(prompt, number))

    def _stepped(self, prompt: Prompt, number: int) -> None:
        if prompt.fate == "stuck":
            return
        if prompt.fate == "death" and number == STEPS - 1:
            self.world.restart(self)
            return
        data = {"node": prompt.output_node, "value": prompt.count * number / STEPS, "max": prompt.count}
        self._say(prompt, "progress", data)
        self._show(prompt)
        if prompt.interrupted or prompt.fate == "interrupted":
            self._end(prompt, "interrupted", "execution_interrupted")
        elif number < STEPS:
            self._step(prompt, number + 1)
        elif prompt.fate in ("error", "out of memory"):
            self._end(prompt, "error", "execution_error")
        else:
            if prompt.fate != "no file":
                prompt.has_file = True
                self.files[f"{prompt.prefix}_00001.mp4"] = self._output(prompt)
            self._end(prompt, "success", "execution_success")

    def _output(self, prompt: Prompt) -> str:
        return json.dumps({"job": prompt.job, "first": prompt.first, "count": prompt.count, "by": prompt.prompt_id})

    def _end(self, prompt: Prompt, state: str, kind: str) -> None:
        self.world.note(f"{self.name} ends {prompt.prompt_id}: {state}")
        prompt.state, self.running = "ending", None

        def recorded() -> None:
            prompt.state = state
            self._say(prompt, "executing", {"node": None})

        self._say(prompt, kind, {})
        self.later(self._random.random() * GAP_S, recorded)
        self._start_next()

    def _show(self, prompt: Prompt) -> None:
        """Send a preview: a picture's first bytes will do."""
        socket = self._socket(prompt.client_id)
        if socket is not None:
            metadata = json.dumps({"prompt_id": prompt.prompt_id, "node_id": prompt.output_node}).encode()
            head = struct.pack(">II", PREVIEW_IMAGE_WITH_METADATA, len(metadata))
            socket.push(aiohttp.WSMessage(aiohttp.WSMsgType.BINARY, head + metadata + b"\xff\xd8\xff", None))

    def _socket(self, client_id: str) -> Socket | None:
        """Return the socket that hears what is said to a client id."""
        socket = self._sockets.get(client_id)
        return None if socket is None or socket.machine.name in self.cut_from else socket

    def _say(self, prompt: Prompt, kind: str, data: Mapping[str, Any]) -> None:
        self._say_to(prompt.client_id, kind, {"prompt_id": prompt.prompt_id, **data})

    def _say_to(self, client_id: str, kind: str, data: Mapping[str, Any]) -> None:
        socket = self._socket(client_id)
        if socket is not None:
            text = json.dumps({"type": kind, "data": data})
            socket.push(aiohttp.WSMessage(aiohttp.WSMsgType.TEXT, text, None))


class SimulatedClient(ComfyClient):
    """A node's client of a simulated ComfyUI: every request is a call of the model."""

    def __init__(self, comfy: ComfyUI) -> None:
        super().__init__(comfy.url, None)  # type: ignore[arg-type]  # there is no session: nothing is sent
        self._comfy = comfy

    async def upload(self, path: Path, filename: str, subfolder: str) -> str:
        text, name = path.read_text(encoding="utf-8"), f"{subfolder}/{filename}"
        self._comfy.world.invariants.uploaded(self._comfy, name)

        def stored() -> str:
            self._comfy.inputs[name] = text
            return name

        return await self._comfy.call(stored)

    async def empty(self, kind: str, subfolder: str, name: str) -> None:
        path = f"{subfolder}/{name}"

        def emptied() -> None:
            for files in (self._comfy.inputs, self._comfy.files):
                if path in files:
                    files[path] = ""

        await self._comfy.call(emptied)

    async def submit(
        self,
        graph: Mapping[str, Any],
        client_id: str,
        prompt_id: str,
        extra_data: Mapping[str, Any] | None = None,
        *,
        output_node: str | None = None,
    ) -> str:
        self._comfy.world.invariants.sent(self._comfy, prompt_id)
        return await self._comfy.call(lambda: self._comfy.submit(graph, client_id, prompt_id))

    async def queue(self) -> QueueState:
        return await self._comfy.call(self._comfy.queue)

    async def outcome(self, prompt_id: str) -> Outcome | None:
        outcome = await self._comfy.call(lambda: self._comfy.look(prompt_id))
        if outcome is not None and prompt_id in self._comfy.prompts:
            self._comfy.prompts[prompt_id].told = True
        return outcome

    async def find_jobs(self) -> None:
        self.has_jobs = await self._comfy.call(lambda: self._comfy.has_jobs)

    async def _job(self, prompt_id: str) -> Outcome | Place | None:
        def look() -> Outcome | Place | None:
            queue = self._comfy.queue()
            if prompt_id in queue.running:
                return Place.RUNNING
            return Place.PENDING if prompt_id in queue.pending else self._comfy.look(prompt_id)

        found = await self._comfy.call(look)
        if isinstance(found, Outcome) and prompt_id in self._comfy.prompts:
            self._comfy.prompts[prompt_id].told = True
        return found

    async def stop(self, prompt_id: str, place: Place) -> None:
        await (self.interrupt(prompt_id) if place is Place.RUNNING else self.cancel_pending(prompt_id))

    async def cancel_pending(self, prompt_id: str) -> None:
        await self._comfy.call(lambda: self._comfy.cancel_pending(prompt_id))

    async def interrupt(self, prompt_id: str) -> None:
        await self._comfy.call(lambda: self._comfy.interrupt(prompt_id))

    async def download(self, file: OutputFile, destination: Path, max_bytes: int) -> int:
        name = f"{file.subfolder}/{file.filename}"
        try:
            text = await self._comfy.call(lambda: self._comfy.files.get(name))
            if text is None:
                raise JobFailure("output_missing", "ComfyUI no longer has the result.", transient=True)
            self._comfy.world.check_disk()
        except (ComfyError, JobFailure, OSError):
            for prompt in self._comfy.prompts.values():
                prompt.unfetched |= f"{prompt.prefix}_00001.mp4" == name
            raise
        destination.write_text(text, encoding="utf-8")
        return len(text)

    async def object_info(self, node_class: str) -> dict[str, Any] | None:
        return {}

    async def features(self) -> Features:
        return await self._comfy.call(lambda: Features(None))

    async def free(self, *, models: bool = True) -> None:
        await self._comfy.call(lambda: None)

    async def free_memory(self) -> int | None:
        return await self._comfy.call(lambda: None)

    async def open_socket(self, client_id: str) -> Any:
        return await self._comfy.open_socket(client_id)
