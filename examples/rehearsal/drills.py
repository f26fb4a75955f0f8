"""Drills with a stub server and a stub trainer: the same script on the same Slurm, and something goes wrong."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from cluster import wait_for
from jobs import ROOT, STUBS, TINY, JobEnd, Site, find_marked, read_logs, wait_for_end, wait_for_log

STUB_PROGRAMS = {
    "SERVER_PROGRAM": f"python {STUBS.relative_to(ROOT)}/stub_server.py",
    "TRAINER_PROGRAM": f"python {STUBS.relative_to(ROOT)}/stub_trainer.py",
}
SECONDS = 240.0


@dataclass(frozen=True)
class Drill:
    """Something that goes wrong, and how the job is to end.

    Attributes:
        name: of the drill.
        code: that the job exits with.
        texts: that its logs are to hold.
        variables: what the stubs are told.
        flags: of the script, besides those of the tiny recipe.
        sbatch: flags of sbatch.
        act: what is done to the job while it runs.
        state: of the job in the end.
        nightly: whether it differs little from another one, so that a change need not wait for it.
    """

    name: str
    code: int
    texts: tuple[str, ...]
    variables: dict[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    sbatch: tuple[str, ...] = ()
    act: Callable[[Site, str], None] | None = None
    state: str = "FAILED"
    nightly: bool = False


def kill_trainer(site: Site, job: str) -> None:
    """Kill the trainer's process, as the kernel does when memory is short."""
    wait_for_log(site, job, "stub step 2", SECONDS)
    (pid,) = [
        pid
        for pid, command in find_marked(job).items()
        if command.startswith("python") and "stub_trainer" in command and "node.py" not in command
    ]
    os.kill(pid, 9)


def ask_to_stop(site: Site, job: str) -> None:
    """Send what Slurm sends before it preempts a job or its time is over."""
    wait_for_log(site, job, "stub step 2", SECONDS)
    site.cluster.call("scancel", "--batch", "--signal=USR1", job)


def requeue_by_hand(site: Site, job: str) -> None:
    """Start a job again that was not to be started again."""
    wait_for_log(site, job, "stub step 2", SECONDS)
    site.cluster.call("scontrol", "requeue", job)


def cancel(site: Site, job: str) -> None:
    """Cancel a job as its user does."""
    wait_for_log(site, job, "stub step 2", SECONDS)
    site.cluster.call("scancel", job)


