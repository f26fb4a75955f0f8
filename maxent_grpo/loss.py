"""From coefficients to a scalar loss. Coefficients and old log-probabilities are constants: never differentiated.

Each loss is Σ over candidates divided by the number of groups G. Give `num_groups`, the number of prompts of
the whole optimiser step, and the losses of any split of the batch add up to the loss of the whole.
"""

import math

import torch
from torch import Tensor

from maxent_grpo._checks import (
    LARGEST,
    expect,
    expect_candidates,
    expect_in,
    expect_mask,
    expect_scalar,
    expect_shape,
    expect_tensor,
)
from maxent_grpo._masked import expectation, log_softmax, result_dtype, upcast


def maxent_weighted_nll(
    logps: Tensor,
    weights: Tensor,
    mask: Tensor,
    *,
    length_normalize: bool = False,
    max_length: float | None = None,
    num_groups: float | Tensor | None = None,
    token_scale: Tensor | None = None,
) -> Tensor:
    """Return the weighted negative log-likelihood of the candidates, eq. (7).

    L = (1/G) Σ_groups Σ_i w_i · NLL_i, NLL_i = −Σ_t m_it·logp_it, divided by the candidate's own length
    (`length_normalize`), by the constant `max_length`, or by neither.

    Args:
        logps: [..., K, T] token log-probabilities; anything where masked.
        weights: [..., K], of either sign; constants. A weight of 0 silences its candidate altogether.
        mask: [..., K, T] bool, True where a token counts.
        length_normalize: divide each NLL by its number of counted tokens.
        max_length: divide each NLL by this constant instead.
        num_groups: G, a number or a tensor []; None counts the groups with at least one counted token.
        token_scale: [..., K, T] constants on the token terms (a correction of the sampling policy, say).

    Returns:
        scalar in the dtype of `logps` (of integers: the default); a differentiable 0 for an empty batch.

    Raises:
        ValueError: on unequal shapes, a mask that is not bool, num_groups or max_length <= 0, or both
            normalisations.

    >>> logps = torch.tensor([[-1.0, -2.0], [-3.0, 0.0]])
    >>> mask = torch.tensor([[True, True], [True, False]])
    >>> maxent_weighted_nll(logps, torch.tensor([0.75, 0.25]), mask)
    tensor(3.)
    """
    _expect_tokens(logps, mask, weights=weights)
    counted = _select_tokens(mask, weights, token_scale)
    nll = -_sum_tokens(upcast(logps), mask, counted, length_normalize, max_length, token_scale)
    return _sum_candidates(weights, nll, mask.any(-1), num_groups).to(result_dtype(logps))


def listwise_cross_entropy(
    sequence_logps: Tensor,
    weights: Tensor,
    *,
    mask: Tensor | None = None,
    num_groups: float | Tensor | None = None,
) -> Tensor:
    """Return the cross-entropy of the candidate policy p = softmax(sequence_logps) to the weights.

    L = −(1/G) Σ_groups Σ_i w_i·log p_i, whose gradient in the scores is (Σw)·p − w.

    Args:
        sequence_logps: [..., K] scores s_i, sequence log-probabilities.
        weights: [..., K]; constants.
        mask: [..., K] bool, True where a candidate counts.
        num_groups: G; None counts the groups with at least one counted candidate.

    Returns:
        scalar in the dtype of `sequence_logps`.

    Raises:
        ValueError: on unequal shapes, a mask that is not bool, num_groups <= 0.

    >>> listwise_cross_entropy(torch.zeros(2), torch.tensor([0.5, 0.5]))
    tensor(0.6931)
    """
    expect_candidates("sequence_logps", sequence_logps, mask)
    expect_shape("weights", weights, sequence_logps.shape)
    cross_entropy = -log_softmax(upcast(sequence_logps), mask)
    counted = torch.ones_like(weights, dtype=torch.bool) if mask is None else mask
    return _sum_candidates(weights, cross_entropy, counted, num_groups).to(result_dtype(sequence_logps))


