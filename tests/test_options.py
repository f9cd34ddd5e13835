"""Options of jobs: those that are taken, and those that are refused."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faceswap.errors import BadRequest
from faceswap.options import Options, check_output_name

ALL_OPTIONS = {
    "face_index": "0,1",
    "source_face_index": "2",
    "swap_model": "inswapper_128.onnx",
    "face_restore_model": "GFPGANv1.4.pth",
    "face_restore_visibility": 0.5,
    "face_boost": True,
    "detect_gender": "female",
    "frame_rate": 29.97,
    "crf": 18,
    "workflow": "My workflow-2",
    "priority": -3,
    "start": 1.5,
    "end": 2,
    "format": "webm",
}
OTHER_OPTIONS = {
    "at": 0.25,
    "format": "jpg",
    "mapping": [{"face": 1, "image": 0, "source_face": 0}, {"face": 0, "image": 7, "source_face": 2}],
    "one_person": False,
    "crf": 20,
    "priority": 0,
}
"""Those that cannot be had together with some of the first."""


def test_no_options_are_the_defaults() -> None:
    assert Options.parse(None) == Options.parse({}) == Options()
    assert Options().to_dict() == {"crf": 20, "priority": 0}


def test_every_option_is_taken_and_given_back() -> None:
    assert {*ALL_OPTIONS, *OTHER_OPTIONS} == set(Options.__dataclass_fields__)
    for chosen in (ALL_OPTIONS, OTHER_OPTIONS):
        options = Options.parse(chosen)
        assert options.to_dict() == chosen
        stored = json.loads(json.dumps(options.to_dict()))
        assert Options.parse(stored) == Options.from_dict(stored) == options


@pytest.mark.parametrize(
    "options",
    [
        {"at": 1, "start": 0},
        {"at": 1, "end": 2},
        {"start": 2, "end": 2},
        {"mapping": [{"face": 0}], "face_index": 0},
        {"mapping": [{"face": 0}], "source_face_index": 0},
        {"mapping": [{"face": 0, "image": 1}], "one_person": True},
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BadRequest) as refusal:
        Options.parse(options)
    assert refusal.value.code == "invalid_option"


@pytest.mark.parametrize(
    "mapping",
    [
        [],
        {},
        "0",
        [0],
        [{}],
        [{"image": 0}],
        [{"face": -1}],
        [{"face": 100}],
        [{"face": 0, "image": 8}],
        [{"face": True}],
        [{"face": 0, "more": 1}],
        [{"face": 0}, {"face": 0, "image": 1}],
        [{"face": number} for number in range(17)],
    ],
)
def test_a_mapping_that_makes_no_sense_is_refused(mapping: Any) -> None:
    with pytest.raises(BadRequest):
        Options.parse({"mapping": mapping})


@pytest.mark.parametrize("name", ALL_OPTIONS)
def test_null_means_that_nothing_was_chosen(name: str) -> None:
    assert Options.parse({name: None}) == Options()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("face_restore_visibility", [0.1, 1, 1.0]),
        ("frame_rate", [1, 60, 23.976]),
        ("crf", [0, 51]),
        ("priority", [-10, 10]),
        ("face_index", ["0", 0, 99, "0, 1 ,2", ",".join("9" * 16)]),
        ("detect_gender", ["no", "female", "male"]),
        ("face_boost", [True, False]),
        ("workflow", ["a", "a" * 100, "_", "-x", "a.b c"]),
    ],
)
def test_what_is_on_the_bound_is_allowed(name: str, values: list[Any]) -> None:
    for value in values:
        Options.parse({name: value})


NOT_NUMBERS: list[Any] = [True, False, "1", [1], {}, float("nan"), float("inf"), -float("inf")]
NOT_NAMES: list[Any] = ["", ".a", "a/b", "a" * 101, "../x", "a\n", "a\0", "ä", 1, True, [], {}]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("face_restore_visibility", [0.09, 1.01, -1, *NOT_NUMBERS[2:]]),
        ("frame_rate", [0.99, 60.01, 0, 10**400, *NOT_NUMBERS[1:]]),
        ("crf", [-1, 52, 20.0, 20.5, 10**4000, *NOT_NUMBERS]),
        ("priority", [-11, 11, 0.0, *NOT_NUMBERS]),
        ("face_index", ["", "-1", -1, 100, "1,", "a", "0;1", 0.0, True, [0], {}, "٣", ",".join("9" * 17)]),
        ("source_face_index", ["x", None.__class__]),
        ("detect_gender", ["No", "", "other", 0, True, [], {}]),
        ("face_boost", [0, 1, "true", "", [], {}]),
        ("swap_model", NOT_NAMES),
        ("face_restore_model", NOT_NAMES),
        ("workflow", NOT_NAMES),
    ],
)
def test_what_is_out_of_bounds_is_refused_with_the_name_and_what_is_allowed(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(BadRequest) as refused:
            Options.parse({name: value})
        assert refused.value.code == "invalid_option"
        assert f"Option '{name}'" in refused.value.detail
        assert "allowed is" in refused.value.detail
        assert len(refused.value.detail) < 200


@pytest.mark.parametrize("name", ["face", "CRF", "", "a" * 500, "rate", "__class__"])
def test_an_unknown_option_is_refused_and_the_known_ones_are_named(name: str) -> None:
    with pytest.raises(BadRequest) as refused:
        Options.parse({"crf": 20, name: 1})
    assert refused.value.code == "unknown_option"
    assert "face_index" in refused.value.detail
    assert len(refused.value.detail) < 350


@pytest.mark.parametrize("raw", [[], "", "{}", 1, True])
def test_options_that_are_no_object_are_refused(raw: object) -> None:
    with pytest.raises(BadRequest, match="JSON object"):
        Options.parse(raw)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted(ALL_OPTIONS)) | st.text(), json_values, max_size=3))
def test_any_options_are_taken_or_refused(raw: dict[str, Any]) -> None:
    try:
        options = Options.parse(raw)
    except BadRequest:
        return
    assert Options.parse(options.to_dict()) == options


@pytest.mark.parametrize(
    ("rate", "exact"), [(25, Fraction(25)), (12.5, Fraction(25, 2)), (30000 / 1001, Fraction(30000, 1001))]
)
def test_a_frame_rate_is_meant_exactly(rate: float, exact: Fraction) -> None:
    assert Options.parse({"frame_rate": rate}).rate == exact
    assert Options().rate is None


@given(st.from_regex(r"[A-Za-z0-9_ -][A-Za-z0-9._ -]{0,99}", fullmatch=True))
def test_every_name_of_the_pattern_is_allowed(name: str) -> None:
    assert check_output_name(name) == name


@given(st.text())
def test_an_allowed_name_is_a_plain_file_name(name: str) -> None:
    try:
        check_output_name(name)
    except BadRequest as refused:
        assert refused.code == "invalid_output_name"
        return
    assert 1 <= len(name) <= 100
    assert name.isascii()
    assert not name.startswith(".")
    assert not set(name) & set("/\\\0\r\n\t\"'%:")


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".a", "../x", "a/b", "a\\b", "a" * 101, "a\n", "\na", "a\0", "é", "%2e"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(BadRequest):
        check_output_name(name)
