"""Train a small language model on Countdown with Dr.GRPO and with MaxEnt-GRPO, on a CPU, and compare them.

    python examples/quickstart.py                    # about three minutes of training on 2 cores
    python examples/quickstart.py --seeds 3          # three seeds, averaged
    python examples/quickstart.py --resume           # go on after Ctrl-C

A Qwen2-architecture model of 0.3 million parameters is warmed up by supervised learning on a skewed mix of
solutions. From that one checkpoint each method trains on the same prompts with the same number of sampled
completions. Countdown problems have several right answers; coverage@8 says how many of them 8 samples find.
"""

import argparse
import json
import random
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from maxent_grpo._secrets import hide_in_tracebacks
from maxent_grpo.pipeline.files import describe_full_disk, lock_folder, write_text
from maxent_grpo.pipeline.tasks import countdown
from maxent_grpo.pipeline.tasks.catalog import split_problems
from maxent_grpo.pipeline.tiny.evaluation import Row, measure_guesser
from maxent_grpo.pipeline.tiny.jobs import run_jobs
from maxent_grpo.pipeline.tiny.options import parse_options
from maxent_grpo.pipeline.tiny.output import expect_same_run, start_run
from maxent_grpo.pipeline.tiny.picture import save_picture
from maxent_grpo.pipeline.tiny.report import write_table
from maxent_grpo.pipeline.tiny.runs import Job, train, warm_up
from maxent_grpo.pipeline.tiny.wide_countdown import NAME, TASK

RESULTS = ("metrics.jsonl", "results.json", "results.md", "curves.png")


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; return the exit code."""
    options, console = parse_options(arguments, __doc__), Console()
    hide_in_tracebacks()
    try:
        with lock_folder(options.output):
            open_output(options)
            run_demo(options, console)
    except ValueError as error:
        raise SystemExit(f"quickstart.py: {error}") from error
    except OSError as error:
        raise SystemExit(f"quickstart.py: {describe_full_disk(error) or error}") from error
    except KeyboardInterrupt:
        console.print(
            f"Interrupted. The same call with --resume goes on from what is in {options.output}/; "
            "a warm start that has not finished begins anew."
        )
        return 130
    return 0


def open_output(options: argparse.Namespace) -> None:
    """Start the output folder afresh, or check that a resumed run has the options that it was started with."""
    settings = {name: value for name, value in vars(options).items() if name not in ("output", "resume")}
    if options.resume:
        expect_same_run(options.output, settings)
    else:
        start_run(options.output, settings, files=RESULTS)


def run_demo(options: argparse.Namespace, console: Console) -> None:
    """Train and evaluate every method with every seed; write the results of what has finished, come what may."""
    seeds = range(options.seed, options.seed + options.seeds)
    warm = [Job(options, "warm_start", seed) for seed in seeds]
    methods = [Job(options, arm, seed) for seed in seeds for arm in options.arms]
    try:
        _run_phases(warm, methods, console)
    finally:
        write_results([*warm, *methods], console)


def _run_phases(warm: Sequence[Job], methods: Sequence[Job], console: Console) -> None:
    """Warm up, then train, with a progress bar for each job."""
    options = warm[0].options
    with Progress(
        TextColumn("{task.description:<26}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[news]}"),
        console=console,
    ) as progress:
        for work, jobs, steps in ((warm_up, warm, options.warm_steps), (train, methods, options.steps)):
            bars = {str(job): progress.add_task(str(job), total=steps, news="", start=False) for job in jobs}

            def show(entry: tuple[str, int, str], bars: dict[str, Any] = bars) -> None:
                name, step, news = entry
                progress.start_task(bars[name])
                progress.update(bars[name], completed=step, news=news)

            run_jobs(work, jobs, on_news=show)


def write_results(jobs: Sequence[Job], console: Console) -> None:
    """Write the metrics of all jobs, and table and picture of those that have been evaluated."""
    options = jobs[0].options
    rows_by_job = {str(job): job.log.rows() for job in jobs}
    rows = [row for job_rows in rows_by_job.values() for row in job_rows]
    write_text(options.output / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    unfinished = [name for name, job_rows in rows_by_job.items() if not any("temperature" in row for row in job_rows)]
    if len(unfinished) == len(jobs):
        console.print("Nothing has been evaluated yet: there is no table.")
        return
    notes = _list_notes(options, unfinished)
    console.print(write_table(rows, _evaluate_guesser(options), options.output, notes=notes))
    save_picture(rows, options.output / "curves.png")
    console.print(f"Table, picture, metrics and checkpoints are in {options.output}/.")


def _list_notes(options: argparse.Namespace, unfinished: Sequence[str]) -> list[str]:
    """Return what a reader of the table has to know."""
    notes = [
        f"All methods train at the same learning rate, {options.learning_rate:g}, which was tuned for none of them, "
        "and for the same number of updates; at other rates their order can be another."
    ]
    return notes + ([f"Not in the table, because unfinished: {'; '.join(unfinished)}."] if unfinished else [])


def _evaluate_guesser(options: argparse.Namespace) -> Row:
    rng = random.Random(0)
    problems = split_problems(NAME, options.eval_prompts).held_out
    return measure_guesser(lambda problem: countdown.random_answer(problem, rng), TASK, problems, num_samples=64)
