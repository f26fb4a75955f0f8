"""Metrics at every k, with intervals over prompts.

At k they are the unbiased estimates of `tasks.metrics`. A sample without a verdict is left out: its prompt has
one sample less, and no part in the metrics at a k that it does not reach. Intervals are percentile bootstraps:
prompts are drawn with replacement, because they are what a benchmark happens to hold.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maxent_grpo.pipeline.tasks.answers import Verdict
from maxent_grpo.pipeline.tasks.metrics import sample_metrics

logger = logging.getLogger(__name__)

METRICS = ("mean", "pass", "distinct", "coverage")


@dataclass(frozen=True)
class Interval:
    """A mean over prompts and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """The metrics of one model.

    Attributes:
        ks: [K] the numbers of samples.
        points: for each name of `METRICS`, [K] intervals.
        distinct_per_solved: [K] expected distinct right answers per expected solved prompt.
        prompts: [K] how many prompts have k samples with a verdict.
    """

    ks: list[int]
    points: dict[str, list[Interval]]
    distinct_per_solved: list[float]
    prompts: list[int]


def measure_curve(
    verdicts: Sequence[Sequence[Verdict | None]],
    total_modes: Sequence[int],
    *,
    ks: Sequence[int],
    resamples: int = 2000,
    seed: int = 0,
) -> Curve:
    """Return the metrics at every k with bootstrap intervals.

    Args:
        verdicts: [P][n] verdicts; None is left out.
        total_modes: [P] how many right answers each prompt has.
        ks: numbers of samples.
        resamples: how many times prompts are drawn anew.
        seed: of the bootstrap.

    A k that no prompt has as many samples with a verdict for is left out, with a warning.

    Raises:
        ValueError: if no sample has a verdict.

    >>> right, wrong = Verdict(True, "a"), Verdict(False, None)
    >>> measure_curve([[right, wrong], [wrong, wrong]], [1, 1], ks=[1, 2]).points["pass"][1]
    Interval(value=0.5, low=0.0, high=1.0)
    """
    judged = [[verdict for verdict in samples if verdict is not None] for samples in verdicts]
    most = max(map(len, judged))
    if out_of_reach := [k for k in ks if k > most]:
        logger.warning("No prompt has %d samples with a verdict: k over %d is left out.", out_of_reach[0], most)
        ks = [k for k in ks if k <= most]
    if not ks:
        raise ValueError("Expected samples that have a verdict, got none.")
    per_prompt = np.full((len(METRICS), len(ks), len(judged)), np.nan)
    for row, k in enumerate(ks):
        prompts = [prompt for prompt, samples in enumerate(judged) if len(samples) >= k]
        metrics = sample_metrics([judged[p] for p in prompts], [total_modes[p] for p in prompts], k=k)
        per_prompt[:, row, prompts] = metrics.mean, metrics.passed, metrics.distinct, metrics.coverage
    draws = np.random.default_rng(seed).multinomial(
        len(judged), np.full(len(judged), 1 / len(judged)), size=resamples
    )
    counted = ~np.isnan(per_prompt[0])
    means = {
        name: _average_prompts(np.ones((1, len(judged))), values)[0]
        for name, values in zip(METRICS, per_prompt, strict=True)
    }
    points = {}
    for name, values in zip(METRICS, per_prompt, strict=True):
        low, high = np.nanpercentile(_average_prompts(draws, values), [2.5, 97.5], axis=0)
        points[name] = [Interval(*map(float, point)) for point in zip(means[name], low, high, strict=True)]
    solved = np.where(means["pass"] > 0, means["pass"], np.inf)
    return Curve(list(ks), points, (means["distinct"] / solved).tolist(), counted.sum(-1).tolist())


def _average_prompts(draws: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return [B, K] means of [K, P] values over prompts that occur as often as [B, P] draws say; NaN is left out."""
    counted = ~np.isnan(values)
    with np.errstate(invalid="ignore"):  # a draw may hold no prompt that counts
        averages: np.ndarray = (draws @ np.where(counted, values, 0.0).T) / (draws @ counted.T)
    return averages
