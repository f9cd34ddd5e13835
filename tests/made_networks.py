"""Files of ONNX as an operator may have them, whose results can be computed by hand: no trained weights.

A swap network makes `x · gain + waves + source @ SHADES` of its picture and of what it is told of the source. An
embedding is the mean colours of a face's 4×4 parts, mixed. A restorer turns −1–1 round.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from faceswap.engine.network_kinds import IMAGENET, SwapKind

NUMBERS = 512

_random = np.random.default_rng(12)
MIXING = _random.normal(0, 1, (48, NUMBERS)).astype(np.float32)
BIAS = _random.normal(0, 1, NUMBERS).astype(np.float32)
EMAP = _random.normal(0, 0.05, (NUMBERS, NUMBERS)).astype(np.float32)
CROSSFACE = _random.normal(0, 0.05, (NUMBERS, NUMBERS)).astype(np.float32)
SHADES = _random.normal(0, 0.2, (NUMBERS, 3)).astype(np.float32)
SMALL_SHADES = SHADES * np.float32(0.02)
"""For numbers that are not of length 1."""

Shape = Sequence[int | str | None]
Value = tuple[str, Shape]


def write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Value],
    output: Value,
    weights: dict[str, np.ndarray],
    kind: int = TensorProto.FLOAT,
) -> Path:
    """Write a network; the last of `weights` is its last initializer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    infos = [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs]
    made = helper.make_tensor_value_info(output[0], kind, output[1])
    tensors = [numpy_helper.from_array(weight, name) for name, weight in weights.items()]
    graph = helper.make_graph(nodes, "made", infos, [made], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def waves(side: int) -> np.ndarray:
    """Return a pattern, float32 (side, side), that tells a place from the next."""
    phase = 2 * np.pi * np.arange(side) / side
    return (0.12 * np.outer(np.cos(3 * phase), np.sin(4 * phase))).astype(np.float32)


def write_embedding(path: Path) -> Path:
    node = helper.make_node
    nodes = [
        node("AveragePool", ["face"], ["parts"], kernel_shape=[28, 28], strides=[28, 28]),
        node("Reshape", ["parts", "flat"], ["colours"]),
        node("MatMul", ["colours", "mixing"], ["mixed"]),
        node("Add", ["mixed", "bias"], ["numbers"]),
    ]
    weights = {"flat": np.array([1, 48]), "mixing": MIXING, "bias": BIAS}
    return write(path, nodes, [("face", (1, 3, 112, 112))], ("numbers", (1, NUMBERS)), weights)


def write_converter(path: Path) -> Path:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    return write(path, nodes, [("x", (1, NUMBERS))], ("y", (1, NUMBERS)), {"w": CROSSFACE})


def write_swap(path: Path, kind: SwapKind, *, batch: int | str = 1, half: bool = False, side: int = 0) -> Path:
    """Write a swap network; `half` computes and is fed in half precision, `side` is its own where not the kind's."""
    side = side or kind.side
    dtype, tensor = (np.float16, TensorProto.FLOAT16) if half else (np.float32, TensorProto.FLOAT)
    node = helper.make_node
    inputs: list[Value] = [("target", (batch, 3, side, side))]
    weights: dict[str, np.ndarray] = {"gain": np.array(gain_of(kind), dtype)}
    nodes = [node("Mul", ["target", "gain"], ["dimmed"])]
    if kind.source == "picture":
        inputs.insert(0, ("source", (batch, 3, kind.source_side, kind.source_side)))
        nodes += [node("GlobalAveragePool", ["source"], ["tinted"]), node("Mul", ["tinted", "share"], ["shade"])]
        weights["share"] = np.array(0.3, dtype)
    else:
        inputs.append(("embedding", (batch, NUMBERS)))
        nodes += [node("MatMul", ["embedding", "shades"], ["flat"]), node("Reshape", ["flat", "shape"], ["shade"])]
        weights |= {"shades": shades_of(kind).astype(dtype), "shape": np.array([-1, 3, 1, 1])}
    weights["waves"] = waves(side).astype(dtype)
    nodes += [node("Add", ["dimmed", "waves"], ["waving"]), node("Add", ["waving", "shade"], ["made"])]
    if kind.source == "emap":
        weights["emap"] = EMAP.astype(dtype)
    return write(path, nodes, inputs, ("made", (batch, 3, side, side)), weights, tensor)


def gain_of(kind: SwapKind) -> float:
    """Return a gain by which a step of 8 bits that goes in stays below one that comes out."""
    return 0.2 if kind.takes is IMAGENET else 0.6


def shades_of(kind: SwapKind) -> np.ndarray:
    return SMALL_SHADES if kind.source == "raw" else SHADES


def write_restorer(path: Path, side: int = 160, *, weighted: bool = False) -> Path:
    """Write a restorer that negates its picture; one that is weighted multiplies by its weight, a double."""
    node = helper.make_node
    nodes = [node("Neg", ["input"], ["turned"])]
    if not weighted:
        return write(path, nodes, [("input", (1, 3, side, side))], ("turned", (1, 3, side, side)), {})
    nodes += [
        node("Cast", ["weight"], ["share"], to=TensorProto.FLOAT),
        node("Mul", ["turned", "share"], ["made"]),
    ]
    path = write(path, nodes, [("input", (1, 3, side, side)), ("weight", (1,))], ("made", (1, 3, side, side)), {})
    model = onnx.load(path)
    model.graph.input[1].type.tensor_type.elem_type = TensorProto.DOUBLE
    onnx.save(model, path)
    return path


def write_occlusion(path: Path, side: int = 64) -> Path:
    """Write a network that takes for open what is more blue than a half: it is fed BGR, channels last."""
    node = helper.make_node
    nodes = [
        node("Slice", ["face", "first", "second", "axis"], ["blue"]),
        node("Greater", ["blue", "half"], ["is_open"]),
        node("Cast", ["is_open"], ["open"], to=TensorProto.FLOAT),
    ]
    weights = {
        "first": np.array([0]),
        "second": np.array([1]),
        "axis": np.array([3]),
        "half": np.array(0.5, np.float32),
    }
    return write(path, nodes, [("face", (1, side, side, 3))], ("open", (1, side, side, 1)), weights)


def write_parsing(path: Path, side: int = 64) -> Path:
    """Write a network that takes for skin (class 1) what is redder than ImageNet's mean, for hair (17) all else."""
    first = np.zeros((19, 3, 1, 1), np.float32)
    first[1, 0], first[17, 0] = 1, -1
    nodes = [helper.make_node("Conv", ["face", "weights"], ["classes"])]
    return write(path, nodes, [("face", (1, 3, side, side))], ("classes", (1, 19, side, side)), {"weights": first})
