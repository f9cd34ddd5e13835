"""Handlers that submit jobs: `POST /face-swap` and `WebSocket /face-swap-ws`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

from aiohttp import WSCloseCode, WSMsgType, web

from ..errors import BadRequest, Conflict, Problem, RequestTimeout, TooLarge
from ..hub import Closing, Lagging
from ..intake import parse_object
from ..jobs import Job
from .jobs import cancel_job, parse_event_id
from .keys import SCHEDULER, STOPPING, STORE, SUBMITTER, owner_of
from .middleware import known_failures, problem_document
from .rate_limit import count_submission
from .stream import send_events, stream_events

T = TypeVar("T")

HEARTBEAT_S = 30.0
FIRST_FRAME_S = 60.0
CLOSE_S = 2.0
"""The time for the client's answer to a close."""
MAX_FRAME_BYTES = 16 * 1024 * 1024
QUEUED_MESSAGE = "Face swap workflow queued successfully. Use /status/{prompt_id} to check progress."


async def post_face_swap(request: web.Request) -> web.StreamResponse:
    """Submit a job, and answer with its events, or with its id at once."""
    await count_submission(request)
    job, submission = await request.app[SUBMITTER].submit_request(request, owner_of(request))
    request.app[SCHEDULER].wake()
    if submission.respond_async or submission.id_only:
        return _accepted(job, 202 if submission.respond_async else 200)
    return await stream_events(request, job.prompt_id, after=0)


def _accepted(job: Job, status: int) -> web.Response:
    url = f"/status/{job.prompt_id}"
    document = {
        "prompt_id": job.prompt_id,
        "status": job.state.value,
        "message": QUEUED_MESSAGE.format(prompt_id=job.prompt_id),
        "status_url": url,
        "output_prefix": job.output_name,
        "warnings": list(job.warnings),
    }
    headers = {"Location": url} if status == 200 else {"Location": url, "Preference-Applied": "respond-async"}
    return web.json_response(document, status=status, headers=headers)


async def face_swap_socket(request: web.Request) -> web.WebSocketResponse:
    """Submit a job from URLs or an upload, or subscribe to an existing one, and send its events."""
    # Uncompressed: a few bytes of a compressed message can expand to a whole frame's limit.
    socket = web.WebSocketResponse(timeout=CLOSE_S, heartbeat=HEARTBEAT_S, max_msg_size=MAX_FRAME_BYTES, compress=False)
    await socket.prepare(request)
    try:
        with known_failures():
            prompt_id, after = await _first_of(_begin(request, socket), _stopping(request))
            await _first_of(_listen(request, socket, prompt_id), send_events(request, socket, prompt_id, after))
        await socket.close()
    except Problem as problem:
        await _refuse(socket, problem)
    except Closing:
        await socket.close(code=WSCloseCode.GOING_AWAY, message=b"the service is stopping")
    except Lagging:
        await socket.close(code=WSCloseCode.TRY_AGAIN_LATER, message=b"too slow; subscribe with last_event_id")
    except (TimeoutError, ConnectionError):
        # The watcher is gone; the job continues.
        if not socket.closed and request.transport is not None:
            request.transport.abort()
    return socket


async def _refuse(socket: web.WebSocketResponse, problem: Problem) -> None:
    """Send the problem and close, if the client is still connected."""
    code = WSCloseCode.MESSAGE_TOO_BIG if isinstance(problem, TooLarge) else WSCloseCode.POLICY_VIOLATION
    with contextlib.suppress(ConnectionError):
        await socket.send_json({"id": 0, "event": "error", "data": problem_document(problem)})
        await socket.close(code=code)


async def _begin(request: web.Request, socket: web.WebSocketResponse) -> tuple[str, int]:
    """Read the first frame, and an upload; returns the job's id and the number of the event to start after."""
    first = await _first_frame(socket)
    if first.get("action") == "subscribe":
        # JSON may hold half a surrogate pair, which SQLite does not take.
        prompt_id = str(first.get("prompt_id")).encode("ascii", "replace").decode()
        job = await request.app[STORE].owned_job(prompt_id, owner_of(request))
        return job.prompt_id, parse_event_id(first.get("last_event_id"))
    traceparent = request.headers.get("traceparent")
    await count_submission(request)
    job = await request.app[SUBMITTER].submit_frames(first, socket, owner_of(request), traceparent)
    request.app[SCHEDULER].wake()
    return job.prompt_id, 0


async def _first_frame(socket: web.WebSocketResponse) -> dict[str, Any]:
    try:
        message = await socket.receive(timeout=FIRST_FRAME_S)
    except TimeoutError:
        raise RequestTimeout("The first frame did not come.", code="upload_stalled") from None
    if message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR):
        raise ConnectionResetError
    if message.type is not WSMsgType.TEXT:
        raise BadRequest("The first frame must be text: a JSON object.", code="malformed_json")
    return parse_object(message.data)


async def _first_of(*work: Coroutine[Any, Any, T]) -> T:
    """Run coroutines until the first ends, cancel the others, and return its result."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task.done()).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # A task refers to its exception, the exception to stack frames, and this frame to the tasks: a reference
        # circle, which would keep the upload in memory.
        tasks.clear()


async def _stopping(request: web.Request) -> NoReturn:
    """Raise `Closing` when the service stops."""
    await request.app[STOPPING].wait()
    raise Closing


async def _listen(request: web.Request, socket: web.WebSocketResponse, prompt_id: str) -> None:
    """Handle the client's messages until it closes, which does not cancel the job."""
    async for message in socket:
        if message.type is not WSMsgType.TEXT or parse_object(message.data) != {"action": "cancel"}:
            raise BadRequest("Nothing but {'action': 'cancel'} is understood now.", code="unknown_action")
        # A job that has just ended sends its own last event.
        with contextlib.suppress(Conflict):
            await cancel_job(request, prompt_id)
