"""Networks that an operator has: each kind does what the long way in numpy does, and hostile files do nothing."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import cv2
import made_networks as made
import numpy as np
import onnx
import onnxruntime
import pytest
from clips import make_clip
from engine_rig import engine, workflow
from media_samples import ASTRONAUT, GRACE_HOPPER, read_image

from faceswap import app
from faceswap.cli import main, service_commands
from faceswap.comfy.failures import failure_from_error
from faceswap.config import Settings
from faceswap.engine import catalog, execution, gender, network_files, network_list, swap_inputs
from faceswap.engine.execution import Executor, Prompt, PromptResult
from faceswap.engine.faults import Faults
from faceswap.engine.folders import Folders
from faceswap.engine.hands import Hand
from faceswap.engine.landmarks import find_faces
from faceswap.engine.network_crops import box_mask, enlarged, five_points
from faceswap.engine.network_files import Network, NetworkError, NetworkFolder
from faceswap.engine.network_kinds import RESTORERS, SWAP_KINDS, SwapKind, kind_of
from faceswap.engine.network_restore import Boost, RestoredFace, Restorer
from faceswap.engine.network_swap import NetworkFace, SwapNetwork
from faceswap.engine.pixels import Bitmap
from faceswap.engine.tracking import Track, Tracker
from faceswap.files import Files

V2 = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])
"""The five points of ArcFace's crop of 112 pixels."""
V2_128 = V2 + np.array([8, 0])
V1 = np.array([[39.73, 51.138], [72.27, 51.138], [56.0, 68.493], [42.463, 87.01], [69.537, 87.01]])
FFHQ = np.array([[192.98, 239.95], [318.9, 240.19], [256.63, 314.02], [201.26, 371.41], [313.09, 371.15]])
MTCNN = np.array([[187.2, 239.27], [324.12, 238.52], [256.09, 317.12], [199.85, 397.31], [313.34, 396.68]])

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
SIGNED = (0.5, 0.5)
UNIT = (0.0, 1.0)

EXPECTED: Mapping[str, tuple[np.ndarray, Any, Any]] = {
    "inswapper": (V2_128 / 128, UNIT, UNIT),
    "reswapper": (V2_128 / 128, UNIT, UNIT),
    "hyperswap": (V2_128 / 128, SIGNED, SIGNED),
    "ghost": (V1 / 112, SIGNED, SIGNED),
    "simswap": (V1 / 112, IMAGENET, UNIT),
    "simswap_unofficial": (V1 / 112, UNIT, UNIT),
    "hififace_unofficial": (MTCNN / 512, SIGNED, SIGNED),
    "uniface": (FFHQ / 512, SIGNED, SIGNED),
    "blendswap": (FFHQ / 512, UNIT, UNIT),
}
"""For each kind its template, and (mean, deviation) of what goes in and comes out."""

RUNS = {"inswapper": 2, "reswapper": 2}
"""Runs along a side for the face below, where it takes several."""

KINDS = {kind.name: kind for kind in SWAP_KINDS}
FACE = np.array([[98.0, 80.0], [150.0, 84.0], [122.0, 110.0], [101.0, 136.0], [143.0, 140.0]])
"""Five points of a face in a picture, a little turned."""


def picture(seed: int, size: tuple[int, int] = (200, 210)) -> np.ndarray:
    """Return a picture without edges, in which every place has a colour of its own."""
    coarse = np.random.default_rng(seed).integers(80, 176, (4, 4, 3)).astype(np.uint8)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)


def landmarks(points: np.ndarray) -> np.ndarray:
    """Return landmarks of which the five points are these."""
    marks = np.zeros((478, 3), np.float32)
    for place, point in zip(
        ([33, 160, 158, 133, 153, 144], [362, 385, 387, 263, 373, 380], [4], [61], [291]), points, strict=True
    ):
        marks[place, :2] = point
    return marks


def track(points: np.ndarray, presence: float = 1.0, hands: tuple[Hand, ...] = ()) -> Track:
    return Track(1, landmarks(points), landmarks(points), np.zeros(468, np.float32), presence, hands=hands)


def similarity(points: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the least-squares matrix (2, 3) of turning, scaling and moving."""
    x, y = points.T
    one, none = np.ones_like(x), np.zeros_like(x)
    rows = np.concatenate([np.stack([x, -y, one, none], axis=1), np.stack([y, x, none, one], axis=1)])
    a, b, dx, dy = np.linalg.lstsq(rows, places.T.ravel(), rcond=None)[0]
    return np.array([[a, -b, dx], [b, a, dy]])


def sampled(image: np.ndarray, x: np.ndarray, y: np.ndarray, *, beyond: bool = True) -> np.ndarray:
    """Return an image's values between its pixels; beyond it those of its edge, or nothing."""
    image = image.astype(np.float64).reshape(*image.shape[:2], -1)
    height, width = image.shape[:2]
    if not beyond:
        image, x, y, height, width = np.pad(image, ((1, 1), (1, 1), (0, 0))), x + 1, y + 1, height + 2, width + 2
    x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)
    x0, y0 = np.minimum(x.astype(int), width - 2), np.minimum(y.astype(int), height - 2)
    across, down = (x - x0)[..., None], (y - y0)[..., None]
    upper = image[y0, x0] * (1 - across) + image[y0, x0 + 1] * across
    lower = image[y0 + 1, x0] * (1 - across) + image[y0 + 1, x0 + 1] * across
    return upper * (1 - down) + lower * down


