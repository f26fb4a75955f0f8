"""Paired comparisons over seeds and problems, and their adjustment for many methods."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Difference:
    """A paired difference: first arm minus second, averaged over seeds.

    Attributes:
        mean: the difference.
        seeds: how many seeds it is over.
        seed_low, seed_high: 95 % interval of Student's t over the seeds' differences.
        both_low, both_high: 95 % bootstrap interval over problems and seeds.
        p: two-sided p-value of the t test over seeds.
    """

    mean: float
    seeds: int
    seed_low: float
    seed_high: float
    both_low: float
    both_high: float
    p: float


def estimate_difference(observed: np.ndarray, resampled: np.ndarray, rng: np.random.Generator) -> Difference:
    """Return the paired difference and its intervals.

    Args:
        observed: [S] first minus second for each seed, on all problems.
        resampled: [S, B] the same on resamples of the problems, one resample for all seeds and arms.
        rng: draws the seeds of the bootstrap over both.

    Raises:
        ValueError: with fewer than two seeds.
    """
    seeds, resamples = resampled.shape
    if seeds < 2:
        raise ValueError(f"Expected >= 2 seeds, got {seeds}.")
    mean = float(observed.mean())
    error = float(observed.std(ddof=1) / np.sqrt(seeds))
    reach = float(stats.t.ppf(0.975, seeds - 1)) * error
    drawn = rng.integers(seeds, size=(seeds, resamples))
    both = np.take_along_axis(resampled, drawn, axis=0).mean(0)
    both_low, both_high = map(float, np.nanpercentile(both, [2.5, 97.5]))
    p = 2 * stats.t.sf(abs(mean) / error, seeds - 1) if error > 0 else float(mean == 0)
    return Difference(mean, seeds, mean - reach, mean + reach, both_low, both_high, float(p))


def draw_resamples(problems: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each problem is drawn in each bootstrap resample, [P, B] as shares that sum to 1."""
    return rng.multinomial(problems, np.full(problems, 1 / problems), size=resamples).T / problems


def adjust_p_values(p_values: Mapping[str, float | None]) -> dict[str, float]:
    """Return Holm's adjusted p-values: the i-th smallest of m times m − i + 1, never falling.

    None, a method that could not be compared, counts as 1.

    >>> adjust_p_values({"a": 0.01, "b": None, "c": 0.04})
    {'a': 0.03, 'b': 1.0, 'c': 0.08}
    """
    known = {name: 1.0 if p is None else p for name, p in p_values.items()}
    adjusted, highest = {}, 0.0
    for rank, name in enumerate(sorted(known, key=lambda name: known[name])):
        highest = max(highest, min(1.0, known[name] * (len(known) - rank)))
        adjusted[name] = highest
    return {name: adjusted[name] for name in known}


def compute_p_not_below(differences: Sequence[float], *, margin: float) -> float:
    """Return the p-value of the one-sided t test that a mean difference is above −margin (non-inferiority)."""
    return float(stats.ttest_1samp(np.asarray(differences), -margin, alternative="greater").pvalue)


def average_complete(values: Sequence[float | None]) -> float | None:
    """Return the mean, or None as soon as one seed did not reach what is averaged."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None
