"""A fine-tuning run: its steps, evaluations and checkpoints, lost learners, stops, and going on.

Learners are one number here, that every step changes by what it is shown, and samples are names of examples; with
DeepSpeed: tests/test_finetune.py.
"""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from rich.console import Console

from rl.checkpoint.store import CheckpointStore
from rl.config.errors import ConfigError
from rl.config.file import load_config
from tests.envs.data.published import LLAVA, write_json
from tests.rl.learner.learner_files import save_learner

pytestmark = pytest.mark.ray  # Ray is imported; no cluster is needed

STEPS, SAVE_EVERY, EVAL_EVERY = 9, 2, 3


class Learners:
    """A weight that is no sum: the order of steps shows in it."""

    def __init__(self, lost_at=None, at_step=lambda step: None):
        self.weight, self.taken, self._lost_at, self._at_step = 1, 0, lost_at, at_step

    def supervise(self, samples):
        from actors.pending_write import LearnerError

        if self.taken == self._lost_at:
            raise LearnerError("could not take a supervised step: a worker died")
        self.taken += 1
        self.weight = (31 * self.weight + sum(samples)) % 1_000_003
        self._at_step(self.taken)
        return {"loss/nll": 1.0, "grad/norm": 1.0, "update/seconds": 0.0, "update/tokens": 100.0}

    def optimizer_digest(self):
        return str(self.weight)

    def losses(self, samples):
        return [(float(self.weight % 1000), 2) for _ in samples]

    def memory_mib(self):
        return 1.0

    def save(self, folder):
        save_learner(folder)
        (folder / "weight").write_text(str(self.weight))
        return SimpleNamespace(result=lambda timeout_s: [])

    def load(self, folder):
        self.weight = int((folder / "weight").read_text())

    def stop(self):
        pass


class Pool:
    """Its samples are the numbers of clips; one that is `broken` has none."""

    def __init__(self):
        self.broken = ()

    def start(self, examples):
        return [int(example.media[0].path.removesuffix(".mp4").rpartition("/")[2]) for example in examples]

    def collect(self, numbers):
        return ["broken" if number in self.broken else number for number in numbers]

    def stop(self):
        pass


class Feed:
    skipped, digest = 0, ""

    def __init__(self, pool, examples):
        self._numbers = pool.start(examples)

    def samples(self, batches):
        for indices in batches:
            self.digest = str(indices)
            yield [self._numbers[index] for index in indices]


@pytest.fixture
def world(tmp_path):
    """Twelve clips, one row each; nothing opens them."""
    (tmp_path / "clips").mkdir()
    for number in range(12):
        (tmp_path / "clips" / f"{number}.mp4").write_bytes(b"-")
    return write_json(tmp_path / "rows.json", [LLAVA | {"video": f"clips/{number}.mp4"} for number in range(12)])


@pytest.fixture
def run(monkeypatch, tmp_path, world):
    """Runs with learners that are lost at the given steps of their own, one after another; returns those."""
    from rl.run import finetune, supervised

    monkeypatch.setattr(supervised, "SampleFeed", Feed)
    monkeypatch.setattr(supervised, "spawn_samples", lambda *_, **__: run.pool)
    monkeypatch.setattr(finetune, "cluster", lambda *_: nullcontext())
    monkeypatch.setattr(finetune, "prepare_policy", lambda *_: tmp_path)
    monkeypatch.setattr(finetune, "require_no_open_thought", lambda *_: None)
    monkeypatch.setattr(finetune, "with_recomputation", lambda config, *_: config)

    def run(*overrides, lost_at=(), at_step=lambda step: None):
        config = load_config(
            [],
            [
                *(f"finetune.sources.clips.path={world}", "finetune.sources.clips.held_out=2", "finetune.batch_size=4"),
                *(f"output_dir={tmp_path}/runs", f"cache_dir={tmp_path}/cache", "finetune.max_tokens=64"),
                *(f"trainer.steps={STEPS}", f"trainer.save_every={SAVE_EVERY}", f"trainer.eval_every={EVAL_EVERY}"),
                *("trainer.keep_checkpoints=9", "logging.tensorboard=false", *overrides),
            ],
        )
        spawned = [Learners(step, at_step) for step in (*lost_at, None)]
        waiting = list(spawned)
        monkeypatch.setattr(supervised, "spawn_learners", lambda *_, **__: waiting.pop(0))
        finetune.run_finetuning(config, Console(quiet=True))
        return spawned

    run.pool, run.folder = Pool(), tmp_path / "runs" / "run"
    return run


