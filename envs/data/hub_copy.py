"""A local copy of a data set's repository on the hub: which of its files a subset and a split are.

A copy is a folder as `hf download OWNER/NAME --repo-type dataset --local-dir FOLDER` makes it, the hub cache's folder
of the repository or of one of its snapshots, or a clone. Its README.md may say which files are which (`configs`); where
it does not, their names do, as the `datasets` library reads them: `train-00000-of-00005.parquet`, `test/0.jsonl`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from envs.data.rows import DatasetError, shortened

CARD, LONGEST_CARD = "README.md", 4 * 2**20  # bytes of it that are read
MANIFESTS = ("dataset_info.json", "dataset_infos.json", "state.json")  # of `datasets`; no rows
_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.\w+(?:\.gz)?")
_LFS = b"version https://git-lfs"


class Part(NamedTuple):
    """Which rows of a repository: `subset` is what the hub shows as such (`config_name`)."""

    split: str = ""  # empty: the only one
    subset: str = ""  # empty: the default, or the only one


WHOLE = Part()


def snapshot_of(folder: Path) -> Path:
    """The files of a repository: of the hub cache's folder the snapshot of its main branch, else its newest."""
    if not (folder / "snapshots").is_dir() or not folder.name.startswith("datasets--"):
        return folder
    reference = folder / "refs" / "main"
    if reference.is_file() and (found := folder / "snapshots" / reference.read_text().strip()).is_dir():
        return found
    snapshots = [path for path in (folder / "snapshots").iterdir() if path.is_dir()]
    if not snapshots:
        raise DatasetError(f"{folder}: the hub's cache holds no snapshot of it; download it again")
    return max(snapshots, key=lambda path: path.stat().st_mtime_ns)


def storage_of(folder: Path) -> tuple[Path, ...]:
    """Where the files of a folder may really lie: itself, and what the hub's cache links its snapshots to."""
    home = folder.resolve()
    for above in (home, *home.parents):
        if above.parent.name == "snapshots" and (blobs := above.parent.parent / "blobs").is_dir():
            return home, blobs
    return (home,)


def files_of(folder: Path, part: Part, suffixes: Sequence[str]) -> tuple[Path, ...]:
    """The files of a subset's split, in order.

    Args:
        suffixes: of the files that the source's format reads.
    Raises:
        DatasetError: no such subset or split, several and none is named, a shard is missing, or a file was not fetched.
    """
    home = snapshot_of(folder)
    splits = _from_card(home, part.subset)
    if splits is None:
        splits = _from_names(home, part.subset, suffixes)
    name = _chosen("split", part.split, splits, folder)
    files = tuple(path for path in splits[name] if path.name.lower().endswith(tuple(suffixes)))
    if not files:
        there = sorted({"".join(path.suffixes[-1:]) for path in splits[name]})
        raise DatasetError(
            f"{folder}: split {name!r} has no file that this format reads ({', '.join(suffixes)}), but "
            f"{', '.join(there)}: choose another format"
        )
    for path in files:
        _require_fetched(path, home)
    _require_shards(files, folder)
    return files


def _from_card(home: Path, subset: str) -> dict[str, list[Path]] | None:
    """Files by split, as the card says; None: it says nothing."""
    configs = _configs(home)
    if not configs:
        return None
    default = [name for name, config in configs.items() if config.get("default") is True or name == "default"]
    name = _chosen("subset", subset or (default[0] if default else ""), configs, home)
    splits: dict[str, list[Path]] = {}
    for split, patterns in _patterns(configs[name], name, home):
        below = configs[name].get("data_dir")
        found = [path for one in patterns for path in _matching(home, f"{below}/{one}" if below else one)]
        if not found:
            raise DatasetError(
                f"{home / CARD}: subset {name!r}, split {split!r}: there is no file {', '.join(patterns)}; download it"
            )
        splits.setdefault(split, []).extend(dict.fromkeys(found))
    return splits


def _configs(home: Path) -> dict[str, Mapping[str, object]]:
    """The subsets that the card declares with their files, by name."""
    card = home / CARD
    try:
        with card.open("rb") as file:
            text = file.read(LONGEST_CARD).decode("utf-8", "replace")
    except OSError:
        return {}
    found = re.match(r"---\s*\n(.*?)\n---\s*(?:\n|\Z)", text, re.DOTALL)
    if found is None:
        return {}
    try:
        data = yaml.safe_load(found[1])
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise DatasetError(f"{card}: its front matter cannot be read as YAML; name a file of it instead") from error
    configs = data.get("configs") if isinstance(data, dict) else None
    if not isinstance(configs, list):
        return {}
    named = [config for config in configs if isinstance(config, dict) and isinstance(config.get("config_name"), str)]
    return {config["config_name"]: config for config in named if config.get("data_files") or config.get("data_dir")}


