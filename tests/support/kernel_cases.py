"""What the kernels' tests share: the naive equations, inputs of every layout, a memory counter."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from benchmarks import _measure
from maxent_grpo.kernels._rows import accumulation_dtype

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1,), (7,), (2, 3), (3, 0), (4, 4), (2, 3, 2))
"""Of per-row tensors. Few are empty: of sizes drawn one by one, most examples would have no row to be wrong about."""

ROUNDING = defaultdict(lambda: 1.0)
"""Error of (backend, dtype) in units of eager's: Triton's interpreter truncates to bfloat16 where a GPU rounds."""
if DEVICE == "cpu":
    ROUNDING["triton", torch.bfloat16] = 2.0
STEPS = 8
"""Roundings of the accumulation dtype on the way to a log-probability, each relative to the largest log-odds: twice
what 2,000 examples need."""


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

    @property
    def row_error(self) -> Tensor:
        return row_error(self.logits.double() / self.temperature, self.logits.dtype)


def row_error(odds: Tensor, dtype: torch.dtype) -> Tensor:
    """How far log-probabilities and entropies of exact log-odds `[..., V]` may be off, computed for `dtype`."""
    return STEPS * torch.finfo(accumulation_dtype(dtype)).eps * (1 + odds.abs().amax(-1))


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
    lead = draw(st.sampled_from([shape for shape in SHAPES if len(shape) >= least_dims]))
    width = draw(st.sampled_from([1, 2, 7, 64, 130]))
    layout = draw(st.sampled_from(["contiguous", "sliced", "strided", "transposed", "outer"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    ids = torch.randint(0, width, lead, generator=generator)
    ids[torch.rand(lead, generator=generator) < 0.2] = -100
    weights = torch.tensor([-1.0, 0.0, 1e-12, 1e4, 0.3])[torch.randint(0, 5, lead, generator=generator)]
    mask = torch.rand(lead, generator=generator) < draw(st.sampled_from([1.0, 0.7]))
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


@dataclass(frozen=True)
class Head:
    """Hidden states, LM head, labels, coefficients and the settings of the map from logits to log-odds."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    ids: Tensor
    mask: Tensor
    token_weights: Tensor
    knobs: dict[str, float | None]
    chunk_rows: int

    @property
    def keep(self) -> Tensor:
        return self.mask & (self.ids != -100)

    @property
    def options(self) -> dict[str, object]:
        row_bytes = self.weight.shape[0] * self.hidden.dtype.itemsize
        return {**self.knobs, "mask": self.mask, "chunk_bytes": self.chunk_rows * row_bytes}

    def leaves(self, dtype: torch.dtype | None = None) -> list[Tensor]:
        tensors = [tensor for tensor in (self.hidden, self.weight, self.bias) if tensor is not None]
        return [tensor.detach().to(dtype or tensor.dtype).requires_grad_() for tensor in tensors]

    def exact(self, backend: str = "torch") -> "Exact":
        """Autograd of the naive equations in float64; the errors are those of exact logits, such as `heads` gives.

        dz = c·(p − onehot)·slope cancels in the accumulation dtype and is rounded once, relative to the power of 2 of
        its c (for dW of the largest c); what it adds up to is rounded once more.
        """
        softcap, temperature = self.knobs["softcap"], self.knobs["temperature"]
        slope, half = self.knobs["logit_scale"] / temperature, torch.finfo(self.hidden.dtype)
        leaves = self.leaves(torch.float64)
        capped = naive_head(*leaves, scale=self.knobs["logit_scale"], softcap=softcap)
        logps = naive_logps(capped, self.ids, self.keep, temperature)
        gradients = torch.autograd.grad(-(self.token_weights.double() * logps).sum(), leaves)

        odds = capped.detach() / temperature
        of_logps = row_error(odds, self.hidden.dtype)
        p, onehot = odds.softmax(-1), torch.nn.functional.one_hot(self.ids.where(self.keep, 0).long(), odds.shape[-1])
        cap_slope = 1.0 if softcap is None else 1 - (capped.detach() / softcap).square()
        rounded = (1 + ROUNDING[backend, self.hidden.dtype]) / 2 * half.eps * (p - onehot).abs() * cap_slope
        c = (self.token_weights.double().abs() * self.keep)[..., None]
        least, largest = half.smallest_normal * half.eps, max(c.flatten().tolist(), default=0.0)
        dz = c * slope * (rounded + of_logps[..., None] * (p + onehot))
        of_row, of_sum = dz + least * c, (dz + least * largest).flatten(0, -2)
        hidden, weight = leaves[0].detach().abs().flatten(0, -2), leaves[1].detach().abs()
        errors = [of_row @ weight, of_sum.T @ hidden, of_sum.sum(0)][: len(leaves)]
        entropy = torch.special.entr(p).sum(-1)
        return Exact(logps.detach(), entropy, of_logps, list(gradients), [error + least for error in errors])


