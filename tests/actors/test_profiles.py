"""Profiles of several workers: each under its name, and one that fails or is lost costs its own only."""

from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.ray


class Worker:
    def __init__(self, fails):
        self.fails = fails

    def begin_profile(self):
        if self.fails == "to begin":
            raise RuntimeError("another profiler is at work")

    def write_profile(self, path):
        if self.fails == "to write":
            raise OSError(28, "No space left on device", path)
        return [path.rpartition("/")[2]]


@pytest.fixture
def slots(ray_cluster):
    """Five slots: two whose worker is well, of whom one is replaced in between, two that fail, one not yet started."""

    def slot(name, fails="", location="here"):
        actor = ray_cluster.remote(Worker).options(num_cpus=0).remote(fails)
        return SimpleNamespace(name=name, worker=SimpleNamespace(actor=actor, location=location))

    return [
        *(slot("rollout/0"), slot("rollout/1", "to begin"), slot("rollout/2", "to write"), slot("rollout/3")),
        slot("rollout/4", location=None),
    ]


def test_what_cannot_be_profiled_is_said_and_ends_nothing(slots, tmp_path, caplog):
    from actors.profiles import EngineProfiles

    profiles = EngineProfiles(SimpleNamespace(slots=slots))
    profiles.begin_profiles()
    slots[3].worker = slots[0].worker  # another than the one that began
    assert profiles.write_profiles(tmp_path) == ["rollout_0.json.gz"]
    said = [record.message for record in caplog.records if "has no profile" in record.message]
    assert len(said) == 2
    assert "rollout/1 has no profile of this step: RuntimeError: another profiler is at work" in said[0]
    assert "rollout/2 has no profile of this step" in said[1] and "No space left on device" in said[1]
    assert profiles.write_profiles(tmp_path) == []  # nothing was begun
