"""ModeBench: accuracy and diversity of training methods at equal samples.

make study                                         # the core study on a CPU, resumable, and its report
make study ARGS="--preset graph"                   # graph colouring
make study ARGS="--arms full_0 dr_grpo"            # some methods only
make study ARGS="--report-only"                    # tables and pictures of what is there
make study ARGS="--model Qwen/Qwen2.5-0.5B-Instruct --launcher slurm"  # a pretrained model, as a Slurm array
make study ARGS="--model Qwen/Qwen2.5-0.5B-Instruct --report-only"     # its tables, once the jobs are done
"""

import _thread
import argparse
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from benchmarks.diversity.analysis import analysis
from benchmarks.diversity.arms import ARMS, CORE
from benchmarks.diversity.presets import PRESETS
from benchmarks.diversity.pretrained import PretrainedStudy, expressible, launch
from benchmarks.diversity.pretrained_report import pretrained_analysis, write_pretrained_report
from benchmarks.diversity.report import write_report
from benchmarks.diversity.study import run_study

HERE = Path(__file__).parent
PRESET_ONLY = ("preset", "workers", "minutes", "page")
JOBS_ONLY = ("launcher", "dry_run", "gpus", "seeds", "samples", "prompts", "train_flags")
LEAST = {"workers": 1, "gpus": 0, "seeds": 1, "samples": 8, "prompts": 1}


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="cpu", help="tasks and sizes (%(default)s)")
    add("--arms", nargs="+", choices=[*ARMS, "all"], default=list(CORE), help="methods (the core study's)")
    add("--runs", type=Path, help="where runs go (runs/diversity/PRESET)")
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
    real.add_argument("--level", type=float, help="the mean@8 to compare at (the highest that every run reaches)")
    names, unset = (*PRESET_ONLY, *JOBS_ONLY, "level"), object()
    options = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(names, unset)))
    given = {name for name in names if getattr(options, name) is not unset}
    for name in {*names} - given:
        setattr(options, name, parser.get_default(name))
    _check(parser, options, given)
    if "all" in options.arms:
        options.arms = [arm for arm in ARMS if options.model is None or expressible(arm)]
    name = options.preset if options.model is None else Path(options.model).name
    options.runs = options.runs or Path("runs/diversity") / name
    return options


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace, given: set[str]) -> None:
    """End with a message that names an option that would be ignored, or a value that cannot be."""
    submitted = options.launcher == "slurm" or options.dry_run
    rules = [
        (options.model is not None, PRESET_ONLY, "without --model"),
        (options.model is None, (*JOBS_ONLY, "level"), "with --model"),
        (options.report_only, (*JOBS_ONLY, "workers", "minutes"), "without --report-only"),
        (submitted, ("level",), "where there is a report: without --launcher slurm and --dry-run"),
    ]
    for broken, names, where in rules:
        for name in names:
            if broken and name in given:
                parser.error(f"Expected --{name.replace('_', '-')} {where}, got {name}={getattr(options, name)!r}.")
    unknown = [arm for arm in options.arms if arm != "all" and not expressible(arm)]
    if options.model is not None and unknown:
        parser.error(
            "Expected --arms that are settings of examples/train.py, without a learning rate of the small model's, "
            f"with --model, got arms={unknown}."
        )
    for name, least in LEAST.items():
        value = getattr(options, name)
        if value is not None and value < least:
            parser.error(f"Expected --{name} >= {least}, got {name}={value}.")
    if options.minutes is not None and not options.minutes > 0:
        parser.error(f"Expected --minutes > 0, got minutes={options.minutes}.")
    if options.level is not None and not 0 < options.level < 1:
        parser.error(f"Expected 0 < --level < 1, got level={options.level}.")


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


@contextmanager
def _time_limit(minutes: float | None) -> Iterator[None]:
    """Interrupt what is inside after so long, as Ctrl-C would, and nothing that comes after it."""
    if minutes is None:
        yield
        return
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # under nohup, where an interrupt would be lost
        signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(60 * minutes, _thread.interrupt_main)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _train(options: argparse.Namespace, command: str, console: Console) -> None:
    if options.model is None:
        with _time_limit(options.minutes):
            run_study(options.runs, options.preset, options.arms, console, workers=options.workers)
    else:
        launch(pretrained_study(options), options.launcher, dry_run=options.dry_run, command=command)


def main(argv: list[str] | None = None) -> int:
    """Run the study and report it; return the exit code."""
    options, console = arguments(argv), Console()
    command = f'make study ARGS="{shlex.join(sys.argv[1:] if argv is None else argv)}"'
    try:
        if not options.report_only:
            _train(options, command, console)
    except KeyboardInterrupt:
        console.print(f"Interrupted; what was trained is in {options.runs}/. The same call goes on.")
        return 130
    if options.launcher == "slurm" or options.dry_run:
        console.print(f"Once the jobs are done: --model {options.model} --runs {options.runs} --report-only")
        return 0
    if options.model is not None:
        result = pretrained_analysis(options.runs, options.model, options.level)
        console.print(f"Tables are in {write_pretrained_report(result, options.results)}, and JSON beside it.")
        return 0
    result = analysis(options.runs, options.preset)
    pictures = write_report(result, options.results, options.page)
    console.print(f"Tables and {len(pictures)} picture(s) are in {options.results}/.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
