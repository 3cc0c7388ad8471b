"""Engines told to sleep and to wake, all of them: whoever does not is replaced, and weights dropped are missed."""

from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.ray


class Engine:
    """Writes down what it is told; one that is broken does not do it."""

    def __init__(self, broken):
        self._broken, self.told = broken, []

    def sleep(self, drops_weights):
        self._told("sleep", drops_weights)

    def wake(self, memory):
        self._told("wake", memory)

    def diary(self):
        return self.told

    def _told(self, *what):
        if self._broken:
            raise RuntimeError("out of memory")
        self.told.append(what)


class Workers:
    def __init__(self, ray, broken):
        actor = ray.remote(num_cpus=0)(Engine)
        self.slots = [
            SimpleNamespace(name=f"rollout/{i}", worker=SimpleNamespace(location=True, actor=actor.remote(i in broken)))
            for i in range(2)
        ]
        self.replaced, self.forgotten = {}, 0

    def replace_worker(self, slot, kind, cause, error):
        self.replaced[slot.name] = kind, cause

    def forget_weights(self):
        self.forgotten += 1


@pytest.mark.parametrize("drops", [False, True])
def test_every_engine_is_told_and_only_weights_that_were_dropped_are_forgotten(ray_cluster, drops):
    from actors.sleeping_engines import EngineMemory, SleepingEngines

    workers = Workers(ray_cluster, broken=())
    engines = SleepingEngines(workers, drops_weights=drops)
    engines.sleep()
    engines.wake(EngineMemory.WEIGHTS)
    diaries = ray_cluster.get([slot.worker.actor.diary.remote() for slot in workers.slots])
    assert diaries == [[("sleep", drops), ("wake", "weights")]] * 2
    assert workers.forgotten == drops and workers.replaced == {}


def test_an_engine_that_does_not_sleep_is_replaced(ray_cluster):
    from actors.sleeping_engines import SleepingEngines

    workers = Workers(ray_cluster, broken=(1,))
    SleepingEngines(workers, drops_weights=False).sleep()
    assert workers.replaced == {"rollout/1": ("worker_died", "told to sleep: RuntimeError: out of memory")}
