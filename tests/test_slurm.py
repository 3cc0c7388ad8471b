"""cluster/slurm.sh, run by Slurm itself: a controller and two nodes of its own on this machine, on loopback.

What it starts are stand-ins, which write down how they were called: the runs themselves are tested elsewhere.
"""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.calibration import within

SCRIPT = Path(__file__).parents[1] / "cluster" / "slurm.sh"
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "squeue", "srun")
MISSING = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
pytestmark = [
    pytest.mark.cli,
    pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)} here (Debian: apt-get install slurm-wlm)"),
    pytest.mark.skipif(os.geteuid() != 0, reason="Slurm's daemons start jobs as root alone"),
]
NODES = ("n1", "n2")
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool-%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd-%n.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
KillWait=5
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 State=UNKNOWN
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""
SAY = 'echo "$SLURMD_NODENAME $(basename "$0") ${{*//[^[:print:]]/ }}" >>{said}\n'  # in one line
STAND_INS = {
    # saves when it is told to stop, as a run does, and is done when it is started again
    "dynframe": """[ ! -e {home}/saved ] || exit 0
trap 'touch {home}/saved; exit 143' TERM
touch {home}/training
while :; do sleep .1; done""",
    # the head listens; other nodes stay until the job is over
    "ray": """[ "$1" = start ] || exit 0
port=$(sed -n 's/.*--port=\\([0-9]*\\).*/\\1/p' <<<"$*")
[ -z "$port" ] || exec python3 -c "import socket, time; s = socket.create_server(('', $port)); time.sleep(600)"
sleep 600""",
    "python": "exit {all_joined}",
}


class Slurm:
    """Daemons of a folder of their own."""

    def __init__(self, home):
        self.home, self.said = home, home / "said"
        self.environment = os.environ | {
            "SLURM_CONF": str(home / "slurm.conf"),
            "PATH": f"{home / 'bin'}:{os.environ['PATH']}:/usr/sbin",
        }
        ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
        numbers = [port.getsockname()[1] for port in ports]
        for port in ports:
            port.close()
        (home / "slurm.conf").write_text(CONF.format(host=socket.gethostname().split(".")[0], ports=numbers, home=home))
        self.daemons = []
        for command in (["slurmctld", "-D"], *(["slurmd", "-D", "-N", node] for node in NODES)):
            self.daemons.append(
                subprocess.Popen(command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )

    def ask(self, *command, **options):
        """What one of Slurm's commands prints."""
        answer = subprocess.run(
            command, env=self.environment, cwd=self.home, capture_output=True, text=True, timeout=within(60), **options
        )
        return answer.stdout.strip()

    def until(self, is_so, told):
        """Return when it is so: Slurm tells nobody of itself."""
        deadline = time.monotonic() + within(30)
        while not is_so():
            assert time.monotonic() < deadline, f"{told}: {self.ask('squeue')} {self.log()}"
            time.sleep(0.2)

    def log(self):
        """What the job has printed."""
        return "".join(path.read_text() for path in self.home.glob("*.log") if path.name.startswith("dynframe-"))

    def stand_in(self, all_joined=0):
        """Programs in place of those that a run takes."""
        (self.home / "bin").mkdir(exist_ok=True)
        for name, does in STAND_INS.items():
            path = self.home / "bin" / name
            path.write_text(
                "#!/usr/bin/env bash\n" + (SAY + does).format(home=self.home, said=self.said, all_joined=all_joined)
            )
            path.chmod(0o755)

    def state(self, job):
        """Of a job: PENDING, RUNNING, COMPLETED, FAILED, …"""
        return self.ask("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T")

    def stop(self):
        """End jobs, then daemons."""
        self.ask("scancel", "--user=root")
        self.until(lambda: not self.ask("squeue", "--noheader"), "no job is left")
        for daemon in reversed(self.daemons):
            daemon.kill()
            daemon.wait(within(30))


@pytest.fixture
def slurm(tmp_path):
    started = Slurm(tmp_path)
    started.stand_in()
    started.until(lambda: started.ask("sinfo", "--noheader", "--format=%T") == "idle", "nodes")
    yield started
    started.stop()


def submit(slurm, *options):
    """A job's number."""
    told = slurm.ask("sbatch", "--parsable", *options, str(SCRIPT), "a.yaml", "name=x")
    assert told.isdigit(), told
    return told


def test_a_job_that_is_told_to_end_saves_is_queued_again_and_goes_on(slurm):
    job = submit(slurm)
    slurm.until((slurm.home / "training").exists, "the run")
    slurm.ask("scancel", "--batch", "--signal=TERM", job)  # as Slurm does 150 s before the end, and at a pre-emption
    slurm.until((slurm.home / "saved").exists, "the save")
    slurm.until(lambda: slurm.state(job) == "PENDING", "back in the queue")
    # by itself after two minutes; in the second of its end a node would refuse it ("credential revoked")
    slurm.ask("scontrol", "update", f"JobId={job}", "StartTime=now+3")
    slurm.until(lambda: slurm.state(job) in ("COMPLETED", "FAILED"), "the end")
    assert slurm.state(job) == "COMPLETED", slurm.log()
    assert slurm.said.read_text().splitlines() == ["n1 dynframe train a.yaml name=x resume=auto"] * 2


def test_on_two_nodes_ray_starts_on_each_and_the_run_on_the_first(slurm):
    job = submit(slurm, "--nodes=2")
    slurm.until((slurm.home / "training").exists, "the run")
    slurm.until(
        lambda: "n2 ray" in slurm.said.read_text(), "the second node"
    )  # here nobody waits for it to have joined
    said = slurm.said.read_text().splitlines()
    (head,), (worker,) = (
        [line for line in said if f" ray start --block --{kind}" in line] for kind in ("head", "address")
    )
    assert head.startswith("n1 ray start --block --head --node-ip-address=")
    address = head.partition("--node-ip-address=")[2].split()[0]
    assert f"--port={20000 + int(job)}" in head and "--dashboard-host=127.0.0.1" in head
    assert worker == f"n2 ray start --block --address={address}:{20000 + int(job)}"
    assert any(line.startswith("n1 python -c") for line in said)  # whether all have joined
    assert "n1 dynframe train a.yaml name=x resume=auto" in said
    slurm.ask("scancel", "--batch", "--signal=TERM", job)
    slurm.until((slurm.home / "saved").exists, "the save")
    slurm.until(lambda: slurm.state(job) == "PENDING", "back in the queue")


def test_nodes_that_do_not_join_are_told(slurm):
    slurm.stand_in(all_joined=1)
    job = submit(slurm, "--nodes=2")
    slurm.until(lambda: slurm.state(job) in ("COMPLETED", "FAILED"), "the end")
    assert slurm.state(job) == "FAILED"
    assert "slurm.sh: not all of n1 n2 have joined Ray within 300 s" in slurm.log()
    assert not (slurm.home / "training").exists()
