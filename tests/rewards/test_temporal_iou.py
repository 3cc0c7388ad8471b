"""A window is scored by its overlap with the evidence."""

from dataclasses import replace

import pytest

from rewards.temporal_iou import scaled_iou, temporal_iou
from rl.trajectory import TimeSpan


def test_the_granted_window_counts_not_what_lay_outside_the_clip(task, call):
    beyond_the_end = replace(call(3, 6), asked=TimeSpan(3, 60), clamped=("end",))

    assert temporal_iou(task(), beyond_the_end) == 1.0


def test_a_task_without_evidence_has_no_iou(task, call):
    assert temporal_iou(task(evidence=None), call(0, 1)) is None


@pytest.mark.parametrize(
    ("evidence_s", "alpha", "beta"),
    [(4.9, 0.6, 0.95), (5.0, 0.5, 0.9), (14.9, 0.5, 0.9), (15.0, 0.4, 0.85), (30.0, 0.3, 0.8), (500.0, 0.3, 0.8)],
)
def test_difficulty_by_length_of_the_evidence(evidence_s, alpha, beta):
    assert scaled_iou(alpha, evidence_s) == 0.0
    assert scaled_iou(beta, evidence_s) == 1.0
    assert scaled_iou((alpha + beta) / 2, evidence_s) == pytest.approx(0.5)
    assert scaled_iou(alpha - 0.1, evidence_s) == 0.0


def test_difficulty_is_off_unless_asked_for(task, call):
    assert temporal_iou(task(), call(2, 5)) == pytest.approx(0.5)
    assert temporal_iou(task(), call(2, 5), scaled=True) == 0.0  # 3 s of evidence: below alpha = 0.6


def test_of_several_windows_the_best_counts(task, call):
    several = replace(task(evidence=(3.0, 6.0)), further_evidence=(TimeSpan(20.0, 24.0), TimeSpan(40.0, 60.0)))

    assert temporal_iou(several, call(20, 24)) == 1.0
    assert temporal_iou(several, call(2, 5)) == pytest.approx(0.5)
    assert temporal_iou(several, call(40, 55), scaled=True) == pytest.approx((0.75 - 0.4) / 0.45)  # by its own length
