"""A rank's part of a checkpoint, copied in the middle of a run and written while the run goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from rl.checkpoint.checkpoint import POLICY_FOLDER
from rl.checkpoint.manifest import CheckpointError, explained, file_record, flush
from rl.trajectory import WrittenFile


@dataclass(frozen=True, slots=True)
class CapturedState:
    """A copy of what a rank must remember, which training can no longer change."""

    filename: str  # of this rank, in a checkpoint's folder
    tensors: dict[str, Tensor]  # on the CPU
    metadata: dict[str, str]

    def write(self, folder: Path) -> None:
        """One safetensors file in an existing folder; from any thread."""
        save_file(self.tensors, folder / self.filename, metadata=self.metadata)


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """What training can no longer change: the rank's state, and its part of the policy."""

    state: CapturedState
    export_policy: Callable[[Path], Sequence[Path]]  # writes this rank's files of the policy's folder; says which

    def write(self, folder: Path) -> list[WrittenFile]:
        """Write this rank's files into the draft `folder` and flush them to the disk; from any thread.

        Each is read back once for its SHA-256, out of the memory it was just written through.

        Raises:
            CheckpointError: the disk failed; names the folder and the remedy.
        """
        mine, policy = folder / self.state.filename, folder / POLICY_FOLDER
        try:
            self.state.write(folder)
            flush(mine)
            written = self.export_policy(policy)
            for path in (*written, policy):
                flush(path)
            return [file_record(folder, path) for path in (mine, *written)]
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{folder}: could not be written: {explained(error)}") from error
