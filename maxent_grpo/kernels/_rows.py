"""What both backends share: the map from raw logits to log-odds, kept rows, results, the choice of backend."""

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Literal, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from maxent_grpo._checks import expect
from maxent_grpo.kernels._checks import IGNORED_ID, expect_logit_map

Backend = Literal["auto", "torch", "triton"]
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True)
class WeightedNLL:
    """Result of a one-pass weighted NLL.

    Attributes:
        loss: scalar −Σ c·log p, differentiable, float32 (float64 for float64 inputs).
        token_logps: `[...]` log p of every kept row, 0 elsewhere, detached.
        entropy: `[...]` entropy of every kept row's distribution, 0 elsewhere, detached; None unless asked for.
    """

    loss: Tensor
    token_logps: Tensor
    entropy: Tensor | None


class LogitMap(NamedTuple):
    """From raw logits z to the distribution: softmax of `softcap · tanh(scale · z / softcap) / temperature`."""

    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    @classmethod
    def build(cls, temperature: float, logit_scale: float = 1.0, softcap: float | None = None) -> "LogitMap":
        """Check the settings, each a number above zero in float32's range, and return their map."""
        expect_logit_map(temperature, logit_scale, softcap)
        return cls(float(logit_scale), None if softcap is None else float(softcap), float(temperature))

    @property
    def slope(self) -> float:
        """The map's derivative at z = 0, and everywhere when there is no soft cap."""
        return self.scale / self.temperature


class RowLogps(NamedTuple):
    """Per row: log p of its id `[N]`, what `write_row_gradient` needs `[N, 2]`, the entropy `[N]` if asked for."""

    logps: Tensor
    normalizer: Tensor
    entropy: Tensor | None


def allocate_row_logps(logits: Tensor, *, entropy: bool) -> RowLogps:
    """Return zeros for every row of `logits [..., V]`, in the accumulation dtype."""
    rows, dtype = logits.shape[:-1].numel(), accumulation_dtype(logits.dtype)
    logps, *entropies = logits.new_zeros(2 if entropy else 1, rows, dtype=dtype)
    return RowLogps(logps, logits.new_zeros(rows, 2, dtype=dtype), *entropies or [None])


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return float64 for float64 inputs, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def mark_kept_rows(ids: Tensor, mask: Tensor | None, token_weights: Tensor | None = None) -> Tensor:
    """Mark `[...]` the rows with a label, inside the mask, whose weight is not zero (NaN is not)."""
    keep = ids != IGNORED_ID
    if mask is not None:
        keep = keep & mask
    if token_weights is not None:
        keep = keep & (token_weights != 0)
    return keep


def view_rows(tensors: tuple[Tensor, ...], dims: int) -> list[tuple[Tensor, ...]]:
    """View tensors `[..., T, V]` of one shape in `dims` dimensions: in as few parts as their strides allow."""
    shape = (-1, *tensors[0].shape[1 - dims :])
    try:
        return [tuple(tensor.view(shape) for tensor in tensors)]
    except RuntimeError:  # the strides allow no such view: split the first dimension and try its parts
        return [views for parts in zip(*tensors, strict=True) for views in view_rows(parts, dims)]


def is_interpreting() -> bool:
    """Tell whether Triton kernels run in Triton's interpreter, on the CPU.

    Triton 3.6's interpreter needs numpy < 2.4: its `range` is of arrays with one element, which newer ones refuse.
    """
    return os.environ.get("TRITON_INTERPRET", "0") in ("1", "true", "on")


def load_backend(backend: Backend, tensor: Tensor) -> ModuleType:
    """Return the module whose row functions serve this tensor.

    `"auto"` takes Triton for a tensor on a CUDA (or ROCm) device where Triton is installed, and torch otherwise.
    """
    expect(backend in ("auto", "torch", "triton"), "backend 'auto', 'torch' or 'triton'", backend=backend)
    # The kernels compute in float32, which would throw half of a float64 away.
    triton_serves = tensor.dtype != torch.float64 and importlib.util.find_spec("triton") is not None
    if backend == "triton":
        expect(
            triton_serves and (tensor.is_cuda or is_interpreting()),
            "Triton, a GPU (or TRITON_INTERPRET=1) and no float64 for backend='triton'",
            dtype=tensor.dtype,
            device=str(tensor.device),
        )
    takes_triton = backend == "triton" or (backend == "auto" and triton_serves and tensor.is_cuda)
    return importlib.import_module(f"maxent_grpo.kernels._{'triton' if takes_triton else 'torch'}_rows")


def forbid_double_backward(backward: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Refuse a backward that is to be differentiated again: its result would be taken for a constant."""

    @functools.wraps(backward)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if torch.is_grad_enabled():  # in a backward only under create_graph=True
            raise RuntimeError("Expected a backward without create_graph=True: the kernels are differentiable once.")
        return backward(*args, **kwargs)

    return call


def exclude_from_graphs(operation: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Keep `operation` out of the graphs that `torch.compile` builds of its callers: it is fused by hand.

    `torch.compiler.disable` as a decorator would import the compiler, and Triton with it, along with this package.
    """

    @functools.wraps(operation)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if torch.compiler.is_compiling():
            disabled: Callable[Arguments, Result] = torch.compiler.disable(operation)  # type: ignore[no-untyped-call]
            return disabled(*args, **kwargs)
        return operation(*args, **kwargs)

    return call
