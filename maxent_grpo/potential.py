"""The regularised potential on the candidate simplex, its maximum, and how far a policy is from it.

J(π) = ⟨π, log q⟩ + τ·H(π) − β·KL(π‖ρ), ρ = softmax(anchor_logps). Whatever lowers KL(π‖π*) raises J by
exactly τ+β times as much, eq. (6): the soft-improvement guarantee. It speaks of the simplex over the K
candidates, not of a gradient step on a network.
"""

import math

from torch import Tensor

from maxent_grpo._checks import Scalar, expect_candidates, expect_shape, expect_tempering
from maxent_grpo._masked import below_peak, expectation, fill, log_softmax, per_group, result_dtype, upcast


def regularized_potential(
    policy: Tensor,
    log_q: Tensor,
    anchor_logps: Tensor | None = None,
    *,
    tau: Scalar,
    beta: Scalar = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the potential of a policy over the candidates, eq. (3).

    J(π) = ⟨π, log q⟩ + τ·H(π) − β·KL(π‖ρ), with 0·log 0 = 0.

    Args:
        policy: [..., K] probabilities, summing to 1 over the counted candidates.
        log_q: [..., K].
        anchor_logps: [..., K]; needed if beta > 0.
        tau: >= 0, finite.
        beta: >= 0, finite.
        mask: [..., K] bool, True where a candidate counts.

    Returns:
        J [...]; −inf where the policy holds weight on q = 0.

    Raises:
        ValueError: on a negative, NaN or infinite tau or beta, beta > 0 without anchors, unequal shapes.

    >>> import torch
    >>> regularized_potential(torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75]).log(), tau=1.0)
    tensor(-0.1438)
    """
    expect_candidates("policy", policy, mask)
    scores, temperature = _combine_log_q_and_anchor(log_q, anchor_logps, policy.shape, tau, beta, mask)
    pi = fill(upcast(policy), mask, 0.0).to(scores.dtype)
    return (expectation(pi, scores) - temperature * expectation(pi, pi.log())).to(result_dtype(policy))


def optimal_potential(
    log_q: Tensor,
    anchor_logps: Tensor | None = None,
    *,
    tau: Scalar,
    beta: Scalar = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the largest potential on the simplex, eq. (5).

    J* = (τ+β)·log Σ_i q_i^{1/(τ+β)}·ρ_i^{β/(τ+β)}; max log q at τ = β = 0.

    Args, Raises: as `regularized_potential`.

    Returns:
        J* [...]; 0 for a group without candidates, so that J* − J(π) is the gap there too.

    >>> import torch
    >>> optimal_potential(torch.tensor([0.5, 0.5]).log(), tau=2.0)
    tensor(0.6931)
    """
    expect_candidates("log_q", log_q, mask)
    scores, temperature = _combine_log_q_and_anchor(log_q, anchor_logps, log_q.shape, tau, beta, mask)
    peak = fill(scores, mask, -math.inf).amax(-1)
    best = peak + _exceed_peak(scores, temperature, mask)
    if mask is not None:
        best = best.masked_fill(~mask.any(-1), 0.0)
    return best.to(result_dtype(log_q))


