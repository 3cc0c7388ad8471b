"""Several machines on one, made of Linux namespaces: each with processes, an address, mounts and shared memory of its
own, joined by a bridge. What happens to one does not reach another; killing one is pulling its plug.

A machine is the first process of its namespaces: with it end all others, its network and its mounts, and nothing is
left. So do all machines when this process ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

NETWORK, PREFIX, PER_PART = "10.77", 16, 250  # of the bridge, which no other network namespace sees
TOOLS = ("unshare", "nsenter", "ip", "tc", "mount")
SETUP_S = 60.0  # for one command that sets up a machine
GONE_S = 30.0  # for a killed machine to be gone
MIB = 2**20


class MachinesError(RuntimeError):
    """No machines can be made here, or one could not be set up; says what is missing."""


@cache
def why_not() -> str:
    """Why no machines can be made here; empty: they can. All that they are made of is tried once."""
    if missing := [tool for tool in TOOLS if shutil.which(tool, path=_search_path()) is None]:
        return f"{', '.join(missing)} not found (Debian: apt-get install util-linux iproute2 mount)"
    if os.geteuid() != 0:
        return "only root may make namespaces here"
    parts = (
        "ip link add probe type bridge",
        "ip link add one type veth peer name other",
        f"tc qdisc add dev one {' '.join(_shape(1.0))}",
        "mount -t tmpfs tmpfs /mnt",
    )
    try:
        tried = _tried("unshare", "--net", "--mount", "--pid", "--fork", "sh", "-c", " && ".join(parts))
    except subprocess.TimeoutExpired:
        return f"namespaces cannot be made within {SETUP_S:.0f} s"
    return "" if tried.returncode == 0 else f"namespaces are not permitted: {tried.stderr.strip()[:200]}"


@dataclass(eq=False, slots=True)
class Machine:
    """One machine."""

    index: int
    address: str
    root: subprocess.Popen[bytes]  # with which all of it ends
    unplug: Callable[[], None]  # nothing is sent or received from then on

    @property
    def is_up(self) -> bool:
        """It was not killed."""
        return self.root.poll() is None

    @property
    def pid(self) -> int:
        """Of the first process in its namespaces, as this process numbers it."""
        children = Path(f"/proc/{self.root.pid}/task/{self.root.pid}/children").read_text(encoding="utf-8").split()
        return int(children[0])

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """A command on this machine, as subprocess.Popen; it does not outlive the machine."""
        inside = ["nsenter", "--target", str(self.pid), "--net", "--mount", "--pid", "--", *command]
        options.setdefault("env", dict(os.environ))
        options["env"] = {**options["env"], "PATH": _search_path()}
        return subprocess.Popen(inside, stdin=subprocess.DEVNULL, **options)

    def run(self, *command: str, timeout_s: float = SETUP_S, env: Mapping[str, str] = MappingProxyType({})) -> str:
        """What a command on this machine prints.

        Args:
            env: variables beside those of this process.
        Raises:
            MachinesError: it fails, or does not end in time.
        """
        environment = {**os.environ, **env}
        with tempfile.TemporaryFile("w+") as told:  # no pipe, which whatever it leaves behind would hold open
            process = self.start(command, stdout=told, stderr=subprocess.STDOUT, env=environment)
            try:
                code = process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                raise MachinesError(f"{' '.join(command)} on {self.address}: no end within {timeout_s:.0f} s") from None
            told.seek(0)
            text = told.read()
        if code:
            raise MachinesError(f"{' '.join(command)} on {self.address}: {text.strip()[-500:]}")
        return text

    def limit_network(self, mbit: float) -> None:
        """Send at most so much from now on, in Mbit/s; 0: as fast as it can."""
        if mbit:
            self.run("tc", "qdisc", "replace", "dev", "eth0", *_shape(mbit))
        elif "tbf" in self.run("tc", "qdisc", "show", "dev", "eth0"):
            self.run("tc", "qdisc", "del", "dev", "eth0", "root")

    def kill(self) -> None:
        """Pull its plug: nobody hears from it any more, and all its processes are gone."""
        if not self.is_up:  # its process id may be another's by now
            return
        self.unplug()
        with contextlib.suppress(ProcessLookupError, IndexError, FileNotFoundError):
            os.kill(self.pid, 9)
        self.root.kill()
        self.root.wait(GONE_S)


@dataclass(slots=True)
class Machines:
    """A bridge and the machines on it, as a context: all of them are gone afterwards."""

    shared_memory_mib: int = 512  # of each machine's /dev/shm
    all: list[Machine] = field(default_factory=list)  # also those that were killed
    folder: str = ""  # an empty one with a short path, at which each machine may have a disk of its own
    _bridge: subprocess.Popen[bytes] | None = None
    _is_over: bool = False

    def __enter__(self) -> Machines:
        """
        Raises:
            MachinesError: there are none here.
        """
        if reason := why_not():
            raise MachinesError(reason)
        self.folder = tempfile.mkdtemp(prefix="dynframe-", dir="/tmp")  # short: a socket's path ends at 107 bytes
        try:
            self._bridge = _isolated("--net", "cat")
            self._on_bridge("ip", "link", "add", "bridge", "type", "bridge")
            self._on_bridge("ip", "link", "set", "bridge", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        for machine in self.all:
            machine.kill()
        if self._bridge is not None:
            self._bridge.kill()
            self._bridge.wait(GONE_S)
        with contextlib.suppress(OSError):
            os.rmdir(self.folder)

    def add(self, own: Mapping[str, int] | None = None) -> Machine:
        """Another machine, up and connected.

        Args:
            own: folders that it has a disk of its own at, empty, in memory: MiB by path.
        Raises:
            MachinesError: it could not be set up, or all are gone already.
        """
        index = len(self.all)
        root = _isolated("--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "cat")
        address = f"{NETWORK}.{index // PER_PART}.{index % PER_PART + 1}"
        machine = Machine(index, address, root, lambda: self._unplug(index))
        self.all.append(machine)
        if self._is_over:  # meanwhile, in another thread
            machine.kill()
            raise MachinesError("the machines are gone")
        end = ("type", "veth", "peer", "name", "eth0", "netns", str(machine.pid))
        self._on_bridge("ip", "link", "add", f"to{index}", *end)
        self._on_bridge("ip", "link", "set", f"to{index}", "master", "bridge", "up")
        mounts = {"/dev/shm": self.shared_memory_mib, **(own or {})}
        machine.run("sh", "-c", " && ".join(chain(_connect(machine.address), _mounts(mounts))))
        return machine

    def _unplug(self, index: int) -> None:
        with contextlib.suppress(MachinesError):  # it was not connected yet, or the bridge is gone
            self._on_bridge("ip", "link", "set", f"to{index}", "down")

    def _on_bridge(self, *command: str) -> None:
        assert self._bridge is not None
        tried = _tried("nsenter", "--target", str(self._bridge.pid), "--net", "--", *command)
        if tried.returncode:
            raise MachinesError(f"{' '.join(command)}: {tried.stderr.strip()[:300]}")


def _shape(mbit: float) -> tuple[str, ...]:
    """Arguments of tc for a link that is slower."""
    return ("root", "tbf", "rate", f"{mbit:g}mbit", "burst", "64kbit", "latency", "400ms")


def _connect(address: str) -> list[str]:
    return ["ip link set lo up", f"ip address add {address}/{PREFIX} dev eth0", "ip link set eth0 up"]


def _mounts(sizes: Mapping[str, int]) -> list[str]:
    return [f"mount -t tmpfs -o size={mib}m tmpfs {shlex.quote(folder)}" for folder, mib in sizes.items()]


def _isolated(*arguments: str) -> subprocess.Popen[bytes]:
    """A process in namespaces of its own, once it runs: it ends with this one, whose end of the pipe it reads."""
    command = [*arguments[:-1], "sh", "-c", f"echo; exec {arguments[-1]}"]
    process = subprocess.Popen(
        ["unshare", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    if select.select([process.stdout], [], [], SETUP_S)[0] and process.stdout.readline():
        return process
    process.kill()
    process.wait(GONE_S)
    raise MachinesError("a process in namespaces of its own ended at once, or did not start")


def _tried(*command: str) -> subprocess.CompletedProcess[str]:
    """A command on this machine, whether it fails or not."""
    environment = os.environ | {"PATH": _search_path()}
    return subprocess.run(command, capture_output=True, text=True, timeout=SETUP_S, env=environment)


def _search_path() -> str:
    """PATH with the folders of programs for administrators, which users' often lacks."""
    return os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
