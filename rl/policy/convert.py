"""From a stock checkpoint of a known family to a policy folder of ours, once, a piece of a tensor at a time.

The two-frame patch kernel is expanded in time (its bias stays as it is), the tags join the tokenizer, their embedding
rows start at the mean of the existing ones plus small noise; all else is copied byte for byte, in the precision it came
in. Whatever loads a policy afterwards, ZeRO-3 included, reads an ordinary folder.

Legend: V rows of the embedding · E hidden size.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from rl.config.policy import ScenesConfig
from rl.policy.configuration import read_configuration
from rl.policy.conversion import Conversion, Source, plan_conversion, require_weights
from rl.policy.families import is_ours, read_config
from rl.policy.feature_file import write_features
from rl.policy.given_folder import require_usable
from rl.policy.patch_embed import expand_temporal_kernel
from rl.policy.policy_folder import flexivideo_section, require_scenes
from rl.policy.token_ids import PolicyFilesError
from rl.policy.tokenizer_file import COPIED, write_tokenizer
from rl.policy.weight_files import INDEX, read_rows, require_disk_space, write_index, write_tensors

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
CONVERTER = 1  # to be raised when equal files are converted to other ones
NOISE = 0.02  # of the spread of the existing rows


def prepare_policy(
    path: str | Path, scenes: ScenesConfig, cache_dir: str | Path, seed: int = 0, tool_tags: Sequence[str] = ()
) -> Path:
    """The folder to load a policy from: `path` itself if it is ours, else its conversion, made on first use.

    Args:
        tool_tags: of tools beside `span_fps`, which become tokens too.
    Raises:
        PolicyFilesError: no checkpoint there, or one of ours made for other scene parameters.
    """
    path = Path(path)
    if not (path / "config.json").is_file():
        raise PolicyFilesError(f"policy.path={path}: no config.json; give a Hugging Face folder of a policy")
    if is_ours(read_config(path / "config.json")):
        require_usable(path)
        require_scenes(read_configuration(path), scenes, path)
        require_weights(path)
        return path
    folder = converted_folder(path, scenes, cache_dir, seed, tool_tags)
    try:
        return folder if folder.is_dir() else convert_stock_checkpoint(path, folder, scenes, seed, tool_tags)
    except OSError:
        if not folder.is_dir():  # not merely another process that was faster
            raise
        return folder


def converted_folder(
    path: Path, scenes: ScenesConfig, cache_dir: str | Path, seed: int, tool_tags: Sequence[str] = ()
) -> Path:
    """Where the conversion of a stock checkpoint lies, or will lie: named after all that it is made from.

    Files count by name, size and time of their last change: weights are not read for it.
    """
    small = [path / name for name in ("config.json", INDEX, *COPIED)]
    files = [file for file in (*small, *sorted(path.glob("*.safetensors"))) if file.is_file()]
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    origin = f"{CONVERTER} {path.resolve()} {stats} {flexivideo_section(scenes)} {seed}"
    origin += f" {list(tool_tags)}" if tool_tags else ""
    return Path(cache_dir) / "converted" / hashlib.sha256(origin.encode()).hexdigest()[:16]


def convert_stock_checkpoint(
    source: str | Path, target: str | Path, scenes: ScenesConfig, seed: int = 0, tool_tags: Sequence[str] = ()
) -> Path:
    """Write the policy folder `target` from the stock checkpoint `source`. Published by a rename: whole or not there.

    Raises:
        PolicyFilesError: files are missing, unreadable or of no family that can be trained here, or the disk is full.
    """
    target = Path(target)
    plan = plan_conversion(Path(source), scenes, tool_tags)
    require_disk_space(target, plan.nbytes, f"the converted copy of {source}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        folder = Path(scratch) / target.name
        folder.mkdir()
        _write_weights(plan, folder, seed)
        plan.config.save_pretrained(folder)
        write_tokenizer(plan.source, folder, plan.tokenizer)
        if scenes.difference == "features":
            write_features(folder)
        folder.rename(target)
    return target


def _write_weights(plan: Conversion, folder: Path, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    files = {}
    for file, tensors in plan.files.items():
        entries = {name: tensor.ours for name, tensor in tensors.items()}
        pieces = (
            piece for tensor in tensors.values() for piece in _converted(plan, plan.source / file, tensor, generator)
        )
        write_tensors(folder / file, entries, pieces)
        files[file] = entries
    write_index(folder, files)


def _converted(
    plan: Conversion, path: Path, tensor: Source, generator: torch.Generator
) -> Iterator[memoryview | bytearray]:
    """The bytes of one tensor of ours."""
    if tensor.has_rows_per_token:
        yield from _with_new_rows(path, tensor, plan.new_ids, generator)
    elif tensor.is_kernel and plan.scenes.mode != "fixed":
        whole = bytearray(b"".join(read_rows(path, tensor.stock)))
        stock = torch.frombuffer(whole, dtype=DTYPES[tensor.stock.dtype]).view(tensor.stock.shape)
        yield raw_bytes(expand_temporal_kernel(stock, plan.scenes.init_frames))
    else:
        yield from read_rows(path, tensor.stock)


def _with_new_rows(
    path: Path, tensor: Source, new_ids: tuple[int, ...], generator: torch.Generator
) -> Iterator[memoryview]:
    """A row per token: those of `new_ids` and of ids that had none are the mean of the others, plus noise."""
    stock_rows, rows = tensor.stock.shape[0], tensor.ours.shape[0]
    fresh = torch.tensor(sorted({*new_ids, *range(stock_rows, rows)}), dtype=torch.long)
    mean_E, spread = _statistics(_rows(path, tensor), fresh)
    noise = torch.randn(len(fresh), len(mean_E), generator=generator) * spread * NOISE
    made = (mean_E + noise).to(DTYPES[tensor.stock.dtype])
    done = 0
    for rows_VE in _rows(path, tensor):
        here = (fresh >= done) & (fresh < done + len(rows_VE))
        rows_VE[fresh[here] - done] = made[here]
        done += len(rows_VE)
        yield raw_bytes(rows_VE)
    yield raw_bytes(made[fresh >= stock_rows])


def _rows(path: Path, tensor: Source) -> Iterator[torch.Tensor]:
    """The stock tensor, some rows (V, E) at a time."""
    for chunk in read_rows(path, tensor.stock):
        yield torch.frombuffer(chunk, dtype=DTYPES[tensor.stock.dtype]).view(-1, *tensor.stock.shape[1:])


def _statistics(portions: Iterator[torch.Tensor], fresh: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Mean row (E) and standard deviation of all values, of the rows that are not `fresh`."""
    total_E, squares, known, done = 0.0, 0.0, 0, 0
    for rows_VE in portions:
        kept = torch.ones(len(rows_VE), dtype=torch.bool)
        kept[fresh[(fresh >= done) & (fresh < done + len(rows_VE))] - done] = False
        values_VE = rows_VE[kept].float()
        total_E = total_E + values_VE.sum(0, dtype=torch.float64)
        squares += float(values_VE.square().sum(dtype=torch.float64))
        known, done = known + len(values_VE), done + len(rows_VE)
    count = known * len(total_E)
    variance = (squares - float(total_E.sum()) ** 2 / count) / (count - 1)
    return (total_E / known).float(), max(variance, 0.0) ** 0.5


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """A tensor's bytes, where they lie if that is without gaps."""
    flat = tensor.contiguous().view(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if len(flat) else memoryview(b"")
