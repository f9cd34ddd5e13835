"""The engine's protocol, compared with recordings of ComfyUI."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import replay
from clips import make_clip
from engine_rig import FACE, Rig, engine, of_prompt, order, recorded, shape, workflow
from waiting import WAIT_S

from faceswap.engine import sockets
from faceswap.engine.faults import Faults, NodeFailure

UNUSED = ["swap_model", "face_restore_model", "face_restore_visibility", "face_boost"]
"""The options that have no use without networks."""


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with engine(tmp_path) as rig:
        yield rig


def keys(frame: dict[str, Any]) -> set[str]:
    return set(frame["data"])


@asynccontextmanager
async def held(folder: Path) -> AsyncIterator[tuple[Rig, Callable[[], None]]]:
    """Run an engine that waits with each prompt after its first frame until the function is called."""
    gate = folder / "released"
    async with engine(folder, Faults(hold_until=str(gate))) as rig:
        yield rig, gate.touch


async def test_a_prompt_sends_what_comfyui_sends(rig: Rig) -> None:
    frames = await rig.run(workflow())
    theirs = recorded("a_happy")
    assert shape(frames) == shape(theirs)
    assert order(frames)[0] == "8" and order(frames)[-1] == "9"
    assert {frame["type"]: keys(frame) for frame in frames} == {frame["type"]: keys(frame) for frame in theirs}
    assert [frame["type"] for frame in frames[:5]] == [frame["type"] for frame in theirs[:5]]
    assert [frame["type"] for frame in frames[-3:]] == [frame["type"] for frame in theirs[-3:]]


async def test_every_bar_runs_from_the_first_frame_to_the_last(rig: Rig) -> None:
    frames = await rig.run(workflow())
    for node in ("8", "3", "9"):
        bar = [f["data"] for f in frames if f["type"] == "progress" and f["data"]["node"] == node]
        assert bar[0]["value"] == 1 and bar[-1]["value"] == 24
        assert {data["max"] for data in bar} == {24}
        values = [data["value"] for data in bar]
        assert values == sorted(set(values))


async def test_the_history_reads_as_comfyui_writes_it(rig: Rig) -> None:
    await rig.run(workflow(), "mine")
    ours = (await rig.get("/history/mine"))["mine"]
    theirs = next(e["body"] for e in replay.read("a_happy") if e.get("path", "").startswith("/history/"))
    (theirs,) = theirs.values()
    assert ours.pop("faceswap") == {"3": {"frames": 24, "swapped": 24, "unused": UNUSED}}
    assert ours.keys() == theirs.keys()
    assert [type(part) for part in ours["prompt"]] == [type(part) for part in theirs["prompt"]]
    assert ours["prompt"][3:] == [{"client_id": "me"}, ["9"]]
    assert ours["prompt"][2]["3"]["inputs"] == theirs["prompt"][2]["3"]["inputs"]
    assert [name for name, _ in ours["status"]["messages"]] == [name for name, _ in theirs["status"]["messages"]]
    assert ours["meta"] == theirs["meta"]
    (gif,), (their_gif,) = ours["outputs"]["9"]["gifs"], theirs["outputs"]["9"]["gifs"]
    assert {**gif, "fullpath": ""} == {**their_gif, "fullpath": ""}


async def test_the_same_inputs_are_answered_from_the_cache(rig: Rig) -> None:
    first = await rig.run(workflow(), "one")
    again = await rig.run(workflow(), "two")
    assert shape(again) == shape(recorded("b_cached"))
    cached = next(frame for frame in again if frame["type"] == "execution_cached")
    assert cached["data"]["nodes"] == ["3", "8", "9", "10", "11", "12"]
    name = [next(f for f in run if f["type"] == "executed")["data"]["output"] for run in (first, again)]
    assert name[0] == name[1]


async def test_another_prefix_swaps_nothing_again(rig: Rig) -> None:
    await rig.run(workflow(), "one")
    frames = await rig.run(workflow(filename_prefix="job/other"), "two")
    assert order(frames) == ["9"]
    shown = next(f for f in frames if f["type"] == "executed")["data"]["output"]["gifs"][0]
    assert (shown["subfolder"], shown["filename"]) == ("job", "other_00001-audio.mp4")
    assert (rig.data / "output" / "job" / shown["filename"]).stat().st_size > 0


async def test_a_swap_from_the_cache_tells_what_it_did_too(rig: Rig) -> None:
    await rig.run(workflow(), "one")
    assert order(await rig.run(workflow(filename_prefix="job/other"), "two")) == ["9"]
    assert (await rig.get("/history/two"))["two"]["faceswap"] == {"3": {"frames": 24, "swapped": 24, "unused": UNUSED}}


async def test_a_swap_that_is_turned_off_tells_that_it_changed_nothing(rig: Rig) -> None:
    graph = workflow()
    graph["3"]["inputs"]["enabled"] = False
    await rig.swap(graph, "off")
    assert (await rig.get("/history/off"))["off"]["faceswap"] == {"3": {"frames": 24, "swapped": 0, "unused": []}}


async def test_a_cached_result_whose_file_is_gone_is_made_again(rig: Rig) -> None:
    (await rig.swap(workflow(), "one")).unlink()
    assert (await rig.swap(workflow(), "two")).exists()


async def test_free_forgets_what_was_cached(rig: Rig) -> None:
    await rig.run(workflow(), "one")
    await rig.post("/free", {"unload_models": True, "free_memory": True})
    assert list((rig.data / "temp").iterdir()) == []
    assert "3" in order(await rig.run(workflow(), "two"))


async def test_a_replaced_file_is_not_answered_from_the_cache(rig: Rig, tmp_path: Path) -> None:
    await rig.run(workflow(), "one")
    await rig.upload(make_clip(tmp_path / "other.mp4", 12), "clip.mp4", overwrite="true")
    frames = await rig.run(workflow(), "two")
    assert {f["data"]["max"] for f in frames if f["type"] == "progress"} == {12}


BROKEN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "bad-unknown_class": lambda g: g["3"].update(class_type="NoSuchNode"),
    "bad-no_class_type": lambda g: g["3"].pop("class_type"),
    "bad-missing_required_input": lambda g: g["3"]["inputs"].pop("swap_model"),
    "bad-missing_required_link": lambda g: g["3"]["inputs"].pop("input_image"),
    "bad-nonexistent_video": lambda g: g["8"]["inputs"].update(video="nope.mp4"),
    "bad-nonexistent_image_and_video": lambda g: (
        g["8"]["inputs"].update(video="nope.mp4"),
        g["10"]["inputs"].update(image="nope.png"),
    ),
    "bad-model_not_in_list": lambda g: g["3"]["inputs"].update(swap_model="missing.onnx"),
    "bad-value_too_big": lambda g: g["3"]["inputs"].update(face_restore_visibility=7),
    "bad-bad_float": lambda g: g["8"]["inputs"].update(force_rate="abc"),
    "bad-wrong_link_type": lambda g: g["3"]["inputs"].update(source_image=["11", 0]),
    "bad-link_to_no_node": lambda g: g["3"]["inputs"].update(input_image=["99", 0]),
    "bad-link_to_no_slot": lambda g: g["3"]["inputs"].update(input_image=["8", 17]),
    "bad-no_output_node": lambda g: g.pop("9"),
    "bad-empty_prompt": lambda g: g.clear(),
}


def without_tracebacks(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_tracebacks(part) for key, part in value.items() if key != "traceback"}
    return [without_tracebacks(part) for part in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_graph_is_refused_in_comfyuis_words(rig: Rig, name: str) -> None:
    graph = workflow()
    BROKEN[name](graph)
    theirs = next(e for e in replay.read("c_bad") if (e.get("req") or {}).get("prompt_id") == name)
    async with rig.client.post("/prompt", json={"prompt": graph, "prompt_id": name}) as response:
        assert response.status == theirs["status"]
        assert without_tracebacks(await response.json()) == without_tracebacks(theirs["body"])


async def test_a_node_without_inputs_is_refused_or_ignored(rig: Rig) -> None:
    async with rig.client.post("/prompt", json={"prompt": {"9": {"class_type": "VHS_VideoCombine"}}}) as response:
        assert response.status == 400
        errors = (await response.json())["node_errors"]["9"]["errors"]
        assert [error["type"] for error in errors] == ["exception_during_validation"]
    graph = workflow() | {"50": {"class_type": "ReActorFaceBoost"}}
    assert (await rig.swap(graph)).exists()


async def test_a_graph_that_goes_in_circles_is_refused(rig: Rig) -> None:
    graph = workflow()
    graph["3"]["inputs"]["input_image"] = ["3", 0]
    async with rig.client.post("/prompt", json={"prompt": graph}) as response:
        assert response.status == 400


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ("{}", 400, "no_prompt"),
        ('{"prompt": []}', 400, "prompt_no_outputs"),
        ("no json", 500, None),
        ("[1]", 500, None),
    ],
)
async def test_a_body_without_a_prompt_is_refused(rig: Rig, body: str, status: int, kind: str | None) -> None:
    async with rig.client.post("/prompt", data=body) as response:
        assert response.status == status
        if kind:
            assert (await response.json())["error"]["type"] == kind
        else:
            assert await response.text() == "500 Internal Server Error\n\nServer got itself in trouble"


async def test_a_good_output_runs_beside_a_bad_one(rig: Rig) -> None:
    graph = workflow()
    graph["20"] = {"class_type": "VHS_LoadVideo", "inputs": {**graph["8"]["inputs"], "video": "nope.mp4"}}
    graph["21"] = {"class_type": "VHS_VideoCombine", "inputs": {**graph["9"]["inputs"], "images": ["20", 0]}}
    answer = await rig.submit(graph, "half")
    assert answer["node_errors"]["20"]["dependent_outputs"] == ["21"]
    assert list((await rig.ended("half"))["outputs"]) == ["9"]


async def test_an_unknown_input_changes_nothing(rig: Rig) -> None:
    graph = workflow()
    graph["11"]["inputs"]["no_such_input"] = ["404", 3]
    assert (await rig.swap(graph)).exists()


async def test_the_error_of_a_node_is_told_as_comfyui_tells_it(tmp_path: Path) -> None:
    failure = NodeFailure("ReActorFaceSwap", "RuntimeError", "rig: stand-in failure at frame 20", at_frame=20)
    async with engine(tmp_path, Faults(paint=True, raise_in_node=failure)) as rig:
        frames = await rig.run(workflow())
        entry = (await rig.get("/history/p"))["p"]
    theirs = recorded("d_runtime_error")
    ended = next(i for i, frame in enumerate(theirs) if frame["data"].get("node", "") is None)
    error, their_error = (next(f for f in run if f["type"] == "execution_error") for run in (frames, theirs))
    assert shape(frames)[0] == shape(theirs[: ended + 1])[0]
    assert shape(frames)[1]["3"] == shape(theirs[: ended + 1])[1]["3"]
    assert keys(error) == keys(their_error)
    same = ("node_id", "node_type", "exception_message", "exception_type")
    assert [error["data"][name] for name in same] == [their_error["data"][name] for name in same]
    assert entry["status"]["status_str"] == "error" and not entry["status"]["completed"]


async def test_a_damaged_video_is_an_error_of_its_node(rig: Rig, tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video" * 100)
    await rig.upload(bad)
    frames = await rig.run(workflow("bad.mp4"))
    error = next(frame["data"] for frame in frames if frame["type"] == "execution_error")
    assert (error["node_id"], error["exception_type"]) == ("8", "ValueError")


async def test_a_playlist_opens_no_other_file(rig: Rig, tmp_path: Path) -> None:
    playlist = tmp_path / "list.mp4"
    playlist.write_text("ffconcat version 1.0\nfile clip.mp4\n")
    await rig.upload(playlist)
    frames = await rig.run(workflow("list.mp4"))
    error = next(frame["data"] for frame in frames if frame["type"] == "execution_error")
    assert (error["node_id"], error["exception_type"]) == ("8", "ValueError")


async def test_an_interrupt_takes_effect_within_a_frame(tmp_path: Path) -> None:
    async with engine(tmp_path, Faults(hold_until="/never")) as rig, rig.socket() as mine:
        await rig.submit(workflow(), "p")
        await mine.until(lambda f: f["type"] == "progress" and f["data"]["node"] == "3")
        await rig.post("/interrupt", {"prompt_id": "someone-else"})
        await rig.post("/interrupt", {"prompt_id": "p"})
        frames = await mine.until_end("p")
        theirs = recorded("e_interrupt")
        told, their_told = (next(f for f in run if f["type"] == "execution_interrupted") for run in (frames, theirs))
        assert keys(told) == keys(their_told)
        assert (told["data"]["node_id"], told["data"]["node_type"]) == ("3", "ReActorFaceSwap")
        assert shape(frames)[0] == shape(theirs[: theirs.index(their_told) + 3])[0]
        status = (await rig.ended("p"))["status"]
        assert (status["status_str"], status["messages"][-1][0]) == ("error", "execution_interrupted")
        assert list((tmp_path / "temp").iterdir()) == []


async def test_an_interrupt_without_an_id_stops_whoever_runs_and_nothing_later(tmp_path: Path) -> None:
    async with held(tmp_path) as (rig, release):
        await rig.post("/interrupt")
        async with rig.socket() as mine:
            await rig.submit(workflow(), "p")
            await mine.until(lambda f: f["type"] == "progress" and f["data"]["node"] == "3")
            await rig.post("/interrupt")
            await mine.until(lambda f: f["type"] == "execution_interrupted")
        release()
        await rig.swap(workflow(), "next")


async def test_a_deleted_prompt_leaves_no_trace(tmp_path: Path) -> None:
    async with held(tmp_path) as (rig, release), rig.socket() as mine:
        for name in ("one", "two", "three"):
            await rig.submit(workflow(filename_prefix=name), name)
        await mine.until(lambda f: f["type"] == "progress" and f["data"]["node"] == "3")
        await rig.post("/interrupt", {"prompt_id": "three"})
        await rig.post("/queue", {"delete": ["two", "one", "nope"]})
        queue = await rig.get("/queue")
        assert [[entry[1] for entry in queue[part]] for part in ("queue_running", "queue_pending")] == [
            ["one"],
            ["three"],
        ]
        release()
        await mine.until_end("three")
        assert list(await rig.get("/history")) == ["one", "three"]
        assert all(entry["status"]["completed"] for entry in (await rig.get("/history")).values())


async def test_clearing_the_queue_spares_what_runs(tmp_path: Path) -> None:
    async with held(tmp_path) as (rig, release), rig.socket() as mine:
        await rig.submit(workflow(), "one")
        await rig.submit(workflow(), "two")
        await mine.until(lambda f: f["type"] == "progress" and f["data"]["node"] == "3")
        await rig.post("/queue", {"clear": True})
        assert await rig.get("/prompt") == {"exec_info": {"queue_remaining": 1}}
        release()
        await mine.until_end("one")
        assert await rig.get("/history/two") == {}


async def test_an_engine_that_stops_begins_no_prompt_that_waits(tmp_path: Path) -> None:
    async with held(tmp_path) as (rig, _), rig.socket() as mine:
        await rig.submit(workflow(), "one")
        await rig.submit(workflow(), "two")
        await mine.until(lambda f: f["type"] == "progress" and f["data"]["node"] == "3")


async def test_prompts_run_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    async with held(tmp_path) as (rig, release), rig.socket() as mine:
        numbers = []
        for name, more in (("pa", {}), ("pb", {}), ("pc", {"front": True}), ("pd", {"number": -1000.5})):
            numbers.append((await rig.submit(workflow(filename_prefix=name), name, **more))["number"])
            if name == "pa":
                await mine.until(lambda f: f["type"] == "progress" and f["data"]["node"] == "3")
        assert numbers == [0, 1, -2, -1000.5]
        release()
        await mine.until_end("pb")
        ends = [f["data"]["prompt_id"] for f in mine.heard if f["type"] == "execution_success"]
        assert ends == ["pa", "pd", "pc", "pb"]
    theirs = recorded("k_two_jobs")
    assert ends == [f["data"]["prompt_id"] for f in theirs if f["type"] == "execution_success"][2:]


async def test_the_same_id_twice_runs_twice(rig: Rig) -> None:
    async with rig.socket() as mine:
        for prefix in ("a", "b"):
            await rig.submit(workflow(filename_prefix=prefix), "same")
        await mine.until_end("same")
        await mine.until_end("same")
    assert {path.name for path in (rig.data / "output").iterdir()} == {"a_00001-audio.mp4", "b_00001-audio.mp4"}


async def test_frames_go_to_the_client_that_asked_and_to_no_other(rig: Rig) -> None:
    async with rig.socket() as mine, rig.socket("other") as other:
        await rig.submit(workflow(), "p")
        await mine.until_end("p")
        await rig.submit(workflow(), "q", client_id="other")
        await other.until_end("q")
    assert {frame["type"] for frame in of_prompt(other.heard, "p")} == set()
    assert [f for f in other.heard if f["type"] == "status"]


async def test_who_reconnects_is_told_the_node_that_runs(tmp_path: Path) -> None:
    async with held(tmp_path) as (rig, release):
        async with rig.socket() as mine:
            await rig.submit(workflow(), "p")
            await mine.until(lambda f: f["type"] == "progress" and f["data"]["node"] == "3")
        async with rig.socket() as mine:
            await mine.until(lambda f: f["type"] == "status")
            release()
            frames = await mine.until_end("p")
    theirs = recorded("g_reconnect", "A2")
    assert frames[1] == theirs[1] == {"type": "executing", "data": {"node": "3"}}
    assert frames[0]["data"].keys() == theirs[0]["data"].keys()


async def test_a_second_socket_goes_on_hearing_when_the_first_closes(rig: Rig) -> None:
    async with rig.socket() as second:
        async with rig.socket() as first:
            await first.until(lambda f: f["type"] == "status")
        await rig.submit(workflow(), "p")
        await second.until_end("p")


async def stalled_reader(rig: Rig) -> socket.socket:
    """Open a WebSocket of the client `me` that reads nothing after its handshake."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(connection, (rig.client.host, rig.client.port))
    request = (
        b"GET /ws?clientId=me HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    await loop.sock_sendall(connection, request)
    assert (await loop.sock_recv(connection, 12)).endswith(b" 101")
    return connection


LONG_ID = "x" * 100_000
"""Makes the frames of a prompt so large that a few of them fill every buffer on their way."""


async def test_a_reader_that_stops_reading_starves_nobody(rig: Rig) -> None:
    with await stalled_reader(rig):
        async with rig.socket() as reader:
            await rig.submit(workflow(), LONG_ID)
            await reader.until_end(LONG_ID)


async def test_a_reader_that_falls_too_far_behind_is_cut_off(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "OUTBOX_FRAMES", 10)
    loop = asyncio.get_running_loop()
    with await stalled_reader(rig) as connection:
        await rig.submit(workflow(), LONG_ID)
        async with asyncio.timeout(WAIT_S):
            while (await rig.get("/prompt"))["exec_info"]["queue_remaining"]:
                await asyncio.sleep(0.02)
            while await loop.sock_recv(connection, 1 << 20):
                pass


async def test_previews_go_to_clients_that_asked_for_them(tmp_path: Path) -> None:
    flags = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
    async with engine(tmp_path) as rig, rig.socket() as plain, rig.socket() as asking:
        await asking.connection.send_json(flags)
        told = (await asking.until(lambda f: f["type"] == "feature_flags"))[-1]
        await rig.submit(workflow(), "p")
        await plain.until_end("p")
        await asking.until_end("p")
    assert told["data"] == {"supports_preview_metadata": True, "max_upload_size": 2 << 30, "faceswap_streams": True}
    assert plain.previews == []
    kind, length = struct.unpack(">II", asking.previews[0][:8])
    metadata = json.loads(asking.previews[0][8 : 8 + length])
    theirs = next(entry for entry in replay.read("l_preview_flags") if entry["kind"] == "ws-bin")
    assert kind == theirs["ev"] == 4
    assert metadata.keys() == json.loads(theirs["ascii"][: theirs["second"]]).keys()
    assert (metadata["prompt_id"], metadata["node_id"]) == ("p", "3")
    assert asking.previews[0][8 + length :].startswith(b"\xff\xd8")


async def test_a_name_taken_by_other_bytes_is_changed(rig: Rig, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"one")
    two.write_bytes(b"two")
    names = [(await rig.upload(path, "x.mp4"))["name"] for path in (one, one, two, two, one)]
    assert names == ["x.mp4", "x.mp4", "x (1).mp4", "x (1).mp4", "x.mp4"]
    assert (await rig.upload(two, "x.mp4", overwrite="true"))["name"] == "x.mp4"
    assert (rig.data / "input" / "x.mp4").read_bytes() == b"two"


async def test_an_upload_goes_into_its_subfolder_and_runs_from_there(rig: Rig) -> None:
    answer = await rig.upload(FACE, "f.png", subfolder="job-1")
    assert answer == {"name": "f.png", "subfolder": "job-1", "type": "input"}
    assert (await rig.swap(workflow(image="job-1/f.png"))).exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "../x.png"},
        {"name": ".."},
        {"subfolder": "../out"},
        {"subfolder": "/etc"},
        {"type": "models"},
        {"name": "a\0b"},
    ],
)
async def test_nothing_is_written_outside_the_folders(rig: Rig, fields: dict[str, str]) -> None:
    form = aiohttp.FormData(quote_fields=False)
    form.add_field("image", b"x", filename=fields.get("name", "x.png").replace("\0", "%00"))
    for name in ("subfolder", "type"):
        if name in fields:
            form.add_field(name, fields[name])
    async with rig.client.post("/upload/image", data=form) as response:
        assert response.status == 400 or "\0" in fields.get("name", "")
    assert {path.name for path in rig.data.iterdir()} == {"input", "output", "temp", "clip.mp4", ".lock"}


