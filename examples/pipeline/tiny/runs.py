"""The runs of the demo: a warm start for each seed, each method from there; all go on where they were stopped."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from maxent_grpo import Statistics
from maxent_grpo.pipeline.tasks import countdown
from maxent_grpo.pipeline.tasks.catalog import split_problems
from maxent_grpo.pipeline.tasks.splits import Split
from maxent_grpo.pipeline.tiny.evaluation import Row, evaluate, greedy_accuracy
from maxent_grpo.pipeline.tiny.groups import describe_groups
from maxent_grpo.pipeline.tiny.jobs import Report, Stopped
from maxent_grpo.pipeline.tiny.model import build_model
from maxent_grpo.pipeline.tiny.options import build_config
from maxent_grpo.pipeline.tiny.report import NAMES
from maxent_grpo.pipeline.tiny.sampling import Samples, sample
from maxent_grpo.pipeline.tiny.storage import Log, load_checkpoint, load_state, save_checkpoint, save_state
from maxent_grpo.pipeline.tiny.training import LoopSettings, Reinforcement
from maxent_grpo.pipeline.tiny.warm_start import build_skewed_sampler, warm_start
from maxent_grpo.pipeline.tiny.wide_countdown import (
    MAX_NEW_TOKENS,
    NAME,
    TASK,
    TOKENIZER,
)

TEMPERATURES = (0.4, 0.6, 0.8, 1.0, 1.2)
PROGRESS = {
    "reward": "reward",
    "mean@8": "mean@8",
    "coverage@8": "cov@8",
    "maxent/ess": "ESS",
    "maxent/improvement_gap": "gap",
}
"""What is shown beside the progress bar, and how it is called there."""


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
        return Path(self.options.output) / f"seed{self.seed}" / self.arm

    @property
    def warm_folder(self) -> Path:
        """Where the checkpoint is that it starts from."""
        return self.folder.parent / "warm_start"

    @property
    def log(self) -> Log:
        """Its metrics."""
        return Log(self.folder / "metrics.jsonl")

    @property
    def problems(self) -> Split[countdown.Problem]:
        """What it trains on and what is held out."""
        return split_problems(NAME, self.options.eval_prompts)


def warm_up(job: Job, report: Report, stopped: Stopped) -> None:
    """Train the checkpoint that all methods start from, and evaluate it."""
    _silence_transformers()
    steps = job.options.warm_steps
    if not (job.folder / "config.json").exists():
        model = build_model(TOKENIZER, seed=job.seed)
        pairs = build_skewed_sampler(TASK, job.problems.train)
        for step, loss in enumerate(warm_start(model, TOKENIZER, pairs, steps=steps, seed=job.seed), 1):
            report((str(job), step, f"loss {loss:.2f}"))
            if stopped():
                return  # half a warm start is no checkpoint: a resumed run starts it over
        save_checkpoint(model, TOKENIZER, job.folder)
    report((str(job), steps, ""))
    _evaluate_finally(job, load_checkpoint(job.folder))


def train(job: Job, report: Report, stopped: Stopped) -> None:
    """Train one method from the warm start, going on from a saved state if there is one, and evaluate it."""
    _silence_transformers()
    options, problems, log = job.options, job.problems, job.log
    loop = _build_loop(job)
    state = load_state(job.folder / "state.pt")
    if state is not None:
        loop.load_state_dict(state)
    log.keep(lambda row: row.get("step", 0) <= loop.step)
    logged = sum("step" in row for row in log.rows())
    if logged != loop.step:
        raise ValueError(
            f"Expected the metrics of {loop.step} updates in {log.file}, got {logged}; delete {job.folder}/state.pt, "
            "and the method is trained anew."
        )
    evaluation: Row = {}
    while loop.step < options.steps and not stopped():
        samples, statistics = loop.update(problems.train)
        row: dict[str, Any] = {"arm": job.arm, "seed": job.seed, "step": loop.step}
        row |= _measure_update(samples, statistics)
        if loop.step % options.eval_every == 0 or loop.step == options.steps:
            evaluation = _evaluate(loop.model, problems.held_out[:128], 1.0, num_samples=8, seed=loop.step)
            row |= evaluation
        log.append(row)  # before the state, which says how many rows there are
        if evaluation and row.keys() >= evaluation.keys():
            save_state(loop.state_dict(), job.folder / "state.pt")
        report((str(job), loop.step, _describe_progress(evaluation | row)))
    save_state(loop.state_dict(), job.folder / "state.pt")
    save_checkpoint(loop.model, TOKENIZER, job.folder)
    if loop.step == options.steps:
        _log_groups(job, loop)
        _evaluate_finally(job, loop.model)


def _build_loop(job: Job) -> Reinforcement:
    options = job.options
    return Reinforcement(
        load_checkpoint(job.warm_folder),
        TOKENIZER,
        TASK,
        build_config(job.arm, options),
        LoopSettings(
            learning_rate=options.learning_rate,
            prompts_per_step=options.prompts,
            num_samples=options.samples,
            max_new_tokens=MAX_NEW_TOKENS,
            temperature=options.temperature,
            seed=job.seed,
        ),
        reference=load_checkpoint(job.warm_folder),
    )


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


def _evaluate_finally(job: Job, model: PreTrainedModel) -> None:
    """Log the metrics of a trained model at every sampling temperature, once."""
    problems, num_samples = job.problems.held_out, job.options.eval_samples
    greedy = greedy_accuracy(model, TOKENIZER, TASK, problems, max_new_tokens=MAX_NEW_TOKENS)
    rows = [
        {
            "arm": job.arm,
            "seed": job.seed,
            "temperature": temperature,
            "greedy": greedy,
            **_evaluate(model, problems, temperature, num_samples=num_samples, seed=job.seed),
        }
        for temperature in TEMPERATURES
    ]
    log = job.log
    log.keep(lambda row: "temperature" not in row)
    for row in rows:  # only now: a table of what has finished must not meet half a frontier
        log.append(row)


def _log_groups(job: Job, loop: Reinforcement) -> None:
    """Log what the method makes of a few groups of the warm start, whose candidates are the same for all methods."""
    problems = job.problems.held_out[:16]
    torch.manual_seed(job.seed)
    samples = sample(
        load_checkpoint(job.warm_folder),
        TOKENIZER,
        TASK,
        problems,
        num_samples=job.options.samples,
        max_new_tokens=MAX_NEW_TOKENS,
        temperature=job.options.temperature,
    )
    log = job.log
    log.keep(lambda row: "group" not in row)
    for row in describe_groups(samples, loop.prepare(samples), [TASK.prompt(problem) for problem in problems]):
        log.append({"arm": job.arm, "seed": job.seed, **row})


def _measure_update(samples: Samples, statistics: Statistics) -> dict[str, float]:
    logged = {name: float(value) for name, value in statistics.as_dict().items()}
    return {"reward": samples.rewards.mean().item(), "tokens": int(samples.mask.sum()), **logged}


def _describe_progress(row: Row) -> str:
    return " ".join(f"{name} {row[metric]:.2f}" for metric, name in PROGRESS.items() if metric in row)


def _silence_transformers() -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
