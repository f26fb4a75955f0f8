"""Jobs of the rehearsal: submitted, waited for, and looked at for what they leave."""

import re
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from cluster import Cluster, wait_for

ROOT = Path(__file__).parents[2]
SCRIPT = "examples/slurm_train.sh"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
STUBS = Path(__file__).parent / "stubs"
TINY = ["--model", "tiny-served", "--task", "maxent", "--config", "rehearsal", "--accelerator", "cpu_zero3"]


@dataclass(frozen=True)
class Site:
    """Where jobs run.

    Attributes:
        cluster: Slurm.
        environment: that jobs are submitted with.
        folder: for what is not to be left behind: caches of nodes, the home folder.
    """

    cluster: Cluster
    environment: dict[str, str]
    folder: Path

    def submit(
        self, flags: list[str], *, sbatch: list[str] | None = None, variables: dict[str, str] | None = None
    ) -> str:
        """Submit the script by sbatch itself and return the job's id."""
        command = ["sbatch", "--parsable", "--gres=none", "--cpus-per-task=1", "--time=20", *(sbatch or [])]
        result = subprocess.run(
            [*command, SCRIPT, *flags],
            env=self.environment | (variables or {}),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            raise RuntimeError(f"sbatch: {result.stderr}")
        return result.stdout.strip()

    def show(self, job: str) -> dict[str, str]:
        """Return what Slurm says of a job."""
        text = self.cluster.call("scontrol", "show", "job", job, "--oneliner", check=False)
        return dict(re.findall(r"(\S+?)=(\S*)", text))


@dataclass
class JobEnd:
    """How a job ended.

    Attributes:
        job: its id.
        state: Slurm's word.
        code: its exit code.
        restarts: how often it was started again.
        minutes: from submission to end.
        log: all that it wrote.
        left: processes that were still there afterwards.
    """

    job: str
    state: str
    code: int
    restarts: int
    minutes: float
    log: str
    left: dict[int, str] = field(default_factory=dict)


def wait_for_end(site: Site, job: str, seconds: float, started: float) -> JobEnd:
    """Wait until a job has ended and return how.

    Raises:
        TimeoutError: with the job's log, if it has not.
    """
    if not wait_for(lambda: site.show(job).get("JobState") in ENDED, seconds, 0.5):
        raise TimeoutError(f"job {job} has not ended: {site.show(job)}\n{read_logs(job)[-4000:]}")
    fields = site.show(job)
    wait_for(lambda: not find_marked(job), 15)
    return JobEnd(
        job,
        fields["JobState"],
        int(fields["ExitCode"].split(":")[0]),
        int(fields.get("Restarts", "0")),
        round((time.time() - started) / 60, 2),
        read_logs(job),
        find_marked(job),
    )


def wait_for_log(site: Site, job: str, text: str, seconds: float) -> None:
    """Wait until a job has written something.

    Raises:
        TimeoutError: with the job's log, if it ends or the time is over before.
    """

    def has_come() -> bool:
        return text in read_logs(job) or site.show(job).get("JobState") in ENDED

    wait_for(has_come, seconds, 0.2)
    if text not in read_logs(job):
        raise TimeoutError(f"job {job} did not write {text!r}:\n{read_logs(job)[-4000:]}")


def read_logs(job: str) -> str:
    """Return all that a job has written."""
    logs = ROOT / "logs"
    files = [logs / f"maxent-{job}.out", logs / f"maxent-{job}.err", logs / f"train_{job}.log"]
    return "\n".join(file.read_text(errors="replace") for file in [*files, logs / f"vllm-{job}.out"] if file.exists())


def find_marked(job: str) -> dict[int, str]:
    """Return the processes that carry a job's mark, whatever became of their parents, groups and sessions."""
    marker = f"LAUNCH_JOB={job}-".encode()
    left = {}
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and b"\0" + marker in b"\0" + (folder / "environ").read_bytes():
                left[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return {pid: command for pid, command in left.items() if command}
