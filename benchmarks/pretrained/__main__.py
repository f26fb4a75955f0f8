"""Run what is missing of the study of a pretrained model; each run is a line.

python -m benchmarks.pretrained                                # what is missing, in the order of the plan
python -m benchmarks.pretrained --minutes 50                   # the same call goes on
python -m benchmarks.pretrained --tasks countdown --arms kappa # a part of it, or what takes a GPU
python -m benchmarks.pretrained --report                       # the page's tables, from the committed lines
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from rich.console import Console

from benchmarks.pretrained.arms import ARMS
from benchmarks.pretrained.plan import RESULTS, list_runs
from benchmarks.pretrained.report import write_report
from benchmarks.pretrained.runs import Line, work
from benchmarks.pretrained.tasks import ON_CPU, QUESTIONS, make_task_start
from benchmarks.study.schedule import expect_limits, run_for
from maxent_grpo.pipeline.tiny.jobs import run_jobs
from maxent_grpo.pipeline.tiny.storage import Log


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--tasks", nargs="+", choices=QUESTIONS, default=ON_CPU, help="what to ask (name-one and capitals)")
    add("--arms", nargs="*", choices=ARMS, default=[*ARMS], help="methods; none of them: the start alone")
    add("--root", type=Path, default=Path("runs/pretrained"), help="where the start and states go (%(default)s)")
    add("--report", action="store_true", help="write the page's tables and run nothing")
    add("--workers", type=int, default=1, help="runs at once, on a GPU all of them on one (%(default)s)")
    add("--minutes", type=float, help="stop after so long")
    options = parser.parse_args(argv)
    expect_limits(parser, options)
    return options


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options, console = parse_options(argv), Console()
    if options.report:
        write_report()
        return 0
    return run_for(options.minutes, console, partial(run_missing, options, console))


def run_missing(options: argparse.Namespace, console: Console) -> None:
    """Make the runs that are missing, each of them a line as soon as it is there."""

    def keep(line: Line) -> None:
        Log(RESULTS / f"{line['task']}.jsonl").append(line)

    while runs := list_runs(options.tasks, options.arms):
        console.log(f"{len(runs)} runs are next: {'; '.join(map(str, runs))}")
        for task in {run.task for run in runs}:
            make_task_start(options.root, task)  # before runs share it
        run_jobs(work, [(run, options.root) for run in runs], on_news=keep, workers=options.workers)


if __name__ == "__main__":
    sys.exit(main())