def _patterns(config: Mapping[str, object], name: str, home: Path) -> Iterator[tuple[str, list[str]]]:
    """(split, patterns of its files): the forms of `data_files`."""
    match config.get("data_files"):
        case None:
            yield "train", ["**"]
        case str() as pattern:
            yield "train", [pattern]
        case dict() as by_split:
            for split, paths in by_split.items():
                yield str(split), _texts(paths, name, home)
        case list() as entries if all(isinstance(entry, dict) for entry in entries):
            for entry in entries:
                yield str(entry.get("split", "train")), _texts(entry.get("path"), name, home)
        case other:
            yield "train", _texts(other, name, home)


def _texts(value: object, name: str, home: Path) -> list[str]:
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise DatasetError(f"{home / CARD}: subset {name!r}: 'data_files' must name files, got {shortened(value)}")
    return texts


def _matching(home: Path, pattern: str) -> list[Path]:
    """Files below the repository that a pattern of its card stands for."""
    parts = Path(pattern).parts
    if Path(pattern).is_absolute() or ".." in parts or "://" in pattern:
        raise DatasetError(f"{home / CARD}: {shortened(pattern)} lies outside of the repository; name a file instead")
    pattern = f"{pattern}/**/*" if (home / pattern).is_dir() else pattern
    pattern = f"{pattern}/*" if pattern.endswith("**") else pattern
    return sorted(path for path in home.glob(pattern) if not path.is_dir() and _is_data(path, home))


def _from_names(home: Path, subset: str, suffixes: Sequence[str]) -> dict[str, list[Path]]:
    """Files by split, as their names and folders say."""
    below = home / subset if subset else home
    if subset and (not below.is_dir() or ".." in Path(subset).parts or Path(subset).is_absolute()):
        raise DatasetError(f"{home}: its card names no subsets, and there is no folder {subset!r}; leave `subset` out")
    splits: dict[str, list[Path]] = {}
    for path in sorted(below.rglob("*")):
        if not path.is_dir() and _is_data(path, home) and path.name.lower().endswith(tuple(suffixes)):
            splits.setdefault(_split_of(path.relative_to(below)), []).append(path)
    if not splits:
        raise DatasetError(
            f"{below}: is a folder without files that this format reads ({', '.join(suffixes)}); name the annotation "
            "file, or the folder of a data set's repository"
        )
    return splits


def _split_of(path: Path) -> str:
    """By the number of its shard, else by a word in its name, else by one in its folders; else "train"."""
    if shard := _SHARD.fullmatch(path.name):
        return shard["split"]
    for part in reversed(path.parts):
        words = re.split(r"[^a-z0-9]+", part.lower())
        for split, keywords in _KEYWORDS.items():
            if any(word in keywords for word in words):
                return split
    return "train"


def _is_data(path: Path, home: Path) -> bool:
    inside = path.relative_to(home).parts
    return not any(part.startswith((".", "__")) for part in inside) and path.name not in (CARD, *MANIFESTS)


def _chosen(what: str, asked: str, there: Mapping[str, object], folder: Path) -> str:
    if asked in there:
        return asked
    names = ", ".join(map(str, there))
    if asked:
        close = difflib.get_close_matches(asked, list(there), n=1, cutoff=0.6)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise DatasetError(f"{folder}: there is no {what} {asked!r}{meant}; there are {names}")
    if len(there) > 1:
        raise DatasetError(f"{folder}: there are {len(there)} {what}s ({names}); say which one: {what}: NAME")
    return next(iter(there))


def _require_fetched(path: Path, home: Path) -> None:
    """That a file is really there, within the repository or the cache's storage, and no placeholder."""
    try:
        resolved = path.resolve(strict=True)
        with resolved.open("rb") as file:
            head = file.read(len(_LFS))
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}); download the repository again") from error
    if not any(resolved.is_relative_to(place) for place in storage_of(home)):
        raise DatasetError(f"{path}: a link that leads out of the repository; name the file itself")
    if head == _LFS:
        raise DatasetError(f"{path}: only Git LFS's pointer to it; fetch the file: git lfs pull, or `hf download`")


def _require_shards(files: Sequence[Path], folder: Path) -> None:
    """That of files numbered N of M all are there."""
    numbers: dict[tuple[Path, str, int], set[int]] = {}
    for path in files:
        if shard := _SHARD.fullmatch(path.name):
            numbers.setdefault((path.parent, shard["split"], int(shard["total"])), set()).add(int(shard["number"]))
    for (place, split, total), there in numbers.items():
        if lacking := sorted(set(range(total)) - there):
            raise DatasetError(
                f"{folder}: of the {total} shards of {split!r} in {place.name or folder.name}, {len(lacking)} are not "
                f"there (the first: {lacking[0]:05}); download the rest"
            )
