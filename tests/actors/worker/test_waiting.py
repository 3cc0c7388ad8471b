"""What went wrong in a worker is said in the driver in one line."""

import pytest

pytestmark = pytest.mark.ray


class Failing:
    """An actor that cannot start, or fails at work."""

    def __init__(self, reason=""):
        if reason:
            raise ValueError(reason)

    def work(self):
        raise KeyError("clip 7")


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("rollout.engine.max_model_len is too small", "ValueError: rollout.engine.max_model_len is too small"),
        ("two lines:\n  here they are", "ValueError: two lines: here they are"),
    ],
)
def test_of_a_worker_that_could_not_start_the_message_is_the_cause_not_the_traceback(ray_cluster, reason, said):
    from actors.worker.waiting import gather

    worker = ray_cluster.remote(Failing).options(num_cpus=0).remote(reason)
    with pytest.raises(RuntimeError) as caught:
        gather([worker.work.remote()], timeout_s=60, doing="start", failure=RuntimeError)
    assert str(caught.value) == f"could not start: a worker died: {said}"


def test_a_call_that_fails_names_its_error(ray_cluster):
    from actors.worker.waiting import gather

    worker = ray_cluster.remote(Failing).options(num_cpus=0).remote()
    with pytest.raises(RuntimeError, match=r"^could not work: KeyError: 'clip 7'$"):
        gather([worker.work.remote()], timeout_s=60, doing="work", failure=RuntimeError)
