"""A job in its allocation: what ends it, and that nothing of it is left, whatever it does."""

import contextlib
import re
import signal
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import TextIO

from maxent_grpo._secrets import hide_secrets, is_secret
from maxent_grpo.pipeline.launch.commands import NODE_PROGRAM
from maxent_grpo.pipeline.launch.environment import MASK, build_environment
from maxent_grpo.pipeline.launch.errors import Exit, LaunchError
from maxent_grpo.pipeline.launch.node import MARKER, SWEEP
from maxent_grpo.pipeline.launch.options import Options
from maxent_grpo.pipeline.launch.steps import Step, ask_slurm, call_slurm, run_step
from maxent_grpo.pipeline.launch.survey import build_node_step, read_lines

TAIL = 15
REQUEUE_SECONDS = 60.0
TERMINATED = 128 + signal.SIGTERM
"""What srun exits with if TERM has ended its task."""


class CanceledError(Exception):
    """The job was asked to end."""


class StoppedError(Exception):
    """The job has stopped before it was done, and can go on from its checkpoint."""


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
    def work(self) -> None:
        """Do what the job is for.

        Raises:
            LaunchError: if it does not end well.
            StoppedError: if it has stopped before its end.
        """

    def run(self) -> int:
        """Run the job to its end; return its exit code, having said why where it is not 0."""
        self._install_handlers()
        code = Exit.DONE
        try:
            if self.restarts:
                self._sweep(self.restarts - 1)  # a start whose node failed could not do it
            self.work()
        except LaunchError as error:
            code = error.code
            self._explain(error)
        except StoppedError as error:
            code = Exit.STOPPED
            self.say(str(error))
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
        if code == Exit.STOPPED:
            code = self._start_again()
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

    def start_step(self, name: str, command: list[str]) -> Step:
        """Start a step, which is ended with the job."""
        self.steps.append(Step(name, command, self.environment))
        return self.steps[-1]

    def expect_own_end(self, step: str, code: int) -> None:
        """Take the end of a step for what it is where Slurm has ended it.

        A preemption with a grace time sends TERM to the steps and nothing to this script, in a job that still runs.

        Args:
            step: its name.
            code: that it ended with.

        Raises:
            CanceledError: if Slurm ends the whole job.
            StoppedError: if the job is preempted.
        """
        state = self.show_job()
        if any(f"JobState={name}" in state for name in ("CANCELLED", "COMPLETING", "TIMEOUT", "PREEMPTED")):
            raise CanceledError
        if code == TERMINATED or re.search(r"PreemptTime=\d", state):
            raise StoppedError(f"preempted: Slurm ended the step {step}, and the job still runs (exit code {code})")

    def show_job(self) -> str:
        """Return what Slurm says of the job; nothing where it does not answer."""
        return call_slurm(["scontrol", "show", "job", self.job_id, "--oneliner"])

    def _start_again(self) -> Exit:
        """Ask Slurm to start the job again, where it may; return the exit code, which Slurm then has no use for."""
        if self.restarts >= self.options.requeue:
            self.say(
                f"not started again: restart {self.restarts} of at most --requeue {self.options.requeue}. To go on: "
                'the same command with --args "--resume_from_checkpoint last"'
            )
            return Exit.STOPPED
        self.say("asking Slurm to start the job again")
        self._install_handlers()  # what is waited for is Slurm's TERM
        try:
            problem = ask_slurm(["scontrol", "requeue", self.job_id])
            time.sleep(REQUEUE_SECONDS)  # at a preemption Slurm may do it unasked
        except CanceledError:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it may come twice
            return Exit.STOPPED
        why = f"scontrol requeue: {problem}" if problem else f"still here after {REQUEUE_SECONDS:g} seconds"
        self.say(f"error: Slurm did not start the job again, {why}", file=sys.stderr)
        return Exit.NOT_RESTARTED

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
            if is_secret(name, value) and len(value) > 4:
                text = text.replace(value, MASK)
        return hide_secrets(text)

    def say(self, text: str, file: TextIO | None = None) -> None:
        print(f"[{time.strftime('%T')}] {text}", file=file or sys.stdout, flush=True)
