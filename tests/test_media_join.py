"""Segment results become one video: every frame once, on time, with all of the sound."""

from __future__ import annotations

import itertools
import resource
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import clips
import pytest
from waiting import WAIT_S

from faceswap.errors import JobFailure
from faceswap.media import join as join_module
from faceswap.media.join import join
from faceswap.media.probe import probe_video

SOURCES: dict[str, dict[str, Any]] = {
    "plain.mp4": {"sounds": ["aac"]},
    "silent.mp4": {},
    "two-tracks.mp4": {"sounds": ["aac", "libopus"]},
    "rotated.mp4": {"rotation": 90, "sounds": ["aac"]},
    "late-picture.mp4": {"video_start": 12, "sounds": ["aac"]},
    "long-sound.mp4": {"sounds": ["aac"], "sound_s": 3.0},
    "variable.mp4": {
        "times": [i * 4 + (i % 3) for i in range(40)],
        "time_base": Fraction(1, 100),
        "sounds": ["aac"],
    },
    "flac.mkv": {"sounds": ["flac"]},
    "opus.webm": {"codec": "libvpx-vp9", "sounds": ["libopus"]},
    "old.avi": {"codec": "mpeg4", "sounds": ["libmp3lame"]},
    "b-frames.avi": {"sounds": ["libmp3lame"]},
    "ac3.ts": {"sounds": ["ac3"]},
}


def make_segments(folder: Path, lengths: list[int], **settings: Any) -> list[Path]:
    starts = [0, *itertools.accumulate(lengths)]
    return [
        clips.make_clip(folder / f"segment{i}.mp4", length, first_number=starts[i], **settings)
        for i, length in enumerate(lengths)
    ]


def shifted(times: list[float]) -> list[float]:
    return [time - times[0] for time in times]


@pytest.mark.parametrize("name", SOURCES)
def test_a_joined_video_has_the_frames_times_and_sound_of_its_source(tmp_path: Path, name: str) -> None:
    source = clips.make_clip(tmp_path / name, 40, **SOURCES[name])
    segments = make_segments(tmp_path, [13, 14, 13], sounds=["aac"])
    out = tmp_path / "out.mp4"
    facts = join(segments, source, out, None)

    assert clips.read_numbers(out) == list(range(40))
    assert facts.frames == 40
    assert facts.warnings == ()
    # In an AVI with B-frames FFmpeg gives the right times to the wrong frames.
    times, wanted = clips.frame_times(out), sorted(clips.frame_times(source))
    assert shifted(times) == pytest.approx(shifted(wanted), abs=1e-6)

    tracks, originals = clips.sound_packets(out), clips.sound_packets(source)
    assert [[data for data, _ in track] for track in tracks] == [[data for data, _ in t] for t in originals]
    for track, original in zip(tracks, originals, strict=True):
        offsets = [(t - times[0]) - (o - wanted[0]) for (_, t), (_, o) in zip(track, original, strict=True)]
        assert max(map(abs, offsets)) < 0.001


def test_an_edit_list_of_the_source_is_kept(tmp_path: Path) -> None:
    clip = clips.make_clip(tmp_path / "clip.mp4", 30, sounds=["aac"])
    source = clips.with_edit_list(clip, tmp_path / "cut.mp4", skipped=5 * 512, shown=800)
    count = probe_video(source).frames
    out = tmp_path / "out.mp4"
    join(make_segments(tmp_path, [count - 9, 9]), source, out, None)
    assert clips.read_numbers(out) == list(range(count))
    assert clips.frame_times(out) == pytest.approx(clips.frame_times(source))
    assert clips.sound_packets(out) == clips.sound_packets(source)


@pytest.mark.parametrize("b_frames", [(0, 3, 2), (2, 0, 0), (3, 3, 3)])
def test_segments_may_differ_in_their_b_frames(tmp_path: Path, b_frames: tuple[int, ...]) -> None:
    source = clips.make_clip(tmp_path / "source.mp4", 30, sounds=["aac"])
    segments = [
        clips.make_clip(tmp_path / f"{i}.mp4", 10, first_number=10 * i, b_frames=count)
        for i, count in enumerate(b_frames)
    ]
    join(segments, source, tmp_path / "out.mp4", None)
    assert clips.read_numbers(tmp_path / "out.mp4") == list(range(30))
    assert clips.frame_times(tmp_path / "out.mp4") == pytest.approx(clips.frame_times(source))


def test_segments_may_differ_in_their_h264_parameters(tmp_path: Path) -> None:
    source = clips.make_clip(tmp_path / "source.mp4", 30)
    segments = [
        clips.make_clip(tmp_path / f"{crf}.mp4", 10, first_number=10 * i, crf=crf) for i, crf in enumerate((20, 35, 51))
    ]
    headers = set()
    for segment in segments:
        with av.open(str(segment)) as container:
            headers.add(bytes(container.streams.video[0].codec_context.extradata))
    assert len(headers) == 3
    join(segments, source, tmp_path / "out.mp4", None)
    assert clips.read_numbers(tmp_path / "out.mp4") == list(range(30))


