"""The contents of a file, whatever its name or its header says."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path

import clips
import cv2
import pytest

from faceswap.config import Settings
from faceswap.errors import Problem
from faceswap.intake.shape import check_length
from faceswap.limits import MAX_TRACKS
from faceswap.media import output_frames, plan_segments, probe
from faceswap.media.facts import VideoFacts
from faceswap.media.probe import probe_image
from faceswap.media.timeline import read_timeline
from faceswap.options import Options

SAMPLES = Path(__file__).parent.parent / "faceswap" / "samples"


def probe_video(path: Path) -> VideoFacts:
    return probe.probe_video(path, max_frames=1_000_000)


def opencv_frames(path: Path) -> int:
    capture = cv2.VideoCapture(str(path))
    count = 0
    while capture.grab():
        count += 1
    capture.release()
    return count


KINDS = {
    "plain.mp4": {"sounds": ["aac"]},
    "bframes.mp4": {"b_frames": 3},
    "odd.mp4": {"size": (127, 95), "pix_fmt": "yuv444p"},
    "fragmented.mp4": {"options": {"movflags": "frag_keyframe+empty_moov"}},
    "old.avi": {"codec": "mpeg4", "sounds": ["libmp3lame"]},
    "h264.avi": {},
    "stream.ts": {"sounds": ["aac"]},
    "vp8.webm": {"codec": "libvpx"},
    "vp9.webm": {"codec": "libvpx-vp9", "sounds": ["libopus"]},
    "flac.mkv": {"sounds": ["flac"]},
    "moving.gif": {"codec": "gif", "pix_fmt": "rgb8"},
}


@pytest.mark.parametrize("name", KINDS)
def test_frames_are_those_a_full_decode_shows_and_opencv_sees(tmp_path: Path, name: str) -> None:
    clip = clips.make_clip(tmp_path / name, 25, **KINDS[name])
    facts = probe_video(clip)
    assert facts.frames == len(clips.read_numbers(clip)) == opencv_frames(clip) == 25
    assert facts.width == KINDS[name].get("size", (128, 96))[0]
    assert facts.bytes == clip.stat().st_size


def test_the_name_of_a_file_does_not_matter(tmp_path: Path) -> None:
    clip = clips.make_clip(tmp_path / "clip.mp4")
    assert probe_video(Path(shutil.copy(clip, tmp_path / "holiday.txt"))).frames == 24


@pytest.mark.parametrize("rate", [Fraction(24), Fraction(30000, 1001), Fraction(50), Fraction(15, 2)])
def test_a_constant_rate_is_told_exactly(tmp_path: Path, rate: Fraction) -> None:
    for name in ("clip.mp4", "clip.mkv"):
        facts = probe_video(clips.make_clip(tmp_path / name, 40, rate=rate))
        assert (facts.frame_rate, facts.variable) == (rate, False)
        assert float(facts.duration) == pytest.approx(40 / rate, abs=0.002)


def test_a_variable_rate_is_told_with_its_average(tmp_path: Path) -> None:
    times = [0, 3, 4, 9, 10, 14, 20, 28, 30, 37]
    facts = probe_video(clips.make_clip(tmp_path / "v.mp4", 10, times=times, time_base=Fraction(1, 100)))
    assert facts.variable
    assert facts.frame_rate == Fraction(9, 37) * 100


def test_a_rotated_video_has_the_size_it_is_shown_in(tmp_path: Path) -> None:
    for degrees, size in ((90, (96, 160)), (180, (160, 96)), (270, (96, 160))):
        clip = clips.make_clip(tmp_path / f"{degrees}.mp4", 3, size=(160, 96), rotation=degrees)
        facts = probe_video(clip)
        assert (facts.width, facts.height, facts.rotation) == (*size, degrees)
        ok, picture = cv2.VideoCapture(str(clip)).read()
        assert ok
        assert picture.shape[:2] == (facts.height, facts.width)


def test_all_sound_tracks_are_told_with_their_packets(tmp_path: Path) -> None:
    clip = clips.make_clip(tmp_path / "clip.mkv", sounds=["aac", "libopus", "libmp3lame"])
    facts = probe_video(clip)
    assert [track.codec for track in facts.audio] == ["aac", "opus", "mp3"]
    assert [track.packets for track in facts.audio] == [len(t) for t in clips.sound_packets(clip)]


def test_an_edit_list_hides_frames(tmp_path: Path) -> None:
    clip = clips.make_clip(tmp_path / "clip.mp4", 24, sounds=["aac"])
    cut = clips.with_edit_list(clip, tmp_path / "cut.mp4", skipped=5 * 512, shown=500)
    assert clips.read_numbers(cut) == list(range(5, 17))
    assert probe_video(cut).frames == 12


def test_a_header_that_lies_about_the_length_is_not_believed(tmp_path: Path) -> None:
    clip = clips.make_clip(tmp_path / "clip.mp4", 24)
    lying = clips.with_lying_header(clip, tmp_path / "lying.mp4")
    facts = probe_video(lying)
    assert (facts.frames, facts.frame_rate, float(facts.duration)) == (24, 24, 1.0)


def test_the_start_of_the_picture_is_told(tmp_path: Path) -> None:
    clip = clips.make_clip(tmp_path / "late.mp4", sounds=["aac"], video_start=12)
    assert probe_video(clip).start_s == 0.5


def refusal(path: Path) -> tuple[int, str]:
    with pytest.raises(Problem) as caught:
        probe_video(path)
    assert str(path.parent) not in caught.value.detail
    return caught.value.status, caught.value.code


def test_what_is_no_video_is_refused_with_415(tmp_path: Path) -> None:
    other = clips.make_clip(tmp_path / "other.mp4")
    texts = {
        "text.mp4": b"Dear Sir or Madam,\n" * 100,
        "ansi.mp4": b"\x1b[31mhello\n" * 100,
        "empty.mp4": b"",
        "playlist.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{other}\n".encode(),
        "list.mp4": f"ffconcat version 1.0\nfile '{other}'\n".encode(),
    }
    for name, data in texts.items():
        (tmp_path / name).write_bytes(data)
        assert refusal(tmp_path / name) == (415, "not_a_video"), name
    still = clips.make_clip(tmp_path / "still.gif", 1, codec="gif", pix_fmt="rgb8")
    for picture in (SAMPLES / "astronaut.png", SAMPLES / "grace_hopper.jpg", still):
        assert refusal(picture) == (415, "not_a_video"), picture.name


def test_a_truncated_video_is_refused(tmp_path: Path) -> None:
    end_header = clips.make_clip(tmp_path / "end.mp4", sounds=["aac"])
    start_header = clips.make_clip(tmp_path / "start.mp4", options={"movflags": "faststart"}, sounds=["aac"])
    for clip, share in ((end_header, 0.5), (end_header, 0.99), (start_header, 0.5), (start_header, 0.99)):
        assert refusal(clips.cut_short(clip, tmp_path / "cut.mp4", share)) == (422, "video_truncated")


def test_a_video_with_too_many_pixels_is_refused(tmp_path: Path) -> None:
    clip = clips.make_clip(tmp_path / "wide.mp4", 1, size=(8400, 64))
    assert refusal(clip) == (422, "video_too_large")


def test_images_are_known_by_their_bytes(tmp_path: Path) -> None:
    facts = probe_image(SAMPLES / "grace_hopper.jpg")
    assert (facts.width, facts.height, facts.format) == (512, 600, "jpeg")
    picture = clips.numbered(1)
    for kind in ("png", "webp", "bmp", "tiff", "gif"):
        cv2.imwrite(str(tmp_path / f"picture.{kind}"), picture)
        path = (tmp_path / f"picture.{kind}").rename(tmp_path / "picture.jpg")
        facts = probe_image(path)
        assert (facts.width, facts.height, facts.format) == (128, 96, kind)


def test_what_is_no_whole_image_is_refused_with_415(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello" * 100)
    files = [tmp_path / "text.png", clips.make_clip(tmp_path / "clip.png.mp4")]
    for name in ("astronaut.png", "grace_hopper.jpg"):
        files += [clips.cut_short(SAMPLES / name, tmp_path / f"{share}{name}", share) for share in (0.2, 0.9, 0.99)]
    for path in files:
        with pytest.raises(Problem) as caught:
            probe_image(path)
        assert (caught.value.status, caught.value.code) == (415, "not_an_image"), path.name


def facts_of(frames: int, rate: Fraction = Fraction(24), duration: Fraction | None = None) -> VideoFacts:
    return VideoFacts(128, 96, 0, frames, rate, False, duration or frames / rate, 0.0, "h264", (), 1)


@pytest.mark.parametrize("frames", [1, 2, 239, 240, 241, 480, 481, 1001])
def test_segments_cover_every_frame_once_and_none_is_tiny(frames: int) -> None:
    plan = plan_segments(frames, 240)
    shown = [f for s in plan for f in range(s.first_frame, s.first_frame + s.frame_count)]
    assert shown == list(range(frames))
    assert [s.number for s in plan] == list(range(len(plan)))
    lengths = [s.frame_count for s in plan]
    assert max(lengths) <= 240
    assert max(lengths) - min(lengths) <= 1


def test_a_segment_length_of_zero_means_one_segment() -> None:
    assert [s.frame_count for s in plan_segments(1000, 0)] == [1000]


@pytest.mark.parametrize(
    ("frames", "rate", "result"), [(100, 30, 125), (72, 12, 36), (5, None, 5), (31, 10, 13), (1, 1, 1), (3, 60, 8)]
)
def test_a_rate_that_was_asked_for_gives_as_many_frames_as_it_has_time(
    frames: int, rate: int | None, result: int
) -> None:
    forced = Fraction(rate) if rate else None
    assert output_frames(facts_of(frames), forced) == result
    assert sum(s.frame_count for s in plan_segments(result, 50)) == result


def test_each_frame_of_a_result_shows_what_the_source_shows_in_the_middle_of_its_time(tmp_path: Path) -> None:
    timeline = read_timeline(clips.make_clip(tmp_path / "clip.mp4", 8, video_start=5))
    assert timeline.shown(Fraction(12), 0, 4) == [0, 2, 4, 6]
    assert timeline.shown(Fraction(48), 0, 16) == [i // 2 for i in range(16)]
    assert timeline.shown(Fraction(48), 5, 3) == [2, 3, 3]
    assert timeline.shown(None, 5, 10) == [5, 6, 7]


DAY_S = 24 * 3600


def check_frames(facts: VideoFacts, rate: int | None, settings: Settings) -> None:
    options = Options(frame_rate=rate)
    check_length(facts, output_frames(facts, options.rate), 240, options, settings)


def three_frames(path: Path, gap_s: int) -> Path:
    ticks = {"video_track_timescale": "1"}
    return clips.make_clip(path, 3, times=[0, gap_s, 2 * gap_s], time_base=Fraction(1), b_frames=0, options=ticks)


@pytest.mark.parametrize("gap_s", [600, DAY_S, 7 * DAY_S, 365 * DAY_S])
def test_a_few_bytes_that_tell_of_years_are_refused_before_a_frame_is_counted(tmp_path: Path, gap_s: int) -> None:
    clip = three_frames(tmp_path / "clip.mp4", gap_s)
    assert clip.stat().st_size < 2500
    facts = probe_video(clip)
    with pytest.raises(Problem) as refused:
        check_frames(facts, 60, Settings(tmp_path))
    code = "video_too_long" if gap_s >= DAY_S else "video_has_gaps"
    assert (refused.value.status, refused.value.code) == (422, code)


LIMITS = [
    ({"max_duration_s": 99}, None, "100 seconds; at most 99"),
    ({"max_frames": 2999}, 30, "3,000 frames; at most 2,999"),
    ({"max_segments": 9}, None, "10 parts of 240 frames; at most 9"),
]


@pytest.mark.parametrize(("limit", "rate", "told"), LIMITS)
def test_the_limits_of_length_are_settings(tmp_path: Path, limit: dict[str, int], rate: int | None, told: str) -> None:
    facts = facts_of(2400)
    check_frames(facts, rate, Settings(tmp_path, **{name: value + 1 for name, value in limit.items()}))
    with pytest.raises(Problem, match=told) as refused:
        check_frames(facts, rate, Settings(tmp_path, **limit))
    assert (refused.value.status, refused.value.code) == (422, "video_too_long")


def test_a_video_with_more_frames_than_are_taken_is_not_read_to_its_end(tmp_path: Path) -> None:
    clip = clips.make_clip(tmp_path / "clip.mp4", 24)
    assert probe.probe_video(clip, max_frames=24).frames == 24
    with pytest.raises(Problem, match="more than 23 frames") as refused:
        probe.probe_video(clip, max_frames=23)
    assert (refused.value.status, refused.value.code) == (422, "video_too_long")


def test_a_still_that_is_shown_for_a_minute_may_be_repeated(tmp_path: Path) -> None:
    check_frames(facts_of(1, duration=Fraction(60)), 60, Settings(tmp_path))


@pytest.mark.parametrize("container", ["mkv", "mp4", "ts"])
@pytest.mark.parametrize("count", [MAX_TRACKS + 1, 2 * MAX_TRACKS])
def test_a_video_with_too_many_tracks_is_refused(tmp_path: Path, container: str, count: int) -> None:
    with pytest.raises(Problem) as refused:
        probe_video(clips.many_tracks(tmp_path / f"many.{container}", count))
    assert refused.value.code == "video_too_many_tracks"