@pytest.mark.parametrize("video", ["../clip.mp4", "/etc/passwd", "clip.mp4/../../clip.mp4", "clip.mp4 [temp]"])
async def test_a_graph_cannot_name_files_outside_the_folders(rig: Rig, video: str) -> None:
    async with rig.client.post("/prompt", json={"prompt": workflow(video)}) as response:
        assert response.status == 400
        errors = (await response.json())["node_errors"]["8"]["errors"]
        assert [error["type"] for error in errors] == ["custom_validation_failed"]


@pytest.mark.parametrize("prefix", ["../x", "/x", "a/../../x"])
async def test_an_output_prefix_cannot_lead_outside(rig: Rig, prefix: str) -> None:
    frames = await rig.run(workflow(filename_prefix=prefix))
    error = next(frame["data"] for frame in frames if frame["type"] == "execution_error")
    assert error["node_id"] == "9"


async def _in_chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 100):
        yield data[start : start + 100]


@pytest.mark.parametrize("chunked", [False, True])
async def test_an_upload_above_the_limit_is_refused(rig: Rig, chunked: bool) -> None:
    await rig.post("/faults", {"max_upload_size": 1000})
    assert (await rig.get("/features"))["max_upload_size"] == 1000
    body = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x.bin"\r\n\r\n%b\r\n--b--\r\n' % bytes(2000)
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    data = _in_chunks(body) if chunked else body
    async with rig.client.post("/upload/image", data=data, headers=headers) as response:
        assert response.status == 413
        assert response.content_type == "text/plain"
    assert list((rig.data / "temp").iterdir()) == []
    assert not (rig.data / "input" / "x.bin").exists()


