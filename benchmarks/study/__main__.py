"""Run what is missing of a stage of the study, or write its page anew.

python -m benchmarks.study countdown_rates                  # what is missing of a stage, on all cores
python -m benchmarks.study countdown_rates --minutes 50     # the same call goes on
python -m benchmarks.study report                           # tables and pictures, from the committed lines
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from rich.console import Console

from benchmarks.study.report import write_report
from benchmarks.study.schedule import expect_limits, run_for, run_stage
from benchmarks.study.stages import STAGES


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("stage", choices=[*STAGES, "report"], help="what to run")
    parser.add_argument("--root", type=Path, default=Path("runs/study"), help="where warm starts go (%(default)s)")
    parser.add_argument("--workers", type=int, help="processes (the number of cores)")
    parser.add_argument("--minutes", type=float, help="stop in order after so long")
    options = parser.parse_args(argv)
    expect_limits(parser, options)
    return options


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options, console = parse_options(argv), Console()
    if options.stage == "report":
        return run_for(None, console, write_report)
    make = partial(run_stage, options.stage, options.root, console, workers=options.workers)
    return run_for(options.minutes, console, make)


if __name__ == "__main__":
    sys.exit(main())
