"""The node classes of the face-swap workflow, for videos and for still pictures.

Frames are passed on as clips that are read later. A swap whose result goes straight into a VHS_VideoCombine is
encoded with that node's settings while it runs, so frames stream from decoder to encoder once. Swaps that follow each
other are done as one.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from ..limits import too_large
from ..marks import Marks
from .catalog import FILE_INPUTS, existing_file, load_formats
from .clip import Clip, Selection, probe
from .faults import Faults
from .folders import Folders, next_number
from .frames import Frame, Picture, decode_picture, read_picture
from .graph import Graph
from .network_files import NetworkFolder
from .pixels import Bitmap, Image
from .sound import Sound
from .streams import EncodedClip, InvertingSwap, ShortenedClip, SwappedClip
from .swap_inputs import Networks, Stills, faces_to_put_in, forget_faces
from .video import Encoding, Frames, Swap, SwapCount, as_rate, encode, is_large, mux

if TYPE_CHECKING:
    from .people import Look
    from .swap import Source

Inputs = Mapping[str, Any]
People = tuple[tuple[str, ...], ...]
"""For some frames before those of a prompt the faces there, large to small, each a JPEG in base64."""

LEAD = 8
"""Frames of a job before a segment of it that a swap sees too, to go on with what it paints as it was."""

_DEFAULT_CRF = 19
_PNG_LEVEL = 4
"""Of zlib's compression, as ComfyUI chooses it."""
_UNSUPPORTED = {"pingpong": (False,), "trim_to_audio": (False,), "loop_count": (0,), "pix_fmt": ("yuv420p",)}


@dataclass(frozen=True)
class NodeContext:
    """The context of a node: its part of the prompt it runs in."""

    folders: Folders
    faults: Faults
    preset: str
    marks: Marks | None
    people: People
    interrupted: threading.Event
    encoding: Encoding | None
    """The encoding of the frames that this node gives, when that is known."""
    progress: Callable[[int, int, Frame | None], None]
    """`(value, maximum, frame just done)`; raises when the prompt is interrupted."""


@dataclass(frozen=True)
class Result:
    """The result of a node: its outputs in order, and what it shows to the user."""

    values: tuple[Any, ...]
    shown: dict[str, Any] | None = None
    files: tuple[Path, ...] = ()
    """Files without which the result is worth nothing."""
    scratch: bool = False
    """The files are erased when the result is forgotten."""
    swaps: SwapCount | None = None
    """The count of a swap, complete when its frames have been read."""
    unused: tuple[str, ...] = ()
    """The options of a swap that had no use."""

    @property
    def is_whole(self) -> bool:
        """True if all files of the result exist."""
        return all(path.exists() for path in self.files)

    def forget(self) -> None:
        """Erase the files of a result that is not needed any more."""
        if self.scratch:
            for path in self.files:
                path.unlink(missing_ok=True)


def depends_on(folders: Folders, graph: Graph, node_id: str, marks: Marks | None, people: People) -> Any:
    """Return what a node's outputs depend on beside its inputs: its file, or what its frames are made with."""
    node = graph[node_id]
    for class_type, name in FILE_INPUTS:
        if node["class_type"] == class_type and (path := existing_file(folders, node["inputs"][name])):
            stat = path.stat()
            return stat.st_size, stat.st_mtime_ns
    if node["class_type"] == "ReActorFaceSwap":
        made_with = [repr(marks), repr(people)]
        made_with += NetworkFolder(folders.models).state()
        return [*made_with, *(_encoding_inputs(combine["inputs"]) for combine in video_combines(graph, node_id))]
    return repr(marks) if node["class_type"] == "VHS_VideoCombine" else None


def video_combines(graph: Graph, node_id: str) -> Iterator[dict[str, Any]]:
    """Yield the VHS_VideoCombine nodes that encode the frames of `node_id`."""
    for node in graph.values():
        if node["class_type"] == "VHS_VideoCombine" and node.get("inputs", {}).get("images") == [node_id, 0]:
            yield node


def _encoding_inputs(inputs: Inputs) -> Any:
    return inputs.get("crf", _DEFAULT_CRF)


