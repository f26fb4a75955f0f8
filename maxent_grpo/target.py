"""From utilities to target weights: the listwise distribution q and its tempered blend with an anchor.

Everything is over the last dimension, the K candidates of one prompt; any leading batch shape is allowed.
All calculations are in log-space, in float32 for half-precision inputs; results come back in the input's dtype.
`tau`, `beta`, `temperature` and `ess` are numbers, or tensors [] or [...] with one value per group: these are not
read, and a bad value shows as NaN in its group. All other settings are numbers.
"""

import math

import torch
from torch import Tensor

from maxent_grpo._checks import (
    LARGEST,
    Scalar,
    expect,
    expect_anchor,
    expect_candidates,
    expect_in,
    expect_scalar,
    expect_shape,
    expect_tempering,
)
from maxent_grpo._masked import (
    below_peak,
    center,
    count,
    divide_gap,
    fill,
    log_softmax,
    mean,
    measure_ess,
    per_group,
    result_dtype,
    sum_temperatures,
    upcast,
)

_BISECTIONS = 64  # halves a bracket of under 100 nats below float64 resolution


def listwise_q(
    utilities: Tensor, *, temperature: Scalar = 1.0, eps: float = 1e-6, mask: Tensor | None = None
) -> Tensor:
    """Return the listwise target q over the candidates of each group, eq. (1).

    q_i = (1 − K·eps)·softmax_i(u / T) + eps, with K the number of counted candidates.

    Args:
        utilities: [..., K], weighted sums of rewards; integers are cast to the default float dtype.
        temperature: T > 0.
        eps: least probability of a counted candidate, with K·eps <= 1.
        mask: [..., K] bool, True where a candidate counts.

    Returns:
        q [..., K]; exactly 0 where masked. A NaN utility makes the counted candidates of its group NaN.

    Raises:
        ValueError: on temperature <= 0, eps < 0, K·eps > 1, or a mask of another shape or dtype.

    >>> listwise_q(torch.tensor([0.0, 1.0]), eps=0.0)
    tensor([0.2689, 0.7311])
    """
    expect_candidates("utilities", utilities, mask)
    log_q = listwise_log_q(upcast(utilities), temperature=temperature, eps=eps, mask=mask)
    return log_q.exp().to(result_dtype(utilities))


def listwise_log_q(
    utilities: Tensor, *, temperature: Scalar = 1.0, eps: float = 1e-6, mask: Tensor | None = None
) -> Tensor:
    """Return log q of `listwise_q`, eq. (1), without leaving log-space.

    Args, Raises: as `listwise_q`.

    Returns:
        log q [..., K]; −inf where masked.

    >>> listwise_log_q(torch.tensor([-1e4, 1e4]), temperature=1e-3, eps=0.0)
    tensor([-20000000.,         0.])
    """
    expect_candidates("utilities", utilities, mask)
    expect_scalar("temperature", temperature, 0.0, open_low=True)
    expect_in("eps", eps, 0.0)
    candidates = utilities.shape[-1]
    if mask is None:  # with a mask, K is in a tensor: a group with too many candidates for eps becomes NaN
        expect(candidates * eps <= 1 + 1e-12, f"K*eps <= 1 with K={candidates} candidates", eps=eps)
    values = upcast(utilities)
    divisor = per_group("temperature", temperature, values, open_low=True)
    log_p = log_softmax(divide_gap(below_peak(values, mask), divisor), mask)
    rest = 1 - count(values, mask) * eps
    rest = rest.masked_fill(rest.abs() < 4 * torch.finfo(values.dtype).eps, 0.0)  # K·eps = 1 up to rounding
    log_eps = math.log(eps) if eps > 0 else -math.inf  # here, where an eps below float32's smallest is not 0
    log_q = torch.logaddexp(rest.log() + log_p, torch.full_like(rest, log_eps))
    return fill(log_q, mask, -math.inf).to(result_dtype(utilities))


