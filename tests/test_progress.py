"""One percentage that one can believe, of the bars that a real ReActor drove."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay import read

from faceswap.progress import (
    FIRST_GUESS,
    FIRST_GUESS_EMBEDDED,
    JOIN_S,
    OVERHEAD_S,
    ROLES,
    JobProgress,
    Report,
    SegmentProgress,
)

FRAMES = 72
TICK_S = 0.25
ROLE_OF_NODE = {"8": "load", "3": "swap", "9": "combine"}

Bar = tuple[float, str, float, float]


def recorded() -> tuple[list[Bar], float]:
    """Return the bars of the recording with seconds since its start, and the seconds it took."""
    frames = [(entry["t"], entry["msg"]) for entry in read("r_real_full") if entry["kind"] == "ws"]
    [start_s] = [t for t, message in frames if message["type"] == "execution_start"]
    [end_s] = [t for t, message in frames if message["type"] == "execution_success"]
    bars = [
        (t - start_s, ROLE_OF_NODE[message["data"]["node"]], message["data"]["value"], message["data"]["max"])
        for t, message in frames
        if message["type"] == "progress"
    ]
    return bars, end_s - start_s


BARS, PROMPT_S = recorded()
JOB_S = PROMPT_S + OVERHEAD_S + JOIN_S


def play(expected: Mapping[str, float]) -> tuple[list[tuple[float, Report]], Mapping[str, float]]:
    """Run the recording: what is told at each tick, and what it cost."""
    job = JobProgress(FRAMES, 0, 0.0, 0.0)
    segment = job.begin(0, FRAMES, expected, 0.0)
    told: list[tuple[float, Report]] = []
    bars = list(BARS)
    costs: Mapping[str, float] = {}
    for now_s in ticks(JOB_S):
        while bars and bars[0][0] <= now_s:
            at_s, *bar = bars.pop(0)
            segment.feed(*bar, at_s)
        if now_s > PROMPT_S and not costs:
            costs = segment.end(PROMPT_S)
        told.append((now_s, job.report(now_s)))
    return told, costs


def ticks(seconds: float) -> Iterator[float]:
    return (number * TICK_S for number in range(int(seconds / TICK_S) + 1))


FIRST_RUN, COSTS = play(FIRST_GUESS)
SECOND_RUN, _ = play(COSTS)
STRANGE_RUN, _ = play({"load 1": 1.0, "swap 1": 0.001, "swap 7": 0.01})


@pytest.mark.parametrize("told", [FIRST_RUN, SECOND_RUN, STRANGE_RUN], ids=["guessed", "learned", "misled"])
def test_the_percentage_starts_near_0_never_falls_and_ends_near_100(
    told: list[tuple[float, Report]],
) -> None:
    percentages = [report.percentage for _, report in told]
    assert percentages == sorted(percentages)
    assert percentages[1] < 5
    assert 99 <= percentages[-1] < 100
    assert [report.current for _, report in told] == [int(percentage * FRAMES / 100) for percentage in percentages]


def test_with_learned_costs_the_percentage_grows_evenly_in_time() -> None:
    for now_s, report in SECOND_RUN:
        assert report.percentage == pytest.approx(100 * now_s / JOB_S, abs=5)


def test_with_learned_costs_the_eta_is_right_after_the_first_fifth() -> None:
    for now_s, report in SECOND_RUN:
        if now_s > JOB_S / 5:
            assert report.eta_s == pytest.approx(JOB_S - now_s, rel=0.2, abs=0.5)


def test_the_speed_is_told_in_frames_of_the_whole_video() -> None:
    assert SECOND_RUN[len(SECOND_RUN) // 2][1].fps == pytest.approx(FRAMES / JOB_S, rel=0.1)


def test_each_pass_of_the_swap_node_is_learned_for_itself() -> None:
    assert set(COSTS) == {"load 1", "swap 1", "swap 2", "swap 3", "combine 1"}
    assert sum(COSTS.values()) * FRAMES == pytest.approx(PROMPT_S, abs=0.1)
    assert COSTS["swap 3"] * FRAMES == pytest.approx(23, abs=1)


@pytest.mark.parametrize("guess", [FIRST_GUESS, FIRST_GUESS_EMBEDDED])
def test_a_guess_names_phases_that_are_known(guess: Mapping[str, float]) -> None:
    assert {phase.split()[0] for phase in guess} <= set(ROLES)


def test_a_prompt_that_has_ended_does_not_fall_back_while_its_output_is_fetched() -> None:
    job = JobProgress(20, 0, 0.0, 0.0)
    first = job.begin(0, 10, {"swap 1": 1.0}, 0.0)
    second = job.begin(1, 10, {"swap 1": 1.0}, 0.0)
    for now_s in range(1, 11):
        first.feed("swap", now_s, 10, now_s)
        second.feed("swap", now_s, 20, now_s)
    first.end(10.0)
    told = [job.report(10 + number / 10) for number in range(20)]
    assert all(later.percentage > earlier.percentage for earlier, later in itertools.pairwise(told))


def test_segments_that_run_at_once_add_up() -> None:
    """Four segments on four engines: as even as one, and four times as fast."""
    job = JobProgress(4 * FRAMES, 0, 0.0, 0.0)
    segments = [job.begin(number, FRAMES, COSTS, 0.0) for number in range(4)]
    bars = list(BARS)
    for now_s in ticks(PROMPT_S):
        while bars and bars[0][0] <= now_s:
            at_s, *bar = bars.pop(0)
            for segment in segments:
                segment.feed(*bar, at_s)
        assert job.report(now_s).percentage == pytest.approx(100 * now_s / JOB_S, abs=5)
    for number, segment in enumerate(segments):
        segment.end(PROMPT_S)
        job.finish(number)
    report = job.report(JOB_S)
    assert (report.percentage, report.current, report.eta_s) == (99.99, 4 * FRAMES - 1, JOIN_S)
    assert report.fps == pytest.approx(4 * FRAMES / JOB_S, rel=0.01)


def test_what_is_done_elsewhere_counts_and_nothing_counts_twice() -> None:
    progress = JobProgress(3 * FRAMES, 0, 0.0, 0.0)
    progress.begin(0, FRAMES, FIRST_GUESS, 0.0)
    progress.count_done(FRAMES)
    assert progress.running == {0}
    assert 33 < progress.report(1.0).percentage < 40
    progress.finish(0)
    progress.count_done(2 * FRAMES)
    assert 66 < progress.report(2.0).percentage < 67
    progress.count_done(FRAMES)  # as it was read before the end of the first was stored
    assert 66 < progress.report(3.0).percentage < 67


def test_segments_one_after_another_add_up() -> None:
    job = JobProgress(40, 0, 0.0, 0.0)
    for number in range(4):
        begun_s = number * 10.0
        segment = job.begin(number, 10, {"swap 1": 1.0}, begun_s)
        for frame in range(1, 11):
            segment.feed("swap", frame, 10, begun_s + frame)
            report = job.report(begun_s + frame)
            assert report.percentage == pytest.approx(100 * (begun_s + frame) / 40, abs=3)
        segment.end(begun_s + 10)
        job.finish(number)
    assert job.report(40.0).percentage == 99.99


def work(segment: SegmentProgress, job: JobProgress, begun_s: float) -> list[Report]:
    """Ten frames, one a second."""
    told = []
    for frame in range(1, 11):
        segment.feed("swap", frame, 10, begun_s + frame)
        told.append(job.report(begun_s + frame))
    return told


def test_an_attempt_that_came_to_nothing_takes_nothing_back_and_the_next_moves_on_at_once() -> None:
    job = JobProgress(10, 0, 0.0, 0.0)
    before = work(job.begin(0, 10, {"swap 1": 1.0}, 0.0), job, 0.0)[7]
    job.abandon(0, 10.0)
    waiting = job.report(11.0)
    assert waiting.eta_s is None
    again = work(job.begin(0, 10, {"swap 1": 1.0}, 12.0), job, 12.0)
    percentages = [before.percentage, waiting.percentage, *(report.percentage for report in again)]
    assert percentages == sorted(percentages)
    assert len(set(percentages[2:])) == 10
    assert percentages[-1] > 99
    assert again[4].eta_s == pytest.approx(5, abs=2)  # the pause counts
    job.abandon(7, 30.0)  # of which nothing was known


def test_after_a_restart_what_is_left_takes_the_percentage_from_where_it_was() -> None:
    job = JobProgress(20, 10, 62.5, 100.0)
    first = job.report(100.0)
    assert (first.percentage, first.eta_s, first.current) == (62.5, None, 12)
    told = work(job.begin(1, 10, {"swap 1": 1.0}, 100.0), job, 100.0)
    percentages = [report.percentage for report in told]
    assert percentages == sorted(set(percentages))
    assert percentages[4] == pytest.approx(62.5 + 37.5 / 2, abs=2)
    assert told[4].eta_s == pytest.approx(5, abs=1)
    assert told[4].fps == pytest.approx(1, rel=0.1)
    job.finish(1)
    assert job.report(111.0).percentage == 99.99


def test_there_is_nothing_to_tell_before_a_bar_has_moved() -> None:
    job = JobProgress(10, 0, 0.0, 0.0)
    assert not job.moving
    segment = job.begin(0, 10, {}, 0.0)
    segment.feed("swap", 0, 10, 1.0)
    assert not job.moving
    segment.feed("swap", 1, 10, 1.0)
    assert job.moving
    assert JobProgress(10, 5, 0.0, 0.0).moving


@pytest.mark.parametrize(
    ("value", "maximum"), [(0, 10), (-1, 10), (11, 10), (1, 0), (1, -1), (math.nan, 1), (1, math.nan), (1, math.inf)]
)
def test_a_bar_that_makes_no_sense_changes_nothing(value: float, maximum: float) -> None:
    segment = SegmentProgress(10, {"swap 1": 1.0}, 0.0)
    segment.feed("swap", value, maximum, 1.0)
    assert not segment.begun
    assert 0 <= segment.fraction(2.0) <= 1


bars = st.tuples(
    st.just("bar"),
    st.integers(0, 2),
    st.sampled_from(ROLES),
    st.floats() | st.integers(-1, 12),
    st.floats() | st.integers(0, 12),
)
moves = st.tuples(st.sampled_from(["begin", "end", "abandon", "finish"]), st.integers(0, 2))
costs = st.dictionaries(
    st.sampled_from([f"{role} {number}" for role in ROLES for number in (1, 2, 11)]), st.floats(0, 1e6), max_size=4
)


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.floats(0, 1e5), bars | moves), max_size=40), costs, st.floats(0, 99.99), st.integers(0, 30)
)
def test_no_sequence_of_bars_makes_it_fall_or_leave_the_scale(
    steps: list[tuple[float, tuple[object, ...]]], expected: dict[str, float], floor: float, done_frames: int
) -> None:
    now_s, last = 0.0, floor
    job = JobProgress(30, done_frames, floor, now_s)
    segments = {}
    for wait_s, step in steps:
        now_s += wait_s
        match step:
            case "bar", int(number), str(role), (int() | float()) as value, (int() | float()) as maximum:
                if number in segments:
                    segments[number].feed(role, value, maximum, now_s)
            case "begin", int(number):
                segments[number] = job.begin(number, 10, expected, now_s)
            case "end", int(number) if number in segments:
                assert all(cost > 0 for cost in segments[number].end(now_s).values())
            case "abandon", int(number):
                job.abandon(number, now_s)
            case "finish", int(number):
                job.finish(number)
        report = job.report(now_s)
        assert last <= report.percentage <= 99.99
        assert 0 <= report.current <= 30
        assert report.eta_s is None or 0 <= report.eta_s < math.inf
        last = report.percentage


def test_a_prompt_that_waits_behind_another_does_not_count_as_moving() -> None:
    """As at every engine: one prompt runs, one is ready."""
    job = JobProgress(200, 0, 0.0, 0.0)
    first, _ready = (job.begin(number, 100, {"swap 1": 0.1}, 0.0) for number in range(2))
    for second in range(1, 10):
        first.feed("swap", second * 10, 100, float(second))
        report = job.report(float(second))
    assert report.percentage == pytest.approx(45, abs=3)
    assert report.eta_s == pytest.approx(11, rel=0.1)
