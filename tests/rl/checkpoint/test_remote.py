"""A copy of the checkpoints elsewhere: whole or not there, never trusted, and never the end of a run."""

import itertools
import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from rl.checkpoint.manifest import CheckpointError, DamagedError, read_manifest
from rl.checkpoint.mirror import Mirror
from rl.checkpoint.remote import RemoteCheckpoints, RemoteError
from rl.checkpoint.remote_lease import RemoteLease
from rl.checkpoint.saver import Saver
from rl.checkpoint.store import CheckpointStore
from rl.config.errors import ConfigError
from rl.config.file import load_config, to_yaml
from rl.run.resume import find_checkpoint, newest_valid, remote_of
from rl.run.writer import only_writer
from rl.trajectory import RunState
from tests.rl.learner.learner_files import save_learner

pytestmark = pytest.mark.thorough

CONFIG = load_config([Path(__file__).parents[3] / "configs" / "quickstart.yaml"])
METRIC = "held_out/accuracy"
TIMEOUT_S = 30.0
BUCKETS = itertools.count()


@pytest.fixture(params=["file", "memory"])
def url(request, tmp_path):
    """A folder of this machine as a network disk is mounted, and a storage with other ways."""
    return f"file://{tmp_path}/bucket/runs" if request.param == "file" else f"memory://bucket{next(BUCKETS)}/runs"


@pytest.fixture
def remote(url):
    return RemoteCheckpoints(url, "run")


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "here", keep=2, best_metric=METRIC)


@pytest.fixture
def elsewhere(tmp_path):
    """The disk of another node, on which this run has never been."""
    return CheckpointStore(tmp_path / "elsewhere", keep=2, best_metric=METRIC)


def save(store, step, content=b"weights", value=None):
    draft = store.begin(step)
    (draft / "policy").mkdir()
    (draft / "policy" / "model.safetensors").write_bytes(content)
    return store.commit(draft, RunState(step, step, seed=7), to_yaml(CONFIG), value).folder


def brought_in_line(remote, store):
    mirror = Mirror(remote, store)
    mirror.wake()
    assert mirror.finish(TIMEOUT_S)
    return mirror.poll()


def overwrite(remote, path, content):
    remote._fs.makedirs(f"{remote._root}/{path}".rpartition("/")[0], exist_ok=True)
    remote._fs.pipe_file(f"{remote._root}/{path}", content)


def read(remote, path):
    return remote._fs.cat_file(f"{remote._root}/{path}")


def test_what_is_copied_comes_back_to_the_byte(remote, store, elsewhere):
    remote.upload(save(store, 20, b"the policy"))
    assert remote.steps() == [20]

    found = remote.fetch(20, elsewhere)

    assert found.state == RunState(20, 20, seed=7) and found.folder == elsewhere.folder / "step_00000020"
    assert (found.folder / "policy" / "model.safetensors").read_bytes() == b"the policy"
    assert read_manifest(found.folder) == read_manifest(store.folder / "step_00000020")
    assert (elsewhere.folder / "latest").read_text() == "step_00000020\n"
    assert not list(elsewhere.folder.glob(".draft_*"))


def test_a_remote_that_was_never_written_to_has_nothing(remote):
    assert remote.steps() == [] and remote.best() is None


def test_the_manifest_goes_last_and_leaves_first(remote, store, monkeypatch):
    """At every moment of copying anew, what has a manifest is whole."""
    moments = []
    put, remove = remote._fs.put_file, remote._fs.rm_file
    monkeypatch.setattr(
        remote._fs,
        "put_file",
        lambda here, path: (moments.append(path.rpartition("/")[2].removesuffix(".part")), put(here, path)),
    )
    monkeypatch.setattr(remote._fs, "rm_file", lambda path: (moments.append(f"no {path[-13:]}"), remove(path)))
    folder = save(store, 20)
    remote.upload(folder)
    assert moments == ["config.yaml", "model.safetensors", "state.json", "manifest.json"]
    moments.clear()
    remote.upload(folder)
    assert moments == []  # it is there
    remote.upload(save(store, 20, b"saved anew"))
    assert moments[0] == "no manifest.json" and moments[-1] == "manifest.json"


