"""The diversity study: accuracy and diversity of training methods at equal samples.

make study                                         # Countdown on a CPU, resumable, and its report
make study ARGS="--preset graph"                   # graph coloring
make study ARGS="--arms diverse dr_grpo"           # some methods only
make study ARGS="--report-only"                    # tables and pictures of what is there
"""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.diversity.analysis import analyze_study
from benchmarks.diversity.arms import ARMS
from benchmarks.diversity.presets import PRESETS
from benchmarks.diversity.report import write_page, write_report
from benchmarks.diversity.study import RESULTS, run_study
from benchmarks.study.schedule import limit_time

PAGE = RESULTS.parent / "RESULTS.md"


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="cpu", help="task and sizes (%(default)s)")
    add("--arms", nargs="+", choices=ARMS, help="methods (those that the preset is for)")
    add("--runs", type=Path, help="where runs go (runs/diversity/PRESET)")
    add("--workers", type=int, help="processes (the number of cores)")
    add("--minutes", type=float, help="stop in order after so long; the same call goes on")
    add("--report-only", action="store_true", help="train nothing; without runs, report the committed results")
    add("--results", type=Path, default=RESULTS, help="where JSON, tables and pictures go (%(default)s)")
    options = parser.parse_args(argv)
    for name in ("workers", "minutes"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            parser.error(f"Expected --{name} > 0, got {name}={value}.")
    options.arms = options.arms or PRESETS[options.preset].arms
    options.runs = options.runs or Path("runs/diversity") / options.preset
    return options


def main(argv: list[str] | None = None) -> int:
    """Run the study and report it; return the exit code."""
    options, console = parse_options(argv), Console()
    try:
        if not options.report_only:
            with limit_time(options.minutes):
                run_study(options.runs, options.preset, options.arms, console, workers=options.workers)
    except KeyboardInterrupt:
        console.print(f"Interrupted; what was trained is in {options.runs}/. The same call goes on.")
        return 130
    if options.report_only and not any(options.runs.glob("seed*/*/outcomes.npz")):
        file = options.results / f"{options.preset}.json"
        if not file.exists():
            console.print(f"Expected finished runs in {options.runs}/ or results in {file}, got neither.")
            return 2
        console.print(f"No finished runs in {options.runs}/: the report is that of {file}.")
        result = json.loads(file.read_text())
    else:
        result = analyze_study(options.runs, options.preset)
    write_report(result, options.results)
    if options.results == RESULTS:
        write_page(PAGE, RESULTS)
    console.print(f"Tables and a picture are in {options.results}/.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
