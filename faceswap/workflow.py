"""Workflows: from a workflow file and a request to the graph of a prompt. Pure.

A workflow is a graph in ComfyUI's API format: `{node id: {"class_type", "inputs", "_meta": {"title"}}}`, an input being
a value or a link `[node id, output slot]`. The nodes that the service fills in are found by their classes and links,
never by ids or titles: the loader of the video, the loader of the face, the swap, the video output.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

log = logging.getLogger(__name__)

Graph = dict[str, dict[str, Any]]
Role = Literal["load", "swap", "combine"]

FILE_LIMIT = 4 * 1024 * 1024

VIDEO_LOADERS = ("VHS_LoadVideo", "VHS_LoadVideoFFmpeg")
IMAGE_LOADERS = ("LoadImage",)
COMBINERS = ("VHS_VideoCombine",)
STILL_LOADER, STILL_SAVER = "LoadImage", "SaveImage"
"""Take the places of the loader and the output where the target is a still picture."""
SWAPPERS = ("ReActorFaceSwap", "ReActorFaceSwapOpt")

VIDEO_INFO = "VHS_VideoInfo"
VIDEO_INFO_SLOT = 3  # of both video loaders
LOADED_FPS_SLOT = 5  # of VHS_VideoInfo
ADDED_INFO_NODE = "loaded frame rate"
ORIGINAL_SLOT = 2
"""Output of both swap nodes: the pictures as they came in."""

COPY_MARK = " copy "
"""Stands in a copied node's id between the id of its model and the copy's number."""
PERSON_NODE = "one person"
BATCHER = "ImageBatch"
FACE_MODEL_BUILDER = "ReActorBuildFaceModel"
PERSON_CLASSES = (BATCHER, FACE_MODEL_BUILDER)
"""The node classes that several pictures of one person need."""
FACE_MODEL_INPUTS = {"save_mode": False, "send_only": False, "face_model_name": "faceswap", "compute_method": "Mean"}

# The places of an option: the link to follow from the swap node ("" for the node itself) and the input there.
SWAP_OPTIONS = {
    "face_index": (("", "input_faces_index"), ("options", "input_faces_index")),
    "source_face_index": (("", "source_faces_index"), ("options", "source_faces_index")),
    "detect_gender": (("", "detect_gender_input"), ("options", "detect_gender_input")),
    "swap_model": (("", "swap_model"),),
    "face_restore_model": (("", "face_restore_model"),),
    "face_restore_visibility": (("", "face_restore_visibility"),),
    "face_boost": (("face_boost", "enabled"),),
}

# One frame out for each frame in, without the prompt in the file's tags, and in the folder that ComfyUI empties at its
# start: it never deletes files in `output`.
COMBINE_INPUTS = {
    "save_output": False,
    "save_metadata": False,
    "pingpong": False,
    "loop_count": 0,
    "trim_to_audio": False,
}

# Formats of VideoHelperSuite that an mp4, which every result is, cannot hold. A format that is not listed may be a
# user's own: its output is checked with the first segment.
UNJOINABLE = {
    "video/ProRes": "mp4 cannot hold ProRes",
    "video/8bit-png": "it makes a file for each frame",
    "video/16bit-png": "it makes a file for each frame",
    "video/ffmpeg-gif": "mp4 cannot hold GIF",
    "video/gifski": "mp4 cannot hold GIF",
    "image/gif": "mp4 cannot hold GIF",
    "image/webp": "mp4 cannot hold WebP",
}


class WorkflowError(Exception):
    """A workflow that cannot be used; the message is one sentence that names the node classes needed."""


@dataclass(frozen=True)
class SwapPass:
    """The faces that one swap node changes: the k-th of `faces` gets the k-th of `sources` in picture `image`."""

    image: int
    faces: tuple[int, ...]
    sources: tuple[int, ...]


def swap_passes(options: Mapping[str, Any], images: int) -> tuple[SwapPass, ...]:
    """Return the passes that options ask for; none where one pass with the options' own index lists does it.

    Several pictures without a mapping go to the faces of `face_index`, or to the faces in order, one each. In a pass
    the faces come in rising order: ReActor then never goes on to the next source for a face that is not there. It does
    so for one that is left out by its gender, so each face has a pass of its own where that is looked at. Raises
    WorkflowError for pictures that are not there, and for ones that no face is named for.
    """
    if mapping := options.get("mapping"):
        entries = [(entry["face"], entry["image"], entry["source_face"]) for entry in mapping]
        if (most := max(image for _, image, _ in entries)) >= images:
            given = "only one was given" if images == 1 else f"{images} were given, counted from 0"
            raise WorkflowError(f"Option 'mapping' names picture {most}; {given}.")
    elif images > 1 and not options.get("one_person"):
        faces = face_numbers(options["face_index"]) if options.get("face_index") else list(range(images))
        if len(faces) != images:
            raise WorkflowError(
                f"There are {images} pictures, and 'face_index' names {len(faces)} of the video's faces: name one for"
                " each, give a 'mapping', or set 'one_person' where they show one person."
            )
        sources = face_numbers(options.get("source_face_index") or "0")
        entries = [(face, image, sources[min(image, len(sources) - 1)]) for image, face in enumerate(faces[:images])]
    else:
        return ()
    together = options.get("one_person") or options.get("detect_gender") in (None, "no")
    passes: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for face, image, source in sorted(entries):
        passes.setdefault((image, 0 if together else face), []).append((face, source))
    return tuple(
        SwapPass(image, tuple(face for face, _ in pairs), tuple(source for _, source in pairs))
        for (image, _), pairs in passes.items()
    )


@dataclass(frozen=True)
class Workflow:
    """A workflow with the nodes that the service fills in.

    `graph` is never changed; `build` makes new ones. `loader`, `face`, `swap` and `output` are the ids of the four
    nodes, `options` the node and input for each option of a request.
    """

    name: str
    graph: Graph = field(repr=False)
    loader: str
    face: str
    swap: str
    output: str
    options: Mapping[str, tuple[str, str]]

    @classmethod
    def load(cls, path: Path) -> Workflow:
        """Read a workflow file, which is named without its `.json`. Raises WorkflowError."""
        try:
            text = path.read_bytes()
        except OSError as error:
            raise WorkflowError(f"The workflow {path.name} cannot be read: {error.strerror}.") from error
        if len(text) > FILE_LIMIT:
            raise WorkflowError(f"The workflow {path.name} is larger than {FILE_LIMIT // 2**20} MB.")
        try:
            graph = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise WorkflowError(f"The workflow {path.name} is not JSON.") from error
        return cls.from_graph(path.stem, graph)

    @classmethod
    def from_graph(cls, name: str, graph: object) -> Workflow:
        """Find the nodes to fill in and check that the graph can be used. Raises WorkflowError."""
        nodes = _checked(name, graph)
        swap, output = _swap_and_output(name, nodes)
        loader = _only(
            name, nodes, VIDEO_LOADERS, _upstream(nodes, nodes[swap]["inputs"]["input_image"]), "before the swap"
        )
        face = _only(
            name, nodes, IMAGE_LOADERS, _upstream(nodes, nodes[swap]["inputs"]["source_image"]), "with the face"
        )
        _follow_clip_rate(nodes, loader, output)
        options = _options(nodes, swap, output)
        return cls(name, nodes, loader, face, swap, output, options)

    @property
    def splittable(self) -> bool:
        """True when a prompt can be limited to a run of frames, so that a long video can be split into segments."""
        return bool(self.graph[self.loader]["class_type"] == "VHS_LoadVideo")

    def title(self, node_id: str) -> str:
        """Return a node's name for people: its title, else its class, else its id."""
        node = self.graph.get(self._model_of(node_id), {})
        meta = node.get("_meta")
        title = meta.get("title") if isinstance(meta, dict) else None
        return title if isinstance(title, str) and title else node.get("class_type", node_id)

    def role(self, node_id: str) -> Role | None:
        """Return the phase of the work that a node's progress bar belongs to; None for other nodes."""
        roles: dict[str, Role] = {self.loader: "load", self.swap: "swap", self.output: "combine"}
        return roles.get(self._model_of(node_id))

    def _model_of(self, node_id: str) -> str:
        """Return the node that `build` copies a node from, the node itself where it is none of the copies."""
        return node_id if node_id in self.graph else node_id.rpartition(COPY_MARK)[0] or node_id

    def build(
        self,
        *,
        video: str,
        images: Sequence[str],
        output_prefix: str,
        options: Mapping[str, Any],
        skip_first_frames: int = 0,
        frame_load_cap: int = 0,
    ) -> Graph:
        """Build a new graph for one run of frames.

        `video` and `images` are names that an upload returned; pictures of one person are of one size. The clip keeps
        its own frame rate; a `frame_load_cap` of 0 means to the end. Options that are None, or that do not concern
        the graph, are ignored. The output has no sound: the service adds it to the joined video. Raises
        WorkflowError for an option or a run of frames that this workflow has no place for.
        """
        graph = copy.deepcopy(self.graph)
        loader, combine = graph[self.loader]["inputs"], graph[self.output]["inputs"]
        if skip_first_frames and not self.splittable:
            raise WorkflowError(f"The workflow {self.name} cannot start at a later frame: use VHS_LoadVideo in it.")
        self._set_options(graph, options)
        if self.splittable:
            loader |= {"skip_first_frames": skip_first_frames, "select_every_nth": 1}
        else:
            loader["start_time"] = 0
        loader |= {"video": video, "force_rate": 0, "frame_load_cap": frame_load_cap}
        graph[self.face]["inputs"]["image"] = images[0]
        self._chain(graph, images, swap_passes(options, len(images)))
        if options.get("one_person") and len(images) > 1:
            self._blend(graph, images)
        combine |= {key: value for key, value in COMBINE_INPUTS.items() if key in combine}
        combine["filename_prefix"] = output_prefix
        if (link := _link(combine.get("audio"))) and link == self.loader:
            del combine["audio"]
        return graph

    def build_still(
        self, *, picture: str, images: Sequence[str], output_prefix: str, options: Mapping[str, Any]
    ) -> Graph:
        """Build a new graph for one still picture, by its upload's name: it takes the place of the video.

        The output is a PNG. What the output does not depend on is left out. Raises WorkflowError as `build` does, and
        for a workflow whose output needs more of the video than its pictures.
        """
        graph = self.build(video=picture, images=images, output_prefix=output_prefix, options=options)
        graph[self.loader] = graph[self.loader] | {"class_type": STILL_LOADER, "inputs": {"image": picture}}
        images = graph[self.output]["inputs"]["images"]
        saved = {"images": images, "filename_prefix": output_prefix}
        graph[self.output] = graph[self.output] | {"class_type": STILL_SAVER, "inputs": saved}
        needed = {node_id: graph[node_id] for node_id in graph if node_id in _upstream(graph, [self.output, 0])}
        values = (value for node in needed.values() for value in node["inputs"].values())
        if any(_link(value) == self.loader and value[1] != 0 for value in values):
            raise WorkflowError(f"The workflow {self.name} cannot be used for a picture: it needs more of the video.")
        return needed

    def _chain(self, graph: Graph, images: Sequence[str], passes: Sequence[SwapPass]) -> None:
        """Set the passes of a graph: the last at its swap node, the others at copies of that before it.

        What follows the swap stays as it is; only the unchanged pictures come from the first of the nodes.
        """
        if not passes:
            return
        if missing := {"face_index", "source_face_index"} - self.options.keys():
            raise WorkflowError(f"The workflow {self.name} has no place for the option {min(missing)}.")
        swaps = [f"{self.swap}{COPY_MARK}{number}" for number in range(2, len(passes) + 1)] + [self.swap]
        copied = {self.swap, self.options["face_index"][0], self.options["source_face_index"][0]}
        for number, swap_pass in enumerate(passes[:-1], 2):
            self._set_pass(graph, swap_pass, images, self._copy(graph, copied, number))
        self._set_pass(graph, passes[-1], images, {node_id: node_id for node_id in copied})
        for before, swap in pairwise(swaps):
            graph[swap]["inputs"]["input_image"] = [before, 0]
        for node in graph.values():
            for key, value in node["inputs"].items():
                if value == [self.swap, ORIGINAL_SLOT]:
                    node["inputs"][key] = [swaps[0], ORIGINAL_SLOT]

    def _set_pass(self, graph: Graph, swap_pass: SwapPass, images: Sequence[str], names: Mapping[str, str]) -> None:
        """Set faces and picture of a pass at the nodes that `names` gives for those of the workflow."""
        for option, numbers in (("face_index", swap_pass.faces), ("source_face_index", swap_pass.sources)):
            node, key = self.options[option]
            graph[names[node]]["inputs"][key] = ",".join(map(str, numbers))
        graph[names[self.swap]]["inputs"]["source_image"] = self._picture(graph, images, swap_pass.image)

    def _blend(self, graph: Graph, images: Sequence[str]) -> None:
        """Replace the face's picture by a face model that is built from all pictures."""
        batch = self._picture(graph, images, 0)
        for number in range(1, len(images)):
            inputs = {"image1": batch, "image2": self._picture(graph, images, number)}
            node_id = f"{PERSON_NODE} {number}"
            graph[node_id] = {"class_type": BATCHER, "inputs": inputs, "_meta": {"title": "Pictures of one person"}}
            batch = [node_id, 0]
        graph[PERSON_NODE] = {
            "class_type": FACE_MODEL_BUILDER,
            "inputs": {**FACE_MODEL_INPUTS, "images": batch},
            "_meta": {"title": "One face of several pictures"},
        }
        if "source_face_index" in self.options:
            node, key = self.options["source_face_index"]
            graph[node]["inputs"][key] = "0"
        del graph[self.swap]["inputs"]["source_image"]
        graph[self.swap]["inputs"]["face_model"] = [PERSON_NODE, 0]

    def _picture(self, graph: Graph, images: Sequence[str], number: int) -> list[Any]:
        """Return the link to a picture as the swap takes it, through copies of the nodes on its way."""
        node, slot = self.graph[self.swap]["inputs"]["source_image"]
        if number == 0:
            return [node, slot]
        way = {
            node_id for node_id in _upstream(self.graph, [node, 0]) if self.face in _upstream(self.graph, [node_id, 0])
        }
        names = {node_id: f"{node_id}{COPY_MARK}{number + 1}" for node_id in way}
        if names[self.face] not in graph:
            self._copy(graph, way, number + 1)
            graph[names[self.face]]["inputs"]["image"] = images[number]
        return [names[node], slot]

    @staticmethod
    def _copy(graph: Graph, nodes: Iterable[str], number: int) -> dict[str, str]:
        """Add copies of nodes, linked among each other as those are; return their ids by those of their models."""
        names = {node_id: f"{node_id}{COPY_MARK}{number}" for node_id in nodes}
        for node_id, name in names.items():
            graph[name] = copy.deepcopy(graph[node_id])
            for key, value in graph[name]["inputs"].items():
                if (link := _link(value)) in names:
                    graph[name]["inputs"][key] = [names[link], value[1]]
        return names

    def _set_options(self, graph: Graph, options: Mapping[str, Any]) -> None:
        for option, value in options.items():
            if value is None or option not in (*SWAP_OPTIONS, "crf"):
                continue
            if option in self.options:
                node, key = self.options[option]
                graph[node]["inputs"][key] = value
            elif option != "crf":  # always given; the formats without it are lossless
                raise WorkflowError(f"The workflow {self.name} has no place for the option {option}.")


