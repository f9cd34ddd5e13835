"""The measuring of the swap: its judges agree with what is published, and a pair is measured, told and drawn."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest

from faceswap.engine.mesh import CANONICAL
from quality import __main__ as command
from quality import figures, material, report
from quality.colour_difference import lab_difference
from quality.figures import FIGURES
from quality.swapping import swap_by


@pytest.mark.parametrize(
    ("one", "other", "difference"),
    [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 2.49, -0.001), (50, -2.49, 0.0009), 7.1792),
        ((22.7233, 20.0904, -46.694), (23.0331, 14.973, -42.5619), 2.0373),
        ((2.0776, 0.0795, -1.135), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_colours_differ_as_in_the_published_table(
    one: tuple[float, float, float], other: tuple[float, float, float], difference: float
) -> None:
    assert lab_difference(one, other) == pytest.approx(difference, abs=1e-4)


def test_each_clip_gets_its_portraits_in_turn_and_never_the_same_person() -> None:
    clips = [Path(f"{name}.mp4") for name in ("made_anna_dim", "ben", "carl")]
    portraits = [Path(f"{name}.png") for name in ("anna_smile", "ben", "dora")]
    chosen = [(clip.stem, portrait.stem) for clip, portrait in material.pairs(clips, portraits, 1)]
    assert chosen == [("made_anna_dim", "ben"), ("ben", "dora"), ("carl", "dora")]
    assert len(material.pairs(clips, portraits, 0)) == 7


def test_a_pair_is_measured_told_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips, out = tmp_path / "clips", tmp_path / "out"
    clips.mkdir()
    material.write_clip(clips / "astronaut.mp4", islice(material.moved(material.SAMPLES / "astronaut.png", 2), 2))
    command.main(["--clips", str(clips), "--out", str(out)])
    assert "dlib distance to the source" in capsys.readouterr().out
    (row,) = json.loads((out / "results.json").read_text())["rows"]
    values = row["values"]
    assert values["nearer"] == 1 and values["identity"] < 0.6 and values["tracked"] == values["unswapped"] == 0
    sheet = cv2.imread(str(out / "astronaut-grace_hopper.png"))
    assert sheet is not None and sheet.shape[1] == 3 * sheet.shape[0] // 2


def frontal() -> np.ndarray:
    """Return the landmarks of the mesh's own face, looking at the camera."""
    face = CANONICAL * (8, -8, -8) + (120, 110, 0)
    return np.concatenate([face, np.repeat(face[[159, 386]], 5, axis=0)]).astype(np.float32)


def test_a_face_painted_beside_its_place_is_counted_and_one_not_painted_is_not() -> None:
    face = frontal()
    step = np.array([figures.eye_distance(face), 0, 0], np.float32)
    painted = [face, face + 0.1 * step, face + 0.2 * step, np.full_like(face, np.nan), None]
    offsets = [figures._offset(face, place) for place in painted]
    assert [offset > figures.MISPLACED for offset in offsets] == [False, False, True, False, False]
    assert offsets[1] == pytest.approx(0.1, abs=1e-3)


def test_a_face_left_unswapped_between_swapped_ones_is_counted() -> None:
    shares = np.array([0, 9, 9, 0, 0, 9, 0.0])
    assert figures._unswapped([frontal()] * 7, shares) == 2
    assert figures._unswapped([frontal()] * 3 + [None] * 4, shares) == 0
    assert figures._unswapped([frontal()] * 7, 0 * shares) == 0


def test_a_pop_is_measured_against_the_motion_of_the_target() -> None:
    face = frontal()
    before = [np.full((240, 240, 3), 100 + 2 * k, np.uint8) for k in range(6)]
    popped = [frame + np.uint8(30 * (k > 2)) for k, frame in enumerate(before)]
    shares = np.array([figures._changed(*pair, face) for pair in zip(before, popped, strict=True)])
    assert figures._jump(before, popped, [face] * 6, shares) == pytest.approx(32 / 2)
    assert figures._jump(before, before, [face] * 6, 0 * shares) is None


def test_a_value_that_misses_its_goal_is_marked_and_the_worst_row_is_named() -> None:
    values = dict.fromkeys(FIGURES, None) | {"identity": 0.4}
    rows = [report.Row(clip, "p", "here", values | {"pose": pose}) for clip, pose in (("a", 1.0), ("b", 3.0))]
    lines = list(report.table(rows))
    assert "3.00!" in lines[2] and "1.00 " in lines[1]
    (pose,) = (line for line in report.summary(rows) if line.startswith("head pose"))
    assert "50%" in pose and pose.endswith("b ← p") and "2.00" in pose


def test_what_an_engine_of_another_checkout_says_is_told(tmp_path: Path) -> None:
    (tmp_path / "faceswap").mkdir()
    (tmp_path / "faceswap" / "__init__.py").write_text("raise RuntimeError('of another time')")
    with pytest.raises(ValueError, match="of another time"):
        swap_by(tmp_path, tmp_path, tmp_path, 1)
