"""How accurate and how varied a model's answers are, over sampling temperatures."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from maxent_grpo.pipeline.frontiers import read_frontier
from maxent_grpo.pipeline.tasks.answers import Verdict
from maxent_grpo.pipeline.tasks.metrics import sample_metrics
from maxent_grpo.pipeline.tiny.sampling import Task, sample

Row = dict[str, float]


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    problems: Sequence[Any],
    *,
    temperature: float,
    num_samples: int,
    max_new_tokens: int,
    seed: int,
) -> Row:
    """Return mean@8, pass@8, distinct@8, coverage@8 and distinct modes per solved prompt, unbiased.

    Leaves torch's random state as it found it, so that training goes on as without the evaluation.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        samples = sample(
            model,
            tokenizer,
            task,
            problems,
            num_samples=num_samples,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
        )
    return _average_metrics(samples.verdicts, problems, num_samples)


def greedy_accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    problems: Sequence[Any],
    *,
    max_new_tokens: int,
) -> float:
    """Return the accuracy of greedy decoding."""
    samples = sample(model, tokenizer, task, problems, num_samples=1, max_new_tokens=max_new_tokens, temperature=0.0)
    return samples.rewards.mean().item()


def measure_guesser(guess: Callable[[Any], str], task: Task, problems: Sequence[Any], *, num_samples: int) -> Row:
    """Return the same metrics for answers that are drawn without a model."""
    verdicts = [task.verify(problem, guess(problem)) for problem in problems for _ in range(num_samples)]
    return _average_metrics(verdicts, problems, num_samples)


def interpolate_coverage(level: float, frontier: Mapping[float, Row]) -> float | None:
    """Return the coverage@8 that a model reaches at mean@8 = level, by choice of its sampling temperature."""
    rows = [row for _, row in sorted(frontier.items())]
    return read_frontier(level, [row["mean@8"] for row in rows], [row["coverage@8"] for row in rows])


def average_rows(rows: Sequence[Row]) -> Row:
    """Return the mean of every metric over rows, over seeds for instance."""
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _average_metrics(verdicts: Sequence[Verdict], problems: Sequence[Any], num_samples: int) -> Row:
    grouped = [verdicts[start : start + num_samples] for start in range(0, len(verdicts), num_samples)]
    return sample_metrics(grouped, [len(problem.modes) for problem in problems], k=8).averages()
