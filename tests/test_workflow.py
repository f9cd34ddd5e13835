"""Workflow files of all kinds become graphs, or are refused in a sentence that says why."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faceswap.workflow import Graph, Workflow, WorkflowError, extra_data, load_workflows

ROOT = Path(__file__).parent.parent
SEED_FILE = ROOT / "workflows" / "FaceSwap-Reactor-API.json"
SEED: Graph = json.loads(SEED_FILE.read_text("utf-8"))
OBJECT_INFO = json.loads((ROOT / "tests" / "data" / "comfyui" / "object_info.json").read_text("utf-8"))


def seed() -> Graph:
    return copy.deepcopy(SEED)


def rewired() -> Graph:
    """Change the seed: other ids and titles, a scaler before the swap and one after it, a preview, a second video."""
    ids = {"3": "swap:a", "8": "100", "9": "last", "10": "face", "11": "boost", "12": "info"}
    graph: Graph = {}
    for old, node in seed().items():
        inputs = {
            key: [ids[value[0]], value[1]] if isinstance(value, list) else value
            for key, value in node["inputs"].items()
        }
        graph[ids[old]] = {"class_type": node["class_type"], "inputs": inputs}
    graph["scale-in"] = {"class_type": "ImageScale", "inputs": {"image": ["100", 0], "width": 640}}
    graph["scale-out"] = {"class_type": "ImageScale", "inputs": {"image": ["swap:a", 0], "width": 640}}
    graph["crop"] = {"class_type": "ImageCrop", "inputs": {"image": ["face", 0]}}
    graph["swap:a"]["inputs"] |= {"input_image": ["scale-in", 0], "source_image": ["crop", 0]}
    graph["last"]["inputs"]["images"] = ["scale-out", 0]
    graph["look"] = {"class_type": "PreviewImage", "inputs": {"images": ["scale-out", 0]}}
    graph["other-clip"] = {"class_type": "VHS_LoadVideo", "inputs": {"video": "music.mp4"}}
    graph["other-output"] = {
        "class_type": "VHS_VideoCombine",
        "inputs": {
            "images": ["100", 0],
            "frame_rate": ["info", 5],
            "format": "video/h264-mp4",
            "filename_prefix": "raw",
        },
    }
    graph["last"]["inputs"]["audio"] = ["other-clip", 2]
    return graph


def built(workflow: Workflow, **arguments: Any) -> Graph:
    return workflow.build(
        **{"video": "j/clip.mp4", "images": ("j/face.png",), "output_prefix": "fs/j-1", "options": {}, **arguments}
    )


def test_the_seed_is_understood_as_it_is() -> None:
    workflow = Workflow.load(SEED_FILE)
    assert workflow.name == "FaceSwap-Reactor-API"
    assert (workflow.loader, workflow.face, workflow.swap, workflow.output) == ("8", "10", "3", "9")
    assert workflow.graph == SEED
    assert workflow.splittable
    assert [workflow.role(node) for node in ("8", "3", "9", "12")] == ["load", "swap", "combine", None]
    assert workflow.title("3") == "ReActor 🌌 Fast Face Swap"


def test_a_graph_gets_our_names_our_prefix_and_the_clips_own_rate() -> None:
    graph = built(Workflow.load(SEED_FILE))
    assert graph["8"]["inputs"] | {"video": "j/clip.mp4", "force_rate": 0} == graph["8"]["inputs"]
    assert graph["10"]["inputs"]["image"] == "j/face.png"
    output = graph["9"]["inputs"]
    assert output["filename_prefix"] == "fs/j-1"
    assert output["save_output"] is False and output["save_metadata"] is False
    assert output["frame_rate"] == ["12", 5]


def test_nothing_of_the_seeds_own_clip_is_left() -> None:
    text = json.dumps(built(Workflow.load(SEED_FILE)))
    assert "Thomas" not in text and "image (9)" not in text and "fastfaceswap" not in text


def test_only_what_has_to_change_is_changed() -> None:
    expected = seed()
    expected["8"]["inputs"] |= {"video": "j/clip.mp4", "force_rate": 0}
    expected["10"]["inputs"]["image"] = "j/face.png"
    expected["9"]["inputs"] |= {"filename_prefix": "fs/j-1", "save_output": False, "save_metadata": False}
    del expected["9"]["inputs"]["audio"]
    assert built(Workflow.load(SEED_FILE)) == expected


def test_building_never_changes_the_workflow() -> None:
    graph = seed()
    workflow = Workflow.from_graph("w", graph)
    first = built(workflow, options={"crf": 1, "face_boost": False})
    first["3"]["inputs"]["swap_model"] = "other"
    graph["8"]["class_type"] = "other"
    assert workflow.graph == SEED
    assert built(workflow) == built(Workflow.load(SEED_FILE))


def test_a_run_of_frames_is_asked_for_at_the_rate_of_the_clip() -> None:
    inputs = built(Workflow.load(SEED_FILE), skip_first_frames=480, frame_load_cap=240)["8"]["inputs"]
    assert (inputs["skip_first_frames"], inputs["frame_load_cap"], inputs["force_rate"]) == (480, 240, 0)


@pytest.mark.parametrize(
    ("option", "value", "node", "key"),
    [
        ("face_index", "1,2", "3", "input_faces_index"),
        ("source_face_index", "1", "3", "source_faces_index"),
        ("swap_model", "reswapper_128.onnx", "3", "swap_model"),
        ("face_restore_model", "none", "3", "face_restore_model"),
        ("face_restore_visibility", 0.5, "3", "face_restore_visibility"),
        ("detect_gender", "female", "3", "detect_gender_input"),
        ("face_boost", False, "11", "enabled"),
        ("crf", 30, "9", "crf"),
    ],
)
def test_each_option_goes_to_its_input(option: str, value: object, node: str, key: str) -> None:
    workflow = Workflow.load(SEED_FILE)
    plain, chosen = built(workflow), built(workflow, options={option: value, "priority": 5, "workflow": "w"})
    assert plain[node]["inputs"][key] != value
    plain[node]["inputs"][key] = value
    assert chosen == plain


def test_an_option_that_was_not_chosen_leaves_the_workflows_own_value() -> None:
    workflow = Workflow.load(SEED_FILE)
    assert built(workflow, options=dict.fromkeys(workflow.options)) == built(workflow)


def test_an_option_without_a_place_is_refused_but_for_the_quality_every_job_has() -> None:
    graph = seed()
    del graph["3"]["inputs"]["face_boost"], graph["9"]["inputs"]["crf"]
    workflow = Workflow.from_graph("plain", graph)
    assert "face_boost" not in workflow.options
    with pytest.raises(WorkflowError, match="plain has no place for the option face_boost"):
        built(workflow, options={"face_boost": True})
    assert "crf" not in built(workflow, options={"crf": 20})["9"]["inputs"]


def test_reactors_options_node_takes_the_options() -> None:
    graph = seed()
    graph["3"]["class_type"] = "ReActorFaceSwapOpt"
    for key in ("input_faces_index", "source_faces_index", "detect_gender_input", "detect_gender_source"):
        del graph["3"]["inputs"][key]
    graph["20"] = {
        "class_type": "ReActorOptions",
        "inputs": {"input_faces_index": "0", "source_faces_index": "0", "detect_gender_input": "no"},
    }
    graph["3"]["inputs"]["options"] = ["20", 0]
    chosen = built(Workflow.from_graph("w", graph), options={"face_index": "2", "detect_gender": "male"})
    assert chosen["20"]["inputs"] == {
        "input_faces_index": "2",
        "source_faces_index": "0",
        "detect_gender_input": "male",
    }


FACES = ("j/face.png", "j/face-1.png", "j/face-2.png")
"""The names of three pictures."""


def mapping(*pairs: tuple[int, int, int]) -> list[dict[str, int]]:
    """Return a mapping of `(face, image, source_face)`."""
    return [dict(zip(("face", "image", "source_face"), pair, strict=True)) for pair in pairs]


def test_faces_of_one_picture_are_lists_of_one_node_in_rising_order() -> None:
    graph = built(Workflow.load(SEED_FILE), options={"mapping": mapping((2, 0, 0), (0, 0, 1))})
    expected = built(Workflow.load(SEED_FILE))
    expected["3"]["inputs"] |= {"input_faces_index": "0,2", "source_faces_index": "1,0"}
    assert graph == expected


def test_each_further_picture_is_a_loader_and_a_swap_before_the_workflows_own() -> None:
    workflow = Workflow.load(SEED_FILE)
    options = {"mapping": mapping((0, 1, 0), (1, 0, 0), (2, 2, 3)), "swap_model": "reswapper_128.onnx"}
    graph, plain = (
        built(workflow, images=FACES, options=options),
        built(workflow, options={"swap_model": "reswapper_128.onnx"}),
    )
    assert graph.keys() - plain.keys() == {"3 copy 2", "3 copy 3", "10 copy 2", "10 copy 3"}
    assert {node: graph[node] for node in plain if node != "3"} == {node: plain[node] for node in plain if node != "3"}
    for node, name in {"10": FACES[0], "10 copy 2": FACES[1], "10 copy 3": FACES[2]}.items():
        assert graph[node] == plain["10"] | {"inputs": {"image": name}}
    swaps = {
        "3 copy 2": (["8", 0], ["10 copy 2", 0], "0", "0"),
        "3 copy 3": (["3 copy 2", 0], ["10", 0], "1", "0"),
        "3": (["3 copy 3", 0], ["10 copy 3", 0], "2", "3"),
    }
    keys = ("input_image", "source_image", "input_faces_index", "source_faces_index")
    for node, values in swaps.items():
        inputs = plain["3"]["inputs"] | dict(zip(keys, values, strict=True))
        assert graph[node] == plain["3"] | {"inputs": inputs}
    assert [workflow.role(node) for node in swaps] == ["swap"] * 3
    assert {workflow.title(node) for node in swaps} == {"ReActor 🌌 Fast Face Swap"}


@pytest.mark.parametrize(
    ("options", "lists"),
    [
        ({}, [("0", "0"), ("1", "0"), ("2", "0")]),
        ({"face_index": "4,0,5", "source_face_index": "1"}, [("0", "1"), ("4", "1"), ("5", "1")]),
        ({"face_index": "1,0,7", "source_face_index": "2,3"}, [("0", "3"), ("1", "2"), ("7", "3")]),
    ],
)
def test_pictures_without_a_mapping_go_to_one_face_each(options: dict[str, Any], lists: list[tuple[str, str]]) -> None:
    graph = built(Workflow.load(SEED_FILE), images=FACES, options=options)
    swaps = [graph[node]["inputs"] for node in ("3 copy 2", "3 copy 3", "3") if node in graph]
    assert [(swap["input_faces_index"], swap["source_faces_index"]) for swap in swaps] == lists


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mapping": mapping((0, 3, 0))}, "names picture 3; 3 were given, counted from 0"),
        ({"face_index": "0,1"}, "There are 3 pictures, and 'face_index' names 2"),
        ({"face_index": "0,1,2,3"}, "There are 3 pictures, and 'face_index' names 4"),
    ],
)
def test_pictures_and_faces_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkflowError, match=message):
        built(Workflow.load(SEED_FILE), images=FACES, options=options)


def test_faces_whose_gender_is_looked_at_have_a_node_each() -> None:
    options = {"mapping": mapping((0, 0, 1), (1, 0, 0)), "detect_gender": "female"}
    graph = built(Workflow.load(SEED_FILE), options=options)
    swaps = [graph[node]["inputs"] for node in ("3 copy 2", "3")]
    assert [swap["detect_gender_input"] for swap in swaps] == ["female", "female"]
    assert [(swap["input_faces_index"], swap["source_faces_index"]) for swap in swaps] == [("0", "1"), ("1", "0")]


def test_options_nodes_and_what_is_on_the_way_of_a_picture_are_copied_too() -> None:
    graph = rewired()
    graph["swap:a"]["class_type"] = "ReActorFaceSwapOpt"
    for key in ("input_faces_index", "source_faces_index"):
        del graph["swap:a"]["inputs"][key]
    graph["o"] = {"class_type": "ReActorOptions", "inputs": {"input_faces_index": "0", "source_faces_index": "0"}}
    graph["swap:a"]["inputs"]["options"] = ["o", 0]
    graph["look"]["inputs"]["images"] = ["swap:a", 2]
    made = built(Workflow.from_graph("w", graph), images=FACES[:2], options={"mapping": mapping((0, 1, 0), (3, 0, 2))})
    first, last = made["swap:a copy 2"]["inputs"], made["swap:a"]["inputs"]
    assert (first["input_image"], first["options"], first["source_image"]) == (
        ["scale-in", 0],
        ["o copy 2", 0],
        ["crop copy 2", 0],
    )
    assert (last["input_image"], last["options"], last["source_image"]) == (
        ["swap:a copy 2", 0],
        ["o", 0],
        ["crop", 0],
    )
    assert made["o copy 2"]["inputs"] == {"input_faces_index": "0", "source_faces_index": "0"}
    assert made["o"]["inputs"] == {"input_faces_index": "3", "source_faces_index": "2"}
    assert made["crop copy 2"]["inputs"]["image"] == ["face copy 2", 0]
    assert made["face copy 2"]["inputs"]["image"] == FACES[1]
    assert made["look"]["inputs"]["images"] == ["swap:a copy 2", 2]


def test_pictures_of_one_person_become_one_face_model() -> None:
    workflow = Workflow.load(SEED_FILE)
    graph = built(workflow, images=FACES, options={"one_person": True, "mapping": mapping((1, 0, 0), (0, 0, 0))})
    swap = graph["3"]["inputs"]
    assert "source_image" not in swap
    assert (swap["face_model"], swap["input_faces_index"], swap["source_faces_index"]) == (
        ["one person", 0],
        "0,1",
        "0",
    )
    assert graph["one person"]["class_type"] == "ReActorBuildFaceModel"
    assert graph["one person"]["inputs"] == {
        "save_mode": False,
        "send_only": False,
        "face_model_name": "faceswap",
        "compute_method": "Mean",
        "images": ["one person 2", 0],
    }
    assert graph["one person 2"]["inputs"] == {"image1": ["one person 1", 0], "image2": ["10 copy 3", 0]}
    assert graph["one person 1"]["inputs"] == {"image1": ["10", 0], "image2": ["10 copy 2", 0]}
    assert [graph[node]["inputs"]["image"] for node in ("10", "10 copy 2", "10 copy 3")] == list(FACES)


def test_one_picture_of_one_person_is_a_picture_like_any_other() -> None:
    workflow = Workflow.load(SEED_FILE)
    assert built(workflow, options={"one_person": True}) == built(workflow)


def test_a_workflow_without_a_place_for_faces_is_refused_a_mapping() -> None:
    graph = seed()
    del graph["3"]["inputs"]["source_faces_index"]
    with pytest.raises(WorkflowError, match="no place for the option source_face_index"):
        built(Workflow.from_graph("w", graph), options={"mapping": mapping((0, 0, 0))})


def built_still(workflow: Workflow, **arguments: Any) -> Graph:
    given = {"picture": "j/still.png", "images": ("j/face.png",), "output_prefix": "j/0", "options": {}, **arguments}
    return workflow.build_still(**given)


def test_a_still_picture_takes_the_place_of_the_video() -> None:
    workflow = Workflow.load(SEED_FILE)
    options = {"face_index": "1", "crf": 30}
    graph, video = built_still(workflow, options=options), built(workflow, options=options)
    assert graph.keys() == {"3", "8", "9", "10", "11"}
    assert {node: graph[node] for node in ("3", "10", "11")} == {node: video[node] for node in ("3", "10", "11")}
    assert graph["8"] == video["8"] | {"class_type": "LoadImage", "inputs": {"image": "j/still.png"}}
    saved = {"images": ["3", 0], "filename_prefix": "j/0"}
    assert graph["9"] == video["9"] | {"class_type": "SaveImage", "inputs": saved}
    assert [workflow.role(node) for node in ("8", "3", "9")] == ["load", "swap", "combine"]


def test_a_mapping_is_done_in_a_still_picture_as_in_a_video() -> None:
    workflow = Workflow.load(SEED_FILE)
    options = {"mapping": mapping((0, 1, 0), (1, 0, 0))}
    graph = built_still(workflow, images=FACES[:2], options=options)
    video = built(workflow, images=FACES[:2], options=options)
    assert graph.keys() == video.keys() - {"12"}
    assert {node: graph[node] for node in graph.keys() - {"8", "9"}} == {
        node: video[node] for node in graph.keys() - {"8", "9"}
    }


def test_a_workflow_that_needs_more_of_the_video_is_refused_a_picture() -> None:
    graph = seed()
    graph["3"]["inputs"]["console_log_level"] = ["8", 1]  # the number of frames
    with pytest.raises(WorkflowError, match="cannot be used for a picture"):
        built_still(Workflow.from_graph("w", graph))


def test_slots_are_found_by_connection_whatever_the_ids_and_the_extra_nodes() -> None:
    workflow = Workflow.from_graph("w", rewired())
    assert (workflow.loader, workflow.face, workflow.swap, workflow.output) == ("100", "face", "swap:a", "last")
    assert workflow.title("swap:a") == "ReActorFaceSwap"
    assert workflow.title("unknown") == "unknown"
    graph = built(workflow)
    assert graph["100"]["inputs"]["video"] == "j/clip.mp4"
    assert graph["other-clip"]["inputs"]["video"] == "music.mp4"
    assert graph["other-output"]["inputs"]["filename_prefix"] == "raw"
    assert graph["look"] == rewired()["look"]


def test_sound_of_the_clip_is_left_out_and_other_sound_kept() -> None:
    assert "audio" not in built(Workflow.load(SEED_FILE))["9"]["inputs"]
    assert built(Workflow.from_graph("w", rewired()))["last"]["inputs"]["audio"] == ["other-clip", 2]


def test_a_fixed_rate_is_replaced_by_the_clips_own() -> None:
    graph = seed()
    graph["9"]["inputs"]["frame_rate"] = 24
    workflow = Workflow.from_graph("w", graph)
    link = built(workflow)["9"]["inputs"]["frame_rate"]
    assert workflow.graph[link[0]]["inputs"] == {"video_info": ["8", 3]} and link[1] == 5
    assert workflow.title(link[0]) == "Frame rate of the clip"
    assert OBJECT_INFO["VHS_VideoInfo"]["output_name"][5].startswith("loaded_fps")
    assert OBJECT_INFO["VHS_LoadVideo"]["output"][3] == "VHS_VIDEOINFO"


def test_what_would_drop_or_repeat_frames_is_turned_off() -> None:
    graph = seed()
    graph["8"]["inputs"] |= {"select_every_nth": 3, "frame_load_cap": 10, "skip_first_frames": 5}
    graph["9"]["inputs"] |= {"pingpong": True, "loop_count": 2, "save_output": True}
    clean = built(Workflow.from_graph("w", graph))
    assert clean == built(Workflow.load(SEED_FILE))


def test_a_loader_that_starts_by_the_second_is_used_for_whole_clips_only() -> None:
    graph = seed()
    graph["8"]["class_type"] = "VHS_LoadVideoFFmpeg"
    for key in ("skip_first_frames", "select_every_nth"):
        del graph["8"]["inputs"][key]
    graph["8"]["inputs"]["start_time"] = 4
    workflow = Workflow.from_graph("w", graph)
    assert not workflow.splittable
    assert built(workflow)["8"]["inputs"]["start_time"] == 0
    assert "skip_first_frames" not in built(workflow)["8"]["inputs"]
    with pytest.raises(WorkflowError, match="VHS_LoadVideo"):
        built(workflow, skip_first_frames=240)


def without(*nodes: str) -> Callable[[Graph], None]:
    def change(graph: Graph) -> None:
        for node in nodes:
            del graph[node]

    return change


def setting(node: str, **inputs: object) -> Callable[[Graph], None]:
    return lambda graph: graph[node]["inputs"].update(inputs)


def second_loader(graph: Graph) -> None:
    graph["80"] = copy.deepcopy(graph["8"])
    graph["81"] = {"class_type": "ImageBatch", "inputs": {"image1": ["8", 0], "image2": ["80", 0]}}
    graph["3"]["inputs"]["input_image"] = ["81", 0]


def second_face(graph: Graph) -> None:
    graph["80"] = copy.deepcopy(graph["10"])
    graph["81"] = {"class_type": "ImageBatch", "inputs": {"image1": ["10", 0], "image2": ["80", 0]}}
    graph["3"]["inputs"]["source_image"] = ["81", 0]


def second_swap(graph: Graph) -> None:
    graph["30"] = copy.deepcopy(graph["3"])
    graph["30"]["inputs"]["input_image"] = ["3", 0]
    graph["9"]["inputs"]["images"] = ["30", 0]


def second_output(graph: Graph) -> None:
    graph["90"] = copy.deepcopy(graph["9"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("9"), "needs one VHS_VideoCombine after the swap and has no"),
        (setting("9", images=["8", 0]), "needs one VHS_VideoCombine after the swap and has no"),
        (second_output, "needs one VHS_VideoCombine after the swap and has 2 nodes"),
        (second_swap, "needs one ReActorFaceSwap or ReActorFaceSwapOpt between input_image and source_image and has 2"),
        (second_loader, "needs one VHS_LoadVideo or VHS_LoadVideoFFmpeg before the swap and has 2 nodes"),
        (second_face, "needs one LoadImage with the face and has 2 nodes"),
        (
            setting("3", input_image=["10", 0]),
            "needs one VHS_LoadVideo or VHS_LoadVideoFFmpeg before the swap and has no",
        ),
        (setting("3", source_image=["8", 0]), "needs one LoadImage with the face and has no"),
        (setting("3", source_image=None), "needs one VHS_VideoCombine after the swap"),
        (setting("9", format="image/gif"), "Node 9 (VHS_VideoCombine) of the workflow w has the format image/gif"),
        (setting("9", format="video/ProRes"), "cannot be joined into the result: mp4 cannot hold ProRes. Choose video"),
        (setting("9", format="video/8bit-png"), "cannot be joined into the result: it makes a file for each frame."),
        (setting("9", format="audio/mp3"), "cannot be joined into the result: it is no video."),
        (setting("9", meta_batch=["12", 0]), "must not use VHS_BatchManager"),
        (without("12"), "Node 9 of the workflow w is linked to a missing node 12"),
        (setting("8", video=["9", 0]), "run in a circle"),
        (setting("8", video=["8", 0]), "run in a circle"),
        (lambda graph: graph["12"].pop("class_type"), "Node 12 of the workflow w needs a class_type and inputs"),
        (lambda graph: graph["12"].pop("inputs"), "Node 12 of the workflow w needs a class_type and inputs"),
        (lambda graph: graph["12"].update(inputs=[]), "Node 12 of the workflow w needs a class_type and inputs"),
        (lambda graph: graph["12"].update(class_type=["x"]), "Node 12 of the workflow w needs a class_type and inputs"),
        (lambda graph: graph.update(version=0.4), "Node version of the workflow w needs a class_type and inputs"),  # type: ignore[call-overload]
    ],
)
def test_a_workflow_that_cannot_be_used_is_refused_by_name(change: Callable[[Graph], object], message: str) -> None:
    graph = seed()
    change(graph)
    with pytest.raises(WorkflowError) as refused:
        Workflow.from_graph("w", graph)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("\udcff", "is not JSON"),
        ("[]", "is not an object of nodes"),
        ("{}", "needs one VHS_VideoCombine"),
        ('{"nodes": [], "links": [], "version": 0.4}', "use Workflow → Export (API)"),
    ],
)
def test_a_file_that_is_no_workflow_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(WorkflowError, match="broken") as refused:
        Workflow.load(path)
    assert message in str(refused.value)
    assert str(tmp_path) not in str(refused.value)


def test_a_missing_or_huge_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkflowError, match="cannot be read"):
        Workflow.load(tmp_path / "none.json")
    (tmp_path / "huge.json").write_bytes(b" " * (4 * 2**20 + 1))
    with pytest.raises(WorkflowError, match="larger than 4 MB"):
        Workflow.load(tmp_path / "huge.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.tuples(st.sampled_from("389"), st.just(0)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200)
@given(
    st.dictionaries(
        st.sampled_from(["3", "8", "9", "10", "11", "12", "_meta"]),
        JSON
        | st.fixed_dictionaries(
            {"class_type": st.sampled_from(sorted(OBJECT_INFO)), "inputs": st.dictionaries(st.text(max_size=3), JSON)}
        ),
    )
)
def test_no_graph_raises_anything_else(nodes: dict[str, Any]) -> None:
    try:
        Workflow.from_graph("w", seed() | json.loads(json.dumps(nodes)))
    except WorkflowError:
        return


def test_a_folder_gives_its_usable_workflows_and_names_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "good.json").write_text(json.dumps(rewired()), "utf-8")
    (tmp_path / "bad.json").write_text("{", "utf-8")
    (tmp_path / "notes.txt").write_text("not a workflow", "utf-8")
    with caplog.at_level(logging.WARNING):
        assert list(load_workflows(tmp_path)) == ["good"]
    assert [record.getMessage() for record in caplog.records] == ["The workflow bad.json is not JSON."]
    with pytest.raises(WorkflowError, match="FACESWAP_WORKFLOW_DIR"):
        load_workflows(tmp_path / "none")


def test_every_workflow_that_comes_with_the_service_is_usable() -> None:
    folder = ROOT / "workflows"
    assert set(load_workflows(folder)) == {path.stem for path in folder.glob("*.json")}


def test_videohelpersuite_is_told_to_leave_the_video_only() -> None:
    extra = extra_data()["extra_pnginfo"]["workflow"]["extra"]
    assert extra == {"VHS_KeepIntermediate": False, "VHS_MetadataImage": False}