@dataclass(frozen=True)
class Exact:
    """Results in float64 and how far those of a kernel may be from them, element by element."""

    logps: Tensor
    entropy: Tensor
    row_error: Tensor
    gradients: list[Tensor]
    gradient_errors: list[Tensor]


def assert_within(got: Tensor, wanted: Tensor, error: Tensor) -> None:
    """Check |got − wanted| <= error everywhere; NaN is nowhere within."""
    assert got.shape == wanted.shape
    excess = (got.detach().double() - wanted.detach()).abs() - error
    assert bool((excess <= 0).all()), f"{float(excess.max())} beyond an error of at most {float(error.max())}"


@st.composite
def heads(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...]) -> Head:
    """Small heads of dyadic values: logits are multiples of ¼ below 2⁶, exact in every dtype in any order."""
    lead = draw(st.sampled_from(SHAPES))
    width, vocabulary = draw(st.sampled_from([8, 24])), draw(st.sampled_from([1, 7, 130]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from(dtypes))

    def values(*shape: int) -> Tensor:
        return (torch.randint(-2, 3, shape, generator=generator) / 2).to(DEVICE, dtype)

    ids = torch.randint(0, vocabulary, lead, generator=generator)
    ids[torch.rand(lead, generator=generator) < 0.2] = -100
    large = 1e3 if dtype == torch.float16 else 1e4  # 16 rows with a slope of 2 add up to 32,000
    weights = torch.tensor([-1.0, 0.0, 1e-12, large, 0.3])[torch.randint(0, 5, lead, generator=generator)]
    return Head(
        values(*lead, 2 * width)[..., ::2],
        values(vocabulary, width),
        values(vocabulary) if draw(st.booleans()) else None,
        ids.to(DEVICE),
        (torch.rand(lead, generator=generator) < draw(st.sampled_from([1.0, 0.7]))).to(DEVICE),
        weights.to(DEVICE),
        {
            "temperature": draw(st.sampled_from([1.0, 0.5])),
            "logit_scale": draw(st.sampled_from([1.0, 0.3])),
            "softcap": draw(st.sampled_from([None, 4.0])),
        },
        draw(st.sampled_from([1, 3, 100])),
    )


def standard_head(dtype: torch.dtype = torch.float32, rows: int = 16, width: int = 32, vocabulary: int = 300) -> Head:
    torch.manual_seed(0)
    return Head(
        torch.randn(rows, width, device=DEVICE).to(dtype),
        (torch.randn(vocabulary, width, device=DEVICE) / width**0.5).to(dtype),
        None,
        torch.randint(0, vocabulary, (rows,), device=DEVICE),
        torch.ones(rows, dtype=torch.bool, device=DEVICE),
        torch.randn(rows, device=DEVICE),
        {"temperature": 1.0, "logit_scale": 1.0, "softcap": None},
        6,
    )


def peak_bytes(function: Callable[[], object]) -> int:
    """Most bytes held at once by what `function` allocates: its result and its operators' temporaries too."""
    if DEVICE == "cuda":
        function()  # the first call's workspaces and compiled kernels stay
    return _measure.measure_peak_bytes(function, DEVICE)