def lines(run):
    kept = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    return {(line["step"], "held_out/nll" in line): line for line in kept}


def weights(run):
    folders = {int(folder.name[-8:]): folder for folder in (run.folder / "checkpoints").glob("step_*")}
    return {step: (folder / "weight").read_text() for step, folder in folders.items()}


def test_it_is_evaluated_before_on_the_way_and_after_and_saved_when_due_best_or_last(run):
    (learners,) = run()
    assert sorted(lines(run)) == sorted(
        [(step, False) for step in range(1, STEPS + 1)] + [(step, True) for step in (0, 3, 6, 9)]
    )
    losses = {step: line["held_out/nll"] for (step, evaluated), line in lines(run).items() if evaluated}
    best = min((3, 6, 9), key=lambda step: losses[step])
    assert {2, 4, 6, 8, 9} <= set(weights(run)) and weights(run)[STEPS] == str(learners.weight)
    assert CheckpointStore(run.folder, best_metric="-held_out/nll").best_score()[0] == best


def test_learners_that_are_lost_are_rebuilt_and_the_run_is_that_of_a_straight_one(run, tmp_path):
    (straight,) = run("name=straight")
    spawned = run(lost_at=(5, 3))
    assert [one.taken for one in spawned] == [5, 3, 3]
    faults = [json.loads(line) for line in (run.folder / "faults.jsonl").read_text().splitlines()]
    assert [fault["action"][-6:] for fault in faults] == ["step 4", "step 6"]
    assert {fault["kind"] for fault in faults} == {"learner_lost"}
    assert spawned[-1].weight == straight.weight
    assert len(lines(run)) == STEPS + 4
    assert fingerprints(run.folder) == fingerprints(run.folder.with_name("straight"))


def fingerprints(folder):
    kept = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in line if name.startswith("state/")} for line in kept]


def test_every_step_has_its_fingerprints_and_the_optimizers_where_they_are_asked_for(run):
    run("learner.digest_every=2")
    steps = [prints for prints in fingerprints(run.folder) if prints]
    assert [list(prints) for prints in steps[:2]] == [
        ["state/samples", "state/loss", "state/hash"],
        ["state/samples", "state/loss", "state/optimizer", "state/hash"],
    ]
    assert len({prints["state/hash"] for prints in steps}) == len(steps) == STEPS


def test_a_stopped_run_is_saved_where_it_was_and_goes_on_to_the_same_end(run, monkeypatch):
    import os
    import signal

    from rl.run.stop_signals import StopRequested

    (straight,) = run("name=straight")
    with pytest.raises(StopRequested):
        run(at_step=lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 5 else None)
    assert max(weights(run)) == 5 and max(step for step, _ in lines(run)) == 5
    (learners,) = run()
    assert learners.taken == STEPS - 5 and learners.weight == straight.weight
    assert len(lines(run)) == STEPS + 4


def test_a_run_that_is_done_takes_no_step_and_one_that_is_made_longer_goes_on(run):
    run()
    assert run()[0].taken == 0
    (longer,) = run(f"trainer.steps={STEPS + 2}")
    assert longer.taken == 2


def test_held_out_examples_that_cannot_be_used_are_counted_and_left_out(run):
    run.pool.broken = (0,)  # the first row is held out
    run()
    assert {(line["held_out/tasks"], line["held_out/failed"]) for (_, ev), line in lines(run).items() if ev} == {(2, 1)}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("finetune.batch_size=3", "finetune.batch_size: 4 -> 3"),
        ("finetune.sources.clips.held_out=3", "finetune.sources.clips.held_out: 2 -> 3"),
        ("finetune.sources.clips.format=pixmo", "no usable row.*format=llava|finetune.sources.clips.format"),
    ],
)
def test_what_makes_it_another_run_is_refused(run, override, said):
    run()
    with pytest.raises(ConfigError, match=said):
        run(override)


def test_without_a_source_it_says_which_key_names_one(tmp_path):
    from rl.run.finetune import run_finetuning

    config = load_config([], ["rewards.answer.fn=answer", f"output_dir={tmp_path}"])
    with pytest.raises(ConfigError, match=r"finetune.sources is empty: name what is learned from, e.g. finetune"):
        run_finetuning(config, Console(quiet=True))


def test_train_refuses_what_only_fine_tunes(world, tmp_path):
    from rl.run.train import run_training

    config = load_config([], [f"finetune.sources.clips.path={world}", f"output_dir={tmp_path}"])
    with pytest.raises(ConfigError, match=r"rewards: at least one term .* `dynframe finetune`"):
        run_training(config, Console(quiet=True))