def face_numbers(indexes: str) -> list[int]:
    """Return the numbers of a list with commas, as `face_index` and `source_face_index` are."""
    return [int(number) for number in indexes.split(",")]


def load_workflows(directory: Path) -> dict[str, Workflow]:
    """Load every usable workflow of a folder, by its name; the others are logged. Raises WorkflowError."""
    if not directory.is_dir():
        raise WorkflowError("There is no workflow folder; set FACESWAP_WORKFLOW_DIR.")
    workflows = {}
    for path in sorted(directory.glob("*.json")):
        try:
            workflows[path.stem] = Workflow.load(path)
        except WorkflowError as error:
            log.warning("%s", error)
    return workflows


def extra_data(**more: Any) -> dict[str, Any]:
    """Return the extra data of a prompt, which makes VideoHelperSuite keep only the finished video, and `more`."""
    keep_video = {"VHS_KeepIntermediate": False, "VHS_MetadataImage": False}
    return {"extra_pnginfo": {"workflow": {"extra": keep_video}}, **more}


def _checked(name: str, graph: object) -> Graph:
    """Copy a graph after checking that its nodes are well-formed, its links lead to nodes, and there is no circle."""
    if not isinstance(graph, dict):
        raise WorkflowError(f"The workflow {name} is not an object of nodes.")
    if isinstance(graph.get("nodes"), list):
        raise WorkflowError(
            f"The workflow {name} is saved for ComfyUI's editor: use Workflow → Export (API) there instead."
        )
    for node_id, node in graph.items():
        match node:
            case {"class_type": str(), "inputs": dict()}:
                continue
        raise WorkflowError(f"Node {node_id} of the workflow {name} needs a class_type and inputs.")
    links = {node_id: set(_links(node["inputs"].values())) for node_id, node in graph.items()}
    for node_id, targets in links.items():
        if missing := targets - graph.keys():
            raise WorkflowError(f"Node {node_id} of the workflow {name} is linked to a missing node {min(missing)}.")
    try:
        TopologicalSorter(links).prepare()
    except CycleError as error:
        raise WorkflowError(f"The links of the workflow {name} run in a circle.") from error
    return copy.deepcopy(graph)


