"""Pruning in NumPy, from its rule and not from the torch code."""

import numpy as np

from maxent_grpo.reference._groups import Array, Data


def prune_candidates(coefficients: Data, *, keep: float, start: float) -> Array:
    """Return the coefficients of all candidates with small ones dropped or rounded up.

    The threshold t solves Σ min(1, |c|/t) = keep·(number of non-zero c). Each candidate lies on a line with a
    stretch as long as its chance min(1, |c|/t); a small one survives, as ±t, if start + a whole number falls on it.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"Expected 0 < keep <= 1, got keep={keep:g}.")
    values = np.asarray(coefficients, dtype=np.float64)
    sizes = np.abs(values).ravel()
    if keep == 1 or not sizes.any():
        return values.copy()
    low, high = 0.0, float(sizes.sum() + sizes.max()) / (keep * np.count_nonzero(sizes))
    for _ in range(200):  # the sum falls as t rises
        middle = (low + high) / 2
        above = np.minimum(1.0, sizes / middle).sum() > keep * np.count_nonzero(sizes)
        low, high = (middle, high) if above else (low, middle)
    pruned, end = np.zeros(len(sizes)), 0.0
    for place, (value, size) in enumerate(zip(values.ravel(), sizes, strict=True)):
        if size >= high:
            pruned[place] = value
            continue
        begin, end = end, end + size / high
        if np.ceil(end - start) > np.ceil(begin - start) and end > start:
            pruned[place] = np.sign(value) * high
    return pruned.reshape(values.shape)