def clipped_surrogate(
    logps: Tensor,
    old_logps: Tensor,
    coefficients: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    length_normalize: bool = False,
    max_length: float | None = None,
    num_groups: float | Tensor | None = None,
    token_scale: Tensor | None = None,
) -> Tensor:
    """Return the clipped surrogate of the weighted NLL, eq. (7c), and with coefficients w·A eq. (8).

    L = −(1/G) Σ_groups Σ_i Σ_t m_it·min(r_it·c_i, clip(r_it, 1 − clip_low, 1 + clip_high)·c_i),
    r_it = exp(logp_it − old_logp_it), divided as in `maxent_weighted_nll`. At r = 1 it has that loss's gradient.

    Args:
        logps: [..., K, T] token log-probabilities; anything where masked.
        old_logps: [..., K, T] those of the rollout policy; constants.
        coefficients: [..., K], of either sign; constants. A coefficient of 0 silences its candidate altogether.
        mask: [..., K, T] bool, True where a token counts.
        clip_low: how far below 1 the ratio may move a term with c_i < 0, in [0, 1].
        clip_high: how far above 1 it may move one with c_i > 0, >= 0.
        length_normalize, max_length, num_groups, token_scale: as in `maxent_weighted_nll`.

    Returns:
        scalar in the dtype of `logps`.

    Raises:
        ValueError: on unequal shapes, a mask that is not bool, a clip, max_length or num_groups out of range, or
            both normalisations.

    >>> logps = torch.tensor([[-1.0], [-1.0]])
    >>> clipped_surrogate(logps, logps, torch.tensor([0.75, -0.5]), torch.ones(2, 1, dtype=torch.bool),
    ...     clip_low=0.2, clip_high=0.2)
    tensor(-0.2500)
    """
    _expect_tokens(logps, mask, coefficients=coefficients)
    expect_shape("old_logps", old_logps, logps.shape)
    expect_in("clip_low", clip_low, 0.0, 1.0)
    expect_in("clip_high", clip_high, 0.0)
    counted = _select_tokens(mask, coefficients, token_scale)
    now = upcast(logps)
    log_ratio = (now - old_logps.detach().to(now.dtype)).masked_fill(~counted, 0.0)
    ratio = log_ratio.clamp(max=math.log(torch.finfo(now.dtype).max)).exp()  # a clipped inf would leave 0·inf behind
    # c > 0 is held back above 1 + clip_high, c < 0 below 1 - clip_low: min(r·c, clip(r)·c) = c·(bounded r).
    rising = coefficients.detach().unsqueeze(-1) > 0
    bounded = torch.where(rising, ratio.clamp(max=1 + clip_high), ratio.clamp(min=1 - clip_low))
    gains = _sum_tokens(bounded, mask, counted, length_normalize, max_length, token_scale)
    return _sum_candidates(coefficients, -gains, mask.any(-1), num_groups).to(result_dtype(logps))


def _expect_tokens(logps: Tensor, mask: Tensor, **per_candidate: Tensor) -> None:
    expect_tensor("logps", logps)
    if logps.ndim < 2:
        raise ValueError(f"Expected logps of shape [..., K, T], got logps of shape {list(logps.shape)}.")
    expect_mask("mask", mask, logps.shape)
    for name, value in per_candidate.items():
        expect_shape(name, value, logps.shape[:-1])


def _select_tokens(mask: Tensor, coefficients: Tensor, token_scale: Tensor | None) -> Tensor:
    """Return the tokens [..., K, T] that no factor of 0 silences: in a backward 0·inf would be NaN."""
    counted = mask & (coefficients.detach() != 0).unsqueeze(-1)
    if token_scale is None:
        return counted
    expect_shape("token_scale", token_scale, mask.shape)
    return counted & (token_scale.detach() != 0)


def _sum_tokens(
    terms: Tensor,
    mask: Tensor,
    counted: Tensor,
    length_normalize: bool,
    max_length: float | None,
    token_scale: Tensor | None,
) -> Tensor:
    """Return the terms [..., K, T] summed over each candidate's counted tokens, [..., K], and normalised."""
    expect(
        not (length_normalize and max_length is not None),
        "length_normalize or max_length, not both",
        max_length=max_length,
    )
    terms = terms.masked_fill(~counted, 0.0)
    if token_scale is not None:
        terms = terms * token_scale.detach().masked_fill(~counted, 0.0)
    if length_normalize:
        return terms.sum(-1) / mask.sum(-1).clamp(min=1)
    if max_length is not None:
        expect_in("max_length", max_length, 0.0, LARGEST, open_low=True)
        return terms.sum(-1) / max_length
    return terms.sum(-1)


def _sum_candidates(
    coefficients: Tensor, values: Tensor, counted: Tensor, num_groups: float | Tensor | None
) -> Tensor:
    """Return (1/G) Σ c_i·values_i, G counting the groups [..., K] with a counted candidate unless given."""
    if num_groups is None:
        groups: float | Tensor = counted.any(-1).sum().clamp(min=1)
    else:
        expect_scalar("num_groups", num_groups, 0.0, LARGEST, open_low=True)
        groups = num_groups
        if isinstance(num_groups, Tensor):  # counted over ranks, it stays on its device: not read
            expect_shape("num_groups", num_groups, [])
            groups = torch.where(num_groups > 0, num_groups, math.nan)
    constants = coefficients.detach().to(values.dtype).masked_fill(~counted, 0.0)
    return expectation(constants, values).sum() / groups
