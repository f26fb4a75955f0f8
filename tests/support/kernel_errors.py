"""How far the kernels' results may be from exact ones, element by element, by counting their roundings."""

import math

import torch
from torch import Tensor

from maxent_grpo.kernels._rows import accumulation_dtype
from support.precision import FUNCTION, count_roundings, sum_error, unit_roundoff


def final_rounding(dtype: torch.dtype, backend: str) -> float:
    """Return the relative error of a result's rounding to `dtype`: Triton's interpreter truncates to bfloat16."""
    truncates = backend == "triton" and dtype == torch.bfloat16 and not torch.cuda.is_available()
    return unit_roundoff(dtype) * (2 if truncates else 1)


def least_number(dtype: torch.dtype) -> float:
    """Return the smallest positive number, by half of which a result that underflows may be off."""
    return torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps


def row_error(odds: Tensor, dtype: torch.dtype) -> Tensor:
    """Return how far log-probabilities of exact log-odds `[..., V]` may be off, computed for `dtype`.

    log p = (y_t − top)/T − log Σ exp((y − top)/T). Each difference is rounded 3 times relative to 2·largest, and each
    value under a soft cap `FUNCTION` times and 4 more: once for the label and once within the sum. That has as many
    terms as the vocabulary. Its logarithm and the result's 3 roundings are relative to at most 2·largest + log V.
    Values so far below the top that their powers underflow add nothing, exactly.
    """
    underflows = odds - odds.amax(-1, keepdim=True) < math.log(least_number(torch.float32)) - 1
    largest, width = odds.masked_fill(underflows, 0).abs().amax(-1), odds.shape[-1]
    of_values = 2 * (3 * 2 + FUNCTION + 4) * largest
    of_sum = FUNCTION + count_roundings(width)
    of_result = (FUNCTION + 3) * (2 * largest + math.log(width))
    return unit_roundoff(accumulation_dtype(dtype)) * (of_values + of_sum + of_result)


def entropy_error(odds: Tensor, dtype: torch.dtype) -> Tensor:
    """Return how far entropies may be off: δH = −Σ δp·(log p + 1), p as far off as log p, and one sum more."""
    return row_error(odds, dtype) * (1 + 2 * torch.special.entr(odds.softmax(-1)).sum(-1))


def gradient_error(
    odds: Tensor, ids: Tensor, dtype: torch.dtype, backend: str, cap_slope: Tensor | float = 1.0
) -> Tensor:
    """Return how far coefficient·(p − onehot)·`cap_slope` may be off `[..., V]`, relative to the coefficient.

    In the accumulation dtype the product is rounded 6 times, and the slope of a soft cap 3·`FUNCTION` times, relative
    to at most p + onehot; p is as far off as log p. Then it is rounded once to `dtype`.
    """
    p, onehot = odds.softmax(-1), torch.nn.functional.one_hot(ids.long(), odds.shape[-1])
    accumulated = row_error(odds, dtype)[..., None] + unit_roundoff(accumulation_dtype(dtype)) * (6 + 3 * FUNCTION)
    return accumulated * (p + onehot) + final_rounding(dtype, backend) * cap_slope * (p - onehot).abs()


def product_error(error: Tensor, factor: Tensor, other: Tensor, dtype: torch.dtype, backend: str) -> Tensor:
    """Return how far a matmul of a factor that is off by `error` with another may be off, of absolute values."""
    accumulated = unit_roundoff(accumulation_dtype(dtype)) * count_roundings(other.shape[0])
    return error @ other + (accumulated + final_rounding(dtype, backend)) * (factor @ other) + least_number(dtype)


def loss_error(coefficients: Tensor, logps: Tensor, of_logps: Tensor, dtype: torch.dtype) -> Tensor:
    """Return how far −Σ c·log p may be off, with log-probabilities that are off by `of_logps`."""
    c = coefficients.double().abs().flatten()
    return (c * of_logps.flatten()).sum() + sum_error(c * logps.flatten(), accumulation_dtype(dtype))


def assert_within(found: Tensor, expected: Tensor, error: Tensor) -> None:
    """Check |found − expected| <= error everywhere; NaN is nowhere within."""
    assert found.shape == expected.shape
    excess = (found.detach().double() - expected.detach()).abs() - error
    assert bool((excess <= 0).all()), f"{float(excess.max())} beyond an error of at most {float(error.max())}"
