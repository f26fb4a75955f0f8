"""Closed-form gradients of the three losses in NumPy, token by token: the oracle of the backward passes."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Data = npt.ArrayLike


def _groups(present: npt.NDArray[np.bool_], num_groups: float | None) -> float:
    return max(int(present.sum()), 1) if num_groups is None else num_groups


def maxent_weighted_nll_grad(
    logps: Data,
    weights: Data,
    mask: Data,
    *,
    length_normalize: bool = False,
    max_length: float | None = None,
    num_groups: float | None = None,
    token_scale: Data | None = None,
) -> Array:
    """Return −c_i · token scale / (G · length) at every counted token of logps [..., K, T]."""
    counted = np.asarray(mask, dtype=bool)
    c, G = np.asarray(weights, dtype=np.float64), _groups(counted.any(axis=(-2, -1)), num_groups)
    per_token = np.broadcast_to(1.0 if token_scale is None else np.asarray(token_scale), counted.shape)
    grad = np.zeros(np.shape(logps))
    for token in map(tuple, np.argwhere(counted)):
        candidate = token[:-1]
        length = counted[candidate].sum() if length_normalize else (max_length or 1)
        grad[token] = -c[candidate] * per_token[token] / (G * length)
    return grad


def listwise_cross_entropy_grad(
    sequence_logps: Data, weights: Data, *, mask: Data | None = None, num_groups: float | None = None
) -> Array:
    """Return (p_i Σ_j w_j − w_i) / G at every counted candidate of sequence_logps [..., K]."""
    s, w = np.asarray(sequence_logps, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    counted = np.ones(s.shape, dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
    G, grad = _groups(counted.any(axis=-1), num_groups), np.zeros(s.shape)
    for group in np.ndindex(s.shape[:-1]):
        keep = counted[group]
        if keep.any():
            powers = np.exp(s[group][keep] - s[group][keep].max())
            grad[(*group, keep)] = (powers / powers.sum() * w[group][keep].sum() - w[group][keep]) / G
    return grad


def clipped_surrogate_grad(
    logps: Data,
    old_logps: Data,
    coefficients: Data,
    mask: Data,
    *,
    clip_low: float,
    clip_high: float,
    length_normalize: bool = False,
    max_length: float | None = None,
    num_groups: float | None = None,
    token_scale: Data | None = None,
) -> Array:
    """Return −c_i · token scale · r_t / (G · length) at every counted token that the clip leaves alone."""
    counted = np.asarray(mask, dtype=bool)
    now, old = np.asarray(logps, dtype=np.float64), np.asarray(old_logps, dtype=np.float64)
    c, G = np.asarray(coefficients, dtype=np.float64), _groups(counted.any(axis=(-2, -1)), num_groups)
    per_token = np.broadcast_to(1.0 if token_scale is None else np.asarray(token_scale), counted.shape)
    grad = np.zeros(now.shape)
    for token in map(tuple, np.argwhere(counted)):
        i = token[:-1]
        ratio = np.exp(now[token] - old[token])
        clipped = (c[i] > 0 and ratio > 1 + clip_high) or (c[i] < 0 and ratio < 1 - clip_low)
        length = counted[i].sum() if length_normalize else (max_length or 1)
        if c[i] != 0 and not clipped:
            grad[token] = -c[i] * per_token[token] * ratio / (G * length)
    return grad
