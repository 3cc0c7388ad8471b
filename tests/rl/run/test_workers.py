"""How the workers of a run are started: on which threads, and in which order where they share GPUs."""

import json
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from rl.config.file import load_config
from rl.config.trainer import PlacementConfig

pytestmark = pytest.mark.ray  # Ray is imported; no cluster is needed

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"
SHARED = ("placement.rollout_gpus=0.5", "placement.learner_gpus=0.5", "rollout.engine.gpu_memory_utilization=0.3")


@pytest.mark.parametrize(
    ("placement", "threads"),
    [
        ({"learner_gpus": 1.0, "learner_cpus": 8.0}, "8"),  # an offloaded optimizer computes on them
        ({"learner_gpus": 0.5, "learner_cpus": 0.5}, "1"),
        ({"learner_gpus": 0.0, "learner_cpus": 8.0}, "1"),
    ],
)
def test_a_rank_beside_a_gpu_has_a_thread_for_each_of_its_cpus(placement, threads):
    from rl.run.workers import learner_environment

    environment = learner_environment(PlacementConfig(**placement))
    assert environment["OMP_NUM_THREADS"] == threads
    assert ("DS_ACCELERATOR" in environment) == (not placement["learner_gpus"])


def test_an_engine_has_one_thread_everywhere():
    """vLLM keeps what Ray sets: a thread for each CPU of the worker, which spin between its steps."""
    from rl.policy.vllm.plugin import engine_environment

    assert {engine_environment(device)["OMP_NUM_THREADS"] for device in ("cpu", "cuda")} == {"1"}


@pytest.fixture
def engines_start(monkeypatch):
    """What happens, in order, where engines start around a cold start."""
    from rl.run import workers

    def start(*overrides):
        events = []
        group = SimpleNamespace(wait_ready=lambda timeout_s: events.append("engines are ready"))
        monkeypatch.setattr(workers, "spawn_rollouts", lambda *_: SimpleNamespace(workers=group))
        with workers.starting_rollouts(load_config([QUICKSTART], list(overrides)), Path(), None, Console(quiet=True)):
            events.append("cold start")
        return events

    return start


def test_engines_load_during_the_cold_start_but_on_its_gpus_before_it(engines_start):
    assert engines_start() == ["cold start", "engines are ready"]
    assert engines_start("placement.rollout_gpus=1", "placement.learner_gpus=1")[0] == "cold start"
    assert engines_start(*SHARED)[:2] == ["engines are ready", "cold start"]


@pytest.mark.parametrize(
    ("overrides", "ranks"),
    [
        ([], 2),  # no GPUs: the learners' CPUs
        (["placement.rollout_gpus=1", "placement.learner_gpus=1"], 4),
        (["placement.rollout_gpus=2", "placement.learner_gpus=1", "rollout.engine.tensor_parallel_size=2"], 6),
        (["placement.rollout_gpus=1", "placement.learner_gpus=1", "cold_start.batch_size=3"], 3),
        ([*SHARED], 2),  # a rank on each GPU anyway
    ],
)
def test_the_cold_start_has_a_rank_on_every_gpu_of_the_run(overrides, ranks):
    from rl.run.workers import cold_start_ranks

    assert cold_start_ranks(load_config([QUICKSTART], overrides)) == ranks


@pytest.mark.parametrize(("gpus", "turns"), [("0.5", ["engine", "learner"]), ("1", [])])
def test_engines_and_learners_start_in_turn_where_they_share_a_gpu(gpus, turns, monkeypatch):
    from rl.run import workers

    held = []

    @contextmanager
    def turn(ids, timeout_s):
        held.append([*ids])
        yield
        held.append("left")

    config = load_config([QUICKSTART], [*SHARED, f"placement.rollout_gpus={gpus}", f"placement.learner_gpus={gpus}"])
    monkeypatch.setattr(workers, "gpu_turn", turn)
    monkeypatch.setattr(workers.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(workers.ray, "get_gpu_ids", lambda: ["3"])
    for fraction in (config.placement.rollout_gpus, config.placement.learner_gpus):
        with workers._turn(config, fraction):
            pass
    assert held == ([["3"], "left"] * 2 if turns else [[], "left"] * 2)


def test_memory_says_how_many_trajectories_an_engine_decodes_at_once_where_nobody_else_does(tmp_path):
    from rl.policy.sizes import BY_NAME
    from rl.policy.stock.hub_files import model_config
    from rl.run.workers import with_engine_batch

    (tmp_path / "config.json").write_text(json.dumps(model_config(BY_NAME["qwen2_5_vl", "3b"])))
    path = QUICKSTART.with_name("sd_grpo_qwen2_5_vl_3b.yaml")
    counts = [
        with_engine_batch(load_config([path], [*overrides, "placement.gpu=a100-80gb"]), tmp_path).rollout.engine
        for overrides in ([], ["rollout.engine.max_num_seqs=5"])
    ]

    assert [engine.max_num_seqs for engine in counts] == [76, 5]


@pytest.mark.parametrize(
    ("overrides", "given_up"),
    [
        ((), None),
        (("placement.share_gpus=turns",), (True, False)),  # no GPU is known: everything is given up
        (
            (*SHARED, "placement.share_gpus=turns", "placement.gpu=h100-80gb", "placement.node_memory_gib=64"),
            (False, False),
        ),
    ],
)
def test_what_is_given_up_on_a_turn_is_what_the_memory_plan_says(monkeypatch, overrides, given_up):
    from rl.policy.structure import tiny_structure
    from rl.run import workers

    monkeypatch.setattr(workers, "structure_of", lambda _, policy: tiny_structure(policy))
    found = workers.planned_turns(load_config([QUICKSTART], list(overrides)), Path())
    assert (found and (found.states, found.weights)) == given_up


@pytest.mark.parametrize(
    ("folder", "found"), [("working_dir_files/_ray_pkg_1", "my.py:mine"), ("here", "{}/my.py:mine")]
)
def test_in_a_job_users_code_is_found_in_the_copy_of_each_node(tmp_path, monkeypatch, folder, found):
    """Ray keeps it below a folder of its own on each node, which need not have the same path everywhere."""
    from rl.run import workers

    copy = tmp_path / folder
    copy.mkdir(parents=True)
    (copy / "my.py").write_text("def mine(task, trajectory):\n    return 1.0\n")
    monkeypatch.chdir(copy)
    monkeypatch.setattr(workers, "RewardPool", lambda terms, *_: terms["mine"].fn)
    config = load_config([QUICKSTART], ["rewards.mine.fn=my.py:mine", "rewards.mine.segment=reasoning"])
    spawned = workers.spawn_rewards(config, None, SimpleNamespace(restore=lambda: None))
    assert spawned == found.format(copy)