def encoding_of(inputs: Inputs, preset: str, marks: Marks | None) -> Encoding:
    """Return the encoding that a VHS_VideoCombine asks for. Raises ValueError for one this engine does not have."""
    for name, possible in _UNSUPPORTED.items():
        if inputs.get(name, possible[0]) not in possible:
            raise ValueError(f"{name} = {inputs[name]!r} is not supported, only {possible[0]!r}")
    crf = _encoding_inputs(inputs)
    if not isinstance(crf, int) or not 0 <= crf <= 100:
        raise ValueError(f"crf must be a whole number from 0 to 100, not {crf!r}")
    return Encoding(crf, preset, marks)


def load_image(context: NodeContext, inputs: Inputs) -> Result:
    """Run LoadImage: a still, and no mask."""
    return Result((read_picture(context.folders.annotated(inputs["image"])), None))


def load_video(context: NodeContext, inputs: Inputs) -> Result:
    """Run VHS_LoadVideo: frames, their number, the sound and the video's facts."""
    video = probe(context.folders.annotated(inputs["video"]))
    if not context.faults.streams:
        video = dataclasses.replace(video, keyframes=())
    layout = load_formats().get(inputs.get("format", "None"), {})
    clip = Clip(
        video,
        Selection(
            force_rate=as_rate(inputs["force_rate"]),
            skip=inputs["skip_first_frames"],
            step=inputs["select_every_nth"],
            cap=inputs["frame_load_cap"],
            width=inputs["custom_width"],
            height=inputs["custom_height"],
            multiple=layout.get("dim", [1])[0],
            groups=tuple(layout.get("frames", (1, 0))),
        ),
    )
    if clip.count == 0:
        raise RuntimeError("No frames generated")
    if too_large(*clip.size):
        raise ValueError(f"{clip.size[0]}×{clip.size[1]} is too large")
    for number in range(1, clip.count + 1):
        context.progress(number, clip.count, None)
    start, end = clip.span
    sound = Sound(video.path, video.start, start, end) if video.has_sound else None
    return Result((clip, clip.count, sound, _facts(clip)))


def _facts(clip: Clip) -> dict[str, float]:
    video, (width, height) = clip.video, clip.size
    return {
        "source_fps": float(video.rate),
        "source_frame_count": video.count,
        "source_duration": float(video.count / video.rate),
        "source_width": video.width,
        "source_height": video.height,
        "loaded_fps": float(clip.rate),
        "loaded_frame_count": clip.count,
        "loaded_duration": float(clip.count / clip.rate),
        "loaded_width": width,
        "loaded_height": height,
    }


def video_info(context: NodeContext, inputs: Inputs) -> Result:
    """Run VHS_VideoInfo: the facts of a video, one by one."""
    return Result(tuple(inputs["video_info"].values()))


def face_boost(context: NodeContext, inputs: Inputs) -> Result:
    """Run ReActorFaceBoost: the choices for the boost of a network's crops."""
    return Result((dict(inputs),))


def batch_images(context: NodeContext, inputs: Inputs) -> Result:
    """Run ImageBatch: stills one after another, each of its own size."""
    return Result(((*_stills(inputs["image1"]), *_stills(inputs["image2"])),))


def build_face_model(context: NodeContext, inputs: Inputs) -> Result:
    """Run ReActorBuildFaceModel: the stills of one person, whose face is made where it is put in."""
    if "images" not in inputs:
        raise ValueError("A face model is built of images only")
    return Result((_stills(inputs["images"]),))


def _stills(images: Any) -> Stills:
    stills = images if isinstance(images, tuple) else (images,)
    if not all(isinstance(still, Picture) for still in stills):
        raise ValueError("Only stills can be put together, no video")
    return stills


