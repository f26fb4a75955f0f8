"""Checks of the kernels' arguments beside those of the core: nothing here waits for a device."""

import math

import torch
from torch import Tensor

from maxent_grpo._checks import expect, expect_in, expect_mask, expect_shape, expect_tensor

IGNORED_ID = -100
"""A label that marks its row as no target, whatever the mask says."""


def expect_positive(name: str, value: float) -> None:
    """Check 0 < value < inf."""
    expect_in(name, value, 0.0, open_low=True)
    expect(value < math.inf, f"{name} to be finite", **{name: value})


def expect_rows(name: str, values: Tensor, ids: Tensor, mask: Tensor | None) -> None:
    """Check that `values` are floating point [..., width >= 1], `ids` integers [...] and `mask` a bool [...]."""
    expect_tensor(name, values)
    expect_tensor("ids", ids)
    expect(values.is_floating_point(), f"floating point {name}", dtype=values.dtype)
    expect(ids.dtype in (torch.int64, torch.int32), "ids of dtype int64 or int32", dtype=ids.dtype)
    expect(
        values.ndim >= 2 and values.shape[:-1] == ids.shape and values.shape[-1] >= 1,
        f"{name} of shape [..., width] and ids of shape [...]",
        **{name: list(values.shape), "ids": list(ids.shape)},
    )
    if mask is not None:
        expect_mask("mask", mask, ids.shape)
    expect_one_device(**{name: values, "ids": ids}, mask=mask)


def expect_token_weights(token_weights: Tensor, ids: Tensor) -> None:
    """Check that `token_weights` are a floating point tensor of the shape of `ids`."""
    expect_shape("token_weights", token_weights, ids.shape)
    expect(token_weights.is_floating_point(), "floating point token_weights", dtype=token_weights.dtype)
    expect_one_device(token_weights=token_weights, ids=ids)


def expect_head(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Check that `weight [V, D]` and `bias [V]` can follow `hidden [..., D]`, in one dtype unless autocast is on."""
    expect_tensor("weight", weight)
    expect(
        weight.is_floating_point() and weight.ndim == 2 and weight.shape[1] == hidden.shape[-1],
        f"a floating point weight of shape [V, {hidden.shape[-1]}]",
        dtype=weight.dtype,
        weight=list(weight.shape),
    )
    expect(
        hidden.dtype == weight.dtype or torch.is_autocast_enabled(hidden.device.type),
        "hidden and weight of one dtype outside autocast",
        hidden=hidden.dtype,
        weight=weight.dtype,
    )
    if bias is not None:
        expect_shape("bias", bias, weight.shape[:1])
    expect_one_device(hidden=hidden, weight=weight, bias=bias)


def expect_one_device(**tensors: Tensor | None) -> None:
    """Check that the given tensors share a device."""
    devices = {name: str(tensor.device) for name, tensor in tensors.items() if tensor is not None}
    expect(len(set(devices.values())) == 1, "one device", **devices)


def expect_ids(ids: Tensor, keep: Tensor, vocabulary: int) -> None:
    """Check that kept ids lie in [0, V), where they can be read at once: on the CPU."""
    if ids.device.type == "cpu":
        outside = ids[keep & ((ids < 0) | (ids >= vocabulary))]
        expect(not len(outside), f"ids in [0, {vocabulary})", ids=outside[:4].tolist())


def expect_row_count(row_count: int | None, keep: Tensor) -> None:
    """Check that `row_count` is a number of rows, and the number of those kept where it can be read at once."""
    if row_count is None:
        return
    expect(0 <= row_count <= keep.numel(), f"row_count in [0, {keep.numel()}]", row_count=row_count)
    if keep.device.type == "cpu":
        expect(row_count == int(keep.sum()), f"row_count of the {int(keep.sum())} rows kept", row_count=row_count)
