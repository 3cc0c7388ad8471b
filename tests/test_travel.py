"""What a run names is there when its job runs, or nothing is submitted: told with the key, the reason and a remedy."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

from cluster import travel
from cluster.submit import declared_environment, runtime_env
from cluster.travel import WorkingDirectory, is_this_machine, missing_on_cluster, too_large
from rl.cli.submission import relative_to_here, require_travelling, variables_of
from rl.config.errors import ConfigError
from rl.config.file import load_config
from rl.config.files import files_read

REMOTE = "http://192.0.2.1:8265"
FILES = {
    ".gitignore": "*.mp4\nsecret/\n!kept.mp4\n/top.jsonl\n",
    ".rayignore": "large.bin\n",
    "base.yaml": "rewards: {mine: {fn: 'mine/reward.py:f'}}\ncold_start: {enabled: false}\n",
    "top.jsonl": "",
    "mine/reward.py": "import json, helper\nfrom package import x\ndef f(task, trajectory): return 1.0\n",
    "mine/helper.py": "from . import deeper\nVALUE = 1\n",
    "mine/deeper.py": "",
    "mine/package/__init__.py": "",
    "mine/unused.py": "",
    "rows/a.jsonl": "{}\n",
    "rows/top.jsonl": "",
    "rows/clip.mp4": "",
    "rows/kept.mp4": "",
    "rows/clip.webm": "",
    "sound/b.jsonl": "",
    "sound/b.webm": "",
    "sound/large.bin": "",
    "secret/rows.jsonl": "",
    "data/rows.jsonl": "",
    "models/policy/config.json": "",
    "nested/.gitignore": "*.csv\n",
    "nested/x.csv": "",
    "nested/deep/y.csv": "",
    "runs/quickstart/x": "",
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    for name, text in FILES.items():
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "outside.py").write_text("def f(task, trajectory): return 1.0")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def working(project):
    return WorkingDirectory(project, declared_environment()["excludes"])


def test_what_travels_is_what_ray_ships(working, project):
    shipped = []
    _dir_travel(project, [_get_excludes(project, list(working.excludes))], shipped.append, include_gitignore=True)
    assert {file for file, _ in working.travelling()} == {path for path in shipped if path.is_file()}
    assert {str(file.relative_to(project)) for file, _ in working.travelling()} >= {"mine/reward.py", "rows/kept.mp4"}


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("base.yaml", ""),
        ("./mine/../base.yaml", ""),
        ("mine", ""),
        ("sound/b.jsonl", ""),
        ("rows/kept.mp4", ""),
        ("rows/top.jsonl", ""),  # the rule is of the top folder only
        (
            "../outside.py",
            "lies outside of FOLDER, the only folder that travels: put it there, or name an",
        ),
        (
            "absent.yaml",
            "is not in FOLDER, which travels; name a file that is, or an absolute path on",
        ),
        (
            "top.jsonl",
            "does not travel: FOLDER/.gitignore (/top.jsonl) leaves it out; put it where",
        ),
        ("secret/rows.jsonl", "does not travel: FOLDER/.gitignore (secret/) leaves it out"),
        ("secret", "does not travel: FOLDER/.gitignore (secret/) leaves it out"),
        ("data/rows.jsonl", "does not travel: cluster/runtime_env.yaml (data/) leaves it out"),
        ("data", "does not travel: cluster/runtime_env.yaml (data/) leaves it out"),
        ("models/policy", "does not travel: cluster/runtime_env.yaml (models/) leaves it out"),
        ("nested/deep/y.csv", "does not travel: FOLDER/nested/.gitignore (*.csv) leaves it out"),
        ("rows", "travels without clip.mp4 and perhaps more: FOLDER/.gitignore (*.mp4) leaves it out"),
        ("sound", "travels without large.bin and perhaps more: FOLDER/.rayignore (large.bin) leaves it out"),
    ],
)
def test_a_relative_path_has_to_be_in_what_travels(path, reason, working, project):
    found = missing_on_cluster({"key": path}, working, cluster_is_here=False, paths_are_shared=False)
    assert found.get("key", "").startswith(f"{path} {reason}".replace("FOLDER", str(project)) if reason else "")
    assert bool(found) == bool(reason)


@pytest.mark.parametrize(
    ("exists", "here", "shared", "disk", "reason"),
    [
        (True, False, False, "ext4", "is on a disk of this machine: .* --shared-paths"),
        (True, False, False, "nfs4", ""),
        (True, False, False, "fuse.sshfs", ""),
        (True, False, True, "ext4", ""),
        (True, True, False, "ext4", ""),
        (False, False, False, "ext4", ""),  # what is not here may well be there
        (False, True, False, "ext4", "is not on this machine, the cluster's head"),
    ],
)
def test_an_absolute_path_has_to_be_one_that_nodes_have(exists, here, shared, disk, reason, working, monkeypatch):
    mounts = [("/", "overlay"), (str(working.folder), disk)]
    partitions = [SimpleNamespace(mountpoint=place, fstype=kind) for place, kind in mounts]
    monkeypatch.setattr(travel.psutil, "disk_partitions", lambda **_: partitions)
    path = str(working.folder / ("mine" if exists else "absent"))
    found = missing_on_cluster({"key": path}, working, cluster_is_here=here, paths_are_shared=shared)
    assert re.match(f"{path} {reason}", found.get("key", f"{path} ")) and bool(found) == bool(reason)


def test_too_much_to_ship_is_told_with_what_is_largest(working, project):
    (project / "rows" / "big.webm").write_bytes(bytes(3 * 2**20))
    (project / "rows" / "left_out.mp4").write_bytes(bytes(9 * 2**20))
    assert too_large(working) == ""
    assert "has 3 MiB that would travel, Ray takes 2: rows (3 MiB), " in too_large(working, most_bytes=2 * 2**20)


def test_an_address_is_of_this_machine_where_a_ray_runs_here(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert not is_this_machine("http://127.0.0.1:8265")  # a tunnel to a cluster elsewhere
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("")
    assert is_this_machine("http://127.0.0.1:8265") and is_this_machine("http://localhost:8265")
    assert not any(map(is_this_machine, (REMOTE, "http://no.such.host.invalid:1", "")))


def test_every_file_that_a_run_names_is_looked_for(project):
    overrides = [
        *(
            "policy.path=models/policy",
            "learner.deepspeed_config=ds.json",
            "data.quarantine=clips.jsonl",
            "resume=auto",
        ),
        "data.train={format: dm_rl, path: rows/a.jsonl}",
        "data.held_out={format: dm_rl, path: h.jsonl, video_root: videos}",
        "cold_start={enabled: true, traces: {format: dm_cot, path: t.json}}",
    ]
    assert files_read(load_config(["base.yaml"], overrides)) == {
        "policy.path": "models/policy",
        "data.quarantine": "clips.jsonl",
        "learner.deepspeed_config": "ds.json",
        "data.train.path": "rows/a.jsonl",
        "data.train.video_root": "rows",
        "data.held_out.path": "h.jsonl",
        "data.held_out.video_root": "videos",
        "cold_start.traces.path": "t.json",
        "rewards.mine.fn": "mine/reward.py",
        "rewards.mine.fn, which imports helper.py": "mine/helper.py",
        "rewards.mine.fn, which imports package": "mine/package",
        "rewards.mine.fn, which imports deeper.py": "mine/deeper.py",
    }
    assert files_read(load_config(["base.yaml"], ["rewards.mine.fn=answer"])) == {}


def test_a_submission_is_refused_with_every_file_that_would_be_missing(project):
    require_travelling(load_config(["base.yaml"]), ["base.yaml"], REMOTE, paths_are_shared=False)
    overrides = [f"data.{split}={{format: dm_rl, path: data/rows.jsonl}}" for split in ("train", "held_out")]
    (project / "mine" / ".gitignore").write_text("helper.py\n")
    with pytest.raises(ConfigError) as refusal:
        require_travelling(load_config(["base.yaml"], overrides), ["base.yaml"], REMOTE, paths_are_shared=False)
    message = str(refusal.value)
    assert message.startswith("not submitted: ") and "\n" not in message
    assert "data.train.path, data.held_out.path: data/rows.jsonl does not travel" in message
    assert "rewards.mine.fn, which imports helper.py: mine/helper.py does not travel" in message


def test_files_below_this_folder_are_named_relative_to_it_and_variables_travel(project, monkeypatch):
    inside, outside = project / "base.yaml", project.parent / "outside.py"
    (project / "env.yaml").write_text("name: ${oc.env:DYNFRAME_NAME,x}\n")
    assert relative_to_here([str(inside), "seed=3", str(outside)]) == ["base.yaml", "seed=3", str(outside)]
    inputs = ["base.yaml", "env.yaml", "output_dir=${oc.env:DYNFRAME_OUT}"]
    assert variables_of(inputs) == {"DYNFRAME_NAME", "DYNFRAME_OUT"}
    monkeypatch.setenv("DYNFRAME_OUT", "/shared/runs")
    monkeypatch.delenv("DYNFRAME_NAME", raising=False)
    carried = runtime_env(Path("/x"), 1.0, variables_of(inputs))["env_vars"]
    assert carried["DYNFRAME_OUT"] == "/shared/runs" and "DYNFRAME_NAME" not in carried
