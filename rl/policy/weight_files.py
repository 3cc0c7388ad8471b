"""Weights on disk, tensor by tensor: headers of safetensors files and their index, and files written as a stream.

A safetensors file is eight bytes of length, a JSON header that gives every tensor's dtype, shape and place, then their
bytes. `safetensors` itself writes a file from tensors that all lie in memory; here only a part of one does. No torch.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rl.policy.token_ids import PolicyFilesError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
FLOATS = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}  # what can be trained as it is, and torch's names
READ_AT_ONCE = 2**24  # bytes
LONGEST_HEADER = 100_000_000  # bytes of JSON before the tensors; the format's own limit
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
BYTES |= {"F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "U32": 4, "U64": 8}
SPARE_BYTES = 2**30  # of disk, that nobody's weights may take


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor in a file: what its header says."""

    dtype: str  # as safetensors spells it: "BF16"
    shape: tuple[int, ...]
    start: int = 0  # byte of the file where it begins; of no meaning before it is written

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in its file."""
        return math.prod(self.shape) * BYTES[self.dtype]


def read_weights(folder: Path) -> dict[str, dict[str, TensorEntry]]:
    """The tensors of a checkpoint, file by file, as its index says; none of their bytes are read.

    Raises:
        PolicyFilesError: a file or a tensor that the index names is missing, a file was cut off, two sets of weights
            lie side by side, or the weights are quantised; names the file and the tensor.
    """
    index, single = folder / INDEX, folder / SINGLE
    placed = read_index(index) if index.is_file() else {SINGLE: ()}
    if index.is_file() and single.is_file():
        raise PolicyFilesError(
            f"{folder}: {SINGLE} beside {INDEX}: an engine would read the one and a learner the other; delete the one "
            "that is not the model's"
        )
    if not index.is_file() and not single.is_file():
        raise PolicyFilesError(
            f"{folder}: no weights: neither {INDEX} nor {SINGLE}; was it copied in full? (They must be safetensors.)"
        )
    for file, names in placed.items():
        if not (folder / file).is_file():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise PolicyFilesError(
                f"{folder / file}: no such file, and {INDEX} places {names[0]}{more} in it; download it again"
            )
    files = {file: read_header(folder / file) for file in placed}
    for file, names in placed.items():
        if absent := [name for name in names if name not in files[file]]:
            raise PolicyFilesError(
                f"{folder / file}: no tensor {absent[0]} in it, where {INDEX} places it: they are of different "
                "checkpoints; download both again"
            )
        for name, entry in files[file].items():
            if entry.dtype not in FLOATS:
                raise PolicyFilesError(
                    f"{folder / file}: {name} is {entry.dtype}: quantised weights cannot be trained; take the "
                    "checkpoint in bfloat16"
                )
    return files


def has_weights(folder: Path) -> bool:
    """Whether every file of weights is there, as the index has them; what is wrong in them `read_weights` tells."""
    index = folder / INDEX
    try:
        placed = read_index(index) if index.is_file() else {SINGLE: []}
    except PolicyFilesError:  # it is there, and no later download would make it another
        return True
    return all((folder / file).is_file() for file in placed)


def stored_dtype(folder: Path) -> str:
    """The type, as torch calls it, in which a checkpoint stores most of its weights.

    Raises:
        PolicyFilesError: as `read_weights`, or there are no weights.
    """
    stored: Counter[str] = Counter()
    for entries in read_weights(folder).values():
        for entry in entries.values():
            stored[entry.dtype] += entry.nbytes
    if not stored:
        raise PolicyFilesError(f"{folder}: its weights' files hold no tensors; was it copied in full?")
    return FLOATS[stored.most_common(1)[0][0]]


def read_index(path: Path) -> dict[str, list[str]]:
    """Which tensors an index places in which file.

    Raises:
        PolicyFilesError: it is not an index, or names files elsewhere.
    """
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        placed: dict[str, list[str]] = {}
        for name, file in weight_map.items():
            if not isinstance(file, str) or Path(file).name != file:
                raise PolicyFilesError(f"{path}: {file!r:.100} is not a file beside it")
            placed.setdefault(file, []).append(name)
    except PolicyFilesError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise PolicyFilesError(f"{path}: not an index of weights ({error!r:.100}); download it again") from error
    return dict(sorted(placed.items()))


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of a safetensors file, by name; their bytes are not read, but they must be there.

    Raises:
        PolicyFilesError: no such file, not one of that format, or it ends too early.
    """
    try:
        with path.open("rb") as file:
            length, size = int.from_bytes(file.read(8), "little"), path.stat().st_size
            text = file.read(length) if 2 <= length <= min(LONGEST_HEADER, size - 8) else b""
    except OSError as error:
        raise PolicyFilesError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not text.startswith(b"{"):
        raise PolicyFilesError(f"{path}: cannot be read: not a safetensors file; was it downloaded in full?")
    try:
        found = {name: entry for name, entry in json.loads(text).items() if name != "__metadata__"}
        end = max((int(entry["data_offsets"][1]) for entry in found.values()), default=0)
        tensors = {
            name: TensorEntry(entry["dtype"], tuple(entry["shape"]), 8 + length + int(entry["data_offsets"][0]))
            for name, entry in found.items()
        }
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise PolicyFilesError(f"{path}: cannot be read: not a safetensors file ({error!r:.100})") from error
    if size != 8 + length + end:
        raise PolicyFilesError(
            f"{path}: cannot be read: {size:,} bytes, its header promises {8 + length + end:,}: the file was cut "
            "off or written over; download it again"
        )
    return tensors


def read_rows(path: Path, entry: TensorEntry) -> Iterator[bytearray]:
    """A tensor's bytes in portions of whole rows: what lies behind one place of its first dimension."""
    row = entry.nbytes // entry.shape[0] if entry.shape and entry.shape[0] else entry.nbytes
    portion = max(1, READ_AT_ONCE // max(row, 1)) * row
    with path.open("rb") as file:
        file.seek(entry.start)
        for place in range(0, entry.nbytes, portion or 1):
            chunk = bytearray(min(portion, entry.nbytes - place))
            if file.readinto(chunk) != len(chunk):
                raise PolicyFilesError(f"{path}: cannot be read: it ended while it was read; download it again")
            yield chunk


def write_tensors(path: Path, entries: Mapping[str, TensorEntry], chunks: Iterable[memoryview | bytearray]) -> None:
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
            written += len(chunk)
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
