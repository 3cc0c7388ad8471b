"""Frames that are lost with their worker are decoded again; nothing else of a group changes, and nothing is sampled."""

import time
from functools import partial

import pytest

from rl.trajectory import StopReason, trajectory_tokens

pytestmark = pytest.mark.ray

EARLY = ("<think>Look.<span>2 - 4</span><fps>4</fps>", "Red.</think><answer>B</answer>")
LATE = (
    "<think>Look.<span>5 - 7</span><fps>4</fps>",
    "Blue.</think><answer>A</answer>",
)  # windows the reader may refuse


class Engine:
    """The scripted engine; a line per request."""

    def __init__(self, folder, processor):
        from envs.prompts import encode_reply
        from tests.fakes import ScriptedEngine

        end = (processor.ids.im_end,)
        script = [
            [encode_reply(look, processor), (*encode_reply(said, processor), *end)] for look, said in (LATE, EARLY)
        ]
        self._scripted, self._folder = ScriptedEngine(script), folder

    async def generate(self, request):
        with (self._folder / "requests").open("a") as lines:
            lines.write(f"{request.request_id}\n")
        return await self._scripted(request)

    def progress(self):
        return 0

    def failure(self):
        return ""


class Reader:
    """The real reader; it refuses windows after 4.5 s as many times as a file says."""

    def __init__(self, folder):
        from tests.envs.setting import make_reader

        self._reader, self._refusals = make_reader(), folder / "refusals"
        self.describe, self.take_faults = self._reader.describe, self._reader.take_faults
        self.progress = self._reader.progress

    def frames(self, path, times_s, size, *later):
        from envs.video.reader import VideoError

        if times_s[0] > 4.5 and (left := int(self._refusals.read_text())):
            self._refusals.write_text(str(left - 1))
            raise VideoError(path, "no answer within 60 s", "raise video.decode_timeout_s")
        return self._reader.frames(path, times_s, size, *later)


def make_rollout_runner(folder):
    from actors.rollout_runner import RolloutRunner
    from envs.initial_observation import CoarseFrameRules
    from envs.rollout import EpisodeContext
    from envs.tools.rules import RetrievalRules
    from rl.trajectory import Sampling
    from tests.envs.setting import make_processor

    processor = make_processor(folder)
    rules = CoarseFrameRules(fps=1.0, min_frames=4, max_frames=8, max_pixels=3136, max_visual_tokens=512)
    around = EpisodeContext(processor, Reader(folder), rules, RetrievalRules(max_calls=1, max_pixels=3136), 1024)
    return RolloutRunner(Engine(folder, processor), around, Sampling(max_new_tokens=200), group_size=2, seed=0)


@pytest.fixture
def pool(ray_cluster, tmp_path):
    from actors.rollout_group import RolloutWorkerGroup
    from actors.rollout_pool import RolloutPool

    slot = {"num_cpus": 0.1, "name": f"rollout/0/{time.monotonic_ns()}"}
    workers = RolloutWorkerGroup(partial(make_rollout_runner, tmp_path), 1, lambda index: slot)
    yield RolloutPool(workers, timeout_s=60.0)
    for one in workers.slots:
        ray_cluster.kill(one.worker.actor)


@pytest.fixture
def play(pool, tmp_path):
    from tests.envs.setting import make_task, write_clip

    task = make_task(write_clip(tmp_path / "clip.mp4"))

    def once(refusals=0):
        refuse(tmp_path, refusals)
        return pool.generate([task], step=3)[0]

    return once


def refuse(folder, times):
    (folder / "refusals").write_text(str(times))


def requests(folder):
    return len((folder / "requests").read_text().splitlines())


def pixels(held):
    from actors.frames import blocks_of
    from actors.groups import fetch_whole_groups

    return {d: block.pixels_THWC.tobytes() for d, block in blocks_of(fetch_whole_groups([held.references])).items()}


def without_pixels(held):
    from actors.groups import fetch_groups

    (group,) = fetch_groups([held.reference])
    return [(trajectory_tokens(t), t.stop_reason, t.note, t.answer_text) for t in group.trajectories_G]


def test_a_video_that_could_not_be_read_then_and_can_be_now_changes_nothing(pool, play, tmp_path):
    group = play(refusals=1)
    assert [t.stop_reason for t in group.trajectories_G] == [StopReason.VIDEO_ERROR, StopReason.ANSWERED]
    assert requests(tmp_path) == 1 + 2

    (restored,) = pool.restore([group])

    assert requests(tmp_path) == 1 + 2  # the first sibling gets its window now, and is not asked what it says to it
    assert without_pixels(restored) == without_pixels(group) and pixels(restored) == pixels(group)
    assert restored.pixels != group.pixels and restored.summary.digests == group.summary.digests
    assert [fault.kind for fault in pool.workers.take_faults()] == ["frames_lost"]


@pytest.mark.parametrize("refusals", [1, 2])
def test_a_video_that_cannot_be_read_for_a_while_is_asked_again(pool, play, tmp_path, refusals):
    group = play()
    refuse(tmp_path, refusals)
    (restored,) = pool.restore([group])
    assert requests(tmp_path) == 2 + 2
    assert len(pixels(group)) == 1 + 2  # the opening and two windows
    assert without_pixels(restored) == without_pixels(group) and pixels(restored) == pixels(group)


def test_only_frames_that_stay_lost_end_the_run(pool, play, tmp_path):
    from actors.rollout_group import RolloutError

    group = play()
    refuse(tmp_path, 3)
    with pytest.raises(RolloutError, match=r"clip\.mp4: the frames of task t are needed once more, .* in 3 attempts"):
        pool.restore([group])
    assert requests(tmp_path) == 2 + 2


def test_a_video_that_was_exchanged_for_another_is_not_taken_for_it(pool, play, tmp_path):
    from actors.rollout_group import RolloutError
    from tests.envs.setting import write_clip

    group = play()
    write_clip(tmp_path / "clip.mp4", fps=20)
    with pytest.raises(RolloutError, match="did not give the same again"):
        pool.restore([group])
