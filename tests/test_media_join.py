"""Segment results become one video: every frame once, on time, with all of the sound."""

from __future__ import annotations

import contextlib
import itertools
import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import clips
import numpy as np
import pytest
from numpy.typing import NDArray
from waiting import WAIT_S

from faceswap.errors import JobFailure
from faceswap.media import join as join_module
from faceswap.media.join import join
from faceswap.media.probe import probe_video
from faceswap.media.sound import decode_tracks
from faceswap.media.timeline import open_media, read_timeline

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
    facts = join(segments, source, out, None, clips.JOB)

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
    count = probe_video(source, 1000).frames
    out = tmp_path / "out.mp4"
    join(make_segments(tmp_path, [count - 9, 9]), source, out, None, clips.JOB)
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
    join(segments, source, tmp_path / "out.mp4", None, clips.JOB)
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
    join(segments, source, tmp_path / "out.mp4", None, clips.JOB)
    assert clips.read_numbers(tmp_path / "out.mp4") == list(range(30))


def test_a_forced_rate_is_constant(tmp_path: Path) -> None:
    source = clips.make_clip(tmp_path / "source.mp4", 40, sounds=["aac"])
    facts = join(make_segments(tmp_path, [25, 25]), source, tmp_path / "out.mp4", Fraction(30), clips.JOB)
    times = clips.frame_times(tmp_path / "out.mp4")
    assert times == pytest.approx([i / 30 for i in range(50)], abs=1e-4)
    assert facts.duration_s == pytest.approx(50 / 30, abs=1e-3)
    assert clips.sound_packets(tmp_path / "out.mp4") == clips.sound_packets(source)


PARTS: dict[str, dict[str, Any]] = {
    "plain.mp4": {"sounds": ["aac", "libopus"]},
    "variable.mp4": {
        "times": [i * 4 + (i % 3) for i in range(60)],
        "time_base": Fraction(1, 100),
        "sounds": ["aac"],
    },
    "late.mkv": {"video_start": 6, "sounds": ["flac"]},
    "opus.webm": {"codec": "libvpx-vp9", "sounds": ["libopus"]},
    "old.avi": {"codec": "mpeg4", "sounds": ["libmp3lame"]},
    "pcm.mov": {"sounds": ["pcm_s16le"]},
    "ac3.ts": {"sounds": ["ac3"]},
}


def samples_of(path: Path, track: int) -> tuple[float, NDArray[np.float32]]:
    """Return the time of the first sample of a sound track and the samples of its first channel, 48,000 a second."""
    with av.open(str(path)) as container:
        resampler = av.AudioResampler("fltp", "mono", 48000)
        frames = [part for frame in container.decode(audio=track) for part in resampler.resample(frame)]
    return float(frames[0].time or 0), np.concatenate([frame.to_ndarray()[0] for frame in frames])


@pytest.mark.parametrize("frame_rate", [None, Fraction(30)])
@pytest.mark.parametrize("name", PARTS)
def test_a_part_of_a_video_has_its_frames_on_time_and_the_sound_that_was_heard_with_them(
    tmp_path: Path, name: str, frame_rate: Fraction | None
) -> None:
    source = clips.make_clip(tmp_path / name, 60, **PARTS[name])
    timeline = read_timeline(source)
    part = timeline.span(0.52, 1.6, frame_rate)
    begin, end = (timeline.time_of(number, frame_rate) for number in (part.start, part.stop))
    segments = make_segments(tmp_path, [7, len(part) - 7])
    out = tmp_path / "out.mp4"
    facts = join(segments, source, out, frame_rate, clips.JOB, None, part.start)

    assert facts.frames == len(part)
    wanted = [float(timeline.time_of(number, frame_rate) - begin) for number in part]
    assert clips.frame_times(out) == pytest.approx(wanted, abs=1e-4)
    assert facts.duration_s == pytest.approx(float(end - begin), abs=1e-4)
    for track in range(len(PARTS[name]["sounds"])):
        (ours_s, ours), (theirs_s, theirs) = samples_of(out, track), samples_of(source, track)
        assert ours_s == pytest.approx(0, abs=0.03)
        assert ours_s + len(ours) / 48000 == pytest.approx(float(end - begin), abs=0.1)
        here = round((float(begin) + ours_s - theirs_s) * 48000) + 9600
        off = int(np.argmax(np.correlate(theirs[here - 600 : here + 4800 + 600], ours[9600:14400]))) - 600
        assert abs(off) < 0.001 * 48000 or name == "old.avi"  # which knows the times of whole frames only