def face_swap(context: NodeContext, inputs: Inputs) -> Result:
    """Run ReActorFaceSwap: the frames with the source's face; unchanged without a face to take, as in ReActor.

    After another swap both are done in one go, so that each face is followed as it was before.
    """
    original: Frames = inputs["input_image"]
    before = original if isinstance(original, SwappedClip) else None
    frames = _with_faults(context.faults, original) if before is None else before.frames
    networks = Networks.of(NetworkFolder(context.folders.models), inputs)
    faces = _faces_to_put_in(context, inputs, networks)
    swaps: SwapCount | None = None
    if faces is not None:
        faces = {**(before.faces if before else {}), **faces}
        swaps = SwapCount(frames.count)
        lead = min(LEAD, context.marks.first_frame) if context.marks and not context.faults.paints else 0
        frames = SwappedClip(frames, _swap_maker(context, frames, faces), swaps, faces, lead)
    elif before is not None:
        frames, swaps = before, before.swaps
    elif not context.faults.black_frame:
        swaps = SwapCount(frames.count)
    unused = networks.unused if inputs["enabled"] else ()
    if context.encoding is None or not inputs["enabled"]:
        return Result((frames, None, original), swaps=swaps, unused=unused)
    path = context.folders.folder("temp") / f"{uuid.uuid4().hex}.mp4"
    _encode(context, frames, path, frames.rate, context.encoding)
    encoded = EncodedClip(probe(path), Selection(), context.encoding)
    return Result((encoded, None, original), files=(path,), scratch=True, swaps=swaps, unused=unused)


def _with_faults(faults: Faults, frames: Frames) -> Frames:
    if faults.black_frame:
        return Picture(np.zeros((512, 512, 3), np.uint8), frames.rate)
    return ShortenedClip(frames, max(1, frames.count - faults.drop_frames)) if faults.drop_frames else frames


def _faces_to_put_in(context: NodeContext, inputs: Inputs, networks: Networks) -> Mapping[int, Source] | None:
    """Return the faces to put in, by the index of the face they replace; None when there is nothing to do."""
    faults, source = context.faults, inputs.get("source_image", inputs.get("face_model"))
    if not inputs["enabled"] or source is None or faults.unswapped or faults.black_frame:
        return None
    if faults.paints:
        return {}
    stills = source if isinstance(source, tuple | Picture) else Picture(next(iter(source)).to_bgr())
    return faces_to_put_in(networks, inputs, _stills(stills))


def _swap_maker(context: NodeContext, frames: Frames, faces: Mapping[int, Source]) -> Callable[[], Swap]:
    """Return a function that makes the swap of faces by the index of those they replace."""
    if context.faults.paints:
        faults = context.faults
        return functools.partial(InvertingSwap, faults.wait_per_frame_s, faults.hold_until, context.interrupted)
    # imported here: the models take a second and 100 MB, which an idle engine need not spend
    from .swap import LOOKAHEAD, FaceSwapper

    return functools.partial(
        FaceSwapper,
        list(faces.values()),
        list(faces),
        frame_rate=float(frames.rate),
        known=_known(context.people),
        lookahead=0 if is_large(frames.size) else LOOKAHEAD,
    )


@functools.lru_cache(maxsize=8)
def _known(people: People) -> tuple[Look, ...]:
    """Return the looks of the people whose pictures a prompt has, shared by the segments of a video."""
    from .people import People as KnownPeople

    known = KnownPeople()
    for faces in people:
        if not known.meet([decode_picture(np.frombuffer(base64.b64decode(face), np.uint8)) for face in faces]):
            break  # who comes after would get another's number
    return known.looks


def forget() -> None:
    """Release what the segments of a video share."""
    forget_faces()
    _known.cache_clear()


def _encode(context: NodeContext, frames: Frames, path: Path, rate: Fraction, encoding: Encoding) -> None:
    """Encode frames and report each as the node's progress; leave no file behind when it fails."""

    def on_frame(number: int, frame: Frame) -> None:
        context.progress(number, max(number, frames.count), frame)

    try:
        done = encode(frames, path, rate, encoding, on_frame)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    if done < frames.count:
        context.progress(done, done, None)


