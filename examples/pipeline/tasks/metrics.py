"""How often sampled answers are right, and how many of the right answers they find.

All quantities at k are expectations over the k-subsets of the n samples of a prompt, so they are unbiased
for k fresh samples; for n = k they are plain counts. Let h(c) = 1 - C(n - c, k) / C(n, k) be the chance that k of
the samples hold at least one of c given ones, and n_m the number of right samples of mode m. Then

    mean@k = c / n    pass@k = h(c)    distinct@k = sum_m h(n_m)    coverage@k = distinct@k / total modes

where c = sum_m n_m. A wrong sample never counts, whatever its mode.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from maxent_grpo.pipeline.tasks.answers import Verdict


@dataclass(frozen=True)
class SampleMetrics:
    """Float arrays [P], one entry per prompt, for k samples each."""

    k: int
    mean: np.ndarray
    passed: np.ndarray
    distinct: np.ndarray
    coverage: np.ndarray

    def averages(self) -> dict[str, float]:
        """Return the averages over prompts, and the expected distinct modes per expected solved prompt."""
        k = self.k
        solved = self.passed.sum()
        return {
            f"mean@{k}": float(self.mean.mean()),
            f"pass@{k}": float(self.passed.mean()),
            f"distinct@{k}": float(self.distinct.mean()),
            f"coverage@{k}": float(self.coverage.mean()),
            "distinct_per_solved": float(self.distinct.sum() / solved) if solved else 0.0,
        }


def sample_metrics(verdicts: Sequence[Sequence[Verdict]], total_modes: Sequence[int], *, k: int) -> SampleMetrics:
    """Return mean, pass, distinct and coverage at k for every prompt.

    Args:
        verdicts: [P][n] pairs (correct, mode); n >= k may differ between prompts.
        total_modes: [P] how many modes each prompt has.
        k: how many samples the quantities are for.

    Raises:
        ValueError: if there is no prompt, the lengths differ, or k is not in 1..n; if a correct sample has no mode,
            or a prompt shows more modes than it has.

    >>> right, other, wrong = Verdict(True, "2*3-4"), Verdict(True, "4-2"), Verdict(False, None)
    >>> sample_metrics([[right, right, other, wrong]], [4], k=2).averages()["pass@2"]
    1.0
    """
    if not 0 < len(verdicts) == len(total_modes):
        raise ValueError(f"Expected as many mode totals as prompts, got {len(total_modes)} for {len(verdicts)}.")
    rows = []
    for samples, total in zip(verdicts, total_modes, strict=True):
        n = len(samples)
        counts = _count_modes(samples, total)
        correct = sum(counts.values())
        passed = hit_probability(n, correct, k)
        distinct = sum(hit_probability(n, count, k) for count in counts.values())
        rows.append((correct / n, passed, distinct, distinct / total))
    return SampleMetrics(k, *np.asarray(rows, dtype=np.float64).T)


def hit_probability(n: int, c: int, k: int) -> float:
    """Return 1 - C(n - c, k) / C(n, k): the chance that k of n samples hold at least one of c given ones.

    Raises:
        ValueError: unless 1 <= k <= n and 0 <= c <= n.

    >>> hit_probability(4, 1, 2)
    0.5
    """
    if not (1 <= k <= n and 0 <= c <= n):
        raise ValueError(f"Expected 1 <= k <= n and 0 <= c <= n, got {n=}, {c=}, {k=}.")
    return 1 - comb(n - c, k) / comb(n, k)


def _count_modes(samples: Sequence[Verdict], total: int) -> Counter[str]:
    modes = [mode for correct, mode in samples if correct]
    counts = Counter(mode for mode in modes if mode is not None)
    if len(modes) != counts.total():
        raise ValueError("Expected a mode for every correct sample, got None.")
    if total < max(len(counts), 1):
        raise ValueError(f"Expected total_modes >= max(1, modes seen), got {total} for {len(counts)}.")
    return counts
