"""`python -m maxent_grpo.pipeline.launch`: what `examples/slurm_train.sh` calls, outside a job and in one."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from maxent_grpo._secrets import hide_in_tracebacks, hide_secrets
from maxent_grpo.pipeline.launch.commands import build_sbatch_command
from maxent_grpo.pipeline.launch.environment import build_environment, describe_environment
from maxent_grpo.pipeline.launch.errors import Exit, LaunchError
from maxent_grpo.pipeline.launch.job import run_job
from maxent_grpo.pipeline.launch.node import list_devices
from maxent_grpo.pipeline.launch.options import parse_options
from maxent_grpo.pipeline.launch.plan import LOGS, assume_place, plan_job, render_plan


def main(arguments: Sequence[str] | None = None) -> int:
    """Submit, run or only plan a job, as the command line says; return the exit code."""
    hide_in_tracebacks()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return launch(words, Path.cwd())
    except LaunchError as error:
        print(f"slurm_train.sh: {hide_secrets(str(error))}", file=sys.stderr)
        return int(error.code)


def launch(words: list[str], root: Path) -> int:
    """Submit, run or only plan a job.

    Args:
        words: the command line.
        root: the repository.

    Raises:
        LaunchError: on bad input, before anything starts.
    """
    options = parse_options(words)
    is_in_job = "SLURM_JOB_ID" in os.environ
    given = dict(os.environ)
    if is_in_job and not options.dry_run:
        return run_job(options, root)
    given = given if is_in_job else drop_devices(given)
    job = plan_job(options, root, given, count_devices(given))
    submit = (
        None if is_in_job else build_sbatch_command(options, job.topology, [w for w in words if w != "--dry-run"])
    )
    servers = list(assume_place(job).servers.values())
    variables = build_environment(given, root=root, job="0-0", addresses=servers)
    print(render_plan(job, submit, describe_environment(variables, given, root), given, root), flush=True)
    if options.dry_run or submit is None:
        return int(Exit.DONE)
    _prepare_logs(root)
    if shutil.which("sbatch") is None:
        raise LaunchError("Expected sbatch to submit with, got none on PATH; --dry-run needs none.")
    return subprocess.run(submit, cwd=root, check=False).returncode


def drop_devices(given: dict[str, str]) -> dict[str, str]:
    """Return an environment without the GPUs of this machine, which are not the job's."""
    return {name: value for name, value in given.items() if name != "CUDA_VISIBLE_DEVICES"}


def count_devices(given: Mapping[str, str]) -> int | None:
    """Return how many GPUs an environment names; None where it names none."""
    if not given.get("CUDA_VISIBLE_DEVICES"):
        return None
    try:
        return len(list_devices(given))
    except ValueError as error:
        raise LaunchError(str(error)) from error


def _prepare_logs(root: Path) -> None:
    """Make the folder of the logs, without which Slurm's job would end at once and say nothing."""
    try:
        (root / LOGS).mkdir(exist_ok=True)
        probe = root / LOGS / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise LaunchError(f"Expected to write to {LOGS}/, got {error.strerror}.") from error


if __name__ == "__main__":
    sys.exit(main())
