"""Arithmetic over the counted candidates of a group: the last dimension, a bool mask, no host sync.

`mask=None` counts every candidate. Masked entries may hold anything, NaN included, and never matter.
"""

import math

import torch
from torch import Tensor

from maxent_grpo._checks import Scalar, expect_per_group


def upcast(values: Tensor) -> Tensor:
    """Return values to calculate with: halves as float32, integers in the default dtype."""
    if not values.is_floating_point():
        return values.to(torch.get_default_dtype())
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def result_dtype(values: Tensor) -> torch.dtype:
    """Return the dtype in which results go back to the caller: the input's, or the default for integers."""
    return values.dtype if values.is_floating_point() else torch.get_default_dtype()


def per_group(name: str, value: Scalar, like: Tensor, *, low: float = 0.0) -> Tensor:
    """Return a scalar or a [...] tensor as [..., 1] in the dtype of `like` [..., K]; NaN where a tensor is below low.

    Raises:
        ValueError: naming the tensor, if it has another shape.
    """
    if isinstance(value, Tensor):
        expect_per_group(name, value, like.shape[:-1])
        column = value.to(like.dtype).unsqueeze(-1)
        return torch.where(column >= low, column, math.nan)
    largest = torch.finfo(like.dtype).max
    return torch.full((1,), value if abs(value) <= largest else math.inf, dtype=like.dtype, device=like.device)


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


def log_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Return the log-softmax over the counted candidates; -inf at masked ones, so also in an empty group."""
    return fill(fill(scores, mask, -math.inf).log_softmax(-1), mask, -math.inf)


def expectation(weights: Tensor, values: Tensor) -> Tensor:
    """Return Σ_i w_i·v_i, [...], where a weight of 0 silences any value, infinities included."""
    silent = weights == 0
    return (weights * values.masked_fill(silent, 0.0)).sum(-1)
