"""The networks of the models folder as a list for people: what is there, what is missing, whose licence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .network_files import (
    NOT_INSTALLED,
    SUBFOLDERS,
    Network,
    NetworkError,
    NetworkFolder,
    is_installed,
    providers,
    working_providers,
)
from .network_kinds import HELPERS, RESTORERS, SWAP_KINDS, Kind, SwapKind

_USES = {"embedding": "what most swaps know a person by", "xseg": "keeps what is in front", "bisenet": "keeps hair"}


def lines(root: Path) -> Iterator[str]:
    """Yield the lines of the list; each file is opened for that, and told of where it is not as its kind has it."""
    folder = NetworkFolder(root)
    yield f"models folder: {root}{'' if root.is_dir() else ' (not there)'}"
    yield f"  and in it {', '.join(place for place in SUBFOLDERS if place)}"
    yield f"ONNX Runtime: {_ways()}"
    for title, kinds in (("swap", SWAP_KINDS), ("for swaps, and after them", HELPERS)):
        yield ""
        yield f"{title}:"
        for kind in kinds:
            yield from _of_kind(folder, kind)


def _ways() -> str:
    """Tell by what networks are run on this machine, and by what they cannot be, though the package has it."""
    if not is_installed():
        return NOT_INSTALLED
    try:
        working = working_providers()
    except NetworkError as error:
        return str(error)
    lacking = [name for name in providers() if name not in working]
    why = f" ({', '.join(lacking)} cannot be used: no GPU, or its driver or libraries are missing)" if lacking else ""
    return ", ".join(working) + why


def _of_kind(folder: NetworkFolder, kind: Kind) -> Iterator[str]:
    names = folder.names([kind])
    use = f" ({_USES[kind.name]})" if kind.name in _USES else ""
    for name in names:
        path = folder.files()[name]
        problem = _problem(folder, kind, path)
        state = "found" if problem is None else "unusable"
        size = f"{path.stat().st_size / 1e6:.0f} MB"
        yield f"  {state:<9} {name:<30} {size:>8}  {kind.licence}{use}"
        if problem is not None:
            yield f"            {problem}"
    if not names:
        yield f"  missing   {kind.file:<30} {'':>8}  {kind.licence}{use}"


def _problem(folder: NetworkFolder, kind: Kind, path: Path) -> str | None:
    """Return what keeps a file from being used, a sentence, None where nothing does."""
    from .network_restore import Restorer
    from .network_swap import SwapNetwork

    try:
        if isinstance(kind, SwapKind):
            if missing := folder.missing(kind):
                return f"it needs {' and '.join(helper.file for helper in missing)}"
            SwapNetwork(kind, path, folder)
        elif kind in RESTORERS:
            Restorer(kind, path, 0.5, 1.0)
        else:
            Network(path)
    except NetworkError as error:
        return str(error)
    return None
