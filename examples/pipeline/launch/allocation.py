"""A job in its allocation: what ends it, and that nothing of it is left, whatever it does."""

import contextlib
import signal
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import TextIO

from maxent_grpo._secrets import hide_secrets
from maxent_grpo.pipeline.launch.commands import NODE_PROGRAM
from maxent_grpo.pipeline.launch.environment import MASK, build_environment, is_secret_variable
from maxent_grpo.pipeline.launch.errors import Exit, LaunchError
from maxent_grpo.pipeline.launch.node import MARKER, SWEEP
from maxent_grpo.pipeline.launch.options import Options
from maxent_grpo.pipeline.launch.steps import Step, call_slurm, run_step
from maxent_grpo.pipeline.launch.survey import build_node_step, read_lines

TAIL = 15
REQUEUE_SECONDS = 30.0


class CanceledError(Exception):
    """The job was asked to end."""


class JobRunner(ABC):
    """Runs a job in its allocation.

    Args:
        options: the flags.
        root: the repository, which is the working directory.
        given: the environment of the script.
    """

    def __init__(self, options: Options, root: Path, given: Mapping[str, str]) -> None:
        self.options, self.root, self.given = options, root, dict(given)
        self.job_id = given["SLURM_JOB_ID"]
        self.restarts = int(given.get("SLURM_RESTART_COUNT", "0") or 0)
        self.environment: dict[str, str] = {}
        self.steps: list[Step] = []

    @abstractmethod
    def work(self) -> bool:
        """Do what the job is for; return whether it is to start again.

        Raises:
            LaunchError: if it does not end well.
        """

    def run(self) -> int:
        """Run the job to its end; return its exit code, having said why where it is not 0."""
        self._install_handlers()
        wants_requeue, code = False, Exit.DONE
        try:
            if self.restarts:
                self._sweep(self.restarts - 1)  # a start whose node failed could not do it
            wants_requeue = self.work()
        except LaunchError as error:
            code = error.code
            self._explain(error)
        except CanceledError:
            code = Exit.CANCELED
            self.say("canceled")
        except Exception:  # whatever it is, the job's processes are ended below
            code = Exit.TRAINER_FAILED
            traceback.print_exc()
        # Slurm may send TERM again while the end is made.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        left = self._end_all()
        if left and code == Exit.DONE:
            code = Exit.LEFTOVERS
        if wants_requeue and code == Exit.DONE:
            self._requeue()
        self.say(f"ended with exit code {int(code)}")
        return int(code)

    def set_environment(self, addresses: list[str], more: dict[str, str]) -> None:
        """Set the variables of all that the job starts.

        Args:
            addresses: of the servers, which no proxy is to be asked for.
            more: of this kind of job.
        """
        marker = f"{self.job_id}-{self.restarts}"
        extra = build_environment(self.given, root=self.root, job=marker, addresses=addresses)
        self.environment = self.given | extra | more
        # A step asks for its own GPUs and tasks; what the job asked for would contradict it.
        for name in ("SLURM_CPUS_PER_TASK", "SLURM_NTASKS_PER_NODE", "SLURM_TRES_PER_TASK"):
            self.environment.pop(name, None)

    def start_step(self, name: str, command: list[str]) -> Step:
        """Start a step, which is ended with the job."""
        self.steps.append(Step(name, command, self.environment))
        return self.steps[-1]

    def expect_not_canceled(self) -> None:
        """Take the end of a step for what it is where Slurm ends the whole job.

        Raises:
            CanceledError: if it does.
        """
        state = call_slurm(["scontrol", "show", "job", self.job_id, "--oneliner"])
        if any(f"JobState={name}" in state for name in ("CANCELLED", "COMPLETING", "TIMEOUT", "PREEMPTED")):
            raise CanceledError

    def _requeue(self) -> None:
        self.say("asking Slurm to start the job again")
        call_slurm(["scontrol", "requeue", self.job_id])
        time.sleep(REQUEUE_SECONDS)  # Slurm ends this script; without the pause it would have ended by itself

    def _end_all(self) -> dict[str, str]:
        """End all steps; return what was still there of the job, which is then ended too."""
        for step in reversed(self.steps):
            step.end()
        return self._sweep(self.restarts) if self.environment else {}

    def _sweep(self, start: int) -> dict[str, str]:
        """End what a start of the job has left on its nodes, and remove its caches; return what was still there."""
        name = f"{self.job_id}-{start}"
        command = ["sweep", "--marker", f"{MARKER}={name}", "--grace", "1"]
        nodes = int(self.given.get("SLURM_JOB_NUM_NODES", "1"))
        # The sweep's own step must not carry the marker, or it would find itself.
        sweep = [*NODE_PROGRAM, *command]
        _, output = run_step(build_node_step(nodes, "sweep", sweep), self.given, 120)
        if SWEEP not in output:  # Slurm starts no step in a job that it is ending
            _, output = run_step(sweep, self.given, 120)
        left = {
            f"{line['name']}:{pid}": text for line in read_lines(output, SWEEP) for pid, text in line["left"].items()
        }
        for place, text in left.items():
            self.say(f"left behind and ended: {place} {self._mask(text)[:200]}")
        return left

    def _install_handlers(self) -> None:
        def cancel(number: int, frame: FrameType | None) -> None:
            raise CanceledError

        signal.signal(signal.SIGTERM, cancel)
        signal.signal(signal.SIGINT, cancel)

    def _explain(self, error: LaunchError) -> None:
        self.say(f"error: {self._mask(str(error))}", file=sys.stderr)
        if error.log is None:
            return
        with contextlib.suppress(OSError):
            lines = (self.root / error.log).read_text(errors="replace").splitlines()[-TAIL:]
            text = "\n".join(f"  {line}" for line in lines)
            self.say(f"the last lines of {error.log}:\n{self._mask(text)}", file=sys.stderr)

    def _mask(self, text: str) -> str:
        for name, value in self.given.items():
            if is_secret_variable(name, value) and len(value) > 4:
                text = text.replace(value, MASK)
        return hide_secrets(text)

    def say(self, text: str, file: TextIO | None = None) -> None:
        print(f"[{time.strftime('%T')}] {text}", file=file or sys.stdout, flush=True)
