"""What is missing of a stage, run on all cores; each finished run is a line of the stage's file."""

import _thread
import argparse
import json
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.study.arms import WARM
from benchmarks.study.runs import Line, Run, belongs_to, is_same_start, read_lines, work
from benchmarks.study.stages import RESULTS, list_runs
from maxent_grpo.pipeline.files import write_text
from maxent_grpo.pipeline.tiny.jobs import run_jobs
from maxent_grpo.pipeline.tiny.storage import Log


def run_stage(
    name: str, root: Path, console: Console, *, workers: int | None = None, results: Path = RESULTS
) -> None:
    """Make the runs of a stage that its file lacks.

    Lines of other settings, or of a start that is not the one that is made here, are dropped: methods are paired by
    seed from the same start.
    """
    runs, file = list_runs(name, root), results / f"{name}.jsonl"
    starts = [*dict.fromkeys(Run(root, run.task, WARM, run.seed, fresh=run.fresh) for run in runs)]
    lines = _keep_seeds(read_lines(file), _do(starts, console, workers, lambda line: None))
    lines = [line for run in (*starts, *runs) for line in lines if belongs_to(line, run.describe())]
    write_text(file, "".join(json.dumps(line) + "\n" for line in lines))
    left = [run for run in runs if not any(belongs_to(line, run.describe()) for line in lines)]
    console.print(f"{name}: {len(runs) - len(left)} of {len(runs)} runs are there.")
    _do(left, console, workers, Log(file).append)
    if len(list_runs(name, root)) > len(runs):  # now it is known at which further rates
        run_stage(name, root, console, workers=workers, results=results)


def _keep_seeds(lines: Sequence[Line], starts: Sequence[Line]) -> list[Line]:
    """Return the lines of seeds that begin at these starts, and the starts where there are none yet."""
    kept: list[Line] = []
    for start in starts:
        of_seed = [line for line in lines if line["seed"] == start["seed"]]
        known = any(line["arm"] == WARM and is_same_start(line, start) for line in of_seed)
        kept += of_seed if known else [start]
    return kept


def _do(runs: Sequence[Run], console: Console, workers: int | None, keep: Any) -> list[Line]:
    """Make runs and return their lines, each of which is kept as soon as it is there."""
    lines: list[Line] = []

    def hear(entry: tuple[str, int, str, Line | None]) -> None:
        name, _, news, line = entry
        if line is not None:
            keep(line)
            lines.append(line)
            console.log(f"{name}: {news} ({len(lines)} of {len(runs)})")

    if runs:
        run_jobs(work, runs, on_news=hear, workers=workers)
    return lines


def expect_limits(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End a command line that asks for no workers, or for no minutes."""
    for name in ("workers", "minutes"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            parser.error(f"Expected --{name} > 0, got {name}={value}.")


def run_for(minutes: float | None, console: Console, work_through: Callable[[], None]) -> int:
    """Call a function for so long at most, say in a line what ended it, and return the exit code."""
    try:
        with interruptible(), limit_time(minutes):
            work_through()
    except ValueError as error:
        console.print(str(error))
        return 2
    except KeyboardInterrupt:
        console.print("Interrupted: finished runs are kept, and the same call goes on.")
        return 130
    return 0


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM do inside what Ctrl-C does, and Ctrl-C under nohup as well, so that runs save what they have."""
    kept = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


@contextmanager
def limit_time(minutes: float | None) -> Iterator[None]:
    """Interrupt what is inside after so long, as Ctrl-C would, and nothing that comes after it."""
    if minutes is None:
        yield
        return
    timer = threading.Timer(60 * minutes, _thread.interrupt_main)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
