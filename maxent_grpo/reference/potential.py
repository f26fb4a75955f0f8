"""Eqs. (3), (5) and (6): the potential, its maximum and the gap, and the divergences beside them."""

from typing import Any

import numpy as np

from maxent_grpo.reference._groups import (
    Array,
    Data,
    Maybe,
    apply_by_group,
    check_anchors,
    log_softmax,
)
from maxent_grpo.reference.target import add_anchor


def _group_potential(policy: Array, log_q: Array, anchors: Array, tau: float, beta: float) -> Any:
    held = policy != 0
    p, log_p, log_rho = policy[held], np.log(policy[held]), log_softmax(anchors)[held]
    entropy, divergence = -np.sum(p * log_p), np.sum(p * (log_p - log_rho))
    return np.sum(p * log_q[held]) + tau * entropy - beta * divergence


def _group_optimum(log_q: Array, anchors: Array, tau: float, beta: float) -> Any:
    exponents, spread = add_anchor(log_q, anchors, beta), tau + beta
    best = exponents.max()
    if spread == 0:
        return best if best > -np.inf else np.nan
    return best + spread * np.log(np.exp((exponents - best) / spread).sum())


def _group_gap(log_policy: Array, log_q: Array, anchors: Array, tau: float, beta: float) -> Any:
    # (τ + β)(log π − log π*) without ever dividing by τ + β; the exponents' maximum drops out of it.
    exponents, spread = add_anchor(log_q, anchors, beta), tau + beta
    exponents -= exponents.max()
    p, excess = np.exp(log_policy), _group_optimum(exponents, np.zeros_like(exponents), spread, 0.0)
    held = p > 0
    return np.sum(p[held] * (spread * log_policy[held] - exponents[held] + excess))


def _group_kl(log_target: Array, log_policy: Array) -> Any:
    held = np.exp(log_target) > 0
    return np.sum(np.exp(log_target[held]) * (log_target[held] - log_policy[held]))


def regularized_potential(
    policy: Data, log_q: Data, anchor_logps: Maybe = None, *, tau: Data, beta: Data = 0.0, mask: Maybe = None
) -> Array:
    """Return J(π) of (3) per group."""
    anchors, taus, betas = check_anchors(np.shape(log_q), anchor_logps, tau, beta, finite=True)
    return apply_by_group(_group_potential, [policy, log_q, anchors], [taus, betas], mask, 0.0, per="group")


def optimal_potential(
    log_q: Data, anchor_logps: Maybe = None, *, tau: Data, beta: Data = 0.0, mask: Maybe = None
) -> Array:
    """Return J* of (5) per group, max log q at τ = β = 0."""
    anchors, taus, betas = check_anchors(np.shape(log_q), anchor_logps, tau, beta, finite=True)
    return apply_by_group(_group_optimum, [log_q, anchors], [taus, betas], mask, 0.0, per="group")


def improvement_gap(
    log_policy: Data,
    log_q: Data,
    anchor_logps: Maybe = None,
    *,
    tau: Data,
    beta: Data = 0.0,
    mask: Maybe = None,
) -> Array:
    """Return J* − J(π) of (6) per group."""
    anchors, taus, betas = check_anchors(np.shape(log_q), anchor_logps, tau, beta, finite=True)
    return apply_by_group(_group_gap, [log_policy, log_q, anchors], [taus, betas], mask, 0.0, per="group")


def forward_kl(log_target: Data, log_policy: Data, *, mask: Maybe = None) -> Array:
    """Return KL(π*‖π) per group."""
    return apply_by_group(_group_kl, [log_target, log_policy], [], mask, 0.0, per="group")


def effective_sample_size(weights: Data) -> Array:
    """Return 1 / Σ w² per group, 0 where there is no weight."""
    squares = np.asarray((np.asarray(weights, dtype=np.float64) ** 2).sum(axis=-1))
    with np.errstate(divide="ignore"):
        return np.where(squares == 0, 0.0, 1 / squares)
