"""ModeBench: accuracy and diversity of training methods at equal samples.

make study                                         # the core study on a CPU, resumable, and its report
make study ARGS="--preset graph"                   # graph colouring
make study ARGS="--arms full_0 dr_grpo"            # some methods only
make study ARGS="--report-only"                    # tables and pictures of what is there
make study ARGS="--report-only --runs benchmarks/modebench/results/cpu.tar.gz"  # of the committed runs
"""

import _thread
import argparse
import shlex
import sys
import tarfile
import tempfile
import threading
from pathlib import Path

from rich.console import Console

from benchmarks.modebench.analysis import analysis
from benchmarks.modebench.arms import ARMS, CORE
from benchmarks.modebench.presets import PRESETS
from benchmarks.modebench.pretrained import PretrainedStudy, launch
from benchmarks.modebench.report import write_report
from benchmarks.modebench.study import run_study

HERE = Path(__file__).parent


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="cpu", help="tasks and sizes (%(default)s)")
    add("--arms", nargs="+", choices=[*ARMS, "all"], default=list(CORE), help="methods (the core study's)")
    add("--runs", type=Path, help="where runs go, or for reports an archive of them (runs/modebench/PRESET)")
    add("--workers", type=int, help="processes (the number of cores)")
    add("--report-only", action="store_true", help="train nothing")
    add("--results", type=Path, default=HERE / "results", help="where JSON, tables and pictures go (%(default)s)")
    add("--page", type=Path, help="a page whose marked section gets the tables")
    add("--minutes", type=float, help="stop in order after so long; the same call goes on")
    real = parser.add_argument_group("a pretrained model instead of the preset's")
    real.add_argument("--model", help="a name on the Hub, a folder, or tiny-countdown for a rehearsal")
    real.add_argument("--launcher", choices=("local", "slurm"), default="local", help="(%(default)s)")
    real.add_argument("--dry-run", action="store_true", help="print the commands, write the script, run nothing")
    real.add_argument("--gpus", type=int, default=8, help="of a training; 0: one process on the CPU (%(default)s)")
    real.add_argument("--seeds", type=int, default=5, help="(%(default)s)")
    real.add_argument("--samples", type=int, default=64, help="completions a held-out prompt (%(default)s)")
    real.add_argument("--prompts", type=int, help="held-out prompts (all)")
    real.add_argument("--train-flags", default="", help="more flags of examples/train.py, in one string")
    options = parser.parse_args(argv)
    if "all" in options.arms:
        options.arms = list(ARMS)
    name = Path(options.model).name if options.model else options.preset
    options.runs = options.runs or Path("runs/modebench") / name
    return options


def pretrained_study(options: argparse.Namespace) -> PretrainedStudy:
    """Return the study of a pretrained model that the options describe."""
    return PretrainedStudy(
        options.model,
        options.arms,
        range(options.seeds),
        options.runs,
        samples=options.samples,
        prompts=options.prompts,
        gpus=options.gpus,
        extra=shlex.split(options.train_flags),
    )


def main(argv: list[str] | None = None) -> int:
    """Run the study and report it; return the exit code."""
    options, console = arguments(argv), Console()
    if options.model:
        launch(pretrained_study(options), options.launcher, dry_run=options.dry_run)
        return 0
    if options.minutes:
        timer = threading.Timer(60 * options.minutes, _thread.interrupt_main)
        timer.daemon = True
        timer.start()
    try:
        if not options.report_only:
            run_study(options.runs, options.preset, options.arms, console, workers=options.workers)
    except KeyboardInterrupt:
        console.print(f"Interrupted; what was trained is in {options.runs}/. The same call goes on.")
        return 130
    with tempfile.TemporaryDirectory() as unpacked:
        root = options.runs
        if root.is_file():
            with tarfile.open(root) as archive:
                archive.extractall(unpacked, filter="data")
            root = Path(unpacked)
        result = analysis(root, options.preset)
    pictures = write_report(result, options.results, options.page)
    console.print(f"Tables and {len(pictures)} picture(s) are in {options.results}/.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
