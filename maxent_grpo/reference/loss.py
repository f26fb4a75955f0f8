"""Eqs. (7) and (7c): from coefficients to a loss."""

from typing import Any

import numpy as np

from maxent_grpo.reference._groups import (
    Array,
    Data,
    Maybe,
    apply_by_group,
    broadcast_mask,
    check_range,
    log_softmax,
)


def _group_total(num_groups: int | None, present: Data) -> float:
    return float(check_range("num_groups", max(np.sum(present), 1) if num_groups is None else num_groups, "> 0"))


def _token_scales(weights: Data, mask: Data, token_scale: Maybe, num_groups: int | None) -> Array:
    """Return w_i · token scale / G for every token, 0 where it does not count."""
    counted = np.asarray(mask, dtype=np.bool_)
    total = _group_total(num_groups, counted.any(axis=(-2, -1)))
    per_token = np.asarray(1.0 if token_scale is None else token_scale, dtype=np.float64)
    return np.where(counted, np.asarray(weights, dtype=np.float64)[..., None] * per_token / total, 0.0)


def _lengths(mask: Data, length_normalize: bool, max_length: float | None) -> Any:
    """Return what each candidate's sum over tokens is divided by, broadcast to [..., K, T]."""
    if length_normalize and max_length is not None:
        raise ValueError(f"Expected length_normalize or max_length, got both, max_length={max_length:g}.")
    if length_normalize:
        return np.maximum(np.asarray(mask, dtype=np.bool_).sum(axis=-1, keepdims=True), 1.0)
    return check_range("max_length", 1.0 if max_length is None else max_length, "> 0")


@np.errstate(all="ignore")
def maxent_weighted_nll(
    logps: Data,
    weights: Data,
    mask: Data,
    *,
    length_normalize: bool = False,
    max_length: float | None = None,
    num_groups: int | None = None,
    token_scale: Maybe = None,
) -> float:
    """Return (7); what has no weight adds nothing, be its log-probabilities infinite."""
    scales = _token_scales(weights, mask, token_scale, num_groups) / _lengths(mask, length_normalize, max_length)
    return -float(np.where(scales != 0, scales * np.asarray(logps), 0.0).sum())


def _group_cross_entropy(scores: Array, weights: Array) -> Any:
    held = weights != 0
    return -np.sum(weights[held] * log_softmax(scores)[held])


def listwise_cross_entropy(
    sequence_logps: Data, weights: Data, *, mask: Maybe = None, num_groups: int | None = None
) -> float:
    """Return −(1/G) Σ w_i log p_i, p the softmax of sequence_logps [..., K] over each group."""
    losses = apply_by_group(_group_cross_entropy, [sequence_logps, weights], [], mask, 0.0, per="group")
    return float(losses.sum()) / _group_total(num_groups, broadcast_mask(mask, np.shape(weights)).any(axis=-1))


@np.errstate(all="ignore")
def clipped_surrogate(
    logps: Data,
    old_logps: Data,
    coefficients: Data,
    mask: Data,
    *,
    clip_low: float,
    clip_high: float,
    length_normalize: bool = False,
    max_length: float | None = None,
    num_groups: int | None = None,
    token_scale: Maybe = None,
) -> float:
    """Return (7c), of which (8) is the case of coefficients w·A."""
    low, high = 1 - check_range("clip_low", clip_low), 1 + check_range("clip_high", clip_high)
    counted = _token_scales(np.ones(np.shape(coefficients)), mask, token_scale, num_groups)
    scales = counted / _lengths(mask, length_normalize, max_length)
    ratios, c = np.exp(np.subtract(logps, old_logps)), np.asarray(coefficients, dtype=np.float64)[..., None]
    terms = np.minimum(ratios * c, np.clip(ratios, low, high) * c)
    return -float(np.where((scales != 0) & (c != 0), scales * terms, 0.0).sum())
