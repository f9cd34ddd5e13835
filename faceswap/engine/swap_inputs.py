"""The inputs of ReActorFaceSwap: the faces that are put in and what puts them in, as ReActor reads them.

Faces, sources and networks that are not there are passed over, as in ReActor. What of the inputs had no use is told in
the prompt's history.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .frames import Picture
from .network_files import NOT_INSTALLED, NetworkFolder, is_installed
from .network_kinds import RESTORERS, SWAP_KINDS, HelperKind, SwapKind, kind_of

if TYPE_CHECKING:
    from .gender import Gender
    from .landmarks import Face
    from .network_restore import Boost, Restorer
    from .network_swap import SwapNetwork
    from .swap import Source, SourceFace

log = logging.getLogger(__name__)

Inputs = Mapping[str, Any]
Stills = tuple[Picture, ...]

NONE = "none"
"""The name of no network."""

_KEPT_FACES = 8


def face_indices(text: str) -> list[int]:
    """Return the face indices in "0" or "0,1"; what is no number is passed over, and nothing means the first."""
    parts = [part.strip() for part in text.split(",")]
    return [int(part) for part in parts if part.isdecimal()] or [0]


@dataclass(frozen=True)
class Networks:
    """The files of the networks that a swap node names, where they are there and all that they need."""

    folder: NetworkFolder
    swap: Path | None
    restorer: Path | None
    boost: Path | None

    @classmethod
    def of(cls, folder: NetworkFolder, inputs: Inputs) -> Networks:
        """Look for the networks of a node's inputs."""
        swap = _swap_file(folder, inputs["swap_model"])
        boost = _restorer_file(folder, _boost_model(inputs))
        if boost and not (swap and _swap_kind(swap).boosts):
            log_once(f"{boost.name} has no crop to boost: that takes a swap network that ReActor boosts")
            boost = None
        return cls(folder, swap, _restorer_file(folder, inputs["face_restore_model"]), boost)

    @property
    def unused(self) -> tuple[str, ...]:
        """The options that mean nothing with these."""
        return (
            *(("swap_model",) if self.swap is None else ()),
            *(("face_restore_model", "face_restore_visibility") if self.restorer is None else ()),
            *(("face_boost",) if self.boost is None else ()),
        )

    def restores(self, inputs: Inputs) -> bool:
        """Return whether faces are restored in the frame: not after a boost, unless that says so."""
        return self.restorer is not None and (self.boost is None or inputs["face_boost"]["restore_with_main_after"])


def _boost_model(inputs: Inputs) -> str:
    boost = inputs.get("face_boost")
    return str(boost["boost_model"]) if boost and boost["enabled"] else NONE


def _swap_kind(path: Path) -> SwapKind:
    kind = kind_of(path.name)
    assert isinstance(kind, SwapKind)
    return kind


def _swap_file(folder: NetworkFolder, name: str) -> Path | None:
    path = folder.find(name, SWAP_KINDS)
    if path is None:
        reason = "is not in the models folder"
    elif missing := folder.missing(_swap_kind(path)):
        reason = f"needs {' and '.join(kind.file for kind in missing)} in the models folder"
    elif not is_installed():
        reason = f"cannot be run ({NOT_INSTALLED})"
    else:
        return path
    log_once(f"{name} {reason}: the built-in swapper takes its place")
    return None


def _restorer_file(folder: NetworkFolder, name: str) -> Path | None:
    if name == NONE:
        return None
    path = folder.find(name, RESTORERS)
    if path is None or not is_installed():
        reason = "is not in the models folder as a file of ONNX" if path is None else f"cannot be run ({NOT_INSTALLED})"
        log_once(f"{name} {reason}: nothing is restored with it")
        return None
    return path


@cache
def log_once(message: str) -> None:
    """Log a warning, the first time only."""
    log.warning("%s", message)


