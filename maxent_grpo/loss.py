"""From weights to a scalar loss. Weights, advantages and old log-probabilities are constants: never differentiated.

Each loss is Σ over candidates divided by the number of groups G. Give `num_groups`, the number of prompts of
the whole optimiser step, and the losses of any split of the batch add up to the loss of the whole.
"""

import math

import torch
from torch import Tensor

from maxent_grpo._checks import expect, expect_candidates, expect_in, expect_mask, expect_shape, expect_tensor
from maxent_grpo._masked import expectation, log_softmax, result_dtype, upcast


def maxent_weighted_nll(
    logps: Tensor,
    weights: Tensor,
    mask: Tensor,
    *,
    length_normalize: bool = False,
    max_length: float | None = None,
    num_groups: float | Tensor | None = None,
    token_weights: Tensor | None = None,
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
        num_groups: G; None counts the groups with at least one counted token.
        token_weights: [..., K, T] constants on the token terms (a correction of the sampling policy, say).

    Returns:
        scalar in the dtype of `logps`; a differentiable 0 for an empty batch.

    Raises:
        ValueError: on unequal shapes, a mask that is not bool, num_groups or max_length <= 0, or both
            normalisations.

    >>> logps = torch.tensor([[-1.0, -2.0], [-3.0, 0.0]])
    >>> mask = torch.tensor([[True, True], [True, False]])
    >>> maxent_weighted_nll(logps, torch.tensor([0.75, 0.25]), mask)
    tensor(3.)
    """
    _expect_tokens(logps, mask, weights=weights)
    expect(
        not (length_normalize and max_length is not None),
        "length_normalize or max_length, not both",
        max_length=max_length,
    )
    heard = _heard(mask, weights) if token_weights is None else _heard(mask, weights) & (token_weights != 0)
    terms = upcast(logps).masked_fill(~heard, 0.0)
    if token_weights is not None:
        terms = _on_tokens(token_weights, heard) * terms
    nll = -terms.sum(-1)
    if length_normalize:
        nll = nll / mask.sum(-1).clamp(min=1)
    elif max_length is not None:
        expect_in("max_length", max_length, 0.0, open_low=True)
        nll = nll / max_length
    return _per_group(weights, nll, mask.any(-1), num_groups).to(logps.dtype)


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
    return _per_group(weights, cross_entropy, counted, num_groups).to(result_dtype(sequence_logps))


def weighted_clipped_surrogate(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    weights: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    max_length: float,
    num_groups: float | Tensor | None = None,
    token_weights: Tensor | None = None,
) -> Tensor:
    """Return the weighted clipped surrogate, eq. (8); with advantages as coefficients and weights of 1, eq. (7c).

    L = −(1/G) Σ_groups Σ_i w_i·(1/max_length) Σ_t m_it·min(r_it·A_i, clip(r_it, 1 − clip_low, 1 + clip_high)·A_i),
    r_it = exp(logp_it − old_logp_it).

    Args:
        logps: [..., K, T] token log-probabilities; anything where masked.
        old_logps: [..., K, T] those of the rollout policy; constants.
        advantages: [..., K] A_i; constants.
        weights: [..., K] w_i; constants. A weight or an advantage of 0 silences its candidate altogether.
        mask: [..., K, T] bool, True where a token counts.
        clip_low: how far below 1 the ratio may move a term with A_i < 0, in [0, 1].
        clip_high: how far above 1 it may move one with A_i > 0, >= 0.
        max_length: the constant T_max > 0 that sums over tokens are divided by.
        num_groups: G; None counts the groups with at least one counted token.
        token_weights: [..., K, T] constants on the token terms.

    Returns:
        scalar in the dtype of `logps`.

    Raises:
        ValueError: on unequal shapes, a mask that is not bool, a clip, max_length or num_groups out of range.

    >>> logps = torch.tensor([[-1.0], [-1.0]])
    >>> weighted_clipped_surrogate(logps, logps, torch.tensor([0.5, -0.5]), torch.tensor([0.75, 0.25]),
    ...     torch.ones(2, 1, dtype=torch.bool), clip_low=0.2, clip_high=0.2, max_length=1)
    tensor(-0.2500)
    """
    _expect_tokens(logps, mask, weights=weights, advantages=advantages)
    expect_shape("old_logps", old_logps, logps.shape)
    expect_in("clip_low", clip_low, 0.0, 1.0)
    expect_in("clip_high", clip_high, 0.0)
    expect_in("max_length", max_length, 0.0, open_low=True)
    now, heard = upcast(logps), _heard(mask, weights, advantages)
    log_ratio = (now - old_logps.detach().to(now.dtype)).masked_fill(~heard, 0.0)
    ratio = log_ratio.clamp(max=math.log(torch.finfo(now.dtype).max)).exp()  # a clipped inf would leave 0·inf behind
    gain = advantages.detach().to(now.dtype).unsqueeze(-1)
    terms = torch.minimum(ratio * gain, ratio.clamp(1 - clip_low, 1 + clip_high) * gain).masked_fill(~heard, 0.0)
    if token_weights is not None:
        terms = _on_tokens(token_weights, heard) * terms
    return _per_group(weights, -terms.sum(-1) / max_length, mask.any(-1), num_groups).to(logps.dtype)


def _expect_tokens(logps: Tensor, mask: Tensor, **per_candidate: Tensor) -> None:
    expect_tensor("logps", logps)
    if logps.ndim < 2:
        raise ValueError(f"Expected logps of shape [..., K, T], got logps of shape {list(logps.shape)}.")
    expect_mask("mask", mask, logps.shape)
    for name, value in per_candidate.items():
        expect_shape(name, value, logps.shape[:-1])


def _heard(mask: Tensor, *factors: Tensor) -> Tensor:
    """Return the tokens [..., K, T] that no factor [..., K] of 0 silences: in a backward 0·inf would be NaN."""
    for factor in factors:
        mask = mask & (factor.detach() != 0).unsqueeze(-1)
    return mask


def _on_tokens(token_weights: Tensor, mask: Tensor) -> Tensor:
    expect_shape("token_weights", token_weights, mask.shape)
    return token_weights.detach().masked_fill(~mask, 0.0)


def _per_group(weights: Tensor, values: Tensor, counted: Tensor, num_groups: float | Tensor | None) -> Tensor:
    """Return (1/G) Σ w_i·values_i, G counting the groups [..., K] with a counted candidate unless given."""
    if num_groups is None:
        groups: float | Tensor = counted.any(-1).sum().clamp(min=1)
    else:
        expect_in("num_groups", num_groups, 0.0, open_low=True)
        groups = num_groups
    constants = weights.detach().to(values.dtype).masked_fill(~counted, 0.0)
    return expectation(constants, values).sum() / groups