def _swap_and_output(name: str, nodes: Graph) -> tuple[str, str]:
    """Find the face swap and the video output that its pictures reach."""
    swaps = {
        node_id
        for node_id, node in nodes.items()
        if node["class_type"] in SWAPPERS
        and _link(node["inputs"].get("input_image"))
        and _link(node["inputs"].get("source_image"))
    }
    outputs = {
        node_id: swaps & _upstream(nodes, node["inputs"].get("images"))
        for node_id, node in nodes.items()
        if node["class_type"] in COMBINERS
    }
    output = _only(name, nodes, COMBINERS, {node for node, found in outputs.items() if found}, "after the swap")
    swap = _only(name, nodes, SWAPPERS, outputs[output], "between input_image and source_image")
    chosen = str(nodes[output]["inputs"].get("format"))
    if reason := UNJOINABLE.get(chosen, "" if chosen.startswith("video/") else "it is no video"):
        raise WorkflowError(
            f"Node {output} (VHS_VideoCombine) of the workflow {name} has the format {chosen}, which cannot be joined"
            f" into the result: {reason}. Choose video/h264-mp4, video/h265-mp4, video/webm or video/av1-webm there."
        )
    if _link(nodes[output]["inputs"].get("meta_batch")):
        raise WorkflowError(
            f"The workflow {name} must not use VHS_BatchManager: the service splits long videos itself."
        )
    return swap, output