def cropped(image: np.ndarray, matrix: np.ndarray, side: int) -> np.ndarray:
    """Return a crop, in 8 bits, RGB and 0–1."""
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    back = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    from_x, from_y = (back[row, 0] * x + back[row, 1] * y + back[row, 2] for row in (0, 1))
    return np.rint(sampled(image, from_x, from_y))[..., ::-1] / 255


def soft_box(side: int) -> np.ndarray:
    """Return the mask of a crop: a border of 0.075 of it is nothing, then blurred by a Gaussian."""
    blur = int(side * 0.5 * 0.3)
    line = np.zeros(side)
    line[blur // 2 : -(blur // 2)] = 1
    radius = int(round(blur * 0.25 * 8 + 1) | 1) // 2
    kernel = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * (blur * 0.25) ** 2))
    line = np.convolve(np.pad(line, radius, mode="reflect"), kernel / kernel.sum(), mode="valid")
    return np.outer(line, line)


def pasted(image: np.ndarray, crop: np.ndarray, matrix: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the image with a crop, RGB 0–1, put back."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    to_x, to_y = (matrix[row, 0] * x + matrix[row, 1] * y + matrix[row, 2] for row in (0, 1))
    face = sampled(np.rint(crop[..., ::-1] * 255), to_x, to_y)
    cover = sampled(mask, to_x, to_y, beyond=False)
    return face * cover + image * (1 - cover)


def embedding(source: np.ndarray, points: np.ndarray) -> np.ndarray:
    face = cropped(source, similarity(points, V2), 112) * 2 - 1
    parts = face.reshape(4, 28, 4, 28, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    return parts.reshape(1, 48) @ made.MIXING + made.BIAS


def shade(kind: SwapKind, source: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return what a made network of a kind adds for a source, by the long way."""
    if kind.name == "uniface":
        return 0.3 * cropped(source, similarity(points, FFHQ / 2), 256).mean(axis=(0, 1))
    if kind.name == "blendswap":
        return 0.3 * cropped(source, similarity(points, V2), 112).mean(axis=(0, 1))
    numbers = embedding(source, points)
    if kind.name in ("ghost", "simswap", "simswap_unofficial", "hififace_unofficial"):
        numbers = numbers @ made.CROSSFACE
    if kind.name != "ghost":
        numbers /= np.linalg.norm(numbers)
    if kind.name in ("inswapper", "reswapper"):
        numbers = numbers @ made.EMAP
    return (numbers @ made.shades_of(kind))[0]


def swapped(kind: SwapKind, crop: np.ndarray, added: np.ndarray) -> np.ndarray:
    """Return what a made network of a kind gives for a crop, RGB 0–1."""
    _, (mean, deviation), (mean_out, deviation_out) = EXPECTED[kind.name]
    value = (crop - mean) / deviation * made.gain_of(kind) + made.waves(len(crop))[..., None] + added
    return np.rint(np.clip(value * deviation_out + mean_out, 0, 1) * 255) / 255


def long_way(
    kind: SwapKind, image: np.ndarray, points: np.ndarray, added: np.ndarray, times: int = 1, opacity: float = 1.0
) -> np.ndarray:
    side = kind.side * times
    shift = side / 256 - 0.5 if kind.name == "reswapper" else 0
    matrix = similarity(points, EXPECTED[kind.name][0] * side + shift)
    crop, result = cropped(image, matrix, side), np.zeros((side, side, 3))
    for down in range(times):
        for across in range(times):
            grid = crop[down::times, across::times]
            result[down::times, across::times] = swapped(kind, grid, added)
    return pasted(image, result, matrix, soft_box(side) * opacity)


def fill(folder: Path, kind: SwapKind, **options: Any) -> NetworkFolder:
    """Put a made network of a kind, and all that it needs, into a folder."""
    made.write_swap(folder / kind.file, kind, **options)
    made.write_embedding(folder / "w600k_r50.onnx")
    if kind.converter:
        made.write_converter(folder / f"{kind.converter}.onnx")
    return NetworkFolder(folder)


def opened(folder: NetworkFolder, kind: SwapKind) -> SwapNetwork:
    path = folder.find(kind.file, SWAP_KINDS)
    assert path is not None
    return SwapNetwork(kind, path, folder)


def painted(network: SwapNetwork, source: np.ndarray, image: np.ndarray, points: np.ndarray, **more: Any) -> np.ndarray:
    face = NetworkFace(network, network.describe([(source, landmarks(SOURCE_FACE))]), more.pop("boost", None))
    frame = image.copy()
    assert face.painter(more.pop("strength", 1.0)).paint(frame, track(points, **more))
    return frame


def assert_same(result: np.ndarray, expected: np.ndarray) -> None:
    """Check that no place differs by more than a step of 8 bits, but for some of which two roundings add up."""
    difference = np.abs(result - np.rint(expected))
    assert difference.max() <= 2
    assert (difference > 1).mean() < 1e-4


SOURCE_FACE = FACE * 1.1 + np.array([-20, 4])


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_does_what_the_long_way_does(name: str, tmp_path: Path) -> None:
    kind, source, image = KINDS[name], picture(1), picture(2)
    network = opened(fill(tmp_path, kind), kind)
    added = shade(kind, source, SOURCE_FACE)
    assert np.abs(added).max() > 0.02  # the source shows
    result = painted(network, source, image, FACE, presence=0.75)
    expected = long_way(kind, image, FACE, added, RUNS.get(name, 1), opacity=0.75)
    assert_same(result, expected)
    assert np.abs(result - image.astype(float)).max() > 10


@pytest.mark.parametrize(("batch", "half"), [(1, False), ("n", True)])
def test_a_large_face_is_swapped_in_several_runs(batch: int | str, half: bool, tmp_path: Path) -> None:
    kind, source, image, points = KINDS["inswapper"], picture(1), picture(3, (400, 410)), FACE * 1.9 - 40
    network = opened(fill(tmp_path, kind, batch=batch, half=half), kind)
    expected = long_way(kind, image, points, shade(kind, source, SOURCE_FACE), times=3)
    result = painted(network, source, image, points)
    assert_same(result, expected)


def test_points_of_larger_crops_of_reswapper_count_from_the_edge() -> None:
    kind = KINDS["reswapper"]
    assert kind.points(128) == pytest.approx(V2_128, abs=2e-3)
    assert kind.points(256) == pytest.approx(V2_128 * 2 + 0.5, abs=4e-3)


def test_a_crop_of_another_side_shows_the_same_place() -> None:
    matrix = similarity(FACE, FFHQ / 2)
    place = matrix @ (*FACE[2], 1)
    assert enlarged(matrix, 2.5) @ (*FACE[2], 1) == pytest.approx((place + 0.5) * 2.5 - 0.5)


def test_a_crop_has_a_soft_edge_and_nothing_changes_beyond_it(tmp_path: Path) -> None:
    assert np.abs(box_mask(256) - soft_box(256)).max() < 1e-4
    kind, image = KINDS["inswapper"], picture(2, (400, 420))
    result = painted(opened(fill(tmp_path, kind), kind), picture(1), image, FACE)
    differs = (result != image).any(axis=2)
    ys, xs = np.nonzero(differs)
    assert ys.min() > 0 and ys.max() < 200 and xs.max() < 220


def test_what_is_in_front_and_what_is_no_face_stays(tmp_path: Path) -> None:
    kind = KINDS["simswap"]
    made.write_occlusion(tmp_path / "xseg_1.onnx")
    image = np.full((240, 250, 3), (200, 120, 120), np.uint8)
    image[:, 130:] = (40, 120, 120)  # not blue: in front
    network = opened(fill(tmp_path, kind), kind)
    result = painted(network, picture(1), image, FACE)
    changed = (result != image).any(axis=2)
    assert changed[70:150, 90:118].all() and not changed[:, 131:].any()
    made.write_parsing(tmp_path / "bisenet_resnet_34.onnx")
    crop = np.zeros((256, 256, 3), np.uint8)
    crop[:, :, 0] = 255
    crop[:128, :, 2] = 255  # what is not red is hair
    mask = opened(NetworkFolder(tmp_path), kind).mask(crop, crop)
    assert mask[50:110, 50:200].min() > 0.99 and mask[132:].max() < 0.01


def test_a_hand_in_front_stays(tmp_path: Path) -> None:
    kind, image = KINDS["inswapper"], picture(2, (400, 420))
    points = np.zeros((21, 3), np.float32)
    points[:, :2] = np.linspace((120, 150), (120, 70), 21)
    network = opened(fill(tmp_path, kind), kind)
    for hands in ((), (Hand(points),)):
        changed = (painted(network, picture(1), image, FACE, hands=hands) != image).any(axis=2)
        assert changed[115:140, 119:122].any() == (not hands) and changed[90:130, 88:93].all()
    path = made.write_restorer(tmp_path / "codeformer.onnx", weighted=True)
    restorer = Restorer(RESTORERS[1], path, weight=0.5, visibility=0.8)
    face = NetworkFace(network, network.describe([(picture(1), landmarks(SOURCE_FACE))]))
    frame = image.copy()
    assert RestoredFace(face, restorer).painter(1.0).paint(frame, track(FACE, hands=(Hand(points),)))
    assert (frame[115:140, 119:122] == image[115:140, 119:122]).all()


def test_a_restorer_works_on_the_frame_and_a_boost_on_what_the_network_made(tmp_path: Path) -> None:
    kind, source, image, points = KINDS["blendswap"], picture(1), picture(3, (400, 410)), FACE + 40
    folder = fill(tmp_path, kind)
    path = made.write_restorer(tmp_path / "codeformer.onnx", weighted=True)
    restoring = Restorer(RESTORERS[1], path, weight=0.5, visibility=0.8)
    network = opened(folder, kind)
    plain = painted(network, source, image, points)

    frame, side = image.copy(), 160
    face = NetworkFace(network, network.describe([(source, landmarks(SOURCE_FACE))]))
    assert RestoredFace(face, restoring).painter(1.0).paint(frame, track(points))
    matrix = similarity(points, FFHQ / 512 * side)
    turned = 1 - cropped(plain, matrix, side)  # −1–1 turned round
    halved = np.rint((0.5 * (2 * turned - 1) + 1) / 2 * 255) / 255
    assert_same(frame, pasted(plain, halved, matrix, soft_box(side) * 0.8))

    boosted = painted(network, source, image, points, boost=Boost(restoring, cv2.INTER_LINEAR))
    matrix = similarity(points, FFHQ / 2)
    crop = swapped(kind, cropped(image, matrix, 256), shade(kind, source, SOURCE_FACE))
    y, x = (np.mgrid[:side, :side] + 0.5) * (256 / side) - 0.5
    resized = sampled(crop, x, y)
    mixed = 0.8 * ((0.5 * (2 * (1 - resized) - 1) + 1) / 2) + 0.2 * resized
    scaled = matrix * (side / 256) + np.array([0, 0, (side / 256 - 1) / 2])
    assert_same(boosted, pasted(image, mixed, scaled, sampled(soft_box(256), x, y)[..., 0]))


class Silent:
    """An observer of a prompt who takes no notice."""

    def message(self, kind: str, data: dict[str, Any]) -> None:
        return

    def preview(self, jpeg: bytes, metadata: dict[str, Any]) -> None:
        return


class Rig:
    """An engine without a server, and the stills of its prompts."""

    def __init__(self, root: Path) -> None:
        self.folders = Folders(root)
        self.models = self.folders.models
        self._executor = Executor(self.folders, "ultrafast")
        self.target = cv2.resize(
            read_image(ASTRONAUT)[20:260, 110:340], None, fx=0.7, fy=0.7, interpolation=cv2.INTER_AREA
        )
        self.source = cv2.resize(read_image(GRACE_HOPPER), None, fx=0.35, fy=0.35, interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(root / "input" / "source.png"), self.source)
        cv2.imwrite(str(root / "input" / "target.png"), self.target)

    def run(self, swap_model: str = "inswapper_128.onnx", boost: Any = None, **inputs: Any) -> PromptResult:
        graph: dict[str, Any] = {
            "1": {"class_type": "LoadImage", "inputs": {"image": "target.png"}},
            "2": {"class_type": "LoadImage", "inputs": {"image": "source.png"}},
            "3": {
                "class_type": "ReActorFaceSwap",
                "inputs": {
                    "enabled": True,
                    "input_image": ["1", 0],
                    "source_image": ["2", 0],
                    "swap_model": swap_model,
                    "face_restore_model": "none",
                    "face_restore_visibility": 1.0,
                    "codeformer_weight": 0.5,
                    "detect_gender_input": "no",
                    "detect_gender_source": "no",
                    "input_faces_index": "0",
                    "source_faces_index": "0",
                    **inputs,
                },
            },
            "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "made"}},
        }
        if boost:
            graph["5"] = {"class_type": "ReActorFaceBoost", "inputs": boost}
            graph["3"]["inputs"]["face_boost"] = ["5", 0]
        return self._executor.execute(Prompt(1, "p", graph, {}, ["4"]), Silent())  # type: ignore[arg-type]  # it only has to keep still

    @cached_property
    def track(self) -> Track:
        """The target's face, as the swap sees it."""
        (face,) = Tracker(1)(Bitmap(self.target))
        return face

    @cached_property
    def source_landmarks(self) -> np.ndarray:
        (face,) = find_faces(self.source, 1)
        return face.landmarks

    def picture(self, result: PromptResult) -> np.ndarray:
        assert result.completed, result.messages[-1]
        return read_image(self.folders.root / "output" / result.shown["4"]["images"][0]["filename"])


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    return Rig(tmp_path_factory.mktemp("networks"))


@pytest.fixture(autouse=True)
def no_models(request: pytest.FixtureRequest) -> Iterator[None]:
    """Empty the models folder of the rig after each test."""
    yield
    if "rig" in request.fixturenames:
        models: Path = request.getfixturevalue("rig").models
        for path in sorted(models.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_swaps_in_a_whole_job(name: str, rig: Rig) -> None:
    kind = KINDS[name]
    fill(rig.models, kind)
    result = rig.run(kind.file, face_restore_model="GFPGANv1.4.pth")
    assert result.swaps["3"] == {
        "frames": 1,
        "swapped": 1,
        "unused": ["face_restore_model", "face_restore_visibility", "face_boost"],
    }
    network, expected = opened(NetworkFolder(rig.models), kind), rig.target.copy()
    face = NetworkFace(network, network.describe([(rig.source, rig.source_landmarks)]))
    assert face.painter(1.0).paint(expected, rig.track)
    assert (rig.picture(result) == expected).all()


def test_a_name_without_its_file_means_the_built_in_swapper(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    swap_inputs.log_once.cache_clear()
    built_in = rig.run("inswapper_128.onnx", face_restore_model="GFPGANv1.4.pth", boost=BOOST)
    assert built_in.swaps["3"]["swapped"] == 1
    assert built_in.swaps["3"]["unused"] == [
        "swap_model",
        "face_restore_model",
        "face_restore_visibility",
        "face_boost",
    ]
    assert "inswapper_128.onnx is not in the models folder: the built-in swapper takes its place" in caplog.messages
    made.write_swap(rig.models / "inswapper_128.onnx", KINDS["inswapper"])
    without_embedding = rig.run("inswapper_128.onnx")
    assert (rig.picture(without_embedding) == rig.picture(built_in)).all()
    assert any("needs w600k_r50.onnx in the models folder" in message for message in caplog.messages)


def test_without_onnx_runtime_the_built_in_swapper_takes_the_place_of_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = fill(tmp_path, KINDS["hyperswap"])
    made.write_restorer(tmp_path / "gfpgan_1.4.onnx")
    inputs = {"swap_model": "hyperswap_1a_256.onnx", "face_restore_model": "GFPGANv1.4.pth"}
    assert swap_inputs.Networks.of(folder, inputs).unused == ("face_boost",)
    swap_inputs.log_once.cache_clear()
    monkeypatch.setattr(swap_inputs, "is_installed", lambda: False)
    assert len(swap_inputs.Networks.of(folder, inputs).unused) == 4
    assert len(caplog.messages) == 2
    assert all("pip install 'faceswap[models]'" in message for message in caplog.messages)


def test_a_file_that_is_put_there_is_used_by_the_next_job_and_in_reactors_folders_too(rig: Rig) -> None:
    before = rig.picture(rig.run("hyperswap_1a_256.onnx"))
    made.write_swap(rig.models / "hyperswap" / "hyperswap_1a_256.onnx", KINDS["hyperswap"])
    made.write_embedding(rig.models / "insightface" / "models" / "buffalo_l" / "w600k_r50.onnx")
    result = rig.run("hyperswap_1a_256.onnx")
    assert "swap_model" not in result.swaps["3"]["unused"]
    assert (rig.picture(result) != before).any()


BOOST = {
    "enabled": True,
    "boost_model": "GPEN-BFR-512.onnx",
    "interpolation": "Bicubic",
    "visibility": 1.0,
    "codeformer_weight": 0.5,
    "restore_with_main_after": False,
}


def test_a_boost_takes_the_place_of_restoring_unless_it_says_otherwise(rig: Rig) -> None:
    fill(rig.models, KINDS["blendswap"])
    made.write_restorer(rig.models / "facerestore_models" / "GPEN-BFR-512.onnx")
    made.write_restorer(rig.models / "gfpgan_1.4.onnx")
    runs = {
        "plain": rig.run("blendswap_256.onnx"),
        "restored": rig.run("blendswap_256.onnx", face_restore_model="GFPGANv1.4.pth"),
        "boosted": rig.run("blendswap_256.onnx", BOOST, face_restore_model="GFPGANv1.4.pth"),
        "both": rig.run(
            "blendswap_256.onnx", {**BOOST, "restore_with_main_after": True}, face_restore_model="GFPGANv1.4.pth"
        ),
    }
    assert runs["boosted"].swaps["3"]["unused"] == []
    x, y = five_points(rig.track.landmarks).mean(axis=0).astype(int)
    plain, restored, boosted, both = (rig.picture(run)[y, x].astype(int) for run in runs.values())
    # a made restorer turns light into dark
    assert np.abs(restored - (255 - plain)).max() <= 3 and np.abs(boosted - (255 - plain)).max() <= 3
    assert np.abs(both - plain).max() <= 4
    made.write_swap(rig.models / "hyperswap_1a_256.onnx", KINDS["hyperswap"])
    assert rig.run("hyperswap_1a_256.onnx", BOOST).swaps["3"]["unused"][-1] == "face_boost"


def test_a_restorer_works_after_the_built_in_swapper_too(rig: Rig) -> None:
    made.write_restorer(rig.models / "GFPGANv1.3.onnx")
    plain, restored = rig.run(), rig.run(face_restore_model="GFPGANv1.3.onnx", face_restore_visibility=1.0)
    assert restored.swaps["3"]["unused"] == ["swap_model", "face_boost"]
    assert np.abs(rig.picture(plain).astype(int) - rig.picture(restored)).max() > 60


@pytest.mark.parametrize(
    ("inputs", "swapped"),
    [
        ({"detect_gender_input": "female"}, 1),
        ({"detect_gender_input": "male"}, 0),
        ({"source_image": ["1", 0], "detect_gender_source": "female"}, 1),
        ({"source_image": ["1", 0], "detect_gender_source": "male"}, 0),
        ({"source_faces_index": "0,3"}, 1),
        ({"source_faces_index": "3"}, 0),
    ],
)
def test_genders_and_indexes_are_what_they_are_in_reactor(inputs: dict[str, str], swapped: int, rig: Rig) -> None:
    result = rig.run(**inputs)
    assert result.completed, result.messages[-1]
    assert result.swaps["3"]["swapped"] == swapped


def test_an_index_is_read_as_reactor_reads_it() -> None:
    texts = ("0", "2,0", " 1 , 3,", "", "none", "-1,x,4")
    assert [swap_inputs.face_indices(text) for text in texts] == [[0], [2, 0], [1, 3], [0], [0], [4]]


def test_more_targets_than_sources_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swap_inputs, "_built_in", lambda stills, index: f"source {index}")
    inputs = {
        "swap_model": "none.onnx",
        "face_restore_model": "none",
        "source_image": None,
        "source_faces_index": "1,0",
        "input_faces_index": "4,2,0",
        "detect_gender_source": "no",
        "detect_gender_input": "no",
    }
    networks = swap_inputs.Networks(NetworkFolder(Path("none")), None, None, None)
    faces = swap_inputs.faces_to_put_in(networks, inputs, ())
    assert faces == {4: "source 1", 2: "source 0", 0: "source 1"}


def test_a_face_is_taken_for_one_gender_by_many_frames_and_does_not_flicker(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter([0.4, 0.6, 0.3, 0.6, 0.6, 0.7, 0.6, 0.6])
    monkeypatch.setattr(gender.GenderNetwork, "maleness", lambda *_: next(seen))
    painter = gender.FaceForGender(PaintedSquare(), "female").painter(1.0)
    frame = np.zeros((8, 8, 3), np.uint8)
    assert all(painter.paint(frame, track(FACE)) for _ in range(20))

    seen = iter([0.55, *[0.0] * 7])  # a first look that was wrong
    painter = gender.FaceForGender(PaintedSquare(), "female").painter(1.0)
    assert [painter.paint(frame, track(FACE)) for _ in range(9)] == [False, *[True] * 8]


class PaintedSquare:
    """A source whose painter only says that it painted."""

    reach = 1.0

    def painter(self, strength: float) -> PaintedSquare:
        return self

    def paint(self, frame: np.ndarray, track: Track) -> bool:
        return True


def test_the_list_tells_what_is_there_what_is_missing_and_the_licences(tmp_path: Path) -> None:
    fill(tmp_path, KINDS["inswapper"])
    made.write_swap(tmp_path / "reswapper" / "reswapper_128.onnx", KINDS["hyperswap"])
    made.write_swap(tmp_path / "ghost_1_256.onnx", KINDS["ghost"])
    (tmp_path / "GFPGANv1.4.onnx").write_bytes(b"\xff")
    told = list(network_list.lines(tmp_path))
    assert told[0] == f"models folder: {tmp_path}"
    assert "insightface/models/buffalo_l" in told[1]
    assert told[2].startswith("ONNX Runtime: ") and "CPUExecutionProvider" in told[2]
    rows = {line.split()[1]: (line, after) for line, after in pairwise(told) if line.startswith("  ")}
    assert re.fullmatch(r"  found +inswapper_128.onnx +\d+ MB +non-commercial use only", rows["inswapper_128.onnx"][0])
    assert rows["reswapper_128.onnx"][1].strip().startswith("reswapper_128.onnx does not end with a matrix")
    assert rows["ghost_1_256.onnx"][0].split()[0] == "unusable"
    assert rows["ghost_1_256.onnx"][1].strip() == "it needs crossface_ghost.onnx"
    assert rows["GFPGANv1.4.onnx"][1].strip() == "GFPGANv1.4.onnx is no file of ONNX"
    assert re.fullmatch(r"  missing +hyperswap_1a_256.onnx +ResearchRAIL.*", rows["hyperswap_1a_256.onnx"][0])
    assert next(network_list.lines(tmp_path / "none")).endswith("(not there)")


def test_the_command_lists_the_folder_of_the_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(service_commands.subprocess, "call", lambda command: commands.append(command) or 0)
    monkeypatch.delenv("FACESWAP_MODELS_DIR", raising=False)
    assert main(["models", "--data-dir", str(tmp_path)]) == 0
    monkeypatch.setenv("FACESWAP_MODELS_DIR", "/srv/models")
    assert main(["models"]) == 0
    assert [command[-3:] for command in commands] == [
        ("--list-networks", "--models-dir", str(tmp_path / "models")),
        ("--list-networks", "--models-dir", "/srv/models"),
    ]


async def test_the_engines_get_the_folder_of_the_settings(tmp_path: Path) -> None:
    settings = Settings(tmp_path, models_dir=Path("/srv/models"), engines=2)
    for keeper in await app._embedded_engines(settings, Files(tmp_path)):
        arguments = keeper._arguments
        assert arguments[arguments.index("--models-dir") + 1] == "/srv/models"
    assert Settings(tmp_path).models_folder == tmp_path / "models"


def test_networks_of_the_folder_can_be_chosen_beside_those_that_workflows_name(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    fill(folders.models, KINDS["ghost"])
    made.write_restorer(folders.models / "gfpgan_1.4.onnx")
    told = catalog.describe(folders)
    swaps, boosts = told["ReActorFaceSwap"]["input"]["required"], told["ReActorFaceBoost"]["input"]["required"]
    assert swaps["swap_model"][0] == ["inswapper_128.onnx", "ghost_2_256.onnx"]
    assert swaps["face_restore_model"][0][-1] == boosts["boost_model"][0][-1] == "gfpgan_1.4.onnx"


@pytest.mark.parametrize(
    ("there", "has_tensorrt", "chosen"),
    [
        (["CPUExecutionProvider"], True, ["CPU"]),
        (["CPUExecutionProvider", "CUDAExecutionProvider"], False, ["CUDA", "CPU"]),
        (["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"], False, ["CUDA", "CPU"]),
        (
            ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
            True,
            ["Tensorrt", "CUDA", "CPU"],
        ),
    ],
)
def test_a_graphics_card_comes_before_the_processor(
    there: list[str], has_tensorrt: bool, chosen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
    monkeypatch.setattr(network_files.importlib.util, "find_spec", lambda name: name if has_tensorrt else None)
    assert network_files.providers() == [f"{name}ExecutionProvider" for name in chosen]


def opening(path: Path, monkeypatch: pytest.MonkeyPatch, **package: Any) -> Network:
    """Open a network with a package of ONNX Runtime that is another in something."""
    for name, value in package.items():
        monkeypatch.setattr(onnxruntime, name, value, raising=False)
    network_files._load_libraries.cache_clear()
    return Network(path)


WITH_CUDA = {"get_available_providers": lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]}
"""As with `onnxruntime-gpu`, on any machine."""


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_graphics_card_that_cannot_be_used_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opening(made.write_converter(tmp_path / "crossface_ghost.onnx"), monkeypatch, **WITH_CUDA)
    assert caplog.messages == [
        "crossface_ghost.onnx runs without CUDAExecutionProvider, which cannot be used here",
    ]
    assert list(network_list.lines(tmp_path))[2] == (
        "ONNX Runtime: CPUExecutionProvider"
        " (CUDAExecutionProvider cannot be used: no GPU, or its driver or libraries are missing)"
    )
    monkeypatch.undo()
    assert list(network_list.lines(tmp_path))[2] == "ONNX Runtime: CPUExecutionProvider"


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_libraries_of_a_graphics_card_that_pip_installed_are_loaded_first_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done, open_session = list[str](), onnxruntime.InferenceSession

    def preload() -> None:
        sys.stdout.write("Failed to load libcublasLt.so.13")
        done.append("libraries")

    def session(*args: Any, **kwargs: Any) -> Any:
        done.append("session")
        return open_session(*args, **kwargs)

    path = made.write_converter(tmp_path / "crossface_ghost.onnx")
    opening(path, monkeypatch, preload_dlls=preload, InferenceSession=session)
    assert done == ["session"]  # a package for the processor alone needs none
    opening(path, monkeypatch, preload_dlls=preload, InferenceSession=session, **WITH_CUDA)
    Network(path)
    assert done == ["session", "libraries", "session", "session"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "told",
    [
        # As an H200 whose memory others had told it: when a network was opened, and at its first run.
        "[ONNXRuntimeError] : 1 : FAIL : Exception during initialization: bfc_arena.cc:360"
        " Failed to allocate memory for requested buffer of size 37748736",
        "[ONNXRuntimeError] : 1 : FAIL : cuda_call.cc:154 CUBLAS failure 3: the resource allocation failed ; GPU=0",
        # As it is on a processor.
        "[ONNXRuntimeError] : 1 : FAIL : Exception during loading: std::bad_alloc",
    ],
)
@pytest.mark.parametrize("when", ["opened", "run"])
def test_a_network_without_memory_is_told_from_a_broken_one(
    told: str, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(told)

    path = made.write_converter(tmp_path / "crossface_ghost.onnx")
    with pytest.raises(NetworkError) as caught:
        if when == "opened":
            opening(path, monkeypatch, InferenceSession=fail)
        else:
            network = Network(path)
            monkeypatch.setattr(network, "_session", SimpleNamespace(run=fail, get_providers=list))
            network.run(np.zeros((1, 512), np.float32), gives=(512,))
    sentence = f"crossface_ghost.onnx cannot be {when}: too little memory is free, of the machine or its graphics card"
    assert execution._type_and_message(caught.value) == ("MemoryError", sentence)
    assert failure_from_error("ReActorFaceSwap", "MemoryError", sentence).code == "out_of_memory"


async def test_a_clip_is_swapped_by_a_network(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "portrait.mp4", 6, size=(128, 128), draw=portrait)
    async with engine(tmp_path / "engine", Faults()) as rig:
        fill(rig.data / "models", KINDS["hyperswap"])
        await rig.upload(clip)
        path = await rig.swap(workflow("portrait.mp4", swap_model="hyperswap_1a_256.onnx", crf=10))
        (told,) = (await rig.get("/history/p"))["p"]["faceswap"].values()
    assert told == {
        "frames": 6,
        "swapped": 6,
        "unused": ["face_restore_model", "face_restore_visibility", "face_boost"],
    }
    before, after = decoded(clip), decoded(path)
    changed = np.abs(after - before).max(axis=3) > 24
    assert (changed.mean(axis=(1, 2)) > 0.1).all() and not changed[:, :4].any()


def portrait(number: int, width: int, height: int) -> np.ndarray:
    left = number * 2
    face = read_image(ASTRONAUT)[20 : 20 + 230, 100 + left : 100 + left + 230, ::-1]
    return cv2.resize(face, (width, height), interpolation=cv2.INTER_AREA)


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]).astype(np.int16)


# Files of networks are taken for hostile.


def test_a_file_that_is_no_network_fails_the_job_with_a_sentence(rig: Rig) -> None:
    fill(rig.models, KINDS["hyperswap"])
    (rig.models / "hyperswap_1a_256.onnx").write_bytes(b"\xff" * 1000)
    result = rig.run("hyperswap_1a_256.onnx")
    assert not result.completed
    assert result.messages[-1][1]["exception_message"] == "hyperswap_1a_256.onnx is no file of ONNX\n"


def test_a_network_of_another_kind_is_told_from_its_own(tmp_path: Path) -> None:
    kind, folder = KINDS["hyperswap"], fill(tmp_path, KINDS["hyperswap"])
    path = tmp_path / kind.file

    def told(kind: SwapKind = kind) -> str:
        with pytest.raises(NetworkError) as told:
            opened(folder, kind).describe([(picture(1), landmarks(SOURCE_FACE))])
        return str(told.value)

    path.write_bytes(b"")
    assert told().startswith(f"{kind.file} cannot be opened: ")
    made.write_restorer(path)
    assert told() == f"{kind.file} takes a picture only, and nothing of the source"
    made.write_converter(path)
    assert told() == f"{kind.file} takes no pictures"
    made.write_swap(path, kind, side=16)
    assert "none of colours in a square" in told()
    made.write_swap(path, kind)
    made.write_restorer(tmp_path / "w600k_r50.onnx", side=112)
    assert told() == "w600k_r50.onnx gives (3, 112, 112) where (512,) was expected"
    made.write_swap(tmp_path / "inswapper_128.onnx", kind)
    assert told(KINDS["inswapper"]) == "inswapper_128.onnx does not end with a matrix of 512×512 numbers"


def test_what_a_network_gives_is_checked(tmp_path: Path) -> None:
    network = Network(made.write_restorer(tmp_path / "gfpgan_1.4.onnx", side=64))
    with pytest.raises(NetworkError, match=r"gives \(3, 64, 64\) where \(3, 32, 32\) was expected"):
        network.run(np.zeros((1, 3, 64, 64), np.float32), gives=(3, 32, 32))
    with pytest.raises(NetworkError, match="cannot be run"):
        network.run(np.zeros((1, 3, 32, 32), np.float32), gives=(3, 32, 32))
    result = network.run(np.full((1, 3, 64, 64), np.nan, np.float32), gives=(3, 64, 64))
    assert np.isfinite(result).all()


def test_weights_in_other_files_and_files_beyond_all_measure_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made.write_converter(tmp_path / "crossface_ghost.onnx")
    model = onnx.load(path)
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="../secret")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(NetworkError, match="has its weights in another file"):
        Network(path)
    monkeypatch.setattr(network_files, "MAX_FILE_BYTES", 10)
    with pytest.raises(NetworkError, match="is larger than"):
        Network(path)


def test_only_files_of_the_folder_are_found(tmp_path: Path) -> None:
    outside = made.write_restorer(tmp_path / "outside" / "gfpgan_1.4.onnx")
    folder = NetworkFolder(tmp_path / "models")
    assert folder.files() == {}
    (folder.root / "reswapper").mkdir(parents=True)
    (folder.root / "gfpgan_1.4.onnx").symlink_to(outside)
    (folder.root / "unknown.onnx").write_bytes(b"")
    (folder.root / "inswapper_128.pth").write_bytes(b"")
    (folder.root / "reswapper" / "Reswapper_256.onnx").write_bytes(b"")
    assert list(folder.files()) == ["Reswapper_256.onnx"]
    assert folder.find("reswapper_256.onnx", SWAP_KINDS) == folder.root / "reswapper" / "Reswapper_256.onnx"
    assert folder.find("reswapper_256.onnx", RESTORERS) is None
    for name in ("../outside/gfpgan_1.4.onnx", "/etc/passwd", "", "reswapper/Reswapper_256.onnx"):
        assert folder.find(name, (*SWAP_KINDS, *RESTORERS)) is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("inswapper_128.onnx", "inswapper"),
        ("inswapper_128.fp16.onnx", "inswapper"),
        ("inswapper_128_fp16.onnx", "inswapper"),
        ("reswapper_128.onnx", "reswapper"),
        ("reswapper_256-1567500.onnx", "reswapper"),
        ("hyperswap_1c_256.onnx", "hyperswap"),
        ("ghost_3_256.onnx", "ghost"),
        ("arcface_w600k_r50.onnx", "embedding"),
        ("GFPGANv1.4.onnx", "gfpgan"),
        ("gfpgan_1.4.onnx", "gfpgan"),
        ("GPEN-BFR-2048.onnx", "gpen"),
        ("xseg_2.onnx", "xseg"),
        ("bisenet_resnet_18.onnx", "bisenet"),
        ("GFPGANv1.4.pth", None),
        ("det_10g.onnx", None),
    ],
)
def test_files_are_known_by_their_names(name: str, kind: str | None) -> None:
    found = kind_of(name)
    assert (found and found.name) == kind