def faces_to_put_in(networks: Networks, inputs: Inputs, stills: Stills) -> dict[int, Source] | None:
    """Return the faces to put in, by the index of the face they replace; None when there is no source.

    Sources that are not there, or not of the gender, are dropped; where there are fewer than faces to replace, they
    take turns. Raises NetworkError for a file that is no network of its kind.
    """
    # imported here: a process that has no face to put in needs none of it
    from .source import NoFaceError

    # A face model is one face, whatever index is asked for.
    wanted = face_indices(inputs["source_faces_index"]) if "source_image" in inputs else [0]
    gender = inputs["detect_gender_source"]
    wanted = [index for index in wanted if gender == "no" or _is_of(stills, index, gender)]
    network, boost, restorer = _opened(networks, inputs)
    sources: list[Source] = []
    for index in wanted:
        try:
            source = _built_in(stills, index) if network is None else _for_network(network, stills, index, boost)
        except NoFaceError:
            continue
        sources.append(_wrapped(source, restorer, inputs["detect_gender_input"]))
    if not sources:
        log.warning("no such face in the source image: frames stay as they are")
        return None
    targets = face_indices(inputs["input_faces_index"])
    return {target: sources[number % len(sources)] for number, target in enumerate(targets)}


def _opened(networks: Networks, inputs: Inputs) -> tuple[SwapNetwork | None, Boost | None, Restorer | None]:
    from .network_restore import INTERPOLATIONS, Boost, Restorer
    from .network_swap import SwapNetwork

    swap = boost = restorer = None
    if networks.swap is not None:
        swap = SwapNetwork(_swap_kind(networks.swap), networks.swap, networks.folder)
    if networks.boost is not None:
        chosen = inputs["face_boost"]
        made = Restorer(_helper(networks.boost), networks.boost, chosen["codeformer_weight"], chosen["visibility"])
        boost = Boost(made, INTERPOLATIONS[chosen["interpolation"]])
    if networks.restorer is not None and networks.restores(inputs):
        weight, visibility = inputs["codeformer_weight"], inputs["face_restore_visibility"]
        restorer = Restorer(_helper(networks.restorer), networks.restorer, weight, visibility)
    return swap, boost, restorer


def _helper(path: Path) -> HelperKind:
    kind = kind_of(path.name)
    assert isinstance(kind, HelperKind)
    return kind


def _wrapped(source: Source, restorer: Restorer | None, gender: str) -> Source:
    from .gender import FaceForGender
    from .network_restore import RestoredFace

    if restorer is not None:
        source = RestoredFace(source, restorer)
    return source if gender == "no" else FaceForGender(source, cast("Gender", gender))


@lru_cache(maxsize=_KEPT_FACES)
def _found(still: Picture) -> Sequence[Face]:
    from .landmarks import find_faces

    return find_faces(still.bgr)


@lru_cache(maxsize=_KEPT_FACES)
def _is_of(stills: Stills, index: int, gender: str) -> bool:
    """Return whether the first still with a face of that number shows one of that gender."""
    from .gender import GenderNetwork

    for still in stills:
        if index < len(_found(still)):
            landmarks = _found(still)[index].landmarks
            return GenderNetwork().is_of(cast("Gender", gender), still.bgr, landmarks)
    return False


@lru_cache(maxsize=_KEPT_FACES)
def _built_in(stills: Stills, index: int) -> SourceFace:
    """Return a face of a still, or of a person's stills, made once and shared by the segments of a video.

    Raises NoFaceError.
    """
    from .swap import SourceFace

    if len(stills) == 1:
        return SourceFace.from_image(stills[0].bgr, index)
    return SourceFace.from_images([still.bgr for still in stills], index)


def _for_network(network: SwapNetwork, stills: Stills, index: int, boost: Boost | None) -> Source:
    """Return a face of a still, or of a person's stills, as a network knows it. Raises NoFaceError."""
    from .network_swap import NetworkFace

    faces = [(still.bgr, _found(still)[index].landmarks) for still in stills if index < len(_found(still))]
    return NetworkFace(network, network.describe(faces), boost)


def forget_faces() -> None:
    """Release the faces that the segments of a video share, and the networks that are open."""
    from .network_files import close_networks

    for kept in (_found, _is_of, _built_in):
        kept.cache_clear()
    close_networks()
