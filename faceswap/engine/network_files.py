"""The networks in the models folder, run by ONNX Runtime.

Files of networks are taken for hostile: only those of the folder are opened, by names that it lists itself, and what a
network takes and gives is checked by rank and shape. ONNX Runtime is imported when the first network is opened.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout, suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .memory import beside_the_bound
from .network_kinds import CONVERTERS, EMBEDDING, HelperKind, Kind, SwapKind, kind_of, names_of

Floats = NDArray[np.float32]

log = logging.getLogger(__name__)

SUBFOLDERS = (
    "",
    "insightface",
    "insightface/models/buffalo_l",
    "reswapper",
    "hyperswap",
    "facerestore_models",
)
"""The places in the models folder where networks are looked for: those of a ComfyUI with ReActor, too."""

MAX_FILE_BYTES = 1_900_000_000
"""The largest file of a network; one of ONNX ends at 2 GiB."""

SIDES = range(32, 2049)
"""The sides of the pictures that a network may take, pixels."""

NOT_INSTALLED = "ONNX Runtime is missing, pip install 'faceswap[models]'"

_KEPT = 6
"""Open networks: of a swap its own, the embedding, a converter, two restorers and a mask."""

_NO_MEMORY = re.compile(
    r"failed to allocate|cannot allocate memory|bad_alloc|arena alloc failed"
    r"|out of memory|alloc_failed|resource allocation failed",
    re.IGNORECASE,
)
"""The words of the system, ONNX Runtime and protobuf where memory runs out, then those of CUDA, cuDNN and cuBLAS."""

_TENSORRT, _CUDA, _CPU = (f"{way}ExecutionProvider" for way in ("Tensorrt", "CUDA", "CPU"))


class NetworkError(ValueError):
    """A file that is no network of its kind; the message is a sentence for users."""


class NetworkMemoryError(NetworkError, MemoryError):
    """A network that there is no memory for, of the machine or of its graphics card; the message is a sentence."""


class NetworkFolder:
    """The networks that lie in the models folder, as they are now."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def files(self) -> dict[str, Path]:
        """Return the files of known kinds by their names, sorted; of two with one name the first place's."""
        root, found = self.root.resolve(), dict[str, Path]()
        for place in SUBFOLDERS:
            folder = root / place
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                if kind_of(path.name) and path.is_file() and path.resolve().is_relative_to(root):
                    found.setdefault(path.name, path)
        return dict(sorted(found.items()))

    def names(self, kinds: Sequence[Kind]) -> list[str]:
        """Return the names of the files of some kinds."""
        return [name for name in self.files() if kind_of(name) in kinds]

    def find(self, name: str, kinds: Sequence[Kind]) -> Path | None:
        """Return the file of a network of some kinds by the name that a workflow has, None where there is none."""
        by_name = {file.lower(): path for file, path in self.files().items() if kind_of(file) in kinds}
        return next((by_name[other] for other in names_of(name) if other in by_name), None)

    def find_kind(self, kind: Kind) -> Path | None:
        """Return the first file of a kind, None where there is none."""
        return next((path for name, path in self.files().items() if kind_of(name) is kind), None)

    def missing(self, kind: SwapKind) -> list[HelperKind]:
        """Return the kinds that a swap by `kind` needs beside its own file, and that are not there."""
        if kind.source == "picture":
            return []
        needed = [EMBEDDING, *(helper for helper in CONVERTERS if helper.name == kind.converter)]
        return [helper for helper in needed if self.find_kind(helper) is None]

    def state(self) -> list[Any]:
        """Return what changes with any file."""
        stats = {name: path.stat() for name, path in self.files().items()}
        return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()]


