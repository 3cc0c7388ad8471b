"""The files of cluster/ start runs that can be configured, stopped and found again."""

import shlex
from pathlib import Path

import pytest
import yaml

from cluster.submit import RELEASE_S
from rl.config.file import load_config

REPOSITORY = Path(__file__).parents[1]
RUNTIME_ENV = yaml.safe_load((REPOSITORY / "cluster/runtime_env.yaml").read_text())
RAYJOB = yaml.safe_load((REPOSITORY / "cluster/kuberay_rayjob.yaml").read_text())["spec"]
RAY_UP = yaml.safe_load((REPOSITORY / "cluster/ray_cluster.yaml").read_text())


@pytest.fixture
def kuberay_run(monkeypatch):
    """What the RayJob's entrypoint configures, in the environment that it declares."""
    for name, value in yaml.safe_load(RAYJOB["runtimeEnvYAML"])["env_vars"].items():
        monkeypatch.setenv(name, value)
    python, flag, package, command, *inputs = shlex.split(RAYJOB["entrypoint"])
    assert (python, flag, package, command) == ("python", "-m", "rl", "train")
    return load_config([REPOSITORY / inputs[0]], inputs[1:])


def test_a_job_that_is_stopped_has_its_grace_and_the_time_to_release_its_workers(kuberay_run):
    # 120 s to save and 30 s to end: Ray's default is 3 s
    for variables, run in (
        (RUNTIME_ENV["env_vars"], load_config([REPOSITORY / "configs/quickstart.yaml"])),
        (yaml.safe_load(RAYJOB["runtimeEnvYAML"])["env_vars"], kuberay_run),
    ):
        assert int(variables["RAY_JOB_STOP_WAIT_TIME_S"]) == run.trainer.stop_grace_s + RELEASE_S == 150


def test_the_rayjob_goes_on_by_itself_and_keeps_everything_on_the_volume_that_all_its_pods_mount(kuberay_run):
    assert kuberay_run.resume == "auto"
    cluster = RAYJOB["rayClusterSpec"]
    mounted = {
        mount["mountPath"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
        for container in group["template"]["spec"]["containers"]
        for mount in container["volumeMounts"]
        if mount["name"] == "workspace"
    }
    assert mounted == {"/workspace"}
    data = kuberay_run.data
    for path in (
        *(kuberay_run.output_dir, kuberay_run.cache_dir, kuberay_run.policy.path),
        *(data.train.path, data.held_out.path, kuberay_run.cold_start.traces.path),
    ):
        assert Path(path).is_relative_to("/workspace"), path


def test_ray_sends_no_usage_statistics_and_its_workers_are_not_niced():
    """Ray's own defaults are statistics sent to its developers, and workers at nice 15."""
    head, worker = ray_start("head"), ray_start("worker")
    assert "--disable-usage-stats" in head  # the head sends them
    assert all("RAY_worker_niceness=0 ray start" in start for start in (head, worker))
    cluster = RAYJOB["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        for container in group["template"]["spec"]["containers"]:
            variables = {variable["name"]: variable["value"] for variable in container["env"]}
            assert variables == {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}


def ray_start(kind):
    (start,) = [line for line in RAY_UP[f"{kind}_start_ray_commands"] if "ray start" in line]
    return start


def test_nodes_start_ray_where_a_jobs_python_is_the_projects():
    for kind in ("head", "worker"):
        start = ray_start(kind)
        assert start.index("export PATH=$PWD/.venv/bin:$PATH") < start.index("ray start")
