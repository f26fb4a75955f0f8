"""The coefficients of one group, from its utilities, as the objective composes them."""

from typing import Literal

import numpy as np

from maxent_grpo.reference._groups import (
    Array,
    Data,
    Maybe,
    log_softmax,
)
from maxent_grpo.reference.target import (
    center_weights,
    discount_duplicates,
    duplicate_counts,
    listwise_q,
    rank_utilities,
    tempered_log_target,
    tempered_target,
)


def group_coefficients(
    utilities: Data,
    anchor_logps: Maybe = None,
    *,
    transform: Literal["raw", "rank", "zscore"] = "raw",
    temperature: float = 1.0,
    eps: float = 1e-6,
    tau: float = 0.2,
    beta: float = 0.0,
    keys: Maybe = None,
    dedup: float = 0.0,
    projection: Literal["mle", "listwise", "surrogate"] = "mle",
    center: bool = False,
    policy_scores: Maybe = None,
    lengths: Data = 1.0,
    max_length: float = 1.0,
    surrogate_tau: float = np.inf,
    success_power: float = 0.0,
    skip: Literal["none", "equal", "all_min"] = "none",
    min_utility: float = 0.0,
) -> Array:
    """Return the coefficients c [K] of one group whose K candidates all count.

    The anchors are normalized already; `listwise` needs the policy's scores [K], `surrogate` reads the lengths [K].
    The group weight and the skipping see the utilities as given, target and advantages see them transformed.
    """
    u = np.asarray(utilities, dtype=np.float64)
    if {"none": False, "equal": u.max() == u.min(), "all_min": np.all(u <= min_utility)}[skip]:
        return np.zeros(len(u))
    group_weight = np.nan if success_power > 0 and u.min() < 0 else u.mean() ** success_power

    # The target over the candidates.
    transformed = _transform_utilities(u, transform)
    if projection == "surrogate":
        advantages = transformed - transformed.mean()
        returns = advantages * np.asarray(lengths, dtype=np.float64) / max_length
        target = np.exp(tempered_log_target(returns, tau=surrogate_tau))
    else:
        q = listwise_q(transformed, temperature=temperature, eps=eps)
        target = tempered_target(q, anchor_logps, tau=tau, beta=beta)

    # Duplicates are discounted before anything is subtracted from the target.
    counts = duplicate_counts(np.arange(len(u)) if keys is None else keys)
    weights = discount_duplicates(target, counts, strength=dedup)
    if projection == "listwise":
        if policy_scores is None:
            raise ValueError("Expected policy_scores with projection='listwise', got None.")
        weights = weights - np.exp(log_softmax(np.asarray(policy_scores, dtype=np.float64)))
    elif projection == "surrogate":
        weights = weights * advantages
    elif center:
        weights = center_weights(weights)
    return np.asarray(group_weight * weights)


def _transform_utilities(utilities: Array, transform: str) -> Array:
    if transform == "rank":
        return rank_utilities(utilities)
    if transform == "zscore":
        deviation = utilities.std() if utilities.max() != utilities.min() else np.inf
        return np.asarray((utilities - utilities.mean()) / deviation)
    return utilities