async def test_an_output_is_served_whole_in_ranges_and_by_its_head(rig: Rig) -> None:
    path = await rig.swap(workflow(filename_prefix="job/seg"))
    url = f"/view?filename={path.name}&subfolder=job&type=output"
    async with rig.client.get(url) as response:
        assert response.content_type == "video/mp4" and response.headers["ETag"]
        assert await response.read() == path.read_bytes()
    async with rig.client.get(url, headers={"Range": "bytes=10-19"}) as response:
        assert response.status == 206
        assert await response.read() == path.read_bytes()[10:20]
    async with rig.client.head(url) as response:
        assert response.status == 200 and response.content_length == path.stat().st_size


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("filename=nope.mp4", 404),
        ("filename=../clip.mp4", 400),
        ("filename=clip.mp4&subfolder=..&type=output", 400),
        ("filename=x&type=models", 400),
        ("", 400),
    ],
)
async def test_only_files_of_the_folders_can_be_viewed(rig: Rig, query: str, status: int) -> None:
    async with rig.client.get(f"/view?{query}") as response:
        assert response.status == status


async def test_a_page_of_another_site_is_refused(rig: Rig) -> None:
    own = f"http://{rig.client.host}:{rig.client.port}"
    for origin, status in (("http://evil.example", 403), ("null", 403), ("http://[", 403), (own, 200)):
        async with rig.client.get("/queue", headers={"Origin": origin}) as response:
            assert response.status == status


