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
    count,
    divide_gap,
    fill,
    log_softmax,
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
