"""ModeBench: accuracy and diversity of training methods at equal samples.

make study                                         # the core study on a CPU, resumable
make study ARGS="--preset graph"                   # graph colouring
make study ARGS="--arms diverse dr_grpo"           # some methods only
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.modebench.arms import ARMS, CORE
from benchmarks.modebench.presets import PRESETS
from benchmarks.modebench.study import run_study


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="cpu", help="tasks and sizes (%(default)s)")
    add("--arms", nargs="+", choices=ARMS, default=list(CORE), help="methods (the core study's)")
    add("--output", type=Path, help="where runs go (runs/modebench/PRESET)")
    add("--workers", type=int, help="processes (the number of cores)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the study; return the exit code."""
    options, console = arguments(argv), Console()
    root = options.output or Path("runs/modebench") / options.preset
    try:
        run_study(root, options.preset, options.arms, console, workers=options.workers)
    except KeyboardInterrupt:
        console.print(f"Interrupted; what was trained is in {root}/. The same call goes on.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