def _only(name: str, nodes: Graph, classes: tuple[str, ...], among: Iterable[str], where: str) -> str:
    """Find the one node of these classes. Raises WorkflowError where there is none or more than one."""
    found = [node_id for node_id in among if nodes[node_id]["class_type"] in classes]
    if len(found) == 1:
        return found[0]
    count = "no" if not found else f"{len(found)} nodes"
    raise WorkflowError(f"The workflow {name} needs one {' or '.join(classes)} {where} and has {count}.")


def _follow_clip_rate(nodes: Graph, loader: str, output: str) -> None:
    """Set the output's frame rate to that of the loaded frames, unless it is already linked to the clip's."""
    inputs = nodes[output]["inputs"]
    if loader in _upstream(nodes, inputs.get("frame_rate")):
        return
    nodes[ADDED_INFO_NODE] = {
        "class_type": VIDEO_INFO,
        "inputs": {"video_info": [loader, VIDEO_INFO_SLOT]},
        "_meta": {"title": "Frame rate of the clip"},
    }
    inputs["frame_rate"] = [ADDED_INFO_NODE, LOADED_FPS_SLOT]


def _options(nodes: Graph, swap: str, output: str) -> dict[str, tuple[str, str]]:
    """Find the node and input of each option that this workflow has a place for."""
    inputs = nodes[swap]["inputs"]
    places = {"crf": (output, "crf")} if "crf" in nodes[output]["inputs"] else {}
    for option, candidates in SWAP_OPTIONS.items():
        for via, key in candidates:
            node = _link(inputs.get(via)) if via else swap
            if node and key in nodes[node]["inputs"]:
                places[option] = (node, key)
                break
    return places


def _upstream(nodes: Graph, value: object) -> set[str]:
    """Return the node that `value` links to, and all nodes that it depends on."""
    found: set[str] = set()
    waiting = list(_links([value]))
    while waiting:
        node_id = waiting.pop()
        if node_id not in found:
            found.add(node_id)
            waiting.extend(_links(nodes[node_id]["inputs"].values()))
    return found


def _links(values: Iterable[object]) -> Iterator[str]:
    return (node_id for value in values if (node_id := _link(value)) is not None)


def _link(value: object) -> str | None:
    """Return the node that an input is linked to; None for a plain value."""
    match value:
        case [str(node_id), int()]:
            return node_id
    return None
