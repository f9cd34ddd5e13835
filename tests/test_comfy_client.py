"""The client against recorded answers and against servers that misbehave, over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from clips import make_clip, read_numbers
from processes import dead_url
from replay import Replay, read
from waiting import WAIT_S
from yarl import URL

from faceswap.comfy import client as client_module
from faceswap.comfy.client import ComfyClient, ComfyError, Features, Outcome, Place, QueueState
from faceswap.comfy.embedded import EmbeddedEngine
from faceswap.comfy.failures import PromptRejected
from faceswap.comfy.listener import Listener
from faceswap.comfy.messages import Executing, Message, OutputFile, Progress
from faceswap.errors import JobFailure
from faceswap.workflow import Workflow, extra_data

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
ROOT = Path(__file__).parent.parent
RESULT = OutputFile("clip_00001.mp4", "job-1", "output")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@asynccontextmanager
async def client_of(
    app: web.Application, prefix: str = "/", headers: dict[str, str] | None = None
) -> AsyncIterator[ComfyClient]:
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        yield ComfyClient(URL(str(server.make_url(prefix))), session, headers)


def answering(*routes: tuple[str, str, Handler]) -> web.Application:
    app = web.Application(client_max_size=2**24)
    for method, path, handler in routes:
        app.router.add_route(method, path, handler)
    return app


def saying(body: object, status: int = 200) -> web.Application:
    """Make a server with one answer for every request."""

    async def answer(_: web.Request) -> web.Response:
        text = body if isinstance(body, str) else json.dumps(body)
        return web.Response(text=text, status=status, content_type="application/json")

    return answering(("*", "/{path:.*}", answer))


REJECTIONS = {
    "bad-unknown_class": ("node_missing", "ComfyUI has no node class NoSuchNode; "),
    "bad-no_class_type": ("workflow_invalid", "missing the class_type"),
    "bad-missing_required_input": ("workflow_invalid", "swap_model of ReActorFaceSwap: Required input is missing"),
    "bad-missing_required_link": ("workflow_invalid", "input_image of ReActorFaceSwap: Required input is missing"),
    "bad-nonexistent_video": ("input_missing", "video of VHS_LoadVideo"),
    "bad-nonexistent_image_and_video": ("input_missing", "image of LoadImage"),
    "bad-model_not_in_list": ("model_missing", "no model missing.onnx (swap_model of ReActorFaceSwap)"),
    "bad-value_too_big": ("workflow_invalid", "Value 7.0 bigger than max of 1"),
    "bad-bad_float": ("workflow_invalid", "force_rate of VHS_LoadVideo"),
    "bad-wrong_link_type": ("workflow_invalid", "source_image of ReActorFaceSwap: Return type mismatch"),
    "bad-link_to_no_node": ("workflow_invalid", "images of ReActorFaceSwap"),
    "bad-link_to_no_slot": ("workflow_invalid", "images of ReActorFaceSwap"),
    "bad-no_output_node": ("workflow_invalid", "Prompt has no outputs"),
    "bad-empty_prompt": ("workflow_invalid", "Prompt has no outputs"),
    "bad-one_good_one_bad_output": ("input_missing", "video of VHS_LoadVideo"),
}


@pytest.mark.parametrize("prompt_id", REJECTIONS)
async def test_a_recorded_refusal_says_what_to_do(prompt_id: str) -> None:
    code, words = REJECTIONS[prompt_id]
    async with client_of(Replay("c_bad").app()) as client:
        with pytest.raises(PromptRejected) as refused:
            await client.submit({}, "cl-bad", prompt_id)
    assert refused.value.code == code
    assert words in refused.value.message
    assert "/srv" not in refused.value.message and "Traceback" not in refused.value.message


def test_every_recorded_refusal_is_expected_here() -> None:
    recorded = {
        entry["req"]["prompt_id"]
        for entry in read("c_bad")
        if entry["kind"] == "http" and entry["path"] == "/prompt" and entry["req"]
        if entry["status"] == 400 or entry["body"]["node_errors"]
    }
    assert recorded == REJECTIONS.keys()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            {"type": "invalid_prompt", "message": "Cannot execute because node ReActorFaceSwap does not exist."},
            "ComfyUI has no node class ReActorFaceSwap; install ComfyUI-ReActor and restart ComfyUI.",
        ),
        (
            {
                "type": "missing_node_type",
                "message": "Node 'Load Video' not found. The custom node may not be installed.",
                "extra_info": {"class_type": "VHS_LoadVideo"},
            },
            "ComfyUI has no node class VHS_LoadVideo; install ComfyUI-VideoHelperSuite and restart ComfyUI.",
        ),
    ],
)
async def test_a_missing_node_class_names_its_package(error: dict[str, Any], message: str) -> None:
    async with client_of(saying({"error": error, "node_errors": {}}, 400)) as client:
        with pytest.raises(PromptRejected) as refused:
            await client.submit({}, "c", "p")
    assert (refused.value.code, refused.value.message) == ("node_missing", message)


async def test_a_prompt_carries_its_ids_and_extra_data_and_keeps_the_id_that_comes_back() -> None:
    bodies = []

    async def prompt(request: web.Request) -> web.Response:
        bodies.append(await request.json())
        return web.json_response({"prompt_id": "an-older-comfyui-chose", "number": 1, "node_errors": {}})

    async with client_of(answering(("POST", "/prompt", prompt))) as client:
        assert await client.submit({"1": {}}, "c", "p", {"extra_pnginfo": {}}) == "an-older-comfyui-chose"
    assert bodies == [{"prompt": {"1": {}}, "client_id": "c", "prompt_id": "p", "extra_data": {"extra_pnginfo": {}}}]


async def test_a_prompt_taken_without_our_output_is_withdrawn() -> None:
    withdrawn = []
    errors = {"8": {"errors": [{"type": "custom_validation_failed"}], "dependent_outputs": ["9"], "class_type": "X"}}

    async def prompt(_: web.Request) -> web.Response:
        return web.json_response({"prompt_id": "p", "number": 1, "node_errors": errors})

    async def withdraw(request: web.Request) -> web.Response:
        withdrawn.append((request.path, await request.json()))
        return web.Response()

    app = answering(("POST", "/prompt", prompt), ("POST", "/queue", withdraw), ("POST", "/interrupt", withdraw))
    async with client_of(app) as client:
        with pytest.raises(PromptRejected):
            await client.submit({}, "c", "p", output_node="9")
        assert withdrawn == [("/queue", {"delete": ["p"]}), ("/interrupt", {"prompt_id": "p"})]
        assert await client.submit({}, "c", "p", output_node="20") == "p"


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        "text",
        {"error": "gone", "node_errors": []},
        {"error": {"message": 7}, "node_errors": {"3": {"errors": [None, {"type": [], "extra_info": 7}]}}},
        {"node_errors": {"3": {"errors": [{"type": "value_not_in_list", "extra_info": {"input_config": [[{}]]}}]}}},
    ],
)
async def test_a_refusal_of_any_shape_is_a_refusal(body: object) -> None:
    async with client_of(saying(json.dumps(body), 400)) as client:
        with pytest.raises(PromptRejected) as refused:
            await client.submit({}, "c", "p")
    assert refused.value.message.startswith("ComfyUI ")


async def test_the_recorded_queue_shrinks_as_prompts_are_deleted() -> None:
    async with client_of(Replay("f_delete_pending").app()) as client:
        assert await client.queue() == QueueState(("del1-123122",), ("del2-a18a86", "del3-6b49e0"))
        await client.cancel_pending("del2-a18a86")
        assert await client.queue() == QueueState(("del1-123122",), ("del3-6b49e0",))
        assert await client.outcome("del2-a18a86") is None


OUTCOMES = {
    ("a_happy", "29f67402-a98d-4438-84ff-7f56a8fd1451"): ("success", ["fastfaceswap_00001-audio.mp4"], None),
    ("b_cached", "a40fd3e5-ae9c-4798-af48-50f466d35838"): ("success", ["fastfaceswap_00001-audio.mp4"], None),
    ("d_runtime_error", "feed4e9e-59e9-41e4-9eb2-7fa73981b166"): ("error", [], "engine_error"),
    ("d_runtime_error", "c4eaf323-345e-4abc-801e-409b2872c8aa"): ("error", [], "out_of_memory"),
    ("d_runtime_error", "251837d7-d4bd-4225-9e3e-12016b0d2f87"): ("success", ["noaud_00001.mp4"], None),
    ("e_interrupt", "int-2fa55114"): ("interrupted", [], None),
    ("e_interrupt", "int9-a4dc2568"): ("interrupted", [], None),
    ("e_interrupt", "afterint-fb8bac01"): ("success", ["aft_00001-audio.mp4"], None),
    ("f_delete_pending", "del3-6b49e0"): ("success", ["d3_00001-audio.mp4"], None),
}


@pytest.mark.parametrize(("recording", "prompt_id"), OUTCOMES)
async def test_recorded_history_tells_how_each_prompt_ended(recording: str, prompt_id: str) -> None:
    async with client_of(Replay(recording).app()) as client:
        outcome = await client.outcome(prompt_id)
    assert outcome is not None
    files = [file.filename for files in outcome.outputs.values() for file in files]
    code = outcome.failure.code if outcome.failure else None
    assert (outcome.state, files, code) == OUTCOMES[recording, prompt_id]


JOBS = {
    "pending": (200, {"id": "p", "status": "pending", "outputs_count": 0}, Place.PENDING),
    "running": (200, {"id": "p", "status": "in_progress", "outputs_count": 0}, Place.RUNNING),
    "unknown": (404, {"error": "Job not found"}, None),
    "done": (
        200,
        {
            "id": "p",
            "status": "completed",
            "outputs": {"9": {"gifs": [{"filename": "a.mp4", "subfolder": "s", "type": "temp"}]}},
            "execution_status": {"status_str": "success", "completed": True, "messages": []},
        },
        "success",
    ),
    "interrupted": (
        200,
        {
            "id": "p",
            "status": "cancelled",
            "outputs": {},
            "execution_status": {
                "status_str": "error",
                "completed": False,
                "messages": [["execution_interrupted", {"prompt_id": "p"}]],
            },
        },
        "interrupted",
    ),
}
"""Answers of ComfyUI 0.33 to `GET /api/jobs/{id}`, each with its meaning."""


def newer(status: int, job: object, calls: list[str]) -> web.Application:
    """Make a ComfyUI that has `/api/jobs`."""

    async def jobs(request: web.Request) -> web.Response:
        calls.append(f"{request.method} {request.path_qs}")
        return web.json_response({"jobs": [], "pagination": {}})

    async def one(request: web.Request) -> web.Response:
        calls.append(f"{request.method} {request.path}")
        return web.json_response(job, status=status)

    async def cancel(request: web.Request) -> web.Response:
        calls.append(f"{request.method} {request.path}")
        return web.json_response({"cancelled": True})

    return answering(
        ("GET", "/api/jobs", jobs), ("GET", "/api/jobs/{id}", one), ("POST", "/api/jobs/{id}/cancel", cancel)
    )


@pytest.mark.parametrize("kind", JOBS)
async def test_a_newer_comfyui_is_asked_once_for_a_prompt(kind: str) -> None:
    status, job, meaning = JOBS[kind]
    calls: list[str] = []
    async with client_of(newer(status, job, calls)) as client:
        await client.find_jobs()
        found = await client.look("p")
        assert (found.state if isinstance(found, Outcome) else found) == meaning
        await client.stop("p", Place.RUNNING)
    assert calls == ["GET /api/jobs?limit=1", "GET /api/jobs/p", "POST /api/jobs/p/cancel"]


async def test_an_older_comfyui_is_asked_the_old_way_and_its_404_means_nothing() -> None:
    """Also behind a proxy that answers every unknown address as a newer one answers for an unknown prompt."""
    calls: list[str] = []

    async def note(request: web.Request) -> web.Response:
        calls.append(f"{request.method} {request.path}")
        answers = {
            "/history/p": web.json_response({}),
            "/queue": web.json_response({"queue_running": [[0, "p", {}, {}, []]], "queue_pending": []}),
            "/interrupt": web.Response(),
        }
        return answers.get(request.path) or web.json_response({"error": "Job not found"}, status=404)

    async with client_of(answering(("*", "/{path:.*}", note))) as client:
        await client.find_jobs()
        assert await client.look("p") is Place.RUNNING
        await client.stop("p", Place.RUNNING)
    assert calls == ["GET /api/jobs", "GET /history/p", "GET /queue", "POST /interrupt"]


async def test_a_prompt_that_ends_between_the_two_questions_is_found() -> None:
    histories: list[dict[str, Any]] = [{}, {"p": {"status": {"status_str": "success"}, "outputs": {}}}]

    async def history(_: web.Request) -> web.Response:
        return web.json_response(histories.pop(0))

    async def queue(_: web.Request) -> web.Response:
        return web.json_response({"queue_running": [], "queue_pending": []})

    async with client_of(answering(("GET", "/history/p", history), ("GET", "/queue", queue))) as client:
        assert await client.look("p") == Outcome("success", {})


async def test_after_a_crash_neither_queue_nor_history_knows_the_prompts() -> None:
    async with client_of(Replay("i_kill9").app()) as client:
        assert await client.queue() == QueueState((), ())
        for prompt_id in ("i-run", "i-pend", "i-done"):
            assert await client.outcome(prompt_id) is None


@pytest.mark.parametrize("status", [None, {"status_str": "running", "completed": False, "messages": []}])
async def test_history_without_a_final_status_is_no_outcome(status: object) -> None:
    async with client_of(saying({"p": {"outputs": {}, "status": status}})) as client:
        assert await client.outcome("p") is None


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "[" * 100_000,
        "[]",
        "null",
        '{"p": 7, "queue_running": 7, "queue_pending": []}',
        '{"p": {"status": 7}, "queue_running": [7], "queue_pending": []}',
        '{"p": {"status": {"status_str": "error", "messages": 7}}, "queue_running": [[1, 2]], "queue_pending": []}',
    ],
)
async def test_an_answer_of_hostile_shape_is_a_comfy_error(body: str) -> None:
    async with client_of(saying(body)) as client:
        for question in (client.queue(), client.outcome("p"), client.submit({}, "c", "p"), client.free_memory()):
            with pytest.raises(ComfyError):
                await question


@pytest.mark.parametrize(
    ("told", "shares"),
    [
        ({}, {}),
        ({"faceswap": {"3": {"frames": 8, "swapped": 2}, "4": {"frames": 8, "swapped": 0}}}, {"3": 0.25, "4": 0.0}),
        ({"faceswap": {"3": {"frames": 0, "swapped": 0}, "4": {"frames": 2, "swapped": 3}, "5": 1}}, {}),
        ({"faceswap": {"3": {"frames": "8", "swapped": 2}}}, {}),
        ({"faceswap": [1]}, {}),
    ],
)
async def test_what_an_engine_tells_of_its_swaps_is_read_where_it_makes_sense(
    told: dict[str, Any], shares: dict[str, float]
) -> None:
    entry = {"status": {"status_str": "success"}, "outputs": {}, **told}
    async with client_of(saying({"p": entry})) as client:
        outcome = await client.outcome("p")
    assert outcome is not None and outcome.swapped == shares


async def test_the_options_that_an_engine_had_no_use_for_are_read_where_they_are_names() -> None:
    told = {"3": {"unused": ["face_boost", 1]}, "4": {"unused": ["swap_model"]}, "5": {"unused": 2}, "6": None}
    async with client_of(
        saying({"p": {"status": {"status_str": "success"}, "outputs": {}, "faceswap": told}})
    ) as client:
        outcome = await client.outcome("p")
    assert outcome is not None and outcome.unused == {"face_boost", "swap_model"}


async def test_an_answer_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "ANSWER_LIMIT_BYTES", 1000)
    async with client_of(saying({"queue_running": ["x" * 2000], "queue_pending": []})) as client:
        with pytest.raises(ComfyError, match="too long"):
            await client.queue()


def storing(folder: Path, limit: int | None = None) -> web.Application:
    """Make an upload route that answers as ComfyUI does, with a size limit."""

    async def upload(request: web.Request) -> web.Response:
        parts = {}
        async for part in await request.multipart():
            parts[part.name] = part.filename
            if part.name == "image":
                (folder / str(part.filename)).write_bytes(await part.read())
            else:
                parts[part.name] = await part.text()
        return web.json_response({"name": parts["image"], "subfolder": parts["subfolder"], "type": parts["type"]})

    async def features(_: web.Request) -> web.Response:
        return web.json_response({"max_upload_size": float(limit)} if limit else {})

    return answering(("POST", "/upload/image", upload), ("GET", "/features", features))


async def test_an_upload_arrives_whole_under_its_own_name(tmp_path: Path) -> None:
    clip = tmp_path / "source.bin"
    clip.write_bytes(bytes(range(256)) * 4096)
    (tmp_path / "in").mkdir()
    async with client_of(storing(tmp_path / "in")) as client:
        assert await client.upload(clip, "clip (1).mp4", "job-1") == "job-1/clip (1).mp4"
        assert await client.upload(clip, "clip.mp4", "") == "clip.mp4"
    assert (tmp_path / "in" / "clip (1).mp4").read_bytes() == clip.read_bytes()


async def test_a_file_above_the_limit_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(bytes(3 * 2**20))
    async with client_of(storing(tmp_path, limit=2 * 2**20)) as client:
        with pytest.raises(JobFailure) as refused:
            await client.upload(clip, "clip2.mp4", "")
    assert refused.value.code == "upload_too_large"
    assert "its limit is 2 MB" in refused.value.message and "--max-upload-size 4" in refused.value.message
    assert not (tmp_path / "clip2.mp4").exists()


async def test_a_413_is_told_as_too_large(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"clip")
    async with client_of(saying("Request Entity Too Large", 413)) as client:
        with pytest.raises(JobFailure) as refused:
            await client.upload(clip, "clip.mp4", "")
    assert refused.value.code == "upload_too_large" and "--max-upload-size" in refused.value.message


async def test_a_413_is_heard_while_the_bytes_still_flow(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(bytes(8 * 2**20))

    async def upload(request: web.Request) -> web.Response:
        await request.post()
        return web.Response()

    app = web.Application(client_max_size=2**20)
    app.router.add_post("/upload/image", upload)
    async with client_of(app) as client:
        with pytest.raises(JobFailure, match="--max-upload-size 9"):
            await client.upload(clip, "clip.mp4", "")


@pytest.mark.parametrize(
    ("name", "subfolder"), [("../x", ""), ("x", "/etc"), ("x", "a/../.."), ("", ""), ("x [output]", ""), (7, "")]
)
async def test_a_returned_name_that_leaves_the_folder_is_not_used(name: object, subfolder: str, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"clip")
    async with client_of(saying({"name": name, "subfolder": subfolder, "type": "input"})) as client:
        with pytest.raises(ComfyError):
            await client.upload(clip, "clip.mp4", "")


def serving(respond: Handler) -> web.Application:
    return answering(("GET", "/view", respond))


async def test_a_download_is_asked_for_by_its_three_words_and_arrives_whole(tmp_path: Path) -> None:
    body = bytes(range(256)) * 20_000

    async def view(request: web.Request) -> web.Response:
        assert dict(request.query) == {"filename": "clip_00001.mp4", "subfolder": "job-1", "type": "output"}
        return web.Response(body=body)

    async with client_of(serving(view)) as client:
        assert await client.download(RESULT, tmp_path / "result.mp4", 10**8) == len(body)
    assert (tmp_path / "result.mp4").read_bytes() == body
    assert names(tmp_path) == ["result.mp4"]


async def test_a_download_cut_short_leaves_nothing_and_may_be_tried_again(tmp_path: Path) -> None:
    async def view(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"half")
        assert request.transport is not None
        request.transport.close()
        return response

    async with client_of(serving(view)) as client:
        with pytest.raises(ComfyError) as broken:
            await client.download(RESULT, tmp_path / "result.mp4", 10**6)
    assert broken.value.transient
    assert names(tmp_path) == []


@pytest.mark.parametrize(("status", "limit", "code"), [(404, 10**6, "output_missing"), (200, 1000, "output_too_large")])
async def test_a_download_that_cannot_be_leaves_nothing(status: int, limit: int, code: str, tmp_path: Path) -> None:
    async with client_of(saying("x" * 5000, status)) as client:
        with pytest.raises(JobFailure) as failed:
            await client.download(RESULT, tmp_path / "result.mp4", limit)
    assert failed.value.code == code
    assert names(tmp_path) == []


async def test_calls_keep_the_path_prefix_and_carry_the_headers() -> None:
    seen = []

    async def note(request: web.Request) -> web.Response:
        seen.append((request.raw_path, request.headers.get("X-Token")))
        return web.json_response({"system": {}})

    app = answering(("*", "/{path:.*}", note))
    async with client_of(app, "/gpu/1/", {"X-Token": "secret"}) as client:
        assert await client.free_memory() is None
        assert await client.object_info("Image Resize (a/b)") is None
        await client.free()
    assert seen == [
        ("/gpu/1/system_stats", "secret"),
        ("/gpu/1/object_info/Image%20Resize%20%28a%2Fb%29", "secret"),
        ("/gpu/1/free", "secret"),
    ]


async def test_credentials_in_the_address_are_sent_and_never_shown() -> None:
    seen = []

    async def note(request: web.Request) -> web.Response:
        seen.append(request.headers["Authorization"])
        return web.Response(status=403)

    async with TestServer(answering(("*", "/{path:.*}", note))) as server, aiohttp.ClientSession() as session:
        url = URL(str(server.make_url("/"))).with_user("jo").with_password("hush")
        client = ComfyClient(url, session)
        with pytest.raises(ComfyError) as refused:
            await client.queue()
    assert seen == ["Basic am86aHVzaA=="]
    assert "hush" not in f"{client.url} {refused.value} {refused.value.message}"
    assert "FACESWAP_COMFYUI_HEADERS" in refused.value.message and not refused.value.transient


@pytest.mark.parametrize(("status", "transient"), [(500, True), (503, True), (429, True), (404, False), (302, False)])
async def test_only_a_servers_own_trouble_may_pass(status: int, transient: bool) -> None:
    async with client_of(saying("500 Internal Server Error", status)) as client:
        with pytest.raises(ComfyError) as error:
            await client.submit({}, "c", "p")
    assert error.value.transient is transient


async def test_an_unreachable_server_may_pass() -> None:
    nobody = URL(dead_url())
    async with aiohttp.ClientSession() as session:
        client = ComfyClient(nobody, session)
        with pytest.raises(ComfyError) as error:
            await client.queue()
        assert error.value.transient and str(nobody.port) not in error.value.message


async def test_a_redirect_is_not_followed_for_our_headers_are_not_for_others() -> None:
    reached: list[str] = []

    async def redirect(_: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    async def elsewhere(request: web.Request) -> web.Response:
        reached.append(request.path)
        return web.json_response({"queue_running": [], "queue_pending": []})

    app = answering(("GET", "/queue", redirect), ("GET", "/elsewhere", elsewhere))
    async with client_of(app, headers={"Authorization": "Bearer secret"}) as client:
        with pytest.raises(ComfyError):
            await client.queue()
    assert reached == []


async def test_a_server_that_never_answers_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ComfyClient._call, "__defaults__", (0.05,))
    monkeypatch.setattr(client_module, "SILENCE_TIMEOUT_S", 0.05)

    async def hang(_: web.Request) -> web.Response:
        await asyncio.sleep(1)
        return web.Response()

    async with client_of(answering(("*", "/{path:.*}", hang))) as client:
        with pytest.raises(ComfyError, match="in time") as error:
            await client.queue()
    assert error.value.transient


@pytest.mark.parametrize(
    ("body", "limit"),
    [({"max_upload_size": 104857600.0}, 104857600), ({}, None), ({"max_upload_size": "x"}, None), ([], None)],
)
async def test_features_tell_the_upload_limit_in_whole_bytes(body: object, limit: int | None) -> None:
    async with client_of(saying(body)) as client:
        assert await client.features() == Features(limit)


async def test_features_are_asked_for_once_a_connection() -> None:
    asked: list[str] = []

    async def features(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.json_response({"max_upload_size": len(asked)})

    async with client_of(answering(("GET", "/features", features))) as client:
        assert [await client.known_features() for _ in range(3)] == [Features(1)] * 3
        client.forget()
        assert await client.known_features() == Features(2)
        assert await client.features() == await client.known_features() == Features(3)


async def test_an_older_server_has_no_features() -> None:
    async with client_of(saying("404: Not Found", 404)) as client:
        assert await client.features() == Features(None)


async def test_a_node_class_is_described_or_unknown() -> None:
    info = json.loads((ROOT / "tests" / "data" / "comfyui" / "object_info.json").read_text("utf-8"))
    async with client_of(saying({"LoadImage": info["LoadImage"]})) as client:
        described = await client.object_info("LoadImage")
        assert described is not None and "image" in described["input"]["required"]
        assert await client.object_info("NoSuchNode") is None


async def test_a_job_goes_through_the_embedded_engine_from_upload_to_file(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", 12)
    workflow = Workflow.load(ROOT / "workflows" / "FaceSwap-Reactor-API.json")
    engine = EmbeddedEngine(tmp_path / "engine")
    messages: list[Message] = []
    connected, ended = asyncio.Event(), asyncio.Event()

    def hear(message: Message) -> None:
        messages.append(message)
        if message == Executing("p-1", None):
            ended.set()

    async with aiohttp.ClientSession() as session:
        client = ComfyClient(await engine.start(), session, engine.headers)
        listener = asyncio.create_task(Listener(client, "cl-whole", hear, connected.set).run())
        try:
            await asyncio.wait_for(connected.wait(), WAIT_S)
            graph = workflow.build(
                video=await client.upload(clip, "clip.mp4", "job-1"),
                images=[await client.upload(ROOT / "faceswap" / "samples" / "astronaut.png", "face.png", "job-1")],
                output_prefix="job-1/part-0",
                options={"crf": 30},
                skip_first_frames=4,
                frame_load_cap=5,
            )
            assert await client.submit(graph, "cl-whole", "p-1", extra_data(), output_node=workflow.output) == "p-1"
            await asyncio.wait_for(ended.wait(), WAIT_S)
            outcome = await client.outcome("p-1")
            assert outcome is not None and (outcome.state, outcome.failure) == ("success", None)
            (file,) = outcome.outputs[workflow.output]
            assert await client.download(file, tmp_path / "out.mp4", 10**7) > 0
        finally:
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)
            await engine.stop()
    assert read_numbers(tmp_path / "out.mp4") == [4, 5, 6, 7, 8]
    assert messages.count(Executing("p-1", None)) == 1
    assert Executing("p-1", workflow.swap) in messages
    assert {workflow.role(message.node) for message in messages if isinstance(message, Progress)} >= {"swap", "combine"}
