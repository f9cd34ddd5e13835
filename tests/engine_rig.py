"""A client that drives an engine like a program written for ComfyUI, and recordings of ComfyUI to compare with."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import replay
from aiohttp.test_utils import TestClient, TestServer
from clips import make_clip
from waiting import WAIT_S

import faceswap
from faceswap.engine.faults import Faults
from faceswap.engine.server import create_app

Message = dict[str, Any]

PACKAGE = Path(faceswap.__file__).parent
FACE = PACKAGE / "samples" / "astronaut.png"
SEED = json.loads((PACKAGE.parent / "workflows" / "FaceSwap-Reactor-API.json").read_text("utf-8"))
PAINT = Faults(paint=True)


def workflow(video: str = "clip.mp4", image: str = "face.png", **inputs: Any) -> dict[str, Any]:
    """Return the seed workflow for these files; `inputs` go to whichever node has an input of that name."""
    graph: dict[str, Any] = copy.deepcopy(SEED)
    graph["8"]["inputs"]["video"] = video
    graph["10"]["inputs"]["image"] = image
    for name, value in inputs.items():
        next(node for node in graph.values() if name in node["inputs"])["inputs"][name] = value
    return graph


class Rig:
    """One client of an engine."""

    def __init__(self, client: TestClient[Any, Any], data: Path) -> None:
        self.client = client
        self.data = data

    async def upload(self, path: Path, name: str | None = None, **fields: str) -> dict[str, str]:
        form = aiohttp.FormData(quote_fields=False)
        form.add_field("image", await asyncio.to_thread(path.read_bytes), filename=name or path.name)
        for field, value in fields.items():
            form.add_field(field, value)
        async with self.client.post("/upload/image", data=form) as response:
            assert response.status == 200, await response.text()
            answer: dict[str, str] = await response.json()
            return answer

    async def submit(self, graph: dict[str, Any], prompt_id: str, client_id: str = "me", **more: Any) -> Message:
        body = {"prompt": graph, "client_id": client_id, "prompt_id": prompt_id, **more}
        async with self.client.post("/prompt", json=body) as response:
            assert response.status == 200, await response.text()
            answer: Message = await response.json()
            return answer

    async def get(self, path: str) -> Any:
        async with self.client.get(path) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def post(self, path: str, body: Any = None) -> None:
        async with self.client.post(path, json=body) as response:
            assert response.status == 200, await response.text()

    @asynccontextmanager
    async def socket(self, client_id: str = "me") -> AsyncIterator[Socket]:
        async with self.client.ws_connect(f"/ws?clientId={client_id}") as connection:
            yield Socket(connection)

    async def run(self, graph: dict[str, Any], prompt_id: str = "p") -> list[Message]:
        """Run a prompt and return the frames it sent, from before it was posted to its end."""
        async with self.socket() as socket:
            await self.submit(graph, prompt_id)
            return await socket.until_end(prompt_id)

    async def ended(self, prompt_id: str) -> Message:
        """Return the history of a prompt, once there is one."""
        async with asyncio.timeout(WAIT_S):
            while not (history := await self.get(f"/history/{prompt_id}")):
                await asyncio.sleep(0.02)
        entry: Message = history[prompt_id]
        return entry

    async def swap(self, graph: dict[str, Any], prompt_id: str = "p", **more: Any) -> Path:
        """Run a prompt to success and return the file it made; `more` goes into its body."""
        await self.submit(graph, prompt_id, **more)
        entry = await self.ended(prompt_id)
        assert entry["status"]["completed"], entry["status"]["messages"]
        return Path(entry["outputs"]["9"]["gifs"][0]["fullpath"])


class Socket:
    """A WebSocket and the frames it received."""

    def __init__(self, connection: aiohttp.ClientWebSocketResponse) -> None:
        self.connection = connection
        self.heard: list[Message] = []
        self.previews: list[bytes] = []

    async def until(self, wanted: Callable[[Message], bool]) -> list[Message]:
        """Return all frames up to the first that is wanted."""
        async with asyncio.timeout(WAIT_S):
            while True:
                frame = await self.connection.receive()
                if frame.type is aiohttp.WSMsgType.BINARY:
                    self.previews.append(frame.data)
                    continue
                assert frame.type is aiohttp.WSMsgType.TEXT, frame
                self.heard.append(json.loads(frame.data))
                if wanted(self.heard[-1]):
                    return self.heard

    async def until_end(self, prompt_id: str) -> list[Message]:
        end = {"type": "executing", "data": {"node": None, "prompt_id": prompt_id}}
        return await self.until(lambda message: message == end)


@asynccontextmanager
async def engine(data: Path, faults: Faults | None = PAINT, **options: Any) -> AsyncIterator[Rig]:
    """Run an engine with a face and a clip of 24 frames uploaded."""
    app = create_app(data, faults=faults, preset="veryfast", **options)
    async with TestClient(TestServer(app)) as client:
        rig = Rig(client, data)
        await rig.upload(FACE, "face.png")
        clip = make_clip(data / "clip.mp4", sounds=["aac"])
        await rig.upload(clip)
        yield rig


def recorded(name: str, connection: str = "A") -> list[Message]:
    """Return the text frames of one socket in a recording."""
    return [entry["msg"] for entry in replay.read(name) if entry["kind"] == "ws" and entry["conn"] == connection]


def of_prompt(frames: list[Message], prompt_id: str) -> list[Message]:
    """Return the frames of one prompt."""
    return [frame for frame in frames if frame["data"].get("prompt_id") == prompt_id]


def shape(frames: list[Message]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the order of a prompt's frames: those that belong to no node, and for each node its own.

    Repeats are left out, and so is the order of nodes that do not depend on each other: ComfyUI's varies.
    """
    outer: dict[str, None] = {}
    nodes: dict[str, dict[str, None]] = {}
    for frame in frames:
        kind, data = frame["type"], frame["data"]
        if kind == "progress_state":
            node = list(data["nodes"])[-1]
            kind = f"{kind} {data['nodes'][node]['state']}"
        else:
            node = data.get("node")
        if node is None:
            outer[kind] = None
        else:
            nodes.setdefault(node, {})[kind] = None
    return list(outer), {node: list(kinds) for node, kinds in sorted(nodes.items())}


def order(frames: list[Message]) -> list[str]:
    """Return the nodes in the order they were executed."""
    return [f["data"]["node"] for f in frames if f["type"] == "executing" and f["data"]["node"] is not None]