def test_a_frame_that_is_shown_for_long_is_shown_for_the_part_of_it_that_is_wanted(tmp_path: Path) -> None:
    slides = {"times": [0, 40, 80], "time_base": Fraction(1, 10), "sounds": ["aac"], "sound_s": 12.0}
    source = clips.make_clip(tmp_path / "slides.mkv", 3, rate=Fraction(1), **slides)
    part = read_timeline(source).span(3, 6.5, None)
    out = tmp_path / "out.mp4"
    facts = join(make_segments(tmp_path, [len(part)]), source, out, None, clips.JOB, None, part.start, 3, 6.5)
    assert (part, clips.frame_times(out)) == (range(2), [0.0, 1.0])
    assert facts.duration_s == pytest.approx(3.5, abs=0.01)
    _, heard = samples_of(out, 0)
    assert len(heard) / 48000 == pytest.approx(3.5, abs=0.03)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (None, None, range(60)),
        (0, 0.5, range(12)),
        (0.5, 1.0, range(12, 24)),
        (0.49, 0.51, range(11, 13)),
        (0.0417, 0.0833, range(1, 2)),
        (1.0, 99, range(24, 60)),
        (2.5, None, range(60, 60)),
        (2.49, None, range(59, 60)),
        (3, 4, range(60, 60)),
    ],
)
def test_a_part_is_what_a_player_shows_from_start_to_end(
    tmp_path: Path, start: float | None, end: float | None, expected: range
) -> None:
    timeline = read_timeline(clips.make_clip(tmp_path / "clip.mp4", 60))
    found = timeline.span(start, end, None)
    assert (found.start, found.stop) == (expected.start, expected.stop)
    at_twice_the_rate = timeline.span(start, end, Fraction(48))
    assert (
        abs(at_twice_the_rate.start - 2 * expected.start) <= 1 and abs(at_twice_the_rate.stop - 2 * expected.stop) <= 1
    )


def test_the_frame_at_a_time_is_the_one_that_is_shown_then(tmp_path: Path) -> None:
    steady = read_timeline(clips.make_clip(tmp_path / "steady.mp4", 60))
    assert [steady.index_at(at) for at in (0, 0.04, 0.0416, 0.5, 0.54, 2.49, 2.5, 99)] == [0, 0, 1, 12, 12, 59, 59, 59]
    times = [0, 10, 50, 55, 90]
    held = clips.make_clip(tmp_path / "held.mp4", 5, times=times, time_base=Fraction(1, 100), video_start=20)
    timeline = read_timeline(clips.make_clip(held, 5, times=times, time_base=Fraction(1, 100), sounds=["aac"]))
    assert [timeline.index_at(at) for at in (0, 0.09, 0.1, 0.3, 0.5, 0.54, 0.55, 2)] == [0, 0, 1, 1, 2, 2, 3, 4]


def test_one_segment_is_joined_with_the_sound_too(tmp_path: Path) -> None:
    source = clips.make_clip(tmp_path / "source.mp4", 20, sounds=["aac"])
    join(make_segments(tmp_path, [20]), source, tmp_path / "out.mp4", None, clips.JOB)
    assert clips.read_numbers(tmp_path / "out.mp4") == list(range(20))
    assert clips.sound_packets(tmp_path / "out.mp4") == clips.sound_packets(source)


