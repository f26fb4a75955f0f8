"""A job that runs one command with the environment, the log and the end of a training job."""

import os
from pathlib import Path

from maxent_grpo.pipeline.launch.allocation import JobRunner
from maxent_grpo.pipeline.launch.commands import build_step
from maxent_grpo.pipeline.launch.errors import Exit, LaunchError
from maxent_grpo.pipeline.launch.options import Options
from maxent_grpo.pipeline.launch.survey import read_cpus

LOOPBACK = "127.0.0.1"
"""The address of the only node."""


class CommandJob(JobRunner):
    """Runs a command."""

    def work(self) -> None:
        """Run the command with all GPUs of the job."""
        if int(self.given.get("SLURM_JOB_NUM_NODES", "1")) != 1:
            raise LaunchError(f"Expected one node for --command, got {self.given['SLURM_JOB_NODELIST']}.")
        self.set_environment([], {})
        node = self.given["SLURM_JOB_NODELIST"]
        step = build_step(
            self.options.command, {node: LOOPBACK}, None, self.environment, name="command", cpus=read_cpus(self.given)
        )
        self.say(f"command on {node}")
        if code := self.start_step("command", step).process.wait():
            self.expect_own_end("command", code)
            raise LaunchError(f"The command failed with exit code {code}.", Exit.TRAINER_FAILED)


def run_command_job(options: Options, root: Path) -> int:
    """Run the command of this allocation."""
    return CommandJob(options, root, os.environ).run()
