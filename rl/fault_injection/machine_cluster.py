"""A Ray cluster over several machines (rl.fault_injection.machines): a head and nodes that come and go."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from rl.fault_injection.machines import MIB, Machine, Machines, MachinesError

PORT = 6379
CHECKS = 3  # of a node's health that must fail in a row
RAY_DISK_MIB = 512  # of each machine's own, for Ray's sockets and logs


@dataclass(slots=True)
class MachineCluster:
    """Ray on machines: `head` first, then `add_node` as often as wanted. Clients need a token, as on a real cluster."""

    machines: Machines
    object_store_mib: int = 128  # of each node
    start_s: float = 180.0  # for a node's processes to be up
    lost_after_s: float = 0.0  # a silent node counts as dead; 0: Ray's own rule, about half a minute
    nodes: list[Machine] = field(default_factory=list)  # in the order of their starts, the head first
    token: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)

    @property
    def head(self) -> Machine:
        """Where the driver runs."""
        return self.nodes[0]

    @property
    def address(self) -> str:
        """RAY_ADDRESS of a driver."""
        return f"{self.head.address}:{PORT}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to join; a command of this project has told Ray to stay on loopback."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
        }

    def start_head(self, cpus: int, own: Mapping[str, int] | None = None) -> Machine:
        """The first node; `own` as in Machines.add.

        Raises:
            MachinesError: Ray did not start there.
        """
        # what the head service knows is on its node's disk, so that it may be started again
        system: dict[str, str | int] = {"gcs_storage": "rocksdb", "gcs_storage_path": f"{self.machines.folder}/gcs"}
        if self.lost_after_s:
            system |= {"health_check_initial_delay_ms": 0, "health_check_failure_threshold": CHECKS}
            every_ms = round(1000 * self.lost_after_s / CHECKS)
            system |= {"health_check_period_ms": every_ms, "health_check_timeout_ms": every_ms}
        place = ("--head", f"--port={PORT}", "--include-dashboard=false", f"--system-config={json.dumps(system)}")
        return self._start(cpus, own, *place)

    def add_node(self, cpus: int, own: Mapping[str, int] | None = None) -> Machine:
        """A node that joins the head.

        Raises:
            MachinesError: Ray did not start there.
        """
        return self._start(cpus, own, f"--address={self.address}")

    def _start(self, cpus: int, own: Mapping[str, int] | None, *place: str) -> Machine:
        machine = self.machines.add({**(own or {}), self.machines.folder: RAY_DISK_MIB})
        session = f"{self.machines.folder}/{machine.index}"  # another path on each
        size = f"--object-store-memory={self.object_store_mib * MIB}"
        here = (f"--node-ip-address={machine.address}", f"--num-cpus={cpus}", size, f"--temp-dir={session}")
        ray = (sys.executable, "-m", "ray.scripts.scripts", "start")
        try:
            machine.run(*ray, *place, *here, "--disable-usage-stats", timeout_s=self.start_s, env=self.environment)
        except MachinesError:
            machine.kill()
            raise
        self.nodes.append(machine)
        return machine
