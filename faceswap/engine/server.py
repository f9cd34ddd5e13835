"""The engine's HTTP and WebSocket interface, which is ComfyUI's.

Routes, field names, status codes and error bodies follow ComfyUI 0.3.64; each also answers under `/api`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import platform
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web
from aiohttp.helpers import content_disposition_header
from aiohttp.typedefs import Handler

from ..marks import PEOPLE_DATA
from .access import guard
from .catalog import describe, file_checks
from .execution import Executor, Prompt
from .faults import Faults, FaultSwitch, die
from .folders import Folders, OutsideError
from .graph import error_body, validate
from .prompts import Prompts
from .sockets import Socket, Sockets, message
from .uploads import receive

log = logging.getLogger(__name__)

PROTOCOL_VERSION = "0.3.64"
"""The ComfyUI whose protocol this is."""

MAX_BODY_BYTES = 32 << 20
"""Of a request that is no upload: a graph is a few KB."""

_SERVER_ERROR = "500 Internal Server Error\n\nServer got itself in trouble"


@dataclass
class Engine:
    """The parts of a running engine."""

    folders: Folders
    prompts: Prompts
    sockets: Sockets
    faults: FaultSwitch
    upload_limit: int
    worker: asyncio.Task[None]
    """Runs the prompts; it ends only by an error of the engine itself."""
    posted: int = 0

    @property
    def max_upload_size(self) -> int:
        """Most bytes of an upload."""
        limit = self.faults.now.max_upload_size
        return self.upload_limit if limit is None else limit

    def features(self) -> dict[str, Any]:
        """Return the features as `/features` answers them."""
        return {
            "supports_preview_metadata": True,
            "max_upload_size": self.max_upload_size,
            "faceswap_streams": self.faults.now.streams,
        }


ENGINE = web.AppKey("engine", Engine)


def create_app(
    data_dir: Path,
    *,
    models_dir: Path | None = None,
    token: str | None = None,
    faults: Faults | None = None,
    max_upload_size: int = 2 << 30,
    preset: str = "medium",
) -> web.Application:
    """Return the engine as an application.

    `data_dir` gets the folders `input`, `output` and `temp`; `models_dir` has the operator's networks, by default a
    folder `models` there; `token` is asked of every caller, None lets everybody in; `max_upload_size` is in bytes;
    `preset` is x264's.
    Only one engine at a time can have a `data_dir`: starting another raises BlockingIOError.
    With `faults`, even empty ones, `POST /faults` changes what goes wrong.
    """

    async def engine(app: web.Application) -> AsyncIterator[None]:
        folders, sockets = Folders(data_dir, models_dir), Sockets()
        with folders.claimed():
            folders.delete_partial()
            prompts = Prompts(Executor(folders, preset), sockets)
            switch = FaultSwitch(faults or Faults())
            worker = asyncio.create_task(prompts.work(), name="prompts")
            app[ENGINE] = Engine(folders, prompts, sockets, switch, max_upload_size, worker)
            yield
            await prompts.close()
            worker.cancel()
            with suppress(asyncio.CancelledError):
                await worker

    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[guard(token), delay_answer])
    app.cleanup_ctx.append(engine)
    app.on_shutdown.append(close_sockets)
    for prefix in ("", "/api"):
        app.add_routes(web.route(at.method, prefix + at.path, at.handler, **at.kwargs) for at in ROUTES)
    if faults is not None:
        app.router.add_post("/faults", set_faults)
    return app


@web.middleware
async def delay_answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Delay the answer when a fault says so."""
    delay = request.app[ENGINE].faults.now.http_delay_s
    if delay and request.path not in ("/faults", "/ws", "/api/ws"):
        await asyncio.sleep(delay)
    return await handler(request)


async def upload_image(request: web.Request) -> web.Response:
    """Handle `POST /upload/image`."""
    engine = request.app[ENGINE]
    return web.json_response(await receive(request, engine.folders, engine.max_upload_size))