def tempered_target(
    q: Tensor,
    anchor_logps: Tensor | None = None,
    *,
    tau: Scalar,
    beta: Scalar = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the target weights π* of each group, eq. (4).

    π*_i = q_i^{1/(τ+β)} · ρ_i^{β/(τ+β)} / Z with ρ = softmax(anchor_logps): the unique maximiser of the
    potential ⟨π, log q⟩ + τ·H(π) − β·KL(π‖ρ) over the simplex.

    Args:
        q: [..., K], the listwise target.
        anchor_logps: [..., K], a constant may be added per group; needed if beta > 0.
        tau: >= 0; 0 and inf are exact limits.
        beta: >= 0; 0 and inf are exact limits. tau = beta = 0 shares the weight over the largest q.
        mask: [..., K] bool, True where a candidate counts.

    Returns:
        weights [..., K], summing to 1 over the counted candidates; exactly 0 where masked.

    Raises:
        ValueError: on a negative or NaN tau or beta, both infinite, beta > 0 without anchors, unequal shapes.

    >>> tempered_target(torch.tensor([0.2, 0.8]), tau=2.0)
    tensor([0.3333, 0.6667])
    """
    expect_candidates("q", q, mask)
    log_weights = tempered_log_target(upcast(q).log(), anchor_logps, tau=tau, beta=beta, mask=mask)
    return log_weights.exp().to(result_dtype(q))


def tempered_log_target(
    log_q: Tensor,
    anchor_logps: Tensor | None = None,
    *,
    tau: Scalar,
    beta: Scalar = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the logarithm of `tempered_target`, eq. (4), from log q, without leaving log-space.

    Args, Raises: as `tempered_target`, with log_q [..., K] in place of q.

    Returns:
        log weights [..., K]; −inf where masked.

    >>> tempered_log_target(torch.tensor([-3e4, 0.0]), torch.tensor([0.0, -1.0]), tau=0.0, beta=1e4)
    tensor([-2.1269, -0.1269])
    """
    expect_candidates("log_q", log_q, mask)
    expect_tempering(tau, beta, anchor_logps)
    gap = below_peak(upcast(log_q), mask)
    tau_, beta_, temperature = sum_temperatures(tau, beta, gap)
    exponents = divide_gap(gap, temperature)
    exponents = exponents.masked_fill(
        temperature.isinf() & gap.isneginf(), 0.0
    )  # an infinite one: q = 0 is like any other
    if anchor_logps is not None and not (isinstance(beta, (int, float)) and beta == 0):
        expect_shape("anchor_logps", anchor_logps, log_q.shape)
        share = torch.where(beta_.isinf() & tau_.isfinite(), 1.0, beta_ / temperature.masked_fill(beta_ == 0, 1.0))
        log_rho = share * below_peak(anchor_logps.to(gap.dtype), mask)
        exponents = exponents + log_rho.masked_fill(share == 0, 0.0)
    return log_softmax(exponents, mask).to(result_dtype(log_q))


def center_weights(weights: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Return weights − 1/K over the K counted candidates: they sum to zero if the weights sum to one.

    Args:
        weights: [..., K].
        mask: [..., K] bool, True where a candidate counts.

    Returns:
        centered weights [..., K]; exactly 0 where masked.

    Raises:
        ValueError: on a mask of another shape or dtype.

    >>> center_weights(torch.tensor([0.75, 0.25]))
    tensor([ 0.2500, -0.2500])
    """
    expect_candidates("weights", weights, mask)
    values = upcast(weights)
    return fill(values - 1 / count(values, mask), mask, 0.0).to(result_dtype(weights))


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


def discount_duplicates(weights: Tensor, counts: Tensor, *, strength: float, mask: Tensor | None = None) -> Tensor:
    """Return weights with part of the sampling frequency taken back, eq. (4b).

    w_i ← w_i·n_i^{−κ} / Σ_j w_j·n_j^{−κ}, κ = strength. For 0 < τ+β < ∞ this is the target of
    log q_i − (τ+β)·κ·log n_i in place of log q_i.

    Args:
        weights: [..., K], non-negative.
        counts: [..., K], n_i of `duplicate_counts`.
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


def informative_groups(utilities: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Return where a group's counted utilities are not all equal.

    Args:
        utilities: [..., K].
        mask: [..., K] bool, True where a candidate counts.

    Returns:
        bool [...]; False for groups of one candidate or none.

    Raises:
        ValueError: on a mask of another shape or dtype.

    >>> informative_groups(torch.tensor([[0.0, 1.0], [1.0, 1.0]]))
    tensor([ True, False])
    """
    expect_candidates("utilities", utilities, mask)
    values = upcast(utilities)
    highest, lowest = fill(values, mask, -math.inf).amax(-1), fill(values, mask, math.inf).amin(-1)
    return highest != lowest if mask is None else (highest != lowest) & mask.any(-1)


def rank_utilities(utilities: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Return the ranks of the utilities in [0, 1], ties averaged: what is left when only the order counts.

    r_i = (#{j: u_j < u_i} + (#{j: u_j = u_i} − 1)/2) / (K − 1), and ½ for a candidate alone in its group.

    Args:
        utilities: [..., K].
        mask: [..., K] bool, True where a candidate counts.

    Returns:
        ranks [..., K]; 0 where masked; NaN throughout a group with a NaN utility.

    Raises:
        ValueError: on a mask of another shape or dtype.

    >>> rank_utilities(torch.tensor([3.0, 1.0, 1.0]))
    tensor([1.0000, 0.2500, 0.2500])
    """
    expect_candidates("utilities", utilities, mask)
    values = fill(upcast(utilities), mask, math.inf).contiguous()  # no counted one is above those that are masked
    among = count(values, mask)
    ordered = values.detach().sort(dim=-1).values
    first, end = torch.searchsorted(ordered, values), torch.searchsorted(ordered, values, right=True)
    below = (first + torch.minimum(end, among) - 1) / 2  # ties share the mean of their places
    ranks = torch.where(among > 1, below / (among - 1).clamp(min=1), 0.5)
    ranks = torch.where(fill(values, mask, 0.0).isnan().any(-1, keepdim=True), math.nan, ranks)
    return fill(ranks, mask, 0.0).to(result_dtype(utilities))


def standardize_utilities(utilities: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Return z-scores within each group, (u_i − mean) / std with the population deviation.

    Args:
        utilities: [..., K].
        mask: [..., K] bool, True where a candidate counts.

    Returns:
        z-scores [..., K]; 0 where masked and where all counted utilities are equal.

    Raises:
        ValueError: on a mask of another shape or dtype.

    >>> standardize_utilities(torch.tensor([1.0, 3.0]))
    tensor([-1.,  1.])
    """
    expect_candidates("utilities", utilities, mask)
    values = upcast(utilities)
    constant = ~informative_groups(utilities, mask=mask).unsqueeze(-1)  # a rounded mean leaves a deviation of 1e-9
    # Differences first, they are exact where utilities are close; half of large ones, whose difference is no float.
    size = fill(values, mask, 0.0).abs().amax(-1, keepdim=True)
    gap = fill(below_peak(torch.where(size > 1, values * 0.5, values), mask), mask, 0.0)
    # Then in units of the largest, so that no square is beyond the smallest or the largest float.
    scaled = gap / gap.detach().amin(-1, keepdim=True).neg().masked_fill(constant, 1.0)
    centered = center(scaled, mask)
    deviation = mean(centered.square(), mask).masked_fill(constant, 1.0).sqrt()
    return fill((centered / deviation).masked_fill(constant, 0.0), mask, 0.0).to(result_dtype(utilities))


def tau_for_ess(
    log_q: Tensor,
    anchor_logps: Tensor | None = None,
    *,
    ess: Scalar,
    beta: float = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the τ of each group whose target has the effective sample size 1/Σπ*² = ess.

    The size grows with τ: from that of the target at τ = 0 (the number of ties for the largest q if β = 0)
    towards the number of candidates with q > 0. Found by bisection in log(τ+β), without a host sync.

    Args:
        log_q: [..., K].
        anchor_logps: [..., K]; needed if beta > 0.
        ess: the wanted size, >= 1, a number or [...].
        beta: >= 0, finite.
        mask: [..., K] bool, True where a candidate counts.

    Returns:
        tau [...], detached: 0 where already τ = 0 gives as much or more, inf where no finite τ gives as much.

    Raises:
        ValueError: on ess < 1, a negative or infinite beta, beta > 0 without anchors, unequal shapes.

    >>> tau = tau_for_ess(torch.tensor([0.9, 0.05, 0.05]).log(), ess=2.0)
    >>> 1 / tempered_target(torch.tensor([0.9, 0.05, 0.05]), tau=tau).square().sum()
    tensor(2.0000)
    """
    expect_candidates("log_q", log_q, mask)
    expect_scalar("ess", ess, 1.0)
    expect_in("beta", beta, 0.0, LARGEST)
    expect_anchor(beta, anchor_logps)
    # The target's weights are ∝ exp(−depth/(τ+β)), depth >= 0 being what a candidate lacks to the best one.
    # All is in units of a large β, whose product with an anchor may be no float.
    unit, beta = max(1.0, beta), min(1.0, beta)
    gap = below_peak(upcast(log_q.detach()), mask) / unit
    if anchor_logps is not None and beta > 0:
        expect_shape("anchor_logps", anchor_logps, log_q.shape)
        gap = below_peak(gap + beta * below_peak(anchor_logps.detach().to(gap.dtype), mask), mask)
    size = per_group("ess", ess, gap, low=1.0)
    possible = gap.isfinite()
    if mask is not None:
        possible = possible & mask
    depth = gap.neg().masked_fill(~possible, 0.0)
    # Bisection in log(τ+β).
    deepest = depth.amax(-1, keepdim=True)
    shallowest = depth.masked_fill(depth == 0, math.inf).amin(-1, keepdim=True)
    low = (shallowest * 1e-3).clamp(min=beta).log()  # below it the weights are those of τ = 0
    high = (deepest * 1e8 + beta).log()  # above it they are uniform to the last digit
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        too_small = measure_ess(depth / middle.exp(), possible) < size
        low, high = torch.where(too_small, middle, low), torch.where(too_small, high, middle)
    tau = unit * (((low + high) / 2).exp() - beta).clamp(min=0.0)
    # Sizes that every τ, no finite τ, or no τ at all gives.
    smallest = measure_ess(depth / beta, possible) if beta > 0 else (possible & (depth == 0)).sum(-1, keepdim=True)
    tau = torch.where(size <= smallest, 0.0, tau)
    tau = torch.where(size >= possible.sum(-1, keepdim=True), math.inf, tau)
    constant = deepest == 0
    tau = torch.where(constant & (size < possible.sum(-1, keepdim=True)), 0.0, tau)
    not_a_number = fill(gap, mask, 0.0).isnan().any(-1, keepdim=True) | size.isnan()
    return torch.where(not_a_number, math.nan, tau).squeeze(-1).to(result_dtype(log_q))
