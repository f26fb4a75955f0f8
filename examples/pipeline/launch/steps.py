"""Steps of a job while they run: started by srun, ended by scancel, never by name."""

import contextlib
import re
import subprocess
import time
from collections.abc import Mapping, Sequence

GRACE = 20.0
"""Seconds between TERM and KILL."""
REQUESTS = re.compile(
    r"SLURM_(GPUS|GPUS_PER_\w+|GPU_BIND|GPU_FREQ|GRES|STEP_GRES|TRES_PER_TASK|\w+_PER_GPU|MEM_PER_(CPU|NODE)"
    r"|CPUS_PER_TASK|NTASKS_PER_NODE|EXPORT_ENV)|SRUN_EXPORT_ENV"
)
"""Variables of the job that srun reads as flags."""


class Step:
    """A running step.

    Args:
        name: under which Slurm lists it.
        command: srun's.
        environment: of everything in it.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.name, self.environment = name, clean_environment(environment)
        # A session of its own: a signal to the script does not reach srun, which would take it for its user's.
        self.process = subprocess.Popen(
            command, env=self.environment, stdin=subprocess.DEVNULL, start_new_session=True
        )

    def poll(self) -> int | None:
        """Return the exit code, or None while the step runs."""
        return self.process.poll()

    def end(self, grace: float = GRACE) -> None:
        """End the step: TERM, and KILL where that does not help."""
        for signal_name, seconds in (("TERM", grace), ("KILL", grace)):
            if self.poll() is not None:
                return
            self._signal(signal_name)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
        if self.poll() is None:
            self.process.kill()
            self.process.wait()

    def _signal(self, signal_name: str) -> None:
        job = self.environment["SLURM_JOB_ID"]
        listing = call_slurm(["squeue", "--steps", f"--jobs={job}", "--noheader", "--format=%i %j"])
        for line in listing.splitlines():
            step, _, name = line.strip().partition(" ")
            if name == self.name:
                call_slurm(["scancel", f"--signal={signal_name}", step])


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what srun would take from it for flags.

    A step says itself what it asks for, and the job's own request, or `sbatch --export=NONE`, would contradict it.
    """
    return {name: value for name, value in environment.items() if not REQUESTS.fullmatch(name)}


def ask_slurm(command: Sequence[str], seconds: float = 60.0) -> str | None:
    """Give Slurm a command; return what it says against it, or None."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (result.stderr.strip() or f"exit code {result.returncode}") if result.returncode else None


def call_slurm(command: Sequence[str], seconds: float = 60.0) -> str:
    """Return what a command of Slurm prints; nothing where it fails or does not answer."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout


def run_step(command: Sequence[str], environment: Mapping[str, str], seconds: float) -> tuple[int, str]:
    """Run a short step to its end; return its exit code and output.

    Args:
        command: srun's.
        environment: of everything in it.
        seconds: after which it counts as failed.
    """
    process = subprocess.Popen(
        command,
        env=clean_environment(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    started = time.monotonic()
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        output += f"\nno end after {time.monotonic() - started:.0f} seconds"
    return process.returncode, output
