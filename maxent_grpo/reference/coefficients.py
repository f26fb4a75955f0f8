"""The coefficients of one group, from its utilities, as the objective composes them."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from maxent_grpo.reference._groups import Array, Data, Maybe, log_softmax
from maxent_grpo.reference.target import (
    center_weights,
    discount_duplicates,
    duplicate_counts,
    listwise_q,
    tempered_log_target,
    tempered_target,
)
from maxent_grpo.reference.transforms import transform_group

Flags = npt.NDArray[np.bool_]


def group_coefficients(
    utilities: Data,
    anchor_logps: Maybe = None,
    *,
    transform: str | Sequence[str] = "raw",
    temperature: float = 1.0,
    eps: float = 1e-6,
    tau: float = 0.2,
    beta: float = 0.0,
    keys: Maybe = None,
    counts: Maybe = None,
    right: Maybe = None,
    dedup: float = 0.0,
    soft_dedup: float = 0.0,
    projection: Literal["mle", "listwise", "regression", "surrogate"] = "mle",
    center: bool = False,
    policy_scores: Maybe = None,
    lengths: Data = 1.0,
    max_length: float = 1.0,
    surrogate_tau: float = np.inf,
    baseline: Literal["mean", "none"] = "mean",
    skip: Literal["none", "equal", "all_min"] = "none",
    min_utility: float = 0.0,
    **group_weight: Any,
) -> Array:
    """Return the coefficients c [K] of one group whose K candidates all count.

    The anchors are normalized already, and so are the policy's scores [K], which `listwise`, `regression`,
    `soft_dedup` and some transforms need; `surrogate` reads the lengths [K]. Group weight, skipping and who is right
    see the utilities as given, target and advantages see them transformed.
    """
    u = np.asarray(utilities, dtype=np.float64)
    if {"none": False, "equal": u.max() == u.min(), "all_min": np.all(u <= min_utility)}[skip]:
        return np.zeros(len(u))
    wins = u > min_utility if right is None else np.asarray(right, dtype=np.bool_)
    n = duplicate_counts(np.arange(len(u)) if keys is None else keys) if counts is None else np.asarray(counts)
    scores = np.zeros(len(u)) if policy_scores is None else np.asarray(policy_scores, dtype=np.float64)

    # The target over the candidates.
    transformed = transform_group([transform] if isinstance(transform, str) else transform, u, wins, n, scores)
    advantages = transformed - (transformed.mean() if baseline == "mean" else 0.0)
    if projection == "surrogate":
        returns = advantages * np.asarray(lengths, dtype=np.float64) / max_length
        target = np.exp(tempered_log_target(returns, tau=surrogate_tau))
    else:
        q = listwise_q(transformed, temperature=temperature, eps=eps)
        target = tempered_target(q, anchor_logps, tau=tau, beta=beta)

    # Sampling is taken back before anything is subtracted from the target.
    weights = discount_duplicates(target, n, strength=dedup)
    weights = discount_likely(weights, scores, wins, strength=soft_dedup)
    if projection in ("listwise", "regression") and policy_scores is None:
        raise ValueError(f"Expected policy_scores with {projection=}, got None.")
    if projection == "listwise":
        weights = weights - np.exp(log_softmax(scores))
    elif projection == "regression":
        residuals = np.log(weights) - scores
        weights = (residuals - residuals.mean()) / len(u)
    elif projection == "surrogate":
        weights = weights * advantages
    elif center:
        weights = center_weights(weights)
    return np.asarray(weigh_group(u, wins, n, **group_weight) * weights)


def discount_likely(weights: Array, scores: Array, right: Flags, *, strength: float) -> Array:
    """Return the weights of one group by (4c)."""
    share = weights[right].sum()
    if strength == 0 or share == 0:
        return weights
    lowest = scores[right].min()
    factors = [math.exp(-min(strength * (score - lowest), 5.0)) for score in scores[right]]
    discounted = weights.copy()
    discounted[right] = weights[right] * factors * share / np.sum(weights[right] * factors)
    return discounted


def weigh_group(
    utilities: Array,
    right: Flags,
    counts: Array,
    *,
    success_power: float = 0.0,
    failure_power: float = 0.0,
    distinct_power: float = 0.0,
    pass_k: int | None = None,
    pass_k_normalize: bool = False,
) -> float:
    """Return the weight of one group: p̂^a·(1−p̂)^b·M^d times the factor of pass@k."""
    by_rate = success_power != 0 or failure_power != 0 or pass_k is not None
    if by_rate and (utilities.min() < 0 or utilities.max() > 1):
        return math.nan
    weight = 1.0
    bases = (utilities.mean(), np.mean(1 - utilities), np.sum(1 / np.maximum(counts, 1)[right]))
    for base, power in zip(bases, (success_power, failure_power, distinct_power), strict=True):
        weight *= 1.0 if power == 0 else 0.0 if base == 0 else float(base) ** power
    if pass_k is not None:
        weight *= utilities.mean() * weigh_pass_at_k(len(utilities), int(right.sum()), pass_k, pass_k_normalize)
    return weight


def weigh_pass_at_k(candidates: int, successes: int, k: int, normalize: bool) -> float:
    """Return k·C(K−1−n, k−1)/C(K−1, k−1), normalized by k times the deviation of pass@k."""
    weight = k * math.comb(max(candidates - 1 - successes, 0), k - 1) / math.comb(candidates - 1, k - 1)
    if not normalize:
        return weight
    failure = math.comb(candidates - successes, k) / math.comb(candidates, k)
    return weight / (k * math.sqrt(failure * (1 - failure))) if 0 < failure < 1 else 0.0
