"""What workers say of when they worked, without Ray: their classes are plain."""

import asyncio
import time

import pytest

from actors.learner import LearnerWorker
from actors.reward import RewardWorker
from actors.rollout import RolloutWorker
from actors.rollout_runner import RolloutRunner
from rewards.golden import golden_group
from rl.config.rewards import RewardTermConfig, ScoringConfig
from rl.trajectory import LearnerUpdate, Sampling


def test_a_rank_says_when_it_learned():
    class Learner:
        def learn(self, scored, version, step):
            time.sleep(0.01)
            return LearnerUpdate({}, (), 1)

    worker, before = LearnerWorker(3), time.time()
    worker._learner = Learner()
    (span,) = worker.update(step=0, version=0, recorded=0).spans
    assert (span.worker, span.work) == ("learner/3", "update")
    assert before <= span.start_s <= span.end_s - 0.01 <= time.time()


def test_a_reward_worker_says_when_it_scored():
    worker = RewardWorker(ScoringConfig())
    worker.load("format", RewardTermConfig(fn="output_format"))
    worker.location()
    before = time.time()
    _, _, (start_s, end_s) = worker.score(golden_group(), step=0)
    assert before <= start_s <= end_s <= time.time()


def test_an_engine_works_while_it_has_requests_whatever_else_its_groups_wait_for():
    class Engine:
        async def generate(self, request):
            await asyncio.sleep(0.02)
            if request is None:
                raise ValueError
            return "completion"

        def stats(self):
            return {}

        def device_memory_mib(self):
            return 0.0

    runner = RolloutRunner(Engine(), None, Sampling(1), group_size=1, seed=0)
    runner.take_faults = list
    worker = RolloutWorker(lambda: runner)

    async def groups():
        await asyncio.gather(runner._generate(object()), runner._generate(object()))
        await asyncio.sleep(0.03)  # a video is decoded
        with pytest.raises(ValueError):
            await runner._generate(None)
        return await worker.health(), await worker.health()

    health, again = asyncio.run(groups())
    (first, second), nothing = health.worked, again.worked
    assert second[0] - first[1] >= 0.03 and all(end - start >= 0.02 for start, end in (first, second))
    assert nothing == ()
