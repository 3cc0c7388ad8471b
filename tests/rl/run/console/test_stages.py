"""What a command says while it works: without a terminal plain lines with a time, with one bars."""

import errno
import io
import logging
import re
import threading

import pytest
from rich.console import Console

from rl.run.console.stages import REPORT_S, counted_stage, say, spell_rate, spell_seconds, stage
from rl.run.console.step_line import Pace, evaluation_line, share, step_line

TIME = r"\d\d:\d\d:\d\d "


class Seconds:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Seconds()


@pytest.fixture
def plain():
    return Console(file=io.StringIO(), width=80, soft_wrap=True)


def lines(console):
    return console.file.getvalue().splitlines()


def test_a_stage_says_when_it_starts_and_how_long_it_took(plain, clock):
    with stage(plain, "starting 2 engines", clock=clock):
        clock.now = 14.2
    first, last = lines(plain)
    assert re.fullmatch(TIME + "starting 2 engines …", first)
    assert re.fullmatch(TIME + "starting 2 engines: done in 14 s", last)


def test_a_stage_that_fails_is_not_said_to_be_done(plain):
    with pytest.raises(ValueError), stage(plain, "starting Ray"):
        raise ValueError
    assert len(lines(plain)) == 1


def test_without_a_terminal_a_long_stage_has_a_line_now_and_then_and_no_bar(plain, clock):
    with counted_stage(plain, "indexing 40 videos", 40, clock=clock) as indexing:
        for _ in range(20):
            clock.now += REPORT_S / 10
            indexing.advance()
    said = [line[9:] for line in lines(plain)]
    assert said == [
        "indexing 40 videos …",
        "indexing 40 videos: 10 of 40, 20/min, 1m30s left",
        "indexing 40 videos: 20 of 40, 20/min, 1m00s left",
        "indexing 40 videos: done in 1m00s",
    ]


def test_a_stage_says_that_it_lives_while_one_part_takes_long(plain, clock):
    with counted_stage(plain, "decoding 3 clips", 3, clock=clock) as decoding:
        for now_s in (REPORT_S / 2, REPORT_S, 3 * REPORT_S):  # as its thread does
            clock.now = now_s
            decoding.report()
    assert [line[9:] for line in lines(plain)][1:-1] == [
        "decoding 3 clips: 0 of 3, 30 s so far",
        "decoding 3 clips: 0 of 3, 1m30s so far",
    ]


def test_a_thread_reports_where_nothing_else_does(plain, clock, monkeypatch):
    monkeypatch.setattr("rl.run.console.stages.REPORT_S", 0.02)
    reported, before = threading.Event(), threading.active_count()
    monkeypatch.setattr("rl.run.console.stages.Stage.report", lambda self: reported.set())
    with counted_stage(plain, "decoding 3 clips", 3, clock=clock):
        assert reported.wait(20)
    assert threading.active_count() <= before  # it ends with its stage


@pytest.mark.parametrize(
    ("per_s", "spelt"),
    [(304.2, "304/s"), (9.96, "10/s"), (2.5, "2.5/s"), (0.5, "30/min"), (0.04, "2.4/min"), (0.002, "7.2/h")],
)
def test_rates_are_spelt_for_people(per_s, spelt):
    assert spell_rate(per_s) == spelt


def test_what_was_done_before_does_not_count_as_speed(plain, clock):
    with counted_stage(plain, "evaluating", 100, done=50, clock=clock) as evaluating:
        clock.now = REPORT_S
        evaluating.advance()
    assert lines(plain)[1].endswith("evaluating: 51 of 100, 2.0/min, 24m30s left")


def test_a_terminal_gets_a_bar():
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    with counted_stage(console, "indexing 40 videos", 40) as indexing:
        indexing.advance()
    assert "━" in console.file.getvalue() and "1/40" in console.file.getvalue()


def test_lines_are_not_wrapped_and_nothing_in_them_is_markup(plain, caplog):
    text = f"passed over: [bold]{'x' * 200}[/]"
    with caplog.at_level(logging.INFO):
        say(plain, text)
    assert lines(plain)[0].endswith(text) and len(lines(plain)) == 1
    assert caplog.messages == [text]  # log files have it, too


class FullDisk(io.StringIO):
    def flush(self):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_output_on_a_full_disk_costs_lines_and_nothing_else(caplog):
    with caplog.at_level(logging.INFO), stage(Console(file=FullDisk(), soft_wrap=True), "starting Ray"):
        pass
    assert len(caplog.messages) == 2  # log files have them


@pytest.mark.parametrize(
    ("seconds", "spelt"),
    [
        (0.04, "0.0 s"),
        (1.24, "1.2 s"),
        (9.96, "10 s"),
        (59.6, "1m00s"),
        (70, "1m10s"),
        (3600, "1h00m"),
        (7500, "2h05m"),
    ],
)
def test_durations_are_spelt_for_people(seconds, spelt):
    assert spell_seconds(seconds) == spelt


NUMBERS = {
    "reward/sampling": 0.81,
    "reward/reasoning": 0.9,
    "reward/term/answer": 0.88,
    "reward/failed": 0.0,
    "rollout/granted_calls": 1.0,
    "rollout/malformed_calls": 0.05,
    "rollout/refused_calls": float("nan"),  # no call at all
    "rollout/trajectories": 64.0,
    "rollout/tokens_per_s": 5312.4,
    "seconds/step": 1.2,
}


def test_a_step_is_one_line():
    line = step_line(42, 100, NUMBERS, answer_terms=["answer"], eta_s=70.0)
    assert line == (
        "step 42/100  reward: retrieval .81 answer .90  accuracy .88  granted calls 1.00  1.2 s  5,312 tok/s  ETA 1m10s"
    )


def test_a_step_says_how_many_trajectories_were_masked_and_leaves_out_what_it_does_not_know():
    numbers = NUMBERS | {"reward/failed": 3.0, "reward/sampling": float("nan")}
    assert step_line(100, 100, numbers, answer_terms=[], eta_s=0.0) == (
        "step 100/100  reward: retrieval - answer .90  granted calls 1.00  masked 3 of 64  1.2 s  5,312 tok/s"
    )


def test_calls_that_are_not_granted_are_no_looks_and_named_where_they_are_many():
    numbers = NUMBERS | {"rollout/granted_calls": 0.0, "rollout/malformed_calls": 1.0, "rollout/refused_calls": 0.0}
    line = step_line(1, 1, numbers, answer_terms=[], eta_s=0.0)
    assert "granted calls .00  malformed calls 1.00  1.2 s" in line


def test_an_evaluation_is_one_line():
    names = ("reward_sampling", "reward_reasoning", "accuracy", "granted_calls")
    numbers = {f"held_out/{name}": 0.5 for name in names} | {"held_out/frames": 9.398}
    assert evaluation_line(25, numbers) == (
        "held-out tasks after step 25  reward: retrieval .50 answer .50  accuracy .50  granted calls .50  frames 9.4"
    )


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, ".00"), (0.806, ".81"), (1.0, "1.00"), (-0.5, "-.50"), (10.25, "10.25")]
)
def test_shares_have_two_digits(value, text):
    assert share(value) == text


def test_the_pace_is_that_of_the_last_steps(clock):
    pace = Pace(clock)
    clock.now = 1000.0  # an evaluation before the first step
    assert pace.step_done(seconds=100.0) == pytest.approx(100.0)
    for _ in range(40):
        clock.now += 2.0
        latest = pace.step_done(seconds=1.0)  # and a save of one second after each
    assert latest == pytest.approx(2.0)
