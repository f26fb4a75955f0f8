"""What sampling has counted twice, taken back from a target: by equal answers, eq. (4b), or by likelihood, eq. (4c).

On-policy samples already carry the policy once: what it draws often stands often in its group.
"""

import math

import torch
from torch import Tensor

from maxent_grpo._checks import LARGEST, expect_candidates, expect_in, expect_mask, expect_shape
from maxent_grpo._masked import fill, log_softmax, result_dtype, upcast

DEEPEST = 5.0
"""The most nats by which a likely answer is discounted, eq. (4c)."""


def duplicate_counts(keys: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Return how often each candidate's key occurs among the counted candidates of its group.

    Args:
        keys: [..., K] integers, equal where two candidates are the same answer (hashes of their texts).
        mask: [..., K] bool, True where a candidate counts.

    Returns:
        counts [..., K] int64, at least 1 where counted and 0 where masked.

    Raises:
        ValueError: on keys that are not integers, or a mask of another shape or dtype.

    >>> duplicate_counts(torch.tensor([7, 8, 7]))
    tensor([2, 1, 2])
    """
    expect_candidates("keys", keys, mask)
    if keys.is_floating_point() or keys.dtype == torch.bool:
        raise ValueError(f"Expected keys of an integer dtype, got keys of dtype {keys.dtype}.")
    counted = torch.ones_like(keys, dtype=torch.bool) if mask is None else mask
    keys = keys.contiguous()
    ordered, order = keys.sort(dim=-1)
    # A key's copies are neighbors in the sorted row: those that count are a difference of running totals.
    totals = torch.nn.functional.pad(counted.gather(-1, order).cumsum(-1), (1, 0))
    first, end = torch.searchsorted(ordered, keys), torch.searchsorted(ordered, keys, right=True)
    return (totals.gather(-1, end) - totals.gather(-1, first)).masked_fill(~counted, 0)


def count_answers(counts: Tensor, right: Tensor) -> Tensor:
    """Return how many different right answers each group has, M = Σ_{i right} 1/n_i, [...].

    That is their number where equal answers are equally right, and a generalisation of it for counts Σ_j S_ij.

    Args:
        counts: [..., K], n_i of `duplicate_counts`.
        right: [..., K] bool, True where a candidate counts and is right.

    >>> count_answers(torch.tensor([2, 2, 1, 1]), torch.tensor([True, True, True, False]))
    tensor(2.)
    """
    expect_candidates("counts", counts, right)
    return fill(1 / upcast(counts).clamp(min=1), right, 0.0).sum(-1)


def discount_duplicates(weights: Tensor, counts: Tensor, *, strength: float, mask: Tensor | None = None) -> Tensor:
    """Return weights with part of the sampling frequency taken back, eq. (4b).

    w_i ← w_i·n_i^{−κ} / Σ_j w_j·n_j^{−κ}, κ = strength. For 0 < τ+β < ∞ this is the target of
    log q_i − (τ+β)·κ·log n_i in place of log q_i. With τ → 0 and centred weights, κ = 1 is IPS-GRPO
    (arXiv 2601.21669) up to a positive factor per group.

    Args:
        weights: [..., K], non-negative.
        counts: [..., K], n_i of `duplicate_counts`, or Σ_j S_ij of a similarity with S_ii = 1.
        strength: κ between 0 (off) and 1 (each distinct answer counts once).
        mask: [..., K] bool, True where a candidate counts.

    Returns:
        weights [..., K], summing to 1 over the counted candidates; exactly 0 where masked.

    Raises:
        ValueError: on strength outside [0, 1] or unequal shapes.

    >>> discount_duplicates(torch.tensor([0.4, 0.4, 0.2]), torch.tensor([2, 2, 1]), strength=1.0)
    tensor([0.3333, 0.3333, 0.3333])
    """
    expect_candidates("weights", weights, mask)
    log_weights = discount_log_weights(upcast(weights).log(), counts, strength=strength, mask=mask)
    return log_weights.exp().to(result_dtype(weights))


def discount_log_weights(
    log_weights: Tensor, counts: Tensor, *, strength: float, mask: Tensor | None = None
) -> Tensor:
    """Return the logarithm of `discount_duplicates`, eq. (4b), from log weights [..., K]."""
    expect_candidates("log_weights", log_weights, mask)
    expect_shape("counts", counts, log_weights.shape)
    expect_in("strength", strength, 0.0, 1.0)
    values = upcast(log_weights)
    discount = strength * counts.clamp(min=1).to(values.dtype).log()
    return log_softmax(values - discount, mask).to(result_dtype(log_weights))


def discount_likely(
    log_weights: Tensor, logps: Tensor, right: Tensor, *, strength: float, mask: Tensor | None = None
) -> Tensor:
    """Return log weights whose right candidates are discounted by how likely they were to be sampled, eq. (4c).

    For i ∈ R, the right ones: w_i ← w_i·f_i·S / Σ_{j∈R} w_j·f_j, f_i = exp(−min(α·(ℓ_i − min_{j∈R} ℓ_j), 5)) and
    S = Σ_{j∈R} w_j: R keeps its share. No keys are needed ("soft κ"; compare UCPO, arXiv 2605.00365).

    Args:
        log_weights: [..., K].
        logps: [..., K], ℓ_i, log-probabilities under the policy that sampled; anything where not right.
        right: [..., K] bool, R.
        strength: α >= 0; 0 is off.
        mask: [..., K] bool, True where a candidate counts.

    Returns:
        log weights [..., K]; those of the others, and of groups without R or without weight on R, are unchanged.

    Raises:
        ValueError: on a negative strength, unequal shapes, or a `right` that is not bool.

    >>> halves = torch.tensor([0.5, 0.5]).log()
    >>> discount_likely(halves, torch.tensor([0.75, 0.25]).log(), torch.tensor([True, True]), strength=1.0).exp()
    tensor([0.2500, 0.7500])
    """
    expect_candidates("log_weights", log_weights, mask)
    expect_shape("logps", logps, log_weights.shape)
    expect_mask("right", right, log_weights.shape)
    expect_in("strength", strength, 0.0, LARGEST)
    values = upcast(log_weights)
    counted = right if mask is None else right & mask
    scores = fill(logps.to(values.dtype), counted, math.inf)
    above = fill(scores - scores.amin(-1, keepdim=True), counted, 0.0)
    share = fill(values, counted, -math.inf).logsumexp(-1, keepdim=True)
    discounted = log_softmax(values - (strength * above).clamp(max=DEEPEST), counted) + share
    return torch.where(counted & (share > -math.inf), discounted, values).to(result_dtype(log_weights))