LONG = {"STUB_STEPS": "600"}
ON_GPUS = ("--accelerator", "zero3", "--args", "--use_cpu false")
GPUS = 4
"""Of each node of the cluster: devices that stand for them."""
EXPORTED = "PATH,HOME,TMPDIR,SLURM_CONF,ENV_MODE,ENV_ACTIVATE,HF_HUB_OFFLINE,SERVER_PROGRAM,TRAINER_PROGRAM"
DRILLS = (
    Drill(
        "typo in the recipe",
        2,
        ("Expected fields of this script, got --maxent_tua",),
        flags=("--args", "--maxent_tua 3"),
    ),
    Drill(
        "server never healthy",
        11,
        ("not healthy after 0.2 minutes", "stub server (unhealthy)"),
        {"STUB_SERVER": "unhealthy"},
        ("--ready-minutes", "0.2"),
    ),
    Drill(
        "server healthy but silent",
        12,
        ("answers /health and no request",),
        {"STUB_SERVER": "silent"},
        ("--ready-minutes", "0.2"),
    ),
    Drill(
        "server turns silent",
        12,
        ("the server answers no request",),
        {"STUB_SERVER": "deaf", "STUB_TRAINER": "stalls", "STUB_SECONDS": "12"},
        ("--stall-minutes", "0.3"),
        nightly=True,
    ),
    Drill(
        "server dies",
        10,
        ("stub server: died, as it was told to",),
        {"STUB_SERVER": "dies", "STUB_SECONDS": "10", **LONG},
    ),
    Drill(
        "trainer fails",
        1,
        ("The trainer failed with exit code 1", "stub trainer: failed, as it was told to"),
        {"STUB_TRAINER": "fails"},
        nightly=True,
    ),
    Drill("trainer killed", 1, ("The trainer failed with exit code 137",), LONG, act=kill_trainer),
    Drill(
        "trainer stalls",
        13,
        ("No progress for 0.1 minutes (--stall-minutes) after step 2",),
        {"STUB_TRAINER": "stalls"},
        ("--stall-minutes", "0.1"),
    ),
    Drill("process left by the trainer", 0, ("stub trainer done",), {"STUB_TRAINER": "orphan"}, state="COMPLETED"),
    Drill("scancel", 0, ("canceled",), LONG, act=cancel, state="CANCELLED"),
    Drill(
        "stop and start again",
        0,
        (
            "asked to stop (USR1)",
            "asking Slurm to start the job again",
            "restart 1 of at most 1",
            "stub trainer done",
        ),
        {"STUB_STEPS": "12"},
        ("--requeue", "1"),
        ("--requeue",),
        ask_to_stop,
        "COMPLETED",
    ),
    Drill(
        "stopped for good",
        17,
        ("not started again: restart 0 of at most --requeue 0",),
        LONG,
        act=ask_to_stop,
        nightly=True,
    ),
    Drill(
        "restarts that Slurm would refuse",
        2,
        ("submit it with sbatch --requeue",),
        flags=("--requeue", "2"),
        nightly=True,
    ),
    Drill(
        "an environment of a few variables",
        0,
        ("stub trainer done",),
        sbatch=(f"--export={EXPORTED}",),
        state="COMPLETED",
        nightly=True,
    ),
    Drill(
        "slices of one node's GPUs",
        0,
        ("stub server sees GPUs 0\n", "stub trainer sees GPUs 1,2,3\n"),
        flags=ON_GPUS,
        sbatch=(f"--gres=gpu:{GPUS}",),
        state="COMPLETED",
    ),
    Drill(
        "GPUs of a whole job",
        0,
        ("stub server sees GPUs 0,1,2,3\n", "stub trainer sees GPUs 0,1,2,3\n"),
        flags=ON_GPUS,
        sbatch=("--nodes=2", f"--gpus={2 * GPUS}"),
        state="COMPLETED",
        nightly=True,
    ),
    Drill(
        "restarts used up",
        14,
        ("Expected at most --requeue 0 restarts, got 1.",),
        LONG,
        sbatch=("--requeue",),
        act=requeue_by_hand,
        nightly=True,
    ),
)


def run_drill(site: Site, drill: Drill) -> JobEnd:
    """Run a drill.

    Raises:
        AssertionError: with the job's log, if it ends in another way.
    """
    started = time.time()
    job = site.submit([*TINY, *drill.flags], sbatch=list(drill.sbatch), variables=STUB_PROGRAMS | drill.variables)
    if drill.act is not None:
        drill.act(site, job)
    end = wait_for_end(site, job, SECONDS, started)
    expect_end(end, drill.code, drill.state, drill.texts)
    return end


def expect_end(end: JobEnd, code: int, state: str, texts: tuple[str, ...]) -> None:
    """Refuse another end of a job than this, or anything that it left behind."""
    log = end.log[-5000:]
    assert end.state == state, f"job {end.job}: expected {state}, got {end.state}\n{log}"
    assert state == "CANCELLED" or end.code == code, f"job {end.job}: expected exit {code}, got {end.code}\n{log}"
    for text in texts:
        assert text in end.log, f"job {end.job}: expected {text!r} in its logs\n{log}"
    assert not end.left, f"job {end.job} left {end.left}"


def run_drills(site: Site, *, nightly: bool = False) -> dict[str, JobEnd]:
    """Run the drills, four at a time, then those that want a node for themselves.

    Args:
        site: where jobs run.
        nightly: whether to run those as well that differ little from another one.
    """
    shutil.rmtree(ROOT / "runs/rehearsal/maxent", ignore_errors=True)  # checkpoints there would be refused
    with ThreadPoolExecutor(4) as executor:
        chosen = [drill for drill in DRILLS if nightly or not drill.nightly]
        running = {drill.name: executor.submit(run_drill, site, drill) for drill in chosen}
        ends = {name: future.result() for name, future in running.items()}
    ends["port taken"] = take_port(site)
    ends["node down"] = take_node_down(site)
    ends["preempted"] = preempt(site)
    if nightly:
        ends["two jobs on a node, first"], ends["two jobs on a node, second"] = share_node(site)
    return ends