def test_the_result_is_upright_and_can_be_played_while_it_loads(tmp_path: Path) -> None:
    source = clips.make_clip(tmp_path / "source.mp4", 10, rotation=90)
    segment = clips.make_clip(tmp_path / "segment.mp4", 10, rotation=90)
    join([segment], source, tmp_path / "out.mp4", None, clips.JOB)
    assert probe_video(tmp_path / "out.mp4", 1000).rotation == 0
    data = (tmp_path / "out.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


ENCODED = {
    "pcm.mov": {"sounds": ["pcm_s16le"]},
    "pcm.avi": {"codec": "mpeg4", "sounds": ["pcm_s16le"]},
    "mp2.ts": {"sounds": ["mp2"]},
    "late.mov": {"sounds": ["pcm_s16le"], "video_start": 12},
    "short.mov": {"sounds": ["pcm_s16le"], "sound_s": 0.7},
    "long.mov": {"sounds": ["pcm_s16le", "aac"], "sound_s": 3.0},
}


@pytest.mark.parametrize("name", ENCODED)
def test_sound_that_does_not_fit_into_mp4_is_encoded_and_said_so(tmp_path: Path, name: str) -> None:
    source = clips.make_clip(tmp_path / name, 40, **ENCODED[name])
    out = tmp_path / "out.mp4"
    facts = join(make_segments(tmp_path, [40]), source, out, None, clips.JOB)
    codec = ENCODED[name]["sounds"][0]
    assert facts.warnings == (f"Sound track 1 ({codec}) does not fit into mp4 and was encoded to AAC.",)
    assert_same_sound(source, out)


def assert_same_sound(source: Path, out: Path) -> None:
    """Check that the tracks of both start and end together, within a frame of AAC from the first picture."""
    first, ours_first = clips.frame_times(source)[0], clips.frame_times(out)[0]
    tracks, originals = list(decode_tracks(out).values()), list(decode_tracks(source).values())
    assert len(tracks) == len(originals)
    for track, original in zip(tracks, originals, strict=True):
        assert track.damaged == 0
        assert track.start is not None and original.start is not None
        assert track.start - ours_first == pytest.approx(original.start - first, abs=0.022)
        assert track.end - ours_first == pytest.approx(original.end - first, abs=0.022)  # type: ignore[operator]
        assert track.seconds > original.seconds - 0.022


def spoilt(path: Path, out: Path, share: float) -> Path:
    """Copy a clip and turn this share of the sound's packets into noise, but for the first of them."""
    rng = random.Random(3)
    with av.open(str(path)) as clip, av.open(str(out), "w") as output:
        streams = {stream.index: output.add_stream_from_template(stream) for stream in clip.streams}
        for packet in clip.demux():
            if packet.dts is None:
                continue
            stream = streams[packet.stream_index]
            if stream.type == "audio" and (share == 1 or packet.pts > 0) and rng.random() < share:
                noise = av.Packet(rng.randbytes(packet.size))
                noise.pts, noise.dts, noise.duration = packet.pts, packet.dts, packet.duration
                noise.time_base, packet = packet.time_base, noise
            packet.stream = stream
            output.mux(packet)
    return out


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_damaged_sound_is_encoded_as_far_as_it_decodes_and_keeps_its_time(tmp_path: Path, name: str) -> None:
    codec = "aac" if name == "clip.mp4" else "eac3"
    clip = clips.make_clip(tmp_path / name, 40, sounds=[codec])
    source, out = spoilt(clip, tmp_path / f"spoilt-{name}", 0.3), tmp_path / "out.mp4"
    assert next(iter(decode_tracks(source).values())).damaged > 5
    facts = join(make_segments(tmp_path, [40]), source, out, None, clips.JOB)
    assert facts.warnings == ("Sound track 1 of the video is damaged; what can be decoded of it was encoded to AAC.",)
    assert_same_sound(source, out)
    assert correlation(source, out) > 0.8


def correlation(source: Path, out: Path) -> float:
    """Return the correlation (0–1) of two files' sound at the same time after the first picture."""
    waves = []
    for path in (source, out):
        wave = np.zeros(48000 * 3, np.float32)
        origin = clips.frame_times(path)[0]
        with open_media(path) as container:
            for packet in container.demux(audio=0):
                with contextlib.suppress(av.FFmpegError):
                    for frame in packet.decode():
                        at = round((frame.time - origin) * 48000) + 48000
                        wave[at : at + frame.samples] = frame.to_ndarray()[0]
        waves.append(wave)
    shifts = [np.dot(waves[0], np.roll(waves[1], shift)) for shift in range(-48, 49, 4)]
    return float(max(shifts) / np.linalg.norm(waves[0]) / np.linalg.norm(waves[1]))


def test_sound_that_cannot_be_decoded_is_left_out_and_never_said_to_be_encoded(tmp_path: Path) -> None:
    clip = clips.make_clip(tmp_path / "clip.mov", 40, sounds=["pcm_s16le", "aac"])
    unknown = tmp_path / "unknown.mov"
    unknown.write_bytes(clip.read_bytes().replace(b"sowt", b"abcd"))
    noise = spoilt(clips.make_clip(tmp_path / "clip.mkv", 40, sounds=["flac"]), tmp_path / "noise.mkv", 1)
    for source, tracks in ((unknown, 1), (noise, 0)):
        facts = join(make_segments(tmp_path, [40]), source, tmp_path / "out.mp4", None, clips.JOB)
        assert facts.warnings == ("Sound track 1 of the video cannot be decoded and was left out.",)
        assert len(clips.sound_packets(tmp_path / "out.mp4")) == tracks


@pytest.mark.parametrize("what", ["lost", "late", "cut", "damaged"])
def test_sound_that_does_not_arrive_in_the_result_is_a_failure(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = join_module._sound

    def wrong(*arguments: Any) -> Iterator[Any]:
        for time_s, packet in right(*arguments):
            if what == "lost" or (what == "cut" and time_s > 1):
                continue
            if what == "late":
                packet.pts = packet.dts = packet.pts + 4800
            if what == "damaged" and 0.5 < time_s < 0.52:  # one packet, shorter than a frame of the picture
                noise = av.Packet(random.Random(1).randbytes(packet.size))
                noise.pts, noise.dts, noise.time_base = packet.pts, packet.dts, packet.time_base
                noise.stream = packet.stream
                packet = noise
            yield time_s, packet

    monkeypatch.setattr(join_module, "_sound", wrong)
    source = clips.make_clip(tmp_path / "source.mp4", 40, sounds=["aac"])
    folder = tmp_path / "results"
    folder.mkdir()
    with pytest.raises(JobFailure) as caught:
        join(make_segments(tmp_path, [40]), source, folder / "out.mp4", None, clips.JOB)
    assert (caught.value.code, caught.value.transient) == ("sound_missing", True)
    assert not list(folder.iterdir())


JOINED = {
    "hevc": ("mp4", "libx265", "yuv420p"),
    "vp9": ("webm", "libvpx-vp9", "yuv420p"),
    "av1": ("webm", "libsvtav1", "yuv420p10le"),
    "ffv1": ("mkv", "ffv1", "yuv420p"),
}


@pytest.mark.parametrize("name", JOINED)
def test_what_videohelpersuite_makes_of_each_format_is_joined_into_mp4(tmp_path: Path, name: str) -> None:
    suffix, codec, pix_fmt = JOINED[name]
    source = clips.make_clip(tmp_path / "source.mp4", 30, sounds=["aac"])
    segments = [
        clips.make_clip(
            tmp_path / f"{i}.{suffix}", 10 + i, first_number=10 * i, codec=codec, pix_fmt=pix_fmt, size=(128, 96)
        )
        for i in (0, 1)
    ]
    out = tmp_path / "out.mp4"
    join(segments, source, out, None, clips.JOB)
    assert clips.read_numbers(out) == list(range(21))
    with av.open(str(out)) as container:
        assert container.streams.video[0].codec_context.codec.canonical_name == name


def test_segments_of_different_sizes_are_refused(tmp_path: Path) -> None:
    source = clips.make_clip(tmp_path / "source.mp4", 20)
    segments = [
        clips.make_clip(tmp_path / "a.mp4", 10),
        clips.make_clip(tmp_path / "b.mp4", 10, size=(64, 64)),
    ]
    with pytest.raises(JobFailure) as caught:
        join(segments, source, tmp_path / "out.mp4", None, clips.JOB)
    assert caught.value.code == "segments_differ"


def test_a_damaged_segment_leaves_nothing_behind(tmp_path: Path) -> None:
    source = clips.make_clip(tmp_path / "source.mp4", 20)
    segment = clips.make_clip(tmp_path / "a.mp4", 20)
    cut = clips.cut_short(segment, tmp_path / "cut.mp4", 0.5)
    folder = tmp_path / "results"
    folder.mkdir()
    with pytest.raises(JobFailure) as caught:
        join([segment, cut], source, folder / "out.mp4", None, clips.JOB)
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
    join([Path(sys.argv[1])], Path(sys.argv[2]), Path(sys.argv[3]), None, "job")
except JobFailure as failure:
    print(failure.code, failure.transient)
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
    join([segment] * 5, source, tmp_path / "out.mp4", Fraction(24), clips.JOB)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    facts = join([segment] * 200, source, tmp_path / "out.mp4", Fraction(24), clips.JOB)
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
        join([clip], clip, tmp_path / "out.mp4", None, clips.JOB)
    assert (failed.value.code, failed.value.transient) == ("output_damaged", True)
    assert not (tmp_path / "out.mp4").exists()
