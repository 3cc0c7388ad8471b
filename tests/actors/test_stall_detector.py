"""Whoever has work and does not get on is noticed; time in which nobody looked does not count."""

import pytest

pytestmark = pytest.mark.ray  # Ray is imported; no cluster is needed


@pytest.fixture
def watch():
    from actors.stall_detector import StallDetector

    now = [100.0]
    watch = StallDetector(10.0, clock=lambda: now[0])
    watch.now = now
    return watch


def test_what_does_not_change_for_longer_than_patience_lasts_is_stalled(watch):
    watch.update(1)
    watch.now[0] += 10.0
    assert not watch.is_stalled
    watch.update(1)
    watch.now[0] += 0.1
    assert watch.is_stalled


def test_progress_and_rest_begin_patience_anew(watch):
    for renew in (lambda: watch.update(5), watch.reset):
        watch.now[0] += 11.0
        renew()
        assert not watch.is_stalled


def test_time_in_which_nobody_looked_is_excused_and_no_more(watch):
    watch.now[0] += 300.0
    watch.extend(295.0)
    assert not watch.is_stalled
    watch.now[0] += 5.1  # 5 seconds before, 5.1 after
    assert watch.is_stalled
    watch.extend(1e6)  # patience never reaches into the future
    watch.now[0] += 10.1
    assert watch.is_stalled