def take_port(site: Site) -> JobEnd:
    """Take the first port that a job would choose before it looks."""
    started = time.time()
    job = site.submit(TINY, sbatch=["--hold"], variables=STUB_PROGRAMS)
    port = 20000 + int(job) % ((read_ephemeral() - 20000) // 10) * 10
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
        listener.listen()
        site.cluster.call("scontrol", "release", job)
        end = wait_for_end(site, job, SECONDS, started)
    expect_end(end, 0, "COMPLETED", (f"waiting for the server at http://127.0.0.1:{port + 1}",))
    return end


def read_ephemeral() -> int:
    """Return the first port that the kernel gives to connections."""
    with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
        return int(file.read().split()[0])


def take_node_down(site: Site) -> JobEnd:
    """Set a job's node down: Slurm starts the job again, and the trainer goes on from its checkpoint."""
    started = time.time()
    variables = STUB_PROGRAMS | {"STUB_STEPS": "12"}
    job = site.submit([*TINY, "--requeue", "1"], sbatch=["--requeue", "--nodelist=n2"], variables=variables)
    wait_for_log(site, job, "stub step 2", SECONDS)
    site.cluster.call("scontrol", "update", "nodename=n2", "state=down", "reason=drill")
    wait_for(lambda: site.show(job).get("JobState") == "PENDING", 30)
    site.cluster.call("scontrol", "update", "nodename=n2", "state=resume", check=False)  # it may be back
    end = wait_for_end(site, job, SECONDS, started)
    expect_end(end, 0, "COMPLETED", ("restart 1 of at most 1", "stub trainer done"))
    assert end.restarts == 1, end
    starts = [line for line in end.log.splitlines() if line.startswith("stub trainer (ok) from step")]
    assert [" from step 0 " in line for line in starts] == [True, False], starts
    return end


def preempt(site: Site) -> JobEnd:
    """Let a job of a higher partition take the node: Slurm sends TERM to the steps and nothing to the script."""
    started = time.time()
    variables = STUB_PROGRAMS | {"STUB_STEPS": "24"}
    job = site.submit([*TINY, "--requeue", "1"], sbatch=["--requeue", "--nodelist=n1"], variables=variables)
    wait_for_log(site, job, "stub step 2", SECONDS)
    urgent = ["--partition=urgent", "--nodelist=n1", "--exclusive", "--output=/dev/null", "--wrap=sleep 3"]
    site.cluster.call("sbatch", *urgent)
    end = wait_for_end(site, job, SECONDS, started)
    texts = ("preempted: Slurm ended the step", "restart 1 of at most 1", "stub trainer done")
    expect_end(end, 0, "COMPLETED", texts)
    assert end.restarts == 1, end
    return end


def share_node(site: Site) -> tuple[JobEnd, JobEnd]:
    """Run two jobs on one node at the same time: neither takes a port or a process of the other."""
    started = time.time()
    variables = STUB_PROGRAMS | {"STUB_STEPS": "20"}
    jobs = [site.submit(TINY, sbatch=["--nodelist=n1"], variables=variables) for _ in range(2)]
    wait_for(lambda: all("stub step 1" in read_logs(job) for job in jobs), SECONDS)
    states = [site.show(job)["JobState"] for job in jobs]
    assert states == ["RUNNING"] * 2, (states, [read_logs(job) for job in jobs])
    first, second = (wait_for_end(site, job, SECONDS, started) for job in jobs)
    for end in (first, second):
        expect_end(end, 0, "COMPLETED", ("stub trainer done",))
    return first, second


def refuse_typo(site: Site) -> None:
    """Submit a typo through the script itself: it is refused before Slurm hears of it."""
    before = site.cluster.call("squeue", "--noheader", "--format=%i")
    result = subprocess.run(
        ["bash", "examples/slurm_train.sh", *TINY, "--args", "--maxent_tua 3"],
        env=site.environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2, result
    assert "got --maxent_tua" in result.stderr, result.stderr
    assert site.cluster.call("squeue", "--noheader", "--format=%i") == before
