"""The regularised potential on the candidate simplex, its maximum, and how far a policy is from it.

J(π) = ⟨π, log q⟩ + τ·H(π) − β·KL(π‖ρ), ρ = softmax(anchor_logps). Whatever lowers KL(π‖π*) raises J by
exactly τ+β times as much, eq. (6): the soft-improvement guarantee. It speaks of the simplex over the K
candidates, not of a gradient step on a network.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from maxent_grpo._checks import Scalar, expect_candidates, expect_shape, expect_tempering
from maxent_grpo._masked import below_peak, expectation, fill, log_softmax, result_dtype, sum_temperatures, upcast


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
    terms = _read_terms(log_q, anchor_logps, policy.shape, tau, beta, mask)
    pi = fill(upcast(policy), mask, 0.0).to(terms.log_q.dtype)
    potential = expectation(pi, terms.log_q) - terms.tau.squeeze(-1) * expectation(pi, pi.log())
    if terms.log_rho is not None:
        divergence = _sum_divergence(pi.log(), terms.log_rho, torch.ones_like(terms.beta))
        beta_ = terms.beta.squeeze(-1)
        potential = potential - (beta_ * divergence).masked_fill(beta_ == 0, 0.0)  # 0·KL = 0, infinite or not
    return potential.to(result_dtype(policy))


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
    terms = _read_terms(log_q, anchor_logps, log_q.shape, tau, beta, mask)
    scores = terms.scale_scores()
    best = scores.amax(-1, keepdim=True) + _exceed_peak(below_peak(scores, mask), terms.temperature)
    if terms.log_rho is not None:
        best = _refine_near_zero(best, terms)
    best = (terms.unit * best).squeeze(-1)
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
    terms = _read_terms(log_q, anchor_logps, log_policy.shape, tau, beta, mask)
    log_pi = fill(upcast(log_policy), mask, -math.inf).to(terms.log_q.dtype)
    below = below_peak(terms.scale_scores(), mask)
    heat = terms.temperature
    gap = terms.unit.squeeze(-1) * _sum_divergence(log_pi, below - _exceed_peak(below, heat), heat)
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
    log_pi = fill(log_policy.to(log_pi_star.dtype), mask, -math.inf)
    divergence = _sum_divergence(log_pi_star, log_pi, torch.ones_like(log_pi[..., :1]))
    return divergence.to(result_dtype(log_target))


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


@dataclass(frozen=True)
class _Terms:
    """What a potential is made of.

    Large τ+β are taken in units of themselves: β·log ρ would drown log q in rounding.

    Attributes:
        log_q, log_rho: [..., K], −inf where masked; without anchors there is no log ρ.
        tau, beta: [..., 1].
        unit: [..., 1], max(τ+β, 1).
        temperature: [..., 1], (τ+β)/unit.
    """

    log_q: Tensor
    log_rho: Tensor | None
    tau: Tensor
    beta: Tensor
    unit: Tensor
    temperature: Tensor

    def scale_scores(self) -> Tensor:
        """Return (log q + β·log ρ)/unit, [..., K]: J(π) = unit·(⟨π, scores⟩ + temperature·H(π))."""
        scores = self.log_q / self.unit
        if self.log_rho is None:
            return scores
        return scores + (self.beta / self.unit * self.log_rho).masked_fill(self.beta == 0, 0.0)  # 0·log 0 = 0


def _read_terms(
    log_q: Tensor,
    anchor_logps: Tensor | None,
    shape: tuple[int, ...],
    tau: Scalar,
    beta: Scalar,
    mask: Tensor | None,
) -> _Terms:
    expect_shape("log_q", log_q, shape)
    expect_tempering(tau, beta, anchor_logps, finite=True)
    values, log_rho = fill(upcast(log_q), mask, -math.inf), None
    if anchor_logps is not None:
        expect_shape("anchor_logps", anchor_logps, shape)
        log_rho = log_softmax(anchor_logps.to(values.dtype), mask)
    taus, betas, total = sum_temperatures(tau, beta, values)
    unit = total.clamp(min=1.0)
    return _Terms(values, log_rho, taus, betas, unit, total / unit)


def _exceed_peak(below: Tensor, temperature: Tensor) -> Tensor:
    """Return T·log Σ_i exp(below_i/T), [..., 1]: by how much the soft maximum exceeds the peak."""
    divisor = temperature.masked_fill(temperature == 0, 1.0)
    return temperature * (below / divisor).logsumexp(-1).unsqueeze(-1)


def _refine_near_zero(best: Tensor, terms: _Terms) -> Tensor:
    """Return J*/unit, [..., 1], from log Σ_i ρ_i·e^{x_i} = log(1 + Σ_i ρ_i·(e^{x_i} − 1)) where every x_i is small.

    x_i = (log q_i − τ·log ρ_i)/(τ+β). A large β makes J*/(τ+β) so small that rounding would be all that is left.
    """
    assert terms.log_rho is not None
    silent = terms.log_rho.isneginf()
    x = (terms.log_q - terms.tau * terms.log_rho.masked_fill(silent, 0.0)) / terms.unit
    x = x.masked_fill(silent, 0.0)
    small = (terms.unit > 1) & (x.amax(-1, keepdim=True) < 1)
    rise = (terms.log_rho.exp() * x.masked_fill(~small, 0.0).expm1()).sum(-1, keepdim=True)
    small = small & (rise > -0.5)
    return torch.where(small, rise.masked_fill(~small, 0.0).log1p(), best)


def _sum_divergence(log_p: Tensor, scaled_log_r: Tensor, temperature: Tensor) -> Tensor:
    """Return T·KL(p‖r), [...], as Σ_i T·(r_i − p_i − p_i·d_i), d = log(r/p): no term is below 0.

    Σ(r − p) = 0 has been added to −Σ p·d, whose terms cancel but for the square of a small d.

    Args:
        log_p: [..., K], normalised.
        scaled_log_r: T·log r, [..., K], with r normalised; −inf where r is 0, whatever T.
        temperature: T, [..., 1], >= 0.
    """
    p, divisor = log_p.exp(), temperature.masked_fill(temperature == 0, 1.0)
    silent = p == 0
    own = (temperature * log_p.masked_fill(silent, 0.0)).masked_fill(temperature == 0, 0.0)
    log_ratio = (scaled_log_r - own).masked_fill(silent, 0.0)
    d = log_ratio / divisor
    # Where r and p are close they are not subtracted; where they are not, e^d may overflow.
    near = p * (temperature * d.clamp(max=1.0).expm1() - log_ratio)
    far = temperature * ((scaled_log_r / divisor).exp() - p) - p * log_ratio
    return torch.where((d < 1) & ~silent, near, far).sum(-1)