async def test_the_node_classes_are_described_as_comfyui_does(rig: Rig) -> None:
    ours = await rig.get("/object_info")
    theirs = json.loads((replay.TRANSCRIPTS.parent / "object_info.json").read_text("utf-8"))
    # As the sources of ComfyUI and ReActor describe them; the others are recorded.
    assert ours.keys() - theirs.keys() == {"ImageBatch", "ReActorBuildFaceModel", "SaveImage"}
    for name, description in theirs.items():
        assert ours[name].keys() == description.keys()
        assert ours[name]["input_order"] == description["input_order"]
        assert ours[name]["output"] == description["output"]
        assert ours[name]["output_name"] == description["output_name"]
    assert ours["VHS_LoadVideo"]["input"]["required"]["video"][0] == ["clip.mp4"]
    assert ours["LoadImage"]["input"]["required"]["image"][0] == ["face.png"]
    assert await rig.get("/object_info/LoadImage") == {"LoadImage": ours["LoadImage"]}
    assert await rig.get("/object_info/NoSuchNode") == {}


async def test_every_route_answers_under_api_too(rig: Rig) -> None:
    for path in ("/queue", "/history", "/features", "/object_info/LoadImage", "/prompt"):
        assert await rig.get(f"/api{path}") == await rig.get(path)
    assert {"system", "devices"} == set(await rig.get("/api/system_stats"))


