"""Run what is missing of the study of a pretrained model, one run at a time on all cores; each is a line.

python -m benchmarks.pretrained                                # what is missing, in the order of the plan
python -m benchmarks.pretrained --minutes 50                   # the same call goes on
python -m benchmarks.pretrained --tasks capitals --arms kappa  # a part of it
python -m benchmarks.pretrained --report                       # the page's tables, from the committed lines
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from rich.console import Console
from transformers.utils import logging as transformers_logging

from benchmarks.pretrained.arms import ARMS
from benchmarks.pretrained.plan import RESULTS, list_runs
from benchmarks.pretrained.report import write_report
from benchmarks.pretrained.runs import Sizes, make_line
from benchmarks.pretrained.tasks import TASKS
from benchmarks.study.schedule import run_for
from maxent_grpo.pipeline.tiny.storage import Log


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--tasks", nargs="+", choices=TASKS, default=TASKS, help="what to ask")
    add("--arms", nargs="+", choices=ARMS, default=[*ARMS], help="methods")
    add("--root", type=Path, default=Path("runs/pretrained"), help="where the start and states go (%(default)s)")
    add("--report", action="store_true", help="write the page's tables and run nothing")
    add("--minutes", type=float, help="stop after so long")
    options = parser.parse_args(argv)
    if options.minutes is not None and options.minutes <= 0:
        parser.error(f"Expected --minutes > 0, got minutes={options.minutes}.")
    return options


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options, console = parse_options(argv), Console()
    if options.report:
        write_report()
        return 0
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    return run_for(options.minutes, console, partial(run_missing, options, console))


def run_missing(options: argparse.Namespace, console: Console) -> None:
    """Make the runs that are missing, each of them a line as soon as it is there."""
    sizes = Sizes()
    while runs := list_runs(options.tasks, options.arms, sizes):
        console.log(f"{runs[0]}; {len(runs)} are missing")
        line = make_line(runs[0], options.root, sizes)
        Log(RESULTS / f"{runs[0].task}.jsonl").append(line)


if __name__ == "__main__":
    sys.exit(main())