def test_a_forced_rate_is_constant(tmp_path: Path) -> None:
    source = clips.make_clip(tmp_path / "source.mp4", 40, sounds=["aac"])
    facts = join(make_segments(tmp_path, [25, 25]), source, tmp_path / "out.mp4", Fraction(30))
    times = clips.frame_times(tmp_path / "out.mp4")
    assert times == pytest.approx([i / 30 for i in range(50)], abs=1e-4)
    assert facts.duration_s == pytest.approx(50 / 30, abs=1e-3)
    assert clips.sound_packets(tmp_path / "out.mp4") == clips.sound_packets(source)


def test_one_segment_is_joined_with_the_sound_too(tmp_path: Path) -> None:
    source = clips.make_clip(tmp_path / "source.mp4", 20, sounds=["aac"])
    join(make_segments(tmp_path, [20]), source, tmp_path / "out.mp4", None)
    assert clips.read_numbers(tmp_path / "out.mp4") == list(range(20))
    assert clips.sound_packets(tmp_path / "out.mp4") == clips.sound_packets(source)


def test_the_result_is_upright_and_can_be_played_while_it_loads(tmp_path: Path) -> None:
    source = clips.make_clip(tmp_path / "source.mp4", 10, rotation=90)
    segment = clips.make_clip(tmp_path / "segment.mp4", 10, rotation=90)
    join([segment], source, tmp_path / "out.mp4", None)
    assert probe_video(tmp_path / "out.mp4").rotation == 0
    data = (tmp_path / "out.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_sound_that_does_not_fit_into_mp4_is_encoded_and_said_so(tmp_path: Path) -> None:
    source = clips.make_clip(tmp_path / "source.avi", 48, codec="mpeg4", sounds=["pcm_s16le"])
    facts = join(make_segments(tmp_path, [48]), source, tmp_path / "out.mp4", None)
    assert len(facts.warnings) == 1
    assert "AAC" in facts.warnings[0]
    (track,) = clips.sound_packets(tmp_path / "out.mp4")
    assert track[-1][1] == pytest.approx(2.0, abs=0.05)


def test_segments_of_different_sizes_are_refused(tmp_path: Path) -> None:
    source = clips.make_clip(tmp_path / "source.mp4", 20)
    segments = [
        clips.make_clip(tmp_path / "a.mp4", 10),
        clips.make_clip(tmp_path / "b.mp4", 10, size=(64, 64)),
    ]
    with pytest.raises(JobFailure) as caught:
        join(segments, source, tmp_path / "out.mp4", None)
    assert caught.value.code == "segments_differ"


def test_a_damaged_segment_leaves_nothing_behind(tmp_path: Path) -> None:
    source = clips.make_clip(tmp_path / "source.mp4", 20)
    segment = clips.make_clip(tmp_path / "a.mp4", 20)
    cut = clips.cut_short(segment, tmp_path / "cut.mp4", 0.5)
    folder = tmp_path / "results"
    folder.mkdir()
    with pytest.raises(JobFailure) as caught:
        join([segment, cut], source, folder / "out.mp4", None)
    assert caught.value.code == "output_damaged"
    assert not list(folder.iterdir())


FULL_DISK = """
import resource, sys
from pathlib import Path
from faceswap.errors import JobFailure
from faceswap.media import join as join_module
from faceswap.media.join import join
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), int(sys.argv[4])))
try:
    join([Path(sys.argv[1])], Path(sys.argv[2]), Path(sys.argv[3]), None)
except JobFailure as failure:
    print(failure.code, failure.passing)
"""


@pytest.mark.parametrize("room", [0, 1000, 30_000])
def test_a_full_disk_is_told_and_leaves_the_old_result(tmp_path: Path, room: int) -> None:
    source = clips.make_clip(tmp_path / "source.mp4", 48, sounds=["aac"])
    out = tmp_path / "results" / "out.mp4"
    out.parent.mkdir()
    out.write_bytes(b"before")
    command = [sys.executable, "-c", FULL_DISK, source, source, out, str(room)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.stdout.split() == ["disk_full", "True"], done.stderr
    assert [path.name for path in out.parent.iterdir()] == ["out.mp4"]
    assert out.read_bytes() == b"before"


def test_memory_does_not_grow_with_the_number_of_segments(tmp_path: Path) -> None:
    source = clips.make_clip(tmp_path / "source.mp4", 48, size=(320, 240), sounds=["flac"])
    segment = clips.make_clip(tmp_path / "segment.mp4", 48, size=(320, 240), crf=0)
    join([segment] * 5, source, tmp_path / "out.mp4", Fraction(24))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    facts = join([segment] * 200, source, tmp_path / "out.mp4", Fraction(24))
    assert facts.frames == 9600
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < min(16 << 20, facts.bytes)


def test_a_frame_that_does_not_get_into_the_joined_file_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    retimed = join_module._retimed
    monkeypatch.setattr(join_module, "_retimed", lambda *arguments: itertools.islice(retimed(*arguments), 23))
    clip = clips.make_clip(tmp_path / "clip.mp4", 24)
    with pytest.raises(JobFailure) as failed:
        join([clip], clip, tmp_path / "out.mp4", None)
    assert (failed.value.code, failed.value.passing) == ("output_damaged", True)
    assert not (tmp_path / "out.mp4").exists()