async def post_prompt(request: web.Request) -> web.StreamResponse:
    """Handle `POST /prompt`: validate a graph and queue it."""
    engine, body = request.app[ENGINE], await _json_object(request)
    faults = engine.faults.take()
    if faults.prompt_500:
        return web.Response(status=500, text=_SERVER_ERROR)
    number = _number(engine, body)
    graph = body.get("prompt")
    if "prompt" not in body:
        return _refusal(error_body("no_prompt", "No prompt provided", "No prompt provided"))
    if not isinstance(graph, dict):
        return _refusal(error_body("prompt_no_outputs", "Prompt has no outputs"))
    validation = validate(graph, describe(engine.folders), file_checks(engine.folders))
    if validation.error is not None:
        return _refusal(validation.error, validation.node_errors)
    extra = dict(body.get("extra_data") or {})
    if "client_id" in body:
        extra["client_id"] = str(body["client_id"])
    prompt_id = str(body.get("prompt_id") or uuid.uuid4())
    people = extra.pop(PEOPLE_DATA, ())
    engine.prompts.submit(Prompt(number, prompt_id, graph, extra, validation.outputs, faults, people_data=people))
    if faults.prompt_500_but_queued:
        return web.Response(status=500, text=_SERVER_ERROR)
    answer = {"prompt_id": prompt_id, "number": number, "node_errors": validation.node_errors}
    response = web.json_response(answer)
    if faults.die_after_prompt:
        await response.prepare(request)
        await response.write_eof()
        die()
    return response


def _number(engine: Engine, body: dict[str, Any]) -> float:
    """Return a prompt's place in the queue: in order of arrival, in front of all, or as it says."""
    if "number" in body:
        return float(body["number"])
    number = engine.posted
    engine.posted += 1
    return -number if body.get("front") else number


def _refusal(error: dict[str, Any], node_errors: dict[str, Any] | None = None) -> web.Response:
    return web.json_response({"error": error, "node_errors": node_errors or {}}, status=400)


async def _json_object(request: web.Request) -> dict[str, Any]:
    """Return the body, which may be absent. One that is no JSON object answers 500 in plain text, as ComfyUI does."""
    try:
        body = await request.json() if request.can_read_body else {}
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise web.HTTPInternalServerError(text=_SERVER_ERROR)
    return body


async def get_prompt(request: web.Request) -> web.Response:
    """Handle `GET /prompt`."""
    return web.json_response({"exec_info": {"queue_remaining": request.app[ENGINE].prompts.remaining}})


async def get_queue(request: web.Request) -> web.Response:
    """Handle `GET /queue`."""
    prompts = request.app[ENGINE].prompts
    running = [prompts.running.listed()] if prompts.running else []
    pending = [prompt.listed() for prompt in prompts.pending]
    return web.json_response({"queue_running": running, "queue_pending": pending})


async def post_queue(request: web.Request) -> web.Response:
    """Handle `POST /queue`: delete some or all waiting prompts."""
    prompts, body = request.app[ENGINE].prompts, await _json_object(request)
    if body.get("clear"):
        prompts.delete([prompt.id for prompt in prompts.pending])
    prompts.delete(body.get("delete") or [])
    return web.Response()


async def interrupt(request: web.Request) -> web.Response:
    """Handle `POST /interrupt`."""
    body = await _json_object(request)
    request.app[ENGINE].prompts.interrupt(body.get("prompt_id"))
    return web.Response()


async def get_history(request: web.Request) -> web.Response:
    """Handle `GET /history` and `/history/{prompt_id}`."""
    engine = request.app[ENGINE]
    entries = [] if engine.faults.now.forget_history else list(engine.prompts.history.items())
    if "prompt_id" in request.match_info:
        wanted = request.match_info["prompt_id"]
        return web.json_response({key: entry for key, entry in entries if key == wanted})
    try:
        count = int(request.query.get("max_items", len(entries)))
        offset = int(request.query.get("offset", -1))
    except ValueError:
        raise web.HTTPBadRequest from None
    first = offset if offset >= 0 else max(0, len(entries) - count)
    return web.json_response(dict(entries[first : first + count]))


async def post_history(request: web.Request) -> web.Response:
    """Handle `POST /history`: delete some or all entries."""
    history, body = request.app[ENGINE].prompts.history, await _json_object(request)
    for prompt_id in list(history) if body.get("clear") else body.get("delete") or []:
        history.pop(prompt_id, None)
    return web.Response()


