"""A worker that has work and makes no progress has stalled; time in which the driver was blocked does not count."""

import pytest

pytestmark = pytest.mark.ray  # Ray is imported; no cluster is needed


@pytest.fixture
def detector():
    from actors.worker.stall_detector import StallDetector

    now = [100.0]
    detector = StallDetector(10.0, clock=lambda: now[0])
    detector.now = now
    return detector


def test_progress_that_does_not_change_within_the_timeout_is_a_stall(detector):
    detector.update(1)
    detector.now[0] += 10.0
    assert not detector.is_stalled
    detector.update(1)
    detector.now[0] += 0.1
    assert detector.is_stalled


def test_progress_and_reset_restart_the_timeout(detector):
    for renew in (lambda: detector.update(5), detector.reset):
        detector.now[0] += 11.0
        renew()
        assert not detector.is_stalled


def test_the_timeout_is_extended_by_the_time_the_driver_was_blocked_and_no_more(detector):
    detector.now[0] += 300.0
    detector.extend(295.0)
    assert not detector.is_stalled
    detector.now[0] += 5.1  # 5 seconds before, 5.1 after
    assert detector.is_stalled
    detector.extend(1e6)  # not beyond now
    detector.now[0] += 10.1
    assert detector.is_stalled
