"""Frames become messages, and no frame of ComfyUI or anyone else makes the parser raise."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay import TRANSCRIPTS, frame, read

from faceswap.comfy.failures import failure_from_error
from faceswap.comfy.messages import (
    Activity,
    Executing,
    Failed,
    Interrupted,
    OutputFile,
    Preview,
    Progress,
    output_files,
    parse,
)

JPEG = b"\xff\xd8\xff\xe0" + bytes(20)
PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)


def text(kind: object, data: object) -> str:
    return json.dumps({"type": kind, "data": data})


def with_metadata(metadata: bytes, image: bytes) -> bytes:
    return struct.pack(">II", 4, len(metadata)) + metadata + image


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        ("execution_start", {"prompt_id": "p", "timestamp": 1}, Activity("p")),
        ("execution_cached", {"prompt_id": "p", "nodes": ["3", "8"]}, Activity("p")),
        ("executing", {"prompt_id": "p", "node": "3", "display_node": "3"}, Executing("p", "3")),
        ("executing", {"prompt_id": "p", "node": None}, Executing("p", None)),
        ("executing", {"node": "3"}, Executing(None, "3")),
        ("progress", {"prompt_id": "p", "node": "3", "value": 7, "max": 72}, Progress("p", "3", 7.0, 72.0)),
        ("execution_success", {"prompt_id": "p"}, Activity("p")),
        ("execution_interrupted", {"prompt_id": "p", "node_id": "3"}, Interrupted("p")),
        ("executed", {"prompt_id": "p", "node": "9", "output": None}, Activity("p")),
        (
            "execution_error",
            {"prompt_id": "p", "node_id": "3", "node_type": "N", "exception_type": "E", "exception_message": "m"},
            Failed("p", "3", "N", "E", "m"),
        ),
        ("execution_error", {"prompt_id": "p"}, Failed("p", "", "", "", "")),
    ],
)
def test_each_kind_of_frame_is_its_message(kind: str, data: dict[str, Any], message: object) -> None:
    assert parse(text(kind, data)) == message


@pytest.mark.parametrize(
    ("output", "files"),
    [
        (None, ()),
        ({"text": ["hi"], "videos": [{"filename": "a.mp4"}]}, (OutputFile("a.mp4", "", "output"),)),
        ({"images": [{"filename": "b", "subfolder": "s", "type": "temp"}]}, (OutputFile("b", "s", "temp"),)),
    ],
)
def test_the_files_of_an_output_are_found_in_every_list(output: object, files: tuple[OutputFile, ...]) -> None:
    assert output_files(output) == files


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("executing", {"prompt_id": "p"}),
        ("executing", {"prompt_id": "p", "node": 3}),
        ("executing", {"node": None}),
        ("executing", {"prompt_id": ["p"], "node": None}),
        ("execution_success", {}),
        ("execution_success", {"prompt_id": None}),
        ("progress_state", {"prompt_id": "p", "nodes": {}}),
        ("status", {"status": {"exec_info": {"queue_remaining": 2}}, "sid": "c"}),
        ("feature_flags", {"max_upload_size": 104857600.0}),
        *(
            ("progress", {"prompt_id": "p", "node": "3", "value": value, "max": maximum})
            for value, maximum in [
                (1, 0),
                (1, -1),
                ("1", 2),
                (True, 2),
                (float("nan"), 2),
                (1, float("inf")),
                (None, 2),
            ]
        ),
        ("progress", {"prompt_id": "p", "node": "3", "value": 10**400, "max": 2}),
    ],
)
def test_a_frame_that_does_not_say_what_it_should_is_no_message(kind: str, data: dict[str, Any]) -> None:
    assert parse(text(kind, data)) is None


def test_a_malformed_end_is_not_taken_for_the_end() -> None:
    assert parse(text("executing", {"prompt_id": "p", "node": {}})) is None


def test_previews_come_with_and_without_metadata() -> None:
    metadata = json.dumps({"prompt_id": "p", "node_id": "3", "image_type": "image/png"}).encode()
    assert parse(with_metadata(metadata, JPEG)) == Preview("p", "3", JPEG)
    assert parse(struct.pack(">II", 1, 2) + PNG) == Preview(None, None, PNG)


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack(">II", 1, 1) + b"<svg onload=alert(1)>",
        struct.pack(">II", 3, 1) + JPEG,
        struct.pack(">II", 4, 2**32 - 1) + b"{}",
        with_metadata(b"{", JPEG),
        with_metadata(b'{"node_id":"3"}', JPEG),
        with_metadata(b"\xff\xfe", JPEG),
    ],
)
def test_a_binary_frame_without_a_picture_is_no_message(frame: bytes) -> None:
    assert parse(frame) is None


def test_lone_surrogates_become_text_that_can_be_stored() -> None:
    message = parse(
        '{"type":"execution_error","data":{"prompt_id":"p","exception_message":"a\\udce9.mp4 \\ud83d\\ude00"}}'
    )
    assert isinstance(message, Failed)
    assert message.message == "a?.mp4 😀"
    message.message.encode()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
KINDS = st.sampled_from(
    ["execution_start", "execution_cached", "executing", "progress", "executed", "execution_error", "status"]
)
FIELDS = st.sampled_from(["prompt_id", "node", "nodes", "value", "max", "output", "status", "exception_message"])


@settings(max_examples=300)
@given(st.text() | st.binary() | st.builds(text, KINDS | JSON, st.dictionaries(FIELDS, JSON) | JSON))
def test_no_frame_makes_it_raise(frame: str | bytes) -> None:
    parse(frame)


@settings(max_examples=100)
@given(st.integers(0, 5), st.integers(0, 2**32 - 1), st.binary())
def test_no_binary_frame_makes_it_raise(kind: int, number: int, rest: bytes) -> None:
    parse(struct.pack(">II", kind, number) + rest)


def test_every_recorded_frame_is_a_message_but_status_progress_state_and_flags() -> None:
    unheard = set()
    for recording in TRANSCRIPTS.glob("*.jsonl"):
        for entry in read(recording.stem):
            if entry["kind"] in ("ws", "ws-bin") and parse(frame(entry)) is None:
                unheard.add(entry["msg"]["type"])
    assert unheard == {"status", "progress_state", "feature_flags"}


RECORDED_FAILURES = [
    (entry["msg"]["data"]["exception_type"], failed)
    for name in ("d_runtime_error", "r_real_variants")
    for entry in read(name)
    if entry["kind"] == "ws" and isinstance(failed := parse(frame(entry)), Failed)
]


def test_recorded_errors_keep_their_meaning_and_lose_the_server() -> None:
    failures = {kind: failure_from_error(f.node_type, f.exception_type, f.message) for kind, f in RECORDED_FAILURES}
    assert {kind: (failure.code, failure.transient) for kind, failure in failures.items()} == {
        "RuntimeError": ("engine_error", False),
        "torch.OutOfMemoryError": ("out_of_memory", True),
        "urllib.error.URLError": ("model_missing", False),
    }
    assert failures["RuntimeError"].message == "ReActorFaceSwap failed in ComfyUI: rig: stand-in failure at frame 20"
    assert all("/srv" not in failure.message and "\n" not in failure.message for failure in failures.values())


@pytest.mark.parametrize(
    ("exception_type", "message", "code"),
    [
        ("RuntimeError", "CUDA out of memory. Tried to allocate 2.00 GiB", "out_of_memory"),
        ("numpy._core._exceptions._ArrayMemoryError", "Unable to allocate 5 GiB", "out_of_memory"),
        ("MemoryError", "", "out_of_memory"),
        ("urllib.error.HTTPError", "HTTP Error 404: Not Found", "model_missing"),
        ("FileNotFoundError", "[Errno 2] No such file or directory: '/m/inswapper_128.onnx'", "model_missing"),
        ("FileNotFoundError", "[Errno 2] No such file or directory: '/input/clip.mp4'", "engine_error"),
        ("onnxruntime.capi.onnxruntime_pybind11_state.NoSuchFile", "Load model x failed", "model_missing"),
        ("onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument", "Protobuf parsing failed", "model_broken"),
        ("faceswap.engine.network_files.NetworkError", "ghost_1_256.onnx is no file of ONNX", "model_broken"),
        ("", "", "engine_error"),
    ],
)
def test_errors_are_told_apart(exception_type: str, message: str, code: str) -> None:
    assert failure_from_error("ReActorFaceSwap", exception_type, message).code == code


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("Load /srv/ComfyUI/models/x.onnx failed:File doesn't exist", "Load x.onnx failed:File doesn't exist"),
        ("No such file: '/srv/my models/insightface/x.onnx'", "No such file: 'x.onnx'"),
        (r"C:\Users\jo\ComfyUI\models\x.pth is broken", "x.pth is broken"),
        ("see file:///srv/x/y.onnx", "see y.onnx"),
        ("frame 24/72 and/or 1 / 2", "frame 24/72 and/or 1 / 2"),
        ("\n\n first\nTraceback (most recent call last):\n  File ...", "first"),
        ("nul \0 and \x1b[31mred", "nul  and [31mred"),
    ],
)
def test_a_sentence_shows_one_line_without_server_paths(message: str, shown: str) -> None:
    assert failure_from_error("N", "E", message).message == f"N failed in ComfyUI: {shown}"


def test_a_sentence_is_bounded() -> None:
    assert len(failure_from_error("N" * 10_000, "E", "/a" * 100_000 + "x " * 10_000).message) < 700
