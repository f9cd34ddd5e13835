"""The kinds of networks that an operator may put into the models folder: what goes in, what comes out, whose licence.

A table, no code for each. The facts are those of FaceFusion 3.8.1; the names of files are its own and ReActor's. None
of these networks comes with this package.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Template = tuple[tuple[float, float], ...]
"""Five points of a face in a square crop, x and y as shares of its side: eyes, nose, corners of the mouth."""

ARCFACE_112_V1 = ((0.35473, 0.45659), (0.64527, 0.45659), (0.5, 0.61154), (0.37913, 0.77688), (0.62087, 0.77688))
ARCFACE_112_V2 = ((0.34192, 0.46157), (0.65653, 0.45983), (0.50023, 0.64051), (0.37098, 0.82469), (0.63152, 0.82325))
ARCFACE_128 = ((0.36168, 0.40388), (0.63697, 0.40235), (0.5002, 0.56044), (0.3871, 0.72161), (0.61508, 0.72034))
FFHQ_512 = ((0.37692, 0.46865), (0.62286, 0.46913), (0.50124, 0.61332), (0.39309, 0.72541), (0.6115, 0.7249))
MTCNN_512 = ((0.36563, 0.46734), (0.63305, 0.46586), (0.50019, 0.61943), (0.39033, 0.77599), (0.61179, 0.77476))


def placed(template: Template, side: int) -> NDArray[np.float32]:
    """Return a template's points in a crop of `side` pixels, float32 (5, 2)."""
    return np.array(template, np.float32) * np.float32(side)


Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Scaling:
    """The values of a network's pictures: (RGB in 0–1 − mean) / deviation."""

    mean: Triple = (0.0, 0.0, 0.0)
    deviation: Triple = (1.0, 1.0, 1.0)


