"""Train a small language model on Countdown with Dr.GRPO and with MaxEnt-GRPO, on a CPU, and compare them.

    python examples/quickstart.py                    # about three minutes of training on 2 cores
    python examples/quickstart.py --seeds 3          # three seeds, averaged
    python examples/quickstart.py --resume           # go on after Ctrl-C

A Qwen2-architecture model of 0.3 million parameters is warmed up by supervised learning on a skewed mix of
solutions. From that one checkpoint each method trains on the same prompts with the same number of sampled
completions. Countdown problems have several right answers; coverage@8 says how many of them 8 samples find.
"""

import argparse
import dataclasses
import json
import math
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from maxent_grpo import MaxEntConfig, Statistics
from maxent_grpo.pipeline.tasks import countdown
from maxent_grpo.pipeline.tasks.splits import Split, split
from maxent_grpo.pipeline.tiny.evaluation import Row, evaluate, greedy_accuracy, measure_guesser
from maxent_grpo.pipeline.tiny.groups import describe_groups
from maxent_grpo.pipeline.tiny.jobs import Report, Stopped, run_jobs
from maxent_grpo.pipeline.tiny.model import build_model, build_tokenizer
from maxent_grpo.pipeline.tiny.output import expect_same_run, start_run
from maxent_grpo.pipeline.tiny.report import NAMES, save_picture, write_table
from maxent_grpo.pipeline.tiny.sampling import Samples, Task, sample
from maxent_grpo.pipeline.tiny.storage import Log, load_checkpoint, load_state, save_checkpoint, save_state
from maxent_grpo.pipeline.tiny.training import Reinforcement, warm_start

