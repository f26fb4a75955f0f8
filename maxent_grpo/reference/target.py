"""Eqs. (1), (2), (4) and (4b): from utilities to target weights."""

from typing import Any

import numpy as np
import numpy.typing as npt

from maxent_grpo.reference._groups import (
    Array,
    Data,
    Maybe,
    apply_by_group,
    broadcast_mask,
    check_anchors,
    check_range,
    log_softmax,
)


def add_anchor(log_q: Array, anchors: Array, beta: float) -> Array:
    """Return log q + β log ρ, the exponents of (4) times τ + β."""
    return log_q + beta * log_softmax(anchors)


def _group_log_q(utilities: Array, temperature: float, eps: float) -> Any:
    K = len(utilities)
    if K * eps > 1:
        return np.nan
    shares = log_softmax((utilities - utilities.max()) / temperature)
    return np.logaddexp(np.log1p(-K * eps) + shares, np.log(eps))


def _group_log_target(log_q: Array, anchors: Array, tau: float, beta: float) -> Array:
    if log_q.max() == -np.inf:
        return np.full(len(log_q), np.nan)
    if np.isinf(tau):
        return np.full(len(log_q), -np.log(len(log_q)))
    if np.isinf(beta):
        return log_softmax(anchors)
    if tau + beta == 0:
        best = log_q == log_q.max()
        return np.where(best, -np.log(best.sum()), -np.inf)
    # Differences first: what a sum with β·a rounds off log q, a small τ + β would multiply.
    exponents = add_anchor(log_q - log_q.max(), anchors, beta)
    return log_softmax((exponents - exponents.max()) / (tau + beta))


def _group_ranks(utilities: Array) -> Any:
    if len(utilities) == 1:
        return 0.5
    below = (utilities[:, None] > utilities).sum(axis=1)
    ties = (utilities[:, None] == utilities).sum(axis=1)
    return (below + (ties - 1) / 2) / (len(utilities) - 1)


def _discount_group(weights: Array, counts: Array, strength: float) -> Any:
    # A count of 0 belongs to a masked candidate, whose weight is 0 already.
    shares = weights * np.maximum(counts, 1) ** -strength
    return shares / shares.sum()


def _group_tau_for_ess(log_q: Array, anchors: Array, ess: float, beta: float) -> float:
    exponents = add_anchor(log_q, anchors, beta)
    if exponents.max() == -np.inf:
        return np.nan
    exponents = exponents[exponents > -np.inf] - exponents.max()

    def reaches(tau: float) -> bool:
        powers = np.exp(exponents / (tau + beta)) if tau + beta > 0 else np.where(exponents == 0, 1.0, 0.0)
        return bool(powers.sum() ** 2 / (powers**2).sum() >= ess)

    if ess >= len(exponents):
        return np.inf
    if reaches(0.0):
        return 0.0
    high = 1.0
    while not reaches(high):
        high *= 2
    while reaches(high / 2):
        high /= 2
    low = high / 2
    while low < (middle := low + (high - low) / 2) < high:
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high


def listwise_log_q(utilities: Data, *, temperature: Data = 1.0, eps: float = 1e-6, mask: Maybe = None) -> Array:
    """Return log q of (1); -inf at masked candidates."""
    temperatures, floor = check_range("temperature", temperature, "> 0"), check_range("eps", eps)
    K = np.shape(utilities)[-1]
    if mask is None and K * eps > 1:
        raise ValueError(f"Expected K * eps <= 1, got K={K}, eps={eps:g}.")
    return apply_by_group(_group_log_q, [utilities], [temperatures, floor], mask, -np.inf)


def listwise_q(utilities: Data, *, temperature: Data = 1.0, eps: float = 1e-6, mask: Maybe = None) -> Array:
    """Return q of (1); 0 at masked candidates."""
    return np.exp(listwise_log_q(utilities, temperature=temperature, eps=eps, mask=mask))


def tempered_log_target(
    log_q: Data, anchor_logps: Maybe = None, *, tau: Data, beta: Data = 0.0, mask: Maybe = None
) -> Array:
    """Return log π* of (4) and its limits; -inf at masked candidates."""
    anchors, taus, betas = check_anchors(np.shape(log_q), anchor_logps, tau, beta, finite=False)
    return apply_by_group(_group_log_target, [log_q, anchors], [taus, betas], mask, -np.inf)


def tempered_target(q: Data, anchor_logps: Maybe = None, *, tau: Data, beta: Data = 0.0, mask: Maybe = None) -> Array:
    """Return π* of (4) and its limits; 0 at masked candidates."""
    with np.errstate(all="ignore"):
        log_q = np.log(np.asarray(q, dtype=np.float64))
    return np.exp(tempered_log_target(log_q, anchor_logps, tau=tau, beta=beta, mask=mask))


def center_weights(weights: Data, *, mask: Maybe = None) -> Array:
    """Return the weights less one over the number of counted candidates."""
    return apply_by_group(lambda counted: counted - 1 / len(counted), [weights], [], mask, 0.0)


def duplicate_counts(keys: Data, *, mask: Maybe = None) -> Array:
    """Return how often each counted candidate's key occurs among the counted ones of its group."""
    names = np.asarray(keys)
    counted = broadcast_mask(mask, names.shape)
    same = (names[..., :, None] == names[..., None, :]) & counted[..., :, None] & counted[..., None, :]
    return np.asarray(same.sum(axis=-1), dtype=np.float64)


def discount_duplicates(weights: Data, counts: Data, *, strength: float, mask: Maybe = None) -> Array:
    """Return the weights of (4b)."""
    if not 0 <= strength <= 1:
        raise ValueError(f"Expected 0 <= strength <= 1, got strength={strength:g}.")

    return apply_by_group(_discount_group, [weights, counts], [np.asarray(strength)], mask, 0.0)


def informative_groups(utilities: Data, *, mask: Maybe = None) -> npt.NDArray[np.bool_]:
    """Return whether the counted utilities differ; a NaN differs from everything."""
    return np.not_equal(apply_by_group(lambda u: u.max() != u.min(), [utilities], [], mask, 0.0, per="group"), 0.0)


def rank_utilities(utilities: Data, *, mask: Maybe = None) -> Array:
    """Return ranks in [0, 1], ties averaged, ½ for a lone candidate, 0 at masked ones."""
    return apply_by_group(_group_ranks, [utilities], [], mask, 0.0)


def tau_for_ess(log_q: Data, anchor_logps: Maybe = None, *, ess: Data, beta: Data = 0.0, mask: Maybe = None) -> Array:
    """Return the least τ whose target has this effective sample size; 0 and inf where out of reach."""
    anchors, _, betas = check_anchors(np.shape(log_q), anchor_logps, 0.0, beta, finite=True)
    sizes = check_range("ess", ess, ">= 1")
    return apply_by_group(_group_tau_for_ess, [log_q, anchors], [sizes, betas], mask, np.inf, per="group")
