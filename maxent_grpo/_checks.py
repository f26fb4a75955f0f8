"""Checks of arguments: one expectation per function, told as `Expected tau >= 0, got tau=-1.`.

Only shapes, dtypes and Python scalars are looked at. The contents of a tensor never are, because reading
them would wait for the device; a bad value inside a tensor shows as NaN in its own group instead.
"""

import math
import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

Scalar = float | Tensor
"""A Python number for every group, or a tensor [...] with one value per group. No other number may be a tensor."""

LARGEST = torch.finfo(torch.float32).max
"""The largest finite setting: halves and float32 are calculated in float32."""


LONGEST_SHOWN = 200


def expect(holds: bool, expectation: str, **got: object) -> None:
    """Raise ValueError `Expected <expectation>, got name=value.` unless `holds`."""
    if not holds:
        values = ", ".join(f"{name}={show(value)}" for name, value in got.items())
        raise ValueError(f"Expected {expectation}, got {values}.")


def show(value: object) -> str:
    """Return how a value is written in a complaint: as in code, cut to a line."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an integer of more than 4,300 digits
        return f"{type(value).__name__} too long to show"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def expect_number(name: str, value: object) -> float:
    """Return `value` as a float, or say that it is none (a bool is none)."""
    numeric = isinstance(value, numbers.Real) and not isinstance(value, bool)
    expect(numeric, f"{name} to be a number", **{name: value})
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        raise ValueError(f"Expected {name} <= {LARGEST:g}, got an integer of more than 300 digits.") from None


def expect_in(name: str, value: object, low: float, high: float = math.inf, *, open_low: bool = False) -> None:
    """Check that a number, which is no tensor, has low <= value <= high (low < value with `open_low`), and no NaN."""
    number = expect_number(name, value)
    above = number > low if open_low else number >= low
    relation = f"{name} {'>' if open_low else '>='} {low:g}"
    if high < LARGEST:
        relation = f"{relation} and <= {high:g}"
    elif above:
        relation = f"{name} <= {high:g}, the largest number of float32"
    expect(above and number <= high, relation, **{name: value})


def expect_scalar(name: str, value: Scalar, low: float, high: float = math.inf, *, open_low: bool = False) -> None:
    """Check a number as `expect_in` does; a tensor is not read, and `per_group` checks its shape."""
    if not isinstance(value, Tensor):
        expect_in(name, value, low, high, open_low=open_low)
    elif value.dtype == torch.bool or value.is_complex():
        raise ValueError(f"Expected {name} of a real dtype, got {name} of dtype {value.dtype}.")


def expect_tensor(name: str, value: object) -> None:
    """Check that `value` is a tensor."""
    if not isinstance(value, Tensor):
        raise ValueError(f"Expected {name} to be a torch.Tensor, got {name} of type {type(value).__name__}.")


def expect_shape(name: str, value: Tensor, shape: Sequence[int]) -> None:
    """Check that `value` is a tensor of exactly this shape."""
    expect_tensor(name, value)
    if value.shape != torch.Size(shape):
        raise ValueError(f"Expected {name} of shape {list(shape)}, got {name} of shape {list(value.shape)}.")


def expect_per_group(name: str, value: Tensor, groups: Sequence[int]) -> None:
    """Check that a tensor holds one number for all groups or one for each of the groups [...]."""
    if value.ndim > 0 and value.shape != torch.Size(groups):
        raise ValueError(
            f"Expected {name} to be a number or of shape {list(groups)}, got {name} of shape {list(value.shape)}."
        )


def expect_candidates(name: str, values: Tensor, mask: Tensor | None) -> None:
    """Check that `values` are [..., K] with K >= 1 and that `mask` is a bool tensor of the same shape."""
    expect_tensor(name, values)
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ValueError(f"Expected {name} of shape [..., K] with K >= 1, got {name} of shape {list(values.shape)}.")
    if mask is not None:
        expect_mask("mask", mask, values.shape)


def expect_mask(name: str, mask: Tensor, shape: Sequence[int]) -> None:
    """Check that `mask` is a bool tensor of exactly this shape."""
    expect_shape(name, mask, shape)
    if mask.dtype != torch.bool:
        raise ValueError(f"Expected {name} of dtype torch.bool, got {name} of dtype {mask.dtype}.")


def expect_tempering(tau: Scalar, beta: Scalar, anchor_logps: Tensor | None, *, finite: bool = False) -> None:
    """Check the pair (tau, beta): both >= 0, not both infinite (neither with `finite`), an anchor if beta > 0."""
    expect_scalar("tau", tau, 0.0)
    expect_scalar("beta", beta, 0.0)
    infinite = [
        name for name, value in (("tau", tau), ("beta", beta)) if not isinstance(value, Tensor) and value == math.inf
    ]
    expect(len(infinite) < 2, "tau or beta to be finite", tau=tau, beta=beta)
    if finite:
        expect(not infinite, "tau and beta to be finite", tau=tau, beta=beta)
    expect_anchor(beta, anchor_logps)


def expect_anchor(beta: Scalar, anchor_logps: Tensor | None) -> None:
    """Check that there are anchors wherever beta may exceed 0."""
    if anchor_logps is None and (isinstance(beta, Tensor) or beta > 0):
        raise ValueError(f"Expected anchor_logps with beta > 0, got anchor_logps=None and beta={beta!r}.")