MAX_NEW_TOKENS = 8  # the longest answers, (20-19)*18 and its like, with the end token
TEMPERATURES = (0.4, 0.6, 0.8, 1.0, 1.2)
TASK = Task(prompt=countdown.prompt, verify=countdown.verify)
ARMS = ("dr_grpo", "maxent", "maxent_diverse")
RESULTS = ("metrics.jsonl", "results.json", "results.md", "curves.png")
TOKENIZER = build_tokenizer()


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    published, diverse = MaxEntConfig(), MaxEntConfig.diverse()
    add = parser.add_argument
    add("--steps", type=int, default=240, help="updates of each method (%(default)s)")
    add("--seed", type=int, default=0, help="the first seed (%(default)s)")
    add("--seeds", type=int, default=1, help="how many seeds to train and average (%(default)s)")
    add("--tau", type=float, default=published.tau, help="temperature of the target, both MaxEnt arms (%(default)s)")
    add("--beta", type=float, default=published.beta, help="pull to the warm start, both MaxEnt arms (%(default)s)")
    add("--dedup", type=float, default=diverse.dedup, help="κ, discount of duplicates, diverse arm (%(default)s)")
    add("--success-power", type=float, default=diverse.success_power, help="a, diverse arm (%(default)s)")
    add("--learning-rate", type=float, default=1e-4, help="of Adam, all methods (%(default)s)")
    add("--prompts", type=int, default=32, help="prompts an update (%(default)s)")
    add("--samples", type=int, default=8, help="completions a prompt, K (%(default)s)")
    add("--temperature", type=float, default=1.0, help="sampling temperature in training (%(default)s)")
    add("--warm-steps", type=int, default=300, help="steps of supervised learning before (%(default)s)")
    add("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="methods to train (all)")
    add("--eval-every", type=int, default=20, help="updates between evaluations and saves (%(default)s)")
    add("--eval-prompts", type=int, default=512, help="held-out problems of the final evaluation (%(default)s)")
    add("--eval-samples", type=int, default=16, help="completions a held-out problem, >= 8 (%(default)s)")
    add("--output", type=Path, default=Path("runs/demo"), help="where results go (%(default)s)")
    add("--resume", action="store_true", help="go on with the run in --output")
    options = parser.parse_args(argv)
    try:
        _check(options)
    except ValueError as error:
        parser.error(str(error))
    return options


def _check(options: argparse.Namespace) -> None:
    """Raise a ValueError on options that some worker would stumble over minutes later."""
    least = dict.fromkeys(("steps", "seeds", "prompts", "samples", "warm_steps", "eval_every", "eval_prompts"), 1)
    for name, low in {**least, "eval_samples": 8}.items():
        if getattr(options, name) < low:
            raise ValueError(f"Expected --{name.replace('_', '-')} >= {low}, got {getattr(options, name)}.")
    for name in ("temperature", "learning_rate"):
        if not 0 < getattr(options, name) < math.inf:
            option = name.replace("_", "-")
            raise ValueError(f"Expected --{option} to be positive and finite, got {getattr(options, name)}.")
    needed, number = options.eval_prompts + options.prompts, len(countdown.problems(countdown.WIDE))
    if needed > number:
        raise ValueError(f"Expected --eval-prompts and --prompts to share {number} problems, got {needed}.")
    for arm in ARMS:
        arm_config(arm, options)


def arm_config(arm: str, options: argparse.Namespace) -> MaxEntConfig:
    """Return the settings of a method. Dr.GRPO is the surrogate with equal candidate weights."""
    if arm == "dr_grpo":
        return MaxEntConfig(projection="surrogate", max_length=MAX_NEW_TOKENS)
    if arm == "maxent":
        return MaxEntConfig(tau=options.tau, beta=options.beta)
    return dataclasses.replace(
        MaxEntConfig.diverse(max_length=MAX_NEW_TOKENS),
        tau=options.tau,
        beta=options.beta,
        dedup=options.dedup,
        success_power=options.success_power,
    )


def skewed_pairs(problems: Sequence[countdown.Problem]) -> Callable[[random.Random], tuple[str, str]]:
    """Return a sampler of (prompt, answer): each mode half as likely as the one before, written in any way."""
    solutions = [countdown.solutions(problem) for problem in problems]

    def pair(rng: random.Random) -> tuple[str, str]:
        which = rng.randrange(len(problems))
        modes = sorted(solutions[which])
        rank = next((rank for rank in range(len(modes) - 1) if rng.random() < 0.5), len(modes) - 1)
        return countdown.prompt(problems[which]), rng.choice(solutions[which][modes[rank]])

    return pair


@dataclass(frozen=True)
class Job:
    """One method, or the warm start, with one seed."""

    options: argparse.Namespace
    arm: str
    seed: int

    def __str__(self) -> str:
        """Return the name shown beside the progress bar."""
        return f"{NAMES[self.arm]}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Where its metrics, state and checkpoint go."""
        return self.options.output / f"seed{self.seed}" / self.arm

    @property
    def warm_folder(self) -> Path:
        """Where the checkpoint is that it starts from."""
        return self.folder.parent / "warm_start"

    @property
    def log(self) -> Log:
        """Its metrics."""
        return Log(self.folder / "metrics.jsonl")


def warm_up(job: Job, report: Report, stopped: Stopped) -> None:
    """Train the checkpoint that all methods start from, and evaluate it."""
    _quieten()
    problems = _problems(job.options)
    if not (job.folder / "config.json").exists():
        model = build_model(TOKENIZER, seed=job.seed)
        losses = warm_start(
            model, TOKENIZER, skewed_pairs(problems.train), steps=job.options.warm_steps, seed=job.seed
        )
        for step, loss in enumerate(losses, 1):
            report((str(job), step, f"loss {loss:.2f}"))
            if stopped():
                return  # half a warm start is no checkpoint: a resumed run starts it over
        save_checkpoint(model, TOKENIZER, job.folder)
    report((str(job), job.options.warm_steps, ""))
    _evaluate_finally(job, load_checkpoint(job.folder), problems)


def train(job: Job, report: Report, stopped: Stopped) -> None:
    """Train one method from the warm start, going on from a saved state if there is one, and evaluate it."""
    _quieten()
    options, problems, log = job.options, _problems(job.options), job.log
    run = Reinforcement(
        load_checkpoint(job.warm_folder),
        TOKENIZER,
        TASK,
        arm_config(job.arm, options),
        reference=load_checkpoint(job.warm_folder),
        learning_rate=options.learning_rate,
        prompts_per_step=options.prompts,
        num_samples=options.samples,
        max_new_tokens=MAX_NEW_TOKENS,
        temperature=options.temperature,
        seed=job.seed,
    )
    state = load_state(job.folder / "state.pt")
    if state is not None:
        run.load_state_dict(state)
    log.keep(lambda row: row.get("step", 0) <= run.step)
    held_out: Row = {}
    while run.step < options.steps and not stopped():
        samples, statistics = run.update(problems.train)
        row = {"arm": job.arm, "seed": job.seed, "step": run.step, **_update_metrics(samples, statistics)}
        if run.step % options.eval_every == 0 or run.step == options.steps:
            held_out = _evaluate(run.model, problems.held_out[:128], 1.0, num_samples=8, seed=run.step)
            row |= held_out
            save_state(run.state_dict(), job.folder / "state.pt")
        log.append(row)
        report((str(job), run.step, _news(held_out | row)))
    save_state(run.state_dict(), job.folder / "state.pt")
    save_checkpoint(run.model, TOKENIZER, job.folder)
    if run.step == options.steps:
        _log_groups(job, run, problems)
        _evaluate_finally(job, run.model, problems)


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
    """Warm up, then train, with a progress bar a job."""
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
    logged = {str(job): job.log.rows() for job in jobs}
    rows = [row for each in logged.values() for row in each]
    (options.output / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    missing = [name for name, each in logged.items() if not any("temperature" in row for row in each)]
    if len(missing) == len(jobs):
        console.print("Nothing has been evaluated yet: there is no table.")
        return
    console.print(write_table(rows, _guesser(options), options.output, notes=_notes(options, missing)))
    save_picture(rows, options.output / "curves.png")
    console.print(f"Table, picture, metrics and checkpoints are in {options.output}/.")


def _notes(options: argparse.Namespace, missing: Sequence[str]) -> list[str]:
    """Return what a reader of the table has to know."""
    notes = [
        f"All methods train at the same learning rate, {options.learning_rate:g}, which was tuned for none of them, "
        "and for the same number of updates; at other rates their order can be another."
    ]
    return notes + ([f"Not in the table, because unfinished: {'; '.join(missing)}."] if missing else [])


def open_output(options: argparse.Namespace) -> None:
    """Start the output folder afresh, or check that a resumed run has the options that it was started with."""
    settings = {name: value for name, value in vars(options).items() if name not in ("output", "resume")}
    if options.resume:
        expect_same_run(options.output, settings)
    else:
        start_run(options.output, settings, files=RESULTS)


def _problems(options: argparse.Namespace) -> Split[countdown.Problem]:
    return split(countdown.problems(countdown.WIDE), held_out=options.eval_prompts, seed=0)


def _guesser(options: argparse.Namespace) -> Row:
    rng = random.Random(0)
    held_out = _problems(options).held_out
    return measure_guesser(lambda problem: countdown.random_answer(problem, rng), TASK, held_out, num_samples=64)


def _evaluate(
    model: PreTrainedModel, problems: Sequence[countdown.Problem], temperature: float, *, num_samples: int, seed: int
) -> Row:
    return evaluate(
        model,
        TOKENIZER,
        TASK,
        problems,
        temperature=temperature,
        num_samples=num_samples,
        max_new_tokens=MAX_NEW_TOKENS,
        seed=seed,
    )


def _evaluate_finally(job: Job, model: PreTrainedModel, problems: Split[countdown.Problem]) -> None:
    """Log the metrics of a trained model at every sampling temperature, once."""
    greedy = greedy_accuracy(model, TOKENIZER, TASK, problems.held_out, max_new_tokens=MAX_NEW_TOKENS)
    rows = [
        {
            "arm": job.arm,
            "seed": job.seed,
            "temperature": temperature,
            "pass@1": greedy,
            **_evaluate(model, problems.held_out, temperature, num_samples=job.options.eval_samples, seed=job.seed),
        }
        for temperature in TEMPERATURES
    ]
    log = job.log
    log.keep(lambda row: "temperature" not in row)
    for row in rows:  # only now: a table of what has finished must not meet half a frontier
        log.append(row)


def _log_groups(job: Job, run: Reinforcement, problems: Split[countdown.Problem]) -> None:
    """Log what the method makes of a few groups of the warm start, whose candidates are the same for all methods."""
    asked = problems.held_out[:16]
    torch.manual_seed(job.seed)
    samples = sample(
        load_checkpoint(job.warm_folder),
        TOKENIZER,
        TASK,
        asked,
        num_samples=job.options.samples,
        max_new_tokens=MAX_NEW_TOKENS,
        temperature=job.options.temperature,
    )
    log = job.log
    log.keep(lambda row: "group" not in row)
    for row in describe_groups(samples, run.prepare(samples), [countdown.prompt(problem) for problem in asked]):
        log.append({"arm": job.arm, "seed": job.seed, **row})


def _update_metrics(samples: Samples, statistics: Statistics) -> dict[str, float]:
    logged = {name: float(value) for name, value in statistics.as_dict().items()}
    return {"reward": samples.rewards.mean().item(), "tokens": int(samples.mask.sum()), **logged}


def _news(row: Row) -> str:
    shown = {
        "reward": "reward",
        "mean@8": "mean@8",
        "coverage@8": "cov@8",
        "maxent/ess": "ESS",
        "maxent/improvement_gap": "gap",
    }
    return " ".join(f"{name} {row[key]:.2f}" for key, name in shown.items() if key in row)


def _quieten() -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def main(argv: list[str] | None = None) -> int:
    """Run the demo; return the exit code."""
    options, console = arguments(argv), Console()
    open_output(options)
    try:
        run_demo(options, console)
    except KeyboardInterrupt:
        console.print(
            f"Interrupted. The same call with --resume goes on from what is in {options.output}/; "
            "a warm start that has not finished begins anew."
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
