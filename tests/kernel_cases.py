"""What the kernels' tests share: the naive equations, inputs of every layout, a memory counter."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

ROUNDING = defaultdict(lambda: 1.0)
"""Error of (backend, dtype) in units of eager's: Triton's interpreter truncates to bfloat16 where a GPU rounds."""
if DEVICE == "cpu":
    ROUNDING["triton", torch.bfloat16] = 2.0


@dataclass(frozen=True)
class Rows:
    """Logits of some layout with their labels, mask and coefficients."""

    logits: Tensor
    ids: Tensor
    mask: Tensor
    token_weights: Tensor
    temperature: float

    @property
    def keep(self) -> Tensor:
        return self.mask & (self.ids != -100)


def naive_logps(logits: Tensor, ids: Tensor, keep: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / T)[ids] in the dtype of the logits; 0 where not kept."""
    logps = (logits / temperature).log_softmax(-1).gather(-1, ids.where(keep, 0).long()[..., None])[..., 0]
    return logps.where(keep, 0)


def naive_head(
    hidden: Tensor, weight: Tensor, bias: Tensor | None = None, scale: float = 1.0, softcap: float | None = None
) -> Tensor:
    """softcap · tanh(scale · (W h + b) / softcap)."""
    logits = torch.nn.functional.linear(hidden, weight, bias) * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def spread(shape: tuple[int, ...], layout: str, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Random values of some memory layout."""

    def values(*size: int) -> Tensor:
        return (3 * torch.randn(size, generator=generator)).to(DEVICE, dtype)

    *rest, tokens, width = shape
    if layout == "sliced":
        return values(*rest, tokens + 1, width)[..., :-1, :]
    if layout == "strided":
        return values(*rest, 2 * tokens, width + 3)[..., ::2, 1 : width + 1]
    if layout == "transposed":
        return values(*rest, width, tokens).transpose(-1, -2)
    if layout == "outer" and rest:  # with two dimensions before the tokens, no view has the rows in one
        return values(*rest[:-1], rest[-1] + 1, tokens, width)[..., :-1, :, :]
    return values(*shape)


def per_row(values: Tensor, layout: str) -> Tensor:
    """The values `[...]` as they lie in a wider tensor, or the last dimension's first one shared by all."""
    if layout == "strided":
        return torch.stack([values, values.roll(1)], -1)[..., 0]
    return values[..., :1].expand(values.shape) if layout == "expanded" else values


@st.composite
def rows(draw: st.DrawFn, *, least_dims: int = 1) -> Rows:
    """Small logits of any layout and dtype, masked and ignored labels, coefficients of every size and sign."""
    lead = tuple(draw(st.lists(st.integers(0, 3), min_size=least_dims, max_size=3)))
    width = draw(st.sampled_from([1, 2, 7, 64, 130]))
    layout = draw(st.sampled_from(["contiguous", "sliced", "strided", "transposed", "outer"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    ids = torch.randint(0, width, lead, generator=generator)
    ids[torch.rand(lead, generator=generator) < 0.2] = -100
    weights = torch.tensor([-1.0, 0.0, 1e-12, 1e4, 0.3])[torch.randint(0, 5, lead, generator=generator)]
    mask = torch.rand(lead, generator=generator) < draw(st.sampled_from([0.0, 0.7, 1.0]))
    row_layouts = st.sampled_from(["contiguous", "strided", "expanded"])
    return Rows(
        spread((*lead, width), layout, draw(st.sampled_from(DTYPES)), generator),
        per_row(ids.to(DEVICE, draw(st.sampled_from([torch.int64, torch.int32]))), draw(row_layouts)),
        per_row(mask.to(DEVICE), draw(row_layouts)),
        per_row(weights.to(DEVICE), draw(row_layouts)),
        draw(st.sampled_from([1.0, 0.3, 2.5])),
    )


def precise(rows: Rows) -> tuple[Tensor, Tensor]:
    """(log-probabilities, gradient of −Σ c·log p) of the logits in float64, by autograd of the naive equations."""
    logits = rows.logits.double().detach().requires_grad_()
    logps = naive_logps(logits, rows.ids, rows.keep, rows.temperature)
    (gradient,) = torch.autograd.grad(-(rows.token_weights.double() * logps).sum(), logits)
    return logps.detach(), gradient


def peak_bytes(function: Callable[[], object]) -> int:
    """Most bytes held at once by what `function` allocates: its result and its operators' temporaries too."""
    if DEVICE == "cuda":
        function()  # the first call's workspaces and compiled kernels stay
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = function()
    del result
    held = peak = 0
    assert profiler.profiler is not None
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
