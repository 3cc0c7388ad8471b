"""What travels with a submitted job, and what a run names that will not be there.

Ray ships the working directory, without what cluster/runtime_env.yaml, .gitignore and .rayignore leave out; a job sees
nothing else of the machine that submits it, but disks that the nodes mount as well.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from pathspec import PathSpec

MIB = 2**20
MOST_BYTES = 512 * MIB  # of a working directory: what Ray's control store takes in one message
IGNORE_FILES = (".gitignore", ".rayignore")  # that Ray reads in every folder
IGNORE_GITIGNORE = "RAY_RUNTIME_ENV_IGNORE_GITIGNORE"  # "1": Ray does not read .gitignore
NETWORK_DISKS = (  # file systems that several machines mount, or beginnings of their names
    *("nfs", "cifs", "smb", "lustre", "ceph", "gpfs", "beegfs", "glusterfs", "fuse.", "9p", "virtiofs", "afs", "ocfs2"),
    *("gfs2", "orangefs", "pvfs2", "panfs", "wekafs", "quobyte"),
)
ELSEWHERE = "an absolute path on a disk that every node mounts"


@dataclass(frozen=True, slots=True)
class WorkingDirectory:
    """The folder that a job gets a copy of."""

    folder: Path  # absolute
    excludes: Sequence[str]  # patterns of the runtime environment

    def left_out_by(self, path: Path) -> str:
        """What keeps a file or folder below this one from travelling, as ".gitignore (*.jsonl)"; empty: it travels."""
        inside = path / "_" if path.is_dir() else path  # of a folder its contents count
        rules = [("cluster/runtime_env.yaml", self.folder, _rules("\n".join(self.excludes)))]
        entered = self.folder
        for part in inside.relative_to(self.folder).parts:
            rules += _ignored_in(entered)
            entered = entered / part
            for name, root, spec in rules:
                found = spec.check_file(str(entered.relative_to(root)))
                if found.include:
                    return f"{name} ({spec.patterns[found.index].pattern})"
        return ""

    def travelling(self) -> Iterator[tuple[Path, int]]:
        """Every file that travels, and its bytes."""
        for folder, folders, files in os.walk(self.folder, followlinks=True):
            here = Path(folder)
            folders[:] = [name for name in folders if not self.left_out_by(here / name)]
            for file in (here / name for name in files):
                if not self.left_out_by(file):
                    yield file, file.stat().st_size if file.exists() else 0


def missing_on_cluster(
    named: Mapping[str, str], working: WorkingDirectory, *, cluster_is_here: bool, paths_are_shared: bool
) -> dict[str, str]:
    """Files and folders that a job will not find, and why, with what to do.

    Args:
        named: by key or argument; relative ones are taken from the working directory.
        cluster_is_here: this machine is the cluster's head, where the run's driver works.
        paths_are_shared: absolute paths are the same on every node, as the user says.
    """
    reasons = {
        key: _why_absent(path, cluster_is_here, paths_are_shared)
        if Path(path).is_absolute()
        else _why_left_behind(path, working)
        for key, path in named.items()
    }
    return {key: f"{named[key]} {reason}" for key, reason in reasons.items() if reason}


def too_large(working: WorkingDirectory, most_bytes: int = MOST_BYTES) -> str:
    """Why a working directory cannot be shipped, naming what is largest in it; empty if it can be."""
    sizes: dict[str, int] = {}
    for file, size in working.travelling():
        first = file.relative_to(working.folder).parts[0]
        sizes[first] = sizes.get(first, 0) + size
    if (total := sum(sizes.values())) <= most_bytes:
        return ""
    largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
    shown = ", ".join(f"{name} ({sizes[name] / MIB:.0f} MiB)" for name in largest)
    return (
        f"{working.folder} has {total / MIB:.0f} MiB that would travel, Ray takes {most_bytes / MIB:.0f}: {shown}; "
        f"name data and models by {ELSEWHERE}, and what no job needs in .rayignore"
    )


def is_this_machine(address: str) -> bool:
    """Whether a job server's address is of a Ray that runs here; a tunnel to another machine has a loopback address."""
    host = urlsplit(address).hostname or ""
    try:
        found = {ipaddress.ip_address(entry[4][0].partition("%")[0]) for entry in socket.getaddrinfo(host, None)}
    except (OSError, ValueError):
        return False
    own = {entry.address.partition("%")[0] for entries in psutil.net_if_addrs().values() for entry in entries}
    if not any(str(each) in own for each in found):
        return False
    runs_here = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir()), "ray", "ray_current_cluster").is_file()
    return runs_here or not all(each.is_loopback for each in found)


def _why_left_behind(path: str, working: WorkingDirectory) -> str:
    """Of a relative path."""
    whole = Path(os.path.normpath(working.folder / path))
    if not whole.is_relative_to(working.folder):
        return f"lies outside of {working.folder}, the only folder that travels: put it there, or name {ELSEWHERE}"
    if not whole.exists():
        return f"is not in {working.folder}, which travels; name a file that is, or {ELSEWHERE}"
    remedy = f"put it where that does not apply, or name {ELSEWHERE}"
    if rule := working.left_out_by(whole):
        return f"does not travel: {rule} leaves it out; {remedy}"
    within = whole.rglob("*") if whole.is_dir() and whole != working.folder else ()
    visible = (
        file for file in within if not any(part.startswith((".", "__")) for part in file.relative_to(whole).parts)
    )
    for file in visible:
        if file.is_file() and (rule := working.left_out_by(file)):
            return f"travels without {file.relative_to(whole)} and perhaps more: {rule} leaves it out; {remedy}"
    return ""


def _why_absent(path: str, cluster_is_here: bool, paths_are_shared: bool) -> str:
    """Of an absolute path."""
    exists = Path(path).exists()
    if cluster_is_here and not exists:
        return "is not on this machine, the cluster's head"
    if cluster_is_here or paths_are_shared or not exists or _is_on_network_disk(path):
        return ""  # what is not here may well be there
    return (
        f"is on a disk of this machine: put it below the working directory and name it relative to that, or name "
        f"{ELSEWHERE}; where the nodes have the same path: --shared-paths"
    )


def _is_on_network_disk(path: str) -> bool:
    real = os.path.realpath(path)
    mounts = [each for each in psutil.disk_partitions(all=True) if Path(real).is_relative_to(each.mountpoint)]
    nearest = max(mounts, key=lambda each: len(each.mountpoint), default=None)
    return nearest is not None and nearest.fstype.startswith(NETWORK_DISKS)


def _ignored_in(folder: Path) -> list[tuple[str, Path, PathSpec]]:
    """The rules of a folder's own ignore files."""
    found = []
    for name in IGNORE_FILES:
        is_read = name != ".gitignore" or os.environ.get(IGNORE_GITIGNORE, "0") != "1"
        if is_read and (folder / name).is_file():
            text = (folder / name).read_text(encoding="utf-8", errors="replace")
            found.append((str(folder / name), folder, _rules(text)))
    return found


@cache
def _rules(text: str) -> PathSpec:
    return PathSpec.from_lines("gitwildmatch", text.splitlines())
