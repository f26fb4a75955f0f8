"""Checks of the kernels' arguments beside those of the core: nothing here waits for a device."""

import math
import numbers

import torch
from torch import Tensor

from maxent_grpo._checks import expect, expect_in, expect_mask, expect_shape, expect_tensor

FLOAT32 = torch.finfo(torch.float32)

IGNORED_ID = -100
"""A label that marks its row as no target, whatever the mask says."""


def expect_logit_map(temperature: float, logit_scale: float, softcap: float | None) -> None:
    """Check that the factors of a logit map are numbers above 0, and that float32 holds what they are multiplied to.

    A tanh below float32's smallest number is lost, and softcap / temperature times as much of the log-odds with it:
    that is to be less than float32's rounding.
    """
    given = {"temperature": temperature, "logit_scale": logit_scale}
    if softcap is not None:
        given["softcap"] = softcap
    for name, value in given.items():
        expect_in(name, value, 0.0, open_low=True)
        expect(value < math.inf, f"{name} to be finite", **{name: value})
        _expect_held(name, value, **{name: value})
    _expect_held("logit_scale / temperature", logit_scale / temperature, **given)
    if softcap is not None:
        _expect_held("logit_scale / softcap", logit_scale / softcap, **given)
        most = FLOAT32.eps / FLOAT32.tiny
        expect(softcap / temperature <= most, f"softcap / temperature <= {most:.2g}", **given)


def _expect_held(name: str, value: float, **got: float) -> None:
    """Check that float32 holds a number and its reciprocal in full precision."""
    low, high = FLOAT32.tiny, 1 / FLOAT32.tiny
    expect(low <= value <= high, f"{name} from {low:.2g} to {high:.2g}, as float32 holds it", **got)


def expect_flags(**flags: bool) -> None:
    """Check that each value is True or False."""
    for name, value in flags.items():
        expect(isinstance(value, bool), f"{name} to be True or False", **{name: value})


def expect_chunk_bytes(chunk_bytes: int | None) -> None:
    """Check that a budget is a whole number of bytes above 0, or None."""
    if chunk_bytes is not None:
        expect(_is_whole(chunk_bytes) and chunk_bytes > 0, "chunk_bytes, a whole number > 0", chunk_bytes=chunk_bytes)


def _is_whole(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def expect_rows(name: str, values: Tensor, ids: Tensor, mask: Tensor | None) -> None:
    """Check that `values` are floating point [..., width >= 1], `ids` integers [...] and `mask` a bool [...]."""
    expect_tensor(name, values)
    expect_tensor("ids", ids)
    expect(values.is_floating_point(), f"floating point {name}", dtype=values.dtype)
    expect(ids.dtype in (torch.int64, torch.int32), "ids of dtype int64 or int32", dtype=ids.dtype)
    expect(
        values.ndim >= 2 and values.shape[:-1] == ids.shape and values.shape[-1] >= 1,
        f"{name} of shape [..., width] with width >= 1 and ids of shape [...]",
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
        weight.is_floating_point() and weight.ndim == 2 and weight.shape[1] == hidden.shape[-1] and len(weight) >= 1,
        f"a floating point weight of shape [V, {hidden.shape[-1]}] with V >= 1",
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
        expect(bias.is_floating_point(), "a floating point bias", dtype=bias.dtype)
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
    within = _is_whole(row_count) and 0 <= row_count <= keep.numel()
    expect(within, f"row_count, a whole number in [0, {keep.numel()}]", row_count=row_count)
    if keep.device.type == "cpu":
        expect(row_count == int(keep.sum()), f"row_count of the {int(keep.sum())} rows kept", row_count=row_count)
