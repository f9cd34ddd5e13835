"""Measure the swap on clips and portraits, and draw contact sheets: a table, `results.json` and PNGs.

Without folders it works on clips made from the portraits that ship with the project.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from faceswap.engine.clip import Clip, Selection, probe

from . import material, report, sheets
from .faces import find, identity
from .figures import Target, measure
from .report import Row
from .swapping import Swapped, swap, swap_by

HERE = Path(__file__).parent
OUT = HERE / "out"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and draw what the command line asks for."""
    wanted = _parser().parse_args(arguments)
    wanted.out.mkdir(parents=True, exist_ok=True)
    clips = material.clips_of(wanted.clips) if wanted.clips else material.make_clips(wanted.out / "made")
    portraits = material.portraits_of(wanted.portraits or material.SAMPLES)
    pairs = [
        (clip, portrait)
        for clip, portrait in material.pairs(clips, portraits, wanted.pairs)
        if any(word in f"{clip.stem} {portrait.stem}" for word in wanted.only or [""])
    ]
    rows: list[Row] = []
    for row in run(pairs, wanted.against, wanted.frames, wanted.out):
        rows.append(row)
        print(*list(report.table(rows[-1:]))[1 if len(rows) > 1 else 0 :], sep="\n", flush=True)
        report.write(wanted.out / "results.json", rows)
    if not rows:
        sys.exit("no pair was measured")
    print("", *report.summary(rows), f"\nSheets and results.json are in {wanted.out}", sep="\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m quality", description=__doc__)
    parser.add_argument("--clips", type=Path, help="folder of clips")
    parser.add_argument("--portraits", type=Path, help="folder of portraits; the first word of a name is the person")
    parser.add_argument("--only", nargs="+", help="pairs with one of these words in their names")
    parser.add_argument("--frames", type=int, default=0, help="frames of each clip, 0 for all")
    parser.add_argument("--pairs", type=int, default=3, help="portraits for each clip, in turn; 0 for all")
    parser.add_argument("--against", type=Path, help="checkout whose engine is measured beside this one's")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the results")
    return parser


def run(pairs: Sequence[tuple[Path, Path]], against: Path | None, frames: int, out: Path) -> Iterator[Row]:
    """Measure pairs of clip and portrait and draw their sheets; a pair that fails is told, and passed over."""
    target, seen = None, None
    for clip, portrait in pairs:
        try:
            if seen != clip:
                selected = Clip(probe(clip), Selection(cap=frames))
                target, seen = Target.of(list(selected), float(selected.rate)), clip
            assert target is not None
            yield from _measured(target, clip, portrait, against, frames, out)
        except (ValueError, IndexError) as error:
            print(f"{clip.stem} ← {portrait.stem}: {error}", file=sys.stderr)


def _measured(
    target: Target, clip: Path, portrait: Path, against: Path | None, frames: int, out: Path
) -> Iterator[Row]:
    picture = np.asarray(cv2.imread(str(portrait)), np.uint8)
    source = identity(picture, find(picture)[0].landmarks)
    done: dict[str, Swapped] = {}
    if against is not None:
        done[against.name] = swap_by(against, clip, portrait, frames)
    done["here"] = swap(clip, portrait, frames)
    results = []
    for engine, swapped in done.items():
        values, pictures = measure(target, swapped, source)
        results.append(pictures)
        yield Row(clip.stem, portrait.stem, engine, values)
    faces = [found[0].landmarks if found else None for found in target.faces]
    sheets.draw(out / f"{clip.stem}-{portrait.stem}.png", target.frames, results, faces)


if __name__ == "__main__":
    main()