def video_combine(context: NodeContext, inputs: Inputs) -> Result:
    """Run VHS_VideoCombine: an H.264 file with the sound, in the output folder (or `temp`)."""
    if context.faults.no_file:
        return Result((None,), shown={})
    kind = "output" if inputs["save_output"] else "temp"
    prefix = PurePosixPath(inputs["filename_prefix"])
    folder = context.folders.file(kind, str(prefix.parent), prefix.name).parent
    encoding, rate = encoding_of(inputs, context.preset, context.marks), as_rate(inputs["frame_rate"])
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{prefix.name}_{next_number(folder, prefix.name):05}"
    sound: Sound | None = inputs.get("audio")
    path = folder / f"{stem}{'-audio' if sound else ''}.mp4"
    _write(context, inputs["images"], sound, path, rate, encoding)
    entry = {
        "filename": path.name,
        "subfolder": "" if str(prefix.parent) == "." else str(prefix.parent),
        "type": kind,
        "format": inputs["format"],
        "frame_rate": inputs["frame_rate"],
        "workflow": f"{stem}.png",
        "fullpath": str(path),
    }
    return Result(((inputs["save_output"], [str(path)]),), shown={"gifs": [entry]}, files=(path,))


def _write(
    context: NodeContext, images: Frames, sound: Sound | None, path: Path, rate: Fraction, encoding: Encoding
) -> None:
    """Write the file under its name only when it is complete; frames that are encoded already are copied."""
    silent = context.folders.folder("temp") / f"{uuid.uuid4().hex}.mp4"
    part = silent.with_suffix(".part.mp4")
    try:
        if isinstance(images, EncodedClip) and images.encoding == encoding:
            count = images.count
            mux(images.video.path, sound, part, rate, encoding.marks, lambda done: context.progress(done, count, None))
        else:
            has_marks = isinstance(images, EncodedClip) and images.encoding.marks is not None
            _encode(context, images, silent, rate, dataclasses.replace(encoding, marks=None) if has_marks else encoding)
            mux(silent, sound, part, rate, encoding.marks, lambda number: None)
        part.replace(path)
    finally:
        silent.unlink(missing_ok=True)
        part.unlink(missing_ok=True)


def _pictures(context: NodeContext, images: Frames) -> Iterator[Image]:
    """Yield the pictures of a clip, uint8 (H, W, 3) BGR; a still keeps every pixel that a swap leaves alone."""
    if isinstance(images, Picture):
        yield images.bgr
    elif isinstance(images, SwappedClip) and isinstance(images.frames, Picture):
        bgr, swap = images.frames.bgr.copy(), images.make_swap()
        still = Bitmap(bgr)
        images.swaps.swapped = int(swap.apply(still, swap.track(still)) > 0)
        context.progress(1, 1, Frame.from_bgr(bgr))
        yield bgr
    else:
        yield from (frame.to_bgr() for frame in images)


def save_image(context: NodeContext, inputs: Inputs) -> Result:
    """Run SaveImage: a PNG of each picture in the output folder."""
    if context.faults.no_file:
        return Result((), shown={})
    prefix = PurePosixPath(inputs["filename_prefix"])
    folder = context.folders.file("output", str(prefix.parent), prefix.name).parent
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, bgr in enumerate(_pictures(context, inputs["images"]), next_number(folder, prefix.name)):
        path = folder / f"{prefix.name}_{number:05}_.png"
        part = context.folders.folder("temp") / f"{uuid.uuid4().hex}.part.png"
        try:
            _, png = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL])
            part.write_bytes(png.tobytes())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        files.append(path)
    subfolder = "" if str(prefix.parent) == "." else str(prefix.parent)
    entries = [{"filename": path.name, "subfolder": subfolder, "type": "output"} for path in files]
    return Result((), shown={"images": entries}, files=tuple(files))


RUN: dict[str, Callable[[NodeContext, Inputs], Result]] = {
    "LoadImage": load_image,
    "ImageBatch": batch_images,
    "VHS_LoadVideo": load_video,
    "VHS_VideoInfo": video_info,
    "ReActorFaceSwap": face_swap,
    "ReActorFaceBoost": face_boost,
    "ReActorBuildFaceModel": build_face_model,
    "VHS_VideoCombine": video_combine,
    "SaveImage": save_image,
}
"""The function of each node class."""
