"""Weights on disk, tensor by tensor: headers of safetensors files read without torch, and files written as a stream.

A safetensors file is eight bytes of length, a JSON header that gives every tensor's dtype, shape and place, then their
bytes. `safetensors` itself writes a file from tensors that all lie in memory; here only one does.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rl.policy.token_ids import PolicyFilesError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
LONGEST_HEADER = 100_000_000  # bytes of JSON before the tensors; the format's own limit
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
BYTES |= {"F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "U32": 4, "U64": 8}
SPARE_BYTES = 2**30  # of disk, that nobody's weights may take


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor in a file: what its header says."""

    dtype: str  # as safetensors spells it: "BF16"
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in its file."""
        return math.prod(self.shape) * BYTES[self.dtype]


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of a safetensors file, by name; their bytes are not read, but they must be there.

    Raises:
        PolicyFilesError: no such file, not one of that format, or it ends too early.
    """
    try:
        with path.open("rb") as file:
            length, opening = int.from_bytes(file.read(8), "little"), file.read(1)
            size = path.stat().st_size
            if opening != b"{" or not 2 <= length <= min(LONGEST_HEADER, size - 8):
                raise PolicyFilesError(f"{path}: cannot be read: not a safetensors file; was it downloaded in full?")
            header = json.loads(opening + file.read(length - 1))
        found = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((int(entry["data_offsets"][1]) for entry in found.values()), default=0)
        tensors = {name: TensorEntry(entry["dtype"], tuple(entry["shape"])) for name, entry in found.items()}
    except OSError as error:
        raise PolicyFilesError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise PolicyFilesError(
            f"{path}: cannot be read: its header is no safetensors header ({error!r:.100})"
        ) from error
    if size != 8 + length + end:
        raise PolicyFilesError(
            f"{path}: cannot be read: {size:,} bytes, its header promises {8 + length + end:,}: the file was cut "
            "off or written over; download it again"
        )
    return tensors


def write_tensors(path: Path, entries: Mapping[str, TensorEntry], chunks: Iterable[memoryview]) -> None:
    """Write a safetensors file as its bytes come.

    Args:
        entries: every tensor of the file, in the order in which their bytes come.
        chunks: the tensors' bytes in any portions, one tensor after the other.
    Raises:
        ValueError: too many bytes, or too few.
    """
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, entry in entries.items():
        start, end = end, end + entry.nbytes
        header[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of eight, as safetensors writes them
    written = 0
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for chunk in chunks:
            file.write(chunk)
            written += chunk.nbytes
    if written != end:
        raise ValueError(f"{path}: {written} bytes of tensors were written, the header promises {end}")


def write_index(folder: Path, files: Mapping[str, Mapping[str, TensorEntry]]) -> None:
    """The index of several files, where there are several: which tensor lies in which."""
    if set(files) == {SINGLE}:
        return
    weight_map = {name: file for file, entries in files.items() for name in entries}
    total = sum(entry.nbytes for entries in files.values() for entry in entries.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def require_disk_space(folder: Path, needed: int, doing: str) -> None:
    """Ask whether the disk below `folder`, which need not be there yet, takes so many bytes.

    Raises:
        PolicyFilesError: it does not.
    """
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed + SPARE_BYTES:
        raise PolicyFilesError(
            f"{doing} takes {needed / 2**30:.1f} GiB and a spare one, {existing} has {free / 2**30:.1f} GiB free: "
            "make room, or name a folder on another disk"
        )
