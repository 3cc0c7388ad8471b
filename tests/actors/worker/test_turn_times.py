"""When a worker had given memory up."""

from actors.worker.turn_times import TurnTimes


def test_one_thing_at_a_time_is_given_up_and_told_once_it_is_taken_back():
    times = TurnTimes(clock=iter([1.0, 2.5, 3.0, 4.0]).__next__)
    times.gives_up("everything")
    assert times.given_up == "everything" and times.take() == []
    times.gives_up("all but weights")
    times.gives_up("")
    times.gives_up("everything")
    assert times.take() == [("everything", 1.0, 2.5), ("all but weights", 2.5, 3.0)]
    assert times.take() == []
