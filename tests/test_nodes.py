"""Several nodes, each a machine of its own: address, mounts, shared memory, Ray's folders.

What one lacks is found before anything is reserved.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rl.fault_injection.launch import last_step
from rl.fault_injection.machine_cluster import MachineCluster
from rl.fault_injection.machines import Machines, why_not
from rl.fault_injection.targets import role_of
from rl.tracking.faults import read_faults
from tests.calibration import within
from tests.proof_run import QUICKSTART, SMALL, STEPS, violations

pytestmark = [pytest.mark.ray, pytest.mark.skipif(bool(why_not()), reason=f"no machines here: {why_not()}")]

REPOSITORY = Path(__file__).parents[1]
ASK_NODES = """
import json, sys
from dataclasses import replace
from pathlib import Path
import ray
from actors.cluster.nodes import alive_nodes
from actors.cluster.placement import Demand
from rl.config.errors import ConfigError
from rl.config.file import load_config
from rl.run.preflight.nodes import require_nodes

home = Path(sys.argv[1])
ray.init(log_to_driver=False)
own = ["data.train.format=dm_rl", f"data.train.path={home}/clips/a.jsonl", "data.held_out.format=dm_rl"]
own += [f"data.held_out.path={home}/clips/a.jsonl", "cold_start.enabled=false", f"output_dir={home}/runs"]
config = load_config(["configs/quickstart.yaml"], [*own, f"cache_dir={home}/cache"])
told = {"nodes": [node.address for node in alive_nodes()], "said": []}
for asked in (config, replace(config, placement=replace(config.placement, check_nodes=False))):
    try:
        require_nodes(asked, home / "policy", Demand(2, 1, 2))
        told["said"].append("")
    except ConfigError as error:
        told["said"].append(str(error))
print(json.dumps(told))
"""


def asked_from(cluster, home):
    """What the preflight of a run says on the head."""
    told = cluster.head.run(
        *(sys.executable, "-c", ASK_NODES, str(home)),
        timeout_s=within(120),
        env=cluster.environment | {"RAY_ADDRESS": cluster.address, "PYTHONPATH": str(REPOSITORY)},
    )
    return json.loads(next(line for line in told.splitlines() if line.startswith("{")))


@pytest.mark.timeout(1800)  # nodes start one after the other, on a machine that may be busy
def test_a_node_without_the_data_is_found_before_anything_is_reserved(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    for folder in ("clips", "policy", "runs", "cache"):
        (tmp_path / folder).mkdir()
    for film in ("a.mp4", "b.mp4"):
        (tmp_path / "clips" / film).write_bytes(b"film")
    (tmp_path / "policy" / "config.json").write_text("{}")
    with Machines(shared_memory_mib=256) as machines:
        cluster = MachineCluster(machines, start_s=within(60))
        cluster.start_head(cpus=2)
        lacking = cluster.add_node(cpus=2, own={str(tmp_path / "clips"): 1, str(tmp_path / "runs"): 1})
        told = asked_from(cluster, tmp_path)
    assert told["nodes"] == [cluster.head.address, lacking.address]
    said, unchecked = told["said"]
    assert said.startswith("1 of 2 nodes cannot work for the run ") and unchecked == ""
    assert f"node {lacking.address}" in said and cluster.head.address not in said
    clips = f"data.train.video_root: {tmp_path}/clips has no a.mp4, which is there on the driver's node: set data."
    assert clips in said and "data.held_out.video_root: " in said
    assert f"output_dir: {tmp_path}/runs is another disk than on the driver's node" in said
    assert "policy" not in said.partition("): ")[2] and "packages" not in said and "code" not in said


class RunOnNodes:
    """A small run whose driver works on the head, of which `step` and `faults` are read from outside."""

    def __init__(self, cluster, home, *overrides):
        self.folder, self._output = home / "nodes", home / "said.txt"
        arguments = [*SMALL, f"trainer.steps={STEPS}", "trainer.save_every=1", "placement.colocate=false"]
        arguments += ["name=nodes", f"output_dir={home}", f"cache_dir={home}/cache", "rollout.stall_timeout_s=60"]
        with self._output.open("w") as output:
            self.process = cluster.head.start(
                [sys.executable, "-m", "rl", "train", str(QUICKSTART), *arguments, *overrides],
                cwd=REPOSITORY,
                env=os.environ | cluster.environment | {"RAY_ADDRESS": cluster.address, "PYTHONPATH": str(REPOSITORY)},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def reach(self, step):
        """Return when so many steps are reported."""
        deadline = time.monotonic() + within(600)
        while last_step(self.folder / "metrics.jsonl")[0] < step:
            assert self.process.poll() is None and time.monotonic() < deadline, self.said()
            time.sleep(0.2)  # between two looks at the file of another program

    def said(self):
        """The end of what it has printed."""
        return self._output.read_text()[-4000:]


def workers_on(machine):
    """The kinds of workers that run on a machine now."""
    titles = machine.run("ps", "-ww", "-eo", "args").splitlines()
    return {role_of(title) for title in titles} - {"", "decoder"}


@pytest.mark.soak
@pytest.mark.vllm
@pytest.mark.deepspeed
@pytest.mark.timeout(7200)
def test_a_run_over_three_nodes_loses_one_gets_another_and_loses_no_task(tmp_path):
    with Machines() as machines:
        cluster = MachineCluster(machines, start_s=within(60), lost_after_s=max(10.0, within(3)))
        cluster.start_head(cpus=0)
        struck, other = cluster.add_node(cpus=3), cluster.add_node(cpus=3)
        run = RunOnNodes(cluster, tmp_path)
        run.reach(1)
        before = workers_on(struck) | workers_on(other)
        lost = workers_on(struck)
        struck.kill()
        added = cluster.add_node(cpus=3)
        run.reach(3)
        replaced = workers_on(added)
        code = run.process.wait(within(600))
        assert code == 0, run.said()
    assert before == {"rollout", "reward", "learner"} and lost  # frames and weights went across
    assert replaced & lost and other.is_up
    faults = [fault for fault in read_faults(run.folder) if fault["kind"] in ("worker_died", "learner_lost")]
    assert faults and {fault["failure"]["node"] for fault in faults} == {struck.address}
    assert all(fault["recovery_s"] for fault in faults)
    assert violations(run.folder) == []
