"""Every node is asked by a task that runs there; one that fails or is silent is named, and nobody waits for it."""

import time
from dataclasses import replace

import pytest

from rl.config.errors import ConfigError
from rl.config.file import load_config
from tests.calibration import within
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.ray


def own_node():
    """Runs on a node."""
    import ray

    return ray.get_runtime_context().get_node_id()


def fail():
    """Runs on a node."""
    raise OSError("Stale file handle")


def hang(marker):
    """Runs on a node."""
    marker.touch()
    time.sleep(600)


def test_a_question_is_answered_on_the_node_that_is_asked(ray_cluster):
    from actors.cluster.nodes import alive_nodes, ask_nodes

    (node,) = alive_nodes()
    assert node.is_drivers and node.has_room_for({"CPU": 8}) and not node.has_room_for({"CPU": 1, "GPU": 1})
    assert ask_nodes(own_node, [(node, ())], within(60)) == [node.node_id]


def test_a_node_that_fails_or_is_silent_gives_no_answer_and_the_others_do(ray_cluster, tmp_path):
    from actors.cluster.nodes import NoAnswer, alive_nodes, ask_nodes

    (node,) = alive_nodes()
    gone = replace(node, node_id="0" * 56, address="10.0.0.9")
    ask_nodes(own_node, [(node, ())], within(60))  # a worker process is there
    assert ask_nodes(fail, [(node, ())], within(60)) == [NoAnswer("OSError: Stale file handle")]
    (unknown,) = ask_nodes(own_node, [(gone, ())], within(60))
    assert isinstance(unknown, NoAnswer)
    limit_s, started = within(3), time.monotonic()
    (silent,) = ask_nodes(hang, [(node, (tmp_path / "hangs",))], limit_s)
    assert silent == NoAnswer(f"no answer within {limit_s:.0f} s") and (tmp_path / "hangs").exists()
    assert time.monotonic() - started < limit_s + within(30)


def test_another_node_that_has_everything_lets_the_run_begin_and_one_that_lacks_it_does_not(
    ray_cluster, tmp_path, monkeypatch
):
    from actors.cluster import nodes
    from actors.cluster.placement import Demand
    from rl.run.preflight import nodes as preflight
    from rl.run.preflight.nodes import require_nodes

    for folder in ("clips", "policy", "runs"):
        (tmp_path / folder).mkdir()
    own = ["data.train.format=dm_rl", f"data.train.path={tmp_path}/clips/a.jsonl", "trainer.eval_tasks=0"]
    own += ["cold_start.enabled=false", f"output_dir={tmp_path}/runs", f"cache_dir={tmp_path}/cache"]
    config = load_config([REPOSITORY / "configs" / "quickstart.yaml"], own)
    monkeypatch.setattr(preflight, "ANSWER_S", within(preflight.ANSWER_S))
    (drivers,) = nodes.alive_nodes()
    other = replace(drivers, is_drivers=False)  # asked by a task, as any other node
    monkeypatch.setattr(nodes, "alive_nodes", lambda: [drivers, other])
    require_nodes(config, tmp_path / "policy", Demand(2, 1, 2))
    assert list((tmp_path / "runs").iterdir()) == []
    (tmp_path / "clips").rmdir()
    with pytest.raises(ConfigError) as raised:
        require_nodes(config, tmp_path / "policy", Demand(2, 1, 2))
    assert str(raised.value).startswith("1 of 2 nodes cannot work for the run ")
    said = f"node {other}: data.train.video_root: {tmp_path}/clips is not there: set data.train.video_root to a path"
    assert said in str(raised.value)
    unchecked = replace(config, placement=replace(config.placement, check_nodes=False))
    require_nodes(unchecked, tmp_path / "policy", Demand(2, 1, 2))
