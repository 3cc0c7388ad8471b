"""One writer per run: this process holds the lease of the run's folder and, if there is one, of its remote.

Part of the composition root.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rl.checkpoint.lease.folder import LEASE, FolderLease
from rl.checkpoint.lease.holder import this_process
from rl.checkpoint.lease.lease import Lease, LeaseHeldError
from rl.checkpoint.manifest import CheckpointError
from rl.checkpoint.remote import RemoteCheckpoints
from rl.checkpoint.remote_lease import RemoteLease
from rl.config.errors import ConfigError
from rl.config.file import to_yaml
from rl.config.run import RunConfig, with_absolute_code
from rl.run.origin import keep_ancestry

log = logging.getLogger(__name__)

REMOTE_EVERY_S, REMOTE_STALE_AFTER_S = 15.0, 90.0
CONFIG, CONFIGS = "config.yaml", "configs"  # the latest start's, and every start's


@dataclass(frozen=True, slots=True)
class Writer:
    """The right to write into a run's folder."""

    run_dir: Path  # absolute
    folder: FolderLease
    remote: RemoteCheckpoints | None
    lease: Lease
    remote_lease: Lease | None

    def check(self) -> None:
        """To be called before writing into the folder; cheap.

        Raises:
            LeaseLostError: another process has taken over.
        """
        self.lease.check()
        if self.remote_lease is not None:  # which may be out of reach: that stops no run
            self.remote_lease.require_not_lost()

    def check_remote(self) -> None:
        """To be called before writing to the remote; waits for it, should it be out of reach.

        Raises:
            LeaseLostError: another process has taken over.
        """
        self.lease.check()
        self.remote_lease.check()

    def set_aside(self, kept: Path) -> None:
        """Move what lies here and on the remote aside, but for the leases and the log file `kept`.

        Raises:
            ConfigError: that is not possible.
            LeaseLostError: another process has taken over.
        """
        logs = kept.parent
        others = [path for path in self.run_dir.iterdir() if path.name != LEASE and path != logs]
        try:
            if others or list(logs.iterdir()) != [kept]:
                aside = self.run_dir.with_name(f"{self.run_dir.name}.{time.strftime('%Y%m%d-%H%M%S')}")
                self.lease.replace_file(lambda expected, new: self.folder.move_contents(aside, expected, new))
                logs.mkdir()
                (aside / kept.relative_to(self.run_dir)).rename(kept)
                log.warning("%s: set aside as %s, for this run starts afresh", self.run_dir, aside)
            if self.remote is not None and (aside := self.remote.set_aside_all()):
                log.warning("%s: set aside as %s, for this run starts afresh", self.remote.url, aside)
        except CheckpointError as error:
            raise ConfigError(f"trainer.remote: {error}") from error
        except OSError as error:
            raise ConfigError(f"output_dir: cannot write {self.run_dir}: {error.strerror}") from error


@contextmanager
def only_writer(config: RunConfig, remote: RemoteCheckpoints | None) -> Iterator[Writer]:
    """Take the leases; released in the end.

    Raises:
        ConfigError: another process writes this run, or the folder cannot be written.
    """
    run_dir = Path(config.output_dir).absolute() / config.name
    folder, me = FolderLease(run_dir), this_process(*_job())
    with ExitStack() as stack:
        try:
            lease, remote_lease = stack.enter_context(Lease(folder, me)), None
            if remote is not None:
                file = RemoteLease(config.trainer.remote, config.name)
                timing = {"every_s": REMOTE_EVERY_S, "stale_after_s": REMOTE_STALE_AFTER_S}
                remote_lease = stack.enter_context(Lease(file, me, **timing))
        except (LeaseHeldError, CheckpointError) as error:
            raise ConfigError(str(error)) from error
        except OSError as error:
            raise ConfigError(f"output_dir: cannot write {run_dir}: {error.strerror or error}") from error
        yield Writer(run_dir, folder, remote, lease, remote_lease)


def keep_config(config: RunConfig, run_dir: Path) -> None:
    """Write config.yaml, and keep it under configs/ with those of the starts before; of a run with `init_from` its
    ancestry, too.

    Raises:
        ConfigError: the folder cannot be written.
    """
    latest, kept = run_dir / CONFIG, run_dir / CONFIGS
    try:
        if latest.exists() and not kept.exists():  # a run of 0.3.0
            kept.mkdir()
            (kept / _config_name(0, latest.stat().st_mtime)).write_bytes(latest.read_bytes())
        kept.mkdir(exist_ok=True)
        number = 1 + max((int(path.name[:4]) for path in kept.glob("[0-9][0-9][0-9][0-9]-*.yaml")), default=0)
        text = to_yaml(with_absolute_code(config))
        (kept / _config_name(number, time.time())).write_text(text, encoding="utf-8")
        draft = latest.with_name(f".{CONFIG}")
        draft.write_text(text, encoding="utf-8")
        draft.replace(latest)
        keep_ancestry(config, run_dir)
    except OSError as error:
        raise ConfigError(f"output_dir: cannot write {run_dir}: {error.strerror}") from error


def _config_name(number: int, seconds: float) -> str:
    return f"{number:04d}-{time.strftime('%Y-%m-%dT%H-%M-%SZ', time.gmtime(seconds))}.yaml"


def _job() -> tuple[str, str]:
    """The batch system's job that this process is the driver of, and the command that stops it; "" outside one."""
    declared = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    if job := declared.get("metadata", {}).get("job_submission_id"):
        return f"Ray job {job}", f"ray job stop {job}"
    if job := os.environ.get("SLURM_JOB_ID"):
        return f"Slurm job {job}", f"scancel {job}"
    return "", ""