def test_a_copy_without_its_manifest_is_not_there_and_is_cleared_away(remote, store):
    remote.upload(save(store, 10))
    overwrite(remote, "step_00000020/policy/model.safetensors", b"half of")
    assert remote.steps() == [10]
    brought_in_line(remote, store)
    assert not remote._fs.exists(f"{remote._root}/step_00000020/policy/model.safetensors")


def test_a_copy_cut_short_by_the_storage_is_not_made_valid(remote, store, monkeypatch):
    put = remote._fs.put_file

    def cut(here, path, **options):
        put(here, path, **options)
        if "model.safetensors" in path:
            remote._fs.pipe_file(path, b"wei")

    monkeypatch.setattr(remote._fs, "put_file", cut)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: 3 bytes"):
        remote.upload(save(store, 20))
    assert remote.steps() == []


def a_manifest(**files):
    return json.dumps({"format": 1, "files": files}).encode()


FINE = {"bytes": 7, "sha256": "0" * 64}
DAMAGES = {
    "a flipped byte": ("policy/model.safetensors", b"weIghts", r"model\.safetensors: content differs"),
    "a cut file": ("policy/model.safetensors", b"wei", r"model\.safetensors: 3 bytes"),
    "half a manifest": ("manifest.json", b'{"format": 1, "fi', "not a manifest"),
    "a manifest of another time": ("manifest.json", b'{"format": 9, "files": {}}', "format 9, this version reads 1"),
    "no UTF-8": ("manifest.json", b"\xff\xfe", "not a manifest"),
    "a way out": ("manifest.json", a_manifest(**{"../../../escaped": FINE}), "not a file of a checkpoint"),
    "an absolute way out": ("manifest.json", a_manifest(**{"/etc/escaped": FINE}), "not a file of a checkpoint"),
    "a file that is not there": ("manifest.json", a_manifest(ghost=FINE), "ghost: missing"),
    "no state": ("manifest.json", a_manifest(), "not readable"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_copy_is_passed_over_with_its_reason(remote, store, elsewhere, damage):
    path, content, reason = DAMAGES[damage]
    remote.upload(save(store, 10))
    remote.upload(save(store, 20))
    overwrite(remote, f"step_00000020/{path}", content)

    said = []
    found = newest_valid(elsewhere, remote, said.append)

    assert found.state.step == 10 and len(said) == 1
    with pytest.raises(DamagedError, match=reason):
        remote.fetch(20, elsewhere)
    assert "step_00000020" in said[0]
    assert sorted(path.name for path in elsewhere.folder.iterdir()) == ["latest", "step_00000010"]
    assert not list(elsewhere.folder.parents[1].rglob("escaped"))


def test_a_link_in_a_mounted_remote_is_not_followed(tmp_path, store, elsewhere):
    remote = RemoteCheckpoints(f"file://{tmp_path}/bucket", "run")
    folder = save(store, 20)
    remote.upload(folder)
    secret = tmp_path / "secret"
    secret.write_bytes(b"weights")
    there = Path(remote._root) / "step_00000020" / "policy" / "model.safetensors"
    there.unlink()
    there.symlink_to(secret)  # the same size and hash: only the place is wrong
    with pytest.raises(DamagedError, match="a link out of the checkpoint"):
        remote.fetch(20, elsewhere)


def test_a_resumed_run_takes_the_newest_whole_one_of_disk_and_remote(remote, store, elsewhere):
    for step in (10, 20):
        remote.upload(save(store, step))
    save(elsewhere, 15)
    assert newest_valid(elsewhere, remote, print).state.step == 20  # the disk of this node is behind
    save(elsewhere, 25)
    assert newest_valid(elsewhere, remote, print).state.step == 25


def test_of_equals_the_one_on_the_disk_is_taken_unless_it_is_damaged(remote, store):
    folder = save(store, 20)
    remote.upload(folder)
    assert newest_valid(store, remote, print).folder == folder
    (folder / "state.json").write_text("{}")
    said = []
    found = newest_valid(store, remote, said.append)
    assert found.folder == folder and found.state.step == 20  # mended from the remote
    assert len(said) == 1 and "state.json: 2 bytes" in said[0]


def test_a_run_on_another_node_knows_its_best_one(remote, store, elsewhere):
    for step, value in ((10, 0.9), (20, 0.1), (30, 0.2)):
        save(store, step, value=value)
    brought_in_line(remote, store)

    assert newest_valid(elsewhere, remote, print).state.step == 30
    assert elsewhere.best_valid().state.step == 10 and not elsewhere.is_best(40, 0.5)


def test_the_remote_keeps_what_the_disk_keeps(remote, tmp_path):
    store = CheckpointStore(tmp_path / "here", keep=2, best_metric=METRIC, keep_every=100)
    for step, value in ((100, None), (110, 0.9), (120, 0.1), (130, 0.1), (140, 0.1)):
        save(store, step, value=value)
        brought_in_line(remote, store)
    assert remote.steps() == list(store.published()) == [140, 130, 110, 100]
    assert remote.best() == 110 and read(remote, "best") == b"step_00000110\n"


def test_a_future_that_the_run_went_back_behind_is_set_aside_there_too(remote, store):
    for step in (10, 20):
        save(store, step, b"first")
        brought_in_line(remote, store)
    save(store, 15, b"second")
    brought_in_line(remote, store)
    assert remote.steps() == [15, 10]
    assert read(remote, "superseded_step_00000020/policy/model.safetensors") == b"first"


def test_what_could_not_be_copied_is_counted_and_tried_again_with_the_next_save(remote, store, monkeypatch, caplog):
    put, mirror = remote._fs.put_file, Mirror(remote, store)

    def refused(here, path, **options):
        raise ConnectionError("503 Slow Down")

    monkeypatch.setattr(remote._fs, "put_file", refused)
    save(store, 10)
    mirror.wake()
    assert not mirror.finish(TIMEOUT_S)  # it ended, but did not do it
    assert mirror.poll()["save/remote_failed"] == 1.0
    (fault,) = mirror.take_faults()
    assert fault.kind == "remote_failed" and fault.cause.startswith(remote.url)
    assert "the run goes on" in caplog.text and "ConnectionError: 503 Slow Down" in caplog.text

    monkeypatch.setattr(remote._fs, "put_file", put)
    save(store, 20)
    mirror.wake()
    assert mirror.finish(TIMEOUT_S) and mirror.poll()["save/remote_failed"] == 0.0
    assert remote.steps() == [20, 10]


def test_a_run_that_goes_on_copies_what_the_one_before_could_not(remote, store):
    """Even if it has nothing left to do and saves nothing."""
    save(store, 10)
    with Saver(store, timeout_s=1, max_failed=1, mirror=Mirror(remote, store), mirror_timeout_s=TIMEOUT_S) as saver:
        assert remote.steps() == []  # nothing changes before the run begins
        saver.copy_earlier()
    assert remote.steps() == [10]


def test_a_slow_remote_holds_nobody_up_and_what_it_reads_is_not_removed_meanwhile(remote, store, monkeypatch):
    put, started, let_go = remote._fs.put_file, threading.Event(), threading.Event()

    def slow(here, path, **options):
        started.set()
        assert let_go.wait(TIMEOUT_S)
        put(here, path, **options)

    monkeypatch.setattr(remote._fs, "put_file", slow)
    mirror = Mirror(remote, store)
    save(store, 10)
    mirror.wake()
    assert started.wait(TIMEOUT_S)
    for step in (20, 30, 40):  # keep=2: step 10 has long been too old
        save(store, step)
        mirror.wake()  # returns at once
    assert list(store.published()) == [40, 30, 10] and not mirror.finish(0.01)
    let_go.set()
    assert mirror.finish(TIMEOUT_S)
    assert remote.steps() == [40, 30] == list(store.published())


@pytest.fixture
def config(url):
    return replace(CONFIG, name="run", trainer=replace(CONFIG.trainer, remote=url))


def test_a_run_finds_its_checkpoint_on_the_remote(config, remote, store, elsewhere):
    draft = store.begin(20)
    save_learner(draft)
    remote.upload(store.commit(draft, RunState(20, 20, seed=7), to_yaml(CONFIG)).folder)
    assert find_checkpoint(config, elsewhere, remote_of(config)).state.step == 20
    assert remote_of(CONFIG) is None  # no remote is configured by default


def test_a_run_that_starts_afresh_does_not_meet_its_former_self_on_the_remote(
    config, remote, store, elsewhere, monkeypatch, tmp_path
):
    """Otherwise: start afresh, die before the first save, resume: and the old run would go on."""
    remote.upload(save(store, 20))
    monkeypatch.setattr(RemoteLease, "settle_s", 0.0)
    afresh = replace(config, resume="never", output_dir=str(tmp_path / "runs"))
    assert find_checkpoint(afresh, elsewhere, remote_of(afresh)) is None
    assert remote.steps() == [20]  # it may still fail
    with only_writer(afresh, remote_of(afresh)) as writer:
        log = writer.run_dir / "logs" / "driver.log"
        log.parent.mkdir()
        log.touch()
        writer.set_aside(kept=log)
    assert find_checkpoint(config, elsewhere, remote_of(config)) is None
    runs = remote._fs.ls(remote._run_folder.rpartition("/")[0], detail=False)
    (aside,) = (path for path in runs if path.rpartition("/")[2].startswith(f"run.{time.strftime('%Y')}"))
    assert remote._fs.cat_file(f"{aside}/checkpoints/step_00000020/policy/model.safetensors") == b"weights"


def test_a_remote_that_does_not_answer_is_named_before_anything_starts(config, monkeypatch):
    def down(self, path, **options):
        raise PermissionError("403 Forbidden")

    monkeypatch.setattr(MemoryFileSystem, "find", down)
    nowhere = replace(config, trainer=replace(config.trainer, remote="memory://bucket/runs"))
    with pytest.raises(ConfigError, match=r"trainer\.remote: memory://bucket/runs.*403 Forbidden.*trainer\.remote="):
        remote_of(nowhere)
    unknown = replace(config, trainer=replace(config.trainer, remote="ftq://bucket/runs"))
    with pytest.raises(ConfigError, match=r"trainer\.remote: ftq://bucket/runs"):
        remote_of(unknown)


def test_trouble_on_the_way_is_no_reason_to_go_on_from_an_older_one(remote, store, elsewhere, monkeypatch):
    save(elsewhere, 10)
    remote.upload(save(store, 20))

    def broken(path, here, **options):
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(remote._fs, "get_file", broken)
    with pytest.raises(RemoteError, match="reset by peer"):
        newest_valid(elsewhere, remote, print)
    assert not list(elsewhere.folder.glob(".draft_*"))


def test_a_disk_too_small_for_what_the_remote_has_is_said_before_it_is_fetched(remote, store, elsewhere, monkeypatch):
    remote.upload(save(store, 20))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    with pytest.raises(CheckpointError, match="a checkpoint needs 16 MiB, 0 MiB are free; make room"):
        newest_valid(elsewhere, remote, print)


@pytest.mark.parametrize("url", ["s3://key:secret@b/runs", "s3://bucket/run[1]", "memory://a*/runs", "bucket/runs"])
def test_a_url_with_a_password_or_a_pattern_or_that_is_none_is_refused(url):
    with pytest.raises(ConfigError, match=r"trainer\.remote"):
        load_config([Path(__file__).parents[3] / "configs" / "quickstart.yaml"], [f"trainer.remote={url}"])
