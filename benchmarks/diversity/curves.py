"""Per-problem accuracies and coverages of finished runs, and frontiers of many resamples of the problems at once."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.diversity.metrics import per_problem


@dataclass(frozen=True)
class Curves:
    """What a run reaches on every problem at every temperature, the coldest first.

    Attributes:
        accuracy: [T, P] chance that one answer is right.
        values: name → [T, P], e.g. "coverage@8" and "pass@8".
    """

    accuracy: np.ndarray
    values: Mapping[str, np.ndarray]


def curves_of(outcomes: np.ndarray) -> Curves:
    """Return the curves of [T, P, modes] outcomes."""
    at_8 = per_problem(outcomes.astype(np.float64), 8)
    return Curves(at_8["mean"], {f"{name}@8": at_8[name] for name in ("coverage", "pass", "even")})


def values_at(level: float, accuracies: np.ndarray, values: np.ndarray, *, nearest: bool = False) -> np.ndarray:
    """Return frontiers' values at an accuracy, for many frontiers at once: `read_frontier` by column.

    Args:
        level: the accuracy wanted.
        accuracies: [T, B] at each temperature, the coldest first.
        values: [T, B].
        nearest: where the level is reached at no temperature, take the value at the highest accuracy. For resamples
            of a frontier that reaches it: to drop those that do not would keep the accurate ones alone.

    Returns:
        [B], NaN where the level is reached at no temperature, unless `nearest`.

    >>> values_at(0.5, np.array([[0.75], [0.25]]), np.array([[0.2], [0.4]]))
    array([0.3])
    """
    one, other = accuracies[:-1], accuracies[1:]
    crossing = (np.minimum(one, other) <= level) & (level <= np.maximum(one, other)) & (one != other)
    part = np.where(crossing, (level - one) / np.where(one == other, 1.0, other - one), 0.0)
    between = np.where(crossing, values[:-1] + part * (values[1:] - values[:-1]), -np.inf).max(0)
    found = np.where(accuracies[-1] >= level, values[-1], between)
    highest = np.take_along_axis(values, accuracies.argmax(0)[None], axis=0)[0]
    return np.where(np.isfinite(found), found, highest if nearest else np.nan)


def areas(
    accuracies: np.ndarray,
    values: np.ndarray,
    *,
    low: float,
    high: float,
    points: int = 21,
    nearest: bool = False,
) -> np.ndarray:
    """Return the mean value of frontiers over the accuracies low..high, [T, B] → [B]; NaN if one is out of reach.

    Without any range, low >= high, there is no area: NaN.
    """
    if low >= high:
        return np.full(accuracies.shape[1], np.nan)
    levels = np.linspace(low, high, points)
    return np.mean([values_at(level, accuracies, values, nearest=nearest) for level in levels], axis=0)


def resample_counts(problems: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each problem is drawn in each bootstrap resample, [P, B] as shares that sum to 1."""
    return rng.multinomial(problems, np.full(problems, 1 / problems), size=resamples).T / problems
