"""Paired comparisons over seeds and problems, and what they say after adjustment for many arms."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Difference:
    """A paired difference: first arm minus second, averaged over seeds.

    Attributes:
        mean: the difference.
        seeds: how many seeds it is over.
        seed_low, seed_high: 95 % interval of Student's t over the seeds' differences.
        problem_low, problem_high: 95 % bootstrap interval over problems, seeds as they are.
        both_low, both_high: 95 % bootstrap interval over problems and seeds.
        p: two-sided p-value of the t test over seeds.
    """

    mean: float
    seeds: int
    seed_low: float
    seed_high: float
    problem_low: float
    problem_high: float
    both_low: float
    both_high: float
    p: float

    def as_dict(self) -> dict[str, float]:
        """Return the fields by name."""
        return asdict(self)


def difference(observed: np.ndarray, resampled: np.ndarray, rng: np.random.Generator) -> Difference:
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
    chosen = rng.integers(seeds, size=(seeds, resamples))
    both = np.take_along_axis(resampled, chosen, axis=0).mean(0)
    problem_low, problem_high = np.nanpercentile(resampled.mean(0), [2.5, 97.5])
    both_low, both_high = np.nanpercentile(both, [2.5, 97.5])
    p = 2 * stats.t.sf(abs(mean) / error, seeds - 1) if error > 0 else float(mean == 0)
    return Difference(
        mean, seeds, mean - reach, mean + reach, float(problem_low), float(problem_high), float(both_low),
        float(both_high), float(p),
    )  # fmt: skip


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return Holm's adjusted p-values: the i-th smallest of m times m − i + 1, never falling.

    >>> holm({"a": 0.01, "b": 0.04})
    {'a': 0.02, 'b': 0.04}
    """
    adjusted, highest = {}, 0.0
    ordered = sorted(p_values, key=lambda name: p_values[name])
    for rank, name in enumerate(ordered):
        highest = max(highest, min(1.0, p_values[name] * (len(ordered) - rank)))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def holm_by_family(p_values: Mapping[str, float | None], families: Sequence[Collection[str]]) -> dict[str, float]:
    """Return Holm's adjusted p-values within each family and within the rest; None, no comparison, counts as 1.

    >>> holm_by_family({"a": 0.01, "b": None, "c": 0.04}, [["a", "b"]])
    {'a': 0.02, 'b': 1.0, 'c': 0.04}
    """
    left, adjusted = {name: 1.0 if p is None else p for name, p in p_values.items()}, {}
    for family in families:
        adjusted |= holm({name: left.pop(name) for name in [*left] if name in family})
    return adjusted | holm(left)


def mean_of_all(values: Sequence[float | None]) -> float | None:
    """Return the mean, or None as soon as one seed did not reach what is averaged."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def equivalence(differences: Sequence[float], *, margin: float) -> float:
    """Return the p-value of two one-sided t tests (TOST) of a difference within ± margin.

    >>> round(equivalence([0.001, -0.001, 0.0, 0.002], margin=0.03), 6)
    1.2e-05
    """
    return max(not_below(differences, margin=margin), not_below([-each for each in differences], margin=margin))


def not_below(differences: Sequence[float], *, margin: float) -> float:
    """Return the p-value of the one-sided t test that a mean difference is above −margin (non-inferiority)."""
    values = np.asarray(differences, dtype=float)
    return float(stats.ttest_1samp(values, -margin, alternative="greater").pvalue)
