"""A Slurm of two nodes on this machine: its own munge, controller and node daemons, in a folder of their own."""

import os
import shutil
import socket
import stat
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

NODES = ("n1", "n2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
FREEZER = Path("/sys/fs/cgroup/freezer")

CONFIGURATION = """
ClusterName=rehearsal
FirstJobId={first}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType={proctrack}
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout=30
KillWait=10
InactiveLimit=0
MinJobAge=3600
JobRequeue=1
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmctldParameters=idle_on_node_suspend
SchedulerParameters=sched_interval=1,bf_interval=2,sched_min_interval=0,requeue_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes={nodes} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes={nodes} MaxTime=INFINITE State=UP OverSubscribe=NO PriorityTier=2 PreemptMode=OFF
"""


@dataclass
class Cluster:
    """A running cluster.

    Attributes:
        folder: configuration, state and logs; removed by `stop`.
        proctrack: how a job's processes are kept track of.
        environment: what a command needs to reach it.
    """

    folder: Path
    proctrack: str
    environment: dict[str, str] = field(default_factory=dict)

    def call(self, *command: str, check: bool = True) -> str:
        """Run a command against the cluster and return what it prints."""
        result = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        if check and result.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit {result.returncode}: {result.stdout}{result.stderr}")
        return result.stdout.strip()

    def start_node(self, name: str) -> None:
        """Start a node's daemon."""
        self.call("slurmd", "-N", name, "-c")

    def kill_node(self, name: str) -> None:
        """Kill a node's daemon, as a crash would."""
        os.kill(int((self.folder / f"slurmd.{name}.pid").read_text()), 9)

    def stop(self) -> None:
        """Cancel what is left, end the daemons by their process ids and remove the folder."""
        jobs = self.call("squeue", "--noheader", "--format=%i", check=False).split()
        if jobs:
            self.call("scancel", *jobs, check=False)
            wait_for(lambda: not self.call("squeue", "--noheader", "--format=%i", check=False), 40)
        for name in [*(f"slurmd.{node}" for node in NODES), "slurmctld", "munged"]:
            _end_daemon(self.folder / f"{name}.pid")
        shutil.rmtree(self.folder, ignore_errors=True)


def find_missing_programs() -> list[str]:
    """Return the programs of Slurm that are not installed."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


def install_slurm() -> None:
    """Install Slurm from Debian's packages where it is missing.

    Raises:
        SystemExit: without root, or where the packages cannot be had, naming them.
    """
    missing = find_missing_programs()
    if os.geteuid() != 0:
        raise SystemExit(
            f"rehearsal: Expected root, to start the daemons of {', '.join(PACKAGES)}, got user {os.geteuid()}."
        )
    if not missing:
        return
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *PACKAGES]
    for command in (["apt-get", "update", "--quiet"], install):
        result = subprocess.run(
            command,
            env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            raise SystemExit(f"rehearsal: {' '.join(command)} failed:\n{result.stdout}{result.stderr}")
    if missing := find_missing_programs():
        raise SystemExit(f"rehearsal: Expected {', '.join(PACKAGES)} to bring {', '.join(missing)}.")


def start_cluster(folder: Path, *, gpus: int = 0) -> Cluster:
    """Start munge, the controller and two nodes.

    Args:
        folder: for everything that they keep; made here.
        gpus: of each node, as devices that stand for them; 0 for a site without gres.

    Raises:
        RuntimeError: if the nodes are not idle within 20 seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)  # munge refuses a socket that some users could not reach
    for name in ("state", *(f"spool.{node}" for node in NODES)):
        (folder / name).mkdir()
    # Processes are tracked by cgroup where it can be: then no survivor of a job is possible.
    proctrack = "proctrack/cgroup" if os.access(FREEZER, os.W_OK) else "proctrack/linuxproc"
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
    _write_configuration(folder, proctrack, gpus)
    environment = os.environ | {
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin",
    }
    cluster = Cluster(folder, proctrack, environment)
    _start_munge(cluster)
    cluster.call("slurmctld", "-c")
    for node in NODES:
        cluster.start_node(node)
    look = ("sinfo", "-h", "-N", "-p", "main", "-o", "%t")
    if not wait_for(lambda: cluster.call(*look, check=False).split() == ["idle"] * 2, 20):
        states = cluster.call("sinfo", "-N", "-l", check=False)
        cluster.stop()
        raise RuntimeError(f"nodes are not idle: {states}")
    return cluster


def wait_for(condition: object, seconds: float, pause: float = 0.2) -> bool:
    """Wait until a function returns something true; tell whether it did in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(pause)
    return False


def find_free_ports(count: int) -> list[int]:
    """Return ports of the loopback address that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _write_configuration(folder: Path, proctrack: str, gpus: int) -> None:
    host, cpus = socket.gethostname().split(".")[0], os.cpu_count() or 1
    controller, *ports = find_free_ports(1 + len(NODES))
    first = int(time.time()) % 10_000_000 + 1000  # logs of an earlier cluster's jobs are there under their ids
    text = CONFIGURATION.format(
        folder=folder, first=first, host=host, port=controller, proctrack=proctrack, nodes=",".join(NODES)
    )
    gres = f" Gres=gpu:{gpus}" if gpus else ""
    text += "GresTypes=gpu\n" if gpus else ""
    for node, port in zip(NODES, ports, strict=True):
        text += (
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} "
            f"RealMemory=4000{gres} State=UNKNOWN\n"
        )
    (folder / "slurm.conf").write_text(text)
    if gpus:
        devices = "\n".join(f"Name=gpu File={folder}/gpu{index}" for index in range(gpus))
        for index in range(gpus):  # Slurm counts devices alone: each of these is another /dev/null
            os.mknod(folder / f"gpu{index}", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        (folder / "gres.conf").write_text(devices + "\n")


def _start_munge(cluster: Cluster) -> None:
    """Start a munge of the cluster's own, so that one that runs here is left alone."""
    folder = cluster.folder
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    files = {"key-file": key, "socket": folder / "munge.socket", "pid-file": folder / "munged.pid"}
    files |= {"log-file": folder / "munged.log", "seed-file": folder / "munge.seed"}
    cluster.call("munged", *(f"--{name}={path}" for name, path in files.items()))


def _end_daemon(pid_file: Path) -> None:
    """End the daemon that wrote its process id here, and wait until it is gone."""
    if not pid_file.exists() or not pid_file.read_text().strip():
        return
    pid = int(pid_file.read_text())
    for signal_number in (15, 9):
        try:
            os.kill(pid, signal_number)
        except ProcessLookupError:
            return
        if wait_for(lambda: not Path(f"/proc/{pid}").exists(), 5):
            return