UNIT = Scaling()
"""0–1."""
SIGNED = Scaling((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""−1–1."""
IMAGENET = Scaling((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class SwapKind:
    """A family of networks that put a source's face into a crop of the target.

    file         the name of its file, or of the first of several
    pattern      all names of its files, without `.onnx`
    side         pixels of the crop, where the file itself leaves that open
    template     of the target's crop
    takes, gives  scaling of the pictures that go in and come out
    source       what the network knows the source by:
                 `emap`       the embedding of length 1, times a matrix that is the file's last initializer
                 `normalised` the embedding of length 1
                 `raw`        the embedding as it is
                 `picture`    a crop of the source, by `source_template`, `source_side` pixels wide, in 0–1
    converter    the network that turns the raw embedding into one of the kind's own, before its length is made 1
    half_pixel   true if points of crops larger than 128 pixels count from a pixel's edge, not from its centre
    boosts       true if ReActor's face boost is for it
    """

    name: str
    file: str
    pattern: str
    licence: str
    side: int
    template: Template
    takes: Scaling
    gives: Scaling
    source: Literal["emap", "normalised", "raw", "picture"]
    converter: str = ""
    source_template: Template = ARCFACE_112_V2
    source_side: int = 112
    half_pixel: bool = False
    boosts: bool = True

    def points(self, side: int) -> NDArray[np.float32]:
        """Return the five points in a crop of `side` pixels, float32 (5, 2)."""
        shift = 128 / 32768 * side - 0.5 if self.half_pixel else 0.0
        return placed(self.template, side) + np.float32(shift)


NON_COMMERCIAL = "non-commercial use only"
UNKNOWN = "unknown"

SWAP_KINDS = (
    SwapKind(
        "inswapper",
        "inswapper_128.onnx",
        r"inswapper_128([._]fp16)?",
        NON_COMMERCIAL,
        128,
        ARCFACE_128,
        UNIT,
        UNIT,
        "emap",
    ),
    SwapKind(
        "reswapper",
        "reswapper_256.onnx",
        r"reswapper[-_].*",
        "AGPL-3.0, trained on what inswapper made",
        *(128, ARCFACE_128, UNIT, UNIT, "emap"),
        half_pixel=True,
    ),
    SwapKind(
        "hyperswap",
        "hyperswap_1a_256.onnx",
        r"hyperswap_1[abc]_256",
        "ResearchRAIL: research only",
        *(256, ARCFACE_128, SIGNED, SIGNED, "normalised"),
        boosts=False,
    ),
    SwapKind(
        "ghost",
        "ghost_2_256.onnx",
        r"ghost_[123]_256",
        "Apache-2.0, but works on an embedding for non-commercial use only",
        *(256, ARCFACE_112_V1, SIGNED, SIGNED, "raw", "crossface_ghost"),
    ),
    SwapKind(
        "simswap",
        "simswap_256.onnx",
        "simswap_256",
        NON_COMMERCIAL,
        *(256, ARCFACE_112_V1, IMAGENET, UNIT, "normalised", "crossface_simswap"),
    ),
    SwapKind(
        "simswap_unofficial",
        "simswap_unofficial_512.onnx",
        "simswap_unofficial_512",
        NON_COMMERCIAL,
        *(512, ARCFACE_112_V1, UNIT, UNIT, "normalised", "crossface_simswap"),
    ),
    SwapKind(
        "hififace_unofficial",
        "hififace_unofficial_256.onnx",
        "hififace_unofficial_256",
        UNKNOWN,
        *(256, MTCNN_512, SIGNED, SIGNED, "normalised", "crossface_hififace"),
    ),
    SwapKind(
        "uniface",
        "uniface_256.onnx",
        "uniface_256",
        UNKNOWN,
        *(256, FFHQ_512, SIGNED, SIGNED, "picture"),
        source_template=FFHQ_512,
        source_side=256,
    ),
    SwapKind("blendswap", "blendswap_256.onnx", "blendswap_256", NON_COMMERCIAL, 256, FFHQ_512, UNIT, UNIT, "picture"),
)


@dataclass(frozen=True)
class HelperKind:
    """A network that serves others, or that works on what they made; `file` and `pattern` as of a `SwapKind`."""

    name: str
    file: str
    pattern: str
    licence: str
    side: int = 512


EMBEDDING = HelperKind("embedding", "w600k_r50.onnx", r"(arcface_)?w600k_r50", NON_COMMERCIAL, 112)
"""Turns a face (`ARCFACE_112_V2`, `SIGNED`) into 512 numbers that tell people apart."""

CONVERTERS = tuple(
    HelperKind(name, f"{name}.onnx", name, "as of the network that it serves")
    for name in ("crossface_ghost", "crossface_simswap", "crossface_hififace")
)
RESTORERS = (
    HelperKind("gfpgan", "GFPGANv1.4.onnx", r"gfpgan(v|_)1\.[234]", "Apache-2.0"),
    HelperKind(
        "codeformer", "codeformer.onnx", r"codeformer(-v0\.1\.0)?", "S-Lab License 1.0: non-commercial use only"
    ),
    HelperKind("gpen", "GPEN-BFR-512.onnx", r"gpen[-_]bfr[-_](512|1024|2048)", NON_COMMERCIAL),
    HelperKind("restoreformer", "restoreformer_plus_plus.onnx", r"restoreformer(_plus_plus)?", "Apache-2.0"),
)
"""Sharpen a face (`FFHQ_512`, `SIGNED` in and out); one with a second input takes a weight there, 0–1."""

OCCLUSION = HelperKind("xseg", "xseg_1.onnx", r"(dfl_)?xseg(_[123])?", "GPL-3.0", 256)
"""Shows what of a face lies open: BGR in 0–1, (1, side, side, 3), to (1, side, side, 1)."""

PARSING = HelperKind("bisenet", "bisenet_resnet_34.onnx", r"bisenet_resnet_(18|34)", "MIT")
"""Names the part of a face that each pixel shows: `IMAGENET`, to 19 classes."""

FACE_CLASSES = (1, 2, 3, 4, 5, 6, 10, 11, 12, 13)
"""The classes of `PARSING` that are swapped: skin, brows, eyes, glasses, nose, mouth and lips."""

HELPERS = (EMBEDDING, *CONVERTERS, *RESTORERS, OCCLUSION, PARSING)

Kind = SwapKind | HelperKind

SUFFIX = ".onnx"

_OTHER_NAMES = {
    "gfpganv1.3": "gfpgan_1.3",
    "gfpganv1.4": "gfpgan_1.4",
    "codeformer-v0.1.0": "codeformer",
    "gpen-bfr-512": "gpen_bfr_512",
    "gpen-bfr-1024": "gpen_bfr_1024",
    "gpen-bfr-2048": "gpen_bfr_2048",
}
"""ReActor's names of restorers, in small letters, and FaceFusion's of the same."""


def kind_of(file_name: str) -> Kind | None:
    """Return the kind of a file by its name, None for no known one."""
    stem = file_name.lower().removesuffix(SUFFIX)
    if not file_name.lower().endswith(SUFFIX):
        return None
    kinds: tuple[Kind, ...] = (*SWAP_KINDS, *HELPERS)
    return next((kind for kind in kinds if re.fullmatch(kind.pattern, stem)), None)


def names_of(wanted: str) -> Iterator[str]:
    """Yield the names that the file of a name which a workflow has may go by, in small letters.

    A `.pth` stands for the ONNX file of the same network: such files are programs, which are not run.
    """
    stem = wanted.lower().removesuffix(SUFFIX).removesuffix(".pth")
    yield stem + SUFFIX
    if stem in _OTHER_NAMES:
        yield _OTHER_NAMES[stem] + SUFFIX
