"""What is done to the utilities of one group before a target or advantages are made of them."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from maxent_grpo.reference._groups import Array
from maxent_grpo.reference.target import rank_utilities


def transform_group(
    names: Sequence[str], utilities: Array, right: npt.NDArray[np.bool_], counts: Array, scores: Array
) -> Array:
    """Return utilities [K] after the transforms of these names, candidate by candidate."""
    for name in names:
        before = utilities
        utilities = np.array([
            _transform_candidate(name, i, before, right, counts, scores) for i in range(len(before))
        ])  # fmt: skip
    return utilities


def _transform_candidate(
    name: str, i: int, u: Array, right: npt.NDArray[np.bool_], counts: Array, scores: Array
) -> float:
    K, n, successes = len(u), counts[i], int(right.sum())
    if name == "rank":
        return float(rank_utilities(u)[i])
    if name == "zscore":
        return 0.0 if u.max() == u.min() else float((u[i] - u.mean()) / u.std())
    if name == "ips":
        return float(u[i] / (n / K))
    if name == "gapo":
        answers = sum(1 / counts[j] for j in range(K) if right[j])
        return float(1 - (n / successes - 1 / answers)) if right[i] else -1.0
    if not right[i] or name == "raw":
        return float(u[i])
    if name == "darling":
        return float(u[i] * (1.0 if successes == 1 else max(0.1, (successes - n) / (successes - 1))))
    if name == "unlikeliness":
        rank = 1 + sum(score < scores[i] for score in scores) + (sum(scores == scores[i]) - 1) / 2
        return float(u[i] * (1 - 0.25 * rank / K))
    if name == "ucpo":
        return float(u[right].sum() / sum(math.exp(scores[i] - score) for score in scores[right]))
    raise ValueError(f"Expected a known transform, got {name!r}.")
