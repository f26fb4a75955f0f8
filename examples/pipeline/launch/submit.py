"""Jobs on their way to Slurm."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from maxent_grpo.pipeline.launch.commands import SCRIPT, build_sbatch_command
from maxent_grpo.pipeline.launch.errors import LaunchError
from maxent_grpo.pipeline.launch.options import Options, parse_options
from maxent_grpo.pipeline.launch.plan import LOGS


def build_command_submission(options: Options, words: Sequence[str]) -> list[str]:
    """Return the command that submits the script with a command of its own.

    Args:
        options: the flags, read.
        words: the flags as they were given.
    """
    return build_sbatch_command(options, words, nodes=1, gpus=1 if options.gpus is None else options.gpus)


def wrap_command(command: str, sbatch: str) -> list[str]:
    """Return the command that submits another one, with the environment that a training job has.

    Args:
        command: to be run, as a shell would take it.
        sbatch: flags of sbatch, likewise.

    Raises:
        LaunchError: if one of them is none.
    """
    words = ["--command", command, "--sbatch", sbatch]
    return build_command_submission(parse_options(words), words)


def expect_submission(root: Path) -> None:
    """Make the folder of the logs, without which Slurm's job would end at once and say nothing.

    Raises:
        LaunchError: if the script is not there, there is no sbatch, or the folder cannot be written to.
    """
    if not (root / SCRIPT).is_file():
        raise LaunchError(f"Expected to be in the repository, with {SCRIPT}, got {root}.")
    if shutil.which("sbatch") is None:
        raise LaunchError("Expected sbatch to submit with, got none on PATH; --dry-run needs none.")
    try:
        (root / LOGS).mkdir(exist_ok=True)
        probe = root / LOGS / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise LaunchError(f"Expected to write to {LOGS}/, got {error.strerror}.") from error


def submit_job(command: Sequence[str], root: Path) -> int:
    """Submit a job from the repository, which prints its id; return sbatch's exit code.

    Raises:
        LaunchError: before anything is submitted.
    """
    expect_submission(root)
    return subprocess.run(command, cwd=root, check=False).returncode
