"""What the oracle's functions share: a plain function applied to the counted candidates of each group."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Data = npt.ArrayLike
Maybe = npt.ArrayLike | None


def check_range(name: str, value: Data, relation: str = ">= 0", *, finite: bool = False) -> Array:
    """Return the value as an array; a bad scalar raises, a bad entry of an array becomes NaN."""
    values = np.asarray(value, dtype=np.float64)
    inside = {">= 0": values >= 0, "> 0": values > 0, ">= 1": values >= 1}[relation]
    valid = inside & ~(np.isinf(values) & finite)
    if values.ndim == 0 and not valid:
        expected = f"finite {name}" if values == np.inf else f"{name} {relation}"
        raise ValueError(f"Expected {expected}, got {name}={float(values):g}.")
    return np.where(valid, values, np.nan)


def broadcast_mask(mask: Maybe, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    return np.broadcast_to(np.asarray(True if mask is None else mask, dtype=np.bool_), shape)


def check_anchors(
    shape: tuple[int, ...], anchor_logps: Maybe, tau: Data, beta: Data, *, finite: bool
) -> tuple[Array, Array, Array]:
    """Return anchors [..., K], zero where beta is 0 and they have no say, and the checked tau and beta."""
    taus, betas = check_range("tau", tau, finite=finite), check_range("beta", beta, finite=finite)
    if anchor_logps is None and np.any(betas > 0):
        raise ValueError(f"Expected anchor_logps with beta > 0, got beta={beta!r}.")
    undefined = np.isinf(taus) & np.isinf(betas)
    if undefined.ndim == 0 and undefined:
        raise ValueError("Expected finite tau or finite beta, got tau=inf, beta=inf.")
    betas = np.where(undefined, np.nan, betas)
    anchors = np.broadcast_to(np.asarray(0.0 if anchor_logps is None else anchor_logps, dtype=np.float64), shape)
    return np.where(betas[..., None] == 0, 0.0, anchors), taus, betas


@np.errstate(all="ignore")
def apply_by_group(
    function: Callable[..., Any],
    candidates: list[Data],
    knobs: list[Array],
    mask: Maybe,
    fill: float,
    *,
    per: Literal["candidate", "group"] = "candidate",
) -> Array:
    """Apply to every group a function of its counted entries, each [n], and its knobs; the rest is `fill`."""
    values = np.broadcast_arrays(*(np.asarray(entries, dtype=np.float64) for entries in candidates))
    shape = values[0].shape
    counted = broadcast_mask(mask, shape)
    numbers = [np.broadcast_to(knob, shape[:-1]) for knob in knobs]
    result = np.full(shape if per == "candidate" else shape[:-1], fill)
    for group in np.ndindex(shape[:-1]):
        keep = counted[group]
        if keep.any():
            inputs = [entries[group][keep] for entries in values] + [number[group] for number in numbers]
            known = not any(np.isnan(entries).any() for entries in inputs)
            result[(*group, keep) if per == "candidate" else group] = function(*inputs) if known else np.nan
    return result


def log_softmax(scores: Array) -> Array:
    shifted = scores - scores.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()), dtype=np.float64)
