"""`python -m maxent_grpo.pipeline.launch`: what `examples/slurm_train.sh` calls, outside a job and in one."""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from maxent_grpo._secrets import hide_in_tracebacks, hide_secrets
from maxent_grpo.pipeline.launch.command import run_command_job
from maxent_grpo.pipeline.launch.commands import SCRIPT, build_sbatch_command
from maxent_grpo.pipeline.launch.environment import build_environment, describe_environment
from maxent_grpo.pipeline.launch.errors import Exit, LaunchError
from maxent_grpo.pipeline.launch.job import run_job
from maxent_grpo.pipeline.launch.node import list_devices
from maxent_grpo.pipeline.launch.options import Options, parse_options
from maxent_grpo.pipeline.launch.plan import assume_place, plan_job, render_plan, show_submission
from maxent_grpo.pipeline.launch.steps import call_slurm
from maxent_grpo.pipeline.launch.submit import build_command_submission, submit_job


def main(arguments: Sequence[str] | None = None) -> int:
    """Submit, run or only plan a job, as the command line says; return the exit code."""
    hide_in_tracebacks()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return launch(words, Path.cwd())
    except LaunchError as error:
        print(f"slurm_train.sh: {hide_secrets(str(error))}", file=sys.stderr)
        return int(error.code)
    except BrokenPipeError:  # of `| head`, which has read enough; Python would complain again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


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
    if is_in_job and not options.dry_run:
        expect_own_job(options, os.environ)
        return run_command_job(options, root) if options.command else run_job(options, root)
    kept = [word for word in words if word != "--dry-run"]
    if options.command:
        submit = build_command_submission(options, kept)
        print("\n".join(["plan", *show_submission(submit)]), flush=True)
    else:
        submit = _plan_training(options, kept, root, is_in_job)
    return int(Exit.DONE) if options.dry_run else submit_job(submit, root)


def expect_own_job(options: Options, given: Mapping[str, str]) -> None:
    """Refuse a job that this script cannot run in as it was asked to.

    Raises:
        LaunchError: in a job array, whose tasks would share one output_dir and each other's steps; or where flags of
            sbatch are given in a job of something else, such as a notebook.
    """
    job = given["SLURM_JOB_ID"]
    if task := given.get("SLURM_ARRAY_TASK_ID"):
        raise LaunchError(f"Expected a job of its own for each run, got SLURM_ARRAY_TASK_ID={task} of a job array.")
    if options.sbatch and SCRIPT not in call_slurm(["scontrol", "show", "job", job, "--oneliner"]):
        raise LaunchError(
            f"Expected no --sbatch in a job, got SLURM_JOB_ID={job}, in which the script runs and submits nothing: "
            "leave --sbatch out, or unset SLURM_JOB_ID."
        )


def _plan_training(options: Options, words: list[str], root: Path, is_in_job: bool) -> list[str]:
    """Print the plan of a training job; return the command that submits it."""
    given = dict(os.environ)
    if not is_in_job:
        given.pop("CUDA_VISIBLE_DEVICES", None)  # GPUs of this machine, which are not the job's
    job = plan_job(options, root, given, count_devices(given))
    submit = build_sbatch_command(options, words, nodes=job.topology.nodes, gpus=job.topology.gpus)
    servers = list(assume_place(job).servers.values())
    lines = describe_environment(build_environment(given, root=root, job="0-0", addresses=servers), given, root)
    print(render_plan(job, None if is_in_job else submit, lines, given, root), flush=True)
    return submit


def count_devices(given: Mapping[str, str]) -> int | None:
    """Return how many GPUs an environment names; None where it names none."""
    if not given.get("CUDA_VISIBLE_DEVICES"):
        return None
    try:
        return len(list_devices(given))
    except ValueError as error:
        raise LaunchError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