async def test_the_history_can_be_read_in_parts_and_erased(rig: Rig) -> None:
    for name in ("a", "b", "c"):
        await rig.swap(workflow(), name)
    assert list(await rig.get("/history?max_items=2")) == ["b", "c"]
    await rig.post("/history", {"delete": ["b"]})
    assert list(await rig.get("/history")) == ["a", "c"]
    await rig.post("/history", {"clear": True})
    assert await rig.get("/history") == {}


async def test_an_engine_that_stops_ends_its_prompt_and_says_goodbye(tmp_path: Path) -> None:
    async with engine(tmp_path, Faults(wait_per_frame_s=10 * WAIT_S)) as rig, rig.socket() as mine:
        await rig.submit(workflow(), "p")
        await mine.until(lambda f: f["type"] == "executing" and f["data"]["node"] == "3")
        closing = asyncio.create_task(rig.client.server.close())
        async with asyncio.timeout(WAIT_S):
            while not mine.connection.closed:
                await mine.connection.receive()
            await closing
        assert mine.connection.close_code == aiohttp.WSCloseCode.GOING_AWAY


async def test_a_field_of_an_upload_has_an_end(rig: Rig) -> None:
    form = aiohttp.FormData({"subfolder": "x" * 5000, "image": "no file"})
    form.add_field("image", b"x", filename="x.png")
    async with rig.client.post("/upload/image", data=form) as response:
        assert response.status == 400
    body = b'{"prompt": {}, "extra_data": "' + b"x" * (33 << 20) + b'"}'

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 1 << 20):
            yield body[start : start + (1 << 20)]

    async with rig.client.post("/prompt", data=pieces()) as response:
        assert response.status == 413
