"""Arithmetic over the counted candidates of a group: the last dimension, a bool mask, no host sync.

`mask=None` counts every candidate. Masked entries may hold anything, NaN included, and never matter.
"""

import math

import torch
from torch import Tensor

from maxent_grpo._checks import Scalar, expect, expect_per_group


def upcast(values: Tensor) -> Tensor:
    """Return values to calculate with: halves as float32, integers in the default dtype."""
    if not values.is_floating_point():
        return values.to(torch.get_default_dtype())
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def result_dtype(values: Tensor) -> torch.dtype:
    """Return the dtype in which results go back to the caller: the input's, or the default for integers."""
    return values.dtype if values.is_floating_point() else torch.get_default_dtype()


def per_group(name: str, value: Scalar, like: Tensor, *, low: float = 0.0, open_low: bool = False) -> Tensor:
    """Return a scalar or a [...] tensor as [..., 1] in the dtype of `like` [..., K].

    What a number is refused for makes NaN of its group in a tensor, which is not read: a value below low (or equal to
    it with `open_low`), a NaN, a finite value that the dtype does not have.

    Raises:
        ValueError: naming the argument, on a tensor of another shape or a finite number that the dtype does not have.
    """
    largest = torch.finfo(like.dtype).max
    if isinstance(value, Tensor):
        expect_per_group(name, value, like.shape[:-1])
        column = value.unsqueeze(-1)
        above = column > low if open_low else column >= low
        return torch.where(above & ((column <= largest) | column.isinf()), column, math.nan).to(like.dtype)
    expect(
        abs(value) <= largest or math.isinf(value),
        f"{name} <= {largest:g}, the largest {like.dtype}, or inf",
        **{name: value},
    )
    return torch.full((1,), value, dtype=like.dtype, device=like.device)


def sum_temperatures(tau: Scalar, beta: Scalar, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return τ, β and τ+β as [..., 1] in the dtype of `like` [..., K].

    Raises:
        ValueError: as `per_group`, also for a sum of numbers that the dtype does not have.
    """
    taus, betas = per_group("tau", tau, like), per_group("beta", beta, like)
    if not isinstance(tau, Tensor) and not isinstance(beta, Tensor):
        return taus, betas, per_group("tau + beta", tau + beta, like)
    total = taus + betas
    return taus, betas, torch.where(total.isinf() & taus.isfinite() & betas.isfinite(), math.nan, total)


def fill(values: Tensor, mask: Tensor | None, value: float) -> Tensor:
    """Return `values` with `value` at the masked candidates."""
    return values if mask is None else values.masked_fill(~mask, value)


def count(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the number of counted candidates, [..., 1] (or [1]), in the dtype of `values`."""
    if mask is None:
        return torch.full((1,), values.shape[-1], dtype=values.dtype, device=values.device)
    return mask.sum(-1, keepdim=True).to(values.dtype)


def mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean over the counted candidates, [..., 1]; 0 for an empty group."""
    return fill(values, mask, 0.0).sum(-1, keepdim=True) / count(values, mask).clamp(min=1)


def below_peak(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return values minus their largest in the group, exactly 0 there and -inf at masked candidates.

    Subtracting before anything is divided by a temperature keeps the differences exact. A NaN, or a group of
    which every counted value is -inf, makes all of its group NaN.
    """
    values = fill(values, mask, -math.inf)
    return values - values.amax(-1, keepdim=True).detach()


def divide_gap(gap: Tensor, divisor: Tensor) -> Tensor:
    """Return gap/divisor for a gap below the peak: in the limit of a divisor of 0, −inf but at the peak itself.

    A positive divisor too small for the dtype is 0 there, and its limit is what it gives.
    """
    limit = divisor == 0
    return (gap / divisor.masked_fill(limit, 1.0)).masked_fill(limit & (gap < 0), -math.inf)


def center(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return values minus their mean over the counted candidates; anything where masked.

    Twice, because the first mean is rounded to the size of the values, the second to that of the deviations.
    """
    centered = values - mean(values, mask)
    return centered - mean(centered, mask)


def log_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Return the log-softmax over the counted candidates; -inf at masked ones, so also in an empty group."""
    return fill(fill(scores, mask, -math.inf).log_softmax(-1), mask, -math.inf)


def expectation(weights: Tensor, values: Tensor) -> Tensor:
    """Return Σ_i w_i·v_i, [...], where a weight of 0 silences any value, infinities included."""
    silent = weights == 0
    return (weights * values.masked_fill(silent, 0.0)).sum(-1)


def measure_ess(depths: Tensor, possible: Tensor) -> Tensor:
    """Return the effective sample size, [..., 1], of weights ∝ exp(−depths) over the possible candidates."""
    weights = depths.neg().exp().masked_fill(~possible, 0.0)  # the largest is 1: no overflow, no empty sum
    return weights.sum(-1, keepdim=True).square() / weights.square().sum(-1, keepdim=True)
