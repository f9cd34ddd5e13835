"""A ComfyUI that only plays back: the frames of a recording over a real socket, its answers to the same calls.

The n-th socket a client opens hears what the n-th recorded one heard and ends as it did: reset where the recording has
code 1006, closed otherwise. The last is closed too, so `finished` means that everything was heard. Any socket after it
hears nothing. A call is answered with what it was answered in the recording, in that order, the last answer repeated.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections import defaultdict
from pathlib import Path
from typing import Any

from aiohttp import web

TRANSCRIPTS = Path(__file__).parent / "data" / "comfyui" / "transcripts"

ABRUPT = 1006


def read(name: str) -> list[dict[str, Any]]:
    """Return the entries of a recording, one a line."""
    with (TRANSCRIPTS / f"{name}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def frame(entry: dict[str, Any]) -> str | bytes:
    """Return the frame as it was on the wire; binary frames, of which only the start is recorded, are filled up."""
    if entry["kind"] == "ws":
        return json.dumps(entry["msg"])
    head = struct.pack(">II", entry["ev"], entry["second"]) + entry["ascii"].encode("latin-1")
    return head.ljust(entry["n"], b"\0")


class Replay:
    """Plays one recording. `heard` holds the first message of each socket."""

    def __init__(self, name: str) -> None:
        self.finished = asyncio.Event()
        self.heard: list[Any] = []
        self._connections: list[list[dict[str, Any]]] = []
        self._answers: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        connections: dict[str, list[dict[str, Any]]] = {}
        for entry in read(name):
            match entry["kind"]:
                case "ws-open":
                    connections[entry["conn"]] = []
                    self._connections.append(connections[entry["conn"]])
                case "ws" | "ws-bin" | "ws-closed":
                    connections[entry["conn"]].append(entry)
                case "http":
                    self._answers[_call(entry["method"], entry["path"], entry["req"])].append(entry)

    def app(self) -> web.Application:
        """Make the server, to be run by a test."""
        app = web.Application()
        app.router.add_get("/ws", self._play)
        app.router.add_route("*", "/{path:.*}", self._answer)
        return app

    async def _play(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(autoping=False)
        await socket.prepare(request)
        self.heard.append(await socket.receive_json())
        if not self._connections:
            await socket.receive()
            return socket
        for entry in self._connections.pop(0):
            if entry["kind"] == "ws-closed":
                if entry["code"] == ABRUPT and request.transport is not None:
                    await socket.ping()
                    await socket.receive()  # the pong: all of it has been read
                    request.transport.abort()
                break
            sent = frame(entry)
            await (socket.send_str(sent) if isinstance(sent, str) else socket.send_bytes(sent))
        await socket.close()
        if not self._connections:
            self.finished.set()
        return socket

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.json() if request.can_read_body else None
        entries = self._answers.get(_call(request.method, request.path_qs, body))
        if not entries:
            return web.json_response({})
        entry = entries.pop(0) if len(entries) > 1 else entries[0]
        text = entry["body"] if isinstance(entry["body"], str) else json.dumps(entry["body"])
        return web.Response(status=entry["status"], text=text, content_type="application/json")


def _call(method: str, path: str, body: Any) -> tuple[str, str]:
    """Return the key of a call: the method, the path, and for a prompt its id."""
    prompt_id = body.get("prompt_id", "") if path == "/prompt" and isinstance(body, dict) else ""
    return method, f"{path}#{prompt_id}"