class Network:
    """A network that takes one thing, or two: pictures, (n, …) of rank 4, come first, those of the source last.

    emap    the last initializer where it is a square of numbers, else None
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        data = _read(path)
        self.emap = _last_square(data, self.name)
        self._session = _session(data, self.name)
        inputs = self._session.get_inputs()
        # by rank, since names differ between files of one network; of two pictures a name tells the source's
        inputs.sort(key=lambda value: (len(value.shape) != 4, "source" in value.name))
        if len(inputs) not in (1, 2):
            raise NetworkError(f"{self.name} takes {len(inputs)} things, not one or two")
        self._inputs = inputs
        self._has_run = False

    @property
    def takes_two(self) -> bool:
        """True if it takes two things."""
        return len(self._inputs) == 2

    @property
    def other_rank(self) -> int:
        """The rank of the second thing it takes."""
        return len(self._inputs[1].shape)

    @property
    def _takes_batches(self) -> bool:
        return not any(isinstance(value.shape[0], int) for value in self._inputs if value.shape)

    def side(self, default: int, *, channels_last: bool = False) -> int:
        """Return the side of its pictures, `default` where the file leaves that open. Raises NetworkError."""
        shape = self._inputs[0].shape
        if len(shape) != 4:
            raise NetworkError(f"{self.name} takes no pictures")
        channels, *sides = (shape[3], *shape[1:3]) if channels_last else shape[1:]
        height, width = (side if isinstance(side, int) else default for side in sides)
        if (isinstance(channels, int) and channels != 3) or height != width or height not in SIDES:
            raise NetworkError(f"{self.name} takes pictures of {shape}, which are none of colours in a square")
        return int(height)

    def run(self, first: Floats, other: NDArray[Any] | None = None, *, gives: tuple[int, ...]) -> Floats:
        """Return the first output for what it takes first, (n, …), with `other`, (1, …), for each: float32 (n, *gives).

        Raises NetworkError for another output, and where its inputs are not such.
        """
        step = len(first) if self._takes_batches else 1
        values = np.concatenate([self._run(first[k : k + step], other) for k in range(0, len(first), step)])
        if values.shape != (len(first), *gives):
            raise NetworkError(f"{self.name} gives {values.shape[1:]} where {gives} was expected")
        return np.asarray(np.nan_to_num(values), np.float32)

    def _run(self, first: Floats, other: NDArray[Any] | None) -> Floats:
        values: list[NDArray[Any]] = [first]
        if self.takes_two and other is not None:
            values.append(np.repeat(other, len(first), axis=0) if self._takes_batches and other.ndim > 1 else other)
        if len(values) != len(self._inputs):
            raise NetworkError(f"{self.name} takes {len(self._inputs)} inputs where {len(values)} are known")
        feeds: dict[str, NDArray[Any]] = {
            place.name: np.ascontiguousarray(value, _DTYPES.get(place.type, np.float32))
            for place, value in zip(self._inputs, values, strict=True)
        }
        try:
            with self._room():
                made = self._session.run(None, feeds)[0]
            self._has_run = True
            return np.asarray(made, np.float32)
        except Exception as error:  # ONNX Runtime's errors have no common base
            raise _failure(f"{self.name} cannot be run", error) from error

    def _room(self) -> AbstractContextManager[None]:
        """Return a context in which it may take the memory that it keeps from its first run on."""
        return nullcontext() if self._has_run else beside_the_bound(unbounded=self._session.get_providers() != [_CPU])


_DTYPES: dict[str, type] = {"tensor(float16)": np.float16, "tensor(double)": np.float64}


def open_network(path: Path) -> Network:
    """Open a file, or return what is open already. Raises NetworkError."""
    stat = path.stat()
    return _open(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=_KEPT)
def _open(path: Path, size: int, mtime_ns: int) -> Network:
    return Network(path)


def close_networks() -> None:
    """Release the networks that are open."""
    with beside_the_bound():
        _open.cache_clear()


def is_installed() -> bool:
    """Return true if the packages are there that run networks."""
    return all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))


def providers() -> list[str]:
    """Return the ways to run a network that the package is built with, the best first.

    Whether one works here shows when a network is opened: `working_providers`.
    """
    import onnxruntime

    there = onnxruntime.get_available_providers()
    has_tensorrt = _TENSORRT in there and importlib.util.find_spec("tensorrt") is not None
    return [_TENSORRT] * has_tensorrt + [name for name in (_CUDA, _CPU) if name in there]


def working_providers() -> list[str]:
    """Return those of `providers` that work on this machine; a small network is opened to know."""
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "trial", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return list(_session(model.SerializeToString(), "A trial").get_providers())


@cache
def _load_libraries() -> None:
    """Load the libraries of CUDA and TensorRT that pip has installed: ONNX Runtime looks only in the system's."""
    import onnxruntime

    # What they say of what they do not find goes to the log; what cannot be used shows when a network is opened.
    with redirect_stdout(sys.stderr), suppress(Exception):
        if hasattr(onnxruntime, "preload_dlls"):  # since 1.21
            onnxruntime.preload_dlls()
        if _TENSORRT in providers():
            importlib.import_module("tensorrt")


def _read(path: Path) -> bytes:
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise NetworkError(f"{path.name} is larger than {MAX_FILE_BYTES // 1_000_000} MB")
    if not is_installed():
        raise NetworkError(f"{path.name} cannot be run: {NOT_INSTALLED}")
    return path.read_bytes()


def _session(data: bytes, name: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Threads that wait for the next picture would take time from decoder and encoder.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    wanted = providers()
    try:
        with beside_the_bound(unbounded=wanted != [_CPU]):
            if wanted != [_CPU]:
                _load_libraries()
            session = onnxruntime.InferenceSession(data, options, providers=wanted)
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise _failure(f"{name} cannot be opened", error) from error
    # It goes on without what it cannot load, and says nothing.
    if lacking := set(wanted).difference(session.get_providers()):
        log.warning("%s runs without %s, which cannot be used here", name, " and ".join(sorted(lacking)))
    return session


def _last_square(data: bytes, name: str) -> Floats | None:
    """Return the last initializer where it is a square matrix. Raises NetworkError for no whole file of ONNX."""
    import onnx
    from onnx import numpy_helper

    try:
        model = onnx.load_from_string(data)
    except Exception as error:  # protobuf's has no types
        failure = _failure(f"{name} cannot be opened", error)
        if not isinstance(failure, NetworkMemoryError):
            failure = NetworkError(f"{name} is no file of ONNX")
        raise failure from error
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(model.graph)):
        raise NetworkError(f"{name} has its weights in another file")
    if not model.graph.initializer:
        return None
    last = model.graph.initializer[-1]
    is_square = len(last.dims) == 2 and last.dims[0] == last.dims[1]
    return np.asarray(numpy_helper.to_array(last), np.float32) if is_square else None


def _tensors(graph: Any) -> Iterator[Any]:
    """Yield the tensors of a graph and of the graphs within it."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield attribute.t
        yield from attribute.tensors
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)


def _failure(what: str, error: Exception) -> NetworkError:
    """Return the error for one of ONNX Runtime's, which has the same types for all kinds."""
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
        return NetworkMemoryError(f"{what}: too little memory is free, of the machine or its graphics card")
    first_line, _, _ = str(error).partition("\n")
    return NetworkError(f"{what}: {first_line[:200]}")
