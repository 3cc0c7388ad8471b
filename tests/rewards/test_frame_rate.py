"""A frame rate is scored by its distance from the annotated one."""

from dataclasses import replace

import pytest

from rewards.frame_rate import frame_rate


@pytest.mark.parametrize(("fps", "reward"), [(4, 1.0), (5, 0.8), (3, 0.8), (1.5, 0.5), (9, 0.0), (30, 0.0)])
def test_a_frame_per_second_off_costs_a_fifth(task, call, fps, reward):
    assert frame_rate(task(fps=4.0), call(0, 1, fps)) == pytest.approx(reward)


def test_the_clamped_rate_counts(task, call):
    clamped_to_native = replace(call(0, 1, 12.0), asked_fps=100.0, clamped=("fps",))

    assert frame_rate(task(fps=12.0), clamped_to_native) == 1.0


def test_the_tolerance_is_an_argument(task, call):
    assert frame_rate(task(fps=4.0), call(0, 1, 5), tolerance_fps=2.0) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="tolerance_fps"):
        frame_rate(task(), call(0, 1), tolerance_fps=0.0)


def test_a_task_without_a_rate_has_no_score(task, call):
    assert frame_rate(task(fps=None), call(0, 1)) is None
