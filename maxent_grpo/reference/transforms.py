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
    if name in ("rank", "zscore"):
        standard = 0.0 if u.max() == u.min() else float((u[i] - u.mean()) / u.std())
        return standard if name == "zscore" else float(rank_utilities(u)[i])
    if name == "ips":
        return float(u[i] / (n / K))
    if not right[i]:
        return -1.0 if name == "gapo" else float(u[i])
    if name == "gapo":
        return float(1 - (n / successes - 1 / sum(1 / counts[right])))
    if name == "ucpo":
        return float(u[right].sum() / sum(math.exp(scores[i] - score) for score in scores[right]))
    return float(u[i] * _scale_right(name, i, u, right, counts, scores))


def _scale_right(name: str, i: int, u: Array, right: npt.NDArray[np.bool_], counts: Array, scores: Array) -> float:
    """Return what the utility of a right candidate is multiplied by."""
    successes = int(right.sum())
    if name == "darling":
        return 1.0 if successes == 1 else max(0.1, float(successes - counts[i]) / (successes - 1))
    if name == "unlikeliness":
        rank = 1 + sum(score < scores[i] for score in scores) + (sum(scores == scores[i]) - 1) / 2
        return float(1 - 0.25 * rank / len(u))
    return {"raw": 1.0}[name]