async def view(request: web.Request) -> web.StreamResponse:
    """Handle `GET /view`: send a file of one of the three folders."""
    query = request.query
    kind, subfolder = query.get("type", "output"), query.get("subfolder", "")
    try:
        path = request.app[ENGINE].folders.file(kind, subfolder, query.get("filename", ""))
    except OutsideError:
        raise web.HTTPBadRequest from None
    if not path.is_file():
        raise web.HTTPNotFound
    return web.FileResponse(
        path, headers={"Content-Disposition": content_disposition_header("inline", filename=path.name)}
    )


async def object_info(request: web.Request) -> web.Response:
    """Handle `GET /object_info` and `/object_info/{class}`."""
    descriptions = describe(request.app[ENGINE].folders)
    name = request.match_info.get("class")
    if name is not None:
        descriptions = {name: descriptions[name]} if name in descriptions else {}
    return web.json_response(descriptions)


async def system_stats(request: web.Request) -> web.Response:
    """Handle `GET /system_stats`."""
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    memory = {"vram_total": total, "vram_free": free, "torch_vram_total": total, "torch_vram_free": free}
    system = {
        "os": os.name,
        "ram_total": total,
        "ram_free": free,
        "comfyui_version": PROTOCOL_VERSION,
        "python_version": sys.version,
        "pytorch_version": "none",
        "embedded_python": False,
        "argv": ["faceswap.engine"],
    }
    device = {"name": platform.processor() or "cpu", "type": "cpu", "index": None, **memory}
    return web.json_response({"system": system, "devices": [device]})


async def features(request: web.Request) -> web.Response:
    """Handle `GET /features`."""
    return web.json_response(request.app[ENGINE].features())


async def free(request: web.Request) -> web.Response:
    """Handle `POST /free`."""
    body = await _json_object(request)
    if body.get("unload_models") or body.get("free_memory"):
        request.app[ENGINE].prompts.free()
    return web.Response()


async def websocket(request: web.Request) -> web.WebSocketResponse:
    """Handle `GET /ws`: one socket from its opening to its end."""
    engine = request.app[ENGINE]
    response = web.WebSocketResponse()
    await response.prepare(request)
    client_id = request.query.get("clientId") or uuid.uuid4().hex
    socket = Socket(request, response, engine.faults)
    socket.put(message("status", {**engine.prompts.status(), "sid": client_id}))
    running = engine.prompts.running
    if running is not None and running.client_id == client_id and engine.prompts.running_node:
        socket.put(message("executing", {"node": engine.prompts.running_node}))
    engine.sockets.add(client_id, socket)
    writer = asyncio.create_task(socket.write())
    try:
        await _listen(response, socket, engine)
    finally:
        engine.sockets.remove(client_id, socket)
        writer.cancel()
        with suppress(asyncio.CancelledError, ConnectionError):
            await writer
    return response


async def close_sockets(app: web.Application) -> None:
    """Close the engine's sockets when the application shuts down."""
    if ENGINE in app:  # not when it could not start
        await app[ENGINE].sockets.close()


async def _listen(response: web.WebSocketResponse, socket: Socket, engine: Engine) -> None:
    """Read until the client leaves. Only its first message counts, and only if it announces its features."""
    first = True
    async for frame in response:
        if first and frame.type is WSMsgType.TEXT:
            try:
                said = json.loads(frame.data)
            except ValueError:
                said = None
            if isinstance(said, dict) and said.get("type") == "feature_flags":
                socket.wants_previews = bool((said.get("data") or {}).get("supports_preview_metadata"))
                socket.put(message("feature_flags", engine.features()))
        first = False


async def set_faults(request: web.Request) -> web.Response:
    """Handle `POST /faults`."""
    try:
        request.app[ENGINE].faults.now = Faults.parse(await _json_object(request))
    except (KeyError, TypeError, ValueError) as error:
        raise web.HTTPBadRequest(text=str(error)) from error
    return web.Response()


ROUTES = [
    web.post("/upload/image", upload_image),
    web.get("/prompt", get_prompt),
    web.post("/prompt", post_prompt),
    web.get("/queue", get_queue),
    web.post("/queue", post_queue),
    web.post("/interrupt", interrupt),
    web.get("/history", get_history),
    web.get("/history/{prompt_id}", get_history),
    web.post("/history", post_history),
    web.get("/view", view),
    web.get("/object_info", object_info),
    web.get("/object_info/{class}", object_info),
    web.get("/system_stats", system_stats),
    web.get("/features", features),
    web.post("/free", free),
    web.get("/ws", websocket),
]
