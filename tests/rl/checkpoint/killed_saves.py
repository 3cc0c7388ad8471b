"""What runs inside test_killed_saves.py: `python killed_saves.py FOLDER SCENARIO`; prints what was found as JSON.

A save is carried out again and again in a forked process that is killed at its first operation on files, its second,
and so on, until it ends unharmed. After every kill the disk and the remote are looked at with the eyes of the next run.
Forked, because importing torch takes longer than a hundred saves.
"""

from __future__ import annotations

import builtins
import io
import json
import os
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path

import safetensors.torch
import torch

from rl.checkpoint.mirror import Mirror
from rl.checkpoint.remote import RemoteCheckpoints
from rl.checkpoint.saver import Contents, Saver
from rl.checkpoint.snapshot import CapturedState, Snapshot
from rl.checkpoint.store import CheckpointStore
from rl.run.resume import newest_valid
from rl.trajectory import RunState

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.link", "os.symlink", "os.truncate")
TIMEOUT_S = 60.0


class Axe:
    """Kills this process at its n-th operation on files: before it or, where it writes, in the middle."""

    def __init__(self, n: int) -> None:
        self._left = n

    def due(self) -> bool:
        self._left -= 1
        return self._left == 0

    def strike(self) -> None:
        if self.due():
            die()

    def set_up(self) -> None:
        """From here on every operation counts."""
        sys.addaudithook(self._look)
        os.fsync = self._counted(os.fsync)
        builtins.open = io.open = self._opened(io.open)
        shutil._USE_CP_SENDFILE = False  # so that copies are written by Python as well
        safetensors.torch.serialize_file = self._serialized(safetensors.torch.serialize_file)

    def _look(self, event: str, arguments: tuple[object, ...]) -> None:
        if event in CHANGES or (event == "open" and arguments[2] & WRITES):
            self.strike()

    def _counted(self, operation):
        def counted(*arguments):
            self.strike()
            return operation(*arguments)

        return counted

    def _opened(self, opening):
        def opened(*arguments, **options):
            file = opening(*arguments, **options)
            return Torn(file, self) if file.writable() else file

        return opened

    def _serialized(self, serialize):
        """Written by Rust, first under another name: killed before, in the middle, and after."""

        def serialized(tensors, path, *, metadata=None):
            self.strike()
            serialize(tensors, path, metadata=metadata)
            if self.due():
                content = Path(path).read_bytes()
                Path(path).rename(Path(path).with_name(".tmpAAAAAA"))
                os.truncate(Path(path).with_name(".tmpAAAAAA"), len(content) // 2)
                die()
            self.strike()

        return serialized


class Torn:
    """A file whose writer may be killed when half of it is written, or before it is closed."""

    def __init__(self, file, axe: Axe) -> None:
        self._file, self._axe = file, axe

    def write(self, content):
        if self._axe.due():
            self._file.write(content[: len(content) // 2])
            self._file.flush()
            die()
        return self._file.write(content)

    def close(self):
        if not self._file.closed:
            self._axe.strike()
        self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __getattr__(self, name):
        return getattr(self._file, name)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Rank:
    """A learner rank's part, as in actors/learner.py, but written by a thread of this process."""

    def __init__(self, step: int) -> None:
        state = CapturedState(
            "rank_0.safetensors", {"group_0.master": torch.full((64,), float(step))}, {"steps": str(step)}
        )
        self._snapshot = Snapshot(state, lambda folder: self._export(folder, step))
        self._draft: Path | None = None

    def save(self, draft: Path) -> Rank:
        self._draft = draft
        return self

    def result(self, timeout_s: float):
        return self._snapshot.write(self._draft)

    def _export(self, folder: Path, step: int) -> list[Path]:
        folder.mkdir()
        safetensors.torch.save_file({"weight": torch.full((64,), float(step))}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"step": step}))
        return [folder / "config.json", folder / "model.safetensors"]


class Run:
    """The checkpoints of a run in a folder, with a remote beside it."""

    def __init__(self, folder: Path) -> None:
        self.store = CheckpointStore(folder / "here", keep=1, best_metric="held_out/accuracy")
        self.remote = RemoteCheckpoints(f"file://{folder}/remote", "run")
        self.elsewhere = CheckpointStore(folder / "elsewhere")

    def save(self, step: int) -> None:
        mirror = Mirror(self.remote, self.store)
        with Saver(self.store, timeout_s=TIMEOUT_S, max_failed=1, mirror=mirror, mirror_timeout_s=TIMEOUT_S) as saver:
            saver.save(Rank(step).save, Contents(RunState(step, step, seed=7), f"step: {step}\n", value=step / 100))
        assert mirror.finish(TIMEOUT_S), "not copied"

    def found(self) -> int:
        """The step a resumed run would go on from, after a look at its content."""
        said: list[str] = []
        found = newest_valid(self.store, None, said.append)
        assert found is not None and not said, f"not whole: {said}"
        content = safetensors.torch.load_file(found.folder / "rank_0.safetensors")["group_0.master"]
        assert content.tolist() == [float(found.state.step)] * 64
        return found.state.step

    def require_clean(self, *steps: int) -> None:
        left = sorted(path.name for path in self.store.folder.iterdir() if path.name.startswith("."))
        assert not left, f"left behind: {left}"
        assert tuple(self.store.published()) == steps, self.store.published()
        assert tuple(self.remote.steps()) == steps, self.remote.steps()


def prepare(run: Run, scenario: str) -> None:
    run.save(10)
    if scenario == "back":  # 20 is the future that the run goes back behind
        run.save(20)
    if scenario == "fetch":
        shutil.rmtree(run.store.folder)


def act(run: Run, scenario: str) -> None:
    if scenario == "fetch":
        newest_valid(run.store, run.remote, lambda line: None)
    else:
        run.save({"next": 20, "again": 10, "back": 15}[scenario])


def look(run: Run, scenario: str) -> str:
    """What the next run finds; raises if it is anything but the previous or the new checkpoint, whole."""
    for step in run.remote.steps():  # what has a manifest there is whole
        assert run.remote.fetch(step, run.elsewhere).state.step == step
    if scenario == "fetch":
        outcome = "new" if run.store.published() else "previous"
        assert newest_valid(run.store, run.remote, print).state.step == 10
    else:
        previous, new = {"next": (10, 20), "again": (10, 10), "back": (20, 15)}[scenario]
        step = run.found()
        assert step in (previous, new), step
        outcome = "new" if step == new else "previous"
    run.save(30)
    run.require_clean(30)
    return outcome


def killed_at(run: Run, scenario: str, point: int) -> bool:
    """Whether the process was killed; False: it had fewer operations than that."""
    child = os.fork()
    if child == 0:
        try:
            Axe(point).set_up()
            act(run, scenario)
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, f"point {point}: the save failed by itself"
    return os.WIFSIGNALED(status)


def main(folder: str, scenario: str) -> None:
    before, work = Path(folder) / "before", Path(folder) / "work"
    prepare(Run(before), scenario)
    outcomes: Counter[str] = Counter()
    for point in range(1, 10_000):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(before, work)
        run = Run(work)
        if not killed_at(run, scenario, point):
            break
        try:
            outcomes[look(run, scenario)] += 1
        except BaseException as error:
            raise AssertionError(f"killed at operation {point} of {scenario}: {error}") from error
    sys.stdout.write(json.dumps(outcomes))


if __name__ == "__main__":
    main(*sys.argv[1:])