def improvement_gap(
    log_policy: Tensor,
    log_q: Tensor,
    anchor_logps: Tensor | None = None,
    *,
    tau: Scalar,
    beta: Scalar = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Return how much potential a policy leaves on the table, eq. (6).

    J* − J(π) = (τ+β)·KL(π‖π*) >= 0, evaluated without forming log π*: it stays finite as τ+β → 0, where
    the divergence itself overflows.

    Args:
        log_policy: [..., K] log-probabilities, normalised over the counted candidates.
        log_q, anchor_logps, tau, beta, mask: as `regularized_potential`.

    Returns:
        J* − J(π) [...]; inf where the policy holds weight on q = 0; 0 for a group without candidates.

    Raises:
        ValueError: as `regularized_potential`.

    >>> import torch
    >>> improvement_gap(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log(), tau=1.0)
    tensor(0.1438)
    """
    expect_candidates("log_policy", log_policy, mask)
    scores, temperature = _combine_log_q_and_anchor(log_q, anchor_logps, log_policy.shape, tau, beta, mask)
    log_pi = fill(upcast(log_policy), mask, -math.inf).to(scores.dtype)
    pi = log_pi.exp()
    shortfall = expectation(pi, -below_peak(scores, mask))
    gap = shortfall + _exceed_peak(scores, temperature, mask) + temperature * expectation(pi, log_pi)
    if mask is not None:
        gap = gap.masked_fill(~mask.any(-1), 0.0)
    return gap.to(result_dtype(log_policy))


def forward_kl(log_target: Tensor, log_policy: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Return KL(π*‖π) = Σ_i π*_i·(log π*_i − log π_i), which weighted maximum likelihood lowers in expectation.

    Args:
        log_target: [..., K] log π*, normalised over the counted candidates.
        log_policy: [..., K] log π, likewise.
        mask: [..., K] bool, True where a candidate counts.

    Returns:
        KL [...]; inf where the target holds weight that the policy has not; 0 for a group without candidates.

    Raises:
        ValueError: on unequal shapes or a mask that is not bool.

    >>> import torch
    >>> forward_kl(torch.tensor([1.0, 0.0]).log(), torch.tensor([0.5, 0.5]).log())
    tensor(0.6931)
    """
    expect_candidates("log_target", log_target, mask)
    expect_shape("log_policy", log_policy, log_target.shape)
    log_pi_star = fill(upcast(log_target), mask, -math.inf)
    return expectation(log_pi_star.exp(), log_pi_star - log_policy.to(log_pi_star.dtype)).to(result_dtype(log_target))


def effective_sample_size(weights: Tensor) -> Tensor:
    """Return the effective sample size 1/Σ_i w_i²: K for uniform weights, 1 for a single winner.

    Args:
        weights: [..., K], summing to 1.

    Returns:
        ESS [...]; 0 for a group whose weights are all 0.

    Raises:
        ValueError: on weights without a last dimension.

    >>> import torch
    >>> effective_sample_size(torch.tensor([0.5, 0.5, 0.0]))
    tensor(2.)
    """
    expect_candidates("weights", weights, None)
    squares = upcast(weights).square().sum(-1)
    return (1 / squares).masked_fill(squares == 0, 0.0).to(result_dtype(weights))


def _combine_log_q_and_anchor(
    log_q: Tensor,
    anchor_logps: Tensor | None,
    shape: tuple[int, ...],
    tau: Scalar,
    beta: Scalar,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return log q + β·log ρ, [..., K], and τ+β, [...]: J(π) = ⟨π, scores⟩ + (τ+β)·H(π)."""
    expect_shape("log_q", log_q, shape)
    expect_tempering(tau, beta, anchor_logps, finite=True)
    scores = fill(upcast(log_q), mask, -math.inf)
    beta_ = per_group("beta", beta, scores)
    if anchor_logps is not None:
        expect_shape("anchor_logps", anchor_logps, shape)
        log_rho = log_softmax(anchor_logps.to(scores.dtype), mask)
        scores = scores + (beta_ * log_rho).masked_fill(beta_ == 0, 0.0)  # 0·log 0 = 0
    return scores, (per_group("tau", tau, scores) + beta_).squeeze(-1)


def _exceed_peak(scores: Tensor, temperature: Tensor, mask: Tensor | None) -> Tensor:
    """Return T·log Σ_i exp((score_i − peak)/T), [...], T = τ+β: by how much the soft maximum exceeds the peak."""
    divisor = temperature.masked_fill(temperature == 0, 1.0).unsqueeze(-1)
    return temperature * (below_peak(scores, mask) / divisor).logsumexp(-1)
