"""A result as WebM or GIF: what is seen and heard in it, at its own times, and what says where it comes from."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import clips
import pytest
from signing import make_identity

from faceswap.errors import JobFailure
from faceswap.media import convert as convert_module
from faceswap.media.convert import GIF_SIDE, UNSIGNED, convert
from faceswap.media.credentials import read_credentials
from faceswap.media.join import join
from faceswap.media.paths import partial_path
from faceswap.media.tag import SOURCE_TYPE, read_tag

VARIABLE: dict[str, Any] = {"times": [i * 6 + (i % 3) for i in range(40)], "time_base": Fraction(1, 100)}


def joined(folder: Path, frames: int = 40, **settings: Any) -> tuple[Path, Path]:
    """Return a joined result and its source."""
    source = clips.make_clip(folder / "source.mkv", frames, **settings)
    segment = clips.make_clip(folder / "segment.mp4", frames, size=settings.get("size", (128, 96)))
    out = folder / "joined.mp4"
    join([segment], source, out, None, clips.JOB)
    return out, source


@pytest.mark.parametrize("times", [{}, VARIABLE])
def test_a_webm_has_the_frames_the_times_and_the_sound_of_the_result(tmp_path: Path, times: dict[str, Any]) -> None:
    result, source = joined(tmp_path, sounds=["aac", "ac3"], **times)
    wanted, length_s = clips.frame_times(result), 40 / 24
    facts = convert(result, source, "webm", 20, clips.JOB, None)
    with av.open(str(result)) as container:
        assert container.format.name == "matroska,webm"
        assert [stream.codec_context.codec.canonical_name for stream in container.streams] == ["vp9", "opus", "opus"]
        heard_s = sum(frame.samples for frame in container.decode(audio=0)) / 48000
    assert clips.read_numbers(result) == list(range(40))
    assert clips.frame_times(result) == pytest.approx(wanted, abs=0.001)
    assert heard_s == pytest.approx(length_s, abs=0.1)
    assert (facts.frames, facts.bytes, facts.warnings) == (40, result.stat().st_size, ())


@pytest.mark.parametrize(
    ("settings", "numbers"),
    [
        ({}, list(range(40))),
        (VARIABLE, list(range(40))),
        ({"rate": Fraction(50)}, list(range(0, 40, 2))),
        (
            {"rate": Fraction(60), "size": (1280, 96)},
            [n for n in range(40) if n == 0 or n * 25 // 60 > (n - 1) * 25 // 60],
        ),
    ],
)
def test_a_gif_shows_at_most_25_frames_a_second_each_at_its_time(
    tmp_path: Path, settings: dict[str, Any], numbers: list[int]
) -> None:
    result, source = joined(tmp_path, **settings)
    times = clips.frame_times(result)
    facts = convert(result, source, "gif", 20, clips.JOB, None)
    assert result.read_bytes()[:4] == b"GIF8"
    assert clips.read_numbers(result) == numbers
    assert clips.frame_times(result) == pytest.approx([times[number] for number in numbers], abs=0.0051)
    assert facts.frames == len(numbers)
    with av.open(str(result)) as container:
        width = container.streams.video[0].width
    assert width == min(settings.get("size", (128, 96))[0], GIF_SIDE)


@pytest.mark.parametrize("kind", ["webm", "gif"])
def test_it_says_what_it_is_and_is_signed_where_it_can_be(tmp_path: Path, kind: str) -> None:
    identity = make_identity(tmp_path)
    result, source = joined(tmp_path, 10)
    facts = convert(result, source, kind, 20, clips.JOB, (identity.cert, identity.key))
    tag = read_tag(result)
    assert tag is not None
    assert (tag.source_type, tag.prompt_id) == (SOURCE_TYPE, clips.JOB)
    signed = read_credentials(result)
    if kind == "gif":
        assert (signed.state, signed.source_types, facts.warnings) == ("valid", (SOURCE_TYPE,), ())
    else:
        assert (signed.state, facts.warnings) == ("none", (UNSIGNED,))


@pytest.mark.parametrize("kind", ["webm", "gif"])
def test_a_frame_that_is_lost_is_missed_and_the_result_stays_as_it_was(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, source = joined(tmp_path, 10)
    before = result.read_bytes()
    read = convert_module.read_timeline
    short = clips.make_clip(tmp_path / "short.mp4", 9)
    monkeypatch.setattr(
        convert_module, "read_timeline", lambda path: read(short if path == partial_path(result) else path)
    )
    with pytest.raises(JobFailure) as failed:
        convert(result, source, kind, 20, clips.JOB, None)
    assert (failed.value.code, failed.value.transient) == ("output_damaged", True)
    assert result.read_bytes() == before
    assert not partial_path(result).exists()
